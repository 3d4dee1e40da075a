"Regression losses: values by hand, shapes of the targets, edge cases"
import pytest, torch
from fastai.callback.schedule import SchedLin

from fastkd.losses.base import as_loss
from fastkd.losses.regression import *
from fastkd.losses.soft_targets import logits

torch.set_num_threads(1)
i,j = torch.arange(8)[:,None].double(),torch.arange(3)[None].double()
s,t,y = 3*torch.sin(1.3*i + .7*j + .1),4*torch.cos(.9*i - .4*j),2*torch.sin(i - j)

@pytest.mark.parametrize('delta', [.5, 1., 3.])
def test_huber_by_hand(delta):
    d = (s-t).abs()
    want = sum(o**2/2 if o <= delta else delta*(o - delta/2) for o in d.flatten().tolist())/24
    assert huber(s, t, delta=delta).item() == pytest.approx(want, rel=1e-12)
    assert Huber(delta=delta)(s, t) == huber(s, t, delta=delta)

def test_wide_huber_is_half_the_squared_error(): assert huber(s, t, delta=1e3).item() == pytest.approx(logits(s, t).item()/2, rel=1e-12)

@pytest.mark.parametrize('margin', [0., 2., 1e3])
def test_teacher_bounded_by_hand(margin):
    errs = [[sum((a-b)**2 for a,b in zip(u,v)) for u,v in zip(o.tolist(), y.tolist())] for o in (s,t)]
    want = sum(es if es+margin > et else 0 for es,et in zip(*errs))/8
    assert 0 < want <= sum(errs[0])/8
    assert teacher_bounded(s, t, y, margin).item() == pytest.approx(want, rel=1e-12)
    assert TeacherBounded(margin=margin)(s, t, y=y) == teacher_bounded(s, t, y, margin)

def test_the_margin_is_what_the_student_must_be_better_by():
    a,b,y = torch.tensor([1.]),torch.tensor([2.]),torch.tensor([0.])  # squared errors 1 and 4
    assert [teacher_bounded(a, b, y, m).item() for m in (0., 2.9, 3.1)] == [0., 0., 1.]

def test_bounded_items_get_no_gradient():
    x = torch.tensor([1.,3.], requires_grad=True)
    teacher_bounded(x, torch.tensor([2.,2.]), torch.zeros(2)).backward()
    assert x.grad.tolist() == [0., 3.]

def test_zero_at_the_teacher(): assert huber(t, t) == teacher_bounded(t, t, y) == 0

@pytest.mark.parametrize('shape', [(24,), (24,1), (4,6), (4,6,1)])
def test_targets_only_need_as_many_elements(shape):
    flat = [o.reshape(24) for o in (s,t)]
    for a in flat,[o[:,None] for o in flat]: assert teacher_bounded(*a, y.reshape(shape)) == teacher_bounded(*flat, y.reshape(24))

def test_whole_numbers_are_targets(): assert teacher_bounded(s, t, y.round().long()) == teacher_bounded(s, t, y.round())

def test_pixels_are_positions():
    maps = [o.reshape(2,2,2,3).permute(0,3,1,2) for o in (s,t,y)]
    want = teacher_bounded(s, t, y).item()
    assert teacher_bounded(*maps).item() == pytest.approx(want, rel=1e-12)
    assert teacher_bounded(*[o.reshape(2,4,3) for o in (s,t,y)], axis=-1).item() == pytest.approx(want, rel=1e-12)

@pytest.mark.parametrize('f', [lambda *o, **kw: huber(*o[:2], **kw), teacher_bounded], ids=['huber','bounded'])
def test_mask_leaves_positions_out(f):
    mask = torch.arange(8) < 3
    for cols in slice(None),0:  # (B, C) and (B,)
        o = [x[:,cols] for x in (s,t,y)]
        assert f(*o, mask=mask).item() == pytest.approx(f(*[x[:3] for x in o]).item(), rel=1e-12)
        assert f(*o, mask=torch.zeros(8).bool()) == 0

@pytest.mark.parametrize('call,text', [
    (lambda: huber(s, t[:,:2]), r'pred has shape \(8, 3\)'),
    (lambda: teacher_bounded(s, t[:4], y), r'pred has shape \(8, 3\)'),
    (lambda: teacher_bounded(s, t, y[:,0]), r'y has shape \(8,\) and pred \(8, 3\): give one target per output'),
    (lambda: huber(s, t, mask=torch.ones(3).bool()), r'mask has shape \(3,\)'),
    (lambda: Huber(delta=0), 'delta=0'), (lambda: TeacherBounded(margin=-1), 'margin=-1')])
def test_mistakes_are_named(call, text):
    with pytest.raises(ValueError, match=text): call()

def test_objects():
    assert as_loss(Huber).needs == set() and as_loss(TeacherBounded).needs == {'y'}
    assert Huber.act is None and TeacherBounded.act is None
    assert Huber(delta=SchedLin(1,3))(s, t, pos=.5) == huber(s, t, delta=2.)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_computes_in_float32_under_autocast(dtype):
    o = [x.to(dtype) for x in (s,t,y)]
    with torch.autocast('cpu', dtype=torch.bfloat16): got = huber(*o[:2]),teacher_bounded(*o)
    for g,f,n in zip(got, (huber,teacher_bounded), (2,3)):
        assert g.dtype == torch.float32
        assert g.item() == pytest.approx(f(*[x.double() for x in o[:n]]).item(), rel=1e-5)

def test_losses_of_distant_outputs_stay_finite():
    x = (s.float()+1e4).requires_grad_()
    loss = huber(x, t.float()) + teacher_bounded(x, t.float(), y.float())
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()

def test_gradcheck():
    assert torch.autograd.gradcheck(lambda x: huber(x, t), s.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: teacher_bounded(x, t, y), s.clone().requires_grad_())
