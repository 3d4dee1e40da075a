"The value of each term, before the first step: nan, negative, without a gradient, or much larger than the task loss"
from functools import partial

import pytest
from fastai.vision.all import *

from fastkd.data.digits import digits_dls
from fastkd.losses.features import Attention, FitNet
from fastkd.losses.soft_targets import BinarySoftTarget, Logits, SoftTarget, soft_target
from fastkd.losses.variational import VID
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.schedules import warm_up
from helpers import *

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # PyTorch's, of kl_div

dls = image_dls(bs=32)
teacher = trained_teacher(dls)

def learner(*losses, dls=dls, t=teacher, **kwargs):
    return student(dls, cbs=KnowledgeDistillation(t, list(losses), **kwargs))

def warnings_of(learn):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learn.fit(1, 1e-3)
    return [str(o.message) for o in seen]

def outputs(learn, t=teacher):
    "Logits of student and teacher, and the labels, of the validation items, which fit into one batch"
    x,y = (cast(o, Tensor) for o in learn.dls.valid.one_batch())
    with torch.no_grad(): return [m.eval()(x) for m in (learn.model, t.model)] + [y]

# Values that cannot be trained with
def not_finite(p, t): return ((p-p) / (t-t)).mean()
def infinite(p, t): return p.abs().mean() / 0.
def number(p, t): return (p-t).abs().mean().item()
def nothing(p, t): pass

@pytest.mark.parametrize('loss,text', [
    (F.kl_div, r'loss=kl_div is nan .*takes log-probabilities and probabilities.*use SoftTarget\(T=1\)'),
    (partial(F.kl_div, reduction='batchmean'), r'loss=kl_div is nan .*use SoftTarget\(T=1\)'),
    (nn.KLDivLoss(), r'loss=KLDivLoss is nan .*use SoftTarget\(T=1\)'),
    (not_finite, "loss=not_finite is nan on a batch whose predictions are finite: check what it makes of student's and teacher's logits"),
    (infinite, 'loss=infinite is inf'),
    (F.cosine_similarity, r'loss=cosine_similarity returns a tensor of shape \(32,\): it must return one number'),
    (partial(F.mse_loss, reduction='none'), r'loss=mse_loss returns a tensor of shape \(32, 3\)'),
    (number, 'loss=number returns a float: it must return a tensor'),
    (nothing, 'loss=nothing returns a NoneType'),
])
def test_what_cannot_be_trained_with_is_an_error_before_the_first_step(loss, text):
    learn = learner(loss)
    before = state(learn.model)
    with pytest.raises(ValueError, match=text): learn.knowledge_distillation.summary()
    with pytest.raises(ValueError, match=text): learn.fit(1)
    assert same_state(before, learn.model.state_dict())

def test_one_bad_term_among_good_ones_is_named():
    with pytest.raises(ValueError, match='loss=kl_div is nan'): learner(SoftTarget(), F.kl_div).fit(1)

def test_the_remedy_for_kl_div_is_soft_target_at_temperature_1():
    def kl(p, t): return F.kl_div(p.log_softmax(1), t.softmax(1), reduction='batchmean')
    learn = learner(kl)
    p,t,_ = outputs(learn)
    text = learn.knowledge_distillation.summary()
    assert f'kl: {soft_target(p, t, T=1.).item():.4g} with its weight' in text and 'Warning: loss' not in text

def test_a_feature_loss_that_is_nan():
    class Bad(FitNet):
        def pairs_loss(self, *args, **kwargs): return super().pairs_loss(*args, **kwargs)*float('nan')
    learn = learner(Bad([('1','1')]))
    before = state(learn.model)
    with pytest.raises(ValueError, match='loss=fitnet is nan.*check its layers'): learn.fit(1)
    assert same_state(before, learn.model.state_dict())

def test_without_validation_data_the_first_batch_tells():
    learn = learner(F.kl_div, dls=DataLoaders(dls.train))
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match='loss=kl_div is nan'): learn.fit(1)
    assert all(map(torch.equal, before, learn.model.parameters()))

