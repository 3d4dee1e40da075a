"Promise 3: every verb of a Learner works with the callback attached, and does what it does on a plain learner"
from copy import deepcopy

import pytest
from fastai.interpret import ClassificationInterpretation
from fastai.vision.all import *

from fastkd.all import *
from helpers import *

dls = image_dls(batch_tfms=[*aug_transforms(do_flip=True), Normalize.from_stats([.4]*3,[.2]*3)])
teacher = trained_teacher(dls)
loss = lambda: [SoftTarget(), Attention(), FitNet([('1','1')])]

def pair(splitter=body_head, **kwargs):
    "(plain, distilled) students with the same weights"
    return student(dls, splitter=splitter, **kwargs),student(dls, splitter=splitter, cbs=KnowledgeDistillation(teacher, loss()), **kwargs)

def clean(learn): assert n_hooks(learn.model) == n_hooks(teacher.model) == 0

@pytest.fixture
def fitted():
    "(plain, distilled) students with the same weights, the second after a fit"
    a,b = pair()
    b.fit(1, 1e-2)
    a.model.load_state_dict(b.model.state_dict())
    return a,b

@pytest.mark.parametrize('verb', [lambda l: l.fit(2, 1e-2), lambda l: l.fit_one_cycle(2, 1e-2), lambda l: l.fit_flat_cos(2, 1e-2), lambda l: l.fine_tune(1), lambda l: l.fit_sgdr(1, 2)],
                         ids=['fit','fit_one_cycle','fit_flat_cos','fine_tune','fit_sgdr'])
def test_fits(verb):
    plain,learn = pair()
    before = state(learn.model)
    verb(learn); verb(plain)
    assert not same_state(before, learn.model.state_dict()) and not same_state(plain.model.state_dict(), learn.model.state_dict())
    h = learn.knowledge_distillation.history
    assert len(h) == 2 and h.notna().all().all()
    assert len(learn.recorder.lrs) == len(plain.recorder.lrs)
    clean(learn)

def test_freeze_unfreeze_and_freeze_to():
    _,learn = pair()
    body = lambda: [p for m in list(learn.model)[:-1] for p in m.parameters() if p.ndim==4]
    learn.freeze()
    before = [p.clone() for p in body()]
    learn.fit(1, 1e-2)
    assert all(map(torch.equal, before, body()))
    learn.unfreeze()
    learn.fit(1, 1e-2)
    assert not any(map(torch.equal, before, body()))
    _,learn = pair(splitter=split_at('1'))
    learn.freeze_to(1)
    before = [p.clone() for p in body()]
    learn.fit(1, 1e-2)
    assert [torch.equal(a, b) for a,b in zip(before, body())] == [True,False]

def test_lr_find_suggests_and_restores():
    _,learn = pair()
    before = state(learn.model)
    lr = learn.lr_find(show_plot=False, num_it=20)
    assert 1e-7 <= lr.valley <= 10 and same_state(before, learn.model.state_dict())
    clean(learn)
    learn.fit_one_cycle(1, lr.valley)

@pytest.mark.parametrize('first', [True,False], ids=['before the first fit','after a fit'])
def test_summary(first):
    plain,learn = pair()
    if not first: learn.fit(1)
    text = learn.summary()
    assert 'KnowledgeDistillation' in text
    assert text.split('Optimizer')[0] == plain.summary().split('Optimizer')[0]
    clean(learn)

def test_validate(fitted):
    a,b = [l.validate() for l in fitted]
    assert list(a) == list(b) and len(a) == 2

def test_validate_before_the_first_fit():
    a,b = pair()
    assert list(a.validate()) == list(b.validate())

@pytest.mark.parametrize('kw', [{}, dict(with_loss=True), dict(with_input=True, with_decoded=True), dict(ds_idx=0), dict(act=noop)])
def test_get_preds(fitted, kw):
    if kw.get('ds_idx') == 0: set_seed(0)
    got = []
    for l in fitted: set_seed(0); got.append(l.get_preds(**kw))
    assert len(got[0]) == len(got[1])
    for x,y in zip(*got): assert torch.equal(x, y)

def test_get_preds_without_labels(fitted):
    files = [x for x,_ in colour_items(20)]
    a,b = [l.get_preds(dl=l.dls.test_dl(files)) for l in fitted]
    assert torch.equal(a[0], b[0]) and a[1] is None and b[1] is None

def test_predict(fitted):
    item = colour_items(1)[0][0]
    a,b = [l.predict(item, with_input=True) for l in fitted]
    assert a[1] == b[1] and torch.equal(a[3], b[3])

@pytest.mark.parametrize('kw', [dict(n=3), dict(n=2, use_max=True), dict(n=2, beta=None)])
def test_tta(fitted, kw):
    got = []
    for l in fitted: set_seed(5); got.append(l.tta(**kw)[0])
    for x,y in zip(*[(o if isinstance(o, tuple) else (o,)) for o in got]): assert torch.equal(x, y)

def test_show_results(fitted):
    plt.close('all')
    fitted[1].show_results(max_n=2)
    assert plt.get_fignums()
    plt.close('all')

def test_interpretation(fitted):
    a,b = [ClassificationInterpretation.from_learner(l).confusion_matrix() for l in fitted]
    assert (a == b).all() and a.sum() == len(dls.valid_ds)

@pytest.mark.parametrize('with_opt', [True,False])
def test_save_and_load(fitted, with_opt, tmp_path):
    _,learn = fitted
    learn.path = tmp_path
    learn.save('kd', with_opt=with_opt)
    kept = state(learn.model)
    learn.fit(1, 1e-2)
    learn.load('kd', with_opt=with_opt)
    assert same_state(kept, learn.model.state_dict())
    plain = student(dls, splitter=body_head, path=tmp_path)
    plain.load('kd', with_opt=with_opt)
    assert same_state(kept, plain.model.state_dict())
    learn.fit(1, 1e-2)

def test_export_and_load_learner(fitted, tmp_path):
    _,learn = fitted
    item = colour_items(1)[0][0]
    learn.export(tmp_path/'kd.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'kd.pkl')
    assert torch.equal(loaded.predict(item)[2], learn.predict(item)[2])
    assert not hasattr(loaded.knowledge_distillation, 'teachers')
    assert len(learn.dls.train_ds) == 64
    learn.fit(1)

def test_deepcopy(fitted):
    other = deepcopy(fitted[1])
    other.fit(1)
    assert not same_state(other.model.state_dict(), fitted[1].model.state_dict())

@pytest.mark.parametrize('order', [0,70], ids=['before Recorder','after Recorder'])
def test_predictions_inside_training_keep_the_columns_right(order):
    _,learn = pair()
    peek = FetchPredsCallback()
    peek.order = order
    learn.fit(1, cbs=peek)
    assert len(learn.recorder.values[-1]) == 3+4
