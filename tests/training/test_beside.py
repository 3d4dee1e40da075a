"Every callback of fastai beside `KnowledgeDistillation`: what the teacher sees, what the student minimises, and who steps when"
import sys, types
from copy import deepcopy

import pytest
from fastai.callback.all import *

from fastkd.losses.features import Attention, FeatureLoss, FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.features import FeaturePairs
from helpers import *
from fastcore.test import test_close as close, test_eq as eq # after the star imports, which bring another eq

terms = ['soft_target','attention','fitnet']
columns = ['task_loss',*terms]  # in `history`
shown = {'task_loss':'train_task', **{o:f'train_{o}' for o in terms}}  # in the training table

@pytest.fixture(scope='module')
def dls(): return image_dls()
@pytest.fixture(scope='module')
def teacher(dls): return trained_teacher(dls, 8, 16, epochs=2)

def losses(fitnet=100.): return [SoftTarget(), Attention(layers=['0','1']), FitNet(layers='1', weight=fitnet)]
def distilled(dls, teacher, *cbs, loss=None, weight=.5, model=None, **kwargs):
    "A student with three losses, one of which has an adapter; and its `KnowledgeDistillation`"
    kd = KnowledgeDistillation(teacher, losses() if loss is None else loss, weight=weight)
    learn = student(dls, cbs=[kd,*cbs], **kwargs)
    if model is not None: learn.model = model
    set_seed(2)
    return learn,kd

class Spy(Callback):
    "After every training loss: inputs, prediction, loss and what it should be"
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, f=noop): self.f,self.seen = f,[]
    def after_loss(self): self.seen.append(dict(x=self.xb[0].clone(), pred=self.pred.detach(), loss=self.learn.loss.item(), grad=self.learn.loss_grad.item(), f=self.f(self.learn)))

class Raw(Callback):
    "The inputs before anyone has mixed them"
    order,run_valid = -5,False
    def before_batch(self): self.images = self.xb[0].clone()

class Inputs:
    "Everything that a model is given"
    def __init__(self, model): self.x,self.hook = [],model.register_forward_pre_hook(lambda m,inp: self.x.append(inp[0].clone()))
    def __enter__(self): return self
    def __exit__(self, *args): self.hook.remove()

def attention_by_hand(a, b):
    a,b = [F.normalize((o**2).mean(1).flatten(1)) for o in (a,b)]
    return ((a-b)**2).mean()

def kd_by_hand(learn, teacher):
    "The three terms with their weights, by hand, for the batch in `learn`"
    s,t,x = deepcopy(learn.model),teacher.model.eval(),learn.xb[0]
    with torch.no_grad():
        s0 = s[0](x); s1 = s[1](s0); t0 = t[0](x); t1 = t[1](t0)
        z,zt = s[2:](s1),t[2:](t1)
        p,q = (zt/4).softmax(1),(z/4).softmax(1)
        soft = 16*(p*(p/q).log()).sum(1).mean()
        hint = ((learn.knowledge_distillation.features.modules[1][0](s1)-t1)**2).mean()
        return soft + 1000*(attention_by_hand(s0,t0)+attention_by_hand(s1,t1)) + 100*hint

def clean(learn, teacher): return n_hooks(learn.model)==0 and n_hooks(teacher.model)==0

# MixUp and CutMix
def mixed_total(learn, teacher):
    mix = next(c for c in learn.cbs if isinstance(c, MixHandler))
    ce = [F.cross_entropy(learn.pred, tensor(y[0]), reduction='none') for y in (learn.yb, mix.yb1)]
    task = (mix.lam*ce[0] + (1-mix.lam)*ce[1]).mean()
    return (.5*task + .5*kd_by_hand(learn, teacher)).item()

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mix_teacher_sees_the_mixed_inputs_and_total_is_the_formula(dls, teacher, mix):
    learn,_ = distilled(dls, teacher, mix(), Raw(), Spy(lambda l: (l.raw.images, inputs.x[-1], mixed_total(l, teacher))))
    lf = learn.loss_func
    with Inputs(teacher.model) as inputs: learn.fit(2)
    eq(len(learn.spy.seen), 8)
    for o in learn.spy.seen:
        _,seen,total = o['f']
        assert torch.equal(seen, o['x'])
        close(o['loss'], total, eps=1e-4)
    assert sum(not torch.equal(o['x'], o['f'][0]) for o in learn.spy.seen) >= 6
    assert learn.loss_func is lf

