"The callback: promises 1, 2, 5 and 8, weights, history, labels"
import subprocess, sys

import pytest
from fastai.vision.all import *
from copy import deepcopy

from fastkd.all import *
from fastkd.training.columns import DistillationColumns
from helpers import *

dls = image_dls()
teacher = trained_teacher(dls)
LOSSES = {'soft_target': SoftTarget, 'attention': lambda: [SoftTarget(), Attention()], 'adapter': lambda: [SoftTarget(), FitNet([('1','1')]), Similarity()]}
losses = pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)

def distilled(loss=None, t=teacher, d=dls, **kwargs):
    "A student of `t`; extra arguments go to the callback"
    learn_kw = {k: kwargs.pop(k) for k in ('cbs','cs','p','seed','n_out','splitter','loss_func','opt_func') if k in kwargs}
    return student(d, cbs=[KnowledgeDistillation(t, loss, **kwargs), *listify(learn_kw.pop('cbs',None))], **learn_kw)

def fit_state(learn, n=2):
    "Weights after `n` epochs under one seed"
    set_seed(7)
    learn.dls.train.rng.seed(7)
    learn.fit(n, 1e-2)
    return state(learn.model)

# weights
def test_weight_zero_is_plain_training_bit_for_bit():
    plain = fit_state(student(dls, p=.3))
    assert same_state(plain, fit_state(distilled(weight=0, p=.3)))
    assert same_state(plain, fit_state(distilled(weight=SchedLin(0.,0.), p=.3)))
    assert same_state(plain, fit_state(distilled(weight=0., hard_weight=1., p=.3)))
    assert not same_state(plain, fit_state(distilled(weight=.5, p=.3)))

def test_random_numbers_of_the_teacher_leave_the_students_dropout_alone():
    class Noisy(nn.Module):
        def __init__(self): super().__init__(); self.m = deepcopy(teacher.model)
        def forward(self, x): F.dropout(x, .5); return self.m(x)
    assert same_state(fit_state(distilled(t=teacher.model, p=.3)), fit_state(distilled(t=Noisy(), p=.3)))

def one_batch_loss(learn):
    "(total, pred, xb, yb) of the first training step, the step not taken"
    got = {}
    class Stop(Callback):
        order = 20
        def after_loss(self): got.update(total=self.loss_grad.detach(), pred=self.pred.detach(), xb=self.xb, yb=self.yb); raise CancelFitException()
    set_seed(3)
    learn.fit(1, cbs=Stop())
    return got['total'],got['pred'],got['xb'],got['yb'][0]

@pytest.mark.parametrize('kw,h,w', [(dict(weight=.3), .7, .3), (dict(weight=1.), 0, 1), (dict(weight=9., hard_weight=.1), .1, 9), (dict(weight=SchedLin(.2,1)), .8, .2)])
def test_total_is_the_formula(kw, h, w):
    total,pred,xb,y = one_batch_loss(distilled([SoftTarget(weight=2.), Logits()], **kw))
    with torch.no_grad(): t = teacher.model.eval()(*xb)
    expected = h*F.cross_entropy(pred, y) + w*(2*soft_target(pred, t) + logits(pred, t))
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)

def test_ensemble_is_averaged_at_the_temperature():
    other = seeded(cnn, 4, seed=5)
    total,pred,xb,y = one_batch_loss(distilled(SoftTarget(T=3.), t=[teacher, other], weight=1., teacher_weights=[3,1]))
    with torch.no_grad(): p = .75*(teacher.model.eval()(*xb)/3).softmax(1) + .25*(other.eval()(*xb)/3).softmax(1)
    assert total.item() == pytest.approx(soft_target(pred, 3*p.log(), T=3.).item(), rel=1e-4)

def test_temperature_schedule_follows_progress():
    seen = []
    def T(pos): seen.append(pos); return 4.
    distilled(SoftTarget(T=T)).fit(2)
    assert seen[-1] > .85 and len({round(o,3) for o in seen}) > 5

