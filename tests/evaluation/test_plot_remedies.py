"What the errors of plots and reports advise works"
from functools import cache

from fastai.vision.all import *
from fastkd.all import *
from remedies import *

@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    plt.close('all')

dls = image_dls(n=48, bs=8, size=8)
def quiet(learn, n_epoch=0):
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    if n_epoch: learn.fit(n_epoch, 1e-2)
    return learn
a,b = quiet(trained_teacher(dls, 8, 8)),quiet(trained_teacher(dls, 4, epochs=1))
fresh = quiet(Learner(dls, cnn(4)))
multi = quiet(Learner(dls, cnn(4), loss_func=BCEWithLogitsLossFlat()))

def labelled(items): return a.dls.test_dl(list(items), with_labels=True)
def where(agreed):
    "The validation images for which two models predict the same class, or different ones"
    p,q = (o.get_preds(dl=dls.valid)[0].argmax(1) for o in (a,b))
    return labelled(o for o,same in zip(dls.valid.items, p==q) if same == agreed)

def drawn(axs):
    "The numbers that are in plots"
    res = [float(v) for ax in L(axs) for o in ax.lines for v in np.ravel(o.get_ydata()).astype(float)]
    res += [float(o.get_width()) for ax in L(axs) for o in ax.patches] + [float(o.get_array().mean()) for ax in L(axs) for o in ax.images]
    assert res
    return res

def soft(learn=a, dl=None, **kwargs): return drawn(plot_soft_targets(learn, dl, **{'n':1, 'Ts':(1,4), **kwargs}))
def attention(layers): return drawn(plot_attention(b, a, layers=layers, n=1))
def losses(before=noop, n_epoch=1, after=noop):
    learn = quiet(Learner(dls, cnn(4), metrics=accuracy), n_epoch)
    before(learn)
    res = drawn(plot_losses(learn))
    after(learn)
    return res

def make(): return quiet(Learner(dls, cnn(4), metrics=accuracy))
def distil(T): return dict(loss=lambda p,t: soft_target(p, t, T=T))
@cache
def tried(*names): return trial(make, a, {n: all_methods[n] for n in names}, 2, 1, 1e-3)
all_methods = dict(alone=None, two=dict(loss=SoftTarget(T=2)), eight=dict(loss=SoftTarget(T=8)), again=dict(loss=SoftTarget(T=2), weight=.5))
all_methods |= {'first': distil(2), 'second': distil(8), 'T=2': distil(2), 'T=8': distil(8)}
def temperatures(*names, **kwargs): return drawn(plot_temperature(tried(*names), **kwargs))

@cache
def compared(latency=(1,)): return compare(dict(a=a, b=b), latency=latency, n_boot=20)
def pareto(*args, latency=(1,), **kwargs): return drawn(plot_pareto(compared(latency), *args, **kwargs))
@cache
def one_class():
    "A comparison on items of one class, for which there is no area under the curve"
    learn = quiet(trained_teacher(image_dls('ab', n=48, bs=8, size=8), 4, n_out=2, epochs=1))
    items = [o for o in learn.dls.valid.items if o[1] == 'a']
    return compare(dict(a=learn), learn.dls.test_dl(items, with_labels=True), metrics=[accuracy, RocAucBinary()], latency=(), n_boot=0)

def page(path='a.html', **kwargs): return report(path, **kwargs or dict(learn=a)).stat().st_size
@cache
def curve(): return TTAEvaluator(a, max_cache=0).curve((0,1))
def read_back():
    compared().to_csv('comparison.csv')
    return pd.read_csv('comparison.csv')
def folder(name):
    Path(name).mkdir()
    return name
def file(name):
    Path(name).write_text('')
    return name

