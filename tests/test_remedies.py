"What an error advises works: each case provokes the error, then does what it says"
from copy import deepcopy
from functools import partial

import pytest, torch.nn.functional as F
from fastai.callback.all import *
from fastkd.all import *
from fastkd.losses.base import as_loss, as_losses
from fastkd.losses.features import as_pairs
from fastkd.models.split import output_layer
from helpers import *
from fastcore.test import test_close as close, test_eq as eq

pytestmark = pytest.mark.filterwarnings('ignore:.*')
dls = image_dls()

def t(n_out=3, **kwargs): return seeded(cnn, 8, 16, n_out=n_out, seed=5, **kwargs).eval()
def fit(kd, learn=None, n=1, **kwargs):
    "One epoch of a student with `kd`, if that is one; the learner"
    learn = learn or student(kwargs.pop('dls', dls), **kwargs)
    if kd is not None: learn.add_cb(kd)
    learn.fit(n, 1e-2)
    return learn
def last(learn): return learn.knowledge_distillation.history.iloc[-1]
def ok(*args, **kwargs):
    "Does a fit with this callback have a finite distillation loss above 0?"
    kws = {k: kwargs.pop(k) for k in ('learn','cs','n_out','loss_func','dls','metrics') if k in kwargs}
    assert 0 < last(fit(KnowledgeDistillation(*args, **kwargs), **kws)).kd_loss < 1e6

