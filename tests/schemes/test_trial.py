"`trial`: what is paired, what is measured, and that an interrupted trial ends as if nothing had happened"
import hashlib, random, signal, subprocess, sys

import matplotlib.pyplot as plt
import pytest
from scipy import stats
from fastai.callback.all import *
from fastkd.losses.contrastive import CRD
from fastkd.losses.features import FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.schemes.methods import LabelSmoothing
from fastkd.schemes.runner import seeded as seeded_loaders
from fastkd.schemes.trial import trial
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.resume import Resume
from fastkd.training.schedules import LearnableT
from interrupted import *

pytestmark = pytest.mark.filterwarnings('ignore:The teacher')  # trained so briefly, or not at all, it can be poor

@pytest.fixture
def teacher(): return seeded(net, 16, 8, p=0.).eval()

def make(dls=None, **kwargs): return learner(net(8,5), dls, **kwargs)

two = {'alone':None, 'distilled':dict(weight=.9)}
def run(teacher, methods=two, seeds=2, make=make, n_epoch=2, lr_max=1e-2, **kwargs):
    return trial(make, teacher, methods, seeds, n_epoch, lr_max, **kwargs)

def values(res): return res.runs.drop(columns='seconds')
def of(res, method): return values(res)[res.runs.method==method].drop(columns='method').values.tolist()
def digest(*ts): return hashlib.md5(b''.join(t.detach().numpy().tobytes() for t in ts)).hexdigest()

class Seen(Callback):
    "What each training batch was, and the random state before its forward pass; a list per fit in `fits`"
    run_valid,fits = False,[]
    def before_fit(self): self.fits.append([])
    def before_batch(self): self.fits[-1].append((digest(*self.xb, *self.yb), digest(torch.get_rng_state())))

@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(Seen, 'fits', [])
    return Seen.fits

# Pairing
def test_weight_0_gives_exactly_the_numbers_of_the_student_alone(teacher):
    "The student has dropout, its loaders shuffle, and a method with adapters was trained before"
    methods = {'alone':None, 'hint':dict(loss=FitNet(), weight=.5), 'off':dict(weight=0)}
    res = run(teacher, methods)
    assert of(res, 'off') == of(res, 'alone') != of(res, 'hint')
    assert same_state(state(res.student('off').model), state(res.student('alone').model))

@pytest.mark.parametrize('shared', [True, False], ids=['one set of loaders','loaders made by make'])
def test_within_a_seed_all_methods_see_the_same_batches_and_random_numbers(teacher, seen, shared):
    dls = vectors() if shared else None
    methods = {'alone':None, 'smoothed':'smooth', 'distilled':{}, 'hint':dict(loss=[SoftTarget(), FitNet()]),
               'crd':dict(loss=CRD(dim=4, n_negatives=4)), 'own':partial(make, dls)}
    res = run(teacher, methods, make=partial(make, dls), cbs=Seen)
    assert len(seen) == 12 and all(len(o) == 8 for o in seen)
    assert all(o == seen[0] for o in seen[:6]) and all(o == seen[6] for o in seen[6:])
    assert seen[0] != seen[6] and seen[0][:4] != seen[0][4:]
    assert of(res, 'own') == of(res, 'alone')

def test_a_run_is_what_one_gets_by_hand(teacher):
    res = run(teacher, seeds=[5])
    for method,cbs in (('alone',[]), ('distilled',[KnowledgeDistillation(teacher, weight=.9)])):
        set_seed(5)
        learn = make()
        set_seed(5)
        for i,dl in enumerate(learn.dls.loaders): dl.rng = random.Random(5+i)
        learn.fit_one_cycle(2, 1e-2, cbs=cbs)
        assert of(res, method) == [[5, *learn.validate()]]
        assert same_state(state(res.student(method).model), state(learn.model))

def test_loaders_of_pytorch_are_seeded_too(teacher, seen):
    ds = vectors().train.dataset
    data = [(x.as_subclass(Tensor), int(y)) for x,y in ds]
    def loaders():
        dl = torch.utils.data.DataLoader(data, 8, shuffle=True, generator=torch.Generator())
        return DataLoaders(dl, torch.utils.data.DataLoader(data, 16), device='cpu')
    dls = loaders()
    run(teacher, seeds=2, make=partial(make, dls), cbs=Seen)
    batches = [[b for b,_ in o] for o in seen]
    assert batches[0] == batches[1] and batches[2] == batches[3] and batches[0] != batches[2]

