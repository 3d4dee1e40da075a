"`fastkd.evaluation.plots` and `style`: what is drawn equals independent computations, labels and units, light and dark, errors"
import os, subprocess, sys

import matplotlib, matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from fastai.vision.all import *
from fastkd.evaluation.compare import compare
from fastkd.evaluation.plots import plot_losses, plot_pareto, plot_temperature
from fastkd.evaluation.scoring import lower_is_better
from fastkd.evaluation.style import add_legend, canvas, is_dark, palette, style
from fastkd.losses.features import Attention
from fastkd.losses.soft_targets import Logits, SoftTarget
from fastkd.schemes.trial import trial
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.schedules import LearnableT
from helpers import cnn, image_dls, seeded, student
from matplotlib.figure import Figure
from plot_layout import check_layout
from scipy import stats

pytestmark = pytest.mark.filterwarnings("ignore:The teacher's")

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

@pytest.fixture(scope='module')
def dls(): return image_dls()

@pytest.fixture
def teacher(): return seeded(cnn, 8, 16, seed=3).eval()

def lines(ax): return {o.get_label(): o for o in ax.lines if not o.get_label().startswith('_')}
def ydata(ax): return {k: np.asarray(o.get_ydata(), float) for k,o in lines(ax).items()}
def legend(ax): return [o.get_text() for o in ax.get_legend().get_texts()]
def recorded(learn, name): return [row[list(learn.recorder.metric_names).index(name)-1] for row in learn.recorder.values]
def distilled(dls, teacher, **kwargs):
    kwargs.setdefault('loss', [SoftTarget(), Attention(weight=10)])
    return student(dls, cbs=KnowledgeDistillation(teacher, **kwargs))

# style and canvas

def luminance(colour):
    c = np.array(matplotlib.colors.to_rgb(colour))
    return np.dot(np.where(c <= .03928, c/12.92, ((c+.055)/1.055)**2.4), (.2126,.7152,.0722))

def contrast(a, b):
    low,high = sorted([luminance(a), luminance(b)])
    return (high+.05)/(low+.05)

@pytest.mark.parametrize('dark', [False,True])
def test_text_and_colours_stand_out_from_the_background(dark):
    with style(dark) as colours:
        back = plt.rcParams['figure.facecolor']
        assert is_dark(back) == dark and plt.rcParams['axes.facecolor'] == back
        for k in ('text.color','axes.labelcolor','xtick.color','ytick.color','axes.titlecolor','legend.labelcolor'):
            assert contrast(plt.rcParams[k], back) > 12, k
        assert min(contrast(o, back) for o in colours) > (4 if dark else 2)
        assert palette() == colours and len(set(colours)) == 6

def test_style_is_undone_also_after_an_error():
    before = dict(plt.rcParams)
    with pytest.raises(KeyError):
        with style(True): raise KeyError
    with canvas(): pass
    assert dict(plt.rcParams) == before

def test_canvas_adapts_to_a_dark_theme_and_to_own_axes():
    with style() as light: pass
    with style(True) as dark: pass
    with plt.style.context('dark_background'), canvas() as (ax,): assert palette() == dark and is_dark(ax.get_facecolor())
    with canvas() as (ax,): assert palette() == light and not is_dark(ax.get_facecolor())
    own = plt.figure().add_subplot(facecolor='#222222')
    with canvas(own) as (ax,): assert ax is own and palette() == dark

def test_canvas_makes_rows_and_checks_the_number_of_own_axes():
    with canvas(n=5, cols=3, figsize=(7,4)) as axs: pass
    fig = axs[0].figure
    assert len(axs) == 5 and [o.axison for o in fig.axes] == [True]*5+[False] and tuple(fig.get_size_inches()) == (7,4)
    own = plt.figure().subplots(2, 2)
    with canvas(own, n=4, arg='axs') as axs: assert axs == list(own.flat)
    with pytest.raises(ValueError, match=r'`axs` has 4 axes, but this plot has 3: pass 3'):
        with canvas(own, n=3, arg='axs'): pass

def test_a_backend_that_needs_a_display_is_no_obstacle(tmp_path):
    code = ("from fastkd.evaluation.style import canvas\n"
            f"with canvas() as (ax,): ax.plot([1,2])\nax.figure.savefig({str(tmp_path/'a.png')!r})")
    env = {k: v for k,v in os.environ.items() if k not in ('DISPLAY','WAYLAND_DISPLAY')}
    subprocess.run([sys.executable, '-c', code], check=True, env=env|{'MPLBACKEND':'tkagg'}, cwd=Path(__file__).parents[2])
    assert (tmp_path/'a.png').stat().st_size > 1000

