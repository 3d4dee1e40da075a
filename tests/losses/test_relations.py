"Relation losses: reference values, properties, edges, precision, memory"
import pytest, torch, torch.nn.functional as F
from fastcore.test import test_eq as eq
from torch import nn

from fastkd.losses.relations import *
from pair_cases import *

vs,vt,vt6 = [o.mean((2,3)) for o in (fs,fd,ft)]
losses = [rkd, pkt, correlation_congruence]
objects = [RKD, PKT, CorrelationCongruence]
each = pytest.mark.parametrize('f', losses, ids=lambda f: f.__name__)

# values computed by the reference implementations on these inputs
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
def test_equals_its_reference(value, expected): assert value().item() == pytest.approx(expected, rel=1e-9)

@each
def test_zero_at_the_teacher(f):
    loss,grad = value_and_grad(f, vt6, vt6)
    assert loss.abs() < 1e-12 and grad.abs().max() < 1e-6

def test_rkd_ignores_shift_scale_and_turn():
    q,_ = torch.linalg.qr(feat(6, 1, .91, B=6).flatten(1))
    assert rkd(.3*vs@q + 5, vt).item() == pytest.approx(rkd(vs, vt).item(), rel=1e-9)
def test_pkt_ignores_each_items_scale(): assert pkt(vs*torch.arange(1,9)[:,None], vt).item() == pytest.approx(pkt(vs, vt).item(), rel=1e-4)
def test_congruence_needs_two_neighbours_that_deviate():
    a = vt6.clone()
    a[::2] += 1
    assert correlation_congruence(a, vt6) == 0
    assert correlation_congruence(vt6+1, vt6).item() == pytest.approx(6)
def test_rkd_of_equal_items_equals_its_reference():
    "It keeps a distance of 1e-6 between equal items"
    assert rkd(torch.cat([vs,vs]), torch.cat([vt,vt])).item() == pytest.approx(18.77314583035423, rel=1e-4)
    assert rkd(torch.cat([vs[:1],vs[:-1]]), vt).item() == pytest.approx(19.08116499678178, rel=1e-6)
@pytest.mark.parametrize('f', [rkd, pkt])
def test_doubling_the_batch_changes_it(f): assert f(torch.cat([vs,vs]), torch.cat([vt,vt])).item() != pytest.approx(f(vs,vt).item(), rel=.01)

@each
@pytest.mark.parametrize('shape', ['map', 'tokens'])
def test_positions_are_averaged(f, shape):
    a,b = (fs,ft) if shape=='map' else (fs.flatten(2),ft.flatten(2))
    assert f(a, vt6).item() == pytest.approx(f(vs, vt6).item(), rel=1e-12)
    assert f(vs, b).item() == pytest.approx(f(vs, vt6).item(), rel=1e-12)

@each
def test_batch_of_one_is_an_error(f):
    with pytest.raises(ValueError, match=rf"{f.__name__} compares the items.*has 1.*\(1, 6\).*drop_last"): f(vs[:1], vt6[:1])
@each
def test_two_items_are_enough(f): assert value_and_grad(f, vs[:2], vt6[:2])[1].isfinite().all()
@each
def test_other_items_are_an_error(f):
    with pytest.raises(ValueError, match=r"batch of 8 and ft of 7.*\(7, 6\)"): f(vs, vt6[:7])
@each
def test_features_without_channels_are_an_error(f):
    with pytest.raises(ValueError, match=r"got \(8,\) and \(8, 6\)"): f(vs[:,0], vt6)
def test_congruence_names_the_channels_that_differ():
    with pytest.raises(ValueError, match="6 channels and ft 9.*adapter"): correlation_congruence(vs, vt)

@each
@pytest.mark.parametrize('edge', edges)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('a,b', [(vs,vt6), (fs,ft)], ids=['vectors','maps'])
def test_edges_are_finite(f, edge, dtype, a, b): check_edge(f, edge, dtype, a, b)
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
    "Rounding errors between two equal items would send a gradient of 1e4 and more"
    a = torch.cat([vs[:1], vs[:1]+1e-9, vs[2:]])
    assert value_and_grad(rkd, a, vt)[1].abs().max() < 100
def test_pkt_of_opposite_items_whose_cosine_rounds_to_below_minus_one():
    a = feat(64, 1, .37, B=16).float().flatten(1)
    a = torch.cat([a, -a])
    u = a / a.norm(dim=1, keepdim=True)
    assert (u@u.T).min() < -1
    loss,grad = value_and_grad(lambda x,y: pkt(x, y, eps=1e-12), a, a.flip(0)*torch.arange(1,65))
    assert loss.isfinite() and grad.isfinite().all()
def test_pkt_moves_no_item_without_a_direction(): assert value_and_grad(pkt, torch.cat([0*vs[:1],vs[1:]]), vt)[1][0].abs().max() == 0

def _naive_angles(a, b):
    def cos(f): d = F.normalize(f[None]-f[:,None], dim=2); return d@d.mT
    return F.smooth_l1_loss(cos(a), cos(b))
big = [o.reshape(-1)[torch.arange(32*8192) % o.numel()].reshape(32, 8192) * torch.linspace(1, 2, 8192) for o in (fs,ft)]  # parts of 8 items
def test_angles_in_chunks_equal_those_at_once():
    f = lambda x,y: rkd(x, y, distance=0, angle=1)
    for got,expected in zip(value_and_grad(f, *big), value_and_grad(_naive_angles, *big)): torch.testing.assert_close(got, expected)
def test_angles_are_not_kept_for_the_backward_pass():
    def kept(f):
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t}) or t, lambda t: t): f(big[0].clone().requires_grad_(), big[1])
        return sum(t.numel() for t in kept.values())
    assert kept(rkd) < 5*big[0].numel() < 32*big[0].numel() < kept(_naive_angles)

@pytest.mark.parametrize('cls,weight', list(zip(objects, [1., 30000., .02])))
def test_object(cls, weight):
    o = cls()
    assert (o.weight,o.use,o.min_items,o.choose([('a','A'),('b','B')])) == (weight,'last',2,[('b','B')])
    assert o.pairs_loss(o.make_modules([(fs,ft)]), [(fs,ft)]).item() == pytest.approx(o(vs, vt6).item(), rel=1e-9)
@pytest.mark.parametrize('make', [lambda: RKD(distance=-1), lambda: RKD(angle=-1), lambda: PKT(eps=0), lambda: PKT(weight=-1), lambda: CorrelationCongruence(weight=-1)])
def test_hyper_parameters_out_of_range(make):
    with pytest.raises(ValueError, match='it must be finite and'): make()
def test_schedule_of_hyper_parameters(): assert RKD(distance=lambda pos: 1-pos, angle=0)(vs, vt, pos=.5).item() == pytest.approx(.5*rkd(vs, vt, 1, 0).item())

def test_congruence_learns_a_linear_layer_where_widths_differ():
    o = CorrelationCongruence()
    pairs = [(fs.float(),fd.float().flatten(2))]  # map and tokens
    mods = o.make_modules(pairs)
    eq((mods[0].in_features,mods[0].out_features), (6,9))
    eq(o.pairs_loss(mods, pairs), correlation_congruence(mods[0](fs.float().mean((2,3))), fd.float().mean((2,3))))
    assert isinstance(o.make_modules([(fs,ft)])[0], nn.Identity)
