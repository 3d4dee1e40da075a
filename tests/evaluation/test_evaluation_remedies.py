"What the errors of metrics, statistics, `compare` and test-time augmentation advise works"
from functools import partial

from fastai.vision.all import *
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error
from fastkd.all import *
from fastkd.evaluation.statistics import bootstrap, mcnemar
from remedies import *

dls = image_dls(n=48, bs=8, size=8)
a,b = trained_teacher(dls, 8, 8),trained_teacher(dls, 4, epochs=2)
four = trained_teacher(image_dls(('a','b','c','d'), n=48, bs=8, size=8), 4, n_out=4, epochs=1)
bare = Learner(dls, cnn(4))
no_act = Learner(dls, cnn(4), loss_func=nn.CrossEntropyLoss())
bare.remove_cb(ProgressCallback)
for o in (a, b, four, no_act): o.remove_cb(ProgressCallback)
images = [x for x,_ in dls.valid.items]
def labelled(n=16): return a.dls.test_dl(list(dls.valid.items)[:n], with_labels=True)
both = dict(a=a, b=b)

def comp(models=both, **kwargs): return compare(models, **{'latency':(), 'n_boot':0, **kwargs})
def tta(learn=a, y=None, metric=accuracy, dl=None, n_augs=(0,1), **kwargs):
    return test_time_aug(learn, dl or labelled(), y, metric, n_augs, **{'max_cache':0, **kwargs})
def diverged():
    learn = Learner(dls, cnn(4), metrics=accuracy)
    learn.model[-1].bias.data[0] = math.nan
    return learn

p,y = torch.randn(6,3).softmax(1),tensor([0,1,2,0,1,2])
right = y == 1
ys = [dls.vocab.o2i[o] for o in (*'abcabcabcabcabca',)]

