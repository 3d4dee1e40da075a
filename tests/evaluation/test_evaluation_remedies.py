"What the errors of metrics, statistics, `compare` and test-time augmentation advise works"
from functools import partial

import matplotlib.pyplot as plt
from fastai.vision.all import *
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy
from fastkd.all import *
from fastkd.evaluation.compare import latency_ms
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

def made(*targets, n_out=3, loss_func=None, batch_tfms=None):
    "A learner for random images, with these functions of an item's number, or pipelines of them, as targets"
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ds = Datasets(range(24), [[lambda i: TensorImage(x[i])], *targets], n_inp=1, splits=[range(8),range(8,24)])
    learn = Learner(ds.dataloaders(bs=8, num_workers=0), seeded(cnn, 4, n_out=n_out), loss_func=loss_func or CrossEntropyLossFlat())
    learn.remove_cb(ProgressCallback)
    return learn

def of_class(i): return i%3
def some_unlabelled(i): return i%3 if i%4 else -1
def two_of_three(i): return TensorMultiCategory([i%2, 1, i%3==0]).float()
def value(i): return tensor(i/3)
single = made(of_class)
partly = made(some_unlabelled)
known = [some_unlabelled(i) >= 0 for i in range(8,24)]  # of its validation set
several = made(of_class, of_class)
hot = made(two_of_three, loss_func=BCEWithLogitsLossFlat())
mse = made(two_of_three, loss_func=MSELossFlat())
mse.model[-1].bias.data += 3
values = made(value, n_out=1, loss_func=MSELossFlat())

def curve(learn, metric=accuracy, dl=None, **kwargs): return TTAEvaluator(learn, dl, max_cache=0, **kwargs).curve((0,1), metric)

class Guess(nn.Module):
    "The class that `m` predicts"
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, x): return self.m(x).argmax(1)

def masks(*batch_tfms):
    "A learner for two classes of pixels"
    ms = (np.random.default_rng(0).random((16,8,8)) < .3).astype(np.uint8)
    block = DataBlock((ImageBlock, MaskBlock(['dark','bright'])), splitter=IndexSplitter(range(8)), batch_tfms=[*batch_tfms],
                      getters=[lambda m: PILImage.create(np.stack([m*255]*3, -1)), lambda m: PILMask.create(m)])
    learn = Learner(block.dataloaders([*ms], bs=8, num_workers=0), seeded(nn.Conv2d, 3, 2, 1), loss_func=CrossEntropyLossFlat(axis=1))
    learn.remove_cb(ProgressCallback)
    return learn
def pixels(preds, targs): return (preds.argmax(1) == targs).float().mean()

def exported():
    "A learner from a file, which has no data"
    file = a.path/'exported.pkl'
    a.export(file)
    learn = load_learner(file)
    learn.remove_cb(ProgressCallback)
    return learn

def calibration(models=a, dl=None):
    "The points of the plot"
    ax = plot_calibration(models, dl)
    plt.close(ax.figure)
    return [o for l in ax.lines for o in l.get_ydata().tolist()]

def words():
    "A learner for items of another kind: the name of a colour"
    block = DataBlock((ImageBlock, CategoryBlock), getters=[lambda o: np.full((8,8,3), 100*'abc'.index(o), np.uint8), ItemGetter(-1)])
    learn = Learner(block.dataloaders(['abc'[i%3] for i in range(12)], bs=4, num_workers=0), cnn(4))
    learn.remove_cb(ProgressCallback)
    return learn

