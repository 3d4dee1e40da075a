"Chains, generations and function matching: who teaches whom, the effect of labels, and resuming after an interruption"
import pytest
from fastai.callback.all import *

from fastkd.losses.soft_targets import SoftTarget
from fastkd.schemes.generations import born_again, distill_chain, MatchInputs
from fastkd.training.callback import KnowledgeDistillation
from helpers import *
from interrupted import *
from fastcore.test import test_close as close, test_eq as eq

pytestmark = pytest.mark.filterwarnings('ignore:The teacher')

def teacher(n=16, epochs=6):
    set_seed(0)
    learn = learner(net(n, p=0.), vectors())
    learn.fit_one_cycle(epochs, 3e-2)
    return learn

def maker(n=8, dls=None, path=None, log=None, **kwargs):
    "A function that creates students and keeps them in `made`"
    def make():
        make.made.append(learner(net(n), dls or vectors(), **({} if path is None else dict(path=path)), **kwargs))
        return make.made[-1]
    make.made = []
    return make

class Teachers(Callback):
    "Record the teacher and the number of epochs of each fit"
    def __init__(self): self.seen = []
    def before_fit(self):
        kd = getattr(self.learn, 'knowledge_distillation', None)
        self.seen.append((kd.teachers[0].source if kd else None, self.n_epoch))

# Who teaches whom
def test_chain_each_learns_from_the_one_before():
    t,who = teacher(),Teachers()
    makes = [maker(12), maker(8), maker(5)]
    res = distill_chain(t, makes, 2, 1e-2, cbs=who)
    eq(len(res.learners), 3)
    for l,m in zip(res.learners, makes): assert [l] == m.made
    for (a,n),b in zip(who.seen, (t,*res.learners)): assert a is b and n==2
    assert res.student is res.learners[-1]
    assert not [c for l in res.learners for c in l.cbs if isinstance(c, (KnowledgeDistillation,Teachers))]

def test_chain_is_one_distillation_after_the_other():
    t = teacher()
    set_seed(1)
    res = distill_chain(t, [maker(8), maker(5)], 2, 1e-2, loss=SoftTarget(T=2.), weight=.7)
    set_seed(1)
    by_hand = [t]
    for n in 8,5:
        if n == 8:
            learn = maker(8)()
            t.validate()  # for the table's first row; iterating a loader draws a random number
        else: learn = maker(5)()
        learn.fit_one_cycle(2, 1e-2, cbs=KnowledgeDistillation(by_hand[-1], SoftTarget(T=2.), weight=.7))
        learn.validate()
        by_hand.append(learn)
    for a,b in zip(res.learners, by_hand[1:]): assert same_state(state(a.model), state(b.model))

def test_table_has_a_row_for_the_teacher_and_each_step():
    t,dls = teacher(),vectors()
    res = distill_chain(t, [maker(8, dls), maker(5, dls)], 2, 1e-2)
    eq(res.table.columns.tolist(), ['step','model','parameters','valid_loss','accuracy'])
    eq(res.table.step.tolist(), ['teacher',1,2])
    eq(res.table.parameters.tolist(), [sum(p.numel() for p in l.model.parameters()) for l in (t,*res.learners)])
    for r,l in zip(res.table.itertuples(), (t,*res.learners)): close([r.valid_loss,r.accuracy], l.validate(dl=dls.valid), eps=1e-6)

def test_teacher_is_only_read_and_may_be_a_module_or_an_ensemble():
    a,b = teacher(),teacher(12)
    a.model.train(); b.model.eval()
    before = state(a.model),state(b.model)
    for t in [a.model,b.model],[a,b],b.model: res = distill_chain(t, [maker(5)], 1, 1e-2)
    assert a.model.training and not b.model.training
    assert same_state(before[0], state(a.model)) and same_state(before[1], state(b.model))
    eq(res.table.step.tolist(), ['teacher',1])

def test_generations_first_from_labels_then_each_from_the_one_before():
    make,who = maker(8),Teachers()
    res = born_again(make, 2, 1e-2, generations=3, cbs=lambda: [who])
    eq(res.learners, make.made)
    eq([a for a,_ in who.seen], [None, *res.learners[:-1]])
    eq(res.table.step.tolist(), [1,2,3,'ensemble'])
    assert len({tuple(l.model[0][0].weight.flatten().tolist()) for l in res.learners}) == 3

def test_generations_from_a_teacher():
    t,who = teacher(),Teachers()
    res = born_again(maker(16), 1, 1e-2, generations=2, teacher=t, cbs=who)
    eq([a for a,_ in who.seen], [t, res.learners[0]])
    eq(res.table.step.tolist(), ['teacher',1,2,'ensemble'])

