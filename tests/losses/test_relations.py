"Relation losses: reference values, properties, edge cases, precision, memory"
import pytest, torch, torch.nn.functional as F
from fastcore.test import test_eq as eq
from torch import nn

from fastkd.losses.relations import *
from pair_cases import *

vs,vt,vt6 = [o.mean((2,3)) for o in (fs,fd,ft)]
each = each_of([rkd, pkt, correlation_congruence])

# values of the reference implementations for these inputs
@pytest.mark.parametrize('value,expected', [
    (lambda: correlation_congruence(vs, vt6), 0.4369685242918925),
    (lambda: CorrelationCongruence()(fs, ft), 0.4369685242918925),
    (lambda: rkd(vs, vt), 18.09794952021541),
    (lambda: RKD()(fs, fd), 18.09794952021541),
    (lambda: rkd(vs, vt, distance=1, angle=0), 0.19653867801207628),
    (lambda: rkd(vs, vt, distance=0, angle=1), 0.26368965139827005),
    (lambda: RKD(distance=0, angle=1)(vs, vt), 0.26368965139827005),
    (lambda: pkt(vs, vt), 0.13371773297214068),
    (lambda: PKT()(fs, fd), 0.13371773297214068),
])
def test_equals_its_reference(value, expected): check_close(value(), expected, rel=1e-9)

@each
def test_zero_at_the_teacher(f): check_zero(f, vt6, grad=1e-6)

def test_rkd_ignores_shift_scale_and_rotation():
    q,_ = torch.linalg.qr(feat(6, 1, .91, B=6).flatten(1))
    check_close(rkd(.3*vs@q + 5, vt), rkd(vs, vt), rel=1e-9)
def test_pkt_ignores_each_items_scale(): check_close(pkt(vs*torch.arange(1,9)[:,None], vt), pkt(vs, vt), rel=1e-4)
def test_congruence_needs_two_neighbours_that_deviate():
    a = vt6.clone()
    a[::2] += 1
    assert correlation_congruence(a, vt6) == 0
    check_close(correlation_congruence(vt6+1, vt6), 6, rel=1e-6)
def test_rkd_of_equal_items_equals_its_reference():
    "The reference keeps a distance of 1e-6 between equal items"
    check_close(rkd(torch.cat([vs,vs]), torch.cat([vt,vt])), 18.77314583035423, rel=1e-4)
    check_close(rkd(torch.cat([vs[:1],vs[:-1]]), vt), 19.08116499678178, rel=1e-6)
@pytest.mark.parametrize('f', [rkd, pkt])
def test_doubling_the_batch_changes_it(f):
    assert f(torch.cat([vs,vs]), torch.cat([vt,vt])).item() != pytest.approx(f(vs,vt).item(), rel=.01)

@each
@pytest.mark.parametrize('shape', ['map', 'tokens'])
def test_positions_are_averaged(f, shape):
    a,b = (fs,ft) if shape=='map' else (fs.flatten(2),ft.flatten(2))
    check_close(f(a, vt6), f(vs, vt6))
    check_close(f(vs, b), f(vs, vt6))

@each
def test_batch_of_one_is_an_error(f):
    with pytest.raises(ValueError, match=rf"{f.__name__} compares the items.*has 1.*\(1, 6\).*drop_last"): f(vs[:1], vt6[:1])
@each
def test_two_items_are_enough(f): assert value_and_grad(f, vs[:2], vt6[:2])[1].isfinite().all()
@each
def test_unequal_batches_are_an_error(f):
    with pytest.raises(ValueError, match=r"batch of 8 and ft of 7.*\(7, 6\)"): f(vs, vt6[:7])
@each
def test_features_without_channels_are_an_error(f):
    with pytest.raises(ValueError, match=r"got \(8,\) and \(8, 6\)"): f(vs[:,0], vt6)
def test_congruence_names_the_channels_that_differ():
    with pytest.raises(ValueError, match="6 channels and ft 9.*adapter"): correlation_congruence(vs, vt)

@each
@every_edge
@pytest.mark.parametrize('a,b', [(vs,vt6), (fs,ft)], ids=['vectors','maps'])
def test_edge_cases_are_finite(f, edge, dtype, a, b): check_edge(f, edge, dtype, a, b)
@each
@half_precision
def test_half_precision_is_computed_in_full(f, dtype): check_half(f, dtype)
@each
def test_any_memory_layout(f): check_layouts(f)
@each
def test_gradient(f): check_gradient(f, vs[:5], vt6[:5])

