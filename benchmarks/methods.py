"""Which loss helps most: each against the student alone on MNIST with few labels, over several seeds, paired.

python benchmarks/methods.py --help. Finished runs are kept: start it again and it goes on, or start a second one beside it with the seeds in another order."""
import argparse, time, warnings
from functools import partial
from pathlib import Path

warnings.filterwarnings('ignore', '.*torch.jit.script')
import numpy as np, pandas as pd, torch
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, accuracy, set_seed
import fastai.callback.progress, fastai.callback.schedule  # `no_bar`, `fit_one_cycle`
from fastai.data.load import DataLoader
from fastai.layers import ConvLayer, Flatten, nn
from fastkd.all import *
from fastkd.cli.demo import paired_difference
from fastkd.losses.base import FunctionLoss
from torchvision.datasets import MNIST
from torchvision.datasets.mnist import read_image_file, read_label_file

alone = 'student alone'
settings = 'labels','labelled','batch','epochs','lr'  # runs are compared with runs of the same

def net(*widths):
    "Convolutions that halve the image, (B, 1, 28, 28) → logits (B, 10)"
    return nn.Sequential(*[ConvLayer(i, o, stride=2) for i,o in zip((1,*widths), widths)], Flatten(), nn.Linear(16*widths[-1], 10))

teacher_net,student_net = partial(net, 32, 64, 128),partial(net, 8, 16, 32)

def by_teacher(f, weight=1.):
    "A loss that uses labels, on the teacher's answers in their place: it learns from the images without label, too"
    def by_answer(pred, teacher_pred): return f(pred, teacher_pred, teacher_pred.argmax(1))
    return FunctionLoss(by_answer, weight)

def distil(*losses, teacher=True, **kwargs): return lambda t: KnowledgeDistillation(t if teacher else None, [o() for o in losses], **kwargs)
def named(*losses, **kwargs): return {'+'.join(o.__name__ for o in losses): distil(*losses, **kwargs)}

crd = partial(CRD, n_negatives=512)  # with the paper's 16384 a step on a CPU takes about twice as long
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
    **named(SoftTarget, RKD),
    **named(CorrelationCongruence), **named(FSP), **named(FactorTransfer), **named(ChannelWise), **named(ActivationBoundaries), **named(OFD)}

# Data
def read(folder):
    "Images (N, 1, 28, 28), standardised, and labels (N,), of training and of test"
    if folder is None:
        MNIST('data', download=True)
        folder = Path('data/MNIST/raw')
    xs,ys = [[f(str(folder/f'{o}-{nm}')) for o in ('train','t10k')] for f,nm in ((read_image_file,'images-idx3-ubyte'), (read_label_file,'labels-idx1-ubyte'))]
    mean,std = xs[0].float().mean(),xs[0].float().std()
    return [((x[:,None]-mean)/std, y) for x,y in zip(xs, ys)]

class Batches(DataLoader):
    "Batches of the tensors `x` and `y`; shuffled if `labelled`, the number of items with a label in each, is given"
    def __init__(self, x, y, bs, labelled=None):
        self.x,self.y,self.labelled = x,y,labelled
        super().__init__(range(len(y)), bs=bs, drop_last=labelled is not None)

    def get_idxs(self):
        "Every batch has its share of those with a label and of those without"
        if self.labelled is None: return list(range(self.n))
        rng,has = np.random.default_rng(self.rng.getrandbits(32)),self.y.numpy()>=0
        k = self.bs if has.all() else self.labelled
        shares = [(np.flatnonzero(o), n) for o,n in ((has,k), (~has,self.bs-k)) if n]
        return np.hstack([_repeat(o, n*len(self), rng).reshape(-1, n) for o,n in shares]).ravel().tolist()

    def create_batches(self, samps):
        for idxs in self.chunkify(samps): yield self.x[idxs],self.y[idxs]

