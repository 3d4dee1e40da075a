"The loss comparison in `benchmarks/methods.py`, run on a few hundred images"
import runpy, shutil, subprocess, sys
from types import SimpleNamespace

import pytest
from torch import nn

from fastkd.all import KnowledgeDistillation
from fastkd.losses.base import DistillationLoss
import fastkd.all
from helpers import *

script = Path(__file__).parents[1]/'benchmarks/methods.py'
bench = SimpleNamespace(**{k:v for k,v in runpy.run_path(str(script)).items() if not k.startswith('__')})

two = '--methods', bench.alone, 'SoftTarget', '--seeds', '0', '1'
pytestmark = pytest.mark.filterwarnings('ignore:The teacher')  # it trains briefly on few items: it can be poor, or know them by heart

def write_idx(folder, n=(320,80), seed=0):
    "Write images with a bright bar whose position is their class, and their labels, as MNIST's four files"
    rng = np.random.default_rng(seed)
    for o,k in zip(('train','t10k'), n):
        y = np.arange(k, dtype=np.uint8) % 10
        x = rng.integers(0, 150, (k,28,28)).astype(np.uint8)
        for i,c in enumerate(y): x[i,2*c:2*c+6] += 100
        for nm,a in (('images-idx3',x), ('labels-idx1',y)):
            (folder/f'{o}-{nm}-ubyte').write_bytes(bytes([0,0,8,a.ndim]) + b''.join(d.to_bytes(4, 'big') for d in a.shape) + a.tobytes())

def options(folder, *args):
    small = '--labels 40 --batch 16 --labelled 4 --teacher-epochs 1 --threads 1 --device cpu'
    return [*small.split(), '--data', str(folder), '--out', str(folder/'out'), *args]

@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "The folder of a finished run: two methods, two seeds"
    folder = tmp_path_factory.mktemp('methods')
    write_idx(folder)
    subprocess.run([sys.executable, script, *options(folder, *two)], check=True, capture_output=True)
    return folder

@pytest.fixture
def done(finished, tmp_path):
    "A copy of `finished`: some tests add runs or remove them"
    return shutil.copytree(finished, tmp_path/'done')

def test_a_line_per_run_and_the_table(done):
    runs,table = pd.read_csv(done/'out/runs.csv'),pd.read_csv(done/'out/table.csv', index_col='method')
    assert list(runs.columns) == [*bench.settings,'method','seed','accuracy','seconds']
    assert list(zip(runs.method, runs.seed)) == [('teacher',0), (bench.alone,0), ('SoftTarget',0), (bench.alone,1), ('SoftTarget',1)]
    assert list(table.columns) == ['seeds','accuracy','sd','difference','se','time']
    a,b = [runs[runs.method==o].accuracy.tolist() for o in (bench.alone,'SoftTarget')]
    d = b[0]-a[0],b[1]-a[1]
    row = table.loc['SoftTarget']
    assert row.accuracy == pytest.approx(50*(b[0]+b[1]), abs=1e-3)
    assert row.difference == pytest.approx(50*(d[0]+d[1]), abs=1e-3)
    assert row.se == pytest.approx(50*abs(d[0]-d[1]), abs=1e-3)  # for two values, half their difference

def test_differences_are_paired_by_seed_whatever_the_order():
    runs = pd.DataFrame([
        ('teacher',0,.99,9.), (bench.alone,0,.90,1.), (bench.alone,1,.80,2.), ('A',1,.84,6.), ('A',0,.92,2.), ('B',0,.70,1.)
    ], columns=['method','seed','accuracy','seconds'])
    t = bench.table(runs)
    assert list(t.index) == ['A',bench.alone,'B'] and list(t.seeds) == [2,2,1]  # sorted by accuracy, without the teacher
    a = t.loc['A',['accuracy','difference','se','time']].tolist()
    assert a == pytest.approx([88,3,1,2.5])  # +2 and +4 points; 2 and 3 times as long
    assert t.loc['A','sd'] == pytest.approx(8/2**.5) and t.loc[bench.alone,'difference'] == 0
    assert np.isnan(t.loc['B','difference'])  # no standard error from one seed

