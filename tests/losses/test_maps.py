"Feature-map losses: reference values, properties, edge cases, precision, memory"
from functools import partial

import pytest, torch, torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from fastcore.test import test_eq as eq
from helpers import image_dls, student, trained_teacher
from torch import nn

from fastkd.losses.base import as_loss
from fastkd.losses.maps import *
from fastkd.training.callback import KnowledgeDistillation
from pair_cases import *

def flow(a, b): return fsp((a, a*.5), (b, b*.5))
each = each_of([nst, flow, factor_transfer, channel_wise])
each_on_one_layer = each_of([nst, factor_transfer, channel_wise])

# values of the reference implementations for these inputs
@pytest.mark.parametrize('value,expected', [
    (lambda: nst(fs, fd), 0.44319291799603944),
    (lambda: NST()(fs, fd), 0.44319291799603944),
    (lambda: fsp((fs, fs*.5), (ft, ft*.5)), 1.0379582600266173),
    (lambda: FSP().pairs_loss([nn.Identity()]*2, [(fs,ft), (fs*.5,ft*.5)]), 1.0379582600266173),
    (lambda: factor_transfer(fs, ft), 0.07591561755454715),
    (lambda: FactorTransfer()(fs, ft), 0.07591561755454715),
    (lambda: channel_wise(fs, ft, T=1), 1.3911991806173496),
    (lambda: channel_wise(fs, ft), 1.8959012292507855),
    (lambda: ChannelWise()(fs, ft), 1.8959012292507855),
])
def test_equals_its_reference(value, expected): check_close(value(), expected, rel=1e-9)

@each
def test_zero_at_the_teacher(f): check_zero(f, ft)
@each
def test_doubling_the_batch_keeps_the_value(f): check_doubling(f)
@each
def test_mean_over_items_of_batches_of_one(f): check_mean_over_items(f, rel=1e-9)
@each
def test_tokens_are_positions(f): check_close(f(fs.flatten(2), ft.flatten(2)), f(fs,ft))
@each_on_one_layer
def test_map_paired_with_tokens_and_a_class_token(f):
    tokens = torch.cat([ft[:,:,0,:1]*0+7, ft.flatten(2)], 2)
    check_close(f(fs, tokens), f(fs,ft))
    check_close(f(tokens, fs), f(ft,fs))
@each_on_one_layer
def test_larger_maps_are_averaged_to_the_smaller(f):
    large = ft.repeat_interleave(2, 2).repeat_interleave(3, 3)
    check_close(f(fs, large), f(fs,ft))
    check_close(f(large, fs), f(ft,fs))

def test_nst_ignores_the_order_and_scale_of_channels():
    check_close(nst(fs.flip(1)*torch.arange(1,7)[:,None,None], ft), nst(fs,ft))
@pytest.mark.parametrize('c,h', [(3,4), (40,2), (40,4)])
def test_nst_equals_the_sum_over_kernels(c, h):
    "With fewer channels than positions, and with more: both ways to compute it"
    a,b = feat(c, h, .37, B=2),feat(c+1, h, .53, B=2)
    u,v = [F.normalize(o.flatten(2), dim=2) for o in (a,b)]
    k = lambda x,y: torch.einsum('bin,bjn->bij', x, y).pow(2).mean()
    check_close(nst(a, b), k(u,u)+k(v,v)-2*k(u,v), rel=1e-9)
@pytest.mark.parametrize('c,h', [(64,4), (8,16)])
def test_nst_stores_at_most_a_kernel(c, h):
    sizes = []
    a,b = feat(c, h, .37, B=2),feat(c, h, .53, B=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t): nst(a.requires_grad_(), b)
    assert max(sizes) <= 2*max(c*h*h, min(c*c, h**4))

def test_fsp_compares_the_flow_between_layers_of_any_size():
    lower,upper = feat(3, 8, .37, w=4),feat(5, 4, .41, w=2)
    g = torch.einsum('bihw,bjhw->bij', F.avg_pool2d(lower, 2), upper)/8
    other = feat(3, 2, .51),feat(5, 2, .57)
    h = torch.einsum('bihw,bjhw->bij', *other)/4
    check_close(fsp((lower,upper), other), (g-h).pow(2).mean())
def test_factor_transfer_powers():
    n = lambda o: F.normalize(o.abs().pow(3).mean(1).flatten(1), dim=1)
    check_close(factor_transfer(fs, ft, p1=3, p2=2), (n(fs)-n(ft)).pow(2).mean())
def test_channel_wise_ignores_a_shift_per_channel():
    check_close(channel_wise(fs+feat(6,1,.9), ft-feat(6,1,.7)), channel_wise(fs,ft), rel=1e-9)
def test_channel_wise_temperature_keeps_the_gradient_size():
    grads = [value_and_grad(partial(channel_wise, T=T), fs, ft)[1].norm() for T in (20.,40.)]
    assert .8 < grads[0]/grads[1] < 1.25
