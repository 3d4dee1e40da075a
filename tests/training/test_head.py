"`head_lr` and `FasterHead`: the steps of the last layer, by hand; where there are none; what stays as it was"
from copy import deepcopy

import pytest, torchvision
from fastai.callback.schedule import SchedLin
from fastai.tabular.all import tabular_learner, TabularDataLoaders
from fastai.vision.all import *

from fastkd.losses.features import Attention
from fastkd.losses.soft_targets import BinarySoftTarget, Logits, SoftTarget
from fastkd.models.split import output_layer
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.head import FasterHead, head_factor, HeadSteps, is_adaptive
from helpers import *
from fastcore.test import test_eq as eq

pytestmark = pytest.mark.filterwarnings("ignore:The teacher's")

@pytest.fixture(scope='module')
def dls(): return image_dls()
@pytest.fixture
def teacher(): return seeded(cnn, 8, 16, seed=3).eval()

class Steps(Callback):
    "How far each parameter moves in each step, before the head's steps are made larger and after"
    order = KnowledgeDistillation.order-1
    def before_fit(self): self.moved = []
    def before_step(self): self.old = [p.detach().clone() for p in self.model.parameters()]
    def after_batch(self):
        if self.training: self.moved.append([(p-o).abs().max().item() for p,o in zip(self.model.parameters(), self.old)])

def moves(learn, n=1, lr=1e-3, wd=0.):
    "The steps of an epoch, relative to those of a copy in which the head is as slow as the rest"
    learn.fit(n, lr, wd=wd, cbs=(steps := Steps()))
    return steps.moved

def ratios(a, b): return [x/y for x,y in zip(a, b)]

@pytest.mark.parametrize('head_lr,factor', [('auto',16.), (16,16.), (2.5,2.5), (.5,.5), (1,1.)])
def test_the_first_step_of_the_last_layer_is_that_much_larger_and_no_other(dls, teacher, head_lr, factor):
    def learn(f): return student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget(), head_lr=f))
    a,b = (moves(learn(f))[0] for f in (head_lr,1))
    np.testing.assert_allclose(ratios(a, b), [1.]*(len(a)-2) + [factor]*2, rtol=1e-3)

def test_weight_decay_is_part_of_the_step(dls):
    learn = student(dls, cbs=FasterHead(4))
    w = learn.model[-1].weight.detach().clone()
    class Still(Callback):
        def after_backward(self):
            for p in self.model.parameters(): p.grad.zero_()
        def after_step(self): raise CancelFitException
    learn.fit(1, 1e-2, wd=.1, cbs=Still())
    torch.testing.assert_close(learn.model[-1].weight.detach(), w*(1-4*1e-2*.1))

def by_hand(dls, teacher, factor, epochs=1, lr=1e-2):
    "A loop of PyTorch alone: Adam, and a learning rate of its own for the last layer"
    m = student(dls).model.train()
    head = list(m[-1].parameters())
    rest = [p for p in m.parameters() if not any(p is o for o in head)]
    opt = torch.optim.Adam([dict(params=rest), dict(params=head, lr=lr*factor)], lr=lr, betas=(.9,.99), eps=1e-5)
    rewind(dls)
    for _ in range(epochs):
        for x,y in dls.train:
            x,y = x.as_subclass(Tensor),y.as_subclass(Tensor)
            z = m(x)
            with torch.no_grad(): zt = teacher(x)
            kl = F.kl_div((z/4).log_softmax(1), (zt/4).softmax(1), reduction='batchmean')
            (.5*F.cross_entropy(z, y) + .5*16*kl).backward()
            opt.step()
            opt.zero_grad()
    return m

def test_training_equals_a_loop_with_a_parameter_group_for_the_head(dls, teacher):
    def pt_adam(params, **kwargs): return OptimWrapper(params, torch.optim.Adam, betas=(.9,.99), eps=1e-5)
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget(), head_lr=8), opt_func=pt_adam)
    learn.fit(1, 1e-2)
    want = by_hand(dls, teacher, 8).state_dict()
    for k,v in learn.model.state_dict().items(): torch.testing.assert_close(v, want[k], rtol=1e-3, atol=5e-5)

def test_a_weight_of_zero_is_plain_training_at_every_step_that_has_it(dls, teacher):
    def fit(cb=None):
        learn = student(dls, cbs=cb)
        learn.fit(2, 1e-2)
        return state(learn.model)
    plain = fit()
    for w in 0,SchedLin(0.,0.): assert same_state(plain, fit(KnowledgeDistillation(teacher, SoftTarget(), weight=w)))
    assert not same_state(plain, fit(FasterHead()))

def test_a_head_that_is_faster_in_plain_training(dls):
    a,b = (moves(student(dls, cbs=o))[0] for o in (FasterHead(), None))
    np.testing.assert_allclose(ratios(a, b), [1.]*(len(a)-2) + [16.]*2, rtol=1e-3)

@pytest.mark.parametrize('opt', [SGD, partial(SGD, mom=.9), ranger, Larc, partial(OptimWrapper, opt=torch.optim.SGD)])
def test_auto_leaves_optimisers_alone_whose_steps_do_not_adapt(dls, teacher, opt):
    assert not is_adaptive(opt([tensor(1.)], lr=1e-3))
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget()), opt_func=opt)
    assert 'Learning rate' not in learn.knowledge_distillation.summary()
    learn.fit(1, 1e-3)

@pytest.mark.parametrize('opt', [Adam, RAdam, QHAdam, RMSProp, partial(OptimWrapper, opt=torch.optim.AdamW), partial(OptimWrapper, opt=torch.optim.RMSprop)])
def test_adaptive_optimisers(opt): assert is_adaptive(opt([tensor(1.)], lr=1e-3))

