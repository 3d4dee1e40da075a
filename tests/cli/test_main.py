"Run `fastkd demo` in a subprocess, as users do"
import importlib, subprocess, sys
import pandas as pd, pytest
from fastkd.cli.main import main

def fastkd(*args, **kw):
    cmd = [sys.executable, '-m', 'fastkd', *map(str, args)]
    return subprocess.run(cmd, capture_output=True, text=True, timeout=600, **kw)

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp('demo')/'new'/'dir'
    return out,fastkd('demo', '--quick', '--epochs', 1, '--seed', 3, '--out', out)

def test_demo_exits_with_0_and_warns_of_nothing(ran):
    _,res = ran
    assert res.returncode==0, res.stderr
    assert 'Warning' not in res.stderr

def test_demo_writes_its_files(ran):
    out,_ = ran
    assert {o.name for o in out.iterdir()} == {'table.csv','runs.csv','all_labels.csv','loss_curves.png','tta_curve.png','tta_curve.csv','student.pkl'}
    assert all((out/o).read_bytes().startswith(b'\x89PNG') for o in ('loss_curves.png','tta_curve.png'))

def test_table_is_the_mean_of_the_runs(ran):
    df,runs = (pd.read_csv(ran[0]/o, index_col='network') for o in ('table.csv','runs.csv'))
    assert list(df.index)==['teacher','student alone','label smoothing','distilled']
    assert list(df.columns)==['parameters','ms_per_batch','accuracy','sd','agreement']
    assert df.parameters['teacher'] > 10*df.parameters['distilled'] and df.parameters[1:].nunique()==1
    assert df.agreement['teacher']==1 and (df.ms_per_batch>0).all()
    assert runs.seed.tolist()==[3,3,3,3,4,4,4]
    for o in df.index: assert df.accuracy[o]==pytest.approx(runs.loc[[o]].accuracy.mean())
    assert df.accuracy['teacher']>.3

def test_output_has_table_difference_and_setting(ran):
    out,res = ran
    words = 'student alone', '94,186', 'Distilled minus alone:', 'Distilled minus label smoothing:', 'too few seeds'
    words += 'had all their labels', f"wrote {out/'student.pkl'}"
    for o in words: assert o in res.stdout

def test_the_second_setting_has_all_labels_and_three_controls(ran):
    out,res = ran
    runs = pd.read_csv(out/'all_labels.csv')
    assert list(runs.method.unique()) == ['student alone','label smoothing','faster head','distilled'] and runs.seed.tolist() == [3]*4+[4]*4
    text = res.stdout[res.stdout.index('With all labels:'):]
    for m,o in runs.groupby('method'): assert f'{o.accuracy.mean():.3f}' in text and m in text
    assert 'paired over 2 seeds' in text

def test_progress_is_shown(ran):
    for o in 'Epoch 1/1', '[40/40', '[6/6', 'label smoothing, seed 4, epoch 1 of 1': assert o in ran[1].stdout

def test_tta_curve_starts_at_the_plain_accuracy(ran):
    df,runs = pd.read_csv(ran[0]/'tta_curve.csv'),pd.read_csv(ran[0]/'runs.csv')
    assert df.n_aug.tolist()==[0,1,2,4]
    assert df.accuracy[0]==pytest.approx(runs[runs.network=='distilled'].accuracy.max())  # of the best seed

def test_student_loads_without_fastkd(ran):
    src = f"""import sys; sys.modules['fastkd'] = None
from fastai.vision.all import *
learn = load_learner({str(ran[0]/'student.pkl')!r})
with learn.no_bar(): print(sum(p.numel() for p in learn.model.parameters()), len(learn.predict(np.zeros((8,8), dtype=np.uint8))[2]))"""
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', src], capture_output=True, text=True)
    assert res.stdout.split()==['6274','10'], res.stderr

@pytest.mark.parametrize('args,code,msg', [
    ([], 2, 'required'), (['demos'], 2, 'invalid choice'), (['demo','--oops'], 2, 'unrecognized'),
    (['demo','--epochs','0'], 2, '0 is out of range: choose 1 or more'), (['demo','--epochs','x'], 2, "'x' is not a whole number: choose 1 or more"),
    (['demo','--seed','-1'], 2, 'choose 0 or more')], ids=str)
def test_wrong_arguments_exit_with_2(args, code, msg, capsys):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code==code and msg in capsys.readouterr().err

def test_out_that_is_a_file_exits_with_1(tmp_path, capsys):
    (tmp_path/'a').write_text('')
    assert main(['demo', '--out', str(tmp_path/'a')])==1
    assert f"--out {tmp_path/'a'}: cannot write there" in capsys.readouterr().err

@pytest.mark.parametrize('args', [['--help'], ['demo','--help']], ids=str)
def test_help_exits_with_0(args, capsys):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code==0
    text = capsys.readouterr().out
    assert all(o in text for o in (['[--out DIR]','[--seed N]','[--epochs N]','[--quick]'] if 'demo' in args else ['demo']))

def test_help_does_not_load_torch():
    src = """import sys
from fastkd.cli.main import main
try: main(['demo','--help'])
except SystemExit: print('torch' in sys.modules, 'fastai' in sys.modules)"""
    res = subprocess.run([sys.executable, '-c', src], capture_output=True, text=True)
    assert res.stdout.splitlines()[-1]=='False False'

def test_interrupt_exits_with_130(monkeypatch, capsys, tmp_path):
    def stop(args): raise KeyboardInterrupt
    monkeypatch.setattr('fastkd.cli.main._demo', stop)
    assert main(['demo', '--out', str(tmp_path)])==130 and 'Interrupted' in capsys.readouterr().err

def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as e: main(['--version'])
    assert e.value.code==0 and capsys.readouterr().out.strip() == f'fastkd {importlib.import_module("fastkd").__version__}'
