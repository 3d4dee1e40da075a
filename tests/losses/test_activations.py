"Losses before the activation: reference values, properties, edge cases, margins"
from types import SimpleNamespace

import pytest, torch
from fastcore.test import test_eq as eq
from helpers import image_dls, student, trained_teacher
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from fastkd.losses.activations import *
from fastkd.training.callback import KnowledgeDistillation
from pair_cases import *

margin = -.2*torch.arange(1, 7).double()
def ofd_at(a, b): return ofd(a, b, margin)
each = each_of([activation_boundaries, ofd, ofd_at])
each_without_batch_margin = each_of([activation_boundaries, ofd_at])

# values of the reference implementations for these inputs
@pytest.mark.parametrize('value,expected', [
    (lambda: activation_boundaries(fs, ft)*fs.numel(), 2184.9508132647416),
    (lambda: activation_boundaries(fs, ft)*fs[0].numel()*3/1000, 0.8193565549742781),
    (lambda: ActivationBoundaries()(fs, ft)*fs.numel(), 2184.9508132647416),
    (lambda: ofd(fs, ft, margin)*fs.numel(), 2302.4900455730226),
    (lambda: OFD(margin=-.5)(fs, ft)*fs.numel(), (ofd(fs, ft, -.5)*fs.numel()).item()),
])
def test_equals_its_reference(value, expected): check_close(value(), expected, rel=1e-9)
def test_equals_the_references_sum_over_stages():
    "The reference sums over an item's elements, divides by 1000, and halves the weight from the last stage to the first"
    stages = [(feat(c, h, a), feat(c, h, b)) for c,h,a,b in ((2,8,.37,.53), (4,4,.41,.57), (8,2,.43,.59))]
    mods = OFD(margin=-.5).make_modules(stages)
    for m in mods: m[0],m[1] = nn.Identity(),nn.Identity()
    check_close(OFD(margin=-.5).pairs_loss(mods, stages) * 8*2*2/1000, 0.272262974247676, rel=1e-9)

def test_boundaries_are_met_by_the_margin():
    side = torch.where(ft>0, 1., -1.)
    assert activation_boundaries(side, ft) == 0 and activation_boundaries(2*side, ft, margin=2.) == 0
    check_close(activation_boundaries(-side, ft), 4, rel=1e-6)
    check_close(activation_boundaries(0*side, ft), 1, rel=1e-6)
def test_boundaries_use_only_the_teachers_sign(): assert activation_boundaries(fs, 100*ft) == activation_boundaries(fs, ft)
def test_a_teacher_at_zero_is_off(): assert activation_boundaries(-torch.ones(2,3), torch.zeros(2,3)) == 0
def test_ofd_is_zero_at_the_teacher():
    for m in (margin, None, -.1): assert ofd(ft, ft, m) == 0
def test_ofd_only_asks_to_be_below_the_margin():
    t = torch.tensor([[-3.,-.5,2.]])
    eq(ofd(torch.tensor([[-9.,-9.,2.]]), t, -1.), torch.tensor(0.))
    # differences from the margin, from the teacher, and from the teacher
    check_close(ofd(torch.tensor([[0.,0.,0.]]), t, -1.), (1 + .25 + 4)/3, rel=1e-6)
def test_ofd_margin_is_the_mean_of_the_negative_responses():
    m = torch.stack([o[o<0].mean() for o in ft.transpose(0,1)])
    check_close(ofd(fs, ft), ofd(fs, ft, m))
    check_close(ofd(fs, ft.abs()), ofd(fs, ft.abs(), 0.))
@each_without_batch_margin
def test_doubling_the_batch_keeps_the_value(f): check_doubling(f)
@each_without_batch_margin
def test_mean_over_items_of_batches_of_one(f): check_mean_over_items(f, rel=1e-12)

@each
def test_tokens_and_vectors(f):
    check_close(f(fs.flatten(2), ft.flatten(2)), f(fs,ft))
    check_close(f(fs, torch.cat([ft[:,:,0,:1], ft.flatten(2)], 2)), f(fs,ft))
    check_close(f(fs, ft.mean((2,3))), f(fs.mean((2,3)),ft.mean((2,3))))