# (the call, words of its error, what it advises)
cases = {
    'not called': (lambda: ok(partial(cnn, 8)), 'call it if it makes one', lambda: ok(partial(cnn, 8)())),
    'a class': (lambda: ok(nn.Sequential), 'is a class: give an object', lambda: ok(nn.Sequential(*t()))),
    'a state dict': (lambda: ok(t().state_dict()), 'model.load_state_dict', lambda: ok(_loaded(t().state_dict()))),
    'a checkpoint': (lambda: ok({'model': t().state_dict(), 'epoch': 3}), 'load the state dict from the checkpoint',
                     lambda: ok(_loaded({'model': t().state_dict()}['model']))),
    'a ModuleDict': (lambda: ok(nn.ModuleDict(dict(a=t()))), 'one of its modules, or a list of them',
                     lambda: ok(list(nn.ModuleDict(dict(a=t(), b=t())).values()))),
    'a dict of models': (lambda: ok(dict(a=t(), b=t())), 'one of its models, or a list of them', lambda: ok([*dict(a=t(), b=t()).values()])),
    'a dict of learners': (lambda: ok(dict(a=student(dls))), 'one of its models, or a list of them', lambda: ok(student(dls))),
    'an empty list': (lambda: ok([]), 'is empty: give a trained', lambda: ok([t()])),
    'Teacher twice': (lambda: ok(Teacher(Teacher(t()))), 'wrap the Learner or the module itself', lambda: ok(Teacher(t()))),
    'no teacher': (lambda: ok(None), 'needs one: give', lambda: ok(None, TeacherFree())),
    'weights of teachers': (lambda: ok([t(), t()], teacher_weights=[1]), 'one weight for each', 
                            lambda: ok([t(), t()], teacher_weights=[1,2])),
    'more classes': (lambda: ok(t(4)), 'Teacher(teacher, vocab=', lambda: ok(Teacher(t(4), vocab=['x','c','b','a']))),
    'more classes, mapped': (lambda: ok(t(4)), 'class_map={', lambda: ok(Teacher(t(4), class_map=dict(a=3, b=1, c=0)))),
    'class_map of nothing': (lambda: ok(Teacher(t(), class_map={})), 'give {student class: teacher class}',
                             lambda: ok(Teacher(t(), class_map=dict(a=0, b=1)))),
    'class_map, unknown class': (lambda: ok(Teacher(t(), class_map=dict(z=0))), "which the student lacks; its classes are",
                                 lambda: ok(Teacher(t(), class_map=dict(a=1, b=0)))),
    'class_map of one class': (lambda: ok(Teacher(t(), class_map=dict(b=0))), 'use BinarySoftTarget',
                               lambda: ok(Teacher(t(), class_map=dict(b=0)), BinarySoftTarget())),
    'probabilities': (lambda: ok(nn.Sequential(t(), nn.Softmax(1))), 'return its logarithm',
                      lambda: ok(nn.Sequential(t(), nn.LogSoftmax(1)))),
    'the softmax': (lambda: ok(nn.Sequential(t(), nn.Softmax(1))), 'take the softmax off',
                    lambda: ok(nn.Sequential(t(), nn.Softmax(1))[0])),
    'norm': (lambda: ok(Teacher(t(), norm=.5)), 'such as imagenet_stats', lambda: ok(Teacher(t(), norm=imagenet_stats))),
    'norm of two channels': (lambda: ok(Teacher(t(), norm=([.5]*2,[.2]*2))), 'mean and std of as many channels',
                             lambda: ok(Teacher(t(), norm=([.5]*3,[.2]*3)))),
    'size': (lambda: ok(Teacher(t(), size='big')), 'an int or (height, width)', lambda: ok(Teacher(t(), size=(12,12)))),
    'size of a fraction': (lambda: Teacher(t(), size=.5), 'an int or (height, width)', lambda: ok(Teacher(t(), size=12))),
    'inputs by name': (lambda: Teacher(t(), inputs='image'), 'from 0, such as [1]', lambda: ok(Teacher(t(), inputs=[0]))),
    'inputs of a fraction': (lambda: Teacher(t(), inputs=.5), 'from 0, such as [1]', lambda: ok(Teacher(t(), inputs=0))),
    'one weight for two teachers': (lambda: ok([t(), t()], teacher_weights=.5), 'one weight for each teacher',
                                    lambda: ok([t(), t()], teacher_weights=[.5,.5])),
    'inputs': (lambda: ok(Teacher(t(), inputs=[1])), 'give numbers below 1', lambda: ok(Teacher(t(), inputs=[0]))),
    'own model': (lambda: _own(lambda m: m), 'or copy.deepcopy of it', lambda: _own(deepcopy)),
    'shared parameters': (lambda: _own(lambda m: nn.Sequential(*m)), 'copy.deepcopy(model)',
                          lambda: _own(lambda m: deepcopy(nn.Sequential(*m)))),
    'features of two': (lambda: ok([t(), t()], FitNet('0')), 'give one teacher', lambda: ok([t()], FitNet('0'))),
    'features of two, predictions': (lambda: ok([t(), t()], FitNet('0')), 'only losses on predictions',
                                     lambda: ok([t(), t()], Logits())),
    'layer': (lambda: ok(t(), FitNet('9')), 'layer_names(model, x)',
              lambda: ok(t(), FitNet(list(layer_names(student(dls).model, torch.rand(2,3,16,16)))[:1]))),
    'layers, two or a pair': (lambda: ok(t(), FitNet(('0','1'))), "[('0', '1')] for one pair", lambda: ok(t(), FitNet([('0','1')]))),
    'layers, a pair or two': (lambda: ok(t(), FitNet(('0','1'))), "['0', '1'] for two layers", lambda: ok(t(), FitNet(['0','1']))),
    'layers of none': (lambda: ok(t(), FitNet([])), 'None to pair layers automatically', lambda: ok(t(), FitNet(None))),
    'layers, a number': (lambda: ok(t(), FitNet([0])), 'a list of names', lambda: ok(t(), FitNet(['0']))),
    'no positions': (lambda: ok(t(), Attention('5')), 'before the pooling', lambda: ok(t(), Attention('1'))),
    'vectors': (lambda: ok(t(), Attention('5')), 'or use FitNet or Similarity', lambda: ok(t(), Similarity([('3','3')]))),
    'FSP of one pair': (lambda: ok(t(), FSP(['0'])), 'pair of layers', lambda: ok(t(), FSP(['0','1']))),
    'one loss twice': (lambda: ok(t(), [SoftTarget(), SoftTarget()]), 'with the sum of the weights', lambda: ok(t(), SoftTarget(weight=2))),
    'no loss': (lambda: ok(t(), []), "None for the task's default", lambda: ok(t(), None)),
    'loss of another kind': (lambda: ok(t(), 'kl'), 'such as SoftTarget(T=4)', lambda: ok(t(), SoftTarget(T=4))),
    'loss with an argument': (lambda: ok(t(), _needs_k), 'or fix it with partial', lambda: ok(t(), partial(_needs_k, k=2))),
    'weight above 1': (lambda: ok(t(), weight=2), 'at most 1', lambda: ok(t(), weight=1)),
    'T': (lambda: ok(t(), SoftTarget(T='4')), 'SchedCos(1, 0.1)', lambda: ok(t(), SoftTarget(T=SchedCos(1, .1)))),
    'T of nan': (lambda: ok(t(), SoftTarget(T=float('nan'))), 'finite', lambda: ok(t(), SoftTarget(T=1))),
    'T of 0': (lambda: ok(t(), SoftTarget(T=0)), 'above 0', lambda: ok(t(), SoftTarget(T=.5))),
    'margin': (lambda: ActivationBoundaries(margin=0), 'above 0', lambda: ok(t(), ActivationBoundaries(margin=.5))),
    'multi-label': (lambda: ok(t(), DecoupledKD(), loss_func=BCEWithLogitsLossFlat(), metrics=[], dls=_many()), 'use BinarySoftTarget',
                    lambda: ok(t(), BinarySoftTarget(), loss_func=BCEWithLogitsLossFlat(), metrics=[], dls=_many())),
    'task unknown': (lambda: ok(t(), loss_func=_own_loss), 'loss=SoftTarget()', lambda: ok(t(), SoftTarget(), loss_func=_own_loss)),
    'two of the kind': (lambda: _two(one=False), 'learn.remove_cb(KnowledgeDistillation)', lambda: _two(one=True)),
    'summary alone': (lambda: KnowledgeDistillation(t()).summary(), 'to learn.add_cb', lambda: _added().summary()),
    'moved away': (lambda: _moved('')[0].fit(1), 'learn.remove_cb(learn.moved_away)', lambda: _moved('remove')[0].fit(1)),
    'moved away, another': (lambda: _moved('')[0].fit(1), 'add a new KnowledgeDistillation', lambda: _moved('new')[0].fit(1)),
    'nothing to split': (lambda: body_head(nn.Sequential(nn.ReLU(), nn.Linear(2,2))), "splitter=body_head(head='name')",
                         lambda: eq(len(Learner(dls, cnn(4), splitter=body_head(head='0')).splitter(cnn(4))), 2)),
    'head of another model': (lambda: body_head(head=nn.Linear(2,2))(cnn(4)), 'the name of a layer', lambda: body_head(head='4')(cnn(4))),
    'split_at nothing': (lambda: split_at(), "such as split_at('layer4.0')", lambda: split_at('1')(cnn(4,8))),
    'split_at the start': (lambda: split_at('0')(cnn(4,8)), 'starting after its first one', lambda: split_at('1')(cnn(4,8))),
    'split_at out of order': (lambda: split_at('5','1')(cnn(4,8)), 'in the order of the model', lambda: split_at('1','5')(cnn(4,8))),
    'split_at without parameters': (lambda: split_at('2')(cnn(4,8)), 'name one that has', lambda: split_at('5')(cnn(4,8))),
    'a mask': (lambda: soft_target(torch.rand(2,3), torch.rand(2,3), mask=torch.ones(3).bool()), 'a mask of that shape',
               lambda: soft_target(torch.rand(2,3), torch.rand(2,3), mask=torch.ones(2).bool())),
    'one logit': (lambda: soft_target(torch.rand(2,1), torch.rand(2,1)), 'use BinarySoftTarget',
                  lambda: BinarySoftTarget()(torch.rand(2,1), torch.rand(2,1))),
    'two classes standardised': (lambda: SoftTarget(standardize=True)(torch.rand(2,2), torch.rand(2,2)), 'use standardize=False',
                                 lambda: SoftTarget(standardize=False)(torch.rand(2,2), torch.rand(2,2))),
    'channels': (lambda: fitnet(torch.rand(2,3,4,4), torch.rand(2,5,4,4)), 'such as one from make_adapter', lambda: _adapted()),
    'batch of one': (lambda: similarity(torch.rand(1,3), torch.rand(1,3)), 'batches of 2',
                     lambda: similarity(torch.rand(2,3), torch.rand(2,3))),
    'Resume twice': (lambda: student(dls, cbs=[Resume('a'),Resume('b')]), 'remove it with learn.remove_cb(Resume)',
                     lambda: _resumed_twice()),
    'MeanTeacher at 1': (lambda: MeanTeacher(decay=1), 'less than 1', lambda: fit(MeanTeacher(decay=.9))),
    'averaged elsewhere': (lambda: _averaged(False), 'mean_teacher.averaged(learn)', lambda: _averaged(True)),
    'digits without enough labels': (lambda: digits_dls(n_labelled=3), 'choose from 10', lambda: digits_dls(n_labelled=10)),
    'adapters not there': (lambda: _added().save_adapters('a'), 'nothing to save', lambda: _saves()),
}