def test_random_states_loaders_and_teacher_are_left_as_they_were():
    dls = vectors()
    t = make(dls)
    t.model.train()
    before = torch.get_rng_state(),random.getstate(),np.random.get_state()[1].tolist(),[o.rng.getstate() for o in dls.loaders]
    weights,cbs = state(t.model),list(t.cbs)
    run(t, make=partial(make, dls))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2] and [o.rng.getstate() for o in dls.loaders] == before[3]
    assert same_state(weights, state(t.model)) and list(t.cbs) == cbs and all(m.training for m in t.model.modules())

def test_make_can_ask_for_the_seed(teacher):
    asked = []
    def f():
        asked.append(torch.initial_seed())
        return make()
    run(teacher, seeds=[7,3], make=f)
    assert asked == [7, 7,7, 3,3]  # the first only to check

def test_losses_and_callbacks_with_a_state_start_afresh_in_every_run(teacher):
    class Counts(Callback):
        n,runs = 0,[]
        def before_fit(self):
            self.n += 1
            self.runs.append(self.n)
    T,counts = LearnableT(),Counts()
    res = run(teacher, {'learnt':dict(loss=SoftTarget(T=T), weight=.9)}, 2, cbs=[counts, ReduceLROnPlateau()])
    assert Counts.runs == [1,1] and counts.n == 0 and T.theta.item() == 1.
    assert of(res, 'learnt')[1] == of(run(teacher, {'learnt':dict(loss=SoftTarget(T=LearnableT()), weight=.9)}, [1]), 'learnt')[0]

# The result
def test_table_agrees_with_scipy(teacher):
    res = run(teacher, seeds=4)
    a,b = (np.array(of(res, o)) for o in two)
    t = res.table
    assert list(t.index) == list(two) and t.seeds.tolist() == [4,4] and res.metric == 'accuracy'
    for i,m in enumerate(('valid_loss','accuracy'), 1):
        assert t[m].tolist() == pytest.approx([a[:,i].mean(), b[:,i].mean()], rel=1e-12)
        assert t[f'{m}_sd'].tolist() == pytest.approx([a[:,i].std(ddof=1), b[:,i].std(ddof=1)], rel=1e-12)
    ttest = stats.ttest_rel(b[:,2], a[:,2])
    low,high = ttest.confidence_interval(.95)
    row = t.loc['distilled']
    assert row.difference == pytest.approx((b-a)[:,2].mean(), abs=1e-12)
    assert (row.low, row.high) == pytest.approx((low, high), abs=1e-9)
    assert row.se == pytest.approx((b-a)[:,2].std(ddof=1)/2, rel=1e-9)
    assert t.loc['alone',['difference','se']].tolist() == [0,0]

def test_runs_and_config_are_what_the_report_needs(teacher):
    res = run(teacher)
    assert list(res.runs.columns) == ['method','seed','valid_loss','accuracy','seconds'] and (res.runs.seconds > 0).all()
    assert list(zip(res.runs.method, res.runs.seed)) == [('alone',0), ('distilled',0), ('alone',1), ('distilled',1)]
    c = res.config
    assert (c['n_epoch'], c['lr_max'], c['seeds'], c['metrics']) == (2, .01, [0,1], ['accuracy'])
    assert c['methods'] == {'alone':'the student alone', 'distilled':'KnowledgeDistillation(teacher, weight=0.9)'}
    assert 'parameters' in c['student'] and 'weights' in c['teacher'] and 'PyTorch' in c['versions']
    assert repr(res) == res.verdict and 'distilled' in res._repr_html_()

def test_one_seed_has_no_interval_and_says_so(teacher):
    res = run(teacher, seeds=1)
    assert res.table[['accuracy_sd','se','low','high']].isna().loc['distilled'].all() and res.table.notna().difference.all()
    assert 'one seed, so there is no interval and no conclusion' in repr(res)

def test_student_is_the_best_seed_of_the_best_method(teacher):
    res = run(teacher, seeds=4, make=partial(make, metrics=error_rate))
    assert res.metric == 'error_rate'
    best = res.table.error_rate.idxmin()
    assert res.best == best and res.student().validate()[1] == res.runs[res.runs.method==best].error_rate.min()
    other = next(o for o in two if o != best)
    assert res.student(other).validate()[1] == res.runs[res.runs.method==other].error_rate.min()
    assert not any(isinstance(c, KnowledgeDistillation) for c in res.student().cbs)
    with pytest.raises(ValueError, match="method='x'.*choose from alone, distilled"): res.student('x')

