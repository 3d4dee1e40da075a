"What the errors and warnings of teachers and of training advise works"
import os
from copy import deepcopy
from functools import cache, partial

from fastai.callback.fp16 import MixedPrecision
from fastai.distributed import ParallelTrainer
from fastai.vision.all import *
from torch.utils.checkpoint import checkpoint
from fastkd.all import *
from fastkd.teachers.calibrate import fit_temperature
from fastkd.training.checkpoint import plain_data
from remedies import *

dls = image_dls(n=48, bs=8, size=8)
teacher = trained_teacher(dls, 8, 8, epochs=12)
long = image_dls(('a','b','c','d'), n=48, bs=8, size=8)
teacher4 = trained_teacher(long, 8, 8, n_out=4, epochs=12)
KD = KnowledgeDistillation
bce,ce = dict(loss_func=BCEWithLogitsLossFlat()),dict(loss_func=CrossEntropyLossFlat())
def feature(*pair): return Attention(layers=[pair], weight=1)

def dropped(bs): return DataLoaders(dls.train.new(bs=bs, drop_last=True), dls.valid)
def model(n_out=3, *mods): return nn.Sequential(*seeded(cnn, 4, 4, n_out=n_out), *mods)
def fit(kd=None, dls=dls, m=None, n=1, loss_func=None, cbs=(), **kwargs):
    "A student that has learned for an epoch with the callback `kd`"
    rewind(dls)
    learn = Learner(dls, m or model(), loss_func=loss_func, cbs=[*L(cbs), *L(kd)], **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

def two_fits(again=False):
    "The callback of one learner is given to another, and the first learner is trained; `again`: with a new one"
    kd = KD(teacher)
    old = Learner(dls, model(), cbs=kd)
    Learner(dls, model(), cbs=kd)
    if again: old.add_cb(KD(teacher))
    with old.no_bar(), old.no_logging(): old.fit(1)
    return old

def alone():
    "As the error says, without a teacher"
    kd = KD(teacher)
    old = Learner(dls, model(), cbs=kd)
    Learner(dls, model(), cbs=kd)
    old.remove_cb(old.moved_away)
    with old.no_bar(), old.no_logging(): old.fit(1)
    return old

class Keeps(Callback):
    "Has a state that a checkpoint can or can't store"
    def __init__(self, o): self.o = o
    def state_dict(self): return {'o': self.o}
    def load_state_dict(self, sd): pass

class Checkpointed(nn.Module):
    "Runs `m` in a checkpoint"
    def __init__(self, m, reentrant): store_attr(but='m'); super().__init__(); self.m,self.reentrant = m,reentrant
    def forward(self, x): return checkpoint(self.m, x, use_reentrant=self.reentrant)

def checkpointed(reentrant):
    m = model()
    return nn.Sequential(m[0], Checkpointed(m[1], reentrant), *m[2:])

def binary_dls(values=(0.,1.)):
    "Two classes with numbers as targets"
    g = torch.Generator().manual_seed(0)
    y = tensor(values)[torch.arange(48)%len(values)][:,None]
    x = torch.randn(48,3,8,8,generator=g) + 2*y[:,:,None,None]
    return DataLoaders.from_dsets(L(zip(x[:32],y[:32])), L(zip(x[32:],y[32:])), bs=8, num_workers=0)

class Logs(nn.Module):
    "The logarithm of what `m` predicts"
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, x): return self.m(x).log()

class Grey(nn.Module):
    "Makes one channel of three, in which the three colours differ"
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, x): return self.m(x[:,:1] - x[:,1:2])

class Sklearn:
    def predict_proba(self, x): return teacher.model.eval()(torch.as_tensor(x)).softmax(1).detach().numpy()

class Wrapped(nn.Module):
    "As the error of a scikit-learn model says"
    def __init__(self, m): super().__init__(); self.m = m
    def forward(self, x): return torch.as_tensor(np.log(self.m.predict_proba(x.cpu().numpy())), dtype=torch.float32)

def loaded():
    "A model with the weights of a state dict"
    m = cnn(8, 8)
    m.load_state_dict(teacher.model.state_dict())
    return m

def nan_teacher():
    m = deepcopy(teacher.model)
    m[-1].weight.data[0] = math.nan
    return m

softmaxed = nn.Sequential(deepcopy(teacher.model), nn.Softmax(1))

