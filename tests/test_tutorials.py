"The tutorials run from top to bottom, and their stored outputs are those of a run without warnings"
import configparser, json, re, shutil
from pathlib import Path

import pytest
from nbdev.clean import nbdev_clean

root = Path(__file__).parents[1]
pages = 'recipe','which_loss','migrating'  # they have tests of their own
nbs = sorted(o for o in (root/'nbs/tutorials').glob('[!_.]*.ipynb') if o.stem not in pages)
each = pytest.mark.parametrize('nb', nbs, ids=lambda o: o.stem)

def cells(nb, kind): return [o for o in json.loads(nb.read_text())['cells'] if o['cell_type'] == kind]
def source(cell): return ''.join(cell['source'])
def outputs(nb): return [o for c in cells(nb, 'code') for o in c['outputs']]

def badge(nb):
    "The address in Colab; without a repository in setup.cfg, that of the dialog in which you choose one"
    cfg = configparser.ConfigParser()
    cfg.read(root/'setup.cfg')
    repo = cfg['metadata'].get('url', '').rstrip('/').removeprefix('https://github.com/')
    return 'https://colab.research.google.com/github/' + (f'{repo}/blob/main/nbs/tutorials/{nb.name}' if repo else '')

@each
def test_the_first_cell_has_title_subtitle_and_badge(nb):
    first = source(cells(nb, 'markdown')[0])
    assert re.match(r'# .+\n> .+\n\n', first)
    assert f'[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]({badge(nb)})' in first

@each
def test_only_colab_installs_and_the_cell_is_skipped_in_tests(nb):
    found = [o for o in cells(nb, 'code') if 'pip install' in source(o)]
    assert len(found) == 1 and found[0]['outputs'] == []
    assert '#| eval: false' in source(found[0]) and '[ -e /content ] &&' in source(found[0])

@pytest.mark.parametrize('nb', [o for o in nbs if o.stem != 'cyclical_rates'], ids=lambda o: o.stem)  # it has no other data
def test_one_variable_switches_to_the_full_data(nb):
    assert [source(o) for o in cells(nb, 'code')].count('full = False') == 1

@each
def test_it_ends_with_what_to_change_for_your_own_data(nb): assert '## On your own data' in source(cells(nb, 'markdown')[-1])

@each
def test_the_outputs_are_complete_and_without_warnings(nb):
    outs = outputs(nb)
    assert not [o for o in outs if o['output_type'] == 'error' or o.get('name') == 'stderr']
    assert any('image/png' in o.get('data', {}) for o in outs)

@each
def test_no_output_has_a_path_of_this_machine(nb):
    texts = [''.join(o.get('text', [])) for o in outputs(nb)]
    texts += [''.join(v) for o in outputs(nb) for k,v in o.get('data', {}).items() if k.startswith('text')]
    assert not re.search(r'(?<![\w.<])/(tmp|home|root|usr|var|opt|work|mnt|Users|content)/', '\n'.join(texts))

@each
def test_it_is_small_and_clean(nb, tmp_path):
    assert nb.stat().st_size < 300_000
    shutil.copy(nb, tmp_path)
    nbdev_clean(tmp_path/nb.name)
    assert nb.read_bytes() == (tmp_path/nb.name).read_bytes(), "run nbdev-clean"

@each
def test_lines_of_text_are_short(nb):
    assert not [l for c in cells(nb, 'markdown') for l in source(c).splitlines() if len(l) > 140 and '://' not in l]

@each
def test_the_readme_lists_it(nb):
    section = (root/'README.md').read_text().split('\n## Tutorials\n')[1].split('\n## ')[0]
    assert f'(nbs/tutorials/{nb.name})' in section

@each
def test_it_runs(nb, beside):
    code,out = beside.result(nb)
    assert code == 0, out[-5000:]
