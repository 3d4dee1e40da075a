"The page “Cyclical learning rates”: its text has the figures of its outputs"
import json, re
from pathlib import Path

root = Path(__file__).parents[1]
nb = root/'nbs/tutorials/cyclical_rates.ipynb'
cells = json.loads(nb.read_text())['cells']
def outputs(): return [o for c in cells for o in c.get('outputs', [])]
def html(): return [''.join(o['data']['text/html']) for o in outputs() if 'text/html' in o.get('data', {})]

def test_the_text_has_the_figures_of_the_table():
    "Mean differences to `fit_one_cycle`, in points"
    page = next(o for o in html() if '95 % interval' in o)
    rows = {n: [v.strip() for v in re.findall(r'<td>(.*?)</td>', row)] for n,row in re.findall(r'<th>(fit_\w+.*?)</th>(.*?)</tr>', page, re.S)}
    assert len(rows) == 4
    text = ''.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    for name,(_,_,d,_,interval) in rows.items():
        if name != 'fit_one_cycle': assert f'{float(d):+.1f} ({interval})'.replace('-', '−') in text, name