def test_without_metrics_the_validation_loss_decides(teacher):
    res = run(teacher, make=partial(make, metrics=[]))
    assert res.metric == 'valid_loss' and 'in valid_loss' in repr(res) and res.best == res.table.valid_loss.idxmin()

def test_metrics_of_the_same_name_get_numbers(teacher):
    res = run(teacher, seeds=1, make=partial(make, metrics=[partial(top_k_accuracy, k=1), partial(top_k_accuracy, k=3)]))
    assert list(res.runs)[3:5] == ['top_k_accuracy','top_k_accuracy#2'] and (res.runs['top_k_accuracy#2'] == 1).all()

def test_plot_has_a_line_per_seed_on_the_given_axes(teacher):
    res = run(teacher, seeds=3)
    fig,ax = plt.subplots()
    assert res.plot(ax) is ax and [o.get_text() for o in ax.get_yticklabels()] == list(two)
    dots = [o for o in ax.lines if o.get_marker()=='o']
    assert sorted(tuple(o.get_xdata()) for o in dots) == sorted(zip(*(np.array(of(res, m))[:,2] for m in two)))
    assert res.plot(figsize=(3,2)).figure.get_size_inches().tolist() == [3,2]
    assert 'One seed' in run(teacher, seeds=1).plot().get_title('left')
    plt.close('all')

# Label smoothing
def by_hand(loss_func, valid_loss_func, make, seed=0):
    set_seed(seed)
    learn = make()
    with seeded_loaders(learn.dls, seed):
        learn.loss_func = loss_func
        learn.fit_one_cycle(2, 1e-2)
        learn.loss_func = valid_loss_func
        return [seed, *learn.validate()]

def test_smoothing_trains_with_smoothed_labels_and_validates_without(teacher):
    res = run(teacher, {'alone':None, 'smoothed':'smooth'}, 1)
    assert of(res, 'smoothed') == [pytest.approx(by_hand(LabelSmoothingCrossEntropyFlat(), CrossEntropyLossFlat(), make), rel=1e-6)]
    assert of(res, 'smoothed')[0][1] != of(res, 'alone')[0][1]

ways = dict(flat=CrossEntropyLossFlat(), module=nn.CrossEntropyLoss(), function=F.cross_entropy,
            partial=partial(F.cross_entropy, weight=torch.ones(3)))

@pytest.mark.parametrize('lf', ways.values(), ids=ways)
def test_smoothing_knows_every_way_to_write_cross_entropy(teacher, lf):
    res = run(teacher, {'smoothed':'smooth'}, 1, partial(make, loss_func=lf))
    assert of(res, 'smoothed') == [pytest.approx(by_hand(nn.CrossEntropyLoss(label_smoothing=.1), lf, make), rel=1e-6)]

def test_smoothing_keeps_class_axis_and_ignored_labels():
    x,y = torch.randn(4,3,5,5),torch.randint(0, 3, (4,5,5))
    y[0,:2] = 9
    class Keep(Callback):
        run_valid = False
        def after_loss(self): self.learn.kept = self.loss.item()
    dl = DataLoader(list(zip(x, y)), bs=4)
    learn = learner(nn.Conv2d(3,3,1), DataLoaders(dl, dl, device='cpu'), loss_func=CrossEntropyLossFlat(axis=1, ignore_index=9), metrics=[])
    expected = F.cross_entropy(learn.model(x), y, ignore_index=9, label_smoothing=.2).item()
    learn.fit(1, 0., cbs=[LabelSmoothing(.2), Keep()])
    assert learn.kept == pytest.approx(expected, rel=1e-6)

def test_smoothing_works_beside_mixup_and_leaves_the_loss_function_as_it_was():
    learn = seeded(make)
    lf = learn.loss_func
    learn.fit(2, 1e-2, cbs=[LabelSmoothing(), MixUp()])
    assert learn.loss_func is lf and lf.func.label_smoothing == 0
    assert learn.recorder.values[-1][1:] == learn.validate()  # no smoothing in the fit's validation
    with pytest.raises(KeyboardInterrupt): learn.fit(2, 1e-2, cbs=[LabelSmoothing(), MixUp(), Stop(1)])
    assert learn.loss_func is lf and lf.func.label_smoothing == 0

