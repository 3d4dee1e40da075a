"Models that return more than a tensor, callbacks that build the model's input, batches that shrink on the way: losses by hand, and `summary()`"
from collections import OrderedDict

import pytest
from fastai.vision.all import *

from fastkd.losses.features import FitNet
from fastkd.losses.label_aware import DecoupledKD, decoupled_kd
from fastkd.losses.soft_targets import SoftTarget
from fastkd.schemes.mutual import MutualLearning
from fastkd.training.callback import KnowledgeDistillation
from helpers import *
from fastcore.test import test_close as close, test_eq as eq

pytestmark = pytest.mark.filterwarnings("ignore:The teacher's")

def vectors(n=48, n_in=6, n_classes=3, seed=0, unlabelled=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n_in, generator=g), torch.tensor(-1 if unlabelled and i % unlabelled == 0 else i % n_classes)) for i in range(n)]

class Two(nn.Module):
    "Predictions and auxiliary predictions, in the form that `wrap` gives them"
    def __init__(self, wrap, n_in=6):
        super().__init__()
        self.body,self.main,self.aux,self.wrap = nn.Linear(n_in, 5),nn.Linear(5, 3),nn.Linear(5, 3),wrap
    def forward(self, x):
        h = self.body(x).relu()
        return self.wrap(self.main(h), self.aux(h))

class Losses(Callback):
    "The loss of each training batch, and what it should be"
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, f): self.f,self.seen = f,[]
    def after_loss(self):
        with torch.no_grad(): self.seen.append((self.learn.loss.item(), float(self.f(self.learn))))

def kl(z, zt, T=4.): return T**2*F.kl_div((z/T).log_softmax(1), (zt/T).softmax(1), reduction='batchmean')

def learner(model, loss_func=None, items=None, cbs=(), **kwargs):
    items = vectors() if items is None else items
    dls = DataLoaders(*(DataLoader(items, bs=8) for _ in range(2)))
    learn = Learner(dls, model, loss_func=loss_func or CrossEntropyLossFlat(), cbs=cbs, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def check(learn): np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-5, atol=1e-6)

class Output(OrderedDict):
    "As transformers' `ModelOutput`: a dict whose entries are attributes, too"
    def __getattr__(self, k): return self[k] if k in self else super().__getattribute__(k)

ce = F.cross_entropy
forms = {
    'out and aux': (lambda z,a: {'out': z, 'aux': a}, lambda o,y: ce(o['out'], y) + .4*ce(o['aux'], y), lambda o: o['out']),
    'logits': (lambda z,a: {'logits': z}, lambda o,y: ce(o['logits'], y), lambda o: o['logits']),
    'tuple': (lambda z,a: (z, a), lambda o,y: ce(o[0], y) + .4*ce(o[1], y), lambda o: o[0]),
    'output object': (lambda z,a: Output(loss=a.sum(), logits=z), lambda o,y: ce(o.logits, y), lambda o: o.logits)}

@pytest.mark.parametrize('wrap,loss,pick', forms.values(), ids=list(forms))
def test_the_loss_function_gets_what_the_model_returned(wrap, loss, pick):
    t = seeded(nn.Linear, 6, 3, seed=2)
    learn = learner(seeded(Two, wrap), loss, cbs=[KnowledgeDistillation(t, SoftTarget()), Losses(lambda l: .5*loss(l.pred, l.yb[0]) + .5*kl(pick(l.pred), t(l.xb[0])))])
    text = learn.knowledge_distillation.summary()
    x,y = learn.dls.valid.one_batch()
    with torch.no_grad(): want = loss(learn.model.eval()(x), y)
    assert f'task loss {want.item():.4g}' in text
    learn.fit(1, 1e-3)
    check(learn)

def test_features_of_such_a_model():
    t = seeded(Two, lambda z,a: (z, a), seed=2)
    learn = learner(seeded(Two, forms['logits'][0]), forms['logits'][1], cbs=KnowledgeDistillation(t, [SoftTarget(), FitNet([('body','body')])]))
    assert 'fitnet' in learn.knowledge_distillation.summary()
    learn.fit(1, 1e-3)
    assert learn.knowledge_distillation.history.fitnet[0] > 0

