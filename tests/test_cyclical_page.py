"The page “Cyclical learning rates”: it runs, and its stored outputs are small and from a clean run"
import json, re
from pathlib import Path

from nbdev.clean import nbdev_clean
from nbdev.test import nbdev_test

root = Path(__file__).parents[1]
nb = root/'nbs/tutorials/cyclical_rates.ipynb'
cells = json.loads(nb.read_text())['cells']
def outputs(): return [o for c in cells for o in c.get('outputs', [])]
def html(): return [''.join(o['data']['text/html']) for o in outputs() if 'text/html' in o.get('data', {})]

def test_it_runs(): nbdev_test(nb)

def test_outputs_are_small_and_free_of_errors_and_paths():
    assert nb.stat().st_size < 300_000
    assert sum('image/png' in o.get('data', {}) for o in outputs()) == 4
    text = json.dumps(outputs())
    assert not any(o['output_type'] == 'error' for o in outputs())
    for o in 'Warning', 'site-packages', 'Traceback', f'{root}/': assert o not in text

def test_the_text_has_the_figures_of_the_table():
    "Mean differences to `fit_one_cycle`, in points"
    page = next(o for o in html() if '95 % interval' in o)
    rows = {n: [v.strip() for v in re.findall(r'<td>(.*?)</td>', row)] for n,row in re.findall(r'<th>(fit_\w+.*?)</th>(.*?)</tr>', page, re.S)}
    assert len(rows) == 4
    text = ''.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    for name,(_,_,d,_,interval) in rows.items():
        if name != 'fit_one_cycle': assert f'{float(d):+.1f} ({interval})'.replace('-', '−') in text, name

def test_it_is_clean(tmp_path):
    copy = tmp_path/nb.name
    copy.write_bytes(nb.read_bytes())
    nbdev_clean(copy)
    assert copy.read_bytes() == nb.read_bytes()