@each
def test_larger_maps_are_averaged_to_the_smaller(f): check_close(f(fs, ft.repeat_interleave(2, 2).repeat_interleave(2, 3)), f(fs,ft))
@each
def test_channels_that_differ_are_an_error(f):
    with pytest.raises(ValueError, match='6 channels and ft 9.*adapter'): f(fs, fd)
@each
def test_unequal_batches_are_an_error(f):
    with pytest.raises(ValueError, match='batch of 8 and ft of 7.*same items'): f(fs, ft[:7])
@pytest.mark.parametrize('m', [-torch.ones(5), -torch.ones(6,1)])
def test_margins_of_the_wrong_shape_are_an_error(m):
    with pytest.raises(ValueError, match=r"margin has shape .* ft has 6 channels"): ofd(fs, ft, m)

@each
@every_edge
def test_edge_cases_are_finite(f, edge, dtype): check_edge(f, edge, dtype)
@each
@half_precision
def test_half_precision_is_computed_in_full(f, dtype): check_half(f, dtype)
@each
def test_any_memory_layout(f): check_layouts(f)
@pytest.mark.parametrize('f', [activation_boundaries, ofd, lambda a,b: ofd(a, b, margin[:3])])
def test_gradient(f): check_gradient(f, feat(3, 3, .37, B=2), feat(3, 3, .53, B=2))

@pytest.mark.parametrize('cls,weight,adapt', [(ActivationBoundaries,50.,True), (OFD,16.,False)])
def test_object(cls, weight, adapt):
    o = cls()
    assert (o.weight,o.use,o.adapt,o.before_act,o.min_items) == (weight,'all',adapt,True,1)
@pytest.mark.parametrize('make', [lambda: ActivationBoundaries(margin=0), lambda: OFD(margin=.1), lambda: OFD(weight=-1)])
def test_hyper_parameters_out_of_range(make): check_out_of_range(make)

# Margins
def _bn(cls=nn.BatchNorm2d):
    bn = cls(6)
    bn.weight.data = torch.tensor([1.,-.5,2.,.1,.7,.3])
    bn.bias.data = torch.tensor([0.,.2,-1.,2.,-3.,.9])
    return bn
reference_margins = [-0.7978845608028654, -0.3343780850226613, -2.018320867674067,
                     -0.30000000447034836, -3.000028680928489, -0.08492960405958427]
@pytest.mark.parametrize('cls', [nn.BatchNorm1d, nn.BatchNorm2d, FrozenBatchNorm2d])
def test_margin_equals_the_references(cls): eq(batchnorm_margin(_bn(cls)).tolist(), pytest.approx(reference_margins, rel=1e-6))
def test_margin_without_weight_is_that_of_a_standard_normal():
    eq(batchnorm_margin(nn.BatchNorm2d(2, affine=False)).tolist(), pytest.approx([-.7978846]*2))
@pytest.mark.parametrize('shift,expected', [(-2.,-2.), (0.,0.), (2.,0.)])
def test_margin_of_a_scale_of_zero(shift, expected):
    bn = nn.BatchNorm2d(1)
    bn.weight.data[:],bn.bias.data[:] = 0.,shift
    eq(batchnorm_margin(bn).item(), pytest.approx(expected, abs=1e-6))
def test_margin_has_no_gradient(): assert not batchnorm_margin(_bn()).requires_grad

class _Block(nn.Module):
    "A residual block whose shortcut has layers of its own"
    def __init__(self, c):
        super().__init__()
        self.conv,self.bn = nn.Conv2d(3, c, 1),_bn()
        self.short = nn.Sequential(nn.Conv2d(3, c, 1), nn.BatchNorm2d(c))
        self.act = nn.ReLU()
    def forward(self, x): return self.act(self.bn(self.conv(x)) + self.short(x))
class _BNAct(nn.BatchNorm2d):
    "The activation is part of the BatchNorm, as in timm's BatchNormAct2d"
    def __init__(self, c):
        super().__init__(c)
        self.act = nn.ReLU()
        self.load_state_dict(_bn().state_dict())
    def forward(self, x): return self.act(super().forward(x))
