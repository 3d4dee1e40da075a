"Losses that need labels: reference values, the two labels of MixUp, positions that count, edge cases"
from functools import partial

import pytest, torch, torch.nn.functional as F
from fastai.callback.schedule import SchedLin
from fastai.torch_core import TensorCategory

from fastkd.losses.base import as_loss
from fastkd.losses.label_aware import *
from fastkd.losses.soft_targets import soft_target

torch.set_num_threads(1)
B,C = 8,10
i,j = torch.arange(B)[:,None].double(),torch.arange(C)[None].double()
s,t = 3*torch.sin(1.3*i + .7*j + .1),4*torch.cos(.9*i - .4*j) + .5*torch.sin(i*j)
y = 3*torch.arange(B) % C
y1 = (y+4) % C
standardized = partial(decoupled_kd, standardize=True)
all_losses = [decoupled_kd, standardized, normalized_kd, weighted_soft_label, teacher_free]
all_ids = ['dkd', 'dkd-std', 'nkd', 'wsld', 'tf']
each_loss = pytest.mark.parametrize('f', all_losses, ids=all_ids)

def per_item(f, a, b, y): return torch.stack([f(a[k:k+1], b[k:k+1], y[k:k+1]) for k in range(len(a))])

# values of the reference implementations for these inputs
@pytest.mark.parametrize('value,expected', [
    (lambda: decoupled_kd(s, t, y), 40.05571168666661),
    (lambda: DecoupledKD()(s, t, y=y), 40.05571168666661),
    (lambda: decoupled_kd(s, t, y, alpha=1, beta=0), 0.7821379581265897),
    (lambda: decoupled_kd(s, t, y, alpha=0, beta=1), 4.909196716067503),
    (lambda: normalized_kd(s, t, y), 5.73519631919524),
    (lambda: NormalizedKD(T=2)(s, t, y=y), 16.1400981870755),
    (lambda: 2.5*weighted_soft_label(s, t, y), 18.95567815668329),
    (lambda: (l := WeightedSoftLabel()).weight*l(s, t, y=y), 18.95567815668329),
])
def test_equals_its_reference(value, expected): assert value().item() == pytest.approx(expected, rel=1e-9)

def test_standardised_dkd_equals_its_reference():
    assert decoupled_kd(s, t, y, T=2, standardize=True).item() == pytest.approx(6.6942514303864975, rel=1e-9)

@pytest.mark.parametrize('T', [1., 4.])
def test_dkd_parts_add_up_to_soft_targets(T):
    p = (t/T).softmax(1)[range(B),y]
    nckd = per_item(partial(decoupled_kd, alpha=0, beta=1, T=T), s, t, y)
    parts = decoupled_kd(s, t, y, beta=0, T=T) + ((1-p)*nckd).mean()
    assert parts.item() == pytest.approx(soft_target(s, t, T=T).item(), rel=1e-12)

def test_teacher_free_is_the_kl_from_the_designed_teacher():
    p = torch.full((B,C), .1/9, dtype=torch.float64)
    p[range(B),y] = .9
    q,r = p**(1/5)/(p**(1/5)).sum(1, keepdim=True),(s/5).softmax(1)
    want = 25*(q*(q/r).log()).sum(1).mean()
    assert teacher_free(s, None, y, T=5., correct=.9).item() == pytest.approx(want.item(), rel=1e-12)
    assert teacher_free(s, None, y) == teacher_free(s, t, y)
    assert not TeacherFree.needs_teacher and DecoupledKD.needs_teacher

@pytest.mark.parametrize('correct', [0., 1.])
def test_teacher_free_takes_certainty(correct):
    x = s.clone().requires_grad_()
    loss = teacher_free(x, None, y, correct=correct)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()

@pytest.mark.parametrize('f,zero', [(decoupled_kd,True), (standardized,True), (normalized_kd,False), (weighted_soft_label,False)])
def test_zero_at_the_teacher(f, zero): assert (f(t, t, y).abs() < 1e-12) == zero

def test_weight_of_wsld_is_a_constant():
    x = s.clone().requires_grad_()
    weighted_soft_label(x, t, y).backward()
    w = 1 - (-F.cross_entropy(s, y, reduction='none')/(F.cross_entropy(t, y, reduction='none') + 1e-7)).exp()
    want = 2*w[:,None]*((s/2).softmax(1) - (t/2).softmax(1))/B
    assert torch.allclose(x.grad, want, rtol=1e-10, atol=0)

@each_loss
def test_ignores_a_shift(f): assert f(s+3, t-7, y).item() == pytest.approx(f(s, t, y).item(), rel=1e-9)

def test_standardised_ignores_scale():
    assert standardized(5*s, .2*t, y).item() == pytest.approx(standardized(s, t, y).item(), rel=1e-5)

