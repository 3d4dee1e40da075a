"`fastkd.evaluation.statistics`: against scipy, scikit-learn and torchmetrics, and the coverage of the bootstrap in a simulation"
import numpy as np, pandas as pd, pytest, sklearn.metrics as skm, torch
from scipy import stats
from sklearn.calibration import calibration_curve
from torch import tensor
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from fastkd.evaluation.statistics import Paired, bootstrap, calibration_bins, ece, mcnemar, nll, paired_interval

def close(a, b, eps=1e-9): np.testing.assert_allclose(a, b, rtol=0, atol=eps)

def predictions(n=500, c=5, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    y = rng.integers(c, size=n)
    z = 2*rng.normal(size=(n,c))
    z[np.arange(n),y] += 2
    return tensor(z).to(dtype).softmax(1),tensor(y)

# paired interval

@pytest.mark.parametrize('n', [2, 3, 5, 20])
@pytest.mark.parametrize('level', [.5, .95, .99])
def test_paired_interval_is_that_of_the_t_test(n, level):
    a,b = np.random.default_rng(n).normal(size=(2,n))
    res,ref = paired_interval(a, b, level),stats.ttest_rel(b, a)
    ci = ref.confidence_interval(level)
    close([res.mean, res.low, res.high], [(b-a).mean(), ci.low, ci.high])
    close(res.se, (b-a).std(ddof=1)/n**.5)
    close(res.mean/res.se, ref.statistic)
    assert res.n == n and isinstance(res, Paired)

def test_one_seed_has_no_interval():
    res = paired_interval([.9], [.7])
    close(res.mean, -.2)
    assert np.isnan(res[1:4]).all() and res.n == 1

def test_equal_differences_have_an_interval_of_no_width():
    res = paired_interval([1,2,3], [2,3,4])
    assert res == Paired(1, 0, 1, 1, 3)

def test_paired_interval_takes_series_and_tensors():
    a,b = [.5,.7,.6],[.6,.7,.9]
    for f in tensor, np.array, pd.Series: close(paired_interval(f(a), f(b)), paired_interval(a, b), 1e-6)
    assert paired_interval(pd.Series(a, index=[5,6,7]), pd.Series(b)) == paired_interval(a, b)  # by position, not by index

@pytest.mark.parametrize('a, b, level, msg', [
    ([1,2], [1], .95, 'same seeds in the same order'), ([], [], .95, 'same seeds'), ([[1,2]], [[1,2]], .95, 'one score per seed'),
    ([1,2], [1,2], 95, '`level` is 95: give the share')])
def test_paired_interval_errors(a, b, level, msg):
    with pytest.raises(ValueError, match=msg): paired_interval(a, b, level)

# McNemar

@pytest.mark.parametrize('only, only_ref', [(0,0), (0,1), (0,12), (7,7), (3,11), (200,150), (1000,1100)])
def test_mcnemar_is_an_exact_binomial_test(only, only_ref):
    right = np.repeat([True,False,True,False], [only, only_ref, 30, 20])
    ref = np.repeat([False,True,True,False], [only, only_ref, 30, 20])
    n = only+only_ref
    p = min(1, 2*stats.binom.cdf(min(only, only_ref), n, .5)) if n else 1
    close(mcnemar(right, ref), p)
    close(mcnemar(tensor(ref), tensor(right)), p)
    order = np.random.default_rng(0).permutation(len(right))
    close(mcnemar(right[order], ref[order]), p)

def test_mcnemar_errors():
    with pytest.raises(ValueError, match='`right` holds int64.*give booleans'): mcnemar(np.array([1,0]), np.array([True,False]))
    with pytest.raises(ValueError, match=r'shape \(2,\), `right_ref` \(1,\)'): mcnemar([True,False], [True])
    with pytest.raises(ValueError, match='for the same items'): mcnemar(np.zeros(0, bool), np.zeros(0, bool))

# calibration

@pytest.mark.parametrize('n_bins', [1, 10, 15, 100])
@pytest.mark.parametrize('c', [2, 5])
def test_ece_is_torchmetrics_one(c, n_bins):
    p,y = predictions(c=c)
    close(ece(p, y, n_bins), MulticlassCalibrationError(c, n_bins)(p, y).item(), 1e-6)  # which computes in float32
    close(ece(p, y, n_bins), BinaryCalibrationError(n_bins)(p.max(1).values, (p.argmax(1) == y).int()).item())  # the same in float64

def test_default_of_fifteen_bins_and_the_curve_of_scikit_learn():
    p,y = predictions()
    conf,right = p.max(1).values.numpy(),(p.argmax(1) == y).numpy()
    acc,mean = calibration_curve(right, conf, n_bins=15)
    n = np.histogram(conf, 15, (0,1))[0]
    bins = calibration_bins(p, y)
    close(bins.accuracy[n > 0], acc)
    close(bins.confidence[n > 0], mean)
    close(ece(p, y), (n[n > 0]*abs(acc-mean)).sum()/n.sum())

def test_dense_predictions_count_every_position():
    p,y = predictions(n=60)
    p4,y3 = p.reshape(3,4,5,5).permute(0,3,1,2),y.reshape(3,4,5)
    close([ece(p4, y3), nll(p4, y3)], [ece(p, y), nll(p, y)])

def test_multi_label_is_the_binary_error_over_all_pairs():
    rng = np.random.default_rng(0)
    p,y = tensor(rng.random((300,4))),tensor(rng.random((300,4)) < .4).float()
    close(ece(p, y), BinaryCalibrationError(15)(p.flatten(), y.flatten().int()).item())
    close(nll(p, y), torch.nn.functional.binary_cross_entropy(p, y.double()).item())
    close([ece(p[:,0], y[:,0]), nll(p[:,0], y[:,0])], [ece(p[:,:1], y[:,:1]), nll(p[:,:1], y[:,:1])])

def test_certainty_is_in_the_last_bin():
    p = tensor([[1.,0.],[0.,1.],[.95,.05]])
    bins = calibration_bins(p, [0,0,0], 10)
    assert bins.n.tolist() == [0]*9 + [3]
    close(ece(p, [0,0,0], 10), abs((1+1+.95)/3 - 2/3), 1e-7)

def test_empty_bins_are_nan_and_count_for_nothing():
    bins = calibration_bins(tensor([[.95,.05],[.55,.45]]), [0,1], 10)
    assert np.isnan(bins.confidence).sum() == np.isnan(bins.accuracy).sum() == 8
    close(bins.accuracy[[5,9]], [0,1])
    close(bins.confidence[[5,9]], [.55,.95], 1e-7)

@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_nll_is_log_loss(dtype):
    p,y = predictions(dtype=dtype)
    close(nll(p, y), skm.log_loss(y, p.numpy()), 1e-9 if dtype is torch.float64 else 1e-6)

@pytest.mark.filterwarnings('ignore:The y_prob values do not sum to one')
def test_nll_of_impossible_events_is_finite_and_that_of_log_loss():
    p,y = tensor([[1.,0.],[.5,.5]]),[1,0]
    close(nll(p, y), skm.log_loss(y, p.numpy()), 1e-5)
    close(nll(p.double(), y), skm.log_loss(y, p.double().numpy()))
    assert np.isfinite(nll(p.half(), y))

@pytest.mark.parametrize('f', [ece, nll])
@pytest.mark.parametrize('p, y, msg', [
    ([[3.,1.]], [0], 'goes from 1 to 3: give probabilities'), ([[.5,.5]], [-1], 'leave out items without a label'),
    ([[.5,.5]], [2], 'indexes of the 2 classes'), ([[.5,.5]], [.5], 'indexes of the 2 classes'),
    ([[.5,.5]], [0,1], r'shape \(1, 2\), `targs` \(2,\)'), ([[.5,.5]], [[.3,1]], 'give 0 or 1'), (np.zeros((0,2)), [], 'is empty')])
def test_calibration_errors(f, p, y, msg):
    with pytest.raises(ValueError, match=msg): f(p, y)

def test_number_of_bins():
    with pytest.raises(ValueError, match='`n_bins` is 0'): ece([[.5,.5]], [0], 0)

# bootstrap

def test_bootstrap_is_the_percentile_interval_of_scipy():
    x = np.random.default_rng(1).normal(size=300)
    low,high = bootstrap(lambda i: x[i].mean(), 300, 4000)
    ref = stats.bootstrap((x,), np.mean, n_resamples=4000, method='percentile', rng=np.random.default_rng(5)).confidence_interval
    close([low, high], [ref.low, ref.high], .012)  # two samples of 4000: the quantiles have standard errors of .002
    narrow = bootstrap(lambda i: x[i].mean(), 300, 4000, level=.5)
    assert low < narrow[0] < narrow[1] < high

def test_bootstrap_covers_at_its_rate():
    "Accuracy of 200 items: the share of samples whose 95 % interval has the true value"
    rng,n,reps,true = np.random.default_rng(3),200,1000,.8
    right = rng.random((n,reps)) < true
    hits = 0
    def accs(idxs): return right[idxs].mean(0)
    idxs = _resamples(n, 1000, seed=0)
    low,high = np.quantile(np.stack([accs(i) for i in idxs]), [.025,.975], axis=0)
    for k in range(5):  # what is simulated is what `bootstrap` returns
        close(bootstrap(lambda i: right[i,k].mean(), n, 1000, seed=0), [low[k], high[k]])
    assert .93 <= ((low <= true) & (true <= high)).mean() <= .97

def _resamples(n, n_boot, seed):
    "The indexes that `bootstrap` draws"
    seen = []
    bootstrap(lambda idxs: seen.append(idxs) or 0., n, n_boot, seed=seed)
    return seen

def test_resamples_are_seeded_and_leave_the_global_state_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    a = _resamples(50, 3, 0)
    state = np.random.get_state()[1].copy()
    b,c = _resamples(50, 3, 0),_resamples(50, 3, 1)
    assert all((i == j).all() for i,j in zip(a, b)) and not (a[0] == c[0]).all()
    assert (np.random.get_state()[1] == state).all()
    assert all(len(i) == 50 and 0 <= i.min() and i.max() < 50 and len(set(i)) < 50 for i in a)

def test_undefined_resamples_are_left_out():
    vals = iter([np.nan, 1., 2., np.nan])
    assert bootstrap(lambda i: next(vals), 5, 4, level=.5) == (1.25, 1.75)
    assert np.isnan(bootstrap(lambda i: np.nan, 5, 4)).all()

def test_the_statistic_may_be_a_tensor():
    x = torch.arange(20.)
    low,high = bootstrap(lambda i: x[i].mean(), 20, 50)
    assert isinstance(low, float) and low < 9.5 < high

@pytest.mark.parametrize('kw, msg', [(dict(n=0), '`n` is 0'), (dict(n_boot=0), '`n_boot` is 0'), (dict(level=1), '`level` is 1')])
def test_bootstrap_errors(kw, msg):
    with pytest.raises(ValueError, match=msg): bootstrap(lambda i: 0., **(dict(n=5) | kw))

def test_a_bar_changes_nothing(capsys):
    f = lambda i: i.mean()
    assert bootstrap(f, 20, 50, bar=True) == bootstrap(f, 20, 50)