def test_finished_runs_are_not_trained_again_and_missing_ones_are(done, capsys):
    file,teacher = done/'out/runs.csv',done/'out/teacher.pth'
    before,made = file.read_text(),teacher.stat().st_mtime_ns
    bench.main(options(done, *two))
    out = capsys.readouterr().out
    assert file.read_text()==before and teacher.stat().st_mtime_ns==made
    assert ' of 4:' not in out and 'difference' in out
    lines = before.splitlines(True)
    file.write_text(''.join(lines[:-2]))  # as if the last two had not finished
    bench.main(options(done, *two))
    out = capsys.readouterr().out
    assert [o.split(',')[0] for o in out.splitlines() if ' of 4:' in o] == [f'3 of 4: {bench.alone}', '4 of 4: SoftTarget']
    def without_seconds(text): return [o.rsplit(',', 1)[0] for o in text.splitlines()]
    assert without_seconds(file.read_text()) == without_seconds(before)

def test_a_run_of_other_settings_is_another_run(done, capsys):
    bench.main(options(done, '--methods', bench.alone, '--seeds', '0', '--lr', '.01'))
    assert '1 of 1:' in capsys.readouterr().out

def test_every_loss_for_classification_is_compared():
    given = {type(l).__name__ for f in bench.methods.values() if f for l in f(nn.Linear(1,2)).losses}
    there = {k for k,v in vars(fastkd.all).items() if isinstance(v, type) and issubclass(v, DistillationLoss)} - {'TeacherBounded'}
    assert given-{'FunctionLoss'} == there

def test_each_batch_has_its_share_of_labels():
    y = torch.arange(200)%10
    y[20:] = -1
    dl = bench.Batches(torch.arange(200.), y, 16, 4)
    epochs = [[b[0] for b in dl] for _ in range(2)]
    assert [len(o) for o in epochs] == [len(dl)]*2 == [12]*2
    for b in epochs[0]: assert len(b)==16 and (b<20).sum()==4
    seen = torch.cat(epochs[0])
    assert len(seen[seen>=20].unique()) == 12*12  # no unlabelled item appears twice in an epoch
    assert (seen[seen<20].unique(return_counts=True)[1]>=2).all()
    assert not torch.equal(seen, torch.cat(epochs[1]))

def test_labels_are_kept_evenly_by_seed():
    y = torch.arange(100)%10
    a,b = [bench.keep_labels(y, 30, seed) for seed in (0,1)]
    assert (a[a>=0].bincount()==3).all() and torch.equal(a[a>=0], y[a>=0]) and not torch.equal(a, b)
    assert torch.equal(bench.keep_labels(y, 100, 0), y)

def small(**kwargs):
    "Options of the script, and data for them"
    args = dict(labels=40, labelled=4, batch=16, epochs=1, lr=.03, lrs=None, device='cpu', clock='cpu')
    x,y = torch.randn(160,1,28,28),torch.arange(160)%10
    return SimpleNamespace(**{**args, **kwargs}),((x,y),(x,y))

def test_a_weight_of_zero_is_the_student_alone(monkeypatch):
    args,data = small()
    monkeypatch.setitem(bench.methods, 'off', lambda t: KnowledgeDistillation(t, weight=0))
    res = bench.train(args, data, [bench.alone,'off','SoftTarget'], [3], seeded(bench.teacher_net).eval())
    states = [state(res.student(o).model) for o in res.methods]
    assert same_state(states[0], states[1]) and not same_state(states[0], states[2])
    assert res.runs.valid_loss[0] == res.runs.valid_loss[1] != res.runs.valid_loss[2]

def test_the_committed_runs_could_be_repeated():
    "They were made by seeding once, before the weights, and then training"
    args,data = small(epochs=2)
    teacher = seeded(bench.teacher_net).eval()
    res = bench.train(args, data, [bench.alone,'SoftTarget','FitNet'], [4], teacher)
    for name in res.methods:
        set_seed(4)
        model,(x,y) = bench.student_net(),data[0]
        train = bench.Batches(x, bench.keep_labels(y, args.labels, 4), args.batch, args.labelled)
        dls = DataLoaders(train, bench.Batches(*data[1], 1000), device='cpu')
        cbs = [bench.methods[name](teacher)] if bench.methods[name] else []
        learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(ignore_index=-1), metrics=accuracy, cbs=cbs)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(args.epochs, args.lr)
        assert same_state(state(model), state(res.student(name).model)), name

def test_teachers_answers_stand_in_for_labels():
    s,t = torch.randn(8,10),torch.randn(8,10)
    loss = bench.by_teacher(fastkd.all.decoupled_kd)
    assert torch.equal(loss(s, t), fastkd.all.decoupled_kd(s, t, t.argmax(1)))
