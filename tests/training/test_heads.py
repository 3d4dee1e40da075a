"Several heads and several targets, a head for the teacher (DeiT), and predictions that no loss compares"
import pytest
from fastai.vision.all import *

from fastkd.losses.features import Attention, FitNet, Similarity
from fastkd.losses.label_aware import DecoupledKD, decoupled_kd
from fastkd.losses.regression import Huber
from fastkd.losses.soft_targets import BinarySoftTarget, Logits, SoftTarget, binary_soft_target
from fastkd.schemes.mutual import MutualLearning
from fastkd.teachers.teacher import Teacher
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.heads import idle_heads
from helpers import *
from fastcore.test import test_close as close, test_eq as eq, test_fail as fail

pytestmark = [pytest.mark.filterwarnings("ignore:The teacher's"), pytest.mark.filterwarnings("ignore:output ")]
ce = F.cross_entropy
def kl(z, zt, T=4.): return T**2*F.kl_div((z/T).log_softmax(1), (zt/T).softmax(1), reduction='batchmean')

class Losses(Callback):
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, f): self.f,self.seen = f,[]
    def after_loss(self):
        with torch.no_grad(): self.seen.append((self.learn.loss.item(), float(self.f(self.learn))))

def check(learn): np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-5, atol=1e-6)

class Heads(nn.Module):
    "A body and a linear head of each size, in the form that `wrap` gives them"
    def __init__(self, *sizes, wrap=lambda *o: o, n_in=6):
        super().__init__()
        self.body,self.heads,self.wrap = nn.Linear(n_in, 8),nn.ModuleList([nn.Linear(8, o) for o in sizes]),wrap
    def forward(self, x):
        h = self.body(x).relu()
        return self.wrap(*(o(h) for o in self.heads))

def named(*o): return dict(zip(('animal','colour','weight'), o))

def rows(n=24, floats=False, multi=False):
    g = torch.Generator().manual_seed(0)
    def second(i): return torch.rand(2, generator=g) if floats else (torch.rand(2, generator=g) > .5).float() if multi else torch.tensor(i % 2)
    return [(torch.randn(6, generator=g), torch.tensor(i % 3), second(i)) for i in range(n)]