# promise 1: the teacher is only read
@pytest.mark.parametrize('flags', ['eval','train','mixed'])
@losses
def test_teacher_is_bit_identical_after_every_kind_of_fit(loss, flags):
    t = deepcopy(teacher.model).train(flags!='eval')
    if flags == 'mixed': t[0].eval()
    for p in t[0].parameters(): p.requires_grad_(False)
    before,modes,grads = state(t),[m.training for m in t.modules()],[p.requires_grad for p in t.parameters()]
    learn = distilled(loss(), t=t)
    learn.fit(1); learn.fit_one_cycle(1, 1e-2); learn.fine_tune(1); learn.lr_find(show_plot=False, num_it=6)
    assert same_state(before, t.state_dict())
    assert modes == [m.training for m in t.modules()] and grads == [p.requires_grad for p in t.parameters()]
    assert all(p.grad is None for p in t.parameters())

def test_teacher_in_eval_mode_even_if_someone_flips_it():
    t = deepcopy(teacher.model)
    class Flip(Callback):
        def before_batch(self): t.train()
    before = state(t)
    distilled(t=t, cbs=Flip()).fit(1)
    assert same_state(before, t.state_dict()) and t.training

def test_no_graph_through_the_teacher():
    learn,seen = distilled(),[]
    class Look(Callback):
        order = .6
        def after_loss(self): seen.append([z.requires_grad for z in self.learn.knowledge_distillation.teacher_preds])
    learn.fit(1, cbs=Look())
    assert seen and not any(sum(seen, []))

# promise 2: nothing leaks
class Boom(Callback):
    def __init__(self, where, ex, order): self.where,self.ex,self.order = where,ex,order
    def __call__(self, event_name):
        if event_name == self.where and getattr(self, 'training', False) and self.learn.train_iter >= 2: raise self.ex
events = ['before_batch','after_pred','after_loss','after_backward','before_step','after_step','after_batch','after_train','after_epoch']

def leftovers(learn, t):
    "What a fit may not leave behind"
    return dict(student=n_hooks(learn.model), teacher=n_hooks(t), metrics=[m.name for m in learn.metrics], loss=learn.loss_func)

@pytest.mark.parametrize('where', events)
@pytest.mark.parametrize('ex', [RuntimeError('boom'), KeyboardInterrupt(), CancelBatchException(), CancelTrainException(), CancelEpochException(), CancelFitException()], ids=lambda o: type(o).__name__)
def test_nothing_is_left_after_an_interrupted_fit(where, ex):
    learn = distilled(LOSSES['adapter']())
    before = leftovers(learn, teacher.model)
    try: learn.fit(1, 1e-2, cbs=Boom(where, ex, order=.2))
    except BaseException as e: assert isinstance(e, type(ex))
    assert leftovers(learn, teacher.model) == before

