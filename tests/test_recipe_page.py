"The page “A recipe that works” and its study: the figures are those of the committed runs, and the script makes runs like them"
import json, re, sys
from pathlib import Path

import numpy as np, pytest
from nbdev.clean import nbdev_clean
from nbdev.test import nbdev_test
from helpers import pd

root = Path(__file__).parents[1]
nb = root/'nbs/tutorials/recipe.ipynb'
runs = pd.read_csv(root/'benchmarks/default.csv')
apart = runs.setting.str.startswith(('fastai head','fashion 500, pretrained'))
final,heads = runs[(runs.seed < 5) & ~apart],runs[apart]

@pytest.fixture(scope='module')
def default():
    sys.path.append(str(root/'benchmarks'))
    import default
    return default

def outputs(): return [o for c in json.loads(nb.read_text())['cells'] for o in c.get('outputs', [])]
def html(): return [''.join(o['data']['text/html']) for o in outputs() if 'text/html' in o.get('data', {})]

def test_it_runs(): nbdev_test(nb)  # its cells assert what the text says about the results

def test_five_seeds_of_each_method_and_no_run_twice():
    assert not runs.duplicated(['setting','method','seed']).any() and runs.notna().all().all()
    assert final.setting.nunique() >= 20 and (final.groupby(['setting','method']).seed.nunique() == 5).all()

def test_the_overview_is_that_of_the_runs():
    page = html()[0]
    for setting,o in final.groupby('setting'):
        acc = o.pivot(index='seed', columns='method', values='accuracy')
        row = page.split(f'<th>{setting}</th>')[1].split('</tr>')[0]
        assert f"<td>{100*acc['alone'].mean():.1f}</td>" in row
        for m in 'label smoothing .1','alone, faster head','SoftTarget, head_lr=1','default':
            d = 100*(acc[m]-acc['alone'])
            assert f'<td>{d.mean():+.1f} ± {d.sem():.1f}</td>' in row, (setting, m)
        nll = o.groupby('method').nll.mean()
        assert f"<td>{nll['alone']:.3f}</td><td>{nll['default']:.3f}</td>" in row.replace('\n', '').replace(' '*6, '')

def cells(page, setting): return re.findall('<td>(.*?)</td>', page.split(f'<th>{setting}</th>')[1].split('</tr>')[0])

def test_what_calibrate_and_rescale_give_is_that_of_the_runs():
    fitted,more = (next(o for o in html() if k in o) for k in ('default, then calibrate','ECE rescale'))
    for setting,o in final.groupby('setting'):
        by = o.groupby('method')[['accuracy','nll','ece']].mean()
        four = ['alone','alone, then calibrate','default','default, then calibrate']
        assert cells(fitted, setting) == [f'{by.loc[m,c]:.3f}' for c in ('ece','nll') for m in four], setting
        acc = o.pivot(index='seed', columns='method', values='accuracy')
        d,two = 100*(acc['default, rescale=True']-acc['default']),['default','default, rescale=True']
        want = [d.mean(), d.sem(), *(by.loc[m,c] for c in ('nll','ece') for m in two)]
        assert np.allclose([float(v) for v in cells(more, setting)], want, atol=6e-4), setting

def test_the_readme_has_figures_of_the_runs():
    by = final[final.setting == 'mnist 3000, augmented, strong teacher'].groupby('method').accuracy.mean()*100
    row = next(l for l in (root/'README.md').read_text().splitlines() if 'a teacher that has seen 60,000' in l)
    assert [f'{by[m]:.1f} %' in row for m in ('alone','label smoothing .1','default')] == [True]*3

def test_settings_and_methods_are_those_of_the_script(default):
    assert len(heads) >= 80 and set(runs.setting) <= set(default.settings) and set(default.main_methods) <= set(final.method)
    assert set(default.main_methods) <= set(default.methods)

def test_the_script_trains_the_missing_runs_only(default, tmp_path, monkeypatch):
    file = tmp_path/'runs.csv'
    monkeypatch.setitem(default.settings, 'tiny', default.Setting('digits', 128, default.small, default.small, True, 1, teacher_epochs=1))
    args = ['--out', str(tmp_path), '--runs', str(file), '--settings', 'tiny', '--methods', 'alone', 'default', '--seeds']
    default.main([*args, '0'])
    first = pd.read_csv(file)
    assert first.method.tolist() == ['alone','default'] and first.accuracy.between(0, 1).all() and (first.nll > 0).all() and first.ece.between(0, 1).all()
    default.main([*args, '0', '1'])
    both = pd.read_csv(file)
    assert both.seed.tolist() == [0,0,1,1] and both[:2].equals(first)

def test_outputs_are_small_and_free_of_errors_and_paths():
    assert nb.stat().st_size < 300_000 and len(html()) >= 4
    text = json.dumps(outputs())
    assert not any(o['output_type'] == 'error' for o in outputs())
    for o in 'Warning', 'site-packages', 'Traceback', f'{root}/': assert o not in text

def test_it_is_clean(tmp_path):
    copy = tmp_path/nb.name
    copy.write_bytes(nb.read_bytes())
    nbdev_clean(copy)
    assert copy.read_bytes() == nb.read_bytes()
