"The tutorial on traffic signs has the calls of the well-known recipe as they stand, and the numbers that its text names"
import json, re
from pathlib import Path

import pytest

cells = json.loads((Path(__file__).parents[1]/'nbs/tutorials/traffic_signs.ipynb').read_text())['cells']
code = '\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'code')

# the calls that tests/test_recipe_signs.py runs, without numbers of epochs and what only a test needs
run = (Path(__file__).with_name('test_recipe_signs.py')).read_text().split('    interest_classes = ')[1].split("    assert list(results.columns)")[0]
calls = [o.strip() for o in run.splitlines()[1:] if re.match(r'    (f1_score_mult|teacher|loss|kd|student|interest_idx|mask|metric|results)\b', o)]
calls = [o for o in calls if not re.search(r'load_state_dict|fit_one_cycle\((9|6|10),|Learner\(data, create_cnn_model', o)]

def test_the_calls_are_those_that_matter():
    assert len(calls) >= 14 and any('from_learner=False' in o for o in calls) and any('n_augs=[0, 5, 10, 20, 30], mask=mask' in o for o in calls)

@pytest.mark.parametrize('rates', ['slice(0.0001, 0.001)', 'slice(0.00001, 0.0001)'])
def test_its_rates(rates): assert f'lr_max={rates})' in code

@pytest.mark.parametrize('call', calls)
def test_a_call_of_the_recipe_is_there_as_it_stands(call): assert call in code

def test_the_callback_object_serves_a_second_learner():
    assert len(re.findall(r'cbs=kd\)', code)) == 2 and len(re.findall(r'\bkd = ', code)) == 1

def text_outputs(part):
    "The text of the outputs of the cell that has `part` in its source"
    outs, = [o['outputs'] for o in cells if o['cell_type'] == 'code' and part in ''.join(o['source'])]
    return '\n'.join(''.join(o.get('data', o).get('text/plain', o.get('text', ''))) for o in outs)

def test_alone_knows_no_unseen_class():
    row, = [o for o in text_outputs("runs.groupby('method', sort=False).agg").splitlines() if o.startswith('alone')]
    assert [float(o) for o in row.split()[3:5]] == [0, 0]  # mean and standard deviation over the seeds

def test_there_are_five_seeds():
    assert 'for seed in range(5)' in code
    outs, = [o['outputs'] for o in cells if o['cell_type'] == 'code' and 'diffs = pd.concat' in ''.join(o['source'])]
    head = ''.join(outs[0]['data']['text/html']).split('</tr>')[0]
    assert re.findall('<th>(.+?)</th>', head) == ['0','1','2','3','4','mean','std']