cases = [
    # Teachers
    ('Teacher(Teacher(…)): wrap the Learner or the module itself',
     lambda: Teacher(Teacher(teacher)), 'the Learner or the module itself', lambda: fit(KD(Teacher(teacher)))),
    ('teacher=… is a class',
     lambda: KD(nn.Linear), 'give an object, a trained Learner or nn.Module', lambda: fit(KD(teacher.model))),
    ('teacher is an nn.ModuleDict',
     lambda: KD(nn.ModuleDict({'a': teacher.model})), 'one of its modules, or a list of them',
     lambda: [fit(KD(o)) for o in (nn.ModuleDict({'a': teacher.model})['a'], [*nn.ModuleDict({'a': teacher.model}).values()])]),
    ('teacher=… is a …',
     lambda: KD(teacher.model.state_dict()), 'make the model, call model.load_state_dict(…), and give the model',
     lambda: fit(KD(loaded()))),
    ('teacher=… is a …',
     lambda: KD({'model': teacher.model.state_dict(), 'epoch': 3}), 'load the state dict from the checkpoint into it',
     lambda: fit(KD(loaded()))),
    ('teacher=… is a …',
     lambda: KD('teacher.pkl'), 'load_learner(path) reads an exported learner', lambda: fit(KD(exported()))),
    ('teacher=… is a …',
     lambda: KD(Sklearn()), 'the logarithm of predict_proba', lambda: fit(KD(Wrapped(Sklearn())))),
    ('teacher=… is a …',
     lambda: KD(lambda: teacher.model), 'call it if it makes one', lambda: fit(KD((lambda: teacher.model)()))),
    ('teacher=… is a …',
     lambda: KD(3), 'give a trained Learner, an nn.Module, or a list of them',
     lambda: [fit(KD(o)) for o in (teacher, teacher.model, [teacher,teacher.model])]),
    ('class_map=…: give a dict {student class',
     lambda: Teacher(teacher, class_map=['a']), '{student class: teacher class}',
     lambda: fit(KD(Teacher(teacher, class_map={'a':'a','b':'b'})))),
    ('class_map={} maps no class',
     lambda: fit(KD(Teacher(teacher, class_map={}))), 'give {student class: teacher class}',
     lambda: fit(KD(Teacher(teacher, class_map={'a':'a','b':'b'})))),
    ('class_map has the class …, but the student\'s data has no class names',
     lambda: fit(KD(Teacher(teacher4, class_map={'a':0})), plain(), loss_func=CrossEntropyLossFlat()), 'as in {0: 4, 1: 2}',
     lambda: fit(KD(Teacher(teacher4, class_map={0:0,1:1,2:2})), plain(), loss_func=CrossEntropyLossFlat())),
    ('class_map has the class …, which the student lacks',
     lambda: fit(KD(Teacher(teacher, class_map={'x':'a','b':'b'}))), "its classes are 'a', 'b', 'c'",
     lambda: fit(KD(Teacher(teacher, class_map={'a':'a','b':'b'})))),
    ('class_map sends … to …, which the teacher lacks',
     lambda: fit(KD(Teacher(teacher, class_map={'a':'x','b':'b'}))), 'name one of them, or its index',
     lambda: [fit(KD(Teacher(teacher, class_map=o))) for o in ({'a':'a','b':'b'}, {'a':0,'b':1})]),
    ('teacher: it lacks the student\'s class… …',
     lambda: fit(KD(teacher), long, model(4)), 'pass Teacher(teacher, class_map={student class: teacher class})',
     lambda: fit(KD(Teacher(teacher, class_map={o:o for o in 'abc'})), long, model(4))),
    ('teacher: none of the student\'s classes (…) is among the teacher\'s (…)',
     lambda: fit(KD(teacher), image_dls(('1','2','3'), n=48, bs=8, size=8)), 'pass Teacher(teacher, class_map=',
     lambda: fit(KD(Teacher(teacher, class_map={'1':'a','2':'b','3':'c'})), image_dls(('1','2','3'), n=48, bs=8, size=8))),
    ('norm=…: give (mean, std), each a list with one number per channel, such as imagenet_stats',
     lambda: Teacher(teacher, norm=.5), 'such as imagenet_stats', lambda: Teacher(teacher, norm=imagenet_stats).norm),
    ('size=…: give pixels, an int or (height, width), of volumes (depth, height, width)',
     lambda: Teacher(teacher, size=.5), 'an int or (height, width)', lambda: [fit(KD(Teacher(teacher, size=o))) for o in (12, (12,8))]),
    ('size=… is for volumes, but the images have the shape …',
     lambda: fit(KD(Teacher(teacher, size=(8,12,12)))), 'give (height, width)', lambda: fit(KD(Teacher(teacher, size=(12,12))))),
    ('inputs=…: give the numbers of the student\'s inputs that the teacher reads, from 0, such as [1]',
     lambda: Teacher(teacher, inputs=['xb']), 'from 0, such as [1]', lambda: fit(KD(Teacher(teacher, inputs=[0])))),
    ('inputs=…: the student has … inputs, numbered from 0',
     lambda: fit(KD(Teacher(teacher, inputs=[1]))), 'give numbers below 1', lambda: fit(KD(Teacher(teacher, inputs=[0])))),
    ('norm has … channels, but the inputs have …, …',
     lambda: fit(KD(Teacher(teacher.model, norm=([.5]*2,[.5]*2)))), 'mean and std of as many channels',
     lambda: fit(KD(Teacher(teacher.model, norm=([0.]*3,[1.]*3))))),
    ("teacher: its normalisation has … channels, the student's …",
     lambda: fit(KD(Teacher(teacher.model, norm=([.5]*2,[.5]*2))), normed), 'mean and std of as many channels',
     lambda: fit(KD(Teacher(teacher.model, norm=([0.]*3,[1.]*3))), normed)),
    ('teacher=… takes … channel…, but the student\'s inputs have …, …',
     lambda: fit(KD(grey().model.m, Logits())), 'wrap it in a module that makes 1 of 3', lambda: fit(KD(grey()))),
    ('teacher=… is empty',
     lambda: KD([]), 'a trained Learner or nn.Module, or a list of them', lambda: fit(KD([teacher]))),
    ('teacher_weights=…: … for … teacher…',
     lambda: KD([teacher,teacher.model], teacher_weights=[1]), 'one weight for each teacher',
     lambda: fit(KD([teacher,teacher.model], teacher_weights=[1,2]))),
    ('teacher_weights=…: each must be at least 0, and one must be above 0',
     lambda: KD([teacher,teacher.model], teacher_weights=[0,0]), 'one must be above 0',
     lambda: fit(KD([teacher,teacher.model], teacher_weights=[0,1]))),
    ('teacher: the class_map of each must leave out the same student classes',
     lambda: fit(KD([Teacher(teacher, class_map={'a':'a','b':'b'}),teacher.model])), 'the same student classes',
     lambda: fit(KD([Teacher(o, class_map={'a':0,'b':1}) for o in (teacher,teacher.model)]))),
    ('teacher: its vocabulary or class_map has class number …, but it predicts … classes, …',
     lambda: fit(KD(Teacher(teacher.model, vocab=[*'dcba']))), 'the vocabulary that it was trained with',
     lambda: fit(KD(Teacher(teacher.model, vocab=[*'abc'])))),
    # The callback joins a learner
    ('…: this … is in no learner',
     lambda: KD(teacher).summary(), 'pass it as cbs, or to learn.add_cb, first',
     lambda: str(Learner(dls, model(), cbs=KD(teacher)).knowledge_distillation.summary())),
    ('the … of this learner has moved to another learner, which it was given to later, so this one would',
     two_fits, 'add a new KnowledgeDistillation, or, to train without, call learn.remove_cb(learn.moved_away)',
     lambda: [two_fits(again=True), alone()]),
    ('cbs: this … is in this learner already',
     lambda: Learner(dls, model(), cbs=(kd := KD(teacher))).add_cb(kd), 'add it once', lambda: fit(KD(teacher))),
    ('cbs: the learner has a … already',
     lambda: fit([KD(teacher), KD(teacher.model)]), 'list',
     lambda: [fit(KD([teacher,teacher.model])), fit(KD(teacher, [SoftTarget(), Attention(weight=1)]))]),
    ('teacher=… is the student\'s own model',
     lambda: fit(KD(m := model()), m=m), 'another model, or copy.deepcopy of it',
     lambda: fit(KD(deepcopy(teacher.model)), m=teacher.model)),
    ('teacher=… shares … parameter… with the student, so training would change the teacher',
     lambda: fit(KD(teacher), m=nn.Sequential(*teacher.model)), 'give it copies, copy.deepcopy(model)',
     lambda: fit(KD(deepcopy(teacher.model)), m=nn.Sequential(*deepcopy(teacher.model)))),
    ('loss has …, which compares layers, but there are … teachers',
     lambda: fit(KD([teacher,teacher.model], Attention())), 'one teacher, or only losses on predictions',
     lambda: [fit(KD(teacher, Attention(weight=1))), fit(KD([teacher,teacher.model], SoftTarget()))]),
    ('loss has …, which compares layers, but the model is in DataParallel, whose threads overwrite each',
     lambda: fit(KD(teacher, Attention()), cbs=ParallelTrainer([0])), 'or only losses on predictions',
     lambda: len(Learner(dls, model(), cbs=[KD(teacher, SoftTarget()), ParallelTrainer([0])]).cbs)),
    ('teacher=None, but … needs one',
     lambda: KD(), 'a trained Learner or nn.Module, or a loss without teacher, TeacherFree()',
     lambda: [fit(KD(teacher)), fit(KD(loss=TeacherFree()))]),
    ('loss=… remembers each item, but … blends items',
     lambda: fit(KD(teacher, CRD()), cbs=MixUp()), 'take mix_up out, or choose another loss',
     lambda: [fit(KD(teacher, CRD(n_negatives=8))), fit(KD(teacher), cbs=MixUp())]),
    ('loss=… needs one class index per item, but the student\'s loss function … is for several labels',
     lambda: fit(KD(one, DecoupledKD()), yes, model(1), **bce), 'use BinarySoftTarget',
     lambda: fit(KD(one, BinarySoftTarget()), yes, model(1), **bce)),
    ('loss=… takes a softmax over classes that … treats as independent',
     lambda: fit(KD(teacher, SoftTarget(), weight=1), hots, **bce), 'use BinarySoftTarget, unless',
     lambda: fit(KD(trained_hots(), BinarySoftTarget(), weight=1), hots, **bce)),
    ('loss=… compares the items of a batch, at least …, but … is …',
     lambda: fit(KD(teacher, RKD(weight=.01)), fixed(dls, 31)), 'choose another batch size, or drop_last=True',
     lambda: [fit(KD(teacher, RKD(weight=.01)), fixed(dls, 8)), fit(KD(teacher, RKD(weight=.01)), dropped(31))]),
    ('teacher=…: … of … of its predictions are nan or inf',
     lambda: fit(KD(nan_teacher())), 'check its weights', lambda: fit(KD(teacher.model))),
    ('… predicts probabilities (…), but … logits',
     lambda: fit(KD(softmaxed)), 'take the softmax off it, or return its logarithm',
     lambda: [fit(KD(softmaxed[0])), fit(KD(Logs(softmaxed)))]),
    ('… predicts probabilities (…), but … logits',
     lambda: fit(KD(teacher), m=model(3, nn.Softmax(1))), 'take the softmax off it, or return its logarithm',
     lambda: [fit(KD(teacher)), fit(KD(teacher), m=Logs(model(3, nn.Softmax(1))))]),
    ('teacher=… predicts … classes and the student …',
     lambda: fit(KD(teacher4.model)), 'Teacher(teacher, vocab=[…]) or Teacher(teacher, class_map={…})',
     lambda: [fit(KD(Teacher(teacher4.model, vocab=[*'abcd']))), fit(KD(Teacher(teacher4.model, class_map={'a':0,'b':1,'c':2})))]),
    ('teacher=… predicts … and the student …',
     lambda: fit(KD(nn.Conv2d(3,3,1))), 'give a teacher that predicts the same thing', lambda: fit(KD(teacher))),
    ('… cannot compare the student\'s … with the teacher\'s …',
     lambda: fit(KD(teacher, FSP(layers=[('0','0'),('5','5')]))), 'choose layers',
     lambda: fit(KD(teacher, FSP(layers=[('0','0'),('1','1')], weight=1)))),
    ('loss=None, but the task cannot be told from the student\'s loss function …',
     lambda: fit(KD(teacher), loss_func=lambda p, y: F.cross_entropy(p, y)), 'pass loss=SoftTarget() for single-label',
     lambda: fit(KD(teacher, SoftTarget()), loss_func=lambda p, y: F.cross_entropy(p, y))),
    ('the student\'s loss function is …, which takes probabilities, but distillation needs logits',
     lambda: fit(KD(one), yes, model(1, nn.Sigmoid()), loss_func=nn.BCELoss()),
     'take the sigmoid off the model and use BCEWithLogitsLossFlat', lambda: fit(KD(one), yes, model(1), **bce)),
    ('a label is …',
     lambda: fit(KD(one), binary_dls((0.,1.,-2.)), model(1), loss_func=BCEWithLogitsLossFlat()),
     '0 or 1, or -1 for an item without a label',
     lambda: fit(KD(one), binary_dls((0.,1.,-1.)), model(1), loss_func=BCEWithLogitsLossFlat())),
    ('the model returned a …',
     lambda: fit(KD(teacher), m=Text()), 'a tensor, a tuple', lambda: fit(KD(teacher))),
    # What a loss returns
    ('loss=… returns a …',
     lambda: fit(KD(teacher, lambda p, t: F.mse_loss(p, t).item())), 'a tensor with one number',
     lambda: fit(KD(teacher, lambda p, t: F.mse_loss(p, t)))),
    ('loss=… returns a tensor of shape …',
     lambda: fit(KD(teacher, lambda p, t: (p-t).pow(2))), 'one number, such as the mean',
     lambda: fit(KD(teacher, lambda p, t: (p-t).pow(2).mean()))),
    ('loss=… is … on a batch whose predictions are finite',
     lambda: fit(KD(teacher, nn.KLDivLoss(log_target=False))), "F.kl_div(p.log_softmax(1), t.softmax(1), reduction='batchmean')",
     lambda: [fit(KD(teacher, o)) for o in (SoftTarget(T=1), divergence)]),
    ('loss=… is …, but a distance is not negative. If that is not meant',
     lambda: fit(KD(teacher, nn.CrossEntropyLoss())), 'lambda p, t: F.cross_entropy(p, t.softmax(1))',
     lambda: fit(KD(teacher, lambda p, t: F.cross_entropy(p, t.softmax(1))))),
    ('loss=… is …, but a distance is not negative. If that is not meant',
     lambda: fit(KD(one, nn.BCEWithLogitsLoss()), yes, deepcopy(one.model), **bce), 'BinarySoftTarget(), or lambda p, t',
     lambda: [fit(KD(one, o), yes, model(1), **bce) for o in (BinarySoftTarget(), entropy)]),
    ('loss=… has no gradient, so it trains nothing',
     lambda: fit(KD(teacher, lambda p, t: F.mse_loss(p.detach(), t))), 'without argmax, detach or item',
     lambda: fit(KD(teacher, lambda p, t: F.mse_loss(p, t)))),
    ('… is … with its weight of …, … times the task loss of …, so it decides what is learned',
     lambda: fit(KD(teacher, SoftTarget(weight=1000))), 'would bring it to the task loss',
     lambda: fit(KD(teacher, SoftTarget(weight=advised_weight())))),
    ('teacher=… was trained with …, for …, and the student with …, for …, so … compares what does not',
     lambda: fit(KD(teacher, BinarySoftTarget()), hots, **bce),
     'train both with the same kind of loss function, or use only losses on features',
     lambda: [fit(KD(trained_hots(), BinarySoftTarget()), hots, **bce), fit(KD(teacher, Attention(weight=1)), hots, **bce)]),
    ('The teacher\'s … on a validation batch of … is …, no better than always giving the same answer (…)',
     lambda: fit(KD(Teacher(teacher.model, vocab=[*'cab']))), 'vocab=…', lambda: fit(KD(Teacher(teacher.model, vocab=[*'abc'])))),
    ('The teacher\'s … on a validation batch of … is …, worse than the student\'s …',
     lambda: fit(KD(half()), larger, deepcopy(teacher.model)), 'has little to learn from it', lambda: fit(KD(teacher), larger)),
    ('layers=…: this layer of the student has no graph in training, though trained layers come before it',
     lambda: fit(KD(teacher, feature('1.m.0','1.0')), m=checkpointed(True)), 'use_reentrant=False',
     lambda: [fit(KD(teacher, feature('1.m.0','1.0')), m=checkpointed(False)), fit(KD(teacher, feature('0','0')), m=checkpointed(True))]),
    # Outputs
    ('loss has entries for … outputs, but the student has … with a target',
     lambda: fit(KD(teacher, [[SoftTarget()],None])), 'give a list of losses, or None, for each',
     lambda: fit(KD(teacher, [[SoftTarget()]]))),
    ('head=…: the student has no such output or layer',
     lambda: fit(KD(teacher, head='6')), "`layer_names(model, x)` lists its layers", lambda: fit(KD(teacher, head='5'))),
    # Short epochs and cycles
    ('dls: … passes over … items gave no batch',
     lambda: fit(None, dropped(64), cbs=ShortEpochs(2)), 'choose a smaller batch size',
     lambda: fit(None, dropped(8), cbs=ShortEpochs(2))),
    ('Resume can\'t save where ShortEpochs has stopped, because the data loader doesn\'t tell which items',
     lambda: fit(None, torch_dls(), **ce, cbs=[ShortEpochs(2),Resume('short')]),
     'a fastai DataLoader on an indexed dataset, or one of the two callbacks',
     lambda: [fit(None, cbs=[ShortEpochs(2),Resume('short1')]),
              fit(None, torch_dls(), **ce, cbs=Resume('short2')), fit(None, torch_dls(), **ce, cbs=ShortEpochs(2))]),
    # Checkpoints
    ('file=…: pass the name or path of a file',
     lambda: Resume(3), 'the name or path', lambda: [fit(cbs=Resume(o)) for o in ('named', Path('models')/'path')]),
    ('… has a …, which a checkpoint can\'t store',
     lambda: fit(cbs=[Keeps(object()),Resume('keeps')]), 'only numbers, strings, tensors, and lists and dicts',
     lambda: fit(cbs=[Keeps({'a': [1,'b',torch.ones(1)]}),Resume('keeps2')])),
    ('file=… is from a different fit',
     lambda: [fit(cbs=Resume('fit'), n=1), fit(cbs=Resume('fit'), n=3)], 'or, to start over, delete the file or use another name',
     lambda: [fit(cbs=Resume('fit2'), n=1), os.remove('models/fit2.pth'), fit(cbs=Resume('fit2'), n=3), fit(cbs=Resume('fit3'), n=3)]),
    ('file=… holds the state of a different model or different callbacks (…)',
     lambda: [fit(cbs=[ShortEpochs(2),Resume('a')]), fit(cbs=[ShortEpochs(3),Resume('a')])], 'delete the file or use another name',
     lambda: [fit(cbs=[ShortEpochs(2),Resume('a1')]), again(ShortEpochs(2), 'a1'), fit(cbs=[ShortEpochs(3),Resume('a2')])]),
    ('ShortEpochs… in the file, … in this fit',
     lambda: [fit(cbs=[ShortEpochs(2),Resume('b')]), fit(cbs=[ShortEpochs(3),Resume('b')])], 'delete the file or use another name',
     lambda: [fit(cbs=[ShortEpochs(2),Resume('b1')]), again(ShortEpochs(2), 'b1'), fit(cbs=[ShortEpochs(3),Resume('b2')])]),
    ('file=… can\'t be read (…)',
     lambda: [Path('models').mkdir(exist_ok=True), Path('models/bad.pth').write_text('text'), fit(cbs=Resume('bad'))],
     'delete it, or use another name', lambda: fit(cbs=Resume('good'))),
    ('file=… is not a checkpoint written by Resume',
     lambda: [fit().save('weights'), fit(cbs=Resume('weights'))], 'use another name',
     lambda: [fit().save('weights2') and 1, fit(cbs=Resume('weights3'))]),
    ('…: the learner has a Resume already',
     lambda: mutual(Resume('a'), file='b'), 'remove it with learn.remove_cb(Resume), or pass no file',
     lambda: [mutual(Resume('c')), mutual(Resume('d'), file='e', remove=True)]),
    ('save_adapters: there is nothing to save',
     lambda: fit(KD(teacher)).knowledge_distillation.save_adapters('none'), 'the losses train no adapters',
     lambda: str(fit(KD(teacher, fitnet1())).knowledge_distillation.save_adapters('some'))),
    ('the saved adapters do not fit these losses, layers or models',
     lambda: adapters(lambda: FitNet(layers=[('0','0')], weight=1)), 'do not fit these losses, layers or models',
     lambda: adapters(fitnet1)),
    # calibrate
    ('calibrate: the learner is for the task …',
     lambda: calibrate(trained_hots()), 'give one with a single label per item', lambda: calibrate(learned(sixty, cnn6(), 1))),
    ('calibrate: … does not end in a linear layer or a convolution with weights of its own',
     lambda: calibrate(learned(sixty, model(3, nn.PReLU()), 1)), 'by `fit_temperature(logits, labels)` instead',
     lambda: by_hand(learned(sixty, model(3, nn.PReLU()), 1))),
    ('calibrate: the outputs of … are not those of its layer …',
     lambda: calibrate(learned(sixty, model(3, nn.ReLU()), 1)), 'by `fit_temperature(logits, labels)` instead',
     lambda: by_hand(learned(sixty, model(3, nn.ReLU()), 1))),
    ('calibrate: there are … labels, too few to calibrate',
     lambda: calibrate(learned(dls, cnn6(), 1)), 'give a `dl` with 50 or more', lambda: calibrate(learned(dls, cnn6(), 1), sixty.valid)),
]