def _plain(*more):
    first = nn.Sequential(nn.Conv2d(3, 6, 1), _bn(), *more, nn.ReLU())
    return nn.Sequential(first, nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
def _at(net, name): return SimpleNamespace(teacher=net, xt=(torch.randn(2, 3, 4, 4),), pairs=[('s', name)])
std = [-.7978846]*6
@pytest.mark.parametrize('net,name,expected', [
    (_plain(), '0.2:in', 'bn'),
    (_plain(), '0', 'bn'),
    (_plain(), '0.1', 'bn'),
    (_plain(nn.Dropout()), '0.3:in', 'bn'),
    (_plain(), '0.1:in', None),
    (_plain(), '1:in', 'bn'),
    (_plain(), '1', None),
    (_plain(), '2', std),
    (_plain(nn.Conv2d(6, 6, 1)), '0.3:in', None),
    (_plain(nn.LayerNorm([6,4,4])), '0', None),
    (nn.Sequential(_Block(6)), '0.act:in', std),
    (nn.Sequential(nn.Conv2d(3, 6, 1)), '0', None),
    (nn.Sequential(_plain(), nn.ReLU()), '0:in', None),
    (nn.Sequential(nn.Conv2d(3, 6, 1), _BNAct(6)), '1.act:in', 'bn'),
    (nn.Sequential(nn.Conv2d(3, 6, 1), _BNAct(6)), '1', 'bn'),
])
def test_margin_comes_from_the_batchnorm_before_the_layer(net, name, expected):
    m = OFD().make_modules([(fs.float(),ft.float())], _at(net, name))[0].margin
    if expected is None: assert m is None
    else: eq(m.tolist(), pytest.approx(batchnorm_margin(_bn()).tolist() if expected=='bn' else expected, abs=1e-6))
def test_batchnorm_of_another_width_is_not_used():
    assert OFD().make_modules([(fs.float(),fd.float())], _at(_plain(), '0'))[0].margin is None
def test_a_number_overrides_the_teachers_batchnorm():
    o = OFD(margin=-.7)
    mods = o.make_modules([(fs,ft)], _at(_plain(), '0')).double()
    assert mods[0].margin is None
    check_close(o.pairs_loss(mods, [(fs,ft)]), ofd(mods[0](fs), ft, -.7))

@pytest.mark.parametrize('a,b,conv,norm', [
    (fs, fd, nn.Conv2d, nn.BatchNorm2d),
    (fs, ft, nn.Conv2d, nn.BatchNorm2d),
    (fs.flatten(2), ft.flatten(2), nn.Conv1d, nn.BatchNorm1d),
    (fs, fd.mean((2,3)), nn.Linear, nn.BatchNorm1d)])
def test_ofd_trains_a_connector_also_where_channels_agree(a, b, conv, norm):
    mods = OFD().make_modules([(a,b)]).double()
    eq(([type(m) for m in mods[0]],mods[0][0].bias), ([conv,norm],None))
    OFD().pairs_loss(mods, [(a,b)]).backward()
    assert all(p.grad.abs().sum() > 0 for p in mods[0][0].parameters())
def test_pairs_loss_uses_the_margin_found():
    mods = OFD().make_modules([(fs,ft)], _at(_plain(), '0.2:in')).double()
    check_close(OFD().pairs_loss(mods, [(fs,ft)]), ofd(mods[0](fs), ft, batchnorm_margin(_bn()).double()), rel=1e-6)
def test_margins_of_a_learners_teacher_before_its_activations():
    dls = image_dls()
    t = trained_teacher(dls, epochs=1)
    kd = KnowledgeDistillation(t, OFD())
    text = student(dls, cbs=kd).knowledge_distillation.summary()
    assert '0.2:in 4×8×8 ↔ 0.2:in 8×8×8' in text
    for i,m in enumerate(kd.features.modules[0]): eq(m.margin, batchnorm_margin(t.model[i][1]))
