"Warm-up schedules and the learnable temperature"
import math
import pytest, torch
from fastai.callback.schedule import SchedCos, SchedLin, SchedNo, combine_scheds
from fastkd.losses.base import check_param, value_at
from fastkd.losses.label_aware import DecoupledKD
from fastkd.losses.soft_targets import soft_target, SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.schedules import LearnableT, warm_up
from helpers import *

@pytest.fixture(scope='module')
def dls(): return fixed(image_dls(), 16)
@pytest.fixture(scope='module')
def teacher(dls): return trained_teacher(dls)

# warm-up
@pytest.mark.parametrize('sched,at', [(SchedLin, 5.), (SchedCos, 5.)])
def test_rises_in_the_first_part_and_stays(sched, at):
    w = warm_up(8., .2, start=2., sched=sched)
    assert (w(0.), w(.2), w(.7), w(1.)) == (2., 8., 8., 8.)
    assert w(.1) == pytest.approx(at)

def test_equals_fastais_combined_schedule():
    w,f = warm_up(3., .25),combine_scheds([.25,.75], [SchedLin(0.,3.), SchedNo(3.,3.)])
    assert [w(i/20) for i in range(21)] == pytest.approx([float(f(i/20)) for i in range(21)])

def test_rises_into_another_schedule():
    w = warm_up(SchedLin(4., 0.), .2)
    assert [w(o) for o in (.1,.2,.6,1.)] == pytest.approx([2.,4.,2.,0.])

@pytest.mark.parametrize('args,text', [
    (dict(end=1., pct=0.), 'pct=0'), (dict(end=1., pct=1.1), 'pct=1.1'), (dict(end=float('nan')), 'end=nan')])
def test_odd_warm_ups(args, text):
    with pytest.raises(ValueError, match=text): warm_up(**args)

def test_weight_and_temperature_of_each_step_are_those_of_the_schedule(dls, teacher):
    seen = []
    def spy(pred, teacher_pred, T=1., **kwargs):
        seen.append(T)
        return pred.sum()*0 + 1.
    loss,n = SoftTarget(T=warm_up(4., .5, start=1.), weight=warm_up(2., .5)),2*len(dls.train)
    learn = student(dls, cbs=KnowledgeDistillation(teacher, loss, weight=1.))
    loss.func = spy
    learn.fit(2)
    assert seen[-n:] == pytest.approx([warm_up(4., .5, start=1.)(i/n) for i in range(n)])
    weights = [warm_up(2., .5)(i/n) for i in range(n)]
    assert learn.knowledge_distillation.history.spy.tolist() == pytest.approx([np.mean(weights[:n//2]), 2.])

def nan_in_the_middle(pos): return float('nan') if .3 < pos < .45 else 1.
@pytest.mark.parametrize('make', [
    lambda t: SoftTarget(weight=nan_in_the_middle), lambda t: SoftTarget(T=nan_in_the_middle),
    lambda t: KnowledgeDistillation(t, weight=nan_in_the_middle)])
def test_schedule_that_gives_nan_somewhere_is_an_error_before_training(make, teacher):
    with pytest.raises(ValueError, match='=nan at training progress'): make(teacher)
def test_nan_between_the_looks_is_an_error_when_it_comes():
    sched = lambda pos: float('nan') if pos==.51 else 1.
    assert check_param('weight', sched) is sched
    with pytest.raises(ValueError, match=r'gives nan at training progress 0.51'): value_at(sched, .51)

# learnable temperature
def test_gradient_is_that_of_the_temperature_reversed_and_scaled():
    torch.manual_seed(0)
    s,t,T = torch.randn(6,5).double(),torch.randn(6,5).double(),LearnableT(2., 12., pct=.5, init=.3).double()
    SoftTarget(T=T)(s, t, pos=.25).backward()
    theta = torch.tensor(.3, dtype=torch.float64, requires_grad=True)
    soft_target(s, t, T=2+10*torch.sigmoid(theta)).backward()
    assert T.theta.grad.item() == pytest.approx(-.5*theta.grad.item(), rel=1e-6)
    assert (T.strength(0.), T.strength(.5), T.strength(1.)) == (0., 1., 1.)

def test_students_gradient_is_not_reversed():
    s,t = torch.randn(4,3, requires_grad=True),torch.randn(4,3)
    SoftTarget(T=LearnableT(1., 7., init=0.))(s, t, pos=1.).backward()
    got,s.grad = s.grad,None
    soft_target(s, t, T=4.).backward()
    torch.testing.assert_close(got, s.grad)

@pytest.mark.parametrize('args,text', [(dict(low=0.), 'low=0'), (dict(low=3., high=2.), 'high=2'), (dict(pct=-1.), 'pct=-1')])
def test_odd_limits(args, text):
    with pytest.raises(ValueError, match=text): LearnableT(**args)

def test_temperature_is_learnt_and_recorded(dls, teacher):
    T = LearnableT(1., 9., init=0.)
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget(T=T), weight=1.))
    learn.fit(3, 1e-1)
    h = learn.knowledge_distillation.history.soft_target_T
    assert abs(h.iloc[-1]-5.) > .1 and 1 < h.min() and h.max() < 9
    assert T().item() != pytest.approx(5.)
    assert not any(p is T.theta for p,*_ in learn.opt.all_params())

def test_lr_find_gives_the_temperature_back(dls, teacher):
    T = LearnableT()
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget(T=T), weight=1.))
    before = T.theta.item()
    learn.lr_find(num_it=6, show_plot=False)
    assert T.theta.item() == before and learn.knowledge_distillation.adapter_opt is None

def test_summary_shows_the_temperature(dls, teacher):
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget(T=LearnableT(1., 3., init=0.))))
    assert 'LearnableT(1..3, now 2)' in learn.knowledge_distillation.summary()

@pytest.mark.parametrize('make', [
    lambda t: KnowledgeDistillation(t, weight=LearnableT()), lambda t: SoftTarget(weight=LearnableT()),
    lambda t: DecoupledKD(alpha=LearnableT()), lambda t: warm_up(LearnableT())])
def test_only_a_temperature_is_learnt(make, teacher):
    with pytest.raises(TypeError, match='give a number, or a schedule'): make(teacher)
