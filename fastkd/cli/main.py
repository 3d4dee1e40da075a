"The command line: `fastkd demo`"
import argparse, sys, tempfile, warnings
from pathlib import Path
from fastkd import __version__

__all__ = ['main']

def _int_from(low, high=2**31):
    def _f(s):
        try: v = int(s)
        except ValueError: raise argparse.ArgumentTypeError(f"{s!r} is not a whole number: choose {low} or more") from None
        if low<=v<high: return v
        limit = f", below {high}" if v>=high else ''
        raise argparse.ArgumentTypeError(f"{v} is out of range: choose {low} or more{limit}")
    return _f

def _writable(path):
    "Create the directory `path` and check that files can be written to it; OSError if not"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path): return path
    except OSError as e:
        raise OSError(f"--out {path}: cannot write there ({e.strerror}): choose another directory") from None

def _demo(args):
    out = _writable(args.out)
    print("Loading PyTorch and fastai …", flush=True)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning)  # raised by fastai's imports with torch 2.9 and later
        import matplotlib, torch
        matplotlib.use('agg')
        torch.set_num_threads(1)  # more threads don't speed up networks this small, and they stall when other programs use the cores
        from fastkd.cli.demo import demo
        n_seeds,epochs,n_augs = (2, 2, (0,1,2,4)) if args.quick else (5, 5, (0,1,2,4,8,16))
        demo(out, args.epochs or epochs, range(args.seed, args.seed+n_seeds), n_augs)

def _parser():
    p = argparse.ArgumentParser(prog='fastkd', description="Knowledge distillation for fastai")
    p.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    sub = p.add_subparsers(dest='command', metavar='command', required=True)
    d = sub.add_parser('demo', help="train a teacher, a student alone and a distilled student on handwritten digits",
        description="Train a teacher with all labels and, over five seeds, a student with only 100 of them: alone, with label smoothing, "
                    "and distilled. "
                    "Prints a table and saves tables, plots and the distilled student. "
                    "Needs no download and takes two to three minutes on two cores.")
    d.add_argument('--out', type=Path, default=Path('fastkd-demo'), metavar='DIR', help="output directory (default: %(default)s)")
    d.add_argument('--seed', type=_int_from(0), default=0, metavar='N', help="first seed (default: %(default)s)")
    d.add_argument('--epochs', type=_int_from(1), metavar='N', help="epochs per training run (default: 5; with --quick: 2)")
    d.add_argument('--quick', action='store_true', help="two seeds and fewer epochs, to try out the command; too few to draw conclusions")
    d.set_defaults(run=_demo)
    return p

def main(
    argv:list=None, # arguments; None: use the command line
)->int: # exit code: 0 for success, 1 for an error, 2 for an invalid argument, 130 if interrupted
    "Run the command given by `argv`"
    args = _parser().parse_args(argv)
    try: args.run(args)
    except KeyboardInterrupt:
        print("\nInterrupted", file=sys.stderr)
        return 130
    except OSError as e:
        print(f"fastkd {args.command}: {e}", file=sys.stderr)
        return 1
    return 0
