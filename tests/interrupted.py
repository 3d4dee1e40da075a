"Small fits on vectors, ways to interrupt them, and what two of them must have in common"
from fastai.callback.all import *
from fastkd.training.checkpoint import learner_state
from helpers import *
from fastcore.test import test_eq as eq  # after the others, which have an `eq` of their own that asserts nothing

class Stop(Callback):
    "Raises in the middle of an epoch"
    order = 30
    def __init__(self, at, error=KeyboardInterrupt, event='after_backward'): self.at,self.error,self.event = at,error,event
    def __call__(self, name):
        if name==self.event and self.training and self.epoch==self.at and self.iter==1: raise self.error('stopped')

class Batches(Callback):
    "Training batches that were really seen"
    run_valid,n = False,0
    def after_batch(self): self.n += 1

def vectors(bs=8, n_out=3):
    "Shuffled loaders of 32 training and 16 validation vectors of 6 numbers, whose sign in the first `n_out` tells the class"
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    items = list(zip(x, x[:,:n_out].argmax(1)))
    return DataLoaders(DataLoader(items[:32], bs=bs, shuffle=True, num_workers=0), DataLoader(items[32:], bs=16, num_workers=0), device='cpu')

def net(*ns, p=.3): return nn.Sequential(*[nn.Sequential(nn.Linear(a,b), nn.BatchNorm1d(b), nn.ReLU()) for a,b in zip((6,*ns),ns)], nn.Dropout(p), nn.Linear(ns[-1],3))

def fresh(path, seed=1, bs=8, ns=(8,5), **kwargs):
    "Loaders and a student with dropout, made under `seed`"
    set_seed(seed)
    learn = Learner(vectors(bs), net(*ns), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def learner(model, dls=None, **kwargs):
    learn = Learner(dls or vectors(), model, loss_func=kwargs.pop('loss_func', CrossEntropyLossFlat()), metrics=kwargs.pop('metrics', accuracy), **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def table(learn): return [list(r) for r in learn.recorder.values]
def alike(a, b):
    if isinstance(a, Tensor): assert torch.equal(a, b)
    elif isinstance(a, (dict,list,tuple,L)):
        eq(len(a), len(b))
        for k in (a if isinstance(a, dict) else range(len(a))): alike(a[k], b[k])
    else: eq(a, b)

def same(a, b):
    assert same_state(state(a.model), state(b.model))
    eq(table(a), table(b))
    eq([float(o) for o in a.recorder.losses], [float(o) for o in b.recorder.losses])
    eq((a.recorder.lrs, a.recorder.iters, a.train_iter), (b.recorder.lrs, b.recorder.iters, b.train_iter))
    alike(learner_state(a), learner_state(b))
