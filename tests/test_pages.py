"""The pages that lead through fastkd: the index of names, migrating, and the front page of the site

`python tests/test_pages.py` prints the rows that are missing in nbs/api.md"""
import inspect, json, re
from functools import cache
from pathlib import Path

import pytest
from nbdev.clean import nbdev_clean
from nbdev.test import nbdev_test
import fastkd.all as api

root = Path(__file__).parents[1]
nbs = root/'nbs'
pages = [nbs/'index.ipynb', nbs/'tutorials/migrating.ipynb']
def name(nb): return nb.relative_to(nbs).as_posix()

@cache
def notebooks():
    "The notebook of each module"
    res = {}
    for nb in nbs.glob('*/*.ipynb'):
        if m := re.search(r'#\| *default_exp +([\w.]+)', nb.read_text()): res[f'fastkd.{m[1]}'] = name(nb)
    return res

def home(n):
    "The notebook in which the public name `n` is defined"
    return notebooks()[inspect.getmodule(inspect.unwrap(getattr(api, n))).__name__]

def on_page(): return dict(re.findall(r'\[`(\w+)`\]\(([^)#]+)\)', (nbs/'api.md').read_text().split('\n## Methods')[0]))
def missing(): return [f'| [`{n}`]({home(n)}) | {getattr(api, n).__doc__.strip()} |' for n in api.__all__ if n not in on_page()]

def test_every_public_name_is_in_the_index():
    advice = "add these rows to nbs/api.md, where they belong, in a few words:"
    if rows := missing(): pytest.fail('\n'.join([advice, *rows]), pytrace=False)

def test_the_index_has_nothing_else_and_leads_to_the_notebooks():
    assert not set(on_page()) - set(api.__all__), "no longer in fastkd.all: remove these from nbs/api.md"
    wrong = {n: o for n,o in on_page().items() if o != home(n)}
    assert not wrong, f"these are in {[home(n) for n in wrong]}"

def test_methods_in_the_index_exist():
    from fastkd.training.callback import KnowledgeDistillation
    from fastkd.schemes.mean_teacher import MeanTeacher
    from fastai.learner import Learner
    text = (nbs/'api.md').read_text().split('\n## Methods')[1]
    owners = {'learn.knowledge_distillation': KnowledgeDistillation, 'learn.mean_teacher': MeanTeacher, 'learn': Learner}
    found = re.findall(r'^\| \[`(learn(?:\.knowledge_distillation|\.mean_teacher)?)\.(\w+)', text, re.M)
    assert len(found) >= 6
    for o,n in found: assert hasattr(owners[o], n), f"{o}.{n}"

@pytest.mark.parametrize('nb', pages, ids=name)
def test_it_runs(nb): nbdev_test(nb)  # the cells assert what the text says

@pytest.mark.parametrize('nb', pages, ids=name)
def test_it_is_clean_and_its_outputs_are_fit_to_publish(nb, tmp_path):
    copy = tmp_path/nb.name
    copy.write_bytes(nb.read_bytes())
    nbdev_clean(copy)
    assert copy.read_bytes() == nb.read_bytes() and len(nb.read_bytes()) < 100_000
    text = json.dumps([o for c in json.loads(nb.read_text())['cells'] for o in c.get('outputs', [])])
    for o in 'Warning', 'Traceback', 'site-packages', '"error"', f'{root}/': assert o not in text

def test_the_formulas_of_each_origin_are_compared():
    "Every hand-written formula of the page is in an assertion"
    cells = [''.join(c['source']) for c in json.loads(pages[1].read_text())['cells'] if c['cell_type'] == 'code']
    formulas = [o for c in cells for o in re.findall(r'^def ((?:soft|tutorial|fasterai|keras|nckd)_\w+)', c, re.M)]
    assert len(formulas) >= 10
    helper = {'keras_kl_divergence'}  # part of another one
    for f in formulas:
        if f not in helper: assert any(re.search(rf'^ *(same|test_close|for T in).*\b{f}\(', c, re.M) for c in cells), f

if __name__ == '__main__': print(*missing(), sep='\n')
