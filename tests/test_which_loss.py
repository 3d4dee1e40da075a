"The page “Which loss should I use?”: it runs, it agrees with the measurements, and it is ready to publish"
import json
from pathlib import Path

from nbdev.clean import nbdev_clean
from nbdev.test import nbdev_test
from helpers import pd

root = Path(__file__).parents[1]
nb = root/'nbs/tutorials/which_loss.ipynb'
runs = pd.read_csv(root/'benchmarks/methods.csv')

def outputs():
    return [o for c in json.loads(nb.read_text())['cells'] for o in c.get('outputs', [])]

def test_it_runs(): nbdev_test(nb)  # its cells assert what the text says about the results

def test_five_seeds_of_each_method():
    df = runs[runs.method!='teacher']
    assert df.method.nunique() >= 35 and not df.duplicated(['method','seed']).any()
    assert df.groupby('method').seed.agg(sorted).map(lambda o: o==list(range(5))).all()

def test_outputs_are_of_the_committed_runs():
    html = next(h for o in outputs() if 'difference' in (h := ''.join(o.get('data', {}).get('text/html', []))) and 'student alone' in h)
    for m,acc in runs[runs.method!='teacher'].groupby('method').accuracy.mean().items():
        row = html.split(f'<th>{m}</th>')[1].split('</tr>')[0]
        assert f'<td>{100*acc:.2f}</td>' in row, m

def test_outputs_are_small_and_free_of_errors_and_paths():
    assert nb.stat().st_size < 250_000
    text = json.dumps(outputs())
    assert sum('image/png' in o.get('data', {}) for o in outputs()) == 1
    assert not any(o['output_type']=='error' for o in outputs())
    paths = [f'{o}/' for o in (root, Path.home()) if o != Path('/')]  # a home of / is in every address
    for o in 'Warning', 'site-packages', 'Traceback', *paths: assert o not in text

def test_it_is_clean(tmp_path):
    copy = tmp_path/nb.name
    copy.write_bytes(nb.read_bytes())
    nbdev_clean(copy)
    assert copy.read_bytes() == nb.read_bytes()
