"""Compare time and memory of one distillation step: fastkd, a hand-written PyTorch loop, plain fastai and fasterai, in turn in one run.

Run python benchmarks/step.py --help for the options. fasterai is optional: pip install -e '.[bench]'"""
import argparse, json, resource, statistics as st, subprocess, sys, time, warnings

warnings.filterwarnings('ignore', '.*torch.jit.script')
import torch, torch.nn.functional as F, torchvision
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoaders, Learner, set_seed
import fastai.callback.progress  # `no_bar`
from fastai.data.load import DataLoader
from fastai.optimizer import Adam, OptimWrapper
from functools import partial
from importlib.util import find_spec

T,weight,lr,wd,n_classes = 4.,.5,1e-4,.01,10

class Clock(Callback):
    "Measure the time from the first batch to the end of training, without set-up and validation"
    order = -100
    def before_train(self): self.start = None
    def __init__(self, args): self.args = args
    def before_batch(self): self.start = self.start or now(self.args)
    def after_train(self): self.learn.seconds,self.learn.last_loss = now(self.args)-self.start,self.learn.loss.item()

def now(args):
    if is_cuda(args): torch.cuda.synchronize()
    return dict(wall=time.perf_counter, cpu=time.process_time)[args.clock]()

def is_cuda(args): return torch.device(args.device).type=='cuda'

def networks(args):
    set_seed(0)
    archs = torchvision.models.resnet34,torchvision.models.resnet18
    teacher,student = (f(weights=None, num_classes=n_classes).to(args.device) for f in archs)
    return teacher.eval(),student

def batches(args):
    "One batch per step of a round, on the device, the same for all variants"
    gen = torch.Generator().manual_seed(0)
    def _batch():
        x = torch.randn(args.batch, 3, args.size, args.size, generator=gen)
        y = torch.randint(n_classes, (args.batch,), generator=gen)
        return x.to(args.device),y.to(args.device)
    return [_batch() for _ in range(args.steps)]

adamw = partial(torch.optim.AdamW, weight_decay=wd, betas=(.9,.99), eps=1e-5)  # the same mathematics as fastai's Adam
# by `--opt`: the optimiser of the hand-written loop, and of a Learner
opts = dict(torch=(adamw, partial(OptimWrapper, opt=adamw)), fastai=(partial(Adam, wd=wd), Adam), own=(adamw,Adam))

def by_hand(args):
    "A function that runs one round of the hand-written loop; it returns the seconds and the last loss"
    (teacher,student),data = networks(args),batches(args)
    opt = opts[args.opt][0](student.parameters(), lr=lr)
    def _round():
        student.train()
        start = now(args)
        for xb,yb in data:
            pred = student(xb)
            with torch.no_grad(): target = F.log_softmax(teacher(xb)/T, 1)
            kd = T**2 * F.kl_div(F.log_softmax(pred/T, 1), target, log_target=True, reduction='batchmean')
            loss = (1-weight)*F.cross_entropy(pred, yb) + weight*kd
            loss.backward()
            opt.step()
            opt.zero_grad()
        return now(args)-start,loss.item()
    return _round

def fastai_round(args, make_cb=None):
    "A function that runs one round of `Learner.fit`, with the callback `make_cb(teacher)` if given"
    (teacher,student),data = networks(args),batches(args)
    dls = DataLoaders(*(DataLoader(o, bs=None, num_workers=0) for o in (data, data[:1])), device=args.device)
    cbs = [Clock(args), *([make_cb(teacher)] if make_cb else [])]
    learn = Learner(dls, student, loss_func=CrossEntropyLossFlat(), wd=wd, wd_bn_bias=True, opt_func=opts[args.opt][1], cbs=cbs)
    def _round():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, lr)
        return learn.seconds,learn.last_loss
    return _round

def with_fastkd(args):
    from fastkd.training.callback import KnowledgeDistillation
    from fastkd.losses.soft_targets import SoftTarget
    return fastai_round(args, lambda teacher: KnowledgeDistillation(teacher, SoftTarget(T=T), weight=weight, head_lr=1))

def with_fasterai(args):
    from fasterai.distill.all import KnowledgeDistillationCallback, SoftTarget
    return fastai_round(args, lambda teacher: KnowledgeDistillationCallback(teacher, partial(SoftTarget, T=T), weight=weight))