cases = [
    # compare
    ('`models` is …: give a dict of names and learners, such as {\'teacher\': teacher, \'student\': student}',
     lambda: comp([a,b]), 'a dict of names and learners', lambda: comp()),
    ('`models[…]` is an empty list',
     lambda: comp(dict(a=a, b=[])), 'one learner per seed', lambda: comp(dict(a=a, b=[b]))),
    ('`models[…]` holds a …',
     lambda: comp(dict(a=a, b='b')), 'a `Learner`, a module, or a list of them',
     lambda: [comp(), comp(dict(a=a, b=b.model)), comp(dict(a=a, b=[b]))]),
    ('`models[…]` holds the same model twice',
     lambda: comp(dict(a=[a,a])), 'a separate learner for each seed', lambda: comp(dict(a=[a, trained_teacher(dls, 8, 8)]))),
    ('`models[…]` holds models with … and … parameters',
     lambda: comp(dict(a=[a,b])), 'give each architecture a name of its own', lambda: comp(dict(a=[a], b=[b]))),
    ('`reference` is …, which is not in `models`',
     lambda: comp(reference='c'), "'a'", lambda: comp(reference='a')),
    ('`latency` has …: give batch sizes, such as (1, 32), or () for none',
     lambda: comp(latency=(0,)), '(1, 32), or () for none', lambda: [comp(latency=(1,)), comp(latency=())]),
    ('`n_boot` is …: give the number of resamples, or 0 for no intervals',
     lambda: comp(n_boot=-1), 'or 0 for no intervals', lambda: [comp(n_boot=20), comp(n_boot=0)]),
    ('`dl` is None, but there is no validation set for `models[…]`',
     lambda: comp(dict(a=a.model), metrics=accuracy), 'dl=learn.dls.test_dl(files, with_labels=True)',
     lambda: comp(dict(a=a.model), metrics=accuracy, dl=labelled())),
    ('the data has no labels',
     lambda: comp(dl=a.dls.test_dl(images)), 'with_labels=True', lambda: comp(dl=labelled())),
    ('`models[…]` has … outputs for a … task, the reference … has … for a … task',
     lambda: comp(dict(a=a, f=Learner(dls, cnn(4, n_out=4), loss_func=CrossEntropyLossFlat()))), 'models for the same task',
     lambda: comp()),
    ('`models[…]` predicts nan for … of … items',
     lambda: comp(dict(a=a, b=diverged())), 'leave it out', lambda: comp(dict(a=a))),
    ('`metrics` is None, but no model is a `Learner` that has metrics',
     lambda: comp(dict(a=a.model), dl=labelled()), 'metrics=accuracy', lambda: comp(dict(a=a.model), dl=labelled(), metrics=accuracy)),
    ('there is no metric to compute from predictions',
     lambda: comp(dict(a=bare)), 'metrics=accuracy', lambda: comp(dict(a=bare), metrics=accuracy)),
    # Metrics
    ('metric … takes …, not targets and predictions',
     lambda: tta(metric=clustering()), 'such as `f1_score`', lambda: tta(metric=partial(f1_score, average='macro'))),
    ('metric … needs values, but the targets are class indexes',
     lambda: tta(metric=mean_absolute_error), 'such as `accuracy_score`', lambda: tta(metric=accuracy_score)),
    ('metric … needs probabilities, but the predictions go from … to …',
     lambda: tta(no_act, metric=roc()), 'such as `CrossEntropyLossFlat()`', lambda: tta(a, metric=roc())),
    ('`metrics` has …: give metrics of fastai, scikit-learn or torchmetrics, or functions of (preds',
     lambda: comp(metrics='accuracy'), 'metrics of fastai', lambda: comp(metrics=[accuracy, accuracy_score])),
    ('metric … gave …, not a number',
     lambda: tta(metric=partial(f1_score, average=None)), "partial(f1_score, average='macro')",
     lambda: [tta(metric=partial(f1_score, average='macro')), tta(metric=F1Score(average='macro'))]),
    # Statistics
    ('`level` is …: give the share of the interval, between 0 and 1, for example .95',
     lambda: paired_interval([1.,2.], [2.,4.], 95), '.95', lambda: list(paired_interval([1.,2.], [2.,4.], .95))),
    ('`a` has shape …, `b` …',
     lambda: paired_interval([1.], [2.,4.]), 'one score per seed', lambda: list(paired_interval([1.,2.], [2.,4.]))),
    ('`right` holds …, `right_ref` …',
     lambda: mcnemar(y, y), '`preds.argmax(1) == targs`', lambda: mcnemar(p.argmax(1) == y, right)),
    ('`right` has shape …, `right_ref` …',
     lambda: mcnemar(right[:3], right), 'for the same items', lambda: mcnemar(right, right)),
    ('`probs` is empty',
     lambda: ece(p[:0], y[:0]), 'at least one item', lambda: ece(p[:1], y[:1])),
    ('`probs` goes from … to …',
     lambda: nll(torch.randn(6,3)*9, y), '`logits.softmax(1)`', lambda: nll((torch.randn(6,3)*9).softmax(1), y)),
    ('`probs` has shape …, `targs` …',
     lambda: ece(p, y[:3]), 'class indexes (N, *)', lambda: [ece(p, y), ece(p, F.one_hot(y, 3).float())]),
    ('`targs` has the shape of `probs`, but goes from … to …',
     lambda: ece(p, F.one_hot(y, 3)*2), 'give 0 or 1', lambda: [ece(p, F.one_hot(y, 3)), ece(p, y)]),
    ('`targs` goes from … to … (…)',
     lambda: ece(p, y-1), 'leave out items without a label', lambda: ece(p[y>0], y[y>0])),
    ('`n_bins` is …: give at least 1',
     lambda: ece(p, y, 0), 'at least 1', lambda: ece(p, y, 1)),
    ('`n` is …: give the number of items, at least 1',
     lambda: bootstrap(lambda i: 1., 0), 'at least 1', lambda: list(bootstrap(lambda i: float(i.mean()), 4, 10))),
    ('`n_boot` is …: give the number of resamples, at least 1 (1000 for a 95 % interval)',
     lambda: bootstrap(lambda i: 1., 4, 0), 'at least 1', lambda: list(bootstrap(lambda i: 1., 4, 1))),
    # Selection and test-time augmentation
    ('`…` is empty: give at least one class, or None for all of them',
     lambda: class_mask(y, [], None), 'at least one class', lambda: class_mask(y, [0], None)),
    ('`…` has …, but there is no vocabulary to look it up in',
     lambda: class_mask(y, 'a', None), 'class indexes, counted from 0', lambda: class_mask(y, 0, None)),
    ('`…` has …, which is not in the vocabulary of … classes',
     lambda: class_mask(y, 'd', [*'abc']), '', lambda: class_mask(y, 'c', [*'abc'])),
    ('`y_true` holds …, not class indexes',
     lambda: class_mask([*'abc'], 0, None), '`dls.vocab.o2i[name]`', lambda: class_mask([dls.vocab.o2i[o] for o in 'abc'], 0, None)),
    ('`y_true` must hold one class index per item, but has shape … and …',
     lambda: class_mask(F.one_hot(y, 3), 0, None), 'one class index per item', lambda: class_mask(y, 0, None)),
    ('None of the … items is left',
     lambda: class_mask(y[:2], 2, None), 'choose `classes` from [0, 1]',
     lambda: [class_mask(y[:2], 1, None), class_mask(y[:2], 2, None, invert=True)]),
    ('`preds` has shape …, `other` …',
     lambda: agreement(p, p[:3]), 'the same items and classes', lambda: agreement(p, p)),
    ('`preds` has shape …',
     lambda: agreement(y, y), 'scores per class', lambda: agreement(p, p)),
    ('`mask` holds …, not booleans',
     lambda: tta(mask=[0]*16), 'for example `y_true == 3`', lambda: tta(mask=tensor(ys) == 1)),
    ('`mask` has shape …, but there are … items',
     lambda: tta(mask=[True]*3), 'one boolean per item', lambda: tta(mask=[True]*16)),
    ('`mask` is False everywhere',
     lambda: tta(mask=[False]*16), 'mark those that count with True', lambda: tta(mask=[True]+[False]*15)),
    ('… needs labels, but `dl` has none',
     lambda: tta(dl=a.dls.test_dl(images)), 'pass `y_true`, or create `dl` with `learn.dls.test_dl(files, with_labels=True)`',
     lambda: [tta(dl=a.dls.test_dl(images), y=ys), tta(dl=labelled())]),
    ('`y_true` has … entries, but `dl` has … items',
     lambda: tta(y=ys[:3]), 'one entry per item', lambda: tta(y=ys)),
    ('`y_true` goes from … to …, but the … classes are numbered from 0',
     lambda: tta(y=[9]*16), 'their indexes in `learn.dls.vocab`', lambda: tta(y=ys)),
    ('`n_augs` is empty',
     lambda: tta(n_augs=()), 'such as (0, 5, 10)', lambda: tta(n_augs=(0,2))),
    ('`beta` is …: give a weight from 0 (augmented predictions only) to 1 (plain predictions only)',
     lambda: tta(beta=2), 'from 0', lambda: [tta(beta=o) for o in (0,1)]),
    ('`max_cache` is …: give a size in GiB, or 0 to cache nothing',
     lambda: tta(max_cache=-1), 'or 0 to cache nothing', lambda: tta(max_cache=0)),
    ('decoded items exceed `max_cache`=… GiB',
     lambda: tta(max_cache=1e-6), 'raise `max_cache`, or set it to 0', lambda: [tta(max_cache=o) for o in (1e-3,0)]),
    ('the number of augmentations is …',
     lambda: tta(n_augs=(-1,)), '0 for plain predictions', lambda: tta(n_augs=(0,))),
    ('`metric` is …: give a single metric, or use `TTAEvaluator(...).curve` for several',
     lambda: tta(metric=[accuracy,error_rate]), '`TTAEvaluator(...).curve`',
     lambda: TTAEvaluator(a, labelled(), max_cache=0).curve((0,1), [accuracy,error_rate])),
]

def clustering():
    from sklearn.metrics import silhouette_score
    return silhouette_score

def roc():
    from sklearn.metrics import roc_auc_score
    return partial(roc_auc_score, multi_class='ovr')

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