@each_loss
def test_keeps_under_doubling(f):
    twice = f(*[torch.cat([o,o]) for o in (s,t,y)])
    assert twice.item() == pytest.approx(f(s, t, y).item(), rel=1e-12)

@each_loss
def test_pixels_and_tokens_are_positions(f):
    want = f(s, t, y).item()
    maps = [o.reshape(2,4,C).permute(0,2,1).reshape(2,C,2,2) for o in (s,t)]
    assert f(*maps, y.reshape(2,2,2)).item() == pytest.approx(want, rel=1e-12)
    assert f(*[o.reshape(2,4,C) for o in (s,t)], y.reshape(2,4), axis=-1).item() == pytest.approx(want, rel=1e-12)

# labels that do not count
@each_loss
def test_unlabelled_items_are_left_out(f):
    part = torch.where(torch.arange(B) < 3, y, -1)
    assert f(s, t, part).item() == pytest.approx(f(s[:3], t[:3], y[:3]).item(), rel=1e-12)

@each_loss
@pytest.mark.parametrize('none', [torch.full((B,), -1), torch.full((B,), -100)])
def test_nothing_labelled_is_zero_with_a_gradient(f, none):
    x = s.clone().requires_grad_()
    loss = f(x, t, none)
    loss.backward()
    assert loss == 0 and (x.grad == 0).all()

@each_loss
def test_ignore_index_beyond_the_classes(f):
    mask = torch.arange(B) > 2
    hidden = torch.where(mask, y, 255).to(torch.uint8)
    assert f(s, t, hidden, mask=mask).item() == pytest.approx(f(s[3:], t[3:], y[3:]).item(), rel=1e-12)

@each_loss
def test_what_is_left_out_gets_no_gradient(f):
    x = s.clone().requires_grad_()
    f(x, t, torch.where(torch.arange(B) < 3, y, -1)).backward()
    assert (x.grad[3:] == 0).all() and (x.grad[:3] != 0).all()

# MixUp and CutMix
@each_loss
@pytest.mark.parametrize('lam', [torch.tensor(.7), torch.tensor([.7]), .7])
def test_cutmix_weighs_two_losses(f, lam):
    want = .7*f(s, t, y) + .3*f(s, t, y1)
    assert f(s, t, y, y1=y1, lam=lam).item() == pytest.approx(want.item(), rel=1e-7)

@each_loss
@pytest.mark.parametrize('shape', [(B,), (B,1)])
def test_mixup_weighs_each_item(f, shape):
    lam = torch.linspace(.5, 1, B).double()
    want = (lam*per_item(f, s, t, y) + (1-lam)*per_item(f, s, t, y1)).mean()
    assert f(s, t, y, y1=y1, lam=lam.reshape(shape)).item() == pytest.approx(want.item(), rel=1e-12)

@each_loss
@pytest.mark.parametrize('lam,label', [(1., y), (0., y1)])
def test_lam_of_0_or_1_is_one_label(f, lam, label):
    for l in torch.tensor(lam),torch.full((B,), lam):
        assert f(s, t, y, y1=y1, lam=l).item() == pytest.approx(f(s, t, label).item(), rel=1e-12)

@each_loss
def test_mixup_counts_each_share_by_itself(f):
    lam = torch.tensor([.9,.6,.5,.8], dtype=torch.float64)
    ya,yb = torch.tensor([1,-1,2,-1]),torch.tensor([3,4,-1,-1])
    la,lb = per_item(f, s[:4], t[:4], ya),per_item(f, s[:4], t[:4], yb)
    want = (.9*la[0] + .1*lb[0] + .4*lb[1] + .5*la[2]) / (1 + .4 + .5)
    assert f(s[:4], t[:4], ya, y1=yb, lam=lam).item() == pytest.approx(want.item(), rel=1e-12)

def test_mixup_of_pixels():
    maps = [o.T.reshape(1,C,4,2).repeat(2,1,1,1) for o in (s,t)]
    ym = y.reshape(1,4,2).repeat(2,1,1)
    lam = torch.tensor([.9,.6], dtype=torch.float64)
    want = (.75*decoupled_kd(s, t, y) + .25*decoupled_kd(s, t, y1)).item()
    assert decoupled_kd(*maps, ym, y1=(ym+4)%C, lam=lam).item() == pytest.approx(want, rel=1e-12)

# mistakes
@each_loss
@pytest.mark.parametrize('kw,text', [
    (dict(y=y[:5]), r'y has shape \(5,\)'),
    (dict(y=y[:,None]), r'y has shape \(8, 1\)'),
    (dict(y=F.one_hot(y, C).double()), 'BinarySoftTarget'),
    (dict(y=y.float()), 'one class index per position'),
    (dict(y=y+1), 'label 10, but there are 10 classes'),
    (dict(y=y, y1=y1+8, lam=torch.tensor(.5)), 'but there are 10 classes'),
    (dict(y=y, mask=torch.ones(B,2).bool()), r'mask has shape \(8, 2\)'),
    (dict(y=y, y1=y1), 'lam is missing'),
    (dict(y=y, lam=torch.tensor(.5)), 'y1 is missing'),
    (dict(y=y, y1=y1, lam=torch.rand(3)), r'lam has shape \(3,\)')])