@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('error', [CancelFitException, CancelTrainException, CancelBatchException])
@pytest.mark.parametrize('event', ['before_batch','after_loss'])
def test_mix_cancelled_fit_puts_the_loss_back_and_leaves_no_hook(dls, teacher, mix, error, event):
    def stop(cb):
        if cb.training: raise error
    learn,_ = distilled(dls, teacher, mix(), Callback(**{event:stop}))
    lf = learn.loss_func
    learn.cbs[-1].order = KnowledgeDistillation.order+.1
    learn.fit(1)
    assert learn.loss_func is lf and clean(learn, teacher)

class Hide(Callback):
    "Takes labels away, as a data set with labels of -1 would"
    order,run_valid = -5,False
    def __init__(self, every): self.every = every
    def before_batch(self):
        self.labels = tensor(self.yb[0]).clone()
        self.labels[::self.every] = -1
        self.learn.yb = (self.labels,)

def hidden_total(learn, teacher):
    "The task loss over the labelled mass, and the distillation of everything"
    mix = next(c for c in learn.cbs if isinstance(c, MixHandler))
    y = learn.hide.labels
    y1 = y[learn.shuffles[-1]]
    both = [(w, F.cross_entropy(learn.pred, o.clamp(min=0), reduction='none'), (o>=0).float()) for w,o in ((mix.lam,y), (1-mix.lam,y1))]
    mass = sum((w*k).sum() for w,_,k in both)
    task = sum((w*k*ce).sum() for w,ce,k in both) / mass if mass else 0.
    return (.5*task + .5*kd_by_hand(learn, teacher)).item()

@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('every', [2, 1])
def test_mix_labels_of_minus_one_count_for_distillation_only(dls, teacher, mix, every, monkeypatch):
    learn,_ = distilled(dls, teacher, mix(), Hide(every), Spy(lambda l: hidden_total(l, teacher)))
    learn.shuffles,perm = [],torch.randperm
    monkeypatch.setattr(torch, 'randperm', lambda *a, **k: learn.shuffles.append(perm(*a, **k)) or learn.shuffles[-1])
    learn.fit(1)
    eq(len(learn.spy.seen), 4)
    for o in learn.spy.seen: close(o['loss'], o['f'], eps=1e-4)

# Mixed precision
class Moves(Callback):
    "The weights of student and adapter before and after every batch"
    order,run_valid = 55,False
    def before_fit(self): self.seen = []
    def _now(self): return torch.cat([p.detach().flatten() for p in self.model.parameters()]),torch.cat([p.detach().flatten().clone() for p in self.knowledge_distillation.features.params])
    def before_batch(self): self.old = self._now()
    def after_batch(self): self.seen.append(tuple(not torch.equal(a,b) for a,b in zip(self.old, self._now())))

@pytest.mark.parametrize('mode', ['fp16','bf16'])
def test_mixed_precision_losses_in_float32_and_close_to_full_precision(dls, teacher, mode, monkeypatch):
    seen,canonical,pairs_loss = [],FeaturePairs.canonical,FeatureLoss.pairs_loss
    def _canonical(self, fs, ft):
        seen.append({f.dtype for f in (*fs,*ft)})
        return canonical(self, fs, ft)
    def _pairs_loss(self, modules, pairs, pos=0.):
        res = pairs_loss(self, modules, pairs, pos)
        if torch.is_grad_enabled(): eq(({o.dtype for p in pairs for o in p}, res.dtype, torch.is_autocast_enabled('cpu')), ({torch.float32}, torch.float32, False))
        return res
    monkeypatch.setattr(FeaturePairs, 'canonical', _canonical)
    monkeypatch.setattr(FeatureLoss, 'pairs_loss', _pairs_loss)
    def run(*cbs, epochs=2, lr=1e-3):
        learn,kd = distilled(fixed(dls, 16), teacher, Moves(), *cbs, opt_func=partial(SGD, mom=.9))
        learn.fit(epochs, lr)
        return learn,kd
    def mixed(): return CPUMixedPrecision(mode, **(dict(init_scale=1024.) if mode=='fp16' else {}))
    (_,kd32),n = run(),len(seen)
    spy = Spy(lambda l: (l.pred.dtype, l.loss_grad.dtype, torch.is_autocast_enabled('cpu')))
    learn,kd = run(mixed(), spy)
    half = dict(fp16=torch.float16, bf16=torch.bfloat16)[mode]
    assert {half} in seen[n:] and {half} not in seen[:n]  # autocast was on
    eq({o['f'] for o in spy.seen}, {(torch.float32, torch.float32, True)})
    eq(learn.moves.seen, [(True,True)]*8)
    eps = torch.finfo(half).eps
    # Half precision rounds a feature about 12 times: input, weights, convolution and BatchNorm of two layers, pooling, the three of the head.
    # Independent errors of half a unit add up to sqrt(12)/2 eps, and a squared difference doubles them. No steps, as training amplifies differences
    (_,a),(_,b) = run(mixed(), epochs=1, lr=0.),run(epochs=1, lr=0.)
    for c in columns: np.testing.assert_allclose(a.history[c], b.history[c], rtol=4*eps)
    # The backward pass rounds as often again. SGD feels a scale that stays
    for a,b,start in zip(kd.features.params, kd32.features.params, AdapterStart.of(dls, teacher)): assert (a-b).norm() < 8*eps*(b-start).norm()