def _loaded(sd):
    m = cnn(8, 16)
    m.load_state_dict(sd)
    return m
def _own(f):
    learn = student(dls)
    ok(f(learn.model), learn=learn)
def _needs_k(pred, teacher_pred, k): return k*F.mse_loss(pred, teacher_pred)
def _own_loss(pred, targ): return F.cross_entropy(pred, targ)
def _many():
    one_hot = [(x, F.one_hot(torch.tensor(y), 3).float()) for x,y in dls.valid_ds]
    x = [(torch.rand(3,16,16), y) for _,y in one_hot]
    return DataLoaders(DataLoader(x, bs=8, num_workers=0), DataLoader(x, bs=8, num_workers=0), device='cpu')
def _two(one):
    learn = student(dls, cbs=KnowledgeDistillation(t()))
    if one: learn.remove_cb(KnowledgeDistillation)
    ok(t(), learn=learn)
def _added():
    learn = student(dls, cbs=KnowledgeDistillation(t()))
    return learn.knowledge_distillation
def _moved(how):
    kd = KnowledgeDistillation(t())
    a,b = student(dls, cbs=kd),student(dls, cbs=kd)
    if how == 'remove': a.remove_cb(a.moved_away)
    if how == 'new': a.add_cb(KnowledgeDistillation(t()))
    return a,b
def _adapted():
    from fastkd.models.adapters import make_adapter
    fs,ft = torch.rand(2,3,4,4),torch.rand(2,5,4,4)
    return fitnet(make_adapter(fs.shape, ft.shape)(fs), ft)
def _saves():
    learn = fit(KnowledgeDistillation(t(), FitNet('0')))
    learn.knowledge_distillation.save_adapters('a')
def _resumed_twice():
    learn = student(dls, cbs=Resume('a'))
    learn.remove_cb(Resume)
    learn.add_cb(Resume('b'))
def _averaged(own):
    mt,learn = MeanTeacher(decay=.9),student(dls)
    learn.fit(1, 1e-2, cbs=mt)
    with mt.averaged(learn if own else student(dls)): pass

@pytest.mark.parametrize('name', cases)
def test_what_an_error_advises_works(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong,words,right = cases[name]
    with pytest.raises((TypeError,ValueError)) as e: wrong()
    assert words in str(e.value), e.value
    assert len(str(e.value)) < 400
    right()
