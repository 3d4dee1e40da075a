"""A dense network (784-512-10) with a convolutional teacher, on all of MNIST: alone, with label smoothing and distilled, paired over seeds.

python benchmarks/dense_digits.py --help lists the options. Finished runs are kept: you can stop the study and go on, or add seeds."""
import argparse
from functools import partial
from pathlib import Path

import pandas as pd, torch
from default import Batches, calibration, convnet, differences
from fastai.metrics import ActivationType
from fastai.vision.all import *
from fastkd.all import *

runs_file = Path(__file__).with_name('dense_digits.csv')
alone = 'alone'
methods = alone,'label smoothing','faster head','distilled, default','distilled, head_lr=8','distilled, SoftTarget(T=4)'

def arrays(folder=None):
    "Standardised images (N, 1, 28, 28) and labels (N,) for training and test, downloaded if `folder` is None"
    dls,(mean,std) = mnist_dls(folder),mnist_stats
    def part(items): return torch.tensor(np.stack([x for x,_ in items])[:,None]),torch.tensor([int(y) for _,y in items])
    return [((x/255-mean[0])/std[0], y) for x,y in (part(o.items) for o in (dls.train, dls.valid))]

def dense(n_hidden=512): return nn.Sequential(Flatten(), nn.Linear(784, n_hidden), nn.ReLU(), nn.Linear(n_hidden, 10))

class Remembered(nn.Module):
    "`model` in eval mode, which sees the same images in each epoch: the logits of each are computed once"
    def __init__(self, model):
        super().__init__()
        self.model,self.seen = model.eval(),{}

    @torch.no_grad()
    def forward(self, x):
        keys = [o.tobytes() for o in (x*127).to(torch.int16).numpy()]
        if new := [i for i,o in enumerate(keys) if o not in self.seen]: self.seen.update(zip([keys[i] for i in new], self.model(x[new])))
        return torch.stack([self.seen[o] for o in keys])

def learner(data, net, aug=False, opt_func=Adam):
    "A learner without progress bar; images in memory, so that an epoch takes seconds"
    train,test = data
    dls = DataLoaders(Batches(*train, 128, True, aug), Batches(*test, 2000))
    ece = AccumMetric(calibration, flatten=False, activation=ActivationType.Softmax, name='ece')
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=[accuracy, ece], opt_func=opt_func)
    learn.remove_cbs(learn.cbs.filter(lambda o: type(o).__name__ == 'ProgressCallback'))
    return learn

def student(data): return learner(data, dense(), opt_func=RMSProp)

def faster_head(data):
    "A student without a teacher whose last layer learns as fast as with `head_lr=8`"
    learn = student(data)
    learn.add_cb(FasterHead(8))
    return learn

def ways(data):
    "What each of the `methods` is for `trial`"
    return dict(zip(methods, (None, 'smooth', partial(faster_head, data), {}, dict(head_lr=8), dict(loss=SoftTarget(T=4), weight=.5, head_lr=1))))

def trained_teacher(data, file, epochs):
    "A CNN, trained on rotated and shifted images and saved, in eval mode, and its values on the test images"
    set_seed(99)
    net = convnet(32, 64, 128)
    learn = learner(data, net, aug=True)
    if file.exists(): net.load_state_dict(torch.load(file, weights_only=True))
    else:
        with learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2)
        torch.save(net.state_dict(), file)
    told = Remembered(net)
    for x in (x for part,_ in data for x in part.split(1000)): told(x)  # in one order, whatever the order of the runs
    return told,dict(zip(('nll','accuracy','ece'), learn.validate()))

def save(result, teacher_values, file):
    "The finished runs, and the teacher, as a table"
    rows = pd.concat([pd.DataFrame([dict(method='teacher', seed=0, seconds=0., **teacher_values)]), result.runs.rename(columns=dict(valid_loss='nll'))])
    rows[['method','seed','accuracy','nll','ece','seconds']].round(dict(accuracy=5, nll=5, ece=5, seconds=1)).to_csv(file, index=False)

def table(df, base=alone):
    "A row per method: accuracy in per cent, NLL and ECE, and the paired differences to `base` with their standard errors"
    rows = []
    for m,o in df[df.method != 'teacher'].groupby('method', sort=False):
        acc,nll,ece = (differences(df, m, base, c) for c in ('accuracy','nll','ece'))
        def diff(d, scale, spec): return '' if m == base else f'{scale*d.mean:+{spec}} ± {scale*d.se:{spec}}'
        rows.append({'method': m, 'accuracy': f'{100*o.accuracy.mean():.2f}', 'difference': diff(acc, 100, '.2f'), 'NLL': f'{o.nll.mean():.4f}',
                     'difference of NLL': diff(nll, 1, '.4f'), 'ECE': f'{o.ece.mean():.4f}', 'difference of ECE': diff(ece, 1, '.4f')})
    return pd.DataFrame(rows).set_index('method')

def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--mnist', type=Path, help="folder with the four idx files (default: download them)")
    p.add_argument('--seeds', type=int, nargs='+', default=list(range(5)), metavar='N', help="(default: 0 to 4)")
    p.add_argument('--epochs', type=int, default=5, help="of the students (default: %(default)s)")
    p.add_argument('--teacher-epochs', type=int, default=3, help="(default: %(default)s)")
    p.add_argument('--lr', type=float, default=1e-3, help="highest learning rate of the students (default: %(default)s)")
    p.add_argument('--out', type=Path, default=runs_file, help="table of all runs (default: %(default)s)")
    p.add_argument('--work', type=Path, default=Path('dense_digits'), help="folder for the teacher and the trial (default: %(default)s)")
    p.add_argument('--threads', type=int, default=1, help="PyTorch's CPU threads (default: %(default)s)")
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    data = arrays(args.mnist)
    teacher,values = trained_teacher(data, args.work/'teacher.pth', args.teacher_epochs)
    print(f"teacher: {values['accuracy']:.2%}", flush=True)
    result = trial(partial(student, data), teacher, ways(data), args.seeds, args.epochs, args.lr, file=(args.work/'trial').resolve())
    save(result, values, args.out)
    print(table(pd.read_csv(args.out)).to_string())

if __name__ == '__main__': main()
