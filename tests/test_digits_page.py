"The page “Digits” and its study on all of MNIST: the figures are those of the committed runs, and the script makes runs like them"
import json, re, sys
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn
from fastkd.all import sample
from helpers import pd

root = Path(__file__).parents[1]
nb = json.loads((root/'nbs/tutorials/digits.ipynb').read_text())
runs = pd.read_csv(root/'benchmarks/dense_digits.csv')
students = runs[runs.method != 'teacher']

@pytest.fixture(scope='module')
def bench():
    sys.path.append(str(root/'benchmarks'))
    import dense_digits
    return dense_digits

def words(): return re.sub(r'\s+', ' ', ' '.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown'))

def diff(method, column, base='alone'):
    "Mean over the seeds of the difference to `base`, and its standard error"
    v = students.pivot(index='seed', columns='method', values=column)
    d = (v[method]-v[base]).to_numpy()
    return d.mean(),d.std(ddof=1)/len(d)**.5

def test_five_seeds_of_each_method_and_no_run_twice(bench):
    assert not runs.duplicated(['method','seed']).any() and runs.notna().all().all()
    assert students.groupby('method').seed.agg(sorted).to_dict() == {m: [0,1,2,3,4] for m in bench.methods}
    assert (runs.method == 'teacher').sum() == 1

def test_the_table_on_the_page_is_that_of_the_runs():
    page = next(h for c in nb['cells'] for o in c.get('outputs', []) if 'difference of NLL' in (h := ''.join(o.get('data', {}).get('text/html', []))))
    for m,o in students.groupby('method'):
        row = page.split(f'<th>{m}</th>')[1].split('</tr>')[0]
        assert re.findall('<td>(.*?)</td>', row)[::2] == [f'{100*o.accuracy.mean():.2f}', f'{o.nll.mean():.4f}', f'{o.ece.mean():.4f}']
        if m == 'alone': continue
        for c,scale,n in (('accuracy',100,2),('nll',1,4),('ece',1,4)):
            d,se = diff(m, c)
            assert f'<td>{scale*d:+.{n}f} ± {scale*se:.{n}f}</td>' in row, (m, c)

def test_the_script_remembers_what_the_teacher_said(bench):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    x,told = torch.rand(6, 1, 2, 2),bench.Remembered(net)
    want = net(x).detach()
    assert told(x[:4]).equal(net(x[:4])) and torch.allclose(told(x[[5,0,2]]), want[[5,0,2]], atol=1e-6)
    nn.init.zeros_(net[2].weight)
    assert torch.allclose(told(x[:4].flip(0)), want[:4].flip(0), atol=1e-6) and len(told.seen) == 5

@pytest.mark.filterwarnings('ignore:The teacher', 'ignore:Teacher')
def test_the_script_trains_the_missing_runs_only(bench, tmp_path):
    out = tmp_path/'runs.csv'
    args = ['--mnist', str(sample('mnist', tmp_path/'mnist', n=600)), '--out', str(out), '--work', str(tmp_path), '--epochs', '1', '--teacher-epochs', '1', '--seeds']
    bench.main([*args, '0'])
    first = pd.read_csv(out)
    assert first.method.tolist() == ['teacher', *bench.methods] and first.accuracy.between(0, 1).all() and (first.nll > 0).all()
    bench.main([*args, '0', '1'])
    both = pd.read_csv(out)
    assert both.seed.tolist() == [0]*(1+len(bench.methods)) + [1]*len(bench.methods) and both[:len(first)].equals(first)

def gain(method, base='alone'): return f"{100*diff(method, 'accuracy', base)[0]:.1f}"

def test_the_words_on_the_page_are_those_of_the_runs():
    p = students.pivot(index='seed', columns='method', values='accuracy')
    assert f"Distilled with the default, it gains {gain('distilled, default')} points" in words()
    assert f"With `head_lr=8`, it gains {gain('distilled, head_lr=8')} points, {gain('faster head')} of which come without a teacher" in words()
    assert f"What the teacher adds to that is {gain('distilled, head_lr=8', 'faster head')} points: little, but in all five seeds" in words()
    assert (p['distilled, head_lr=8'] > p['faster head']).all()
    assert f"`SoftTarget(T=4)` without the larger learning rate gains {gain('distilled, SoftTarget(T=4)')} points" in words()
    assert students.groupby('method').nll.mean().idxmin() == 'distilled, head_lr=8' and diff('distilled, default', 'nll')[0] < 0
    d,se = diff('distilled, head_lr=8', 'accuracy', 'label smoothing')
    assert abs(d) < 2*se and diff('label smoothing', 'nll')[0] > .05