def test_ensemble_is_the_mean_of_the_probabilities():
    dls = vectors()
    res = born_again(maker(8, dls), 3, 1e-2)
    probs,y = res.ensemble.get_preds()
    mean = sum(l.get_preds()[0] for l in res.learners)/3
    assert torch.allclose(probs, mean, atol=1e-6)
    row = res.table.iloc[-1]
    want = [F.nll_loss(mean.log(), y).item(), (mean.argmax(1)==y).float().mean().item()]
    close([row.valid_loss, row.accuracy], want, eps=1e-5)
    close(res.ensemble.validate(), [row.valid_loss, row.accuracy], eps=1e-6)
    eq(row.parameters, 3*res.table.parameters[0])
    seen = []
    class Total(Callback):
        order,run_valid = KnowledgeDistillation.order+.1,False
        def after_loss(self):
            target = sum(m.model.eval()(self.xb[0]).softmax(1) for m in res.learners)/3
            seen.append((self.learn.loss.item(), F.kl_div(self.pred.log_softmax(1), target, reduction='batchmean').item()))
    student = learner(net(4))
    student.fit(1, 1e-2, cbs=[KnowledgeDistillation(res.ensemble, SoftTarget(T=1.), weight=1.), Total()])
    for a,b in seen: close(a, b, eps=1e-5)

def test_headings_only_where_the_learner_logs(capsys):
    def loud():
        res = maker(4)()
        res.logger = print
        return res
    distill_chain(teacher(), [maker(8), loud], 1, 1e-2)
    out = capsys.readouterr().out
    assert 'Step 2 of 2: Sequential, 51 parameters, from Sequential' in out and 'Step 1' not in out
    born_again(loud, 1, 1e-2, generations=1)
    assert 'Generation 1 of 1: Sequential, 51 parameters, from the labels' in capsys.readouterr().out

def test_exports_of_the_steps_hold_no_teacher(tmp_path):
    dls = image_dls()
    t = Learner(dls, cnn(64,128), metrics=accuracy)
    res = distill_chain(t, [lambda: student(dls, path=tmp_path)], 1, 1e-2)
    res.student.export('s.pkl')
    assert (tmp_path/'s.pkl').stat().st_size < .5*sum(p.numel()*4 for p in t.model.parameters())

# Function matching
def match(t, seed=1, make=maker(8), epochs=2, dls=None, **kwargs):
    set_seed(seed)
    learn = learner(net(8), dls or vectors()) if make is None else make()
    learn.fit_match(t, epochs, 1e-2, **kwargs)
    return learn

class Total(Callback):
    "Record the loss of each batch, the expected loss, and the inputs"
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, teacher): self.teacher,self.seen = teacher,[]
    def after_loss(self):
        with torch.no_grad():
            target = self.teacher.model.eval()(self.xb[0]).softmax(1)
            want = F.kl_div(self.pred.log_softmax(1), target, reduction='batchmean')
        self.seen.append((self.learn.loss.item(), want.item(), self.learn.loss_grad.item(), self.x.clone()))

class Raw(Callback):
    order,run_valid = -5,False
    def before_batch(self): self.learn.raw_x = self.x.clone()

class Mixed(Callback):
    order,run_valid = KnowledgeDistillation.order+.2,False
    def __init__(self): self.seen = []
    def after_loss(self): self.seen.append((self.learn.raw_x, self.x.clone(), getattr(self.learn.match_inputs, 'lam', None)))

class Rates(Callback):
    order,run_valid = 70,False
    def __init__(self): self.seen = []
    def after_batch(self): self.seen.append((self.opt.hypers[-1]['lr'], self.opt.hypers[-1]['mom']))

@pytest.mark.parametrize('mixup', [True, False, .4])
def test_match_is_the_divergence_at_1_on_the_same_mixed_inputs(mixup):
    t = teacher()
    total,mixed = Total(t),Mixed()
    match(t, mixup=mixup, cbs=[total, Raw(), mixed])
    eq(len(total.seen), 8)
    for a,b,c,_ in total.seen: close([a,c], [b,b], eps=1e-6)
    for raw,x,lam in mixed.seen:
        if not mixup: assert torch.equal(raw, x); continue
        assert (lam>=.5).all() and not torch.equal(raw, x)
        far = lam < .99
        other = ((x-lam[:,None]*raw)/(1-lam[:,None]))[far]  # must be another item of the batch
        assert far.any() and torch.cdist(other, raw).min(1)[0].max() < 1e-3