@pytest.mark.parametrize('layout', [None,'constrained'])
def test_legend_is_outside_only_where_the_figure_makes_room(layout):
    ax = plt.figure(layout=layout).add_subplot()
    ax.plot([1,2], label='one')
    box = add_legend(ax).get_window_extent
    ax.figure.canvas.draw()
    assert (box().y1 < ax.bbox.y0) == (layout is not None)

# losses

def test_plain_losses_are_those_of_the_recorder(dls):
    learn = student(dls, metrics=[accuracy, error_rate, Perplexity()])
    learn.fit(3, 1e-2)
    axs = plot_losses(learn)
    assert [o.get_title() for o in axs] == ['Task loss','Metrics','perplexity']
    assert axs[0].get_ylabel() == 'CrossEntropyLoss (nats)' and axs[0].get_xlabel() == 'epoch'
    got = ydata(axs[0])
    np.testing.assert_allclose(got['training (running average)'], recorded(learn, 'train_loss'))
    np.testing.assert_allclose(got['validation'], recorded(learn, 'valid_loss'))
    assert list(lines(axs[0])['validation'].get_xdata()) == [1,2,3]
    assert list(ydata(axs[1])) == legend(axs[1]) == ['accuracy','error_rate']
    for ax,k in ((axs[1],'accuracy'), (axs[1],'error_rate'), (axs[2],'perplexity')):
        np.testing.assert_allclose(ydata(ax)[k], recorded(learn, k))
    assert axs[2].get_ylabel() == 'perplexity' and axs[2].get_legend() is None

def test_distilled_losses_of_two_fits_compare_like_with_like(dls, teacher):
    learn = distilled(dls, teacher)
    learn.fit(2, 1e-2)
    first = {k: recorded(learn, k) for k in ('valid_loss','accuracy')}
    learn.fit(3, 1e-2)
    hist = learn.knowledge_distillation.history
    task,kd,mets = plot_losses(learn)
    assert [o.get_title() for o in (task,kd,mets)] == ['Task loss','Distillation loss, training','accuracy']
    got = ydata(task)
    np.testing.assert_allclose(got['training (mean of the epoch)'], hist.task_loss)
    np.testing.assert_allclose(got['validation'], first['valid_loss'] + recorded(learn, 'valid_loss'))
    got = ydata(kd)
    assert list(got) == ['soft_target × its weight','attention × its weight','sum of the terms','total, with the task loss']
    for k,col in zip(got, ['soft_target','attention','kd_loss','total_loss']): np.testing.assert_allclose(got[k], hist[col])
    np.testing.assert_allclose(ydata(mets)['accuracy'], first['accuracy'] + recorded(learn, 'accuracy'))
    for ax in (task,kd,mets):
        dotted, = [o for o in ax.lines if o.get_linestyle() == ':']
        assert list(dotted.get_xdata()) == [2.5,2.5] and ax.get_xlabel() == 'epoch (dotted: a new fit)' and ax.get_xlim() == (.5,5.5)
    check_layout(task.figure)

@pytest.mark.parametrize('then', [lambda o: o.validate(), lambda o: o.get_preds(), lambda o: o.tta(n=1), lambda o: o.lr_find(num_it=20, show_plot=False)])
def test_a_distilled_learner_keeps_its_curves_whatever_clears_the_recorder(dls, teacher, then):
    learn = distilled(dls, teacher)
    learn.metrics = [accuracy, F1Score(average='macro'), F1Score(average='micro')]
    learn.fit(2, 1e-2)
    before = [{k: v.tolist() for k,v in ydata(o).items()} for o in plot_losses(learn)]
    assert list(before[2]) == ['accuracy','f1_score','f1_score#2'] and 'validation' in before[0]
    then(learn)
    assert [{k: v.tolist() for k,v in ydata(o).items()} for o in plot_losses(learn)] == before

def test_fits_recorded_by_an_older_version_have_only_the_last_validation_loss(dls, teacher):
    learn = distilled(dls, teacher)
    for n in 2,1: learn.fit(n, 1e-2)
    learn.knowledge_distillation.records.recorded = []
    got = ydata(plot_losses(learn)[0])
    np.testing.assert_allclose(got['validation (last fit)'], [np.nan]*2 + recorded(learn, 'valid_loss'))

