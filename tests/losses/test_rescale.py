"`rescale=True`: the teacher's logits become smaller where they would drive the student to more certainty than a temperature of 1 asks for"
import pytest, torch, torch.nn.functional as F
from fastcore.test import test_close as close, test_eq as eq, test_fail as fails
from fastkd.all import *
from fastkd.losses.soft_targets import rescale_teacher
from scipy.optimize import minimize_scalar

i,j = torch.arange(8)[:,None].double(),torch.arange(10)[None].double()
s,t = 3*torch.sin(1.3*i + .7*j + .1),4*torch.cos(.9*i - .4*j) + .5*torch.sin(i*j)

def kl(a, s, t, T): return F.kl_div((a*s/T).log_softmax(1), (t/T).softmax(1), reduction='batchmean').item()
def best(s, t, T):
    "The factor with the least divergence, by SciPy"
    return minimize_scalar(lambda a: kl(a, s, t, T), bounds=(1e-3, 50), method='bounded', options=dict(xatol=1e-9)).x
def noisy(seed, size=1.): return t + size*torch.randn(t.shape, generator=torch.Generator().manual_seed(seed), dtype=t.dtype)*t.std()

@pytest.mark.parametrize('T', [2., 4., 8.])
@pytest.mark.parametrize('seed', range(4))
def test_the_factor_is_the_ratio_of_the_best_factors(seed, T):
    z = noisy(seed)
    want = min(1, best(z, t, 1)/best(z, t, T))
    assert want < .9
    close(rescale_teacher(z, t, T), want*t, eps=1e-4)
    close(soft_target(z, t, T, rescale=True), soft_target(z, want*t, T), eps=1e-4)

@pytest.mark.parametrize('k', [.1, .5, 1., 3.])
def test_a_student_with_the_same_shape_leaves_the_teacher_alone(k): close(rescale_teacher(k*t, t, 4.), t, eps=1e-3)

def test_logits_never_become_larger():
    for z in (s, -t, 0*t, .01*noisy(3), 100*noisy(3), torch.ones_like(t)):
        ratio = (rescale_teacher(z, t, 4.)/t).flatten()
        assert ratio.isfinite().all() and 0 < ratio[0] <= 1 and ratio.max()-ratio.min() < 1e-9

def test_a_temperature_of_1_changes_nothing(): eq(soft_target(noisy(0), t, T=1., rescale=True), soft_target(noisy(0), t, T=1.))

def test_nothing_is_learnt_through_the_factor():
    z = noisy(1).requires_grad_()
    c = (rescale_teacher(z, t, 4.)/t).mean()
    assert not c.requires_grad
    soft_target(z, t, rescale=True).backward()
    g, = torch.autograd.grad(soft_target(y := z.detach().requires_grad_(), c*t), y)
    close(z.grad, g, eps=1e-6)

def test_positions_that_are_masked_out_do_not_count():
    z,mask = noisy(2),torch.arange(8) < 5
    garbage = torch.where(mask[:,None], z, 1000*j)
    close(rescale_teacher(garbage, t, 4., mask=mask)[:5], rescale_teacher(z[:5], t[:5], 4.), eps=1e-6)
    sp,tp = [o.T.reshape(1,10,2,4) for o in (garbage,t)]
    close(soft_target(sp, tp, mask=mask.reshape(1,2,4), rescale=True), soft_target(z[:5], t[:5], rescale=True), eps=1e-6)

def test_of_many_positions_some_are_looked_at():
    sp,tp = [torch.cat([o]*200).T.reshape(1,10,40,40) for o in (noisy(0),t)]
    want = best(noisy(0), t, 1)/best(noisy(0), t, 4)  # each item comes 200 times, and equally often among those that are looked at
    close((rescale_teacher(sp, tp, 4.)/tp).mean(), want, eps=.01)

def test_half_precision():
    z = noisy(0).float()
    for d in (torch.float16, torch.bfloat16):
        close(soft_target(z.to(d), t.to(d), rescale=True), soft_target(z.to(d).float(), t.to(d).float(), rescale=True), eps=1e-6)

def test_the_class_has_it_and_says_so():
    loss = SoftTarget(T=3, rescale=True)
    eq(repr(loss), 'SoftTarget(T=3, standardize=False, rescale=True, weight=1)')
    close(loss(noisy(0), t), soft_target(noisy(0), t, 3, rescale=True), eps=1e-9)
    assert 'rescale' not in repr(SoftTarget())
    fails(lambda: SoftTarget(T=2, standardize=True, rescale=True), contains='leave one of them out')

def test_a_number_in_its_place_is_not_taken_for_true():
    fails(lambda: SoftTarget(4., False, .5), contains='rescale=0.5: give True or False')
    fails(lambda: soft_target(s, t, 4., False, -1), contains='rescale=-1')