@losses
@pytest.mark.parametrize('ex', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('of', ['student','teacher'])
def test_nothing_is_left_after_an_error_inside_a_forward_pass(loss, ex, of):
    t = deepcopy(teacher.model)
    learn,calls = distilled(loss(), t=t),[]
    m = (learn.model if of=='student' else t)[-2]
    old = type(m).forward
    def bad(self, x):
        if self is m and torch.is_grad_enabled() == (of=='student'):
            calls.append(1)
            if len(calls) > 3: raise ex('boom')
        return old(self, x)
    before = leftovers(learn, t)
    type(m).forward = bad
    try:
        with pytest.raises(ex): learn.fit(1, 1e-2)
    finally: type(m).forward = old
    assert len(calls) == 4 and leftovers(learn, t) == before

@losses
def test_the_fit_after_an_interrupted_one_is_right(loss):
    a,b = distilled(loss()),distilled(loss())
    w0 = state(a.model)
    with pytest.raises(KeyboardInterrupt): a.fit(1, 1e-2, cbs=Boom('after_backward', KeyboardInterrupt(), .2))
    a.model.load_state_dict(w0); a.opt = None
    a.knowledge_distillation.features = a.knowledge_distillation.adapter_opt = None
    a.model.zero_grad()
    assert same_state(fit_state(a), fit_state(b))
    assert len(a.knowledge_distillation.history) == 2 and len(a.recorder.values[-1]) == len(b.recorder.values[-1])

@losses
def test_callback_passed_to_fit_is_gone_afterwards(loss):
    learn,kd = student(dls),KnowledgeDistillation(teacher, loss())
    cbs = list(learn.cbs)
    learn.fit(1, cbs=kd)
    assert list(learn.cbs) == cbs and kd.learn is None and not hasattr(learn, 'knowledge_distillation') and len(kd.history) == 1
    with pytest.raises(RuntimeError): learn.fit(1, cbs=[kd, Boom('after_loss', RuntimeError('boom'), .2)])
    assert list(learn.cbs) == cbs and kd.learn is None and n_hooks(learn.model) == 0
    learn.fit(1, cbs=kd)

def test_remove_cb_gives_plain_training():
    learn = distilled()
    learn.remove_cb(KnowledgeDistillation)
    assert not any(isinstance(c, (KnowledgeDistillation,DistillationColumns)) for c in learn.cbs)
    assert same_state(fit_state(learn), fit_state(student(dls)))

def test_forward_after_an_error_in_a_later_before_batch_is_plain():
    learn = distilled([SoftTarget(), Attention()])
    with pytest.raises(RuntimeError): learn.fit(1, cbs=Boom('before_batch', RuntimeError('boom'), order=99))
    learn.validate()
    assert n_hooks(learn.model) == 0

def test_cancelled_batches_leave_validation_alone():
    learn,seen = distilled([SoftTarget(), Attention()]),[]
    class Skip(Callback):
        order = 99
        def before_batch(self):
            if self.training: raise CancelBatchException()
        def before_validate(self): seen.append(n_hooks(self.model))
    learn.fit(1, cbs=Skip())
    assert seen == [0]

# promise 5: exports hold the student alone
@losses
def test_export_is_as_large_as_a_plain_students(loss, tmp_path):
    plain,learn = student(dls, cs=(16,32)),distilled(loss(), cs=(16,32), splitter=body_head)
    for o,n in (plain,'plain'),(learn,'kd'):
        o.fit(1)
        o.path = tmp_path
        o.export(f'{n}.pkl')
    a,b = (tmp_path/'plain.pkl').stat().st_size,(tmp_path/'kd.pkl').stat().st_size
    assert abs(b/a - 1) < .01
    learn.fit(1)  # the learner still works

def test_exported_student_loads_where_fastkd_cannot_be_imported(tmp_path):
    learn = distilled(LOSSES['adapter'](), splitter=body_head)
    learn.fit(1)
    learn.path = tmp_path
    learn.export('kd.pkl')
    code = f'''
import sys, warnings; warnings.simplefilter('ignore')
sys.modules['fastkd'] = None
from fastai.vision.all import *
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
learn = load_learner({str(tmp_path/'kd.pkl')!r})
with learn.no_bar(): print(learn.predict(np.full((16,16,3), 200, dtype=np.uint8))[2].tolist())
'''
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    expected = learn.predict(np.full((16,16,3), 200, dtype=np.uint8))[2]
    assert eval(res.stdout) == pytest.approx(expected.tolist(), rel=1e-5)

def test_deepcopy_shares_the_teacher_and_trains_alike():
    learn = distilled([SoftTarget(), FitNet([('1','1')])], opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))
    learn.fit(1)
    other = deepcopy(learn)
    assert other.knowledge_distillation.learn is other and other.knowledge_distillation.teachers is learn.knowledge_distillation.teachers
    assert other.knowledge_distillation.columns in other.cbs and other.knowledge_distillation.features is not learn.knowledge_distillation.features
    w = state(learn.model)
    a = fit_state(other)
    assert same_state(w, learn.model.state_dict())
    assert same_state(a, fit_state(learn))
    assert len(learn.knowledge_distillation.history) == 3

def test_copy_of_the_callback_alone_belongs_to_no_learner():
    kd = distilled().knowledge_distillation
    other = deepcopy(kd)
    assert other.learn is None and other.teachers is kd.teachers
    student(dls, cbs=other).fit(1)

# adapters
def test_adapters_are_trained_and_are_not_the_students():
    learn = distilled(FitNet([('1','1')]), weight=1.)
    one_batch_loss(learn)
    kd = learn.knowledge_distillation
    w = kd.features.modules[0][0].weight.detach().clone()
    names = set(learn.model.state_dict())
    learn.fit(2, 1e-2)
    assert (kd.features.modules[0][0].weight - w).abs().max() > 1e-3
    assert set(learn.model.state_dict()) == names and sum(map(len, learn.opt.param_lists)) == len(list(learn.model.parameters()))
    h = kd.history
    assert h.fitnet.iloc[-1] < h.fitnet.iloc[0]

def test_adapter_learning_rate_is_the_heads():
    learn,seen = distilled(FitNet([('1','1')]), splitter=body_head),[]
    class Look(Callback):
        order = .6
        def after_step(self): seen.append(self.learn.knowledge_distillation.adapter_opt.opt.hypers[0]['lr'] == self.opt.hypers[-1]['lr'])
    learn.fit_one_cycle(1, slice(1e-4,1e-2), cbs=Look())
    assert seen and all(seen)

