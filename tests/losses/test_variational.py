"Variational information distillation: values, gradients, what is trained, edges"
import json, math
from functools import partial

import pytest, timm, torch
from torch import nn
from fastcore.test import test_close
from fastkd.all import KnowledgeDistillation
from fastkd.losses.variational import *
from fastkd.teachers.teacher import Teacher
from fastkd.training.features import FeaturePairs
from helpers import cnn, image_dls, seeded, state, student, trained_teacher

torch.set_num_threads(1)

def feat(c, h, a):
    n = torch.arange(8*c*h*h).double()
    return (2*torch.sin(a*n) + .3*torch.cos(.013*n)).reshape(8, c, h, h)
fs,ft,fd = feat(6, 4, .37),feat(6, 4, .53),feat(9, 2, .71)

def wave(p, k): p.data = (.3*torch.sin(1.7*torch.arange(p.numel()).double() + k)).reshape(p.shape)
def vit(): return timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=3)

# Value

def test_value_is_the_reference_value(): assert vid(fs, ft).item() == pytest.approx(1.204861715429317, rel=1e-12)

def test_value_with_regressor_and_variances_is_the_reference_value():
    loss = VID()
    mods = loss.make_modules([(fs,fd)])
    for k,p in enumerate([*mods[0].mean.parameters(), mods[0].rho]): wave(p, k)
    assert loss.pairs_loss(mods, [(fs,fd)]).item() == pytest.approx(1.3109221676316138, rel=1e-12)

@pytest.mark.parametrize('var', [.01, .5, 5., 300.])
def test_variances_start_from_var(var):
    m = GaussianRegressor((2,3,4,4), (2,5,4,4), var)
    test_close(m.var.detach(), torch.full((5,), var), eps=1e-6*max(1, var))

def test_one_variance_per_channel_weighs_its_own_channel():
    var = torch.tensor([1.,2,3,4,5,6]).double()
    want = sum(vid(fs[:,i:i+1], ft[:,i:i+1], v.item()) for i,v in enumerate(var))/6
    test_close(vid(fs, ft, var), want, eps=1e-12)
    test_close(vid(fs.mean((2,3)), ft.mean((2,3)), var), sum(vid(fs.mean((2,3))[:,i:i+1], ft.mean((2,3))[:,i:i+1], v.item()) for i,v in enumerate(var))/6, eps=1e-12)

def test_it_may_be_negative(): assert vid(fs, fs, .1).item() == pytest.approx(.5*math.log(.1))
def test_twice_the_batch_has_the_same_loss(): test_close(vid(torch.cat([fs,fs]), torch.cat([ft,ft])), vid(fs, ft), eps=1e-12)
def test_tokens_equal_the_map_that_they_are_of(): test_close(vid(fs.flatten(2), ft.flatten(2)), vid(fs, ft), eps=1e-12)
def test_other_size_is_pooled(): test_close(vid(fs, ft[...,::2,::2]), vid(nn.functional.avg_pool2d(fs, 2), ft[...,::2,::2]), eps=1e-12)

# Gradient

def test_gradcheck():
    s,t = [f[:2,:3,:2,:2].clone().requires_grad_() for f in (fs,ft)]
    assert torch.autograd.gradcheck(vid, (s, t, torch.tensor([.5,2.,5.]).double().requires_grad_()))

@pytest.mark.parametrize('shape_s,shape_t', [((4,6,4,4),(4,9,2,2)), ((4,6,5),(4,9,5)), ((4,6),(4,9)), ((4,6,4,4),(4,9,17)), ((4,6,17),(4,9,8,8)), ((4,6,4,4),(4,6,4,4))])
def test_gradients_reach_regressor_variances_and_student(shape_s, shape_t):
    torch.manual_seed(0)
    loss,s,t = VID(),torch.randn(shape_s, requires_grad=True),torch.randn(shape_t)
    mods = loss.make_modules([(s,t)])
    loss.pairs_loss(mods, [(s,t)]).backward()
    assert {n for n,_ in mods.named_parameters()} == {'0.rho','0.mean.0.weight','0.mean.2.weight','0.mean.4.weight'}
    assert all(p.grad.abs().sum()>0 for p in (s, *mods.parameters()))

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('value', [0., 3., 6e4])
def test_constant_features_in_any_precision_are_finite(dtype, value):
    s,t = torch.full((2,3,4,4), value, dtype=dtype, requires_grad=True),torch.zeros(2,3,4,4, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16): v = vid(s, t)
    v.backward()
    assert v.dtype==torch.float32 and v.isfinite() and s.grad.isfinite().all()