variants = {'hand-written loop':by_hand, 'fastai, no teacher':fastai_round, 'fasterai':with_fasterai, 'fastkd':with_fastkd}

def peak(args, name):
    "Peak memory in MiB, measured in a separate process"
    options = [f'--{k}={getattr(args,k)}' for k in ('batch','size','steps','device','threads','opt')]
    cmd = [sys.executable, __file__, '--child', name, *options]
    return json.loads(subprocess.run(cmd, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])

def child(args):
    variants[args.child](args)()
    mib = torch.cuda.max_memory_allocated()/2**20 if is_cuda(args) else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    print(json.dumps(mib))

def available():
    "Names of the variants; prints a note and skips fasterai if it is not installed"
    if find_spec('fasterai'): return list(variants)
    print("fasterai is not installed, skipping it: pip install -e '.[bench]'")
    return [k for k in variants if k!='fasterai']

def measure(args, rounds):
    "Seconds of each variant and round, after one warm-up round, and the loss of the last step"
    secs,loss = {k:[] for k in rounds},{}
    for i in range(args.rounds+1):
        for k,f in rounds.items():
            s,loss[k] = f()
            if i: secs[k].append(s)
        print(f"\rround {i} of {args.rounds}", end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return secs,loss

def report(args, secs, loss, peaks):
    base = secs['hand-written loop']
    print(f"{'':20}{'ms/step':>9}{'ratio':>8}{'min':>7}{'max':>7}{'peak MiB':>10}{'last loss':>11}")
    for k,s in secs.items():
        ratio = [a/b for a,b in zip(s, base)]
        print(f"{k:20}{1000*st.median(s)/args.steps:9.2f}{st.median(ratio):8.3f}{min(ratio):7.3f}{max(ratio):7.3f}"
              f"{peaks[k]:10.0f}{loss[k]:11.5f}")
    print("ratio: to the time of the hand-written loop in the same round; median, minimum and maximum over the rounds. "
          "The last loss should be the same for all variants with a teacher.")

counts = (
    ('batch', 32, "images per batch"),
    ('size', 64, "image height and width in pixels"),
    ('rounds', 7, "rounds; each runs every variant once"),
    ('steps', 10, "steps of each variant per round"),
    ('threads', 0, "PyTorch's CPU threads; 0: let PyTorch choose"))

def parse():
    p = argparse.ArgumentParser(description="Compare implementations of one training step, ResNet-34 → ResNet-18")
    for nm,default,help in counts:
        p.add_argument(f'--{nm}', type=int, default=default, metavar='N', help=f"{help} (default: %(default)s)")
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help="(default: %(default)s)")
    p.add_argument('--opt', choices=list(opts), default='torch',
                   help="torch: PyTorch's AdamW for all; fastai: fastai's Adam for all; "
                        "own: AdamW for the hand-written loop, Adam for fastai (default: %(default)s)")
    p.add_argument('--clock', choices=['wall','cpu'], default='wall',
                   help="cpu: processor time, for a machine that is shared with other programs (default: %(default)s)")
    p.add_argument('--child', choices=list(variants), help=argparse.SUPPRESS)
    args = p.parse_args()
    for nm in 'batch','size','rounds','steps':
        if getattr(args, nm)<1: p.error(f"--{nm} is {getattr(args, nm)}: choose 1 or more")
    if args.clock=='cpu' and is_cuda(args): p.error("--clock cpu does not measure the GPU's time: choose wall")
    return args

def main():
    warnings.filterwarnings('ignore', '.*no better')  # the teacher is untrained: only the time matters here
    args = parse()
    if args.threads: torch.set_num_threads(args.threads)
    if args.child: return child(args)
    print(f"ResNet-34 → ResNet-18, batch {args.batch}, {args.size} px, {args.device}, {torch.get_num_threads()} threads, "
          f"{args.clock} time, {args.opt} optimiser, torch {torch.__version__}")
    names = available()
    peaks = {k: peak(args, k) for k in names}  # first: on Linux a child's peak includes the size of its parent
    report(args, *measure(args, {k: variants[k](args) for k in names}), peaks)

if __name__ == '__main__': main()