def test_default_methods_smooth_where_that_makes_sense(teacher):
    res = run(teacher, None, 1)
    assert res.methods == {'alone':None, 'label smoothing':'smooth', 'distilled':{}}
    def multi():
        dls = vectors()
        for dl in dls.loaders: dl.dataset = [(x, F.one_hot(torch.as_tensor(y), 3).float()) for x,y in dl.dataset]
        return make(dls, loss_func=BCEWithLogitsLossFlat(), metrics=accuracy_multi)
    res = run(teacher, None, 2, multi)
    assert list(res.methods) == ['alone','distilled']
    assert 'there is no label smoothing to compare with, because the task is multi-label' in repr(res)
    with pytest.raises(ValueError, match=r"methods\['s'\]: label smoothing makes no sense here, because the task is multi-label"):
        run(teacher, {'s':'smooth'}, make=multi)
    res = run(teacher, None, 1, partial(make, loss_func=LabelSmoothingCrossEntropyFlat()))
    assert 'LabelSmoothingCrossEntropy, not cross-entropy' in repr(res)

# Resuming
script = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from interrupted import *
from fastkd.schemes.trial import trial
class Kill(Callback):
    n = 0
    def before_fit(self): Kill.n += 1
    def before_train(self):
        if Kill.n == {kill_at} and self.epoch == 1: os.kill(os.getpid(), signal.SIGKILL)