def test_mixup_is_fastais_with_a_uniform_share():
    "With the same random numbers, the shares and the mixed inputs are the same"
    dls = vectors()
    x,y = dls.valid.one_batch()
    def inputs(cb):
        learn = learner(net(4), dls)
        learn.xb,learn.yb,learn.training = (x,),(y,),True
        learn.add_cb(cb)
        cb.stack_y = True
        set_seed(0)
        cb.before_batch()
        return learn.xb[0],cb.lam
    for a,b in zip(inputs(MatchInputs(1.)), inputs(MixUp(1.))): assert torch.allclose(a, b, atol=1e-7)

def permuted(dls, f):
    x,y = zip(*dls.train.dataset)
    y = f(torch.stack(y))
    items = [(a,) if y is None else (a,b) for a,b in zip(x, y if y is not None else x)]
    return DataLoaders(dls.train.new(dataset=items), dls.valid, device='cpu')

@pytest.mark.parametrize('labels', [lambda y: y.flip(0), lambda y: y*0-1, lambda y: torch.where(torch.arange(len(y))%2==0, y, -1)])
@pytest.mark.parametrize('mixup', [True, False])
def test_labels_have_no_influence(labels, mixup):
    t = teacher()
    def run(f):
        set_seed(1)
        dls = permuted(vectors(), f)
        dls.train.rng = random.Random(0)
        set_seed(2)
        learn = learner(net(8), dls)
        learn.fit_match(t, 2, 1e-2, mixup=mixup)
        return learn
    assert same_state(state(run(lambda y: y).model), state(run(labels).model))

@pytest.mark.parametrize('mixup', [True, False])
def test_batches_without_labels(mixup):
    t,labelled,total = teacher(),[],None
    def run(n_inp):
        set_seed(1)
        dls = vectors()
        dls.train.rng = random.Random(0)
        if n_inp:
            dls = DataLoaders(dls.train.new(dataset=[(a,) for a,_ in dls.train.dataset]), dls.valid, device='cpu')
            dls.train.rng = random.Random(0)
        set_seed(2)
        learn = learner(net(8), dls)
        learn.fit_match(t, 2, 1e-2, mixup=mixup)
        return learn
    a,b = run(0),run(1)
    assert same_state(state(a.model), state(b.model))
    eq(a.recorder.values, b.recorder.values)

def test_learning_rate_rises_a_little_and_falls_along_a_cosine():
    t,see = teacher(),Rates()
    match(t, epochs=10, cbs=see)
    rise,fall = SchedCos(1e-2/25, 1e-2),SchedCos(1e-2, 1e-7)
    want = [rise(p/.05) if p<.05 else fall((p-.05)/.95) for p in (i/40 for i in range(40))]
    close([a for a,_ in see.seen], want, eps=1e-8)
    eq({m for _,m in see.seen}, {.9})
    see.seen.clear()
    match(t, epochs=10, pct_start=0, cbs=see)
    close([a for a,_ in see.seen], [SchedCos(1e-2, 1e-7)(i/40) for i in range(40)], eps=1e-8)

def test_several_labels_and_regression_have_their_loss():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    for lf,name in (BCEWithLogitsLossFlat(), 'binary_soft_target'),(MSELossFlat(), 'logits'):
        dl = DataLoader(list(zip(x, (x[:,:3]>0).float())), bs=8, num_workers=0)
        learn,names = learner(net(5), DataLoaders(dl, dl, device='cpu'), loss_func=lf, metrics=None),[]
        def terms(cb): names.extend((o.name, getattr(o, 'T', 1.)) for o in cb.knowledge_distillation.terms)
        learn.fit_match(seeded(net, 8), 1, 1e-2, cbs=Callback(before_train=terms))
        eq(names, [(name,1.)])

def test_cutmix_of_the_users_own_with_mixup_off():
    set_seed(0)
    dls = image_dls()
    t,learn = trained_teacher(dls, 8, 16, epochs=1),student(dls)
    total = Total(t)
    lf = learn.loss_func
    learn.fit_match(t, 1, 1e-2, mixup=False, cbs=[CutMix(), total])
    for a,b,*_ in total.seen: close(a, b, eps=1e-5)
    assert learn.loss_func is lf and len(total.seen) == 4

# Resuming after an interruption
def steps(kind, path, cbs=None, seed=0, file='r'):
    set_seed(seed)
    t = teacher()
    set_seed(seed)
    dls = vectors()
    if kind == 'chain': return distill_chain(t, [maker(8, dls, path), maker(5, dls, path)], 3, 1e-2, file=file, cbs=cbs).learners
    if kind == 'born': return born_again(maker(8, None, path), 3, 1e-2, generations=3, file=file, cbs=cbs).learners
    learn = maker(8, dls, path)()
    learn.fit_match(t, 3, 1e-2, file=file, cbs=cbs)
    return [learn]

