"What the errors of losses and of layers advise works"
from functools import cache, partial

from fastai.vision.all import *
from fastkd.all import *
from fastkd.losses.base import as_loss, as_losses
from fastkd.losses.contrastive import ContrastMemory
from fastkd.losses.features import as_pairs
from fastkd.models.adapters import make_adapter, match_maps
from fastkd.models.reading import model_output
from fastkd.models.taps import Taps
from remedies import *

p,t = torch.randn(4,3),torch.randn(4,3)
y = tensor([0,1,2,0])
def maps(c=4, size=4, bs=4): return torch.randn(bs, c, size, size)
def two(n=4): return torch.randn(n,2),torch.randn(n,2)
def unit(*shape): return F.normalize(torch.randn(*shape), dim=1)
net = nn.Sequential(nn.Conv2d(3,4,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,3))
wide = nn.Sequential(nn.Conv2d(3,8,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,3))
x = torch.randn(2,3,8,8)

class Odd(nn.Module):
    "Returns an object, unless told to return a tensor, a tuple or a dict"
    def __init__(self, kind=None):
        super().__init__()
        self.kind,self.l = kind,nn.Linear(3,3)
    def forward(self, x):
        z = self.l(x)
        return {None: SimpleNamespace(z=z), 'tensor': z, 'tuple': (z,1), 'dict': {'logits': z}}[self.kind]

class Unused(nn.Module):
    "Has a layer that `forward` doesn't call"
    def __init__(self):
        super().__init__()
        self.a,self.b = nn.Linear(3,3),nn.Linear(3,3)
    def forward(self, x): return self.a(x)

def record(model, name, x):
    "What the layer `name` returns"
    with Taps(model, [name]) as taps: model(x)
    return taps.stored

class Text(nn.Module):
    def forward(self, x): return 'nothing'

texts = nn.Sequential(nn.Linear(3,3), Text())

