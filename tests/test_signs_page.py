"The tutorial on traffic signs has the calls of the well-known recipe as they stand, and the numbers that its text names"
import json, re
from pathlib import Path

import pytest

cells = json.loads((Path(__file__).parents[1]/'nbs/tutorials/traffic_signs.ipynb').read_text())['cells']
code = '\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'code')

calls = """from sklearn.metrics import f1_score
f1_score_mult = FBeta(beta=1, average='weighted')
teacher = create_cnn_model(resnet34, 43, pretrained=False)
loss = partial(SoftTarget, T=20)
kd = KnowledgeDistillation(teacher, loss, from_learner=False)
student = Learner(data, student_model, metrics=[accuracy, f1_score_mult], splitter=default_split, wd=wd, cbs=kd)
student.freeze_to(1)
student.summary()
student.lr_find()
student.fit_one_cycle(1, lr_max=0.001)
student.unfreeze()
lr_max=slice(0.0001, 0.001))
lr_max=slice(0.00001, 0.0001))
interest_idx = [data.vocab.o2i[str(c)] for c in interest_classes]
mask = np.isin(y_true, interest_idx, invert=False)
metric = partial(f1_score, average='weighted')
results = test_time_aug(student, test_dataloader, y_true, metric, n_augs=[0, 5, 10, 20, 30], mask=mask)""".splitlines()

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
    assert row.split()[3:5] == ['0.000','0.000']  # mean and standard deviation over the seeds

def test_there_are_five_seeds():
    assert 'for seed in range(5)' in code
    outs, = [o['outputs'] for o in cells if o['cell_type'] == 'code' and 'diffs = pd.concat' in ''.join(o['source'])]
    head = ''.join(outs[0]['data']['text/html']).split('</tr>')[0]
    assert re.findall('<th>(.+?)</th>', head) == ['0','1','2','3','4','mean','std']
