"What the errors and warnings of batches, labels, outputs and heads advise works"
from copy import deepcopy
from functools import cache

from fastai.data.load import SkipItemException
from fastai.text.data import SortedDL
from fastai.vision.all import *
from fastkd.all import *
from remedies import *

dls = image_dls(n=48, bs=8, size=8)
teacher = trained_teacher(dls, 8, 8, epochs=12)
KD = KnowledgeDistillation
ce = F.cross_entropy
items = [(x,y) for b in fixed(dls, 8).train for x,y in zip(*b)]
class_items = [(x, tensor(int(y))) for x,y in items]

def loaders(train, valid=None, n_inp=1, dl=DataLoader, **kwargs):
    "Loaders of these items"
    res = DataLoaders(dl(train, **{'bs':8, 'num_workers':0, **kwargs}), DataLoader(valid or class_items, bs=8, num_workers=0), device='cpu')
    res.n_inp = n_inp
    return res

def fit(kd, dls=dls, m=None, loss_func=None, cbs=(), n=1, after=()):
    "A student that has learned for an epoch"
    rewind(dls) if hasattr(dls.train, 'rng') else None
    learn = Learner(dls, m or seeded(cnn, 4, 4), loss_func=loss_func or CrossEntropyLossFlat(), cbs=[*L(cbs), *L(kd)])
    for o in L(after): learn.add_cb(o)
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-3)
    return learn

def skips(o):
    "Leaves out an item while loading"
    if skips.n % 5 == 1: skips.n += 1; raise SkipItemException
    skips.n += 1
    return o
skips.n = 0

def unlabelled(i): return tensor(-1) if i%4 == 0 else class_items[i][1]
partly = loaders([(x, unlabelled(i)) for i,(x,y) in enumerate(class_items)])
bare = loaders([(x,) for x,_ in class_items], n_inp=1)
broken = loaders([(x*math.nan if i == 20 else x, y) for i,(x,y) in enumerate(class_items)])

class Once:
    "A loader that can be read only once"
    def __init__(self, o): self.it = iter(o)
    def __iter__(self): return self.it
    def __len__(self): return 4
    device = None
    def to(self, device): return self

# Two outputs
class Two(nn.Module):
    "A body with a head of each size"
    def __init__(self, *sizes):
        super().__init__()
        self.body,self.heads = cnn(8)[:-1],nn.ModuleList([nn.Linear(8, o) for o in sizes])
    def forward(self, x):
        h = self.body(x)
        return tuple(o(h) for o in self.heads)

def both(o, a, b): return ce(o[0], a) + ce(o[1], b)
pairs = [(x, y, (y>0).long()) for x,y in class_items]
two_dls = loaders(pairs, pairs)

@cache
def two_teacher():
    learn = Learner(two_dls, seeded(Two, 3, 2), loss_func=both)
    with learn.no_bar(), learn.no_logging(): learn.fit(20, 1e-2)
    return learn.model

def swapped():
    "A teacher whose second output has the classes the wrong way round"
    m = deepcopy(two_teacher())
    for p in m.heads[1].parameters(): p.data = p.data.flip(0)
    return m

def two(loss=None, t=None, **kwargs): return fit(KD(t or two_teacher(), loss), two_dls, seeded(Two, 3, 2, seed=1), both, **kwargs)

class Means(Callback):
    "Makes the input that the model wants"
    order = -5
    def before_batch(self): self.learn.xb = (self.xb[0].mean((2,3)),)

class OfColours(nn.Module):
    "Takes the mean colours"
    def __init__(self): super().__init__(); self.a,self.b = nn.Linear(3,3),nn.Linear(3,2)
    def forward(self, x): return self.a(x),self.b(x)

def of_colours(kd=(), after=()):
    learn = Learner(two_dls, seeded(OfColours), loss_func=both)
    for o in [*L(kd), *L(after)]: learn.add_cb(o)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return learn

@cache
def colour_teacher():
    learn = Learner(two_dls, seeded(OfColours), loss_func=both, cbs=Means())
    with learn.no_bar(), learn.no_logging(): learn.fit(60, 1e-1)
    return learn.model

class Forgotten(nn.Module):
    "A model with a head for a teacher, as DeiT's, that nothing uses"
    def __init__(self, extra=True):
        super().__init__()
        self.body,self.head = cnn(4)[:-1],nn.Linear(4,3)
        if extra: self.head_dist = nn.Linear(4,3)
    def forward(self, x): return self.head(self.body(x))

class Tapped(Forgotten):
    "Calls that head, so that a teacher can train it"
    def forward(self, x):
        h = self.body(x)
        self.head_dist(h)
        return self.head(h)