@pytest.mark.parametrize('zero', [True, False])
def test_whole_loss_is_finite_under_autocast(zero):
    loss,s,t = VID(),torch.full((2,3,4,4), 0. if zero else 7.).requires_grad_(),torch.zeros(2,5,4,4)
    mods = loss.make_modules([(s,t)])
    with torch.autocast('cpu', torch.bfloat16): v = loss.pairs_loss(mods, [(s,t)])
    v.backward()
    assert v.isfinite() and all(p.grad.isfinite().all() for p in (s, *mods.parameters()))

def test_layouts_in_memory_make_no_difference():
    s,t = fs.to(memory_format=torch.channels_last).requires_grad_(),ft.transpose(2,3).contiguous().transpose(2,3)
    test_close(vid(s, t), vid(fs, ft), eps=1e-12)
    vid(s, t).backward()
    assert s.grad.isfinite().all()

# Errors

def test_unequal_channels_without_regressor_are_an_error():
    with pytest.raises(ValueError, match="6 channels and ft 9: pass fs through a regressor"): vid(fs, fd)

@pytest.mark.parametrize('var', [0., -1., math.nan])
def test_variance_of_0_or_less_is_an_error(var):
    with pytest.raises(ValueError, match='var='): vid(fs, ft, var)
    with pytest.raises(ValueError, match='var='): VID(var=var)

def test_variances_of_another_number_are_an_error():
    with pytest.raises(ValueError, match='var has 5 values, and ft 6 channels'): vid(fs, ft, torch.ones(5))

def test_schedule_of_a_trained_variance_is_an_error():
    with pytest.raises(TypeError, match='the variances are trained'): VID(var=lambda p: 5.-p)

# Modules

def test_state_goes_round():
    loss = VID()
    a,b = [loss.make_modules([(fs.float(),fd.float())]*2) for _ in range(2)]
    b.load_state_dict(a.state_dict())
    assert len(a)==2 and loss.pairs_loss(a, [(fs.float(),fd.float())]*2) == loss.pairs_loss(b, [(fs.float(),fd.float())]*2)

def test_training_it_finds_the_variances_of_unpredictable_channels():
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

@pytest.mark.parametrize('s,t', [(partial(cnn,4,8), partial(cnn,8,16)), (partial(cnn,4,8), vit), (vit, partial(cnn,8,16))], ids=['cnn-cnn','cnn-vit','vit-cnn'])
def test_automatic_pairs_of_convolutions_and_transformers(s, t):
    x = torch.randn(4,3,16,16)
    net,teacher = seeded(s),seeded(t, seed=1)
    fp = FeaturePairs([VID()], net, Teacher(teacher), (x,))
    st,tt = fp.taps()
    with st: net(x)
    with torch.no_grad(), tt: teacher.eval()(x)
    v, = fp(st.pop(), tt.pop())
    v.backward()
    assert v.isfinite() and len(fp.pairs)>=2 and all(p.grad.abs().sum()>0 for p in fp.params)

def test_regressor_and_variances_are_trained_by_the_callback():
    dls = image_dls()
    learn = student(dls, cbs=KnowledgeDistillation(trained_teacher(dls, epochs=1), loss=VID(weight=1), weight=1))
    learn.fit(1, 1e-2)
    kd = learn.knowledge_distillation
    before = state(kd.features.modules)
    learn.fit(1, 1e-2)
    assert all((v != before[k]).any() for k,v in kd.features.modules.state_dict().items())
    assert kd.history.vid.iloc[1] < kd.history.vid.iloc[0]