def test_channel_wise_is_a_loss_on_segmentation_logits():
    given = dict(axis=1, mask=torch.ones(8,4,4).bool(), y=torch.zeros(8,4,4).long())
    eq(as_loss(channel_wise)(fs, ft, **given), channel_wise(fs, ft))
    eq(as_loss(partial(channel_wise, T=1.))(fs, ft, **given), channel_wise(fs, ft, T=1.))

@each
def test_vectors_are_an_error(f):
    text = r"needs features with positions.*\(8, 6\).*choose layers before the pooling"
    for a,b in ((fs.mean((2,3)),ft.mean((2,3))), (fs.mean((2,3)),ft)):
        with pytest.raises(ValueError, match=text): f(a, b)
@each_on_one_layer
def test_a_single_position_is_an_error(f):
    with pytest.raises(ValueError, match=r"only one is left of .*larger maps"): f(fs, ft.mean((2,3), keepdim=True))
@each
def test_unequal_batches_are_an_error(f):
    with pytest.raises(ValueError, match=r"the same items"): f(fs, ft[:7])
@pytest.mark.parametrize('f,text', [
    (channel_wise, '6 channels and ft 9'),
    (lambda a,b: fsp((a,a), (b,b)), r'\(8, 6, 6\) and \(8, 9, 9\)')])
def test_channels_that_differ_are_an_error(f, text):
    with pytest.raises(ValueError, match=text+'.*adapter'): f(fs, fd)

@each
@every_edge
def test_edge_cases_are_finite(f, edge, dtype): check_edge(f, edge, dtype)
@each
@half_precision
def test_half_precision_is_computed_in_full(f, dtype): check_half(f, dtype)
@each
def test_any_memory_layout(f): check_layouts(f)
@each
def test_gradient(f): check_gradient(f, feat(3, 3, .37, B=2), feat(3, 3, .53, B=2))
def test_gradient_with_more_channels_than_positions(): check_gradient(nst, feat(8, 2, .37, B=2), feat(7, 2, .53, B=2))
@half_precision
def test_channel_wise_of_extreme_logits(dtype):
    a = fs.to(dtype)
    a[:,:,0,0] = 1e4
    loss,grad = value_and_grad(partial(channel_wise, T=1), a, -a)
    assert loss.isfinite() and grad.isfinite().all()

@pytest.mark.parametrize('cls,weight,use,adapt', [
    (NST, 50., 'all', False),
    (FSP, 50., 'all', False),
    (FactorTransfer, 200., 'last', False),
    (ChannelWise, 1., 'last', True)])
def test_object(cls, weight, use, adapt):
    o = cls()
    assert (o.weight,o.use,o.adapt,o.min_items) == (weight,use,adapt,1)
@pytest.mark.parametrize('make', [
    lambda: FactorTransfer(p1=.5),
    lambda: FactorTransfer(p2=0),
    lambda: ChannelWise(T=0),
    lambda: FSP(weight=-1),
    lambda: NST(weight=-1)])
def test_hyper_parameters_out_of_range(make): check_out_of_range(make)

def test_fsp_has_an_adapter_per_layer_where_channels_differ():
    o = FSP()
    pairs = [(fs,fd.flatten(2)), (fd,fd), (ft,fs)]  # the first pair has a student map and teacher tokens
    mods = o.make_modules(pairs).double()
    eq([type(m) for m in mods], [nn.Conv2d, nn.Identity, nn.Identity])
    check_close(o.pairs_loss(mods, pairs), fsp((mods[0](fs),fd), (fd.flatten(2),fd)) + fsp((fd,ft), (fd,fs)))
@pytest.mark.parametrize('layers', ['0', [('0.1','0')]])
def test_fsp_of_one_layer_is_an_error_before_training(layers):
    dls = image_dls()
    learn = student(dls, cbs=KnowledgeDistillation(trained_teacher(dls, epochs=1), FSP(layers)))
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match=r"fsp cannot compare.*there is 1 pair of layers: give two or more"): learn.fit(1)
    assert all(map(torch.equal, before, learn.model.parameters()))
def test_segmentation_learns_from_channel_wise_alone():
    x,y = torch.randn(24, 3, 8, 8),torch.zeros(24, 8, 8).long()
    set_seed(0)
    def net(c): return nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, 2, 1))
    dls = DataLoaders.from_dsets(list(zip(x,y)), list(zip(x,y)), bs=8, num_workers=0)
    kd = KnowledgeDistillation(net(8), channel_wise, weight=1)
    learn = Learner(dls, net(4), loss_func=CrossEntropyLossFlat(axis=1), cbs=kd)
    with learn.no_bar(), learn.no_logging(): learn.fit(6, 1e-2)
    assert kd.history.channel_wise.iloc[-1] < .7*kd.history.channel_wise.iloc[0]