def learner(model, loss_func, items=None, cbs=(), n_inp=1):
    items = rows() if items is None else items
    dls = DataLoaders(*(DataLoader(items, bs=8) for _ in range(2)))
    dls.n_inp = n_inp
    learn = Learner(dls, model, loss_func=loss_func, cbs=cbs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

forms = {'tuple': (lambda *o: o, lambda o: o), 'list': (lambda *o: list(o), lambda o: o), 'dict': (named, lambda o: list(o.values()))}
def two_ce(pick): return lambda o,a,b: ce(pick(o)[0], a) + ce(pick(o)[1], b)

@pytest.mark.parametrize('wrap,pick', forms.values(), ids=list(forms))
def test_both_heads_are_distilled(wrap, pick):
    t,loss = seeded(Heads, 3, 2, wrap=wrap, seed=2),two_ce(pick)
    def want(l): return .5*loss(l.pred, *l.yb) + .5*sum(map(kl, pick(l.pred), pick(t(l.xb[0]))))
    learn = learner(seeded(Heads, 3, 2, wrap=wrap), loss, cbs=[KnowledgeDistillation(t, SoftTarget()), Losses(want)])
    text = learn.knowledge_distillation.summary()
    assert "Output 'colour'" in text if wrap is named else 'Output 1' in text
    learn.fit(1, 1e-2)
    check(learn)
    second = 'soft_target_colour' if wrap is named else 'soft_target_head1'
    assert {'soft_target',second} <= set(learn.knowledge_distillation.history.columns)
    assert 'train_'+second in learn.recorder.metric_names

def test_the_teachers_dict_may_have_another_order():
    t = seeded(Heads, 2, 3, wrap=lambda a,b: {'colour': a, 'animal': b}, seed=2)
    def want(l): return .5*two_ce(lambda o: list(o.values()))(l.pred, *l.yb) + .5*sum(kl(l.pred[k], t(l.xb[0])[k]) for k in l.pred)
    learn = learner(seeded(Heads, 3, 2, wrap=named), two_ce(lambda o: list(o.values())), cbs=[KnowledgeDistillation(t, SoftTarget()), Losses(want)])
    learn.fit(1, 1e-2)
    check(learn)

def test_each_output_has_its_own_task_and_default_loss():
    t = seeded(Heads, 3, 2, seed=2)
    def loss(o, a, b): return ce(o[0], a) + F.mse_loss(o[1], b)
    def want(l): return .5*loss(l.pred, *l.yb) + .5*(kl(l.pred[0], t(l.xb[0])[0]) + F.mse_loss(l.pred[1], t(l.xb[0])[1]))
    learn = learner(seeded(Heads, 3, 2), loss, rows(floats=True), [KnowledgeDistillation(t, [[SoftTarget()], [Logits()]]), Losses(want)])
    learn.fit(1, 1e-2)
    check(learn)
    learn = learner(seeded(Heads, 3, 2), loss, rows(floats=True), KnowledgeDistillation(t))
    eq([type(h.objective.terms[0]) for h in learn.knowledge_distillation.heads], [Logits])

def test_labels_that_hold_together():
    t = seeded(Heads, 3, 2, seed=2)
    def loss(o, a, b): return ce(o[0], a) + F.binary_cross_entropy_with_logits(o[1], b)
    def want(l): return .5*loss(l.pred, *l.yb) + .5*(kl(l.pred[0], t(l.xb[0])[0]) + binary_soft_target(l.pred[1], t(l.xb[0])[1], T=BinarySoftTarget().T))
    learn = learner(seeded(Heads, 3, 2), loss, rows(multi=True), [KnowledgeDistillation(t, [[SoftTarget()], [BinarySoftTarget()]]), Losses(want)])
    learn.fit(1, 1e-2)
    check(learn)

@pytest.mark.parametrize('skip', [0,1])
def test_none_leaves_an_output_out(skip):
    t,loss = seeded(Heads, 3, 2, seed=2),two_ce(noop)
    def want(l): return .5*loss(l.pred, *l.yb) + .5*kl(l.pred[1-skip], t(l.xb[0])[1-skip])
    spec = [None if i == skip else [SoftTarget()] for i in (0,1)]
    learn = learner(seeded(Heads, 3, 2), loss, cbs=[KnowledgeDistillation(t, spec), Losses(want)])
    assert f'Not distilled: output {skip}' in learn.knowledge_distillation.summary()
    learn.fit(1, 1e-2)
    check(learn)

@pytest.mark.parametrize('sizes,which', [((3,5),0), ((4,2),1), ((3,),0)])
def test_what_does_not_pair_up_is_said(sizes, which):
    t,loss = seeded(Heads, *sizes, seed=2),two_ce(noop)
    def want(l): return .5*loss(l.pred, *l.yb) + .5*kl(l.pred[which], t(l.xb[0])[which])
    learn = learner(seeded(Heads, 3, 2), loss, cbs=[KnowledgeDistillation(t, SoftTarget()), Losses(want)])
    assert f'Not distilled: output {1-which}' in learn.knowledge_distillation.summary()
    learn.fit(1, 1e-2)
    check(learn)

def test_outputs_that_do_not_fit_at_all():
    fail(lambda: learner(seeded(Heads, 3, 2), two_ce(noop), cbs=KnowledgeDistillation(seeded(Heads, 4, 5), SoftTarget())), contains='no output of the student can be distilled')
    fail(lambda: learner(seeded(Heads, 3, 2), two_ce(noop), cbs=KnowledgeDistillation(seeded(Heads, 3, 2, seed=2), [[SoftTarget()], None, None])), contains='has entries for 3 outputs')

def test_losses_with_labels_read_the_labels_of_their_output():
    t,loss = seeded(Heads, 3, 4, seed=2),two_ce(noop)
    items = [(x,a,torch.tensor(i % 4)) for i,(x,a,b) in enumerate(rows())]
    w = DecoupledKD().weight
    def want(l): return .5*loss(l.pred, *l.yb) + .5*w*sum(decoupled_kd(z, zt, y=y) for z,zt,y in zip(l.pred, t(l.xb[0]), l.yb))
    learn = learner(seeded(Heads, 3, 4), loss, items, [KnowledgeDistillation(t, DecoupledKD()), Losses(want)])
    learn.fit(1, 1e-2)
    check(learn)

def test_each_output_has_its_own_vocabulary():
    "fastai's two `CategoryBlock`s; the teacher has the second vocabulary, and only that one, in another order"
    animals,colours = ['cat','dog','fox'],['blue','red']
    def dls(colours):
        items = rows()
        block = DataBlock((TransformBlock, CategoryBlock(animals, sort=False), CategoryBlock(colours, sort=False)), n_inp=1, splitter=IndexSplitter(range(16, 24)),
                          getters=[lambda i: items[i][0], lambda i: animals[items[i][1]], lambda i: ['blue','red'][items[i][2]]])
        return block.dataloaders(list(range(24)), bs=8, num_workers=0)
    loss = two_ce(noop)
    t = Learner(dls(colours[::-1]), seeded(Heads, 3, 2, seed=2), loss_func=loss)
    def want(l):
        zt = t.model(l.xb[0])
        return .5*loss(l.pred, *l.yb) + .5*(kl(l.pred[0], zt[0]) + kl(l.pred[1], zt[1][:,[1,0]]))
    learn = Learner(dls(colours), seeded(Heads, 3, 2), loss_func=loss, cbs=[KnowledgeDistillation(t, SoftTarget()), Losses(want)])
    assert 'classes: 2 matched by name, in another order' in learn.knowledge_distillation.summary()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    check(learn)

def test_default_loss_calibrates_each_output():
    items = rows(160)
    t = seeded(Heads, 3, 2, seed=2)
    learn = learner(seeded(Heads, 3, 2), two_ce(noop), items, KnowledgeDistillation(t))
    learn.fit(1, 1e-3)
    kd = learn.knowledge_distillation
    assert kd.heads.items[0].teachers.temperature not in (1., kd.teachers.temperature)

def test_an_ensemble_with_two_heads():
    ts,loss = [seeded(Heads, 3, 2, seed=i) for i in (2,3)],two_ce(noop)
    def soft(z, zts): return 16*F.kl_div((z/4).log_softmax(1), sum((o/4).softmax(1) for o in zts)/2, reduction='batchmean')
    def want(l):
        zs = [t(l.xb[0]) for t in ts]
        return .5*loss(l.pred, *l.yb) + .5*sum(soft(l.pred[i], [z[i] for z in zs]) for i in (0,1))
    learn = learner(seeded(Heads, 3, 2), loss, cbs=[KnowledgeDistillation(ts, SoftTarget()), Losses(want)])
    learn.fit(1, 1e-2)
    check(learn)

def test_features_beside_two_heads():
    t = seeded(Heads, 3, 2, seed=2)
    learn = learner(seeded(Heads, 3, 2), two_ce(noop), cbs=KnowledgeDistillation(t, [SoftTarget(), FitNet([('body','body')])]))
    learn.knowledge_distillation.summary()
    learn.fit(1, 1e-3)
    eq(list(learn.knowledge_distillation.history.columns[3:6]), ['soft_target','fitnet','soft_target_head1'])
    fail(lambda: learner(seeded(Heads, 3, 2), two_ce(noop), cbs=KnowledgeDistillation(t, [[SoftTarget()], [FitNet()]])), contains='layers belong to no output')

def test_weight_0_with_two_heads_is_plain_training():
    ws = []
    for cbs in ([], [KnowledgeDistillation(seeded(Heads, 3, 2, seed=2), SoftTarget(), weight=0)]):
        learn = learner(seeded(Heads, 3, 2), two_ce(noop), cbs=cbs)
        learn.fit(2, 1e-2)
        ws.append([p.detach().clone() for p in learn.model.parameters()])
    for a,b in zip(*ws): assert torch.equal(a, b)

def test_auxiliary_outputs_are_said():
    "One target: only the prediction is distilled"
    items = [(x,a) for x,a,b in rows()]
    t = seeded(Heads, 3, 3, seed=2)
    learn = learner(seeded(Heads, 3, 3), lambda o,y: ce(o[0], y) + .4*ce(o[1], y), items, KnowledgeDistillation(t, SoftTarget()))
    assert 'Not distilled: the outputs 1' in learn.knowledge_distillation.summary()

# A head for the teacher
class Deit(nn.Module):
    "Two heads; in training, if asked, both, and otherwise their mean"
    def __init__(self, pair=True):
        super().__init__()
        self.body,self.head,self.head_dist,self.pair = nn.Linear(6, 8),nn.Linear(8, 3),nn.Linear(8, 3),pair
    def forward(self, x):
        h = self.body(x).relu()
        a,b = self.head(h),self.head_dist(h)
        return (a, b) if self.training and self.pair else (a+b)/2

def one(n=24): return [(x,a) for x,a,b in rows(n)]

def test_a_pair_of_heads_in_training():
    t = seeded(nn.Linear, 6, 3, seed=2)
    kd = KnowledgeDistillation(t, SoftTarget())
    def want(l): return .5*ce(kd.heads.pair[0], l.yb[0]) + .5*kl(kd.heads.pair[1], t(l.xb[0]))
    learn = learner(seeded(Deit), CrossEntropyLossFlat(), one(), [kd, Losses(want)])
    assert 'head_dist' in kd.summary()
    learn.metrics = L(AvgMetric(accuracy))
    learn.fit(1, 1e-2)
    check(learn)

@pytest.mark.parametrize('fp16', [False,True])
def test_the_term_is_sent_to_a_layer(fp16):
    t = seeded(nn.Linear, 6, 3, seed=2)
    seen = {}
    kd = KnowledgeDistillation(t, SoftTarget(), head='head_dist')
    def want(l): return .5*ce(l.pred, l.yb[0]) + .5*kl(seen['z'].float(), t(l.xb[0]))
    learn = learner(seeded(Deit, pair=False), CrossEntropyLossFlat(), one(), [kd, Losses(want)])
    if fp16: learn.to_bf16()
    learn.model.head_dist.register_forward_hook(lambda m,i,o: seen.update(z=o))
    assert "the teacher's term is for 'head_dist'" in kd.summary()
    learn.fit(1, 1e-2)
    np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-2 if fp16 else 1e-5)
    assert 'forward' not in vars(learn.model)

