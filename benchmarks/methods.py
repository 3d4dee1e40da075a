"""Compare every loss with the student alone on MNIST with few labels, paired over several seeds.

Run python benchmarks/methods.py --help for the options. Finished runs are kept: you can stop and restart the comparison, or run a
second process at the same time with the seeds in another order."""
import argparse, time, warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings('ignore', '.*torch.jit.script')
import numpy as np, pandas as pd, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, accuracy, set_seed
from fastai.callback.progress import ProgressCallback
import fastai.callback.schedule  # `fit_one_cycle`
from fastai.data.load import DataLoader
from fastai.layers import ConvLayer, Flatten, nn
from fastkd.all import *
from fastkd.evaluation.statistics import paired_interval
from fastkd.losses.base import FunctionLoss
from fastkd.schemes.trial import trial
from fastkd.training.checkpoint import random_states, set_random_states
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

alone = 'student alone'
settings = 'labels','labelled','batch','epochs','lr'  # only runs with the same settings are compared

def net(*widths):
    "A CNN whose convolutions each halve the image, (B, 1, 28, 28) → logits (B, 10)"
    convs = [ConvLayer(i, o, stride=2) for i,o in zip((1,*widths), widths)]
    return nn.Sequential(*convs, Flatten(), nn.Linear(16*widths[-1], 10))

teacher_net,student_net = partial(net, 32, 64, 128),partial(net, 8, 16, 32)

def by_teacher(f, weight=1.):
    "A loss that needs labels, with the teacher's predictions as labels, so that it learns from unlabelled images too"
    def by_answer(pred, teacher_pred): return f(pred, teacher_pred, teacher_pred.argmax(1))
    return FunctionLoss(by_answer, weight)

def distil(*losses, teacher=True, **kwargs):
    "A function that creates the callback for a teacher"
    return lambda t: KnowledgeDistillation(t if teacher else None, [o() for o in losses], head_lr=1, **kwargs)  # rates as for the student alone

def named(*losses, **kwargs): return {'+'.join(o.__name__ for o in losses): distil(*losses, **kwargs)}

crd = partial(CRD, n_negatives=512)  # with the paper's 16384, a step takes about twice as long on a CPU
methods = {alone: None,
    **named(SoftTarget),
    'SoftTarget, weight=1: no labels': distil(SoftTarget, weight=1),
    'SoftTarget(T=2, standardize=True, weight=9)': distil(partial(SoftTarget, T=2, standardize=True, weight=9)),
    'SoftTarget(T=LearnableT())': distil(lambda: SoftTarget(T=LearnableT())),
    **named(Logits), **named(Huber), **named(BinarySoftTarget), **named(DIST), **named(MultiLevel),
    **named(DecoupledKD), "DecoupledKD, teacher's answers": distil(lambda: by_teacher(decoupled_kd)),
    **named(NormalizedKD), "NormalizedKD, teacher's answers": distil(lambda: by_teacher(normalized_kd)),
    **named(WeightedSoftLabel), "WeightedSoftLabel, teacher's answers": distil(lambda: by_teacher(weighted_soft_label, 2.5)),
    **named(TeacherFree, teacher=False),
    **named(Attention), **named(FitNet), **named(Similarity), **named(RKD), **named(PKT), **named(VID), **named(NST), **named(ReviewKD),
    'CRD(n_negatives=512)': distil(crd), **named(SoftTarget, Attention), 'SoftTarget+CRD(n_negatives=512)': distil(SoftTarget, crd),
    **named(SoftTarget, RKD), **named(CorrelationCongruence), **named(FSP), **named(FactorTransfer), **named(ChannelWise),
    **named(ActivationBoundaries), **named(OFD)}

# Data
def read(folder):
    "Standardised images (N, 1, 28, 28) and labels (N,), for training and test"
    if folder is None:
        MNIST('data', download=True)
        folder = Path('data/MNIST/raw')
    xs = [read_image_file(str(folder/f'{o}-images-idx3-ubyte')) for o in ('train','t10k')]
    ys = [read_label_file(str(folder/f'{o}-labels-idx1-ubyte')) for o in ('train','t10k')]
    mean,std = xs[0].float().mean(),xs[0].float().std()
    return [((x[:,None]-mean)/std, y) for x,y in zip(xs, ys)]

class Batches(DataLoader):
    "Batches of the tensors `x` and `y`; shuffled if you pass `labelled`, the number of labelled items in each batch"
    def __init__(self, x, y, bs, labelled=None):
        self.x,self.y,self.labelled = x,y,labelled
        super().__init__(range(len(y)), bs=bs, drop_last=labelled is not None)

    def get_idxs(self):
        "Put the same number of labelled and of unlabelled items in every batch"
        if self.labelled is None: return list(range(self.n))
        rng,has = np.random.default_rng(self.rng.getrandbits(32)),self.y.numpy()>=0
        k = self.bs if has.all() else self.labelled
        shares = [(np.flatnonzero(o), n) for o,n in ((has,k), (~has,self.bs-k)) if n]
        return np.hstack([_repeat(o, n*len(self), rng).reshape(-1, n) for o,n in shares]).ravel().tolist()

    def create_batches(self, samps):
        for idxs in self.chunkify(samps): yield self.x[idxs],self.y[idxs]