class AdapterStart:
    @staticmethod
    def of(dls, teacher):
        "The adapter's weights before the first step"
        got = []
        learn,kd = distilled(fixed(dls, 16), teacher, Spy(lambda l: got or got.extend(p.detach().clone() for p in l.knowledge_distillation.features.params)))
        learn.fit(1)
        return got

def test_fp16_overflow_skips_the_adapters_too(dls, teacher):
    learn,_ = distilled(dls, teacher, CPUMixedPrecision('fp16', init_scale=2.**100, growth_interval=1000), Moves(), opt_func=SGD)
    learn.fit(1, 1e-3)
    eq(learn.moves.seen, [(False,False)]*4)

def test_fp16_weight_that_starts_at_zero(dls, teacher):
    learn,kd = distilled(dls, teacher, CPUMixedPrecision('fp16', init_scale=1024.), Moves(), weight=lambda pos: 0. if pos < .5 else 1., opt_func=SGD)
    learn.fit(1, 1e-3)
    eq([a for _,a in learn.moves.seen], [False,False,True,True])

# Steps
def plain_net(*cs): return nn.Sequential(*[nn.Sequential(nn.Conv2d(i,o,3,2,1), nn.Tanh()) for i,o in zip((3,*cs),cs)], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cs[-1],3))

def weights(learn): return [p.detach().clone() for p in (*learn.model.parameters(), *learn.knowledge_distillation.features.params)]

def test_gradient_accumulation_equals_one_big_batch(dls, teacher):
    def run(bs, *cbs):
        learn,_ = distilled(fixed(dls, bs), teacher, *cbs, model=seeded(plain_net, 4, 8, seed=3), opt_func=partial(SGD, mom=.9))
        learn.fit(1, .05)
        return learn
    spy = Spy()
    big,small,other = run(32),run(8, GradientAccumulation(32), spy, Moves()),run(8)
    # The weights move by up to .4. Sums of 32 gradients in another order differ by 32*2**-24 of that, and by a few times more where they cancel
    for a,b in zip(weights(big), weights(small)): assert torch.allclose(a, b, rtol=0, atol=2**-17), (a-b).abs().max()
    assert not all(torch.allclose(a, b, atol=1e-4) for a,b in zip(weights(big), weights(other)))
    eq(small.moves.seen, ([(False,False)]*3 + [(True,True)])*2)
    assert spy.seen[0]['grad'] == spy.seen[0]['loss']  # the spy stands before the division

def test_gradient_accumulation_divides_the_whole_loss(dls, teacher):
    late = Spy()
    late.order = GradientAccumulation.order+.5
    learn,_ = distilled(fixed(dls, 8), teacher, GradientAccumulation(32), late)
    learn.fit(1)
    for o in late.seen: close(o['grad'], o['loss']/4, eps=1e-5)