class StopIn(Callback):
    "Raise in the middle of epoch `at` of fit number `fit`"
    order = 30
    def __init__(self, fit, at, error): self.fit_no,self.at,self.error,self.n_fit = fit,at,error,-1
    def before_fit(self): self.n_fit += 1
    def after_backward(self):
        if (self.n_fit,self.epoch,self.iter) == (self.fit_no,self.at,1): raise self.error('stopped')

@pytest.mark.parametrize('kind,fit,at', [
    ('chain',0,1), ('chain',1,0), ('chain',1,2), ('born',0,0), ('born',2,1), ('match',0,0), ('match',0,2)])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_interrupted_call_goes_on_bit_for_bit(kind, fit, at, error, tmp_path):
    whole = steps(kind, tmp_path, file=None)
    with pytest.raises(error): steps(kind, tmp_path, StopIn(fit, at, error))
    n = Batches()
    again = steps(kind, tmp_path, n, seed=5)
    eq(n.n, 4*3*len(whole) - 4*(3*fit+at))
    for a,b in zip(again, whole): same(a, b)
    n.n = 0
    for a,b in zip(steps(kind, tmp_path, n, seed=6), whole): same(a, b)
    eq(n.n, 0)

def test_tables_agree_after_an_interruption(tmp_path):
    def run(file, cbs=None):
        set_seed(0)
        return born_again(maker(8, None, tmp_path), 2, 1e-2, generations=2, file=file, cbs=cbs)
    whole = run(None)
    with pytest.raises(KeyboardInterrupt): run('r', StopIn(1, 1, KeyboardInterrupt))
    eq(run('r').table.to_dict(), whole.table.to_dict())

# Mistakes
@pytest.mark.parametrize('call,error,words', [
    (lambda t: distill_chain(t, [], 1), ValueError, 'makes is empty'),
    (lambda t: distill_chain(t, [maker(), 3], 1), TypeError, 'makes has 3'),
    (lambda t: distill_chain(t, [t], 1), TypeError, 'functions without arguments'),
    (lambda t: distill_chain(t, [lambda: net(4)], 1), TypeError, r'makes\[0\] returned a Sequential in step 1'),
    (lambda t: distill_chain(t, [lambda: t], 1), ValueError, 'the teacher or an earlier step already uses'),
    (lambda t: distill_chain('t', [maker()], 1), TypeError, "teacher='t'"),
    (lambda t: distill_chain(t, [maker()], 0), ValueError, 'n_epoch=0'),
    (lambda t: distill_chain(t, [maker()], 1, weight=2.), ValueError, 'weight=2'),
    (lambda t: distill_chain(t, [maker()], 1, loss='x'), TypeError, 'x'),
    (lambda t: distill_chain(t, [maker()], 1, file=3.), TypeError, 'file='),
    (lambda t: distill_chain(t, [maker()], 1, cbs=KnowledgeDistillation(t)), ValueError, 'every step creates its own'),
    (lambda t: born_again(maker(), 1, generations=0), ValueError, 'generations=0'),
    (lambda t: born_again(maker(), 1, generations=1.5), TypeError, 'generations=1.5'),
    (lambda t: born_again((l := learner(net(4)), lambda: l)[1], 1, generations=2), ValueError, 'make returned .* in step 2'),
    (lambda t: born_again(maker(), 1, teacher=3), TypeError, 'teacher=3'),
    (lambda t: maker()().fit_match(t, 0), ValueError, 'n_epoch=0'),
    (lambda t: maker()().fit_match(t, 1, mixup=-1.), ValueError, 'mixup=-1'),
    (lambda t: maker()().fit_match(t, 1, pct_start=2.), ValueError, 'pct_start=2'),
    (lambda t: maker()().fit_match(t, 1, cbs=MixUp()), ValueError, 'use mixup=False'),
    (lambda t: maker()().fit_match(3, 1), TypeError, 'teacher=3'),
    (lambda t: t.fit_match(t, 1), ValueError, "student's own model")])
def test_mistakes_are_errors(call, error, words):
    with pytest.raises(error, match=words): call(teacher(epochs=1))

def test_whole_numbers_cannot_be_mixed():
    x = torch.randint(0, 5, (16,6))
    dl = DataLoader(list(zip(x, x[:,0]%3)), bs=8, num_workers=0)
    def model(): return nn.Sequential(nn.Embedding(5,4), nn.Flatten(), nn.Linear(24,3))
    learn = learner(model(), DataLoaders(dl, dl, device='cpu'))
    with pytest.raises(ValueError, match='int64, which cannot be mixed: use mixup=False'): learn.fit_match(model(), 1)
    learn.fit_match(model(), 1, mixup=False)