cases = [
    # compare
    ('`n` is …: give the number of measurements, at least 1',
     lambda: latency_ms(a.model, torch.rand(1,3,8,8), 0), 'at least 1', lambda: latency_ms(a.model, torch.rand(1,3,8,8), 1)),
    ('`models[…]` has … learners, the reference … has …',
     lambda: comp(dict(a=[a, seed2()], b=[b, seed2(4), seed2(4,1)])), 'give the same seeds in the same order, or a single reference',
     lambda: [comp(dict(a=[a, seed2()], b=[b, seed2(4)])), comp(dict(a=a, b=[b, seed2(4), seed2(4,1)]))]),
    ('`dl` is a …, not a fastai `DataLoader`',
     lambda: comp(dl=images), '`learn.dls.test_dl(items, with_labels=True)`',
     lambda: comp(dl=a.dls.test_dl(dls.valid.items, with_labels=True))),
    ('`dl` is empty',
     lambda: comp(dl=exported().dls.valid), 'pass the items to evaluate', lambda: comp(dl=labelled())),
    ('`models[…]` doesn\'t fit the data',
     lambda: comp(dict(hot=hot, b=made(two_of_three, n_out=5, loss_func=BCEWithLogitsLossFlat())), metrics=accuracy_multi),
     'targets of the shape of the predictions',
     lambda: comp(dict(hot=hot, b=made(two_of_three, loss_func=BCEWithLogitsLossFlat())), metrics=accuracy_multi)),
    ('`models[…]` predicts the classes …, the reference … …',
     lambda: comp(dict(a=a, b=Learner(image_dls(('c','b','a'), n=48, bs=8, size=8), cnn(4)))), 'the same classes, in the same order',
     lambda: comp()),
    ('the data has … targets per item',
     lambda: comp(dict(a=several), metrics=accuracy), 'models with a single target', lambda: comp(dict(a=single), metrics=accuracy)),
    ('the items for `models[…]` have …',
     lambda: comp(dict(a=a, b=Learner(image_dls(n=24, bs=8, size=8), cnn(4)))), 'pass the same items for all models as `dl`',
     lambda: comp(dict(a=a, b=Learner(image_dls(n=24, bs=8, size=8), cnn(4))), dl=dls.valid)),
    ('the predictions of … are for the task …, those of … for …',
     lambda: comp(dict(a=hot, b=mse), metrics=accuracy_multi), 'with loss functions of the same kind',
     lambda: comp(dict(a=hot, b=made(two_of_three, loss_func=BCEWithLogitsLossFlat())), metrics=accuracy_multi)),
    ('… of … targets are -1, which means no label',
     lambda: comp(dict(a=partly), metrics=accuracy), 'pass labelled items as `dl`',
     lambda: comp(dict(a=partly), metrics=accuracy, dl=partly.dls.test_dl([i for i in range(8,24) if i%4], with_labels=True))),
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
    ('metric …: … (it was called with predictions … and targets …)',
     lambda: tta(metric=lambda y, p: f1_score(y, p, average='macro')), 'calls its first argument `y_true`',
     lambda: tta(metric=lambda y_true, y_pred: f1_score(y_true, y_pred, average='macro'))),
    ('the predictions have shape …, the targets …',
     lambda: tta(y=[[0,1]]*16, metric=accuracy_score), 'class indexes (N, *), or targets of the shape of the predictions',
     lambda: [tta(y=ys), tta(y=F.one_hot(tensor(ys), 3), metric=f1)]),
    ('metric … needs classes, but the targets are values from … to …',
     lambda: comp(dict(a=values), metrics=accuracy_score), 'such as `mean_absolute_error`',
     lambda: comp(dict(a=values), metrics=mean_absolute_error)),
    ('metric … needs scores, but the predictions are class indexes (…)',
     lambda: tta(classes_only(), metric=roc(), n_augs=(0,)), 'give probabilities, (N, C, *), or use a metric of labels, such as `f1_score`',
     lambda: [tta(metric=roc()), tta(classes_only(), metric=f1, n_augs=(0,))]),
    ('metric …: the targets go from … to …, but the … classes are numbered from 0',
     lambda: curve(partly, accuracy_score), 'with `mask=y_true >= 0`', lambda: curve(partly, accuracy_score, mask=known)),
    ('metric …: … (targets …, predictions …)',
     lambda: tta(metric=f1_score), 'Please choose another average setting', lambda: tta(metric=f1)),
    ('metric … is for two classes, but the model predicts …',
     lambda: tta(metric=BinaryAccuracy()), 'whose name begins with Multiclass', lambda: tta(metric=MulticlassAccuracy(num_classes=3))),
    ('metric …: …',
     lambda: tta(metric=MulticlassAccuracy(num_classes=4)), 'should be equal to', lambda: tta(metric=MulticlassAccuracy(num_classes=3))),
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
    ('`y_true` goes from … to …, but the … classes are numbered from 0',
     lambda: tta(y=[-1,*ys[1:]]), 'leave out items without a label, -1, with `mask`',
     lambda: tta(y=[-1,*ys[1:]], mask=tensor([-1,*ys[1:]]) >= 0)),
    ('`dl` is a … without a fastai `Datasets`, whose transforms do the augmentation',
     lambda: tta(dl=DataLoader([(torch.rand(3,8,8), 0)]*16, bs=8, num_workers=0)), '`learn.dls.test_dl`', lambda: tta(dl=labelled())),
    ('`dl` is empty',
     lambda: curve(exported()), '`dl=learn.dls.test_dl(files, with_labels=True)`',
     lambda: curve(l := exported(), dl=l.dls.test_dl(dls.valid.items, with_labels=True))),
    ('`invert` is True but `classes` is None',
     lambda: curve(a, invert=True), 'name the classes to leave out', lambda: curve(a, invert=True, classes='a')),
    ('`pred_classes` has class …, but the model predicts … classes, numbered from 0',
     lambda: curve(single, pred_classes=[1,3]), 'give indexes up to 2', lambda: curve(single, pred_classes=[1,2])),
    ('`pred_classes` needs probabilities, but the learner\'s loss function has no activation',
     lambda: curve(no_act, pred_classes=['a','b']), 'such as `CrossEntropyLossFlat()`', lambda: curve(a, pred_classes=['a','b'])),
    ('none of the … items is both in `mask` and in the selected classes',
     lambda: curve(single, mask=of_single == 1, classes=2), 'change `mask`, `classes` or `invert`',
     lambda: [curve(single, mask=of_single == 2, classes=2), curve(single, mask=of_single == 1, classes=1),
              curve(single, mask=of_single == 1, classes=2, invert=True)]),
    ('test-time augmentation moves the images in a way that cannot be undone exactly (…), so predictions',
     lambda: curve(masks(*aug_transforms(mult=4)), pixels), 'aug_transforms(max_rotate=0, max_zoom=1, max_warp=0)',
     lambda: curve(masks(*aug_transforms(max_rotate=0, max_zoom=1, max_warp=0)), pixels)),
    # Plots of predictions
    ('`dl` has items that the transforms of a learner can\'t read',
     lambda: calibration(words(), dls.valid), 'pass items of the same kind as its own, or pass `learn.model` instead of the learner',
     lambda: [calibration(words()), calibration(words().model, dls.valid)]),
    ('`dl` has no labels',
     lambda: calibration(a, a.dls.test_dl(images)), '`learn.dls.test_dl(files, with_labels=True)`', lambda: calibration(a, labelled())),
    ('`dl` is None, but no model is a `Learner` with a validation set',
     lambda: calibration(a.model), 'pass `dl`', lambda: calibration(a.model, dls.valid)),
    ('`dl` is a …',
     lambda: calibration(a, images), 'pass a fastai `DataLoader`, such as `learn.dls.valid`', lambda: calibration(a, a.dls.valid)),
    ('`dl` is empty',
     lambda: calibration(exported()), '`dl=learn.dls.test_dl(files, with_labels=True)`',
     lambda: calibration(l := exported(), l.dls.test_dl(dls.valid.items, with_labels=True))),
    ('`models` is empty',
     lambda: calibration({}), "a `Learner`, or a dict such as `{'student': student}`",
     lambda: [calibration(b), calibration({'student': b})]),
    ('…: it doesn\'t know the class … (… of … are unknown to it)',
     lambda: calibration(dict(four=four, a=a)), 'compare models with the same classes', lambda: calibration(both)),
    ('…: this plot is for tasks with a single label per item, predictions (N, C) and class indexes (N,)',
     lambda: calibration(hot), 'for tasks with a single label per item', lambda: calibration(single)),
    ('…: with the loss function …, the predictions don\'t add up to 1',
     lambda: calibration(made(of_class, loss_func=MSELossFlat())), 'trained with a loss such as `CrossEntropyLossFlat()`',
     lambda: calibration(made(of_class, loss_func=CrossEntropyLossFlat()))),
    ('…: … is a …: pass a `Learner` or an nn.Module',
     lambda: calibration('a'), 'a `Learner` or an nn.Module', lambda: [calibration(a), calibration(a.model, dls.valid)]),
]

f1 = partial(f1_score, average='macro')
of_single = tensor([of_class(i) for i in range(8,24)])
def seed2(c=8, seed=2): return Learner(dls, seeded(cnn, *((8,8) if c == 8 else (c,)), seed=seed))
def classes_only():
    learn = Learner(dls, Guess(a.model), loss_func=lambda p, y: tensor(0.))
    learn.remove_cb(ProgressCallback)
    return learn

def clustering():
    from sklearn.metrics import silhouette_score
    return silhouette_score

def roc():
    from sklearn.metrics import roc_auc_score
    return partial(roc_auc_score, multi_class='ovr')

@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
