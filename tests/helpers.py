"Tiny learners on seeded data that the tests share"
import warnings
from fastai.vision.all import *

torch.set_num_threads(1)

def colour_items(n=96, size=16, n_classes=3, seed=0):
    "Images (size, size, 3) uint8 whose colour tells their class, with noise; and the classes, ints"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    x = rng.integers(0, 120, (n,size,size,3))
    x[np.arange(n),:,:,y%3] += 100 - 20*(y//3)[:,None,None]
    return list(zip(x.astype(np.uint8), y.tolist()))

def image_dls(vocab=('a','b','c'), n=96, bs=16, size=16, batch_tfms=None, item_tfms=None, seed=0):
    "Fastai `DataLoaders` of colour images; class i is `vocab[i]` of the sorted order in `colour_items`, whatever the order of `vocab`"
    names = sorted(vocab)
    items = [(x, names[y]) for x,y in colour_items(n, size, len(names), seed)]
    block = DataBlock((ImageBlock, CategoryBlock(vocab=list(vocab), sort=False)), getters=[ItemGetter(0),ItemGetter(1)],
                      splitter=IndexSplitter(range(n*2//3, n)), batch_tfms=batch_tfms, item_tfms=item_tfms)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return block.dataloaders(items, bs=bs, num_workers=0)

def fixed(dls, bs):
    "The loaders, the training one in order, every epoch"
    return DataLoaders(dls.train.new(bs=bs, shuffle=False, drop_last=False), dls.valid)

def cnn(*cs, n_out=3, n_in=3, p=0.):
    "A CNN with a stride-2 block `i` of each width in `cs`, then pooling, dropout and a linear head"
    return nn.Sequential(*[nn.Sequential(nn.Conv2d(i,o,3,2,1), nn.BatchNorm2d(o), nn.ReLU()) for i,o in zip((n_in,*cs),cs)],
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(p), nn.Linear(cs[-1],n_out))

def seeded(f, *args, seed=0, **kwargs):
    "`f(...)` under a seed"
    set_seed(seed)
    return f(*args, **kwargs)

def rewind(dls):
    "Shuffle `dls`, which tests may share, from here on as if it were new"
    dls.train.rng = random.Random(0)

def trained_teacher(dls, *cs, n_out=3, epochs=4):
    "A learner that has learnt its task"
    rewind(dls)
    learn = Learner(dls, seeded(cnn, *(cs or (8,16)), n_out=n_out), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-2)
    return learn

def student(dls, cs=(4,8), seed=1, n_out=3, p=0., **kwargs):
    "A fresh student, without progress bars, the same one with the same batches for the same seed"
    set_seed(seed)
    rewind(dls)
    learn = Learner(dls, cnn(*cs, n_out=n_out, p=p), metrics=kwargs.pop('metrics', accuracy), **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def state(m): return {k: v.clone() for k,v in m.state_dict().items()}
def same_state(a, b): return a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def n_hooks(m): return sum(len(o._forward_hooks)+len(o._forward_pre_hooks)+len(o._backward_hooks)+('forward' in o.__dict__) for o in m.modules())

class CPUMixedPrecision(MixedPrecision):
    "fastai's `MixedPrecision`, which is for CUDA only, on a CPU"
    @property
    def name(self): return 'mixed_precision'
    def before_fit(self):
        self.kwargs['enabled'] = self.amp_mode == AMPMode.FP16
        self.autocast,self.scales = torch.autocast('cpu', torch.float16 if self.kwargs['enabled'] else torch.bfloat16),L()
        self.learn.scaler = torch.amp.GradScaler('cpu', **self.kwargs)