def test_a_single_epoch_has_a_tick_of_its_own(dls):
    learn = student(dls)
    learn.fit(1, 1e-2)
    for ax in plot_losses(learn): assert [o for o in ax.get_xticks() if .5 <= o <= 1.5] == [1]

def test_a_single_term_is_not_drawn_twice_and_a_learnt_temperature_is_no_term(dls, teacher):
    learn = distilled(dls, teacher, loss=SoftTarget(T=LearnableT()))
    learn.fit(1, 1e-2)
    assert 'soft_target_T' in learn.knowledge_distillation.history
    assert list(ydata(plot_losses(learn)[1])) == ['soft_target × its weight','total, with the task loss']

def test_weight_0_is_plain_training(dls, teacher):
    learn = distilled(dls, teacher, weight=0)
    learn.fit(1, 1e-2)
    axs = plot_losses(learn)
    assert [o.get_title() for o in axs] == ['Task loss','accuracy']
    np.testing.assert_allclose(ydata(axs[0])['training (running average)'], recorded(learn, 'train_loss'))

def test_a_callback_that_was_only_in_the_fit_leaves_its_columns(dls, teacher):
    learn = student(dls)
    learn.fit(2, 1e-2, cbs=KnowledgeDistillation(teacher))
    axs = plot_losses(learn)
    np.testing.assert_allclose(ydata(axs[0])['training (mean of the epoch)'], recorded(learn, 'train_task'))
    np.testing.assert_allclose(ydata(axs[1])['soft_target × its weight'], recorded(learn, 'train_soft_target'))

def test_a_plain_learner_says_why_there_is_nothing_to_draw_after_validate(dls):
    plain = student(dls)
    plain.fit(1, 1e-2)
    plain.validate()
    with pytest.raises(ValueError, match='`learn` has no epoch to draw: train it first. `validate`'): plot_losses(plain)

def test_a_learner_that_was_not_trained(dls, teacher):
    for o in (student(dls), distilled(dls, teacher)):
        with pytest.raises(ValueError, match='`learn` has no epoch to draw'): plot_losses(o)

