"Two processes on a CPU train one distilled student: its weights and the adapters' are equal at the end"
import os, subprocess, sys
from pathlib import Path

import pytest, torch
from fastcore.test import test_eq as eq, test_close as close

pytest.importorskip('accelerate')
worker = Path(__file__).parent/'ddp_worker.py'

def run(out, *launcher):
    out.mkdir()
    env = {**{k:v for k,v in os.environ.items() if k not in ('RANK','WORLD_SIZE','LOCAL_RANK')}, 'OMP_NUM_THREADS':'1', 'CUDA_VISIBLE_DEVICES':''}
    r = subprocess.run([sys.executable, *launcher, str(worker), str(out)], env=env, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stdout + r.stderr
    return [torch.load(o) for o in sorted(out.glob('*.pt'))]

# port 0: the launcher takes a free one and keeps it
launcher = '-m torch.distributed.run --nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 --local-addr 127.0.0.1'.split()

@pytest.fixture(scope='module')
def two(tmp_path_factory): return run(tmp_path_factory.mktemp('ddp')/'two', *launcher)
@pytest.fixture(scope='module')
def one(tmp_path_factory): return run(tmp_path_factory.mktemp('ddp')/'one')[0]

def same(a, b): return [torch.equal(x, y) for x,y in zip(a, b, strict=True)]

def test_both_ranks_end_with_the_same_student_and_adapters(two):
    eq(len(two), 2)
    assert all(same(two[0]['student'], two[1]['student']))
    eq(same(two[0]['adapters'], two[1]['adapters']), [True,True])  # weight and bias

def test_the_ranks_saw_different_items_and_one_process_learns_otherwise(two, one):
    a,b = two
    eq((len(a['sums']), len(b['sums'])), (4,4))
    assert not any(x==y for x,y in zip(a['sums'], b['sums']))
    assert a['history']['fitnet'] != b['history']['fitnet']
    assert not any(same(a['student'], one['student']))
    assert not any(same(a['adapters'], one['adapters']))

def test_the_normalisation_is_mapped_also_while_the_loaders_are_wrapped(two, one):
    for r in (*two, one):
        close(r['map'][0].flatten(), torch.full((3,), .2/.25), eps=1e-6)
        close(r['map'][1].flatten(), torch.full((3,), (.4-.5)/.25), eps=1e-6)

def test_nothing_is_left_on_the_models(two):
    for r in two: eq((r['hooks'], r['kind']), (0,'Sequential'))

def test_adapters_step_along_the_mean_of_the_gradients(monkeypatch):
    "With SGD, which Adam's scale-free step would not show; the other process has the same gradient"
    import fastkd.training.trained as features
    from fastai.optimizer import SGD
    monkeypatch.setattr(features, 'many_processes', lambda: True)
    for k,f in dict(broadcast=lambda *a: None, get_world_size=lambda: 2, all_reduce=lambda g: g.mul_(2)).items(): monkeypatch.setattr(features.dist, k, f)
    w = torch.nn.Parameter(torch.ones(2))
    opt = features.AdapterOpt([w], SGD)
    (w*torch.tensor([1.,3.])).sum().backward()
    opt.step(lr=.1)
    close(w.detach(), torch.tensor([.9,.7]))
