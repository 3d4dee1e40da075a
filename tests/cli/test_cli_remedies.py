"What the errors of the command line advise works"
import contextlib, io

import fastkd.cli.demo
from fastkd.cli.main import main
from remedies import *

@pytest.fixture(autouse=True)
def without_training(tmp_path, monkeypatch):
    "`demo` gets its arguments, and trains nothing: test_main.py runs it"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastkd.cli.demo, 'demo', lambda out, *args: (out/'table.csv').write_text(repr(args)))

def fails(*args):
    "Raise what the command says when it fails"
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try: res = main(['demo', *args])
        except SystemExit as e: res = e.code
    if res: raise ValueError(err.getvalue())

def runs(*args, out='fastkd-demo'):
    "What the training gets"
    fails(*args)
    return Path(out, 'table.csv').read_text()

def a_file():
    Path('taken').write_text('')
    return 'taken'

cases = [
    ('… is not a whole number',
     lambda: fails('--epochs', '1.5'), 'choose 1 or more', lambda: [runs('--epochs', '1'), runs('--epochs', '2')]),
    ('… is not a whole number',
     lambda: fails('--seed', 'x'), 'choose 0 or more', lambda: runs('--seed', '0')),
    ('… is out of range',
     lambda: fails('--epochs', '0'), 'choose 1 or more', lambda: runs('--epochs', '1')),
    ('… is out of range',
     lambda: fails('--seed', str(2**31)), f'choose 0 or more, below {2**31}', lambda: runs('--seed', str(2**31-1))),
    ('--out …: cannot write there (…)',
     lambda: fails('--out', a_file()), 'choose another directory', lambda: runs('--out', 'new/folder', out='new/folder')),
]

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