def test_a_student_that_is_nan_is_not_blamed_on_the_loss():
    learn = learner(SoftTarget())
    learn.model[-1].bias.data[0] = float('nan')
    assert 'soft_target: nan' in learn.knowledge_distillation.summary()

def test_at_weight_0_nothing_is_said():
    learn = learner(F.kl_div, weight=0)
    learn.knowledge_distillation.summary()
    assert warnings_of(learn) == []

# Values that are odd
def negative(p, t): return -F.cosine_similarity(p, t).mean()
def same(p, t): return (p.argmax(1) != t.argmax(1)).float().mean()

def test_negative_values_are_called_out_with_the_value():
    learn = learner(negative)
    p,t,_ = outputs(learn)
    v = negative(p+0, t).item()
    found = warnings_of(learn)
    if v < 0: assert len(found) == 1 and f'loss=negative is {v:.3g}, but a distance is not negative' in found[0]
    flipped = warnings_of(learner(lambda p, t: -negative(p, t)))
    assert bool(found) != bool(flipped)

@pytest.mark.parametrize('loss,text', [(F.cross_entropy, r'F.cross_entropy\(p, t.softmax\(1\)\)'), (nn.CrossEntropyLoss(), 'takes probabilities as targets')])
def test_cross_entropy_with_logits_as_targets(loss, text):
    t = deepcopy(teacher.model)
    t[-1].bias.data -= 20  # the same probabilities
    with pytest.warns(UserWarning, match=f'is -.*{text}'): learner(loss, t=t, weight=.1).fit(1, 1e-5)

def test_binary_cross_entropy_with_logits_as_targets():
    y = torch.rand(32, 2).round()
    x = y*6 - 3
    pairs = DataLoaders(*[DataLoader(list(zip(x, y)), bs=32)]*2)
    t = nn.Linear(2, 2)
    t.weight.data,t.bias.data = 20*torch.eye(2),torch.zeros(2)
    s = nn.Linear(2, 2)
    s.weight.data,s.bias.data = torch.eye(2),torch.zeros(2)
    learn = Learner(pairs, s, loss_func=BCEWithLogitsLossFlat(), cbs=KnowledgeDistillation(t, F.binary_cross_entropy_with_logits))
    assert 'Warning: loss=binary_cross_entropy_with_logits is -' in (text := learn.knowledge_distillation.summary())
    assert 'use BinarySoftTarget()' in text

def test_a_likelihood_may_be_negative():
    learn = learner(VID([('1','1')], var=1e-3, weight=1e-6))
    learn.model[1][1].weight.data.zero_()
    t = deepcopy(teacher.model)
    t[1][1].weight.data.zero_(); t[1][1].bias.data.zero_()
    learn.knowledge_distillation.teachers.items[0].source = t
    text = learn.knowledge_distillation.summary()
    assert 'vid: -' in text and 'not negative' not in text

def test_a_term_without_a_gradient_is_called_out():
    found = [o for o in warnings_of(learner(same, SoftTarget())) if 'gradient' in o]
    assert len(found) == 1 and 'loss=same has no gradient, so it trains nothing' in found[0]

# Values that outweigh the task
def weight_in(text): return float(re.search(r'weight=([\d.e+-]+) would bring it', text)[1])

