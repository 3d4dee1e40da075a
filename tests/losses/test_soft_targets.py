"Base and soft targets: reference values, properties, edge cases, precision"
from functools import partial

import pytest, torch, torch.nn.functional as F
from fastai.callback.schedule import SchedCos, SchedLin
from torch import nn

from fastkd.losses.base import *
from fastkd.losses.features import *
from fastkd.losses.soft_targets import *

B,C = 8,10
i,j = torch.arange(B)[:,None].double(),torch.arange(C)[None].double()
s,t = 3*torch.sin(1.3*i + .7*j + .1),4*torch.cos(.9*i - .4*j) + .5*torch.sin(i*j)

def feat(c, h, a):
    n = torch.arange(B*c*h*h).double()
    return (2*torch.sin(a*n) + .3*torch.cos(.013*n)).reshape(B,c,h,h)
fs,ft,fd = feat(6,4,.37),feat(6,4,.53),feat(9,2,.71)

# values of the reference implementations for these inputs
@pytest.mark.parametrize('value,expected', [
    (lambda: soft_target(s, t), 5.085734925519571),
    (lambda: soft_target(s, t, T=1), 2.409516996729626),
    (lambda: SoftTarget()(s, t), 5.085734925519571),
    (lambda: soft_target(s, t, T=2, standardize=True), 0.8392865055196332),
    (lambda: logits(s, t), 13.103305526290773),
    (lambda: fitnet(fs, ft), 4.001427592122668),
    (lambda: attention(fs, ft), 0.007653756097878114),
    (lambda: attention(fs, fd), 0.027698664482666033),
    (lambda: similarity(fs, fd), 0.2453586380172309),
])
def test_equals_its_reference(value, expected): assert value().item() == pytest.approx(expected, rel=1e-9)

def test_binary_equals_bernoulli_kl():
    from torch.distributions import Bernoulli, kl_divergence
    kl = kl_divergence(Bernoulli(logits=t/2), Bernoulli(logits=s/2)).mean()*4
    assert binary_soft_target(s, t).item() == pytest.approx(kl.item(), rel=1e-9)

@pytest.mark.parametrize('f', [soft_target, logits, binary_soft_target])
def test_pred_loss_is_zero_at_the_teacher_and_keeps_under_doubling(f):
    assert f(t, t).abs() < 1e-12
    assert f(torch.cat([s,s]), torch.cat([t,t])).item() == pytest.approx(f(s,t).item(), rel=1e-12)

@pytest.mark.parametrize('f', [attention, fitnet, similarity])
def test_feature_loss_is_zero_at_the_teacher(f): assert f(ft, ft).abs() < 1e-12

def test_soft_target_ignores_a_shift(): assert soft_target(s+3, t-7).item() == pytest.approx(soft_target(s,t).item(), rel=1e-9)
def test_standardised_ignores_scale_and_shift():
    assert soft_target(5*s+3, .2*t-7, standardize=True).item() == pytest.approx(soft_target(s, t, standardize=True).item(), rel=1e-5)

def test_temperature_squared_keeps_the_gradient_size():
    def grad(T):
        x = s.clone().requires_grad_()
        soft_target(x, t, T=T).backward()
        return x.grad.norm()
    assert .5 < grad(20.)/grad(40.) < 2

@pytest.mark.parametrize('f', [soft_target, partial(soft_target, standardize=True), logits, binary_soft_target])
def test_pixels_and_tokens_are_positions(f):
    maps = [o.reshape(2,4,C).permute(0,2,1).reshape(2,C,2,2) for o in (s,t)]
    assert f(*maps).item() == pytest.approx(f(s,t).item(), rel=1e-9)
    assert f(*[o.reshape(2,4,C) for o in (s,t)], axis=-1).item() == pytest.approx(f(s,t).item(), rel=1e-9)

@pytest.mark.parametrize('f', [soft_target, logits, binary_soft_target])
def test_mask_leaves_positions_out(f):
    mask = torch.arange(B) < 3
    assert f(s, t, mask=mask).item() == pytest.approx(f(s[:3], t[:3]).item(), rel=1e-9)
    assert f(s, t, mask=torch.zeros(B).bool()) == 0

def test_mask_of_pixels():
    sp,tp,mask = torch.randn(2,3,4,4),torch.randn(2,3,4,4),torch.rand(2,4,4) > .5
    flat = [o.movedim(1,-1)[mask] for o in (sp,tp)]
    assert soft_target(sp, tp, mask=mask).item() == pytest.approx(soft_target(*flat).item(), rel=1e-5)

@pytest.mark.parametrize('f', [soft_target, partial(soft_target, standardize=True), logits, binary_soft_target])
def test_gradcheck_of_predictions(f): assert torch.autograd.gradcheck(lambda x: f(x, t), s.clone().requires_grad_())

@pytest.mark.parametrize('f', [attention, fitnet, similarity])
def test_gradcheck_of_features(f): assert torch.autograd.gradcheck(lambda x: f(x, ft[:2]), fs[:2].clone().requires_grad_())

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('f,a,b', [
    (soft_target,s,t), (logits,s,t), (binary_soft_target,s,t), (attention,fs,fd), (fitnet,fs,ft), (similarity,fs,fd)])
def test_computes_in_float32_under_autocast(f, a, b, dtype):
    a,b = a.to(dtype),b.to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16): got = f(a, b)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(f(a.double(), b.double()).item(), rel=1e-5)