def test_gradient_clip_bounds_the_step_of_the_combined_loss(dls, teacher):
    def moved(*cbs):
        learn,_ = distilled(fixed(dls, 64), teacher, *cbs, opt_func=SGD)
        old = torch.cat([p.detach().flatten().clone() for p in learn.model.parameters()])
        learn.fit(1, 1e-3, wd=0)
        return (torch.cat([p.detach().flatten() for p in learn.model.parameters()]) - old).norm().item()
    close(moved(GradientClip(.01)), 1e-5, eps=2e-7)
    assert moved() > 1e-3

# What watches the columns
def test_early_stopping_ends_the_fit_and_leaves_nothing(dls, teacher):
    learn,kd = distilled(dls, teacher, EarlyStoppingCallback(monitor='valid_loss', min_delta=100., patience=2))
    learn.fit(9)
    eq(len(kd.history), 3)
    assert clean(learn, teacher)

class States(Callback):
    "The student after every epoch"
    order = 99
    def before_fit(self): self.seen = []
    def after_epoch(self): self.seen.append(state(self.model))

@pytest.mark.parametrize('monitor,comp', [('valid_loss',np.less), ('train_soft_target',np.less), ('train_soft_target',np.greater), ('train_fitnet',np.greater)])
def test_save_model_brings_back_the_epoch_with_the_best_column(dls, teacher, tmp_path, monitor, comp):
    learn,kd = distilled(dls, teacher, SaveModelCallback(monitor=monitor, comp=comp, with_opt=True), States(), path=tmp_path)
    learn.fit(3, 1e-2)
    values = L(learn.recorder.values).itemgot(1) if monitor == 'valid_loss' else kd.history[monitor.removeprefix('train_')].tolist()
    best = int((np.argmin if comp is np.less else np.argmax)(values))
    eq([same_state(o, state(learn.model)) for o in learn.states.seen], [i==best for i in range(3)])

def test_reduce_lr_on_plateau_of_a_term_slows_the_adapter_too(dls, teacher):
    lrs = Spy(lambda l: (l.opt.hypers[-1]['lr'], l.knowledge_distillation.adapter_opt.opt.hypers[-1]['lr']))
    learn,kd = distilled(dls, teacher, ReduceLROnPlateau(monitor='train_soft_target', comp=np.less, min_delta=100., patience=1), lrs)
    learn.fit(4, 1e-2)
    np.testing.assert_allclose([o['f'][0] for o in lrs.seen[3::4]], [1e-2,1e-2,1e-3,1e-4])
    np.testing.assert_allclose([o['f'][1] for o in lrs.seen[3::4]], [1e-2,1e-2,1e-3,1e-4])

def test_csv_logger_has_a_column_for_every_term(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, CSVLogger(), path=tmp_path)
    learn.fit(2)
    df = learn.csv_logger.read_log()
    eq(list(df.columns), ['epoch','train_loss','valid_loss','accuracy',*shown.values(),'time'])
    for c in columns: np.testing.assert_allclose(df[shown[c]], kd.history[c], rtol=1e-6)
    assert df.time.str.fullmatch(r'\d\d:\d\d').all()

def test_csv_logger_keeps_its_columns_where_nothing_is_distilled(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, CSVLogger(), weight=0., path=tmp_path)
    learn.fit(1)
    df = learn.csv_logger.read_log()
    assert df.time.str.fullmatch(r'\d\d:\d\d').all()
    eq(len(kd.history), 0)

def test_train_metrics_stay_under_their_names(dls, teacher):
    learn,kd = distilled(dls, teacher)
    learn.remove_cb(Recorder)
    learn.add_cb(Recorder(train_metrics=True))
    rows = []
    learn.logger = rows.append
    learn.fit(1)
    row = dict(zip(learn.recorder.metric_names, rows[0]))
    eq(list(row), ['epoch','train_loss','train_accuracy','valid_loss','valid_accuracy',*shown.values(),'time'])
    for c in columns: close(row[shown[c]], kd.history[c][0], eps=1e-6)
    close(row['valid_loss'], learn.validate()[0], eps=1e-5)  # the task loss