def test_without_labels_there_is_only_a_validation_loss(dls, teacher):
    class Unlabelled(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.learn.yb = ()
    learn = distilled(dls, teacher, weight=1)
    learn.fit(2, 1e-2, cbs=Unlabelled())
    axs = plot_losses(learn)
    assert list(ydata(axs[0])) == ['validation'] and list(ydata(axs[1]))[:2] == ['soft_target × its weight','attention × its weight']

def test_an_epoch_whose_validation_was_interrupted_has_no_validation_loss(dls, teacher):
    class Stop(Callback):
        def before_validate(self):
            if self.epoch == 2: raise KeyboardInterrupt
    learn = distilled(dls, teacher)
    with pytest.raises(KeyboardInterrupt): learn.fit(4, 1e-2, cbs=Stop())
    first_two = [o[1] for o in learn.recorder.values[:2]]
    np.testing.assert_allclose(ydata(plot_losses(learn)[0])['validation'], [*first_two, np.nan])

def test_skipped_epochs_do_not_shift_the_validation_loss(dls, teacher):
    learn = distilled(dls, teacher)
    learn.fit(4, 1e-2, start_epoch=2)
    got = ydata(plot_losses(learn)[0])
    assert len(got['validation']) == len(learn.knowledge_distillation.history) == 2
    np.testing.assert_allclose(got['validation'], [o[1] for o in learn.recorder.values if len(o) > 2])

def test_training_metrics_and_metrics_of_the_same_name(dls):
    learn = student(dls, metrics=[accuracy, F1Score(average='macro'), F1Score(average='micro')])
    learn.recorder.train_metrics = True
    learn.fit(1, 1e-2)
    names = ['accuracy','f1_score','f1_score']
    axs = plot_losses(learn)
    assert sorted(ydata(axs[1])) == sorted(f'{p}_{o}' for p in ('train','valid') for o in ('accuracy','f1_score','f1_score#2'))
    values = dict(zip([f'{p}_{o}' for p in ('train','valid') for o in ('loss',*names[:2],'f1_score#2')], learn.recorder.values[0]))
    for k,v in ydata(axs[1]).items(): np.testing.assert_allclose(v, values[k])

def test_terms_of_very_different_sizes_get_a_logarithmic_axis(dls, teacher):
    learn = distilled(dls, teacher, loss=[SoftTarget(), Attention(weight=1e-4)])
    learn.fit(1, 1e-2)
    axs = plot_losses(learn)
    assert axs[1].get_yscale() == 'log' and axs[0].get_yscale() == 'linear'

def test_a_loss_without_unit_is_named_without_one(dls):
    learn = student(dls)
    learn.fit(1, 1e-2)
    learn.loss_func = MSELossFlat()
    assert plot_losses(learn)[0].get_ylabel() == 'MSELoss'

def test_losses_on_own_axes_leave_the_learner_as_it_was(dls):
    learn = student(dls)
    learn.fit(1, 1e-2)
    before,cbs = [list(o) for o in learn.recorder.values],list(learn.cbs)
    own = plt.figure().subplots(1, 2)
    assert plot_losses(learn, axs=own) == list(own)
    assert [list(o) for o in learn.recorder.values] == before and list(learn.cbs) == cbs
    with pytest.raises(ValueError, match='`axs` has 1 axes, but this plot has 2'): plot_losses(learn, axs=own[:1])

# temperature

def fake_trial(methods, seeds=5, **kwargs):
    "Random results, and a metric that is a loss"
    rng = np.random.default_rng(1)
    def row(m, s): return dict(method=m, seed=s, valid_loss=rng.random(), accuracy=.9+rng.normal()/100, seconds=1.)
    rows = [row(m, s) for m in methods for s in range(seeds)]
    return SimpleNamespace(runs=pd.DataFrame(rows), metric='accuracy', methods=methods)

def by_T(**kwargs): return {'alone':None, 'label smoothing':'smooth', **{f'm{T}': dict(loss=SoftTarget(T=T), **kwargs) for T in (4,1,20)}}

def t_interval(values): return stats.t.interval(.95, len(values)-1, np.mean(values), stats.sem(values))

@pytest.mark.parametrize('metric', [None,'valid_loss'])
def test_temperatures_have_the_means_and_t_intervals_of_their_seeds(metric):
    t,col = fake_trial(by_T()),metric or 'accuracy'
    ax = plot_temperature(t, metric)
    values = {k: o[col].to_numpy() for k,o in t.runs.groupby('method')}
    curve,seeds = ax.lines[0],lines(ax)['single seeds']
    assert list(curve.get_xdata()) == [1,4,20]
    np.testing.assert_allclose(curve.get_ydata(), [values[f'm{T}'].mean() for T in (1,4,20)])
    bars = [o[:,1] for o in ax.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [t_interval(values[f'm{T}']) for T in (1,4,20)], rtol=1e-6)
    np.testing.assert_allclose(seeds.get_ydata(), np.concatenate([values[f'm{T}'] for T in (1,4,20)]))
    for k,band in zip(['alone','label smoothing'], ax.patches):
        np.testing.assert_allclose(lines(ax)[k].get_ydata(), values[k].mean())
        b = band.get_bbox()
        np.testing.assert_allclose((b.y0,b.y1), t_interval(values[k]))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ('temperature T (log scale)', col, 'Mean and 95 % interval of 5 seeds')
    ax.figure.canvas.draw()
    assert [o.get_text() for o in ax.get_xticklabels()] == ['1','4','20'] and ax.get_xscale() == 'log'
    assert set(legend(ax)) == {'distilled','single seeds','alone','label smoothing'}
    check_layout(ax.figure)

def test_one_seed_has_no_interval():
    ax = plot_temperature(fake_trial(by_T(), seeds=1))
    assert ax.get_title() == 'One seed, so no intervals' and not ax.patches and 'single seeds' not in lines(ax)
    assert not any(np.isfinite(o[:,1]).all() for o in ax.containers[0].lines[2][0].get_segments() if len(o))

def maker(): pass
@pytest.mark.parametrize('a, b', [
    (dict(loss=SoftTarget(T=2.5)), dict(loss=[Logits(), SoftTarget(T=8)])),
    (dict(loss=partial(SoftTarget, T=2.5)), dict(loss=partial(SoftTarget, T=np.int64(8)))),
    (dict(loss='SoftTarget(T=2.5, weight=1)'), dict(loss='SoftTarget(T=8)'))], ids=['objects','partials','reprs'])
def test_temperatures_of_the_losses_count_whatever_the_names_are(a, b):
    ax = plot_temperature(fake_trial({'weight 0.9':None, 'x':a, 'T=3':b}))
    assert list(ax.lines[0].get_xdata()) == [2.5,8]

@pytest.mark.parametrize('names', [('T=1','T=4.5'), ('distilled, T 1','temperature: 4.5'), ('1','4.5')])
@pytest.mark.parametrize('method', [{}, maker], ids=['dict','maker'])
def test_temperatures_are_read_from_names(names, method):
    ax = plot_temperature(fake_trial({'alone':None, **{o: method for o in names}}))
    assert list(ax.lines[0].get_xdata()) == [1,4.5]

def test_the_class_of_a_loss_has_its_default_temperature():
    assert list(plot_temperature(fake_trial({'a':dict(loss=SoftTarget), 'b':dict(loss=SoftTarget(T=1))})).lines[0].get_xdata()) == [1,4]

def test_methods_without_one_temperature_are_levels():
    odd = {'scheduled':dict(loss=SoftTarget(T=SchedCos(8, 2))), 'learnt T=3':dict(loss=SoftTarget(T=LearnableT())),
           'weight 0.9':dict(weight=.9)}
    ax = plot_temperature(fake_trial(by_T() | odd))
    assert list(ax.lines[0].get_xdata()) == [1,4,20] and set(odd) < set(legend(ax))

@pytest.mark.parametrize('methods, text', [
    ({'alone':None, 'distilled':{}}, r"`trial` has 0 method\(s\) with a temperature, but a curve needs two"),
    ({'alone':None, 'T=4':{}}, r"`trial` has 1 method\(s\)"),
    ({'a':dict(loss=SoftTarget(T=4)), 'T=4':{}, 'T=1':{}}, "`trial` has two methods with T=4, 'T=4' and 'a'")])
def test_trials_without_a_curve_of_temperatures(methods, text):
    with pytest.raises(ValueError, match=text): plot_temperature(fake_trial(methods))

def test_unknown_metric_of_a_trial():
    with pytest.raises(ValueError, match="`metric` is 'f1', which the trial doesn't have: choose from valid_loss, accuracy$"):
        plot_temperature(fake_trial(by_T()), 'f1')

def test_temperatures_of_a_real_trial(dls, teacher):
    methods = {'alone':None, 'T=1':dict(loss=SoftTarget(T=1)), 'T=4':dict(loss=SoftTarget(T=4))}
    t = trial(lambda: student(dls, seed=torch.initial_seed()), teacher, methods, seeds=2, n_epoch=1, lr_max=1e-2)
    ax = plot_temperature(t)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), t.table.accuracy[['T=1','T=4']])

