"Models that take a dict, a nested tuple or nested lists: losses by hand, features, adapters, summary"
from collections import UserDict

import pytest
from fastai.vision.all import *

from fastkd.losses.features import Attention, FitNet, Similarity
from fastkd.losses.soft_targets import SoftTarget
from fastkd.models.layers import layer_names
from fastkd.models.pairs import pair_layers
from fastkd.models.reading import first_items, map_tensors, plain_tensors, tensors_in
from fastkd.schemes.mean_teacher import MeanTeacher
from fastkd.teachers.teacher import Teacher
from fastkd.training.callback import KnowledgeDistillation
from helpers import *
from fastcore.test import test_close as close, test_eq as eq, test_fail as fail

pytestmark = pytest.mark.filterwarnings("ignore:The teacher's")
ce = F.cross_entropy
def kl(z, zt, T=4.): return T**2*F.kl_div((z/T).log_softmax(1), (zt/T).softmax(1), reduction='batchmean')

def rand(*shape, i=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(i))
def dicts(i): return {'ids': torch.arange(6) % 5 + i % 3, 'mask': torch.ones(6), 'image': rand(2, 8, 8, i=i), 'name': f'item {i}'}
def tuples(i): return rand(4, i=i),rand(3, i=i+1),rand(2, i=i+2)
def deep(i): return {'pair': (rand(4, i=i),rand(3, i=i+1)), 'more': [{'z': rand(2, i=i+2)}]}
Pair = namedtuple('Pair', 'a b')

class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.conv,self.pool,self.fc = nn.Embedding(8, 4),nn.Conv2d(2, 5, 3, 2),nn.AdaptiveAvgPool2d(1),nn.Linear(9, 3)
    def forward(self, b):
        assert len(b['name']) == len(b['ids'])
        words = (self.emb(b['ids'])*b['mask'][...,None]).mean(1)
        return self.fc(torch.cat([words, self.pool(self.conv(b['image'])).flatten(1)], 1))

class OfTensors(nn.Module):
    "Of all tensors in its only argument"
    def __init__(self, n=9):
        super().__init__()
        self.body,self.fc = nn.Linear(n, 5),nn.Linear(5, 3)
    def forward(self, b): return self.fc(self.body(torch.cat(tensors_in(b), 1)).relu())

kinds = {'dict': (dicts, OfDict, ('conv','conv')), 'tuple': (tuples, OfTensors, ('body','body')), 'deep': (deep, OfTensors, ('body','body'))}  # fastai moves no named tuples

def learner(items, model, cbs=(), fastai_dl=True, n=16):
    data = [(items(i), torch.tensor(i % 3)) for i in range(n)]
    cls = DataLoader if fastai_dl else torch.utils.data.DataLoader
    dls = DataLoaders(*(cls(data, 8) if not fastai_dl else cls(data, bs=8) for _ in range(2)))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

class Losses(Callback):
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, f): self.f,self.seen = f,[]
    def after_loss(self):
        with torch.no_grad(): self.seen.append((self.learn.loss.item(), float(self.f(self.learn))))

@pytest.mark.parametrize('fastai_dl', [True,False], ids=['fastai loader','torch loader'])
@pytest.mark.parametrize('items,net,layers', kinds.values(), ids=list(kinds))
def test_the_terms_of_nested_inputs(items, net, layers, fastai_dl):
    t = seeded(net, seed=2)
    kd = KnowledgeDistillation(t, [SoftTarget(), FitNet([layers])])
    feats = {}
    def keep(m, i, o): feats[m] = o
    def want(l):
        ft = feats[dict(t.named_modules())[layers[1]]]
        fs = feats[dict(l.model.named_modules())[layers[0]]]
        return .5*ce(l.pred, l.yb[0]) + .5*(kl(l.pred, zt[0]) + kd.losses[1].weight*F.mse_loss(kd.features.modules[0][0](fs), ft))
    zt = {}
    learn = learner(items, seeded(net), [kd, Losses(want)], fastai_dl)
    hooks = [dict(m.named_modules())[layers[0]].register_forward_hook(keep) for m in (learn.model,t)] + [t.register_forward_hook(lambda m,i,o: zt.update({0: o}))]
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    assert 'fitnet' in kd.summary()
    for k,v in learn.model.state_dict().items(): assert torch.equal(v, before[k])
    learn.fit(1, 1e-2)
    np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-5)
    for h in hooks: h.remove()

@pytest.mark.parametrize('loss', [Attention, Similarity])
def test_automatic_pairs_of_a_dict(loss):
    learn = learner(dicts, seeded(OfDict), KnowledgeDistillation(seeded(OfDict, seed=2), loss([('conv','conv')]) if loss is Attention else loss()))
    learn.knowledge_distillation.summary()
    learn.fit(1, 1e-3)
    assert np.isfinite(learn.knowledge_distillation.history.kd_loss[0])

def test_layers_of_nested_inputs():
    b = {k: torch.stack([dicts(i)[k] for i in range(2)]) for k in ('ids','mask','image')} | {'name': ['a','b']}
    eq(layer_names(OfDict(), b)['conv'], (2,5,3,3))
    eq(layer_names(OfDict(), (b,)), layer_names(OfDict(), b))
    assert pair_layers(seeded(OfDict), seeded(OfDict), b)

def test_images_in_a_dict_are_mapped_for_the_teacher():
    "Normalised and resized as the teacher's, wherever they are; masks of other types stay"
    seen = {}
    class Look(OfDict):
        def forward(self, b):
            seen.update(b)
            return super().forward(b)
    t = Teacher(seeded(Look, seed=2), norm=([.5,.5], [.2,.2]), size=16)
    learn = learner(dicts, seeded(OfDict), KnowledgeDistillation(t, SoftTarget()))
    learn.fit(1, 1e-3)
    x = learn.dls.train.one_batch()[0]
    learn.knowledge_distillation.teachers((x,))
    eq(seen['image'].shape, (8,2,16,16))
    want = F.interpolate(x['image'], (16,16), mode='bilinear', antialias=True)
    close(seen['image'], (want-.5)/.2, 1e-5)
    assert seen['ids'] is x['ids'] and seen['name'] == x['name']

def test_precision_of_nested_inputs():
    t = seeded(OfTensors, seed=2).double()
    learn = learner(deep, seeded(OfTensors), KnowledgeDistillation(t, SoftTarget()))
    learn.fit(1, 1e-3)
    assert np.isfinite(learn.knowledge_distillation.history.soft_target[0])

def test_mean_teacher_of_nested_inputs():
    learn = learner(deep, seeded(OfTensors), MeanTeacher())
    learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[0][0])

def test_map_tensors():
    o = {'a': [torch.ones(2), Pair(torch.zeros(3), 'x')], 'b': UserDict(c=TensorImage(torch.ones(4,1)))}
    res = map_tensors(lambda t: t+1, o)
    assert type(res['a'][1]) is Pair and res['a'][1].b == 'x'
    eq(res['a'][1].a, torch.ones(3))
    eq(type(res['b']), UserDict)
    eq(type(plain_tensors(o)['b']['c']), Tensor)
    eq(o['b']['c'].mean(), 1)  # the original is as it was
    eq([tuple(t.shape) for t in tensors_in(first_items(o, 1))], [(1,),(3,),(4,1)])  # the batch has two items
    eq(tensors_in('text'), [])