def test_show_graph_draws_the_combined_loss_and_the_task_loss(dls, teacher, monkeypatch):
    learn,kd = distilled(dls, teacher, ShowGraphCallback())
    drawn = []
    class Bar:
        def update(self, *a): pass
        def update_graph(self, graphs, *bounds): drawn.append(graphs)
    class Progress(Callback):
        order = 60
        def before_fit(self): self.mbar = Bar()
    Progress.name = 'progress'
    spy = Spy()
    learn.add_cbs([Progress(),spy])
    learn.fit(2)
    (_,train),(_,valid) = drawn[-1]
    eq(len(train), 8)
    close(train[0].item(), spy.seen[0]['grad'], eps=1e-3)
    close(valid[-1], learn.validate()[0], eps=1e-5)

def test_terminate_on_nan_ends_the_fit_without_blaming_the_teacher(dls, teacher):
    class Break(Callback):
        order,run_valid = -5,False
        def before_batch(self):
            if self.iter == 2: self.model[0][0].weight.data.fill_(math.nan)
    learn,kd = distilled(dls, teacher, TerminateOnNaNCallback(), Break(), spy := Spy())
    learn.fit(3)
    eq([math.isfinite(o['loss']) for o in spy.seen], [True,True,False])
    assert clean(learn, teacher)

# What changes the model or the schedule
def test_channels_last_gives_the_same_losses(dls, teacher):
    def run(*cbs):
        learn,kd = distilled(fixed(dls, 16), teacher, *cbs)
        learn.fit(1)
        return learn,kd.history
    (a,ha),(b,hb) = run(),run(ChannelsLast())
    assert b.model[1][0].weight.is_contiguous(memory_format=torch.channels_last) and not b.model[1][0].weight.is_contiguous()
    np.testing.assert_allclose(hb, ha, rtol=1e-3)

def test_param_scheduler_drives_the_adapter(dls, teacher):
    class Steps(Callback):
        order,run_valid = KnowledgeDistillation.order+.1,False
        seen = []
        def after_step(self): self.seen.append((self.opt.hypers[-1]['lr'], self.knowledge_distillation.adapter_opt.opt.hypers[-1]['lr']))
    learn,_ = distilled(dls, teacher, ParamScheduler({'lr':SchedLin(1e-2,0.)}), Steps())
    learn.fit(2)
    a,b = zip(*Steps.seen)
    np.testing.assert_allclose(a, [1e-2*(1-i/8) for i in range(8)])
    eq(a, b)

def test_bn_freeze_keeps_frozen_statistics(dls, teacher):
    def run(*cbs):
        learn,_ = distilled(dls, teacher, *cbs)
        for p in learn.model[0][1].parameters(): p.requires_grad_(False)
        old = state(learn.model)
        learn.fit(1)
        return [torch.equal(old[k], learn.model.state_dict()[k]) for k in ('0.1.running_mean','1.1.running_mean')]
    eq((run(BnFreeze()), run()), ([True,False], [False,False]))

def test_short_epoch_counts_the_batches_it_ran(dls, teacher):
    spy = Spy()
    learn,kd = distilled(dls, teacher, ShortEpochCallback(.5), spy)
    learn.fit(2)
    eq(len(spy.seen), 6)
    for i in 0,1: assert kd.history.total_loss[i] == pytest.approx(np.mean([o['loss'] for o in spy.seen[3*i:3*i+3]]), rel=2**-20)  # a few float32
    assert clean(learn, teacher)

# What looks on
def test_fetch_preds_fetches_the_student(dls, teacher):
    learn,kd = distilled(dls, teacher, FetchPredsCallback())
    rows = []
    learn.logger = rows.append
    learn.fit(2)
    preds = learn.fetch_preds.preds[0]
    learn.remove_cb(FetchPredsCallback)  # it would wait for the lock of get_preds for ever
    assert torch.allclose(preds, learn.get_preds()[0], atol=1e-6)
    eq([len(r) for r in rows], [9,9])
    close(rows[1][-2], kd.history.fitnet[1], eps=1e-6)
    eq(len(learn.cbs), len(set(map(id, learn.cbs))))

def test_activation_stats_are_those_of_the_training_batches(dls, teacher):
    def stats(w):
        learn,kd = distilled(fixed(dls, 16), teacher, ActivationStats(every=1), weight=w)
        learn.fit(1, 0., wd=0)
        assert clean(learn, teacher)
        return learn.activation_stats.stats
    a,b = stats(.5),stats(0.)
    eq(len(a), 4)
    eq(a[0], b[0]); eq(a[3], b[3])