cases = [
    # the teacher's soft targets
    ('`Ts` has …: give temperatures above 0, such as (1, 4, 20)',
     lambda: soft(Ts=(0,1)), 'such as (1, 4, 20)', lambda: soft(Ts=(1,4,20))),
    ('`Ts` is empty',
     lambda: soft(Ts=()), 'such as (1, 4, 20)', lambda: [soft(Ts=(1,4,20)), soft(Ts=.5)]),
    ('`n` is …: give the number of images, 1 or more',
     lambda: soft(n=0), '1 or more', lambda: soft(n=1)),
    ('`idxs` is …: give one or more indexes of the … items, from 0 to …',
     lambda: soft(idxs=[16]), 'of the 16 items, from 0 to 15', lambda: soft(idxs=[0,15])),
    ('teacher: it was trained with …, several labels per item',
     lambda: soft(multi, labelled(dls.valid.items)), '`CrossEntropyLossFlat`',
     lambda: soft(quiet(Learner(dls, cnn(4), loss_func=CrossEntropyLossFlat()), 1), labelled(dls.valid.items))),
    ('`dl` has inputs of type …',
     lambda: soft(cnn(4, n_in=5), channels(5)), 'inputs (B, C, H, W), of 1 or 3 channels',
     lambda: [soft(cnn(4, n_in=n), channels(n)) for n in (1,3)]),
    # disagreements
    ('student and teacher predict the same class for all … images, so there is none to show',
     lambda: plot_disagreements(b, a, where(True)), 'pass other images as `dl`', lambda: drawn(plot_disagreements(b, a, where(False)))),
    # attention
    ('`layers` is …: give pairs of names, as in `layers=[(\'layer4\',\'layer4\')]`',
     lambda: attention([('0','0','1')]), 'give pairs of names', lambda: [attention([('0','0')]), attention([('0','1'),('0','0')])]),
    ('`layers` has …, whose features are not maps',
     lambda: attention([('3','4')]), 'layers before the pooling', lambda: attention([(maps(b)[0], maps(a)[-1])])),
    # style
    ('`…` has … axes, but this plot has …',
     lambda: soft(axs=plt.figure().subplots(2)), 'pass 3, or None for new ones',
     lambda: [soft(axs=plt.figure().subplots(3)), soft(axs=None)]),
    ('`…` has … axes, but this plot has …',
     lambda: pareto(ax=plt.figure().subplots(2)), 'pass 1, or None for new ones', lambda: [pareto(ax=plt.figure().subplots()), pareto()]),
    # training
    ('`learn` has no epoch to draw',
     lambda: losses(n_epoch=0), 'train it first', lambda: losses(n_epoch=1)),
    ('`learn` has no epoch to draw',
     lambda: losses(before=lambda o: o.validate()), 'plot the losses of a learner without distillation before you call them',
     lambda: losses(after=lambda o: o.validate())),
    # temperatures
    ('`metric` is …, which the … doesn\'t have',
     lambda: temperatures('two', 'eight', metric='f1'), 'choose from valid_loss, accuracy',
     lambda: [temperatures('two', 'eight', metric=o) for o in ('valid_loss','accuracy')]),
    ('`trial` has … method(s) with a temperature, but a curve needs two',
     lambda: temperatures('alone', 'two'), '`dict(loss=SoftTarget(T=4))`', lambda: temperatures('two', 'eight')),
    ('`trial` has … method(s) with a temperature, but a curve needs two',
     lambda: temperatures('first', 'second'), "names such as 'T=4'", lambda: temperatures('T=2', 'T=8')),
    ('`trial` has two methods with T=…, … and …',
     lambda: temperatures('two', 'eight', 'again'), 'one method per temperature', lambda: temperatures('two', 'eight')),
    # quality against cost
    ('`metric` is …, which the … doesn\'t have',
     lambda: pareto('f1'), 'choose from accuracy', lambda: pareto('accuracy')),
    ('`x` is …, which was not compared',
     lambda: pareto(x='speed'), 'choose from latency, parameters, flops, size_mb, latency_ms_1',
     lambda: [pareto(x=o) for o in ('latency','parameters','flops','size_mb','latency_ms_1')]),
    ('`x` is …, which was not compared',
     lambda: pareto(x='latency', latency=()), 'choose from parameters, flops, size_mb',
     lambda: [pareto(x=o, latency=()) for o in ('parameters','flops','size_mb')]),
    ('`comparison` has no model with both … and …',
     lambda: plot_pareto(one_class(), 'roc_auc_score'), 'choose another `metric` or `x`', lambda: drawn(plot_pareto(one_class(), 'accuracy'))),
    # report
    ('report has nothing to report',
     lambda: report('a.html'), 'one or more of `learn`, `trial`, `comparison` and `tta`',
     lambda: [page(**o) for o in (dict(learn=a), dict(trial=tried('two','eight')), dict(comparison=compared()), dict(tta=curve()))]),
    ('… is a …: …',
     lambda: page(learn=a.model), 'give a fastai `Learner`', lambda: page(learn=a)),
    ('… is a …: …',
     lambda: page(trial=tried('two','eight').runs), 'give what `trial` returned', lambda: page(trial=tried('two','eight'))),
    ('… is a …: …',
     lambda: page(comparison=read_back()), 'give what `compare` returned', lambda: page(comparison=compared())),
    ('tta is a …',
     lambda: page(tta=[.5,.6]), 'give a `TTAEvaluator`, or the table of its `curve`',
     lambda: [page(tta=TTAEvaluator(a, max_cache=0)), page(tta=curve())]),
    ('tta has the columns … and … rows',
     lambda: page(tta=curve().drop(columns='time')), 'the table of `TTAEvaluator.curve` or `test_time_aug`',
     lambda: [page(tta=curve()), page(tta=test_time_aug(a, labelled(dls.valid.items), None, accuracy, (0,1), max_cache=0))]),
    ('path=… is a folder',
     lambda: page(folder('here')), "such as 'here/report.html'", lambda: page('here/report.html')),
    ('path=… can\'t be written (…)',
     lambda: page(f"{file('taken')}/a.html"), 'a file in a folder where you can write', lambda: page(f"{folder('mine')}/a.html")),
]

def channels(n):
    "A loader of images with `n` channels"
    ds = Datasets(range(8), [[lambda i: torch.rand(n,8,8)], [lambda i: i%3, Categorize([0,1,2])]])
    return TfmdDL(ds, bs=4, num_workers=0)

def maps(learn):
    "The layers before the pooling, as `layer_names` says"
    names = layer_names(learn.model, dls.one_batch()[0][:2])
    return [n for n,o in names.items() if len(o) == 4 and o[2:] != (1,1)]

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)

def test_jinja2_is_installed_as_the_error_says(monkeypatch):
    def without():
        with monkeypatch.context() as m:
            m.setitem(sys.modules, 'jinja2', None)
            page()
    check('report needs Jinja2, which is not installed', without, "pip install 'fastkd[report]'", page)
    extra = (Path(__file__).parents[2]/'setup.cfg').read_text().split('\nreport =')[1].split(' =')[0]
    assert 'jinja2' in extra.lower()
