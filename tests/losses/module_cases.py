"What the tests of losses with their own modules share: fixed parameters, small networks, a run in a learner"
from functools import partial

import pytest, timm, torch
from fastcore.test import test_close as close
from helpers import cnn, image_dls, seeded, state, student, trained_teacher

from fastkd.teachers.teacher import Teacher
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.features import FeaturePairs
from pair_cases import fs, ft

def wave(params, start=0):
    "Set the parameters to closed-form values, different for each one from number `start` on"
    for k,p in enumerate(params, start): p.data = (.3*torch.sin(1.7*torch.arange(p.numel()).double() + k)).reshape(p.shape)

def vit(): return timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=3)

def each_network_pair(*ids):
    "Decorator: run a test with each student and teacher in `ids`, such as 'cnn-vit'"
    students,teachers = dict(cnn=partial(cnn,4,8), vit=vit),dict(cnn=partial(cnn,8,16), vit=vit)
    return pytest.mark.parametrize('s,t', [(students[a],teachers[b]) for a,b in (o.split('-') for o in ids)], ids=ids)

def every_constant(test):
    "Decorator: run `test` for constant features of several sizes in each precision"
    test = pytest.mark.parametrize('value', [0., 3., 6e4])(test)
    return pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])(test)

def check_constant(f, dtype, value):
    "Value and gradient of constant features are finite under autocast, and the value is in float32"
    s,t = torch.full((2,3,4,4), value, dtype=dtype, requires_grad=True),torch.zeros(2,3,4,4, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16): v = f(s, t)
    v.backward()
    assert v.dtype==torch.float32 and v.isfinite() and s.grad.isfinite().all()

def check_mixed_layouts(f):
    "Channels-last student features and transposed teacher features give the same value"
    s,t = fs.to(memory_format=torch.channels_last).requires_grad_(),ft.transpose(2,3).contiguous().transpose(2,3)
    close(f(s, t), f(fs, ft), eps=1e-12)
    f(s, t).backward()
    assert s.grad.isfinite().all()

def paired(loss, s, t, **kwargs):
    "`FeaturePairs` for `loss` between the networks `s()` and `t()`, and a function that computes the loss on a batch"
    x,net,teacher = torch.randn(4,3,16,16),seeded(s),seeded(t, seed=1)
    fp = FeaturePairs([loss], net, Teacher(teacher), (x,), **kwargs)
    def value(**kwargs):
        st,tt = fp.taps()
        with st: net(x)
        with torch.no_grad(), tt: teacher.eval()(x)
        v, = fp(st.pop(), tt.pop(), **kwargs)
        return v
    return fp,value

def check_trained_by_the_callback(loss):
    "In a learner, the modules change and the loss falls"
    dls = image_dls()
    learn = student(dls, cbs=KnowledgeDistillation(trained_teacher(dls, epochs=1), loss=loss, weight=1))
    learn.fit(1, 1e-2)
    kd = learn.knowledge_distillation
    before = state(kd.features.modules)
    learn.fit(4, 1e-2)
    assert all((v != before[k]).any() for k,v in kd.features.modules.state_dict().items())
    values = kd.history[loss.name]
    assert values.iloc[-1] < values.iloc[0]