def test_lr_find_gives_the_adapters_back():
    learn = distilled([SoftTarget(), FitNet([('1','1')])])
    learn.fit(1)
    kd = learn.knowledge_distillation
    before = state(kd.features.modules)
    n = len(kd.history)
    learn.lr_find(show_plot=False, num_it=10)
    assert same_state(before, kd.features.modules.state_dict()) and len(kd.history) == n
    learn.fit(1, 1e-2)
    assert not same_state(before, kd.features.modules.state_dict())

# columns and history
def test_columns_and_history():
    rows = []
    learn = distilled([SoftTarget(), Attention(weight=10.)], weight=.25)
    learn.logger = lambda row: rows.append(list(row))
    learn.fit(2)
    names = list(learn.recorder.metric_names)
    assert names == ['epoch','train_loss','valid_loss','accuracy','train_task','train_soft_target','train_attention','time']
    assert len(rows) == 2 and all(len(r) == len(names) for r in rows)
    h = learn.knowledge_distillation.history
    assert list(h.columns) == ['fit','epoch','task_loss','soft_target','attention','kd_loss','total_loss','weight','hard_weight']
    assert rows[-1][5] == h.soft_target.iloc[-1]
    assert h.kd_loss.iloc[0] == pytest.approx(h.soft_target.iloc[0] + h.attention.iloc[0], rel=1e-5)
    assert h.total_loss.iloc[0] == pytest.approx(.75*h.task_loss.iloc[0] + .25*h.kd_loss.iloc[0], rel=1e-5)
    learn.fit(1)
    assert list(learn.knowledge_distillation.history.fit) == [0,0,1]

def test_epoch_means_are_over_items():
    learn,seen = distilled(weight=1., d=image_dls(bs=24)),[]
    learn.dls.train.drop_last = False  # batches of 24, 24 and 16
    class Look(Callback):
        order = .6
        def after_loss(self):
            if self.training: seen.append((self.loss.item(), len(self.pred)))
    learn.fit(1, cbs=Look())
    mean = sum(a*n for a,n in seen)/sum(n for _,n in seen)
    assert mean != pytest.approx(np.mean([a for a,_ in seen]), rel=1e-3)
    assert learn.knowledge_distillation.history.total_loss.iloc[0] == pytest.approx(mean, rel=1e-5)

def test_valid_loss_is_the_task_loss():
    learn = distilled()
    learn.fit(1)
    valid_loss = learn.recorder.values[-1][1]
    preds,targs = learn.get_preds()
    assert valid_loss == pytest.approx(F.nll_loss(preds.log(), targs).item(), rel=1e-4)

def test_schedule_of_the_weight_is_in_the_history():
    learn = distilled(weight=SchedLin(1.,0.))
    learn.fit(2)
    h = learn.knowledge_distillation.history
    assert h.weight.iloc[0] > .6 and h.weight.iloc[1] < .4