def fitnet1(): return FitNet(layers=[('1','1')], weight=1)
def again(cb, file):
    "The call that wrote `file`, again: nothing is trained"
    learn = fit(cbs=[cb,Resume(file)])
    assert not learn.recorder.losses or len(learn.recorder.values) == 1
    return 1

def cnn6(): return seeded(cnn, 4, 6)

def adapters(loss):
    "Load the adapters of `fitnet1` for another loss"
    m = cnn6()
    fit(KD(teacher, fitnet1()), m=m).knowledge_distillation.save_adapters('saved')
    other = fit(KD(teacher, loss()), m=cnn6())
    other.knowledge_distillation.load_adapters('saved')
    return other

def mutual(cb, file=None, remove=False):
    learn,peer = [Learner(dls, seeded(cnn, 4, seed=i)) for i in (0,1)]
    learn.add_cb(cb)
    if remove: learn.remove_cb(Resume)
    with learn.no_bar(), learn.no_logging(), peer.no_bar(): learn.fit_mutual(peer, 1, 1e-3, file=file)
    return learn

@cache
def grey(): return learned(dls, Grey(seeded(cnn, 8, 8, n_in=1)), 30)

def learned(dls, m, n, loss_func=None):
    learn = Learner(dls, m, loss_func=loss_func)
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2)
    return learn

