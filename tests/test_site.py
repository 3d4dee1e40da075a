"The site that `nbdev-docs` builds, and the workflows that call it: every file, command and page that they name is there"
import ast, configparser, fnmatch, json, os, re, shutil, subprocess, sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest, yaml
from nbdev.config import get_config

root = Path(__file__).parents[1]
nbs = root/'nbs'
workflows = sorted((root/'.github/workflows').glob('*.yml'))
def load(file): return yaml.safe_load(file.read_text())

def entries(o):
    "The pages and globs in the contents of a sidebar or menu"
    if isinstance(o, str): yield o
    elif isinstance(o, list):
        for x in o: yield from entries(x)
    else:
        for k in 'contents','auto','href':
            if k in o: yield from entries(o[k])

def sidebar(): return list(entries(load(nbs/'sidebar.yml')['website']['sidebar']['contents']))

def test_pages_in_the_sidebar_exist():
    for o in sidebar(): assert list(nbs.glob(o)), f"sidebar.yml: {o}"  # quarto stops at a glob without a page
    for o in entries(load(nbs/'_quarto.yml')['website']['navbar']['left']): assert (nbs/o).exists(), f"_quarto.yml: {o}"

def test_every_page_is_in_the_sidebar():
    pages = [o.relative_to(nbs).as_posix() for e in ('ipynb','qmd','md') for o in nbs.rglob(f'*.{e}')
             if o.name != 'README.md' and not any(p[0] in '._' for p in o.relative_to(nbs).parts)]
    left = [o for o in pages if not any(fnmatch.fnmatch(o, g) for g in sidebar())]
    assert not left, f"add these to nbs/sidebar.yml: {left}"

def test_files_that_quarto_reads_exist():
    conf = load(nbs/'_quarto.yml')
    for o in [conf['format']['html']['css'], *conf['filters']]: assert (nbs/o).exists(), o
    assert conf['metadata-files'] == ['nbdev.yml','sidebar.yml']  # nbdev writes the first

def test_readme_is_not_overwritten(tmp_path):
    "`nbdev-readme` and `nbdev-prepare` make README.md from a notebook, unless there is none"
    from nbdev.quarto import nbdev_readme
    for o in 'pyproject.toml','README.md': shutil.copy(root/o, tmp_path)
    (tmp_path/'nbs').mkdir()
    shutil.copy(nbs/'index.ipynb', tmp_path/'nbs')
    assert nbdev_readme.__wrapped__(str(tmp_path)) is None
    assert (tmp_path/'README.md').read_bytes() == (root/'README.md').read_bytes()

_prepare = """
import json, sys, warnings
warnings.simplefilter('ignore')
from fastcore.nbio import read_nb
from nbdev.processors import FilterDefaults
found = {}
for nb in sys.argv[1:]:
    try: FilterDefaults()(read_nb(nb))
    except Exception as e: found[nb] = str(e)
print(json.dumps(found))
"""

def _mixes(nb):
    "Has `nb` a cell that is not exported and has both imports and other code?"
    for c in json.loads(nb.read_text())['cells']:
        src = ''.join(c['source'])
        if c['cell_type'] != 'code' or re.search(r'^#\| *export', src, re.M): continue
        src = re.sub(r'^[!%].*', '', src, flags=re.M)  # commands of the shell and of IPython
        kinds = {isinstance(o, (ast.Import,ast.ImportFrom)) for o in ast.parse(src).body}
        if kinds == {True,False}: return True

def test_nbdev_can_prepare_the_notebooks():
    "It runs the cells with exports and with imports, and no others: an import may need a cell of its own"
    env = {**os.environ, 'PYTHONPATH': str(root), 'IN_TEST': '1'}
    pages = [str(o) for o in sorted(nbs.rglob('*.ipynb')) if '.ipynb_checkpoints' not in o.parts and _mixes(o)]
    assert len(pages) >= 3
    run = subprocess.run([sys.executable, '-c', _prepare, *pages], cwd=root, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert not found, '\n\n'.join(f'{k}: {v}' for k,v in found.items())

# The workflows
def steps(): return [(w.name, s) for w in workflows for job in load(w)['jobs'].values() for s in job['steps']]

def test_workflows_run_the_tests_and_build_the_site():
    runs = [s.get('run') for _,s in steps()]
    assert '.ci/run' in runs and 'nbdev-docs' in runs
    for w in workflows: assert load(w)[True], w.name  # `on`, which YAML reads as a boolean

def test_actions_have_a_major_version():
    uses = [s['uses'] for _,s in steps() if 'uses' in s]
    assert len(uses) >= 5
    for o in uses: assert re.fullmatch(r'[\w-]+/[\w-]+(/[\w-]+)*@v\d+', o), o

def _commands(run): return [l.split()[0] for l in run.splitlines() if l.strip()]

def test_commands_exist():
    scripts = {o.name for o in entry_points(group='console_scripts')}
    for file,s in steps():
        for c in _commands(s.get('run', '')):
            if '/' in c: assert os.access(root/c, os.X_OK), f"{file}: {c} is not an executable file"
            else: assert c in scripts | {'python3'}, f"{file}: {c}"

def test_extras_and_python_versions_are_those_of_the_package():
    conf = configparser.ConfigParser()
    conf.read(root/'setup.cfg')
    extras = set(conf['options.extras_require'])
    for file,s in steps():
        for o in re.findall(r'\.\[([\w,]+)\]', s.get('run', '')): assert set(o.split(',')) <= extras, f"{file}: {o}"
    lowest = tuple(map(int, re.search(r'>=(\d+)\.(\d+)', conf['options']['python_requires']).groups()))
    versions = load(root/'.github/workflows/test.yml')['jobs']['test']['strategy']['matrix']['python']
    assert [tuple(map(int, v.split('.'))) for v in versions][0] == lowest and len(versions) >= 3

def test_the_site_that_is_built_is_the_one_that_is_published():
    path = next(s['with']['path'] for _,s in steps() if 'upload-pages-artifact' in s.get('uses', ''))
    assert path == get_config(root).doc_path.name