# labels
def unlabelled_dls(share=.5, n=96):
    rng = np.random.default_rng(0)
    items = [(x, -1 if i < n*2//3 and rng.random() < share else y) for i,(x,y) in enumerate(colour_items(n))]
    block = DataBlock((ImageBlock, TransformBlock(type_tfms=lambda y: TensorCategory(y))), getters=[ItemGetter(0),ItemGetter(1)], splitter=IndexSplitter(range(n*2//3, n)))
    d = block.dataloaders(items, bs=16, num_workers=0)
    d.vocab = ['a','b','c']
    return d

@pytest.mark.parametrize('lf', [CrossEntropyLossFlat(), CrossEntropyLossFlat(ignore_index=-1), FocalLossFlat(), LabelSmoothingCrossEntropyFlat()], ids=lambda o: f"{type(o.func).__name__}{getattr(o.func,'ignore_index','')}")
def test_unlabelled_items_count_for_the_distillation_term_only(lf):
    got = {}
    class Look(Callback):
        order = -1
        def before_batch(self): got['y'] = self.y.clone()
    d = unlabelled_dls()
    learn = distilled(d=d, weight=.5, loss_func=lf)
    learn.add_cb(Look())
    total,pred,xb,_ = one_batch_loss(learn)
    y,keep = got['y'].as_subclass(Tensor),got['y'].as_subclass(Tensor) >= 0
    assert 0 < keep.sum() < len(y)
    with torch.no_grad(): t = teacher.model.eval()(*xb)
    assert total.item() == pytest.approx((.5*lf(pred[keep], y[keep]) + .5*soft_target(pred, t)).item(), rel=1e-4)

def test_batch_of_unlabelled_items_only():
    learn = distilled(d=unlabelled_dls(share=2.), loss_func=CrossEntropyLossFlat())
    before = state(learn.model)
    learn.fit(1, 1e-2)
    h = learn.knowledge_distillation.history
    assert h.task_loss.iloc[0] == 0 and h.total_loss.iloc[0] == pytest.approx(.5*h.kd_loss.iloc[0], rel=1e-5)
    assert not same_state(before, learn.model.state_dict())

def no_label_dls(n=64):
    block = DataBlock((ImageBlock,), getters=[ItemGetter(0)], splitter=IndexSplitter(range(n//2)))
    return block.dataloaders(colour_items(n), bs=16, num_workers=0)

@losses
def test_weight_one_trains_without_labels(loss):
    learn = student(no_label_dls(), loss_func=CrossEntropyLossFlat(), metrics=None, cbs=KnowledgeDistillation(teacher, loss(), weight=1))
    learn.fit(6, 1e-2)
    assert learn.yb == (None,)
    h = learn.knowledge_distillation.history
    assert h.soft_target.iloc[-1] < .9*h.soft_target.iloc[0] and 'task_loss' not in h

def test_no_stand_in_for_labels_is_left():
    learn,seen = student(no_label_dls(), loss_func=CrossEntropyLossFlat(), metrics=None, cbs=KnowledgeDistillation(teacher, weight=1)),[]
    class Look(Callback):
        order = 99
        def after_batch(self): seen.append(len(self.yb))
    learn.fit(1, cbs=Look())
    assert seen and not any(seen)

def test_weight_one_does_not_read_the_labels():
    d = image_dls()
    learn = distilled(d=d, weight=1., loss_func=lambda p,y: p.sum()*float('nan'), loss=SoftTarget())
    learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters())

# promise 8 and summary
def test_summary_says_what_is_done():
    t_dls = image_dls(['c','a','b'], batch_tfms=Normalize.from_stats([.3]*3,[.4]*3,cuda=False), item_tfms=Resize(20))
    t = Learner(t_dls, trained_teacher(t_dls).model)
    learn = distilled([SoftTarget(), FitNet([('1','1')], weight=.5)], t=t)
    before,rng = state(learn.model),torch.get_rng_state()
    text = learn.knowledge_distillation.summary()
    assert same_state(before, learn.model.state_dict()) and torch.equal(rng, torch.get_rng_state()) and n_hooks(learn.model)==0
    for o in ('Teacher: Learner Sequential', 'classes: 3 matched by name, in another order', "normalisation: the teacher's is applied", 'resized to 20×20',
              'single-label classification', '0.5·task + 0.5·(1·soft_target + 0.5·fitnet)', '1 8×4×4 ↔ 1 16×5×5', 'Conv2d(8, 16', 'accuracy: teacher 1.000, student'): assert o in text, (o, text)
    assert 'Warning' not in text

def test_mapped_teacher_is_right_on_the_students_data():
    t_dls = image_dls(['c','a','b'], batch_tfms=Normalize.from_stats([.3]*3,[.4]*3,cuda=False))
    t = trained_teacher(t_dls)
    total,pred,xb,y = one_batch_loss(distilled(t=t, d=image_dls(batch_tfms=Normalize.from_stats([.5]*3,[.25]*3,cuda=False)), weight=1.))
    raw = xb[0]*.25 + .5
    with torch.no_grad(): z = t.model.eval()((raw-.3)/.4)[:,[1,2,0]]
    assert (z.argmax(1) == y).float().mean() > .9
    assert total.item() == pytest.approx(soft_target(pred, z).item(), rel=1e-3)

def test_map_that_leaves_classes_out_distils_the_others():
    kd = KnowledgeDistillation(Teacher(teacher, class_map={'a':'a','c':'c'}), weight=1.)
    total,pred,xb,y = one_batch_loss(student(dls, cbs=kd))
    with torch.no_grad(): t = teacher.model.eval()(*xb)
    assert total.item() == pytest.approx(soft_target(pred[:,[0,2]], t[:,[0,2]]).item(), rel=1e-5)