teacher = seeded(net, 16, 8, p=0.).eval()
def make(): return learner(net(8,5))
methods = {{'alone':None, 'smoothed':'smooth', 'distilled':dict(weight=.9)}}
res = trial(make, teacher, methods, 2, 2, 1e-2, file={file!r}, cbs=Kill)
print(Kill.n)
"""
def source(file, kill_at=0): return script.format(tests=str(Path(__file__).parents[1]), file=file and str(file), kill_at=kill_at)
def in_process(src): return subprocess.run([sys.executable, '-W', 'ignore', '-c', src], capture_output=True, text=True)

def here(src):
    "Run `src` in this process; number of fits, and the trial"
    ns = {}
    exec(src, ns)
    return ns['Kill'].n,ns['res']

def test_killed_and_called_again_it_repeats_no_finished_run_and_ends_the_same(tmp_path):
    killed = in_process(source(tmp_path/'t', kill_at=5))
    assert killed.returncode == -signal.SIGKILL and not killed.stdout, killed.stderr
    _,whole = here(source(None))
    for left in 2,0:
        n,res = here(source(tmp_path/'t'))
        assert n == left and values(res).equals(values(whole)) and repr(res) == repr(whole)
        assert res.table.drop(columns='seconds').equals(whole.table.drop(columns='seconds'))
        for o in res.methods: assert same_state(state(res.student(o).model), state(whole.student(o).model))
    assert sorted(o.name.rsplit('_', 1)[0] for o in tmp_path.iterdir()) == ['t.pth','t_alone','t_distilled','t_smoothed']

def test_an_interrupted_trial_keeps_finished_runs_in_the_exception(teacher, tmp_path):
    class StopLater(Callback):
        n = 0
        def before_fit(self):
            StopLater.n += 1
            if StopLater.n == 4: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt) as e: run(teacher, seeds=3, cbs=StopLater)
    assert len(e.value.trial.runs) == 3 and e.value.trial.student('alone').validate()
    assert e.value.trial.table.seeds.tolist() == [2,1]  # 'distilled' is paired with 'alone' over the seed that both have
    assert not np.isnan(e.value.trial.table.difference['distilled']) and repr(e.value.trial)
    assert values(run(teacher, seeds=3))[:3].equals(values(e.value.trial))

def test_a_trial_can_be_extended(teacher, tmp_path):
    class Count(Callback):
        n = 0
        def before_fit(self): Count.n += 1
    run(teacher, seeds=2, file=tmp_path/'t', cbs=Count)
    more = {**two, 'own':make}
    res = run(teacher, more, [2,0,1], file=tmp_path/'t', cbs=Count)
    assert Count.n == 4 + 5
    res0 = run(teacher, more, [2,0,1])
    assert values(res).equals(values(res0)) and repr(res) == repr(res0)
    for o in more: assert same_state(state(res.student(o).model), state(res0.student(o).model))

class Other(Callback): "Does nothing"

@pytest.mark.parametrize('change,msg', [
    (dict(n_epoch=3), 'n_epoch: 2 in the file, 3 in this call'),
    (dict(lr_max=.02), 'lr_max: 0.01 in the file, 0.02 in this call'),
    (dict(methods={**two, "distilled":dict(weight=.5)}), r"methods\['distilled'\]: .*weight=0.9\) in the file, .*weight=0.5\) in this"),
    (dict(methods={'alone':None}), r"methods\['distilled'\]: .*, missing in this call"),
    (dict(seeds=1), r'seeds: \[0, 1\] in the file, \[0\], without 1'),
    (dict(make=partial(make, metrics=error_rate)), 'metrics: '),
    (dict(make=lambda: make(vectors(16))), r"data\['Batch size'\]: 8 items in the file, 16 items"),
    (dict(make=lambda: learner(net(8,6))), 'student: Sequential, '),
    (dict(make=partial(make, loss_func=MSELossFlat()), methods={'alone':None}), 'loss: '),
    (dict(make=partial(make, wd=.3)), 'wd: None in the file, 0.3 in this call'),
    (dict(cbs=Other), r"callbacks: \[\] in the file, \['Other'\]"),
], ids=lambda o: str(o)[:25])
def test_a_file_of_another_configuration_is_an_error_that_says_what_differs(change, msg, teacher, tmp_path):
    run(teacher, file=tmp_path/'t')
    before = (tmp_path/'t.pth').read_bytes()
    with pytest.raises(ValueError, match=f"t.pth' is from a different trial .*{msg}"): run(teacher, **{'file':tmp_path/'t', **change})
    assert (tmp_path/'t.pth').read_bytes() == before

def test_another_teacher_or_other_initial_weights_are_another_trial(teacher, tmp_path):
    run(teacher, file=tmp_path/'t')
    other = seeded(net, 16, 8, seed=9)
    with pytest.raises(ValueError, match='different trial .teacher: '): run(other, file=tmp_path/'t')
    def scaled():
        learn = make()
        with torch.no_grad(): learn.model[0][0].weight.mul_(2)
        return learn
    with pytest.raises(ValueError, match='other initial weights than before with seed 0'): run(teacher, file=tmp_path/'t', make=scaled)

def test_files_of_something_else(teacher, tmp_path):
    make().fit(1, cbs=Resume(tmp_path/'fit'))
    with pytest.raises(ValueError, match="fit.pth' is the checkpoint of a fit"): run(teacher, file=tmp_path/'fit')
    (tmp_path/'junk.pth').write_text('junk')
    with pytest.raises(ValueError, match="junk.pth' can't be read"): run(teacher, file=tmp_path/'junk')
    with pytest.raises(TypeError, match='file=3'): run(teacher, file=3)

def test_weights_that_are_gone_are_an_error_only_when_asked_for(teacher, tmp_path):
    run(teacher, seeds=1, file=tmp_path/'t')
    (tmp_path/'t_alone_0.pth').unlink()
    res = run(teacher, seeds=1, file=tmp_path/'t')
    with pytest.raises(FileNotFoundError, match="it had the weights of 'alone'"): res.student('alone')
    assert res.student('distilled')

def test_names_that_are_no_file_names(teacher, tmp_path):
    methods = {'a/b':None, 'a b':dict(weight=.9), 'α=½ …':dict(weight=.5)}
    run(teacher, methods, 1, file=tmp_path/'t')
    res = run(teacher, methods, 1, file=tmp_path/'t')
    for o in methods: assert res.student(o).validate()[0] == of(res, o)[0][1]

def test_a_full_disk_is_a_clear_error_with_the_finished_runs(teacher, tmp_path, monkeypatch, seen):
    "The first two runs fit on it"
    save,n = torch.save,[]
    def full(o, path, *args, **kwargs):
        n.append(path)
        if len(n) <= 5: return save(o, path, *args, **kwargs)
        Path(path).write_bytes(b'half a file')
        raise RuntimeError('[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3: file write failed')
    monkeypatch.setattr(torch, 'save', full)
    args = dict(seeds=3, file=tmp_path/'t', cbs=Seen)
    with pytest.raises(OSError, match="can't be written .*PytorchStreamWriter failed.*free some space") as e: run(teacher, **args)
    assert e.value.trial.runs.seed.tolist() == [0,0,1] and re.search('alone +1 ', str(e.value))
    monkeypatch.setattr(torch, 'save', save)
    assert not [o for o in tmp_path.iterdir() if 'tmp' in o.name]
    assert len(run(teacher, **args).runs) == 6 and len(seen) == 3 + 4

def test_no_space_at_all_is_noticed_before_training(teacher, tmp_path):
    src = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from interrupted import *
from fastkd.schemes.trial import trial
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
class No(Callback):
    def before_fit(self): print('trained')
try: trial(lambda: learner(net(8,5)), net(8,8), seeds=1, n_epoch=1, file={str(tmp_path/'t')!r}, cbs=No)
except OSError as e: print(e)"""
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', src], capture_output=True, text=True)
    assert "t.pth' can't be written" in res.stdout and 'No run is finished.' in res.stdout and 'trained' not in res.stdout, res.stderr
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError): run(teacher, file=tmp_path/'file'/'t')