def _repeat(idxs, n, rng):
    "The first `n` of `idxs`, shuffled, again and again"
    return np.concatenate([rng.permutation(idxs) for _ in range(-(-n//len(idxs)))])[:n]

def keep_labels(y, n, seed):
    "`y` with -1 for all but `n` labels, as many of each class, chosen by `seed`"
    if n >= len(y): return y
    ys = pd.Series(y.numpy())
    keep = ys.groupby(ys).sample(n//ys.nunique(), random_state=seed).index
    res = torch.full_like(y, -1)
    res[keep] = y[keep]
    return res

# Training
class Clock(Callback):
    "Seconds of training, without validation"
    order = -100
    def __init__(self, now): self.now,self.seconds = now,0.
    def before_train(self): self.start = self.now()
    def after_train(self): self.seconds += self.now()-self.start

def now(args):
    if torch.device(args.device).type=='cuda': torch.cuda.synchronize()
    return dict(wall=time.perf_counter, cpu=time.process_time)[args.clock]()

def fit(args, train, test, net, epochs, lr, cbs=None, labelled=0):
    "Accuracy on `test`, seconds of training, and the model"
    dls = DataLoaders(Batches(*train, args.batch, labelled), Batches(*test, 1000), device=args.device)
    clock = Clock(partial(now, args))
    learn = Learner(dls, net.to(args.device), loss_func=CrossEntropyLossFlat(ignore_index=-1), metrics=accuracy, cbs=[clock, *(cbs or [])])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return learn.recorder.values[-1][learn.recorder.metric_names.index('accuracy')-1],clock.seconds,learn.model

def fit_student(args, data, method, seed, teacher=None):
    "The same weights, labels and batches for a seed, whatever the method"
    (x,y),test = data
    set_seed(seed)
    net,train = student_net(),(x, keep_labels(y, args.labels, seed))
    if args.lrs: test = tuple(o[train[1]<0][:10000] for o in (x,y))  # the images of the test are not for choosing
    return fit(args, train, test, net, args.epochs, args.lr, [methods[method](teacher)] if methods[method] else None, args.labelled)[:2]

def get_teacher(args, data, file):
    "The teacher, trained once on all labels and kept in `file`"
    set_seed(0)
    net = teacher_net()
    if file.exists(): net.load_state_dict(torch.load(file, map_location='cpu', weights_only=True))
    else:
        acc,secs,net = fit(args, *data, net, args.teacher_epochs, 1e-2)
        print(f"teacher: {acc:.2%}, {secs:.0f} s", flush=True)
        torch.save(net.cpu().state_dict(), file)
        add_run(args, 'teacher', 0, acc, secs)
    return net.to(args.device).eval()

# Runs
def read_runs(args):
    "The finished runs of any setting; the first, where two processes did the same one"
    file = args.out/'runs.csv'
    return pd.read_csv(file).drop_duplicates([*settings,'method','seed']) if file.exists() else pd.DataFrame(columns=[*settings,'method','seed','accuracy','seconds'])

def of_setting(args, df):
    "Those of `df` that the command line asks for"
    return df[np.logical_and.reduce([df[o]==getattr(args, o) for o in settings])] if len(df) else df

def add_run(args, method, seed, acc, secs):
    row = pd.DataFrame([{**{o: getattr(args, o) for o in settings}, 'method':method, 'seed':seed, 'accuracy':round(acc, 5), 'seconds':round(secs, 2)}])
    file = args.out/'runs.csv'
    row.to_csv(file, mode='a', index=False, header=not file.exists())

def train_all(args, data, teacher):
    "Train what is not finished yet, seed by seed"
    todo,start,n = [(m, s) for s in args.seeds for m in args.methods],time.perf_counter(),0
    for i,(method,seed) in enumerate(todo):
        df = of_setting(args, read_runs(args))
        if ((df.method==method) & (df.seed==seed)).any(): continue
        acc,secs = fit_student(args, data, method, seed, teacher)
        add_run(args, method, seed, acc, secs)
        n += 1
        left = (time.perf_counter()-start)/n * (len(todo)-i-1)
        print(f"{i+1} of {len(todo)}: {method}, seed {seed}: {acc:.2%}, {secs:.1f} s; at most {left/60:.0f} min left", flush=True)

def table(df, base=alone):
    "Of the runs `df` (columns method, seed, accuracy, seconds): means, and paired differences from `base`, in points"
    rows,ref = [],df[df.method==base]
    for method,o in df[df.method!='teacher'].groupby('method', sort=False):
        both = o.merge(ref, on='seed', suffixes=('','_base'))
        diff,se = paired_difference(both.accuracy_base, both.accuracy) if len(both)>1 else (np.nan,np.nan)
        rows.append(dict(method=method, seeds=len(o), accuracy=100*o.accuracy.mean(), sd=100*o.accuracy.std(), difference=100*diff, se=100*se,
                         time=(both.seconds/both.seconds_base).median()))
    return pd.DataFrame(rows).set_index('method').sort_values('accuracy', ascending=False)

def report(args):
    df = of_setting(args, read_runs(args))
    res = table(df[df.method.isin(args.methods)])
    res.to_csv(args.out/'table.csv', float_format='%.3f')
    print(res.to_string(float_format='{:.2f}'.format))
    print(f"accuracy: per cent of the test images; sd: over the seeds; difference: to the {alone} of the same seed, in points, with its standard error; time: of training, to the {alone}")
    return res

def search_lr(args, data):
    "The student alone with each learning rate, measured on training images whose labels it has not got"
    for args.lr in args.lrs:
        accs = [fit_student(args, data, alone, seed)[0] for seed in args.seeds]
        print(f"lr {args.lr:g}: {np.mean(accs):.2%} ± {np.std(accs, ddof=1) if len(accs)>1 else 0:.2%}", flush=True)

def parse(argv=None):
    p = argparse.ArgumentParser(description="Every loss against the student alone on MNIST, paired over seeds")
    p.add_argument('--data', type=Path, help="folder with the four idx files, unpacked; without it they are downloaded to data/")
    p.add_argument('--out', type=Path, default=Path('methods'), help="folder of the runs, the table and the teacher (default: %(default)s)")
    for nm,default,help in (('labels',1000,"training images that keep their label, as many of each class"), ('batch',128,"images in a batch"), ('labelled',32,"of them with a label"),
                            ('epochs',1,"of the students"), ('teacher-epochs',3,"of the teacher"), ('threads',0,"of PyTorch on the CPU; 0: as it chooses")):
        p.add_argument(f'--{nm}', type=int, default=default, metavar='N', help=f"{help} (default: %(default)s)")
    p.add_argument('--lr', type=float, default=.03, help="greatest learning rate, the same for all (default: %(default)s)")
    p.add_argument('--seeds', type=int, nargs='+', default=list(range(5)), metavar='N', help="of weights, labels and batches (default: 0 to 4)")
    p.add_argument('--methods', nargs='+', default=list(methods), metavar='NAME', help=f"of: {'; '.join(methods)} (default: all)")
    p.add_argument('--lrs', type=float, nargs='+', metavar='LR', help="compare learning rates for the student alone, and do nothing else")
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help="(default: %(default)s)")
    p.add_argument('--clock', choices=['wall','cpu'], default='wall', help="cpu: processor time, for a machine that others use too (default: %(default)s)")
    args = p.parse_args(argv)
    for o in args.methods:
        if o not in methods: p.error(f"--methods has {o!r}: choose from {', '.join(map(repr, methods))}")
    if not 1<=args.labelled<=args.batch: p.error(f"--labelled is {args.labelled}: choose from 1 to --batch, {args.batch}")
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