def test_rkd_of_equal_items_sends_them_no_gradient_from_angles():
    a = torch.cat([vs[:1], vs[:-1]])
    grad = value_and_grad(lambda x,y: rkd(x, y, distance=0, angle=1), a, vt)[1]
    assert 0 < grad.abs().max() < 1
def test_almost_equal_items_have_no_direction():
    "Otherwise, rounding errors between two equal items would give gradients of 1e4 and more"
    a = torch.cat([vs[:1], vs[:1]+1e-9, vs[2:]])
    assert value_and_grad(rkd, a, vt)[1].abs().max() < 100
def test_pkt_of_opposite_items_whose_cosine_rounds_to_below_minus_one():
    a = feat(64, 1, .37, B=64).float().flatten(1)
    a = torch.cat([a, -a])
    u = a / a.norm(dim=1, keepdim=True)
    assert (u@u.T).min() < -1  # about a quarter of the 64 pairs: which ones depends on the processor
    loss,grad = value_and_grad(lambda x,y: pkt(x, y, eps=1e-12), a, a.flip(0)*torch.arange(1,65))
    assert loss.isfinite() and grad.isfinite().all()
def test_pkt_sends_no_gradient_to_an_item_without_a_direction():
    assert value_and_grad(pkt, torch.cat([0*vs[:1],vs[1:]]), vt)[1][0].abs().max() == 0

def _naive_angles(a, b):
    def cos(f):
        d = F.normalize(f[None]-f[:,None], dim=2)
        return d@d.mT
    return F.smooth_l1_loss(cos(a), cos(b))
def _wide(o): return o.reshape(-1)[torch.arange(32*8192) % o.numel()].reshape(32, 8192) * torch.linspace(1, 2, 8192)
wide = _wide(fs),_wide(ft)  # their angles are computed for 8 items at a time
def test_angles_in_chunks_equal_those_at_once():
    f = lambda x,y: rkd(x, y, distance=0, angle=1)
    for got,expected in zip(value_and_grad(f, *wide), value_and_grad(_naive_angles, *wide)): torch.testing.assert_close(got, expected)
def test_angles_are_not_stored_for_the_backward_pass():
    def stored(f):
        tensors = {}
        def keep(t):
            tensors[t.data_ptr()] = t
            return t
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t): f(wide[0].clone().requires_grad_(), wide[1])
        return sum(t.numel() for t in tensors.values())
    n = wide[0].numel()
    assert stored(rkd) < 5*n < 32*n < stored(_naive_angles)

@pytest.mark.parametrize('cls,weight', [(RKD, 1.), (PKT, 30000.), (CorrelationCongruence, .02)])
def test_object(cls, weight):
    o = cls()
    assert (o.weight,o.use,o.min_items,o.choose([('a','A'),('b','B')])) == (weight,'last',2,[('b','B')])
    check_close(o.pairs_loss(o.make_modules([(fs,ft)]), [(fs,ft)]), o(vs, vt6), rel=1e-9)
@pytest.mark.parametrize('make', [
    lambda: RKD(distance=-1),
    lambda: RKD(angle=-1),
    lambda: PKT(eps=0),
    lambda: PKT(weight=-1),
    lambda: CorrelationCongruence(weight=-1)])
def test_hyper_parameters_out_of_range(make): check_out_of_range(make)
def test_schedule_of_hyper_parameters():
    check_close(RKD(distance=lambda pos: 1-pos, angle=0)(vs, vt, pos=.5), .5*rkd(vs, vt, 1, 0), rel=1e-6)

def test_congruence_learns_a_linear_layer_where_widths_differ():
    o = CorrelationCongruence()
    pairs = [(fs.float(),fd.float().flatten(2))]  # a map and tokens
    mods = o.make_modules(pairs)
    eq((mods[0].in_features,mods[0].out_features), (6,9))
    want = correlation_congruence(mods[0](fs.float().mean((2,3))), fd.float().mean((2,3)))
    assert o.pairs_loss(mods, pairs).item() == pytest.approx(want.item(), rel=1e-5)  # means over one axis and over two may add up in another order
    assert isinstance(o.make_modules([(fs,ft)])[0], nn.Identity)