# Bad input
def test_make_must_return_a_fresh_learner_each_time(teacher, seen):
    learn,model = make(),net(8,5)
    shared = Other()
    for f in (lambda: learn, lambda: learner(model), lambda: learner(nn.Sequential(model, nn.Identity())), lambda: make(cbs=shared),
              lambda: learner(teacher)):
        with pytest.raises(ValueError, match='make returned a learner with a model or callback that an earlier learner, or the teacher'):
            run(teacher, make=f, cbs=Seen)
    two_same = {'alone':None, 'm':lambda: learn, 'n':lambda: learn}
    with pytest.raises(ValueError, match=r"methods\['n'\] returned a learner with a model"): run(teacher, two_same, cbs=Seen)
    assert not seen  # nothing was trained

def test_make_must_draw_its_weights_from_the_seed(teacher):
    g = torch.Generator().manual_seed(0)
    def own():
        learn = make()
        with torch.no_grad(): learn.model[-1].weight.normal_(generator=g)
        return learn
    with pytest.raises(ValueError, match='make returned other initial weights than before with seed 0'): run(teacher, make=own)

@pytest.mark.parametrize('kwargs,error,msg', [
    (dict(make=3), TypeError, 'make=3: pass a function'),
    (dict(make=net(8)), TypeError, 'make=Sequential'),
    (dict(make=lambda: net(8)), TypeError, 'make returned a Sequential'),
    (dict(methods=[None]), TypeError, 'give a dict'),
    (dict(methods={}), ValueError, 'methods is empty'),
    (dict(methods={1:None}), TypeError, 'the name 1'),
    (dict(methods={'d':SoftTarget()}), TypeError, r"methods\['d'\]=SoftTarget.*give a dict of arguments"),
    (dict(methods={'d':'smoth'}), TypeError, r"methods\['d'\]='smoth'"),
    (dict(methods={'d':dict(wieght=1)}), TypeError, r"methods\['d'\]: .*wieght"),
    (dict(methods={'d':dict(weight=2)}), ValueError, r"methods\['d'\]: weight=2"),
    (dict(methods={'d':dict(loss=FitNet(['no']))}), ValueError, r"methods\['d'\]: .*'no'"),
    (dict(methods={'m':lambda: 3}), TypeError, r"methods\['m'\] returned a int"),
    (dict(methods={'m':partial(make, metrics=error_rate)}), ValueError, r"methods\['m'\] returned a learner with the metrics \['error_r"),
    (dict(seeds=0), ValueError, 'seeds=0'),
    (dict(seeds=[]), ValueError, 'seeds is empty'),
    (dict(seeds=[1,1]), ValueError, 'a seed twice'),
    (dict(seeds=[-1]), ValueError, 'seeds has -1'),
    (dict(seeds=['a']), TypeError, "seeds has 'a'"),
    (dict(seeds=2.), TypeError, 'seeds=2.0'),
    (dict(n_epoch=0), ValueError, 'n_epoch=0'),
    (dict(lr_max=-1), ValueError, 'lr_max=-1'),
    (dict(lr_max='1e-3'), TypeError, "lr_max='1e-3'"),
    (dict(cbs=[KnowledgeDistillation(nn.Linear(6,3))]), ValueError, 'cbs has .*distillation is a method'),
    (dict(cbs=lambda: Resume('x')), ValueError, 'cbs has .*if you give it a file'),
    (dict(make=lambda: make(cbs=KnowledgeDistillation(nn.Linear(6,3)))), ValueError, 'make returned .* with a KnowledgeDistillation'),
    (dict(make=partial(make, metrics=lambda p,y: p.mean(0))), TypeError, 'a trial needs metrics that give a number'),
    (dict(teacher=3), TypeError, 'teacher=3'),
    (dict(teacher=None), (TypeError,ValueError), r"methods\['distilled'\]: .*teacher"),
], ids=lambda o: str(o)[:30])
def test_mistakes_are_noticed_before_training(kwargs, error, msg, teacher, seen):
    with pytest.raises(error, match=msg): run(**{'teacher':teacher, 'cbs':Seen, **kwargs})
    assert not seen