@pytest.mark.parametrize('head,wrap', [(1, lambda *o: o), ('colour', named)])
def test_the_term_is_sent_to_an_output(head, wrap):
    t,pick = seeded(nn.Linear, 6, 3, seed=2),forms['dict'][1] if wrap is named else noop
    def loss(o, y): return ce(pick(o)[0], y)
    def want(l): return .5*loss(l.pred, l.yb[0]) + .5*kl(pick(l.pred)[1], t(l.xb[0]))
    learn = learner(seeded(Heads, 3, 3, wrap=wrap), loss, one(), [KnowledgeDistillation(t, SoftTarget(), head=head), Losses(want)])
    text = learn.knowledge_distillation.summary()
    assert f"Not distilled: the outputs {(0 if head == 1 else 'animal')!r}, which" in text  # and not the one that is
    learn.fit(1, 1e-2)
    check(learn)

def test_an_unknown_head():
    kd = KnowledgeDistillation(seeded(nn.Linear, 6, 3, seed=2), SoftTarget(), head='head_dst')
    learn = learner(seeded(Deit, pair=False), CrossEntropyLossFlat(), one())
    learn.add_cb(kd)
    for f in kd.summary,partial(learn.fit, 1): fail(f, contains="did you mean 'head_dist'")

def test_a_head_without_gradient_is_called_out():
    class Forgotten(Deit):
        def forward(self, x): return self.head(self.body(x).relu())
    t = seeded(nn.Linear, 6, 3, seed=2)
    learn = learner(seeded(Forgotten), CrossEntropyLossFlat(), one(), KnowledgeDistillation(t, SoftTarget()))
    with pytest.warns(UserWarning, match="layer 'head_dist' gets no gradient"): learn.fit(1, 1e-2)
    with warnings.catch_warnings(record=True) as seen:
        learner(seeded(Deit), CrossEntropyLossFlat(), one(), KnowledgeDistillation(t, SoftTarget(), weight=.1)).fit(1, 1e-2)
    assert not any('no gradient' in str(o.message) for o in seen)