cases = [
    # Batches and labels
    ('loss=… needs labels, but batch … has none',
     lambda: fit(KD(teacher, DecoupledKD(), weight=1), bare), 'give labels, or use a loss that needs none, such as SoftTarget',
     lambda: [fit(KD(teacher, DecoupledKD())), without_labels()]),
    ('teacher=…: some of its predictions for batch … are nan or inf',
     lambda: fit(KD(teacher), broken), "check its weights and this batch's items", lambda: fit(KD(teacher), loaders(class_items))),
    ('dls: a … does not tell which items are in a batch',
     lambda: fit(KD(teacher, CRD(n_negatives=8)), by_size), 'use a fastai DataLoader with a batch size, or a loss without',
     lambda: [fit(KD(teacher, CRD(n_negatives=8)), loaders(class_items)), fit(KD(teacher, SoftTarget()), by_size)]),
    ('dls: batch … has … items, but the order of the epoch gives …',
     lambda: fit(KD(teacher, CRD(n_negatives=8)), loaders(class_items, after_item=skips)), 'use a loss without a memory of items',
     lambda: fit(KD(teacher), loaders(class_items, after_item=skips))),
    ('labels of -1 under … need a loss function with an ignore_index, such as CrossEntropyLossFlat, not …',
     lambda: fit(KD(teacher), partly, loss_func=FocalLossFlat(), cbs=MixUp()), 'such as CrossEntropyLossFlat',
     lambda: fit(KD(teacher), partly, loss_func=CrossEntropyLossFlat(), cbs=MixUp())),
    ('dls: the loader gave no batch',
     lambda: fit(None, DataLoaders(torch_loader([]), dls.valid), cbs=ShortEpochs(2)), 'it needs items',
     lambda: fit(None, DataLoaders(torch_loader(class_items), dls.valid), cbs=ShortEpochs(2))),
    ('dls: the loader gave no batch',
     lambda: fit(None, DataLoaders(Once(torch_loader(class_items)), dls.valid), cbs=ShortEpochs(9)), 'more than one pass',
     lambda: fit(None, DataLoaders(torch_loader(class_items), dls.valid), cbs=ShortEpochs(9))),
    # Outputs and heads
    ('output …: …',
     lambda: two(t=swapped()), 'Pass Teacher(teacher,', lambda: two()),
    ('loss has a feature loss for output …, but layers belong to no output',
     lambda: two([[SoftTarget()], [FitNet([('body.0','body.0')], weight=1)]]), 'give it with those of output 0',
     lambda: two([[SoftTarget(), FitNet([('body.0','body.0')], weight=1)], [SoftTarget()]])),
    ('no output of the student can be distilled',
     lambda: two(SoftTarget(), seeded(Two, 4, 5)), 'Give a teacher that predicts one of them, or losses on layers',
     lambda: [two(SoftTarget(), one_output()), two(FitNet([('body.0','body.0')], weight=1), seeded(Two, 4, 5))]),
    ('the student fails on a validation batch',
     lambda: of_colours(KD(colour_teacher()), Means()), 'add KnowledgeDistillation after them, with learn.add_cb',
     lambda: of_colours(Means(), KD(colour_teacher()))),
    ("the student's layer … gets no gradient",
     lambda: fit(KD(teacher), m=seeded(Forgotten)), "KnowledgeDistillation(teacher, head='head_dist')",
     lambda: [fit(KD(teacher, head='head_dist'), m=seeded(Tapped)), fit(KD(teacher), m=seeded(Forgotten, False))]),
    # What to expect
    ('The teacher is right about all … training items that were tried, so its answers tell the student',
     lambda: fit(KD(by_heart()), many()), 'More augmentation, images without labels, or a teacher that has learned from more data',
     lambda: [fit(KD(by_heart()), many(tints)), fit(KD(by_heart()), many_partly()), fit(KD(of_more()), many())]),
    ("There are two classes, so the teacher's answer for an item is a single number",
     lambda: shown(binary(KD(two_class())).summary()), 'compare with label smoothing',
     lambda: trial(lambda: student(yes_no), two_class(), {'distilled': dict(weight=.5), 'smooth': 'smooth'}, 1, 1, 1e-3).runs),
]

def without_labels():
    learn = fit(KD(teacher, SoftTarget(), weight=1), bare)
    return learn.knowledge_distillation.history.kd_loss.tolist()

def torch_loader(items): return torch.utils.data.DataLoader(items, batch_size=8)
by_size = loaders(class_items, dl=SortedDL, sort_func=lambda o: float(o[0].mean()), shuffle=True)

def one_output():
    "A teacher for the second output alone"
    m = seeded(Two, 4, 2)
    m.load_state_dict({k: v for k,v in two_teacher().state_dict().items() if not k.startswith('heads.0')}, strict=False)
    return m

def tint(x:TensorImage): return x.float() + 60*torch.randn(len(x), 3, 1, 1)
tints = [RandTransform(enc=tint, p=1.)]
def many(tfms=None): return image_dls(n=192, bs=16, size=8, batch_tfms=tfms)
@cache
def by_heart(): return trained_teacher(many(), 16, epochs=6)
@cache
def of_more():
    "A teacher that has learned from more data"
    return trained_teacher(image_dls(n=384, bs=16, size=8, seed=9, batch_tfms=tints), 3, epochs=1)
def many_partly():
    d = many()
    ts = [(x, tensor(int(y)) if i%9 else tensor(-1)) for i,(x,y) in enumerate((x,y) for b in fixed(d, 16).train for x,y in zip(*b))]
    return loaders(ts, bs=16)

yes_no = image_dls(('no','yes'), n=48, bs=8, size=8)
@cache
def two_class(): return trained_teacher(yes_no, 8, n_out=2, epochs=8)
def student(dls, **kwargs):
    learn = Learner(dls, cnn(4, n_out=2), **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn
def binary(kd): return student(yes_no, cbs=kd).knowledge_distillation
def shown(text):
    "The text, in the way in which an error is found"
    raise AssertionError(text)

@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