def test_data_without_labels_or_validation(teacher, seen):
    x = [(o,) for o,_ in vectors().train.dataset]
    bare,labelled = DataLoader(x, bs=8, n_inp=1),vectors()
    def dls(*dls):
        res = DataLoaders(*dls, device='cpu')
        res.n_inp = 1
        return res
    with pytest.raises(ValueError, match='the validation data has no labels'):
        run(teacher, make=lambda: make(dls(labelled.train, bare)), cbs=Seen)
    with pytest.raises(ValueError, match=r"methods\['alone'\] learns from labels alone, but the training data has none"):
        run(teacher, make=lambda: make(dls(bare, labelled.valid)), cbs=Seen)
    for o in (dls(labelled.train), dls(labelled.train, DataLoader([], bs=8))):
        with pytest.raises(ValueError, match='without validation data'): run(teacher, make=lambda: make(o), cbs=Seen)
    assert not seen
    assert len(run(teacher, {'distilled':dict(weight=1)}, 1, lambda: make(dls(bare, labelled.valid))).runs) == 1

def test_all_methods_are_evaluated_on_the_same_items(teacher):
    dls = vectors()
    few = DataLoaders(dls.train, dls.valid.new(dls.valid.dataset[:10]), device='cpu')
    with pytest.raises(ValueError, match="10 validation items, but make's learner has 16"): run(teacher, {'a':None, 'm':partial(make, few)})

def test_callbacks_that_cannot_be_copied(teacher):
    class Locked(Callback):
        def __deepcopy__(self, memo): raise RuntimeError('locked')
    with pytest.raises(TypeError, match="can't be copied for each run .locked.: pass a function"): run(teacher, cbs=Locked())
    assert len(run(teacher, seeds=1, cbs=lambda: Locked()).runs) == 2

@pytest.mark.filterwarnings('ignore:methods')
def test_a_diverged_run_is_warned_of_and_named_in_the_verdict(teacher):
    with pytest.warns(UserWarning, match=r"methods\['alone'\], seed 0: valid_loss is nan"):
        res = run(teacher, {'alone':None, 'kd':{}}, lr_max=1e30)
    assert 'valid_loss is not finite in 4 of 4 runs (alone, seed 0, for one)' in repr(res)

# Progress
def test_the_bar_names_what_is_running_and_the_fits_are_quiet(teacher, capsys):
    def shown(): return Learner(vectors(), net(8,5), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    run(teacher, make=shown)
    out = capsys.readouterr().out
    assert 'distilled, seed 1, epoch 2 of 2' in out and '[4/4' in out and 'valid_loss' not in out and 'Epoch' not in out
    run(teacher)  # `learner` has no progress bar
    assert not capsys.readouterr().out

def test_the_teacher_can_be_chosen_per_method(teacher):
    other = seeded(net, 16, 8, seed=9).eval()
    res = run(teacher, {'a':{}, 'b':dict(teacher=other), 'c':dict(teacher=teacher)}, 1)
    assert of(res, 'a') == of(res, 'c') != of(res, 'b')
    assert res.config['methods']['b'] != res.config['methods']['c']

# The faster head
def test_the_faster_head_is_a_control_of_its_own(teacher):
    from fastkd.training.head import FasterHead
    methods = {'alone':None, 'faster':'faster head', 'by hand':lambda: make(cbs=FasterHead()), 'distilled':{}}
    res = run(teacher, methods, [0,1])
    assert of(res, 'faster') == of(res, 'by hand') != of(res, 'alone')
    assert res.config['methods']['faster'] == 'the student alone, FasterHead()'
    assert 'faster' in repr(res).split(';', 3)[-1]