def test_other_tasks_are_left_alone_unless_you_ask(dls):
    def loader(n, f): return DataLoader([(x, f(i)) for i,(x,_) in enumerate(items)], bs=8)
    items = [(torch.randn(4), None) for _ in range(16)]
    for loss,target,kd_loss in ((MSELossFlat(), lambda i: torch.randn(2), Logits()), (BCEWithLogitsLossFlat(), lambda i: torch.ones(2), BinarySoftTarget())):
        dl = loader(2, target)
        for head_lr,want in (('auto',1.), (3,3.)):
            learn = Learner(DataLoaders(dl, dl), seeded(nn.Linear, 4, 2), loss_func=loss, cbs=KnowledgeDistillation(seeded(nn.Linear, 4, 2, seed=1), kd_loss, head_lr=head_lr))
            learn.remove_cb(ProgressCallback)
            learn.logger = noop
            class Seen(Callback):
                def before_batch(self): eq(self.learn.knowledge_distillation.head.value, want)
            learn.fit(1, 1e-3, cbs=Seen())

# the layer
def test_output_layers_of_models():
    tv = torchvision.models
    names = {m: output_layer(m)[0] for m in (tv.resnet18(), tv.mobilenet_v2(), tv.vit_b_16(), tv.squeezenet1_0())}
    eq(list(names.values()), ['fc','classifier.1','heads.head','classifier.1'])
    eq(output_layer(create_vision_model(tv.resnet18, 5, pretrained=False))[0], '1.8')
    eq(output_layer(nn.DataParallel(tv.resnet18()))[0], 'fc')
    eq(output_layer(DynamicUnet(create_body(tv.resnet18(), pretrained=False), 3, (32,32)))[1].out_channels, 3)

def test_models_without_an_output_layer_of_their_own():
    assert output_layer(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))) is None
    assert output_layer(nn.Flatten()) is None
    tied = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    tied[1].weight = tied[0].weight
    assert output_layer(tied) is None

def test_the_factor_falls_with_the_inputs():
    eq([head_factor(nn.Linear(n, 3)) for n in (1,32,64,100,512,2048)], [16.,16.,8.,5.12,1.,1.])
    eq(head_factor(nn.Conv2d(128, 3, 1)), 4.)

# what is said
def test_summary_names_the_layer_and_how_to_turn_it_off(dls, teacher):
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget()))
    before = state(learn.model)
    assert "Learning rate: layer '5' (8 → 3) learns 16 times as fast as the others; head_lr=1 turns this off" in learn.knowledge_distillation.summary()
    assert same_state(before, state(learn.model))
    for kw in dict(head_lr=1),dict(weight=0):
        assert 'Learning rate' not in student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget(), **kw)).knowledge_distillation.summary()

@pytest.mark.parametrize('bad,error', [(0,ValueError), (-1,ValueError), (float('inf'),ValueError), ('fast',TypeError), (None,TypeError), (True,TypeError)])
def test_a_factor_must_be_a_number_above_0(teacher, bad, error):
    for f in (lambda: KnowledgeDistillation(teacher, head_lr=bad), lambda: FasterHead(bad)):
        with pytest.raises(error, match='head_lr='): f()

# what stays
def test_frozen_heads_stay_frozen(dls, teacher):
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget(), head_lr=4))
    learn.model[-1].requires_grad_(False)
    w = learn.model[-1].weight.clone()
    learn.fit(1, 1e-2)
    assert torch.equal(learn.model[-1].weight, w)

def test_a_cancelled_step_moves_nothing(dls, teacher):
    class Skip(Callback):
        def before_step(self): raise CancelStepException
    learn = student(dls, cbs=[KnowledgeDistillation(teacher, SoftTarget()), Skip()])
    w = learn.model[-1].weight.detach().clone()
    learn.fit(1, 1e-2)
    assert torch.equal(learn.model[-1].weight.detach(), w)
    learn.remove_cb(Skip)
    learn.fit(1, 1e-2)
    assert not torch.equal(learn.model[-1].weight.detach(), w)

def test_under_mixed_precision_a_skipped_step_is_skipped_for_the_head_too(dls, teacher):
    learn = student(dls, cbs=[KnowledgeDistillation(teacher, SoftTarget(), head_lr=4), CPUMixedPrecision(init_scale=2.**40)])
    w = learn.model[-1].weight.detach().clone()
    class First(Callback):
        order = 99
        def after_batch(self):
            if self.training: raise CancelFitException
    learn.fit(1, 1e-2, cbs=First())
    assert torch.equal(learn.model[-1].weight.detach(), w)

def test_lr_find_leaves_the_weights_alone(dls, teacher, tmp_path):
    learn = student(dls, cbs=KnowledgeDistillation(teacher, SoftTarget()), path=tmp_path)
    before = state(learn.model)
    learn.lr_find(show_plot=False, num_it=10)
    assert same_state(before, state(learn.model))

def test_an_export_with_faster_head_holds_no_class_of_fastkd(dls, tmp_path):
    learn = student(dls, cbs=FasterHead(), path=tmp_path)
    learn.export('s.pkl')
    assert b'fastkd' not in (tmp_path/'s.pkl').read_bytes()

@pytest.mark.parametrize('factor,value', [('auto', 1.), (8, 8)])
def test_a_convolution_that_predicts_pixels_is_no_faster_unless_you_say_so(factor, value):
    dls = DataLoaders(*(DataLoader([(torch.randn(3,4,4), torch.zeros(4,4).long())]*8, bs=4) for _ in range(2)))
    steps = HeadSteps(factor)
    steps.find(Learner(dls, nn.Sequential(nn.Conv2d(3,6,3,padding=1), nn.ReLU(), nn.Conv2d(6,2,1)), loss_func=CrossEntropyLossFlat(axis=1)))
    eq(steps.value, value)