cases = [
    # Predictions
    ('mask has shape …, but there is one value per position, …',
     lambda: soft_target(p, t, mask=torch.ones(4,3).bool()), 'give a mask of that shape',
     lambda: soft_target(p, t, mask=torch.ones(4).bool())),
    ('pred has shape … and teacher_pred …',
     lambda: soft_target(p, torch.randn(4,5)), 'must predict the same classes', lambda: soft_target(p, t)),
    ('pred has … class on axis … of …, so its softmax is constant',
     lambda: soft_target(p[:,:1], t[:,:1]), 'use BinarySoftTarget for a single logit',
     lambda: [f()(p[:,:1], t[:,:1]) for f in (BinarySoftTarget, Logits)]),
    ('the schedule … gives … at training progress …',
     lambda: SoftTarget(T=lambda o: math.inf if o==.3 else 1.)(p, t, pos=.3), 'it must give a finite number everywhere from 0 to 1',
     lambda: SoftTarget(T=lambda o: 1+o)(p, t, pos=.3)),
    ('…=…: give a number, or a schedule of training progress such as SchedCos(1, 0.1)',
     lambda: SoftTarget(weight='1'), 'such as SchedCos(1, 0.1)',
     lambda: [SoftTarget(weight=o)(p, t, pos=.5) for o in (1, SchedCos(1, 0.1))]),
    ('…=…: it must be finite and …',
     lambda: SoftTarget(T=0), 'above 0', lambda: SoftTarget(T=.1)(p, t)),
    ('…=…: give a whole number, 1 or more',
     lambda: CRD(n_negatives=2.5), '1 or more', lambda: CRD(n_negatives=2).n_negatives),
    ('…=…: give 1 or more',
     lambda: CRD(n_negatives=0), '1 or more', lambda: CRD(n_negatives=1).n_negatives),
    ('… got the unknown argument …',
     lambda: SoftTarget()(p, t, label=y), 'give it only axis, mask, y', lambda: DecoupledKD()(p, t, y=y)),
    ('loss=… needs the argument …, but a loss gets only …',
     lambda: as_loss(lambda p, t, k: k*(p-t).pow(2).mean()), 'give the argument a default, or fix it with partial',
     lambda: [as_loss(lambda p, t, k=2.: k*(p-t).pow(2).mean())(p, t), as_loss(partial(lambda p, t, k: k*(p-t).pow(2).mean(), k=2.))(p, t)]),
    ('loss=…: give a loss such as SoftTarget(T=4), its class, a partial of it, or a function of (pred',
     lambda: as_loss('kl'), 'such as SoftTarget(T=4)',
     lambda: [as_loss(o)(p, t) for o in (SoftTarget(T=4), SoftTarget, partial(SoftTarget, T=4), F.mse_loss)]),
    ('loss=[]: give at least one loss, or None for the task\'s default',
     lambda: as_losses([]), 'at least one loss', lambda: as_losses([SoftTarget()])[0](p, t)),
    ('loss has … twice',
     lambda: as_losses([SoftTarget(weight=1), SoftTarget(weight=2)]), 'once, with the sum of the weights',
     lambda: as_losses([SoftTarget(weight=3)])[0](p, t)),
    ('dist correlates over the classes, and over 2 classes the correlation is 1 or -1 only',
     lambda: DIST()(*two()), 'use SoftTarget', lambda: SoftTarget()(*two())),
    ('dist correlates over the items of a batch, but this batch has 1',
     lambda: DIST()(p[:1], t[:1]), 'batches of 2 or more', lambda: DIST()(p[:2], t[:2])),
    ('Ts=…: give a tuple of temperatures such as (2, 3, 4, 5, 6)',
     lambda: MultiLevel(Ts=4), '(2, 3, 4, 5, 6)', lambda: MultiLevel(Ts=(2,3,4,5,6))(p, t)),
    ('standardize=True with … classes leaves only the argmax of the logits',
     lambda: SoftTarget(standardize=True)(*two()), 'use standardize=False', lambda: SoftTarget(standardize=False)(*two())),
    ('rescale=True with standardize=True has no effect, since standardised logits have no size',
     lambda: SoftTarget(standardize=True, rescale=True), 'leave one of them out',
     lambda: [o(p, t) for o in (SoftTarget(standardize=True), SoftTarget(rescale=True))]),
    ('rescale=…: give True or False, and what comes after it by name, such as weight=.5',
     lambda: SoftTarget(4, False, .5), 'by name', lambda: SoftTarget(4, False, weight=.5)(p, t)),
    ('y has shape … and pred …',
     lambda: teacher_bounded(p, t, y=torch.randn(4)), 'give one target per output', lambda: teacher_bounded(p, t, y=torch.randn(4,3))),
    # Labels
    ('lam has shape … for … items',
     lambda: decoupled_kd(p, t, y=y, y1=y, lam=torch.rand(3)), 'one number per item, as MixUp does, or a single number',
     lambda: [decoupled_kd(p, t, y=y, y1=y, lam=o) for o in (torch.rand(4), tensor(.3))]),
    ('y is … of shape …, but the loss needs one class index per position, an int',
     lambda: decoupled_kd(p, t, y=torch.rand(4,3)), 'use BinarySoftTarget for multi-label', lambda: BinarySoftTarget()(p, t)),
    ('mask has shape … and y …',
     lambda: decoupled_kd(p, t, y=y, mask=torch.ones(3).bool()), 'one bool and one label per position',
     lambda: decoupled_kd(p, t, y=y, mask=torch.ones(4).bool())),
    ('… is missing: give the second labels y1 and the share lam of the first labels together',
     lambda: decoupled_kd(p, t, y=y, lam=tensor(.3)), 'together', lambda: decoupled_kd(p, t, y=y, y1=y, lam=tensor(.3))),
    ('y has the label …, but there are … classes, 0 to …',
     lambda: decoupled_kd(p, t, y=y+1), 'give -1, or a mask that is False',
     lambda: [decoupled_kd(p, t, y=tensor([0,1,2,-1])), decoupled_kd(p, t, y=tensor([0,1,2,3]), mask=tensor([True,True,True,False]))]),
    ('y has shape …, but there is one label per position, …',
     lambda: decoupled_kd(p, t, y=y[:3]), 'give labels of that shape', lambda: decoupled_kd(p, t, y=y)),
    ('… compares the classes other than the label, and with 2 classes there is only one',
     lambda: decoupled_kd(*two(), y=y%2), 'use SoftTarget', lambda: SoftTarget()(*two())),
    # Features
    ('margin has shape …, but ft has … channels',
     lambda: ofd(maps(), maps(), margin=torch.zeros(3)), 'a number, or one per channel',
     lambda: [ofd(maps(), maps(), margin=o) for o in (-1., torch.zeros(4))]),
    ('layers=…: …',
     lambda: as_pairs(3), 'give a list of names, or a list of (student_name, teacher_name)',
     lambda: [as_pairs(['0']), as_pairs([('0','1')])]),
    ('layers=… is empty',
     lambda: Attention(layers=[]), 'or None to pair layers automatically', lambda: Attention(layers=None)),
    ('layers contains …: …',
     lambda: Attention(layers=[1]), '(student_name, teacher_name)', lambda: Attention(layers=[('1','1')])),
    ('… got … and …: fs has … channels and ft …',
     lambda: fitnet(maps(4), maps(8)), 'pass fs through an adapter first, such as one from make_adapter',
     lambda: fitnet(make_adapter(maps(4).shape, maps(8).shape)(maps(4)), maps(8))),
    ('… needs features …(B, C, *), but got … and …',
     lambda: attention(torch.randn(4,8), torch.randn(4,8)), 'or use FitNet or Similarity',
     lambda: [fitnet(torch.randn(4,8), torch.randn(4,8)), similarity(torch.randn(4,8), torch.randn(4,8))]),
    ('…: fs has a batch of … and ft of …, got … and …',
     lambda: attention(maps(), maps(bs=3)), 'the features of the same items', lambda: attention(maps(), maps())),
    ('… compares the items of a batch, but this batch has …, got … and …',
     lambda: rkd(maps(bs=1), maps(bs=1)), 'use batches of', lambda: rkd(maps(bs=3), maps(bs=3))),
    ('… compares positions, but only one is left of … and …',
     lambda: factor_transfer(maps(size=1), maps(size=1)), 'choose layers with larger maps',
     lambda: factor_transfer(maps(size=2), maps(size=2))),
    ('fsp: the flow matrices have shapes … and …',
     lambda: fsp((maps(4),maps(4)), (maps(8),maps(4))), 'pass fs through adapters first, such as those from make_adapter',
     lambda: fsp((make_adapter(maps(4).shape, maps(8).shape)(maps(4)),maps(4)), (maps(8),maps(4)))),
    ('fsp compares what happens from one layer to the next, but there is … pair of layers',
     lambda: FSP(layers=['0']).make_modules([(maps(),maps())]), 'give two or more',
     lambda: len(FSP(layers=['0','1']).make_modules([(maps(),maps())]*2))),
    ('ReviewKD fuses stages that are all maps or all sequences, but among them are … and one with …',
     lambda: ReviewKD().make_modules([(maps(),maps()), (torch.randn(4,4,6),torch.randn(4,4,6))]), 'choose layers of one kind',
     lambda: len(list(ReviewKD().make_modules([(maps(),maps()), (maps(size=2),maps(size=2))]).children()))),
    ('var has … values, but ft has … channels',
     lambda: vid(maps(), maps(), var=torch.ones(3)), 'one value, or one per channel',
     lambda: [vid(maps(), maps(), var=torch.ones(n)) for n in (1,4)]),
    ('var=…: the variances are trained, so give the number that they start from',
     lambda: VID(var=SchedLin(1,2)), 'the number that they start from', lambda: VID(var=2.)),
    ('fs, ft, mem_s and mem_t have the shapes …',
     lambda: crd(unit(2,5), unit(2,6), unit(9,5), unit(9,6), torch.zeros(2,3).long()), 'embeddings (B, D) and memories (n, D)',
     lambda: crd(unit(2,5), unit(2,5), unit(9,5), unit(9,5), torch.zeros(2,3).long())),
    ('idx has shape …',
     lambda: crd(unit(2,5), unit(2,5), unit(9,5), unit(9,5), torch.zeros(2).long()), 'give (B, 1+m)',
     lambda: crd(unit(2,5), unit(2,5), unit(9,5), unit(9,5), torch.zeros(2,2).long())),
    ('n_items=…: CRD tells an item from others, so there must be 2 or more training items',
     lambda: ContrastMemory(4, 4, 1), '2 or more', lambda: ContrastMemory(4, 4, 2).check(tensor([0,1]), 2)),
    ('CRD needs the index of each item of the batch in the training set, (B,), but got none',
     lambda: ContrastMemory(4, 4, 9).check(None, 2), 'a dataset with indexed items',
     lambda: ContrastMemory(4, 4, 9).check(tensor([0,8]), 2)),
    ('items has shape …',
     lambda: ContrastMemory(4, 4, 9).check(tensor([0]), 2), 'one index per item of the batch, (2,)',
     lambda: ContrastMemory(4, 4, 9).check(tensor([0,8]), 2)),
    ('items has the index …, but the memory was made for … training items, 0 to …',
     lambda: ContrastMemory(4, 4, 9).check(tensor([0,9]), 2), '0 to 8', lambda: ContrastMemory(4, 4, 10).check(tensor([0,9]), 2)),
    ('CRD remembers every training item, but their number is not known',
     lambda: CRD().make_modules([(maps(),maps())], at=None), 'a dataset with a length',
     lambda: len(CRD().make_modules([(maps(),maps())], at=SimpleNamespace(n_items=9)))),
    # Layers
    ('the features … and … cannot be matched',
     lambda: match_maps(torch.randn(4,8,2,4,4), maps()), 'similar positions', lambda: list(match_maps(maps(8, 2), maps()))),
    ('no adapter from fs_shape=… to ft_shape=…',
     lambda: make_adapter(maps(4,2).shape, (4,8)), 'give the shapes after `match_maps`',
     lambda: make_adapter(*(o.shape for o in match_maps(maps(4,2), torch.randn(4,8))))(torch.randn(4,4))),
    ('…=…: the model has no such layer',
     lambda: body_head(net, head='5'), '`layer_names(model, x)` lists them all',
     lambda: body_head(net, head=[*layer_names(net, x)][-1])[1]),
    ('…: no layer to pair was found between input and prediction',
     lambda: pair_layers(nn.Linear(3,3), net, torch.randn(2,3), x), 'name the layers: `layers=[(student_name, teacher_name)]`',
     lambda: Attention(layers=[('1','1')])),
    ('the model returned a …',
     lambda: model_output(Odd()(p)), "a tensor, a tuple that starts with one, or a dict with 'logits'",
     lambda: [model_output(Odd(k)(p)) for k in ('tensor','tuple','dict')]),
    ('head=…: the module is not part of the model',
     lambda: body_head(net, head=nn.Linear(4,3)), 'give the name of a layer', lambda: body_head(net, head='4')[1]),
    ('head=…: nothing to split, the … of … has no parameters of its own',
     lambda: body_head(nn.Sequential(nn.Flatten(), nn.Linear(4,3))), "`splitter=body_head(head='name')`",
     lambda: body_head(head='0')(nn.Sequential(nn.Linear(4,4), nn.Linear(4,3)))[1]),
    ('split_at=…: this layer has no parameters of its own',
     lambda: split_at('1')(net), 'name one that has', lambda: split_at('4')(net)[1]),
    ('split_at=…: no parameters come between this layer and …',
     lambda: split_at('0')(net), 'starting after its first one', lambda: split_at('4')(net)[1]),
    ('split_at…: give the names of one or more layers, such as split_at(\'layer4.0\')',
     lambda: split_at(), 'names of one or more layers', lambda: split_at('4')(net)[1]),
    ('layers=…: this layer … no tensor',
     lambda: record(texts, '1', p), 'choose one of `layer_names(model, x)`', lambda: record(texts, '0', p)),
    ('layers=…: this layer was not called in the last forward pass',
     lambda: record(Unused(), 'b', p), 'choose one of `layer_names(model, x)`',
     lambda: record(Unused(), first(layer_names(Unused(), p)), p)),
    ('layers=… can mean two things',
     lambda: FitNet(layers=('0','1')), "give ['0', '1'] for two layers, each with the teacher's layer of the same name, or [('0', '1')]",
     lambda: [distilled(FitNet(layers=o, weight=1)) for o in (['0','1'], [('0','1')])]),
    ('… has no argument … (…=…)',
     lambda: SoftTarget(temperature=2), "this is called 'T' here: T=2", lambda: distilled(SoftTarget(T=2))),
    ('… has no argument … (…=…)',
     lambda: KnowledgeDistillation(net, temperature=2), 'give it as loss=SoftTarget(T=2)', lambda: distilled(loss=SoftTarget(T=2))),
]

dls = image_dls(n=48, bs=8, size=8)
@cache
def teacher(): return trained_teacher(dls, 8, 8, epochs=12)
def distilled(loss):
    learn = Learner(dls, seeded(cnn, 4, 4), cbs=KnowledgeDistillation(teacher(), loss))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
