"A compiled student with losses on its layers: the features are those of the batch, and no patched `forward` is left"
from copy import deepcopy

import pytest

from fastkd.losses.features import Attention, FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.features import FeaturePairs
from helpers import *
from fastcore.test import test_eq as eq # after the star imports, which bring another eq

@pytest.fixture(scope='module')
def dls(): return fixed(image_dls(), 16)
@pytest.fixture(scope='module')
def teacher(dls): return trained_teacher(dls, 8, 16, epochs=2)

@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

def compiled(model, how):
    if how == 'wrapped': return torch.compile(model, backend='eager')
    model.compile(backend='eager')
    return model

def compiled_student(dls, how):
    learn = student(dls)
    learn.model = compiled(learn.model, how)
    return learn

def distillation(teacher): return KnowledgeDistillation(teacher, [SoftTarget(), Attention(layers=['0','1']), FitNet(layers='1')])

class Fresh(Callback):
    "Compares what was recorded with the layers' outputs for this batch"
    order,run_valid,n = KnowledgeDistillation.order+.1,False,0
    def __init__(self, recorded): self.recorded = recorded
    def after_loss(self):
        a,b = [deepcopy(getattr(self.learn.model, '_orig_mod', self.learn.model)[i]) for i in (0,1)]  # the parts are not compiled
        with torch.no_grad(): fa = a(self.xb[0]); fb = b(fa)
        assert torch.allclose(self.recorded[-1][0], fa, atol=1e-5) and torch.allclose(self.recorded[-1][1], fb, atol=1e-5)
        self.n += 1

def marks(model): return [(n, sorted(k for k in m.__dict__ if k in ('forward','_compiled_call_impl')), len(m._forward_hooks)) for n,m in model.named_modules()]

@pytest.mark.parametrize('how', ['wrapped','in place'])
@pytest.mark.parametrize('before', ['nothing','a validation','a fit'])
def test_features_of_a_compiled_student_are_fresh_and_nothing_is_left(dls, teacher, how, before, monkeypatch):
    recorded,call = [],FeaturePairs.__call__
    monkeypatch.setattr(FeaturePairs, '__call__', lambda self, fs, *args: recorded.append([f.detach().clone() for f in fs]) or call(self, fs, *args))
    learn = compiled_student(dls, how)
    if before == 'a validation': learn.validate()
    if before == 'a fit': learn.fit(1)
    old,forward = marks(learn.model),learn.model.__dict__.get('forward')
    learn.add_cbs([distillation(teacher), Fresh(recorded)])
    learn.fit(2); learn.fit(1)  # a second fit has taps of its own
    eq(learn.fresh.n, 12)
    eq(marks(learn.model), old)
    assert learn.model.__dict__.get('forward') is forward

@pytest.mark.parametrize('how', ['wrapped','in place'])
def test_compiled_student_learns_what_a_plain_one_learns(dls, teacher, how):
    def run(learn):
        learn.add_cb(kd := distillation(teacher))
        set_seed(5)
        learn.fit(2, 1e-2)
        return kd.history
    np.testing.assert_allclose(run(compiled_student(dls, how)), run(student(dls)), rtol=1e-3)

@pytest.mark.parametrize('how', ['wrapped','in place'])
def test_layers_of_a_compiled_teacher_are_recorded(dls, teacher, how):
    def run(model):
        learn = student(dls, cbs=(kd := distillation(model)))
        kd.summary()
        set_seed(5)
        for _ in range(2):
            learn.fit(1)
            with torch.no_grad(): model.eval()(cast(dls.valid.one_batch()[0], Tensor))  # without taps
        return kd.history,str(kd.summary()).replace('OptimizedModule','Sequential').replace('Learner','module')
    (a,sa),(b,sb) = run(compiled(deepcopy(teacher.model), how)),run(teacher.model)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    eq(sa, sb)

@pytest.mark.parametrize('how', ['wrapped','in place'])
def test_summary_of_a_compiled_student_that_has_run_is_that_of_a_plain_one(dls, teacher, how):
    def text(learn):
        for bs in 16,12: learn.validate(dl=dls.valid.new(bs=bs))  # compiled for any batch size
        learn.add_cb(kd := distillation(teacher))
        set_seed(5)  # for the adapter
        return str(kd.summary())
    eq(text(compiled_student(dls, how)), text(student(dls)))