# Predictions that no loss compares
class Other(nn.Module):
    "A body as the student's, and another output"
    def __init__(self, out):
        super().__init__()
        self.body,self.out = nn.Linear(6, 8),out
    def forward(self, x): return self.out(self.body(x))
outs = {'7 classes': nn.Linear(8, 7), 'features': nn.Identity(), 'probabilities': nn.Sequential(nn.Linear(8, 3), nn.Softmax(1)),
        'nothing to read': type('Boxes', (nn.Module,), dict(forward=lambda self, h: {'boxes': h}))()}

@pytest.mark.parametrize('out', outs.values(), ids=list(outs))
def test_only_layers_are_compared(out):
    t = Other(out)
    feats = {}
    learn = learner(seeded(Heads, 3, wrap=lambda z: z), CrossEntropyLossFlat(), one(), KnowledgeDistillation(t, Similarity([('body','body')])))
    kd = learn.knowledge_distillation
    assert 'similarity' in kd.summary()
    def want(l):
        fs,ft = l.model.body(l.xb[0]),t.body(l.xb[0])
        gs,gt = [F.normalize(f@f.T, dim=1) for f in (fs,ft)]
        w = kd.terms[0].weight
        return .5*ce(l.pred, l.yb[0]) + .5*w*(gs-gt).pow(2).mean()
    learn.add_cb(Losses(want))
    learn.fit(1, 1e-2)
    check(learn)