def test_attention_on_digits_of_16_pixels():
    "The weight that is recommended brings the term to the task loss, and then nothing is said"
    d = digits_dls(64)
    def net(*cs): return nn.Sequential(*[ConvLayer(i, o, stride=2) for i,o in zip((1,*cs), cs)], nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(cs[-1], 10))
    t = Learner(d, seeded(net, 16, 32, 64), metrics=accuracy)
    with t.no_bar(), t.no_logging(): t.fit(2, 1e-2)
    def learner(*losses): return Learner(d, seeded(net, 8, 16, 32, seed=1), cbs=KnowledgeDistillation(t, losses))
    learn = learner(SoftTarget(), Attention())
    with learn.no_bar(), learn.no_logging(): found = [o for o in warnings_of(learn) if 'times' in o]
    learn = learner(SoftTarget(), Attention())
    text = learn.knowledge_distillation.summary()
    assert len(found) == 1 and 'attention is' in found[0] and f'Warning: attention is' in text and text.count('times the task') == 1
    term,task = float(re.search(r'attention: ([\d.]+) with', text)[1]),float(re.search(r'task loss ([\d.]+)', text)[1])
    assert term > 10*task and weight_in(text) == pytest.approx(1000*task/term, rel=.05)
    learn = learner(SoftTarget(), Attention(weight=weight_in(text)))
    assert 'times the task' not in learn.knowledge_distillation.summary()
    with learn.no_bar(), learn.no_logging(): assert not any('times' in o for o in warnings_of(learn))

def test_the_ratio_by_hand():
    learn = learner(Logits(weight=300.))
    p,t,y = outputs(learn)
    term,task = 300*F.mse_loss(p, t).item(),F.cross_entropy(p, y).item()
    found = warnings_of(learn)
    assert term > 10*task and len(found) == 1
    assert f'logits is {term:.4g} with its weight of 300, {term/task:.0f} times the task loss of {task:.3g}' in found[0]
    assert weight_in(found[0]) == pytest.approx(300*task/term, rel=.05)

def test_nine_times_is_not_much_and_eleven_is():
    learn = learner(Logits())
    p,t,y = outputs(learn)
    one = (F.cross_entropy(p, y)/F.mse_loss(p, t)).item()
    assert not any('times' in o for o in warnings_of(learner(Logits(weight=9*one))))
    assert any('11 times' in o for o in warnings_of(learner(Logits(weight=11*one))))

@pytest.mark.parametrize('w', [warm_up(3000., .1), SchedLin(0., 3000.), SchedCos(3000., 1.)])
def test_a_schedule_is_judged_where_it_is_largest(w):
    text = learner(FitNet([('1','1')], weight=w)).knowledge_distillation.summary()
    assert 'with its weight of 3000' in text and 'a weight of at most' in text

@pytest.mark.parametrize('T', [1, 4, 20])
def test_soft_targets_of_a_sure_teacher_are_not_called_out(T):
    t = deepcopy(teacher.model)
    t[-1].weight.data *= 10; t[-1].bias.data *= 10
    assert not any('times' in o for o in warnings_of(learner(SoftTarget(T=T), t=t)))

def test_defaults_say_nothing():
    for l in (student(dls, cbs=KnowledgeDistillation(teacher)), learner(SoftTarget())): assert warnings_of(l) == []

def test_a_trained_student_says_nothing():
    "Its task loss is small, and half of the loss of guessing counts instead: ln(3)/2"
    learn = learner(SoftTarget())
    learn.model = deepcopy(nn.Sequential(teacher.model))
    learn.model[0][-1].weight.data *= 5
    text = learn.knowledge_distillation.summary()
    assert 'times the task' not in text

def test_where_the_task_loss_has_no_share_there_is_nothing_to_compare():
    for kwargs in (dict(weight=1.), dict(hard_weight=0.)):
        assert not any('times' in o for o in warnings_of(learner(Logits(weight=3000.), **kwargs)))
    assert any('times' in o for o in warnings_of(learner(Logits(weight=3000.), hard_weight=.1)))

def test_mixup_does_not_hide_it():
    learn = learner(Logits(weight=3000.))
    learn.add_cb(MixUp())
    assert any('times the task loss' in o for o in warnings_of(learn))

def test_the_look_leaves_adapters_as_they_would_be_without_it():
    "The adapters of a fit are made at its first batch, from the same random numbers as if nothing had been looked at"
    def trained(look):
        learn = learner(FitNet([('1','1')], weight=.1))
        if not look: learn.knowledge_distillation.looked_at = learn.dls
        learn.fit(1, 1e-2)
        return state(learn.knowledge_distillation.features.modules), state(learn.model)
    for a,b in zip(trained(True), trained(False)): assert same_state(a, b)