def test_tensor_board_gets_the_terms(dls, teacher, monkeypatch):
    got,traced = {},[]
    class Writer:
        def __init__(self, log_dir=None): pass
        def add_graph(self, model, x): traced.append(torch.jit.trace(model, x))
        def add_scalar(self, n, v, i): got.setdefault(n, []).append(float(v))
        def add_figure(self, *a): pass
        def close(self): pass
    monkeypatch.setitem(sys.modules, 'tensorboard', types.ModuleType('tensorboard'))
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.delitem(sys.modules, 'fastai.callback.tensorboard', raising=False)
    from fastai.callback.tensorboard import TensorBoardCallback
    monkeypatch.delitem(sys.modules, 'fastai.callback.tensorboard')
    learn,kd = distilled(dls, teacher, TensorBoardCallback())
    learn.fit(2)
    eq(len(traced), 1)
    eq(len(got['train_loss']), 2*(4+2+1))  # a number for each training and validation batch, and for the batch that is drawn
    for c in columns: np.testing.assert_allclose(got[shown[c]], kd.history[c], rtol=1e-6)

def test_wandb_gets_the_terms_and_predictions(dls, teacher, monkeypatch):
    logged,rows,config = [],[],{}
    wandb = types.ModuleType('wandb')
    wandb.run,wandb.config = types.SimpleNamespace(step=0, summary={}),types.SimpleNamespace(update=lambda o, **kw: config.update(o))
    wandb.log,wandb.watch,wandb.Image,wandb.Table = lambda o, **kw: logged.append(o),noop,lambda *a, **kw: 'image',lambda *a, **kw: types.SimpleNamespace(add_data=lambda *row: rows.append(row))
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb', raising=False)
    import fastai.callback.wandb as fw
    monkeypatch.setattr(fw, '_format_config', noop)  # it cannot write down a Learner whose items are in memory
    monkeypatch.delitem(sys.modules, 'fastai.callback.wandb')
    learn,kd = distilled(dls, teacher, fw.WandbCallback(n_preds=4))
    learn.fit(2)
    for c in columns: np.testing.assert_allclose([o[shown[c]] for o in logged if shown[c] in o], kd.history[c], rtol=1e-6)
    eq(len(rows), 4)
    assert any('KnowledgeDistillation' in k for k in config)

# Recurrent models
class TinyLM(nn.Module):
    "Returns what fastai's language models do: logits, and the raw and the dropped-out states of its one layer"
    def __init__(self, n=8):
        super().__init__()
        self.emb,self.rnn,self.head,self.resets = nn.Embedding(5,n),nn.GRU(n, n, batch_first=True),nn.Linear(n,5),0
        self.reset()
    def reset(self): self.h,self.resets = None,getattr(self, 'resets', 0)+1
    def forward(self, x):
        o,h = self.rnn(self.emb(x), self.h)
        self.h = h.detach()
        return self.head(o),[o],[o]

def test_rnn_callbacks_regularise_beside_the_terms_and_reset_both_models():
    x = torch.randint(0, 5, (8,7), generator=torch.Generator().manual_seed(0))
    dl = DataLoader(list(zip(x[:,:-1], x[:,1:])), bs=4, num_workers=0)
    t,s = seeded(TinyLM, 12),seeded(TinyLM, 6, seed=1)
    last = Spy(lambda l: (l.rnn.out.pow(2).mean() + 2*(l.rnn.raw_out[:,1:]-l.rnn.raw_out[:,:-1]).pow(2).mean()).item())
    last.order = RNNRegularizer.order+.5
    starts = []
    class Starts(Callback):
        order,run_valid = 99,False
        def before_train(self): starts.append((t.h, self.model.h))
    learn = Learner(DataLoaders(dl, dl), s, loss_func=CrossEntropyLossFlat(), cbs=[*rnn_cbs(alpha=1., beta=2.), KnowledgeDistillation(t), last, Starts()])
    learn.remove_cb(ProgressCallback); learn.logger = noop
    with pytest.warns(UserWarning, match='no better than'): learn.fit(2)
    eq(len(last.seen), 4)
    for o in last.seen: close(o['grad'], o['loss']+o['f'], eps=1e-5)
    eq(starts, [(None,None)]*2)
    assert t.h is not None