def test_other_vocabularies_do_not_matter_where_only_layers_are_compared():
    dls,t_dls = image_dls(('a','b','c')),image_dls(('d','e'))
    t = Learner(t_dls, seeded(cnn, 8, n_out=2, seed=2), loss_func=CrossEntropyLossFlat())
    learn = Learner(dls, seeded(cnn, 8), loss_func=CrossEntropyLossFlat(), cbs=KnowledgeDistillation(t, Attention([('0','0')])))
    learn.knowledge_distillation.summary()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    fail(lambda: learn.remove_cb(KnowledgeDistillation).add_cb(KnowledgeDistillation(t, SoftTarget())), contains='none of the student')

@pytest.mark.parametrize('named', [True,False])
def test_a_teacher_is_judged_beside_feature_losses_only_if_it_is_for_the_same_classes(named):
    "As many classes may be others: a module's are unknown, a learner's are known"
    t = seeded(cnn, 8, seed=2)
    if named: t = Learner(image_dls(), t, loss_func=CrossEntropyLossFlat())
    learn = Learner(image_dls(), seeded(cnn, 8), loss_func=CrossEntropyLossFlat(), cbs=KnowledgeDistillation(t, Attention([('0','0')])))
    assert ('best constant answer' in learn.knowledge_distillation.summary()) == named

def test_feature_losses_for_all_outputs_leave_no_output_to_a_default():
    learn = learner(seeded(Heads, 3, 2), two_ce(noop), cbs=KnowledgeDistillation(seeded(Heads, 3, 2, seed=2), FitNet([('body','body')])))
    learn.knowledge_distillation.summary()
    learn.fit(1, 1e-3)
    eq([c for c in learn.knowledge_distillation.history if 'soft' in c], [])

def test_what_one_student_skips_the_next_does_not():
    "The callback moves from a student with four classes at output 0 to one with three, as the teacher"
    t,loss = seeded(Heads, 3, 2, seed=2),two_ce(noop)
    kd = KnowledgeDistillation(t, SoftTarget())
    learner(seeded(Heads, 4, 2), loss, cbs=kd)
    eq([bool(o.terms) for o in (kd.objective, kd.heads.items[0].objective)], [False,True])
    learn = learner(seeded(Heads, 3, 2), loss, cbs=kd)
    learn.fit(1, 1e-3)
    eq([bool(o.terms) for o in (kd.objective, kd.heads.items[0].objective)], [True,True])
    assert {'soft_target','soft_target_head1'} <= set(kd.history)

# Mutual learning
def test_mutual_learning_of_models_that_return_two_tensors():
    class Both(CrossEntropyLossFlat):
        def __call__(self, o, y): return super().__call__(o[0], y) + .4*super().__call__(o[1], y)
    loss = Both()
    peer = learner(seeded(Heads, 3, 3, seed=5), loss, one())
    def want(l):
        with torch.no_grad(): return loss(l.pred, l.yb[0]) + kl(l.pred[0], peer.model(l.xb[0])[0], 1.)
    class Seen(Losses): order = MutualLearning.order+.1
    learn = learner(seeded(Heads, 3, 3), loss, one(), cbs=[MutualLearning(peer, weight=1.), Seen(want)])
    learn.fit(1, 1e-2)
    np.testing.assert_allclose(*zip(*learn.seen.seen), rtol=1e-5)

# The report
def test_the_code_of_a_report_says_which_output_gets_what():
    from fastkd.evaluation.recipe import _callback_code
    t = seeded(Heads, 3, 2, seed=2)
    learn = learner(seeded(Heads, 3, 2), two_ce(noop), cbs=KnowledgeDistillation(t, [[SoftTarget(T=2)], None]))
    assert 'loss=[[SoftTarget(T=2, standardize=False, weight=1.0)], None]' in _callback_code(learn.knowledge_distillation)
    learn = learner(seeded(Deit, pair=False), CrossEntropyLossFlat(), one(), KnowledgeDistillation(seeded(nn.Linear, 6, 3), SoftTarget(), head='head_dist'))
    assert "head='head_dist'" in _callback_code(learn.knowledge_distillation)

def test_finding_out_the_number_of_targets_uses_up_no_random_number():
    class Noisy:
        def __len__(self): return 16
        def __getitem__(self, i): return torch.randn(6),torch.tensor(i % 3)
    dls = DataLoaders(*(torch.utils.data.DataLoader(Noisy(), 8) for _ in range(2)))
    dls.n_inp = 1
    model,kd = nn.Linear(6, 3),KnowledgeDistillation(nn.Linear(6, 3), SoftTarget(), weight=0)
    set_seed(3)
    Learner(dls, model, loss_func=CrossEntropyLossFlat())
    want = torch.rand(2)
    set_seed(3)
    Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=kd)
    eq(torch.rand(2), want)