# quality against cost

def comparison(**columns):
    "The columns that `compare` makes, for five models"
    df = dict(parameters=[1e4,2e4,1e5,1e5,3e6], flops=[1e6,8e6,5e6,6e6,np.nan], size_mb=[.1,.2,1,1,30], latency_ms_1=[.4,.8,.9,1,20],
              latency_ms_32=[3,5,8,9,200], accuracy=[.9,.88,.97,.95,.96], accuracy_low=[.88,.86,.95,np.nan,.94],
              accuracy_high=[.93,.90,.98,np.nan,.97], accuracy_sd=[np.nan]*3+[.01,np.nan], nll=[.5,.7,.2,.3,.1])
    res = pd.DataFrame(df|columns, index=['student','other','teacher','five seeds','large'])
    object.__setattr__(res, 'metrics', ['accuracy','nll'])
    return res

def points(ax):
    "Name → x, y and ends of the error bar"
    def _point(c): return (*c.lines[0].get_xydata()[0], *c.lines[2][0].get_segments()[0][:,1])
    return {c.get_label(): _point(c) for c in ax.containers}

def test_pareto_has_the_models_with_their_bars_and_the_front():
    ax = plot_pareto(comparison())
    want = {'student':(1e4,.9,.88,.93), 'other':(2e4,.88,.86,.90), 'teacher':(1e5,.97,.95,.98), 'five seeds':(1e5,.95,.94,.96),
            'large':(3e6,.96,.94,.97)}
    got = points(ax)
    assert got.keys() == want.keys()
    for k in want: np.testing.assert_allclose(got[k], want[k])
    front = lines(ax)['Pareto front']
    assert list(zip(*front.get_data())) == [(1e4,.9),(1e5,.97)] and front.get_drawstyle() == 'steps-post'
    assert ax.get_title() == 'Bars: 95 % interval or ± 1 sd over seeds' and ax.get_xscale() == 'log'
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('parameters, log scale', 'accuracy (higher is better)')
    assert legend(ax) == ['Pareto front', *want]
    ax.figure.canvas.draw()
    assert {'10 k','100 k','1 M'} <= {o.get_text() for o in ax.get_xticklabels()}
    styles = {(c.lines[0].get_marker(), c.lines[0].get_color()) for c in ax.containers}
    assert len(styles) == 5
    check_layout(ax.figure)