class AddAxis(Callback):
    "The model's input is built in `before_batch`"
    def before_batch(self): self.learn.xb = (self.x[:,None],)

class AsDict(Callback):
    def before_batch(self): self.learn.xb = ({'x': self.x, 'scale': torch.full((len(self.x),1), 2.)},)

class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.c,self.l = nn.Conv1d(1, 4, 3),nn.Linear(4, 3)
    def forward(self, x): return self.l(self.c(x).mean(2))

class FromDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 3)
    def forward(self, d): return self.l(d['x']*d['scale'])

@pytest.mark.parametrize('cb,net', [(AddAxis,Conv), (AsDict,FromDict)])
def test_callbacks_that_build_the_input(cb, net):
    t = seeded(net, seed=2)
    learn = learner(seeded(net), cbs=[cb(), KnowledgeDistillation(t, SoftTarget()), Losses(lambda l: .5*ce(l.pred, l.yb[0]) + .5*kl(l.pred, t(*l.xb)))])
    assert 'soft_target' in learn.knowledge_distillation.summary()
    learn.fit(1, 1e-3)
    check(learn)

def test_features_where_a_callback_builds_the_input():
    learn = learner(seeded(Conv), cbs=[AddAxis(), KnowledgeDistillation(seeded(Conv, seed=2), [SoftTarget(), FitNet([('c','c')])])])
    learn.knowledge_distillation.summary()
    learn.fit(1, 1e-3)
    assert learn.knowledge_distillation.history.fitnet[0] > 0

def test_the_default_loss_is_calibrated_through_the_callbacks():
    t = seeded(Conv, seed=2)
    learn = learner(seeded(Conv), items=vectors(120), cbs=[AddAxis(), KnowledgeDistillation(t)])
    assert 'which fits 120 validation labels best' in learn.knowledge_distillation.summary()

class Half(Callback):
    "Keep the second half of the items"
    run_valid = False
    def __init__(self, order): self.order = order
    def before_batch(self):
        n = len(self.x)//2
        self.learn.xb,self.learn.yb = (self.x[n:],),(self.y[n:],)

@pytest.mark.parametrize('order', [-5, 0, 2, 50])
@pytest.mark.parametrize('unlabelled', [0, 5])
def test_the_terms_are_those_of_the_items_that_the_model_saw(order, unlabelled):
    "With items without a label, too, whose target the loss function never sees"
    t = seeded(nn.Linear, 6, 3, seed=2)
    def want(l):
        keep = l.yb[0] >= 0
        task = ce(l.pred[keep], l.yb[0][keep]) if keep.any() else 0.
        assert len(l.pred) == len(l.yb[0]) == 4
        return .5*task + .5*kl(l.pred, t(l.xb[0]))
    learn = learner(seeded(nn.Linear, 6, 3), CrossEntropyLossFlat(ignore_index=-1), vectors(48, unlabelled=unlabelled), [Half(order), KnowledgeDistillation(t, SoftTarget()), Losses(want)])
    learn.fit(1, 1e-3)
    check(learn)

@pytest.mark.parametrize('order', [-5, 2])
def test_losses_that_use_labels_see_those_of_the_kept_items(order):
    t = seeded(nn.Linear, 6, 3, seed=2)
    w = DecoupledKD().weight
    learn = learner(seeded(nn.Linear, 6, 3), cbs=[Half(order), KnowledgeDistillation(t, DecoupledKD(), weight=1.), Losses(lambda l: w*decoupled_kd(l.pred, t(l.xb[0]), y=l.yb[0]))])
    learn.fit(1, 1e-3)
    check(learn)

def test_mutual_learning_of_the_kept_items():
    peer = learner(seeded(nn.Linear, 6, 3, seed=5))
    learn = learner(seeded(nn.Linear, 6, 3), cbs=[Half(2), MutualLearning(peer)])
    learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[0][0])

def test_the_learner_is_as_it_was_after_a_look():
    learn = learner(seeded(Conv), cbs=[AddAxis(), KnowledgeDistillation(seeded(Conv, seed=2), SoftTarget())])
    before = {k: v for k,v in vars(learn).items() if k != 'lock'}
    learn.knowledge_distillation.summary()
    assert {k: v for k,v in vars(learn).items() if k != 'lock'} == before
