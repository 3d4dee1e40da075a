"What a trial's runs say: table, verdict and plot"
import math

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from fastkd.evaluation.scoring import lower_is_better
from fastkd.schemes.outcome import outcome_table, paired, plot_outcome, unit_of, verdict

def runs(metric='accuracy', **values):
    "A row per method and seed; `values` are lists, one number per seed"
    rows = [(m, i, 1., v, 1.) for m,vs in values.items() for i,v in enumerate(vs)]
    return pd.DataFrame(rows, columns=['method','seed','valid_loss',metric,'seconds'])

alone = [.90,.91,.92,.90]
def plus(ds): return [a+d for a,d in zip(alone, ds)]

@pytest.mark.parametrize('metric', 'valid_loss error_rate hamming_loss mean_squared_error mse _rmse mae perplexity ece nll'.split())
def test_losses_and_errors_are_better_when_lower(metric): assert lower_is_better(metric)

@pytest.mark.parametrize('metric', 'accuracy f1_score roc_auc_score dice r2_score matthews_corrcoef'.split())
def test_other_metrics_are_better_when_higher(metric): assert not lower_is_better(metric)

def test_ahead_and_behind_and_neither():
    df = runs(alone=alone, up=plus([.02,.03,.02,.03]), down=plus([-.02,-.03,-.02,-.03]), same=plus([.01,-.01,.02,-.02]))
    text = verdict(df, 'accuracy')
    assert text.index("up is ahead of alone by 2.5 points of accuracy (95 % interval 1.6 to 3.4)") == 0
    assert "down is behind alone by 2.5 points of accuracy (95 % interval 1.6 to 3.4)" in text
    assert "there is no clear difference between same and alone (" in text and "paired over 4 seeds." in text

def test_an_error_is_better_when_lower():
    df = runs('error_rate', alone=alone, down=plus([-.02,-.03,-.02,-.03]))
    assert verdict(df, 'error_rate').startswith("down is ahead of alone by 2.5 points of error_rate (95 % interval 1.6 to 3.4)")
    df = runs('mse', alone=[10.,12.,11.], up=[20.,23.,21.])
    assert verdict(df, 'mse').startswith("up is behind alone by 10.3 in mse (95 % interval 8.9 to 11.8)")

def test_numbers_that_are_no_shares_are_not_called_points():
    assert unit_of([.2,.3], 'accuracy').factor == 100 and unit_of([.2,.3], 'error_rate').factor == 100
    assert unit_of([.2,1.3], 'accuracy').factor == unit_of([.2,.3], 'valid_loss').factor == unit_of([-.2,.3], 'r2_score').factor == 1

def test_distillation_is_compared_with_smoothing_too():
    smoothed = plus([.02,.03,.02,.03])
    df = runs(alone=alone, smoothed=smoothed, kd=[o+d for o,d in zip(smoothed, [.001,-.001,.002,-.001])])
    text = verdict(df, 'accuracy', 'smoothed', ['kd'])
    assert 'kd is ahead of alone by' in text and 'kd is not clearly ahead of smoothed (+0.03 points of accuracy, 95 % interval' in text
    df = runs(alone=alone, smoothed=smoothed, kd=[o+.01 for o in smoothed])
    assert 'kd is ahead of smoothed by 1.0 points' in verdict(df, 'accuracy', 'smoothed', ['kd'])
    df = runs(alone=alone, smoothed=smoothed, kd=plus([.001,.002,.001,.002]))
    assert 'kd is behind smoothed by' in verdict(df, 'accuracy', 'smoothed', ['kd'])
    df = runs(smoothed=smoothed, kd=[o+.01 for o in smoothed])
    assert verdict(df, 'accuracy', 'smoothed', ['kd']).count('smoothed') == 1  # it is the reference already

def test_the_same_numbers_are_called_so():
    assert verdict(runs(alone=alone, off=alone), 'accuracy').startswith('off has the same numbers as alone;')

def test_many_methods_are_counted():
    df = runs(alone=alone, **{f'm{i}':plus([.01*i,.01*i+.001,.01*i,.01*i+.002]) for i in range(-2,5)})
    text = verdict(df, 'accuracy', 'm0', ['m1','m2','m3','m4','m-1','m-2'])
    assert text.startswith('4 of 7 methods are ahead of alone, 2 behind it') and 'm4 is furthest ahead, by 4.1 points of accuracy' in text
    assert '1 comparison in 20 looks clear by chance' in text and '4 of 6 distilled methods are ahead of m0' in text

def test_nan_is_no_difference():
    df = runs(alone=alone, bad=[.9,math.nan,.9,.9])
    df.loc[df.accuracy.isna(),'valid_loss'] = math.nan
    text = verdict(df, 'accuracy')
    assert "bad and alone can't be compared, because a value is nan" in text and 'not finite in 1 of 8 runs (bad, seed 1, for one)' in text

def test_one_seed_and_one_method():
    assert verdict(runs(alone=[.9], kd=[.95]), 'accuracy') == \
        "one seed, so there is no interval and no conclusion (accuracy: 90.0 % for alone, 95.0 % for kd)."
    assert 'only method' in verdict(runs(alone=alone), 'accuracy')
    assert 'no run is finished' in verdict(runs(), 'accuracy')

def test_methods_are_paired_by_seed_whatever_the_order():
    df = runs(alone=alone, kd=plus([.01,.02,.03,.02])).sample(frac=1, random_state=1)
    df = pd.concat([df[df.method=='alone'], df[df.method=='kd']])
    assert paired(df, 'alone', 'kd', 'accuracy').mean == pytest.approx(.02)
    missing = df[~((df.method=='kd') & (df.seed==2))]
    assert paired(missing, 'alone', 'kd', 'accuracy')[::4] == pytest.approx((.05/3, 3))
    assert outcome_table(missing, 'accuracy').loc['kd','difference'] == pytest.approx(.05/3)

@pytest.mark.parametrize('n', [1,2,3,40])
def test_nothing_is_cut_off_the_plot(n):
    df = runs(**{f'a method with a rather long name, number {i}':plus([.01*i,0,.02,.01]) for i in range(n)})
    fig = plot_outcome(df, 'accuracy').figure
    fig.canvas.draw()
    box = fig.get_tightbbox().extents*fig.dpi
    assert (box[:2] >= -1).all() and (box[2:] <= fig.bbox.extents[2:]+1).all()
    plt.close(fig)