def test_mistakes_are_named(f, kw, text):
    with pytest.raises(ValueError, match=text): f(s, t, **kw)

@pytest.mark.parametrize('f', [decoupled_kd, standardized, normalized_kd])
def test_two_classes_leave_no_others(f):
    with pytest.raises(ValueError, match='2 classes.*use SoftTarget'): f(s[:,:2], t[:,:2], y%2)

@pytest.mark.parametrize('f', [decoupled_kd, normalized_kd, weighted_soft_label])
def test_shapes_of_logits_must_agree(f):
    with pytest.raises(ValueError, match='must predict the same classes'): f(s, t[:,:4], y)

@each_loss
def test_one_class_is_an_error(f):
    with pytest.raises(ValueError, match='has 1 class'): f(s[:,:1], t[:,:1], y*0)

@pytest.mark.parametrize('make,text', [
    (lambda: DecoupledKD(alpha=-1), 'alpha=-1'), (lambda: DecoupledKD(beta=float('nan')), 'beta=nan'), (lambda: DecoupledKD(T=0), 'T=0'),
    (lambda: NormalizedKD(gamma=-.1), 'gamma=-0.1'), (lambda: WeightedSoftLabel(T=-1), 'T=-1'),
    (lambda: TeacherFree(correct=1.5), 'correct=1.5'), (lambda: TeacherFree(weight=-1), 'weight=-1')])
def test_hyperparameters_are_checked(make, text):
    with pytest.raises(ValueError, match=text): make()

def test_schedules_are_read_at_the_progress():
    assert DecoupledKD(beta=SchedLin(0,8))(s, t, pos=.5, y=y) == decoupled_kd(s, t, y, beta=4.)

def test_the_label_is_needed():
    for cls in DecoupledKD,NormalizedKD,WeightedSoftLabel,TeacherFree: assert as_loss(cls).needs == {'y'}

# edge cases
@each_loss
@pytest.mark.parametrize('gap', [120., 1e4])
@pytest.mark.parametrize('who', ['student','teacher','both','apart'])
def test_saturated_logits_stay_finite(f, gap, who):
    a,b,l = s.float().clone(),t.float().clone(),torch.arange(B) % 3
    if who != 'teacher': a[:,0] += gap
    if who != 'student': b[:,1 if who=='apart' else 0] += gap
    a.requires_grad_()
    loss = f(a, b, l)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all()

@pytest.mark.parametrize('gap', [120., 1e4])
def test_saturated_logits_are_right(gap):
    a,b,l = s.clone(),t.clone(),torch.zeros(B).long()
    a[:,0] += gap; b[:,1] += gap
    for f in decoupled_kd,normalized_kd,weighted_soft_label:
        assert f(a.float(), b.float(), l).item() == pytest.approx(f(a, b, l).item(), rel=1e-4)

@each_loss
def test_constant_logits_have_a_finite_gradient(f):
    a = torch.zeros(4, 5, requires_grad=True)
    loss = f(a, torch.zeros(4, 5), torch.arange(4))
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all()

@each_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_computes_in_float32_under_autocast(f, dtype):
    a,b = s.to(dtype),t.to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16): got = f(a, b, y)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(f(a.double(), b.double(), y).item(), rel=1e-4)

@each_loss
def test_one_item_and_any_layout(f):
    assert f(s[:1], t[:1], y[:1]).item() == pytest.approx(per_item(f, s, t, y)[0].item(), rel=1e-12)
    assert f(s.T.contiguous().T, t, y).item() == pytest.approx(f(s, t, y).item(), rel=1e-12)

@pytest.mark.parametrize('f', [weighted_soft_label, teacher_free])
def test_two_classes_are_enough(f):
    a = s[:,:2].clone().requires_grad_()
    loss = f(a, t[:,:2], y%2)
    loss.backward()
    assert loss > 0 and a.grad.isfinite().all()

@each_loss
def test_takes_fastai_labels(f): assert f(s, t, TensorCategory(y)).item() == f(s, t, y).item()

# without weighted_soft_label: its weight is a constant to the gradient, which is tested above
@pytest.mark.parametrize('f', [o for o in all_losses if o is not weighted_soft_label])
def test_gradcheck(f):
    part,lam = torch.where(torch.arange(B) == 2, -1, y),torch.linspace(.5, 1, B).double()
    assert torch.autograd.gradcheck(lambda x: f(x, t, part), s.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: f(x, t, part, y1=y1, lam=lam), s.clone().requires_grad_())