def half():
    "A model that is right about some items: it doesn't know the last class"
    m = deepcopy(teacher.model)
    m[-1].bias.data[2] -= 1000
    return m

def advised_weight():
    "The weight that the warning advises"
    return float(re.search(r'weight=([\d.e-]+) would', said(lambda: fit(KD(teacher, SoftTarget(weight=1000))))[0])[1])

def by_hand(learn):
    "The NLL of logits that are divided by the temperature that fits, no larger than before"
    z,y = learn.get_preds(act=noop)
    before,after = nll(z.softmax(1), y),nll((z/fit_temperature(z, y)).softmax(1), y)
    assert after <= before
    return after

def exported():
    teacher.export('teacher.pkl')
    return load_learner(teacher.path/'teacher.pkl')

def divergence(p, t): return F.kl_div(p.log_softmax(1), t.softmax(1), reduction='batchmean')
def entropy(p, t): return F.binary_cross_entropy_with_logits(p, t.sigmoid())

def plain():
    "Loaders of tensors, without class names"
    items = L((x,y) for xs,ys in dls.valid for x,y in zip(xs, ys))
    return DataLoaders.from_dsets(items, items, bs=8, num_workers=0)

def torch_dls():
    items = [(torch.randn(3,8,8), i%3) for i in range(24)]
    return DataLoaders(*[torch.utils.data.DataLoader(items, batch_size=8) for _ in range(2)])

class Text(nn.Module):
    "Predicts no tensor"
    def __init__(self): super().__init__(); self.l = nn.Linear(1,1)
    def forward(self, x): return 'nothing'

normed = image_dls(n=48, bs=8, size=8, batch_tfms=Normalize.from_stats([.5]*3, [.5]*3, cuda=False))
larger = image_dls(n=96, bs=32, size=8)
sixty = image_dls(n=180, bs=32, size=8)  # for validation
yes = binary_dls()
one = learned(yes, seeded(cnn, 4, n_out=1), 20, BCEWithLogitsLossFlat())

def one_hot(o):
    "The items of a loader with a 0 or 1 for each class"
    return L((x, F.one_hot(y, 3).float()) for xs,ys in o for x,y in zip(xs, ys))

hots = DataLoaders.from_dsets(one_hot(dls.train), one_hot(dls.valid), bs=8, num_workers=0)

@cache
def trained_hots(): return learned(hots, seeded(cnn, 8, 8), 40, BCEWithLogitsLossFlat())

@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher.path = tmp_path

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