def _repeat(idxs, n, rng):
    "The first `n` of `idxs`, reshuffled on each pass and repeated as often as needed"
    return np.concatenate([rng.permutation(idxs) for _ in range(-(-n//len(idxs)))])[:n]

def keep_labels(y, n, seed):
    "`y` with all but `n` labels set to -1; `seed` chooses which, the same number for each class"
    if n >= len(y): return y
    ys = pd.Series(y.numpy())
    keep = ys.groupby(ys).sample(n//ys.nunique(), random_state=seed).index
    res = torch.full_like(y, -1)
    res[keep] = y[keep]
    return res

# Training
class Clock(Callback):
    "Measure the seconds of training, without validation, and pass them to `done` together with the learner"
    order = -100
    def __init__(self, now, done): self.now,self.done,self.seconds = now,done,0.
    def before_train(self): self.start = self.now()
    def after_train(self): self.seconds += self.now()-self.start
    def after_fit(self): self.done(self.learn, self.seconds)

class AsMade(Callback):
    "Start the fit with the random numbers that follow those of weights and loaders, so that the runs in methods.csv can be repeated"
    order = -100
    def __init__(self, dls): self.states = random_states(dls)
    def before_fit(self): set_random_states(self.dls, self.states)

def now(args):
    if torch.device(args.device).type=='cuda': torch.cuda.synchronize()
    return dict(wall=time.perf_counter, cpu=time.process_time)[args.clock]()

def learner(args, train, test, net, cbs=None, labelled=0):
    "A learner that trains `net` on `train` and measures its accuracy on `test`"
    dls = DataLoaders(Batches(*train, args.batch, labelled), Batches(*test, 1000), device=args.device)
    learn = Learner(dls, net.to(args.device), loss_func=CrossEntropyLossFlat(ignore_index=-1), metrics=accuracy, cbs=cbs)
    learn.add_cb(AsMade(dls))
    return learn.remove_cb(ProgressCallback)

def make_student(args, data, method, teacher=None):
    "A fresh student; for the same seed, which `trial` has set, every method gets the same weights, labels and batches"
    (x,y),test = data
    net,seed = student_net(),torch.initial_seed()
    train = x,keep_labels(y, args.labels, seed)
    if args.lrs: test = tuple(o[train[1]<0][:10000] for o in (x,y))  # don't choose a learning rate on the test images
    learn = learner(args, train, test, net, [methods[method](teacher)] if methods[method] else None, args.labelled)
    learn.method_seed = method,seed
    return learn

def train(args, data, names, seeds, teacher=None, done=None):
    "The `Trial` of some methods; `done` is called after each run, with the learner and the seconds of training"
    makes = {o: partial(make_student, args, data, o, teacher) for o in names}
    cbs = (lambda: Clock(partial(now, args), done)) if done else None
    return trial(makes[names[0]], teacher, makes, seeds, args.epochs, args.lr, cbs=cbs)

def final_accuracy(learn): return learn.recorder.values[-1][learn.recorder.metric_names.index('accuracy')-1]

def get_teacher(args, data, file):
    "The teacher, trained once on all labels and saved in `file`"
    set_seed(0)
    net = teacher_net()
    if file.exists(): net.load_state_dict(torch.load(file, map_location='cpu', weights_only=True))
    else:
        def done(learn, secs):
            print(f"teacher: {final_accuracy(learn):.2%}, {secs:.0f} s", flush=True)
            torch.save(learn.model.cpu().state_dict(), file)
            add_run(args, 'teacher', 0, final_accuracy(learn), secs)
        learn = learner(args, *data, net)
        with learn.no_logging(): learn.fit_one_cycle(args.teacher_epochs, 1e-2, cbs=Clock(partial(now, args), done))
    return net.to(args.device).eval()

# Runs
def read_runs(args):
    "The finished runs with any settings; if two processes did the same run, only the first"
    file,keys = args.out/'runs.csv',[*settings,'method','seed']
    if not file.exists(): return pd.DataFrame(columns=[*keys,'accuracy','seconds'])
    return pd.read_csv(file).drop_duplicates(keys)

def of_setting(args, df):
    "The runs in `df` with the settings of the command line"
    return df[np.logical_and.reduce([df[o]==getattr(args, o) for o in settings])] if len(df) else df

def add_run(args, method, seed, acc, secs):
    row,file = {o: getattr(args, o) for o in settings},args.out/'runs.csv'
    row.update(method=method, seed=seed, accuracy=round(acc, 5), seconds=round(secs, 2))
    pd.DataFrame([row]).to_csv(file, mode='a', index=False, header=not file.exists())

def train_all(args, data, teacher):
    "Train all runs that are not finished yet, seed by seed"
    todo = [(m, s) for s in args.seeds for m in args.methods]
    start,n = time.perf_counter(),0
    def done(learn, secs):
        nonlocal n
        (method,seed),acc = learn.method_seed,final_accuracy(learn)
        add_run(args, method, seed, acc, secs)
        i,n = todo.index(learn.method_seed)+1,n+1
        left = (time.perf_counter()-start)/n * (len(todo)-i)
        print(f"{i} of {len(todo)}: {method}, seed {seed}: {acc:.2%}, {secs:.1f} s; at most {left/60:.0f} min left", flush=True)
    for seed in args.seeds:
        df = of_setting(args, read_runs(args))
        left = [m for m in args.methods if not ((df.method==m) & (df.seed==seed)).any()]
        if left: train(args, data, left, [seed], teacher, done)

def table(df, base=alone):
    "Means over the seeds and paired differences from `base`, in points; `df` has the columns method, seed, accuracy and seconds"
    rows,ref = [],df[df.method==base]
    for method,o in df[df.method!='teacher'].groupby('method', sort=False):
        both = o.merge(ref, on='seed', suffixes=('','_base'))
        diff,se,*_ = paired_interval(both.accuracy_base.tolist(), both.accuracy.tolist()) if len(both)>1 else (np.nan,np.nan)
        rows.append(dict(method=method, seeds=len(o), accuracy=100*o.accuracy.mean(), sd=100*o.accuracy.std(),
                         difference=100*diff, se=100*se, time=(both.seconds/both.seconds_base).median()))
    return pd.DataFrame(rows).set_index('method').sort_values('accuracy', ascending=False)

def report(args):
    df = of_setting(args, read_runs(args))
    res = table(df[df.method.isin(args.methods)])
    res.to_csv(args.out/'table.csv', float_format='%.3f')
    print(res.to_string(float_format='{:.2f}'.format))
    print("accuracy: on the test images, in per cent; sd: standard deviation over the seeds; "
          f"difference: from the {alone} with the same seed, in points; se: standard error of the difference; "
          f"time: training time, relative to the {alone}")
    return res

def search_lr(args, data):
    "Compare learning rates for the student alone, on training images whose labels it does not see"
    for args.lr in args.lrs:
        res = train(args, data, [alone], args.seeds).table.fillna(0).loc[alone]
        print(f"lr {args.lr:g}: {res.accuracy:.2%} ± {res.accuracy_sd:.2%}", flush=True)

counts = (
    ('labels', 1000, "training images that keep their label, the same number for each class"),
    ('batch', 128, "images per batch"),
    ('labelled', 32, "labelled images per batch"),
    ('epochs', 1, "epochs of the students"),
    ('teacher-epochs', 3, "epochs of the teacher"),
    ('threads', 0, "PyTorch's CPU threads; 0: let PyTorch choose"))

def parse(argv=None):
    p = argparse.ArgumentParser(description="Compare every loss with the student alone on MNIST, paired over seeds")
    p.add_argument('--data', type=Path, help="folder with the four unpacked idx files (default: download them to data/)")
    p.add_argument('--out', type=Path, default=Path('methods'), help="folder for runs, table and teacher (default: %(default)s)")
    for nm,default,help in counts: p.add_argument(f'--{nm}', type=int, default=default, metavar='N', help=f"{help} (default: %(default)s)")
    p.add_argument('--lr', type=float, default=.03, help="maximum learning rate, the same for all methods (default: %(default)s)")
    p.add_argument('--seeds', type=int, nargs='+', default=list(range(5)), metavar='N',
                   help="seeds of weights, labels and batches (default: 0 to 4)")
    p.add_argument('--methods', nargs='+', default=list(methods), metavar='NAME', help=f"any of: {'; '.join(methods)} (default: all)")
    p.add_argument('--lrs', type=float, nargs='+', metavar='LR', help="only compare these learning rates for the student alone")
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help="(default: %(default)s)")
    p.add_argument('--clock', choices=['wall','cpu'], default='wall',
                   help="cpu: processor time, for a machine that is shared with other programs (default: %(default)s)")
    args = p.parse_args(argv)
    for o in args.methods:
        if o not in methods: p.error(f"--methods has {o!r}: choose from {', '.join(map(repr, methods))}")
    if not 1<=args.labelled<=args.batch: p.error(f"--labelled is {args.labelled}: choose a number from 1 to --batch ({args.batch})")
    return args

def main(argv=None):
    args = parse(argv)
    if args.threads: torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    data = read(args.data)
    if args.lrs: return search_lr(args, data)
    train_all(args, data, get_teacher(args, data, args.out/'teacher.pth'))
    report(args)

if __name__ == '__main__': main()