@pytest.mark.parametrize('x, label, values', [
    ('flops','FLOPs per item', [1e6,8e6,5e6,6e6]), ('size_mb','size (MB)', [.1,.2,1,1,30]),
    ('latency','latency for one item (ms)', [.4,.8,.9,1,20]), ('latency_ms_32','latency for a batch of 32 items (ms)', [3,5,8,9,200])])
def test_costs(x, label, values):
    ax = plot_pareto(comparison(), x=x)
    assert ax.get_xlabel() == f'{label}, log scale' and [o[0] for o in points(ax).values()] == values
    assert ax.get_title().endswith('\nNot measured: large') == (x=='flops')
    lo,hi = ax.get_xlim()
    assert lo < min(values) and hi > max(values)

def test_random_fronts_hold_what_no_other_model_beats():
    rng = np.random.default_rng(0)
    for lower in (False,True):
        df = comparison(parameters=rng.integers(1, 4, 5)*1., nll=rng.integers(0, 3, 5)*1., accuracy=rng.integers(0, 3, 5)*1.)
        ax = plot_pareto(df, 'nll' if lower else 'accuracy')
        pts = list(zip(df.parameters, -df.nll if lower else df.accuracy))
        want = {(c, abs(q)) for c,q in pts if not any(a<=c and b>=q and (a,b)!=(c,q) for a,b in pts)}
        assert set(zip(*lines(ax)['Pareto front'].get_data())) == want
        assert ax.get_ylabel().endswith('(lower is better)' if lower else '(higher is better)')

def test_lower_is_better():
    low = ['valid_loss','error_rate','perplexity','mse','_rmse','exp_rmspe','mae','nll','ece','hamming_loss','brier_score','time']
    high = ['accuracy','f1_score','roc_auc_score','dice','r2_score','jaccard','matthews_corrcoef','precision','recall','top_k_accuracy']
    assert [lower_is_better(o) for o in low+high] == [True]*len(low)+[False]*len(high)

def test_a_model_without_interval_has_no_bar():
    df = comparison().drop(columns=['accuracy_low','accuracy_high','accuracy_sd'])
    object.__setattr__(df, 'metrics', ['accuracy'])
    ax = plot_pareto(df)
    assert ax.get_title() == '' and all(o[1] == o[2] == o[3] for o in points(ax).values())

def test_errors_of_pareto():
    with pytest.raises(ValueError, match="`metric` is 'f1', which the comparison doesn't have: choose from accuracy, nll"):
        plot_pareto(comparison(), 'f1')
    with pytest.raises(ValueError, match="`x` is 'speed', which was not compared: choose from latency, parameters, flops"):
        plot_pareto(comparison(), x='speed')
    for none in (np.nan, 0.):
        with pytest.raises(ValueError, match="`comparison` has no model with both 'accuracy' and 'flops'"):
            plot_pareto(comparison(flops=[none]*5), x='flops')

def test_pareto_of_a_real_comparison(dls):
    df = compare(dict(large=student(dls, (8,16)), small=student(dls)), n_boot=20, latency=(1,))
    ax = plot_pareto(df, x='flops')
    cols = ['flops','accuracy','accuracy_low','accuracy_high']
    for k,v in points(ax).items(): np.testing.assert_allclose(v, df.loc[k, cols].to_numpy(float))
    with pytest.raises(ValueError, match="`x` is 'latency_ms_32'"): plot_pareto(df, x='latency_ms_32')
    assert plot_pareto(df, x='latency', ax=ax) is ax

@pytest.mark.parametrize('draw', [lambda ax: plot_pareto(comparison(), x='flops', ax=ax), lambda ax: plot_temperature(fake_trial(by_T()), ax=ax)],
                         ids=['pareto','temperature'])
def test_everything_fits_into_a_small_figure_without_pyplot(draw):
    fig = Figure(figsize=(4.2,3.4), layout='constrained')
    draw(fig.subplots())
    check_layout(fig)

@pytest.mark.parametrize('dark', [False,True])
def test_new_figures_have_the_background_of_the_style(dark):
    with style(dark): ax = plot_pareto(comparison())
    assert is_dark(ax.figure.get_facecolor()) == is_dark(ax.get_facecolor()) == dark != is_dark(ax.xaxis.label.get_color())
