"What the errors and warnings of `trial` and of the other ways to train advise works"
import os
from copy import deepcopy

from fastai.vision.all import *
from fastkd.all import *
from remedies import *

dls = image_dls(n=48, bs=8, size=8)
other = image_dls(('x','y','z'), n=48, bs=8, size=8)
teacher = trained_teacher(dls, 8, 8, epochs=12)

def make(dls=dls, seed=None, n_out=3, **kwargs):
    "A fresh learner; `trial` sets the seed"
    learn = Learner(dls, cnn(4, n_out=n_out) if seed is None else seeded(cnn, 4, n_out=n_out, seed=seed), **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

two = {'alone': None, 'distilled': dict(weight=.5)}
def run(methods=two, seeds=1, make=make, **kwargs):
    return trial(make, teacher, methods, seeds, 1, 1e-3, **kwargs).runs.drop(columns='seconds')
kept = make(seed=0)
def same(): return kept
def counted():
    "Other weights each time, whatever the seed"
    global count
    count += 1
    return make(seed=count)
count = 0
def files(names): return [o for n in names if (o := Path(f'models/{n}')).exists()]

def mutual(peer=None, learn=None, **kwargs):
    learn = learn or make(seed=0)
    learn.fit_mutual(make(seed=1) if peer is None else peer, 1, 1e-3, **kwargs)
    return learn

def mean(decay):
    learn = make(seed=0, cbs=MeanTeacher(decay))
    learn.fit(1)
    return learn

def averaged(mine):
    learn,o = mean(.9),make(seed=1)
    with learn.mean_teacher.averaged(learn if mine else o): return learn.validate()[0]

def chain(*makes, **kwargs):
    return len(distill_chain(teacher, list(makes), 12, 1e-2, **kwargs).learners)

def match(mixup, cbs=None):
    learn = make(seed=0)
    learn.fit_match(teacher, 1, 1e-3, mixup=mixup, cbs=cbs)
    return learn.validate()[0]

mse = dict(loss_func=MSELossFlat())
unlabelled = DataLoaders(dls.train, dls.test_dl([x for x,_ in dls.valid.items]))
def shared():
    m = make(seed=0)
    return m,Learner(dls, nn.Sequential(*m.model))

cases = [
    # trial
    ('methods=…: give a dict of names and methods',
     lambda: run(['alone']), 'a dict of names and methods', lambda: run({'alone': None})),
    ('methods is empty',
     lambda: run({}), 'at least one method', lambda: run({'alone': None})),
    ('methods has the name …',
     lambda: run({1: None}), 'give text', lambda: run({'1': None})),
    ('methods[…]=…: give a dict of arguments of KnowledgeDistillation, None (the student alone), … (with',
     lambda: run({'a': 'alone'}), "'smooth' (with label smoothing), 'faster head'",
     lambda: run({'a': dict(weight=.5), 'b': None, 'c': 'smooth', 'd': 'faster head', 'e': make})),
    ('methods[…]: …',
     lambda: run({'a': dict(T=4)}), "methods['a']", lambda: run({'a': dict(loss=SoftTarget(T=4))})),
    ('cbs=… can\'t be copied for each run (…)',
     lambda: run(cbs=[Uncopied()]), 'pass a function that creates new callbacks', lambda: run(cbs=lambda: [Uncopied()])),
    ("cbs has …: distillation is a method, as in methods={'distilled': dict(weight=.5)}, and a trial",
     lambda: run(cbs=KnowledgeDistillation(teacher)), "as in methods={'distilled': dict(weight=.5)}",
     lambda: run({'distilled': dict(weight=.5)})),
    ("cbs has …: distillation is a method, as in methods={'distilled': dict(weight=.5)}, and a trial",
     lambda: run(cbs=Resume('a')), 'a trial resumes if you give it a file', lambda: run(file='resumed')),
    ('cbs: LabelSmoothing needs a plain cross-entropy, but …',
     lambda: make(seed=0, cbs=smoothing(), loss_func=LabelSmoothingCrossEntropyFlat()), 'but ',
     lambda: len(make(seed=0, cbs=smoothing()).cbs)),
    ('seeds is empty',
     lambda: run(seeds=[]), 'a number of seeds, or a list of them', lambda: [run(seeds=1), run(seeds=[3])]),
    ('seeds has …: give whole numbers',
     lambda: run(seeds=[.5]), 'whole numbers', lambda: run(seeds=[5])),
    ('seeds has …: give numbers from 0 to 2**63-1',
     lambda: run(seeds=[-1]), 'from 0', lambda: run(seeds=[0])),
    ('seeds=… has a seed twice',
     lambda: run(seeds=[1,1]), 'give each once', lambda: run(seeds=[1])),
    ('make=…: pass a function without arguments that returns a fresh Learner',
     lambda: run(make=kept), 'a function without arguments', lambda: run(make=lambda: make())),
    ('… returned a …: it must return a fresh Learner',
     lambda: run(make=lambda: cnn(4)), 'it must return a fresh Learner', lambda: run(make=lambda: Learner(dls, cnn(4)))),
    ('… returned a learner with a model or callback that an earlier learner, or the teacher, already has',
     lambda: run(make=same), 'create new ones each time', lambda: run(make=make)),
    ('make returned other initial weights than before with seed …, but all methods must start from the',
     lambda: run(make=counted), 'and set no seed', lambda: run(make=make)),
    ('make returned a learner without validation data',
     lambda: run(make=lambda: make(DataLoaders(dls.train))), 'a trial compares there',
     lambda: run(make=lambda: make(DataLoaders(dls.train, dls.valid)))),
    ('the validation data has no labels, so there is nothing to compare',
     lambda: run(make=lambda: make(unlabelled, loss_func=CrossEntropyLossFlat())), 'give it labels', lambda: run()),
    ('make returned a learner with a KnowledgeDistillation, but the methods decide about distillation',
     lambda: run(make=lambda: make(cbs=KnowledgeDistillation(teacher, weight=.3))), 'give its arguments as a method',
     lambda: run({'distilled': dict(weight=.3)})),
    ('the metric … gives …',
     lambda: run(make=lambda: make(metrics=[AvgMetric(lambda p, y: p.mean(0))])), 'metrics that give a number',
     lambda: run(make=lambda: make(metrics=[AvgMetric(lambda p, y: p.mean())]))),
    ('label smoothing makes no sense here, because …',
     lambda: run({'s': 'smooth'}, make=smoothed), 'leave this method out, or pass a function',
     lambda: run({'alone': None, 's': smoothed}, make=smoothed)),
    ('methods[…] returned a learner with the metrics …, but make\'s learner has …',
     lambda: run({'alone': None, 'm': lambda: make(metrics=error_rate)}), 'give both the same',
     lambda: run({'alone': None, 'm': lambda: make(metrics=error_rate)}, make=lambda: make(metrics=error_rate))),
    ('methods[…] returned a learner with … validation items, but make\'s learner has …',
     lambda: run({'alone': None, 'm': lambda: make(image_dls(n=24, bs=8, size=8))}), 'on the same items',
     lambda: run({'alone': None, 'm': lambda: make(dls)})),
    ('method=… has no finished run',
     lambda: tried().student('other'), 'choose from alone', lambda: tried().student('alone').validate()[0]),
    ('file=… is from a different trial',
     lambda: [run(file='t'), run(dict(a=None), file='t', make=lambda: make(metrics=error_rate))],
     'or delete the file or use another name',
     lambda: [run(file='t1'), run(file='t1'), run(dict(a=None), file='t2', make=lambda: make(metrics=error_rate))]),
    ('file=… is the checkpoint of a fit, not of a trial',
     lambda: [fitted('f'), run(file='f')], 'use another name', lambda: [fitted('f1'), run(file='f2')]),
    # Mutual learning, and the others
    ('peer=… is empty',
     lambda: mutual([]), 'a Learner, or a list of them', lambda: [mutual(make(seed=1)), mutual([make(seed=1), make(seed=2)])]),
    ('peer=… is a …',
     lambda: mutual(cnn(4)), 'give a Learner, with data, a loss function and metrics',
     lambda: mutual(Learner(dls, cnn(4), metrics=accuracy))),
    ('… is … itself, or has its model',
     lambda: mutual(m := make(seed=0), m), 'a Learner with a model of its own', lambda: mutual(make(seed=0), make(seed=0))),
    ('… shares … parameter… with …',
     lambda: mutual(*shared()), 'copy.deepcopy(model)', lambda: (lambda a, b: mutual(Learner(dls, deepcopy(a.model)), b))(*shared())),
    ('… has the classes … and the learner …',
     lambda: mutual(make(other)), 'a peer for the same data', lambda: mutual(make(dls))),
    ('… has the task … and the learner …',
     lambda: mutual(make(loss_func=BCEWithLogitsLossFlat())), 'give both the same loss function', lambda: mutual(make(), make())),
    ('mutual learning compares probabilities of classes, but the task is …',
     lambda: mutual(make(**mse), make(**mse)), 'it is for classification', lambda: mutual()),
    ('peer: it predicts … and the learner …',
     lambda: mutual(make(n_out=5)), 'a model with the same outputs', lambda: mutual(make())),
    ('decay=…: the average would never change',
     lambda: MeanTeacher(1.), 'give less than 1', lambda: mean(.99)),
    ('averaged: give the learner that was trained with this MeanTeacher',
     lambda: averaged(False), 'mean_teacher.averaged(learn)', lambda: averaged(True)),
    ('… has …: pass functions without arguments that each return a fresh Learner',
     lambda: chain(kept), 'functions without arguments', lambda: chain(make)),
    ('… returned a … in step …',
     lambda: chain(lambda: cnn(4)), 'it must return a fresh Learner', lambda: chain(lambda: Learner(dls, cnn(4)))),
    ('… returned a learner or model in step … that the teacher or an earlier step already uses',
     lambda: chain(same, same), 'create a new one each time', lambda: chain(make, make)),
    ('cbs has a KnowledgeDistillation or a Resume, but every step creates its own',
     lambda: chain(make, cbs=Resume('x')), 'use loss, weight, hard_weight and file instead', lambda: chain(make, file='y', weight=.5)),
    ('makes is empty',
     lambda: chain(), 'functions that each return a fresh Learner', lambda: chain(make)),
    ('mixup=…, but the callbacks already include MixUp or CutMix',
     lambda: match(True, MixUp()), 'use mixup=False, or remove that callback', lambda: [match(False, MixUp()), match(True)]),
    ('mixup=…: a model input has dtype …, which cannot be mixed',
     lambda: whole_numbers(1.), 'use mixup=False', lambda: whole_numbers(False)),
    ('mutual learning: batch … has no labels',
     lambda: mutual(on(bare), on(bare)), 'give labels, -1 for items without',
     lambda: [mutual(on(o), on(o)) for o in (dls, some_unlabelled)]),
    ('the file has … peers, but there are …',
     lambda: [mutual(file='m'), mutual([make(seed=1), make(seed=2)], file='m')], 'give as many, or use another name',
     lambda: [mutual(file='m1'), mutual(file='m1'), mutual([make(seed=1), make(seed=2)], file='m2')]),
    ('methods[…] learns from labels alone, but the training data has none',
     lambda: run(make=lambda: on(bare)), 'leave this method out', lambda: run({'distilled': dict(weight=1)}, make=lambda: on(bare))),
    ('file=… can\'t be written (…)',
     lambda: [Path('models').mkdir(), Path('models/file').write_text(''), run(file=Path('file')/'t')], 'use another place',
     lambda: run(file=Path('folder')/'t')),
    ('… is missing: it had the weights of …. Delete … to start over',
     lambda: lost('l')[1].student('alone'), "Delete 'models/l.pth' to start over",
     lambda: started_over('l1').student('alone').validate()[0]),
    ('methods[…], seed …: valid_loss is …',
     lambda: trial(make, teacher, two, 1, 1, 1e30), 'try a lower learning rate', lambda: trial(make, teacher, two, 1, 1, 1e-3).runs),
    ('methods[…], seed …: valid_loss is …',
     lambda: run({'alone': None}, make=lambda: on(broken)), 'see that no item is nan', lambda: run({'alone': None}, make=lambda: on(dls))),
    ('methods[…], seed …: valid_loss is …',
     lambda: run(make=lambda: on(one_unlabelled, ignore)), 'that every validation batch has a label',
     lambda: run(make=lambda: on(some_unlabelled, ignore))),
]

def changed(f, train=True):
    "The loaders with `f(i, image, label)` for item `i`, in training or validation"
    items = [f(i, *o) for i,o in enumerate((x,y) for b in (fixed(dls, 8).train if train else dls.valid) for x,y in zip(*b))]
    dl = DataLoader(items, bs=8, num_workers=0)
    return DataLoaders(*((dl, dls.valid) if train else (dls.train, dl)), device='cpu')
some_unlabelled = changed(lambda i, x, y: (x, y if i%4 else tensor(-1)))
one_unlabelled = changed(lambda i, x, y: (x, y if i >= 8 else tensor(-1)), False)
broken = changed(lambda i, x, y: (x if i else x*math.nan, y))
bare = DataLoaders(DataLoader([(x,) for x,_ in some_unlabelled.train.dataset], bs=8, n_inp=1, num_workers=0), dls.valid, device='cpu')
bare.n_inp = 1
ignore = CrossEntropyLossFlat(ignore_index=-1)
def on(dls, loss_func=None): return make(dls, seed=0, loss_func=loss_func or CrossEntropyLossFlat())

def whole_numbers(mixup):
    x = torch.randint(0, 5, (16,6), generator=torch.Generator().manual_seed(0))
    dl = DataLoader(list(zip(x, x[:,0]%3)), bs=8, num_workers=0)
    def model(seed): return seeded(lambda: nn.Sequential(nn.Embedding(5,4), nn.Flatten(), nn.Linear(24,3)), seed=seed)
    learn,t = [make(DataLoaders(dl, dl, device='cpu'), seed=0, loss_func=CrossEntropyLossFlat()) for _ in range(2)]
    learn.model,t.model = model(0),model(1)
    t.fit(30, 1e-2)
    learn.fit_match(t, 1, mixup=mixup)
    return learn.validate()[0]

def lost(file):
    "A trial whose weights of one method are gone"
    run(file=file)
    os.remove(f'models/{file}_alone_0.pth')
    return file,trial(make, teacher, two, 1, 1, 1e-3, file=file)

def started_over(file):
    os.remove(f'models/{lost(file)[0]}.pth')
    return trial(make, teacher, two, 1, 1, 1e-3, file=file)

class Uncopied(Callback):
    "Can't be copied"
    def __deepcopy__(self, memo): raise TypeError("no copy")
    __copy__ = __deepcopy__

def smoothed(): return make(loss_func=LabelSmoothingCrossEntropyFlat())
def smoothing():
    from fastkd.schemes.methods import LabelSmoothing
    return LabelSmoothing()

def tried(): return trial(make, teacher, {'alone': None}, 1, 1, 1e-3)
def fitted(file):
    learn = make(seed=0, cbs=Resume(file))
    learn.fit(1)
    return learn

@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
