"The command line: `fastkd demo`"
import argparse, sys, tempfile, warnings
from pathlib import Path

__all__ = ['main']

def _int_from(low, high=2**31):
    def _f(s):
        try: v = int(s)
        except ValueError: raise argparse.ArgumentTypeError(f"{s!r} is not a whole number") from None
        if not low<=v<high: raise argparse.ArgumentTypeError(f"{v} is out of range: choose {low} or more" + (f", below {high}" if v>=high else ''))
        return v
    return _f

def _writable(path):
    "`path` as a directory in which a file can be made, or an error before time is spent"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path): return path
    except OSError as e: raise OSError(f"--out {path}: cannot write there ({e.strerror}): choose another directory") from None

def _demo(args):
    out = _writable(args.out)
    print("Loading PyTorch and fastai …", flush=True)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning)  # fastai's import, with torch 2.9 and later
        import matplotlib, torch
        matplotlib.use('agg')
        torch.set_num_threads(1)  # more gain nothing on networks this small, and stall where other programs use the cores
        from fastkd.cli.demo import demo
        epochs = args.epochs or (2 if args.quick else 5)
        demo(out, epochs, range(args.seed, args.seed + (2 if args.quick else 5)), (0,1,2,4) if args.quick else (0,1,2,4,8,16))

def _parser():
    p = argparse.ArgumentParser(prog='fastkd', description="Knowledge distillation for fastai")
    sub = p.add_subparsers(dest='command', metavar='command', required=True)
    d = sub.add_parser('demo', help="train a teacher, a student alone and a distilled student on handwritten digits",
        description="Train a teacher that has all labels, and over five seeds a student that has 100 of them, alone and distilled. "
                    "Prints a table and writes tables, plots and the distilled student. Needs no download; about a minute and a half on two cores.")
    d.add_argument('--out', type=Path, default=Path('fastkd-demo'), metavar='DIR', help="directory for the files (default: %(default)s)")
    d.add_argument('--seed', type=_int_from(0), default=0, metavar='N', help="first seed (default: %(default)s)")
    d.add_argument('--epochs', type=_int_from(1), metavar='N', help="epochs of each training (default: 5; with --quick 2)")
    d.add_argument('--quick', action='store_true', help="two seeds and fewer epochs: to try the command, not to judge by")
    d.set_defaults(run=_demo)
    return p

def main(
    argv:list=None, # arguments; None: those of the command line
)->int: # exit code: 0, 1 for an error, 2 for a wrong argument, 130 when interrupted
    "Run the command that `argv` asks for"
    args = _parser().parse_args(argv)
    try: args.run(args)
    except KeyboardInterrupt:
        print("\nInterrupted", file=sys.stderr)
        return 130
    except OSError as e:
        print(f"fastkd {args.command}: {e}", file=sys.stderr)
        return 1
    return 0
