"`fastkd.evaluation.scoring`: metrics of scikit-learn and torchmetrics as they are, fastai's as before, errors before time is spent"
import functools, inspect, warnings
from functools import partial

import numpy as np, pytest, sklearn.metrics as skm, torch, torchmetrics as tm
from fastai.vision.all import *
from torchmetrics import classification as tmc

from fastkd.evaluation.scoring import as_metrics, metric_name, metric_value, row_scorer, sklearn_needs, task_kind
from fastkd.evaluation.tta import test_time_aug, TTAEvaluator
from helpers import image_dls, trained_teacher

def value(metric, preds, targs): return metric_value(as_metrics(metric)[0][1], preds, targs)
def close(a, b, eps=1e-9): assert abs(a-b) <= eps, (a, b)

def single(n=200, c=4, seed=0):
    "Probabilities of a model that is right more often than not, and class indexes"
    rng = np.random.default_rng(seed)
    y = rng.integers(c, size=n)
    z = rng.normal(size=(n,c))
    z[np.arange(n),y] += 1
    return tensor(z).float().softmax(1),tensor(y)

def multi(n=200, c=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.random((n,c)) < .4
    return tensor(rng.normal(size=(n,c)) + 1.5*y).float().sigmoid(),tensor(y).float()

weighted = partial(skm.f1_score, average='weighted')

# scikit-learn, single-label

@pytest.mark.parametrize('metric', [
    skm.accuracy_score, skm.balanced_accuracy_score, skm.matthews_corrcoef, skm.cohen_kappa_score, skm.zero_one_loss, weighted,
    partial(skm.f1_score, average='macro'), partial(skm.precision_score, average='micro'), partial(skm.jaccard_score, average='macro'),
    partial(skm.fbeta_score, beta=2, average='macro'), skm.adjusted_rand_score, skm.hamming_loss])
def test_functions_of_labels(metric):
    p,y = single()
    close(value(metric, p, y), metric(y, p.argmax(1)))

@pytest.mark.parametrize('metric, kw', [
    (skm.log_loss, {}), (skm.roc_auc_score, dict(multi_class='ovr')), (skm.average_precision_score, {}), (skm.top_k_accuracy_score, {}),
    (partial(skm.top_k_accuracy_score, k=3), {}), (partial(skm.roc_auc_score, average='weighted'), dict(multi_class='ovr')),
    (partial(skm.average_precision_score, average='weighted'), {}), (skm.d2_log_loss_score, {})])
def test_functions_of_scores(metric, kw):
    p,y = single()
    close(value(metric, p, y), metric(y, p.numpy(), **kw), 1e-7)

def test_what_the_user_set_stays():
    p,y = single()
    ovo = partial(skm.roc_auc_score, multi_class='ovo')
    close(value(ovo, p, y), ovo(y, p), 1e-9)
    assert abs(value(ovo, p, y) - value(skm.roc_auc_score, p, y)) > 1e-6
    f1 = partial(skm.f1_score, average='macro', labels=[0,2])
    close(value(f1, p, y), f1(y, p.argmax(1)))

def test_partials_of_partials():
    p,y = single()
    class Own(functools.partial): pass
    nested = partial(Own(skm.f1_score, average='macro'), zero_division=0)
    for m in nested, Own(nested), partial(partial(skm.f1_score, average='macro'), zero_division=0):
        close(value(m, p, y), skm.f1_score(y, p.argmax(1), average='macro'))
        assert metric_name(as_metrics(m)[0][1]) == 'f1_score'

@pytest.mark.parametrize('metric', [
    skm.roc_auc_score, skm.average_precision_score, skm.log_loss, skm.brier_score_loss, skm.d2_log_loss_score])
def test_two_classes_give_the_probability_of_the_second(metric):
    p,y = single(c=2)
    close(value(metric, p, y), metric(y, p[:,1]), 1e-7)

def test_ranking_metrics_get_indicators():
    for c in 2,4:
        p,y = single(c=c)
        hot = np.eye(c)[y]
        for m in skm.label_ranking_average_precision_score, skm.ndcg_score, skm.coverage_error: close(value(m, p, y), m(hot, p.numpy()))

def test_a_selection_without_a_class():
    p,y = single()
    for m in skm.log_loss, partial(skm.top_k_accuracy_score, k=2), skm.d2_log_loss_score:
        s,keep = row_scorer(as_metrics(m)[0][1], p, y),np.flatnonzero(y != 3)
        close(s(keep), m(y[keep], p[keep].numpy(), labels=range(4)), 1e-7)
    for m in partial(skm.f1_score, average='macro'), skm.balanced_accuracy_score:
        keep = np.flatnonzero((y != 3) & (p.argmax(1) != 3))
        close(row_scorer(as_metrics(m)[0][1], p, y)(keep), m(y[keep], p[keep].argmax(1)))
    keep = np.flatnonzero(y != 0)
    ap = [skm.average_precision_score(y[keep] == k, p[keep,k]) for k in (1,2,3)]
    close(row_scorer(as_metrics(skm.average_precision_score)[0][1], p, y)(keep), np.mean(ap))

def test_distances_between_classes_survive_a_selection():
    y,p = tensor([0,0,0,1,1,3,3]),torch.eye(4)[[0,0,1,1,1,3,1]]  # none is of class 2
    kappa = partial(skm.cohen_kappa_score, weights='quadratic')
    close(value(kappa, p, y), kappa(y, p.argmax(1), labels=range(4)))
    assert abs(value(kappa, p, y) - kappa(y, p.argmax(1))) > .01

@pytest.mark.parametrize('metric', [skm.log_loss, skm.brier_score_loss])
def test_one_class_of_two(metric):
    p,y = single(c=2)
    keep = np.flatnonzero(y == 1)
    close(row_scorer(as_metrics(metric)[0][1], p, y)(keep), metric(y[keep], p[keep,1], labels=[0,1]), 1e-7)
    close(row_scorer(as_metrics(metric)[0][1], p[:,1:], y.float())(keep), metric(y[keep], p[keep,1], labels=[0,1]), 1e-7)

def test_every_public_function_is_understood_or_refused():
    "No function of scikit-learn is called with something that it can't take"
    p,y = single()
    seen = []
    for name in skm.__all__:
        f = getattr(skm, name)
        if not inspect.isfunction(f) or name in ('make_scorer','get_scorer','get_scorer_names','check_scoring'): continue
        try: need = sklearn_needs(f)
        except ValueError as e: assert name in str(e)
        else: seen.append((name, need))
    need = dict(seen)
    assert need['cohen_kappa_score'] == need['f1_score'] == need['v_measure_score'] == 'labels'
    assert need['log_loss'] == need['brier_score_loss'] == need['ndcg_score'] == need['roc_auc_score'] == 'scores'
    assert need['mean_squared_log_error'] == need['max_error'] == need['d2_tweedie_score'] == 'values'
    assert not need.keys() & {'silhouette_score','hinge_loss','auc','euclidean_distances','consensus_score'}

# other tasks

def test_multi_label():
    p,y = multi()
    hit,y1 = (p > .5).int(),y.int().numpy()
    close(value(partial(skm.f1_score, average='macro'), p, y), skm.f1_score(y1, hit, average='macro'))
    close(value(skm.accuracy_score, p, y), skm.accuracy_score(y1, hit))
    close(value(skm.roc_auc_score, p, y), skm.roc_auc_score(y1, p))
    close(value(skm.average_precision_score, p, y), skm.average_precision_score(y1, p))
    close(value(skm.label_ranking_loss, p, y), skm.label_ranking_loss(y1, p))
    close(value(partial(skm.f1_score, average='macro'), p.logit(), y), skm.f1_score(y1, hit, average='macro'))  # logits: the threshold is 0

def test_one_sigmoid():
    p,y = single(c=2)
    p1 = p[:,1:]
    close(value(skm.f1_score, p1, y.float()), skm.f1_score(y, p1[:,0] > .5))
    close(value(skm.roc_auc_score, p1, y[:,None].float()), skm.roc_auc_score(y, p1))

def test_regression():
    y = torch.linspace(1, 3, 30)
    p = (y + .1*torch.sin(9*y))[:,None]
    for m in skm.mean_absolute_error, skm.r2_score, skm.max_error, skm.mean_squared_log_error: close(value(m, p, y), m(y, p[:,0]), 1e-6)
    two = torch.stack([y, 2*y], 1)
    close(value(skm.mean_squared_error, two+.1, two), .01, 1e-6)
    r2 = partial(skm.r2_score, multioutput='variance_weighted')
    close(value(r2, two+.1, two), r2(two, two+.1), 1e-6)

def test_dense_predictions_count_every_position():
    rng = np.random.default_rng(0)
    p,y = tensor(rng.normal(size=(3,4,5,6))).float().softmax(1),tensor(rng.integers(4, size=(3,5,6)))
    close(value(weighted, p, y), weighted(y.flatten(), p.argmax(1).flatten()))
    flat = p.permute(0,2,3,1).reshape(-1, 4)
    close(value(skm.log_loss, p, y), skm.log_loss(y.flatten(), flat.numpy(), labels=range(4)), 1e-6)
    s = row_scorer(as_metrics(weighted)[0][1], p, y)
    close(s(np.array([2,0,2])), weighted(y[[2,0,2]].flatten(), p[[2,0,2]].argmax(1).flatten()))

def test_tabular_targets_have_a_column():
    p,y = single()
    for m in weighted, skm.log_loss, tmc.MulticlassAccuracy(4): close(value(m, p, y[:,None]), value(m, p, y))

def test_half_precision():
    p,y = single()
    close(value(weighted, p.bfloat16(), y), weighted(y, p.bfloat16().argmax(1)))

# torchmetrics

@pytest.mark.parametrize('metric, ref', [
    (lambda: tmc.MulticlassAccuracy(4, average='micro'), lambda y,p: skm.accuracy_score(y, p.argmax(1))),
    (lambda: tmc.MulticlassF1Score(4, average='macro'), lambda y,p: skm.f1_score(y, p.argmax(1), average='macro')),
    (lambda: tmc.MulticlassAUROC(4), lambda y,p: skm.roc_auc_score(y, p, multi_class='ovr'))])
def test_torchmetrics_of_single_labels(metric, ref):
    p,y = single()
    close(value(metric(), p, y), ref(y, p), 1e-6)
    keep = np.flatnonzero(y > 0)
    own = metric()
    own.update(p[keep], y[keep])
    close(row_scorer(as_metrics(metric())[0][1], p, y)(keep), own.compute().item())

def test_torchmetrics_of_two_classes():
    p,y = single(c=2)
    for m in tmc.BinaryAUROC(), tm.AUROC(task='binary'):
        close(value(m, p, y), skm.roc_auc_score(y, p[:,1]), 1e-6)
        logits = p.log() + torch.linspace(-3, 3, len(y))[:,None]  # of a loss without activation
        close(value(m, logits, y), skm.roc_auc_score(y, p[:,1]), 1e-6)
    close(value(tmc.BinaryAccuracy(), p[:,1:], y.float()), skm.accuracy_score(y, p.argmax(1)), 1e-6)
    close(value(tmc.MulticlassF1Score(2), p, y), skm.f1_score(y, p.argmax(1), average='macro'), 1e-6)

def test_torchmetrics_of_multi_label_and_regression():
    p,y = multi()
    close(value(tmc.MultilabelF1Score(4), p, y), skm.f1_score(y, p > .5, average='macro'), 1e-6)
    v = torch.linspace(1, 3, 30)
    close(value(tm.MeanSquaredError(), v[:,None]+.1, v), .01, 1e-6)

def test_the_users_metric_is_not_touched():
    p,y = single()
    m = tmc.MulticlassAccuracy(4)
    m.update(p[:10], y[:10])
    before = m.compute().item()
    value(m, p, y)
    m.update(p[:10], y[:10])
    assert m.compute().item() == before and m.update_count == 2

def test_names():
    names = [nm for nm,_ in as_metrics([accuracy, skm.accuracy_score, tmc.MulticlassAccuracy(3), weighted, skm.f1_score])]
    assert names == ['accuracy','accuracy_score','MulticlassAccuracy','f1_score','f1_score#2']

# fastai's go on as before

def test_fastais_own_metrics():
    p,y = single()
    close(value(accuracy, p, y), skm.accuracy_score(y, p.argmax(1)), 1e-6)
    close(value(F1Score(average='macro'), p, y), skm.f1_score(y, p.argmax(1), average='macro'))
    close(value(skm_to_fastai(skm.matthews_corrcoef), p, y), skm.matthews_corrcoef(y, p.argmax(1)))
    close(value(AccumMetric(skm.matthews_corrcoef, dim_argmax=-1, invert_arg=True), p, y), skm.matthews_corrcoef(p.argmax(1), y))
    close(value(lambda preds,targs: preds[:,0].sum() + 0*targs.sum(), p, y), p[:,0].sum().item(), 1e-5)

def test_row_scorer_of_each_kind_is_metric_value_of_those_rows():
    p,y = single()
    rows = np.random.default_rng(1).integers(len(y), size=len(y))
    for m in accuracy, F1Score(average='macro'), RocAuc(), weighted, skm.roc_auc_score, tmc.MulticlassAccuracy(4):
        (_,m), = as_metrics(m)
        close(row_scorer(m, p, y)(rows), metric_value(m, p[rows], y[rows]))
        close(row_scorer(m, p, y)(), metric_value(m, p, y))

# functions of one's own that call scikit-learn's

def macro(y_true, y_pred): return skm.f1_score(y_true, y_pred, average='macro')
def ranked(y_true, y_score): return skm.top_k_accuracy_score(y_true, y_score, k=2)
def off_by(y_true, y_pred, power=1): return (abs(y_true-y_pred)**power).mean()
class Cost:
    "A callable object"
    def __call__(self, y_true, y_pred): return np.where(y_true == 0, 5., 1.)[y_true != y_pred].sum()

def test_a_function_that_takes_y_true_first_is_called_as_scikit_learns():
    p,y = single()
    for m in macro, lambda y_true, y_pred: macro(y_true, y_pred): close(value(m, p, y), skm.f1_score(y, p.argmax(1), average='macro'))
    close(value(ranked, p, y), skm.top_k_accuracy_score(y, p.numpy(), k=2))
    close(value(Cost(), p, y), Cost()(y.numpy(), p.argmax(1).numpy()))
    x,z = torch.randn(20,1),torch.randn(20,1)
    close(value(partial(off_by, power=2), x, z), skm.mean_squared_error(z, x), 1e-6)
    mp,my = multi()
    close(value(macro, mp, my), skm.f1_score(my, mp > .5, average='macro'))

def test_a_function_of_preds_and_targs_is_called_as_fastais():
    p,y = single()
    close(value(lambda inp, targ: accuracy(inp, targ), p, y), (p.argmax(1) == y).float().mean(), 1e-7)
    with pytest.raises(ValueError, match=r"metric <lambda>: .*predictions \(200, 4\) and targets \(200,\).*calls its first argument `y_true`"):
        value(lambda y, p: skm.f1_score(y, p, average='macro'), p, y)

# errors

@pytest.mark.parametrize('metric, preds, targs, msg', [
    (skm.f1_score, [[1.5],[2.]], [1.2,2.1], 'f1_score needs classes, but the targets are values from 1.2 to 2.1'),
    (skm.roc_auc_score, [[1.5],[2.]], [1.2,2.1], 'roc_auc_score needs classes'),
    (skm.mean_squared_error, [[.5,.5],[.2,.8]], [0,1], 'mean_squared_error needs values, but the targets are class indexes'),
    (skm.roc_auc_score, [0,1], [0,1], r'roc_auc_score needs scores, but the predictions are class indexes \(torch.int64\)'),
    (skm.log_loss, [[4.,.5],[.2,.8]], [0,1], 'log_loss needs probabilities, but the predictions go from 0.2 to 4'),
    (skm.f1_score, [[.5,.5],[.2,.8]], [-1,1], 'the targets go from -1 to 1, but the 2 classes.*without a label'),
    (skm.f1_score, [[.5,.3,.2],[.2,.8,0]], [0,2], "f1_score: Target is multiclass but average='binary'"),
    (tmc.MulticlassAccuracy(2), [[.5,.5],[.2,.8]], [0,-1], 'MulticlassAccuracy: the targets go from -1 to 0'),
    (tmc.BinaryAUROC(), [[.5,.3,.2],[.2,.8,0]], [0,2], 'BinaryAUROC is for two classes, but the model predicts 3'),
    (tmc.MulticlassAUROC(2), [0,1], [0,1], 'MulticlassAUROC: '),
    (skm.accuracy_score, [[.5,.5],[.2,.8]], [0,1,1], r'predictions have shape \(2, 2\), the targets \(3,\)'),
    (partial(skm.f1_score, average=None), [[.5,.5],[.2,.8]], [0,1], "f1_score gave ndarray, not a number.*average='macro'"),
    (tmc.MulticlassAccuracy(2, average=None), [[.5,.5],[.2,.8]], [0,1], 'MulticlassAccuracy gave Tensor, not a number')])
def test_clear_errors(metric, preds, targs, msg):
    with pytest.raises(ValueError, match=msg): value(metric, tensor(preds), tensor(targs))

@pytest.mark.parametrize('metric, msg', [
    ('accuracy', "`metrics` has 'accuracy'"), (skm.silhouette_score, 'silhouette_score takes'), (skm.hinge_loss, 'hinge_loss takes'),
    (skm.make_scorer(skm.f1_score), "takes .'estimator', 'X', 'y_true'"),
    (tm.MetricCollection([tmc.BinaryAUROC()]), "'BinaryAUROC'|number")])
def test_errors_before_predictions(metric, msg):
    with pytest.raises(ValueError, match=msg): value(metric, *single(c=2))

def test_kinds():
    assert task_kind(torch.rand(3,2), tensor([0.,1.,1.])) == 'single'  # a data frame makes floats of indexes
    assert task_kind(tensor([[0,1],[1,1]]), tensor([[0,1],[1,0]])) == 'binary'
    assert task_kind(torch.rand(3,1), tensor([[0],[1],[1]])) == 'binary'
    assert task_kind(torch.rand(2,1), tensor([7,9])) == 'regression'

# test-time augmentation

@pytest.fixture(scope='module')
def learn():
    learn = trained_teacher(image_dls(batch_tfms=aug_transforms(size=16)), 4)
    learn.remove_cb(ProgressCallback)
    return learn

def test_a_weighted_f1_in_test_time_aug(learn):
    dl,targs = learn.dls.valid,learn.get_preds()[1]
    for mask in None, np.arange(len(targs)) % 4 > 0, targs.numpy() != 1:
        preds,y = TTAEvaluator(learn, dl, mask=mask, beta=.1, seed=3).preds(3)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            df = test_time_aug(learn, dl, None, weighted, [3], mask=mask, seed=3)
        assert df.score[0] == skm.f1_score(y, preds.argmax(1), average='weighted')
    assert len(y) < len(targs)

def test_a_curve_of_several_kinds_of_metrics(learn):
    ev = TTAEvaluator(learn, seed=3)
    preds,y = ev.preds(2)
    df = ev.curve(2, [accuracy, weighted, skm.log_loss, tmc.MulticlassAccuracy(3, average='micro')])
    assert list(df.columns) == ['n_aug','accuracy','f1_score','log_loss','MulticlassAccuracy','time']
    acc = skm.accuracy_score(y, preds.argmax(1))
    for a,b in zip(df.iloc[0][1:-1], [acc, weighted(y, preds.argmax(1)), skm.log_loss(y, preds.numpy()), acc]): close(a, b, 1e-6)

def test_a_torchmetric_in_test_time_aug(learn):
    acc = test_time_aug(learn, learn.dls.valid, None, tmc.MulticlassAccuracy(3, average='micro'), [1], seed=3).score[0]
    close(acc, test_time_aug(learn, learn.dls.valid, None, accuracy, [1], seed=3).score[0], 1e-6)