@pytest.mark.parametrize('f', [soft_target, logits, binary_soft_target])
@pytest.mark.parametrize('shift', [120., 1e4])
def test_saturated_logits_stay_finite(f, shift):
    a,b = s.float().clone(),t.float().clone()
    a[:,0] += shift; b[:,1] += shift
    a.requires_grad_()
    loss = f(a, b)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all()

@pytest.mark.parametrize('f', [soft_target, partial(soft_target, standardize=True)])
def test_constant_logits_have_a_finite_gradient(f):
    a = torch.zeros(4,5, requires_grad=True)
    f(a, torch.zeros(4,5)).backward()
    assert a.grad.isfinite().all()

@pytest.mark.parametrize('f', [attention, similarity])
def test_dead_features_have_a_finite_gradient(f):
    a = torch.zeros(4,3,2,2, requires_grad=True)
    f(a, torch.randn(4,3,2,2)).backward()
    assert a.grad.isfinite().all()

def test_memory_layout_does_not_matter():
    x = fs.float().to(memory_format=torch.channels_last)
    assert attention(x, fd.float()).item() == pytest.approx(attention(fs.float(), fd.float()).item(), rel=1e-6)
    assert soft_target(s.T.contiguous().T, t).item() == pytest.approx(soft_target(s, t).item(), rel=1e-12)

def test_attention_takes_tokens():
    assert attention(fs.flatten(2), ft.flatten(2)).item() == pytest.approx(attention(fs, ft).item(), rel=1e-12)

# loss objects
def test_schedules_are_read_at_the_progress():
    assert SoftTarget(T=SchedLin(8,2))(s, t, pos=.5) == soft_target(s, t, T=5.)
def test_plain_function_gets_what_it_takes():
    seen = {}
    def f(pred, teacher_pred, axis, y=None): seen.update(axis=axis, y=y); return (pred-teacher_pred).sum()
    as_loss(f)(s, t, axis=1, mask=None, y=3, y1=4, lam=.5)
    assert seen == dict(axis=1, y=3)
def test_function_with_kwargs_gets_all():
    seen = []
    as_loss(lambda pred, teacher_pred, **kwargs: seen.append(set(kwargs)))(s, t, axis=1, mask=None, y=3)
    assert seen == [{'axis','mask','y'}]
@pytest.mark.parametrize('o', [
    SoftTarget(T=20), partial(SoftTarget, T=20), partial(soft_target, T=20), lambda a,b: soft_target(a, b, T=20)])
def test_each_form_of_a_loss(o): assert as_loss(o)(s, t, axis=1).item() == soft_target(s, t, T=20).item()
def test_class_is_a_loss(): assert as_loss(SoftTarget).T == 4
def test_names_are_those_of_the_functions():
    names = [l.name for l in as_losses([SoftTarget, Attention, FitNet(), Logits])]
    assert names == ['soft_target','attention','fitnet','logits']

@pytest.mark.parametrize('make,text', [
    (lambda: SoftTarget(T=0), 'T=0: it must be finite and above 0'),
    (lambda: SoftTarget(T=-1), 'T=-1'),
    (lambda: SoftTarget(T=SchedLin(4,0)), 'T=0 at training progress 1.0'),
    (lambda: SoftTarget(weight=-1), 'weight=-1'),
    (lambda: SoftTarget(weight=float('nan')), 'weight=nan'),
    (lambda: SoftTarget(weight=lambda p: float('nan')), 'weight=nan at training progress'),
    (lambda: Attention(layers=[]), r'layers=\[\]'),
    (lambda: as_losses([]), r'loss=\[\]'),
    (lambda: as_losses([SoftTarget(), SoftTarget(T=2)]), 'soft_target twice'),
    (lambda: soft_target(s, t[:,:3]), r'\(8, 10\) and teacher_pred \(8, 3\)'),
    (lambda: soft_target(s[:,:1], t[:,:1]), 'use BinarySoftTarget'),
    (lambda: soft_target(s[:,:2], t[:,:2], standardize=True), 'standardize=True with 2 classes'),
    (lambda: soft_target(s, t, mask=torch.ones(3).bool()), r'mask has shape \(3,\)'),
    (lambda: attention(s, t), 'features with positions'),
    (lambda: fitnet(fs, fd), '6 channels and ft 9'),
    (lambda: similarity(fs[:1], ft[:1]), 'this batch has 1'),
])
def test_value_errors_name_the_argument(make, text):
    with pytest.raises(ValueError, match=text): make()

@pytest.mark.parametrize('make,text', [
    (lambda: SoftTarget(T='4'), "T='4'"),
    (lambda: SoftTarget(temperature=4), 'temperature'),
    (lambda: SoftTarget()(s, t, temperature=4), 'temperature'),
    (lambda: as_loss('soft_target'), "loss='soft_target'"),
    (lambda: as_loss(lambda a, b, gamma: a), "'gamma'"),
    (lambda: Attention(layers={'a':'b'}), "layers={'a': 'b'}"),
    (lambda: Attention(layers=[('a','b','c')]), "'c'"),
])
def test_type_errors_name_the_argument(make, text):
    with pytest.raises(TypeError, match=text): make()

def test_pairs_keep_the_users_order(): assert FitNet([('z','a'), 'm', ('b','y')]).layers == [('z','a'),('m','m'),('b','y')]
def test_which_automatic_pairs():
    auto = [('a','A'),('b','B'),('c','C'),('d','D')]
    assert (Attention().choose(auto), FitNet().choose(auto), Similarity().choose(auto)) == (auto, [('b','B')], [('d','D')])
