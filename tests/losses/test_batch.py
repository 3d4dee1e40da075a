"Losses on the predictions for a batch: reference values, Gram distances without the large matrix, positions that count, edge cases"
from functools import partial

import pytest, torch
from fastai.callback.schedule import SchedLin

from fastkd.losses.base import as_loss
from fastkd.losses.batch import *
from fastkd.losses.batch import _gram_distance
from fastkd.losses.soft_targets import soft_target

torch.set_num_threads(1)
B,C = 8,10
i,j = torch.arange(B)[:,None].double(),torch.arange(C)[None].double()
s,t = 3*torch.sin(1.3*i + .7*j + .1),4*torch.cos(.9*i - .4*j) + .5*torch.sin(i*j)
each_loss = pytest.mark.parametrize('f', [dist, batch_gram, class_gram, multi_level])

# values of the reference implementations for these inputs
@pytest.mark.parametrize('value,expected', [
    (lambda: dist(s, t, T=1), 1.997596927658082),
    (lambda: dist(s, t), 31.652151379748574),
    (lambda: DIST()(s, t), 31.652151379748574),
    (lambda: class_gram(s, t), 0.005336769756726083),
    (lambda: batch_gram(s, t), 0.006624160709835998),
])
def test_equals_its_reference(value, expected): assert value().item() == pytest.approx(expected, rel=1e-9)

@pytest.mark.parametrize('Ts', [(2,3,4,5,6), (1.5,)])
def test_multi_level_is_the_sum_of_its_levels(Ts):
    want = 0
    for T in Ts:
        p,q = (s/T).softmax(1),(t/T).softmax(1)
        want += T**2*(q*(q/p).log()).sum()/B + (p@p.T - q@q.T).pow(2).sum()/B + (p.T@p - q.T@q).pow(2).sum()/C
    assert multi_level(s, t, Ts=Ts).item() == pytest.approx(want.item(), rel=1e-12)
    assert MultiLevel(Ts=Ts)(s, t) == multi_level(s, t, Ts=Ts)

def test_dist_is_the_mean_correlation_of_rows_and_columns():
    p,q = (s/2).softmax(1),(t/2).softmax(1)
    rows,cols = [torch.stack([torch.corrcoef(torch.stack(o))[0,1] for o in zip(a,b)]).mean() for a,b in ((p,q), (p.T,q.T))]
    assert dist(s, t, beta=3., gamma=.5, T=2).item() == pytest.approx((4*(3*(1-rows) + .5*(1-cols))).item(), rel=1e-6)

@each_loss
def test_zero_at_the_teacher(f): assert f(t, t).abs() < 1e-4 if f is dist else f(t, t).abs() < 1e-12

@each_loss
def test_ignores_a_shift(f): assert f(s+3, t-7).item() == pytest.approx(f(s, t).item(), rel=1e-9)

def test_what_doubling_the_batch_does():
    twice = [torch.cat([o,o]) for o in (s,t)]
    for f,factor in (dist,1), (batch_gram,2), (class_gram,4): assert f(*twice).item() == pytest.approx(factor*f(s, t).item(), rel=1e-6)

@each_loss
def test_pixels_and_tokens_are_items(f):
    maps = [o.reshape(2,4,C).permute(0,2,1).reshape(2,C,2,2) for o in (s,t)]
    assert f(*maps).item() == pytest.approx(f(s, t).item(), rel=1e-12)
    assert f(*[o.reshape(2,4,C) for o in (s,t)], axis=-1).item() == pytest.approx(f(s, t).item(), rel=1e-12)

# Gram matrices
@pytest.mark.parametrize('n,c', [(5,20), (20,5), (7,7)])
def test_gram_distance_of_any_shape(n, c):
    torch.manual_seed(0)
    a,b = torch.randn(2, n, c).double()
    assert _gram_distance(a, b).item() == pytest.approx((a@a.T - b@b.T).pow(2).sum().item(), rel=1e-12)

def test_gram_of_many_pixels_keeps_its_digits_in_float32():
    torch.manual_seed(0)
    a = torch.randn(5000, 4).softmax(1)
    b = a + 1e-4*torch.randn(5000, 4)
    x,y = a.double(),b.double()
    want = (x.T@x).pow(2).sum() + (y.T@y).pow(2).sum() - 2*(x.T@y).pow(2).sum()
    assert _gram_distance(a, b).item() == pytest.approx(want.item(), rel=1e-3)

@each_loss
def test_no_matrix_of_pixels_by_pixels(f):
    a = torch.randn(1, 3, 60, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda o: sizes.append(o.numel()) or o, lambda o: o):
        sizes = []
        f(a, torch.randn(1, 3, 60, 50)).backward()
    assert max(sizes) <= a.numel()

