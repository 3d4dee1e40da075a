"Variational information distillation: values, gradients, what is trained, edge cases"
import math

import pytest, torch, torch.nn.functional as F
from fastcore.test import test_close
from torch.autograd import gradcheck

from fastkd.losses.variational import *
from module_cases import check_constant, check_mixed_layouts, check_trained_by_the_callback, each_network_pair, every_constant, paired, wave
from pair_cases import fd, fs, ft

# Value

def test_value_is_the_reference_value(): assert vid(fs, ft).item() == pytest.approx(1.204861715429317, rel=1e-12)

def test_value_with_regressor_and_variances_is_the_reference_value():
    loss = VID()
    mods = loss.make_modules([(fs,fd)])
    wave([*mods[0].mean.parameters(), mods[0].rho])
    assert loss.pairs_loss(mods, [(fs,fd)]).item() == pytest.approx(1.3109221676316138, rel=1e-12)

@pytest.mark.parametrize('var', [.01, .5, 5., 300.])
def test_variances_start_from_var(var):
    m = GaussianRegressor((2,3,4,4), (2,5,4,4), var)
    test_close(m.var.detach(), torch.full((5,), var), eps=1e-6*max(1, var))

def test_each_variance_weighs_its_own_channel():
    var = torch.tensor([1.,2,3,4,5,6]).double()
    for s,t in ((fs,ft), (fs.mean((2,3)),ft.mean((2,3)))):
        want = sum(vid(s[:,i:i+1], t[:,i:i+1], v.item()) for i,v in enumerate(var))/6
        test_close(vid(s, t, var), want, eps=1e-12)

def test_it_can_be_negative(): assert vid(fs, fs, .1).item() == pytest.approx(.5*math.log(.1))
def test_twice_the_batch_has_the_same_loss(): test_close(vid(torch.cat([fs,fs]), torch.cat([ft,ft])), vid(fs, ft), eps=1e-12)
def test_tokens_equal_the_same_map(): test_close(vid(fs.flatten(2), ft.flatten(2)), vid(fs, ft), eps=1e-12)
def test_other_size_is_pooled(): test_close(vid(fs, ft[...,::2,::2]), vid(F.avg_pool2d(fs, 2), ft[...,::2,::2]), eps=1e-12)

# Gradient

def test_gradcheck():
    s,t = [f[:2,:3,:2,:2].clone().requires_grad_() for f in (fs,ft)]
    assert gradcheck(vid, (s, t, torch.tensor([.5,2.,5.]).double().requires_grad_()))

@pytest.mark.parametrize('shape_s,shape_t', [
    ((4,6,4,4), (4,9,2,2)),
    ((4,6,5), (4,9,5)),
    ((4,6), (4,9)),
    ((4,6,4,4), (4,9,17)),
    ((4,6,17), (4,9,8,8)),
    ((4,6,4,4), (4,6,4,4))])
def test_gradients_reach_regressor_variances_and_student(shape_s, shape_t):
    torch.manual_seed(0)
    loss,s,t = VID(),torch.randn(shape_s, requires_grad=True),torch.randn(shape_t)
    mods = loss.make_modules([(s,t)])
    loss.pairs_loss(mods, [(s,t)]).backward()
    assert {n for n,_ in mods.named_parameters()} == {'0.rho','0.mean.0.weight','0.mean.2.weight','0.mean.4.weight'}
    assert all(p.grad.abs().sum()>0 for p in (s, *mods.parameters()))

@every_constant
def test_constant_features_in_any_precision_are_finite(dtype, value): check_constant(vid, dtype, value)

@pytest.mark.parametrize('value', [0., 7.])
def test_whole_loss_is_finite_under_autocast(value):
    loss,s,t = VID(),torch.full((2,3,4,4), value).requires_grad_(),torch.zeros(2,5,4,4)
    mods = loss.make_modules([(s,t)])
    with torch.autocast('cpu', torch.bfloat16): v = loss.pairs_loss(mods, [(s,t)])
    v.backward()
    assert v.isfinite() and all(p.grad.isfinite().all() for p in (s, *mods.parameters()))

def test_memory_layouts_make_no_difference(): check_mixed_layouts(vid)

# Errors

def test_unequal_channels_without_regressor_are_an_error():
    with pytest.raises(ValueError, match="6 channels and ft 9: pass fs through a regressor"): vid(fs, fd)

@pytest.mark.parametrize('var', [0., -1., math.nan])
def test_variance_of_0_or_less_is_an_error(var):
    with pytest.raises(ValueError, match='var='): vid(fs, ft, var)
    with pytest.raises(ValueError, match='var='): VID(var=var)

def test_wrong_number_of_variances_is_an_error():
    with pytest.raises(ValueError, match='var has 5 values, but ft has 6 channels'): vid(fs, ft, torch.ones(5))

def test_schedule_of_a_trained_variance_is_an_error():
    with pytest.raises(TypeError, match='the variances are trained'): VID(var=lambda p: 5.-p)

# Modules

def test_a_loaded_state_gives_the_same_loss():
    loss,pairs = VID(),[(fs.float(),fd.float())]*2
    a,b = [loss.make_modules(pairs) for _ in range(2)]
    b.load_state_dict(a.state_dict())
    assert len(a)==2 and loss.pairs_loss(a, pairs) == loss.pairs_loss(b, pairs)

def test_training_finds_the_variances_of_unpredictable_channels():
    torch.manual_seed(0)
    loss,s = VID(var=1.),torch.randn(256, 3)
    t = torch.stack([s.relu().sum(1), 3*torch.randn(256)], 1)
    mods = loss.make_modules([(s,t)])
    opt = torch.optim.Adam(mods.parameters(), 2e-2)
    for _ in range(300):
        opt.zero_grad()
        loss.pairs_loss(mods, [(s,t)]).backward()
        opt.step()
    var = mods[0].var.tolist()
    assert var[0] < .3 and var[1] > 3

# In a learner

@each_network_pair('cnn-cnn', 'cnn-vit', 'vit-cnn')
def test_automatic_pairs_of_convolutions_and_transformers(s, t):
    fp,value = paired(VID(), s, t)
    v = value()
    v.backward()
    assert v.isfinite() and len(fp.pairs)>=2 and all(p.grad.abs().sum()>0 for p in fp.params)

def test_regressor_and_variances_are_trained_by_the_callback(): check_trained_by_the_callback(VID(weight=1))
