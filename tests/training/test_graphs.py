"Layers of the student without a graph: an error where something before them is trained, and fine in a frozen body"
from functools import partial

import pytest
from fastai.vision.all import *
from torch.utils.checkpoint import checkpoint

from fastkd.losses.features import Attention, FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.models.split import body_head
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.features import depend_on_trained
from helpers import *

dls = image_dls()
teacher = trained_teacher(dls)
pair = [('net.1','1')]

class Wrapped(nn.Module):
    "The layers of `cnn(4, 8)`, of which `run` calls number 1"
    def __init__(self, run):
        super().__init__()
        self.net,self.run = seeded(cnn, 4, 8, seed=1),run
    def forward(self, x):
        x = self.run(self.net[1], self.net[0](x))
        for l in self.net[2:]: x = l(x)
        return x

def reentrant(l, x): return checkpoint(l, x, use_reentrant=True)
def not_reentrant(l, x): return checkpoint(l, x, use_reentrant=False)
def plainly(l, x): return l(x)
def inner_detached(l, x): return l[2](l[1](l[0](x)).detach())
def without_grad(l, x):
    with torch.no_grad(): return l(x)

def learner(run, loss=None, splitter=trainable_params, cbs=()):
    set_seed(1)
    rewind(dls)
    learn = Learner(dls, Wrapped(run), loss_func=CrossEntropyLossFlat(), splitter=splitter,
                    cbs=[KnowledgeDistillation(teacher, loss or FitNet(pair, weight=.1)), *cbs])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

@pytest.mark.parametrize('run,name', [(reentrant,'net.1.0'), (reentrant,'net.1.1'), (without_grad,'net.1'), (inner_detached,'net.1.2')])
def test_a_layer_without_a_graph_is_an_error_before_the_first_step(run, name):
    learn = learner(run, [SoftTarget(), FitNet([(name,'1')], weight=.1)])
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match=f"layers='{name}': this layer of the student has no graph .*use_reentrant=False.*or choose another layer"):
        learn.fit(1, 1e-2)
    assert all(map(torch.equal, before, learn.model.parameters())) and n_hooks(learn.model) == 0

def test_one_of_several_layers_is_named():
    with pytest.raises(ValueError, match="layers='net.1.0'"): learner(reentrant, Attention([('net.0','0'), ('net.1.0','1')], weight=1.)).fit(1)

def gradient(run, pair=pair):
    "Of the first layer, in the first batch"
    res = []
    class Keep(Callback):
        def before_step(self): res.append(self.model.net[0][0].weight.grad.clone())
    learner(run, FitNet(pair, weight=.1), cbs=[Keep()]).fit(1, 1e-2)
    return res[0]

def test_the_remedy_has_the_gradient_of_plain_training():
    inner = [('net.1.0','1')]
    assert torch.allclose(gradient(not_reentrant, inner), gradient(plainly, inner), atol=1e-6)

def test_the_output_of_a_checkpoint_has_the_gradient_of_plain_training():
    assert torch.allclose(gradient(reentrant), gradient(plainly), atol=1e-6)

def test_another_layer_is_a_remedy_too():
    learner(reentrant, FitNet([('net.0','0')], weight=.1)).fit(1)

def frozen(learn):
    for p in learn.model.net[:2].parameters(): p.requires_grad_(False)
    return learn

@pytest.mark.parametrize('run', [plainly, reentrant, without_grad])
def test_in_a_frozen_body_it_is_allowed(run):
    "Nothing before the layer is trained; only the adapter and the head are"
    learn = frozen(learner(run, FitNet([('net.1.0','1')], weight=.1)))
    body,head = state(learn.model.net[1][0]),state(learn.model.net[-1])
    learn.fit(1, 1e-2)
    assert same_state(body, learn.model.net[1][0].state_dict()) and not same_state(head, learn.model.net[-1].state_dict())

def test_freeze_and_then_unfreeze_is_judged_anew():
    learn = learner(reentrant, FitNet([('net.1.0','1')], weight=.1), splitter=partial(body_head, head='net.5'))
    learn.train_bn = False
    learn.freeze()
    learn.fit(1, 1e-2)
    learn.unfreeze()
    with pytest.raises(ValueError, match="layers='net.1.0'"): learn.fit(1, 1e-2)

def test_freeze_with_trained_batch_norms():
    "fastai goes on training them: plainly, a layer behind one has a graph"
    learn = learner(plainly, splitter=partial(body_head, head='net.5'))
    learn.freeze()
    learn.fit(1, 1e-2)
    assert learn.model.net[0][1].weight.requires_grad

def test_a_trained_branch_that_the_layer_does_not_see_does_not_count():
    "Two branches: the trained one runs first, and the layer is in the frozen one"
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.a,self.b,self.c = nn.Linear(3,2),nn.Linear(3,2),nn.Linear(4,3)
        def forward(self, x):
            a = self.a(x)
            with torch.no_grad(): b = self.b(x)
            return self.c(torch.cat([a, b], 1))
    model = Two()
    model.b.requires_grad_(False)
    before = state(model)
    assert depend_on_trained(model, ['a','b','c'], (torch.randn(2,3),)) == ['a','c']
    model.b.requires_grad_(True)
    assert depend_on_trained(model, ['a','b','c'], (torch.randn(2,3),)) == ['a','b','c']
    assert same_state(before, model.state_dict()) and all(p.grad is None for p in model.parameters()) and not n_hooks(model)

def test_the_layers_of_a_frozen_body_are_judged_once_in_a_fit(monkeypatch):
    import fastkd.training.features as features
    calls,learn = [],frozen(learner(plainly))
    def counted(*args):
        calls.append(args[1])
        return depend_on_trained(*args)
    monkeypatch.setattr(features, 'depend_on_trained', counted)
    learn.fit(2, 1e-2)
    assert calls == [['net.1']]