# positions that count
@each_loss
def test_mask_leaves_items_out(f):
    mask = torch.arange(B) % 2 == 0
    assert f(s, t, mask=mask).item() == pytest.approx(f(s[::2], t[::2]).item(), rel=1e-12)
    x = s.clone().requires_grad_()
    f(x, t, mask=mask).backward()
    assert (x.grad[1::2] == 0).all() and (x.grad[::2] != 0).all()

@each_loss
@pytest.mark.parametrize('n', [0, 1])
def test_too_few_positions_that_count(f, n):
    x,mask = s.clone().requires_grad_(),torch.arange(B) < n
    loss = f(x, t, mask=mask)
    loss.backward()
    want = 0. if n == 0 or f is dist else f(s[:1], t[:1]).item()
    assert loss.item() == pytest.approx(want) and x.grad.isfinite().all()

def test_a_batch_of_one():
    with pytest.raises(ValueError, match='this batch has 1: .*drop_last=True'): dist(s[:1], t[:1])
    assert DIST.min_items == 2 and MultiLevel.min_items == 1
    assert multi_level(s[:1], t[:1]).isfinite()
    assert dist(s[:2].T[None], t[:2].T[None]).item() == pytest.approx(dist(s[:2], t[:2]).item(), rel=1e-12)  # one image of two pixels

# mistakes
def test_two_classes_have_no_correlation():
    with pytest.raises(ValueError, match='over 2 .* use SoftTarget'): dist(s[:,:2], t[:,:2])
    assert multi_level(s[:,:2], t[:,:2]) > 0

@each_loss
def test_mistakes_are_named(f):
    with pytest.raises(ValueError, match='must predict the same classes'): f(s, t[:5])
    with pytest.raises(ValueError, match='has 1 class'): f(s[:,:1], t[:,:1])
    with pytest.raises(ValueError, match=r'mask has shape \(8, 1\)'): f(s, t, mask=torch.ones(B,1).bool())

@pytest.mark.parametrize('make,err,text', [
    (lambda: DIST(beta=-1), ValueError, 'beta=-1'),
    (lambda: DIST(gamma='a'), TypeError, "gamma='a'"),
    (lambda: DIST(T=0), ValueError, 'T=0'),
    (lambda: MultiLevel(Ts=()), TypeError, r'Ts=\(\)'),
    (lambda: MultiLevel(Ts=4.), TypeError, 'Ts=4.0'),
    (lambda: MultiLevel(Ts=(4,-1)), ValueError, 'Ts=-1'),
    (lambda: MultiLevel(Ts=(4,SchedLin(4,1))), TypeError, 'a tuple of temperatures')])
def test_hyperparameters_are_checked(make, err, text):
    with pytest.raises(err, match=text): make()

def test_schedules_are_read_at_the_progress():
    assert DIST(gamma=SchedLin(0,2))(s, t, pos=.5) == dist(s, t, gamma=1.)
    assert MultiLevel(weight=SchedLin(0,1))(s, t, pos=.5) == multi_level(s, t)

def test_no_label_is_needed():
    for cls in DIST,MultiLevel: assert not as_loss(cls).needs

# edge cases
@each_loss
@pytest.mark.parametrize('gap', [120., 1e4])
@pytest.mark.parametrize('label', [0, 1], ids=['same','apart'])
def test_saturated_logits_stay_finite(f, gap, label):
    a,b = s.float().clone(),t.float().clone()
    a[:,0] += gap; b[:,label] += gap
    a.requires_grad_()
    loss = f(a, b)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all()

@each_loss
@pytest.mark.parametrize('a,b', [
    (torch.zeros(4,5), torch.zeros(4,5)),
    (torch.zeros(4,5), torch.randn(4,5)),
    (torch.arange(5.).repeat(4,1), torch.randn(4,5))])
def test_without_variance_it_stays_finite(f, a, b):
    a = a.clone().requires_grad_()
    loss = f(a, b)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all()

@each_loss
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_computes_in_float32_under_autocast(f, dtype):
    a,b = s.to(dtype),t.to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16): got = f(a, b)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(f(a.double(), b.double()).item(), rel=1e-4)

@each_loss
def test_memory_layout_does_not_matter(f):
    maps = [o.reshape(2,2,2,C).permute(0,3,1,2) for o in (s,t)]
    assert f(*maps).item() == pytest.approx(f(*[o.contiguous() for o in maps]).item(), rel=1e-12)
    assert f(s.T.contiguous().T, t).item() == pytest.approx(f(s, t).item(), rel=1e-12)

@each_loss
def test_gradcheck(f):
    assert torch.autograd.gradcheck(lambda x: f(x, t), s.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: f(x, t, mask=torch.arange(B) < 5), s.clone().requires_grad_())
