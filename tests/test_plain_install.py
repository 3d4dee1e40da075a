"fastkd works with what `pip install fastkd` brings, without the packages of its extras"
import configparser, re, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
cfg = configparser.ConfigParser()
cfg.read(root/'setup.cfg')
extras = sorted({re.split(r'[<>=\[]', o)[0] for name in cfg['options.extras_require']
                 for o in cfg['options.extras_require'][name].split()})

def run(code, tmp_path):
    "Run `code` where none of the packages of the extras can be imported"
    block = f'''import sys, warnings
warnings.simplefilter('ignore')
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {extras!r}: raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Blocked())
'''
    return subprocess.run([sys.executable, '-c', block+code], capture_output=True, text=True, cwd=tmp_path,
                          env={'PYTHONPATH': str(root), 'PATH': '', 'HOME': str(tmp_path), 'MPLBACKEND': 'agg'})

def test_the_extras_are_those_of_the_package(): assert {'accelerate','jinja2','pytest','timm'} <= set(extras)

def test_blocked_packages_are_blocked(tmp_path): assert "No module named 'accelerate'" in run('import accelerate', tmp_path).stderr

def test_every_module_can_be_imported(tmp_path):
    modules = [str(f.relative_to(root).with_suffix('')).replace('/', '.').removesuffix('.__init__') for f in (root/'fastkd').rglob('*.py')]
    modules = [o for o in modules if not o.endswith(('__main__','_modidx'))]
    res = run(f'''import importlib
for o in {modules!r}: importlib.import_module(o)
print(len({modules!r}))''', tmp_path)
    assert res.returncode == 0 and int(res.stdout) == len(modules) > 60, res.stderr[-2000:]

def test_a_student_is_distilled_and_exported(tmp_path):
    res = run('''from fastai.vision.all import *
from fastkd.all import *
dls = digits_dls(64)
def net(n): return nn.Sequential(Flatten(), nn.Linear(256, n), nn.ReLU(), nn.Linear(n, 10))
teacher,student = Learner(dls, net(32)),Learner(dls, net(8), metrics=accuracy)
student.add_cb(KnowledgeDistillation(teacher))
with student.no_bar(), student.no_logging(): student.fit_clr(2, 1e-3, 1e-2, cbs=ShortEpochs(4, 2))
student.knowledge_distillation.summary()
student.export('student.pkl')
print(len(student.knowledge_distillation.history), type(load_learner('student.pkl').model).__name__)''', tmp_path)
    assert res.returncode == 0 and res.stdout.split()[-2:] == ['2','Sequential'], res.stderr[-2000:]
