"Running a model without changing it, and finding the tensor in its output"
import random

import numpy as np, pytest, torch
from torch import nn

from fastkd.models.reading import *

def net(): return nn.Sequential(nn.Linear(2,2), nn.BatchNorm1d(2), nn.Dropout())
def flags(m): return [o.training for o in m.modules()]

@pytest.mark.parametrize('run', [eval_mode, probing])
@pytest.mark.parametrize('exc', [RuntimeError('x'), KeyboardInterrupt()])
def test_flags_are_restored_after_an_error_and_a_change_inside(run, exc):
    m = net()
    m[1].eval()
    before = flags(m)
    with pytest.raises(type(exc)), run(m):
        assert not any(flags(m))
        m.train()
        raise exc
    assert flags(m) == before

def test_random_states_are_restored_after_an_error():
    def draw(): return random.random(),np.random.rand(),torch.rand(()).item()
    m = net()
    with keep_rng(): first = draw()
    with pytest.raises(RuntimeError), probing(m):
        draw()
        raise RuntimeError
    assert draw() == first

def test_probing_records_no_graph_and_resets():
    m,resets = net(),[]
    m.reset = lambda: resets.append(1)
    with probing(m) as o: assert o is m and not m(torch.ones(3,2)).requires_grad
    assert resets == [1] and m[1].num_batches_tracked == 0

class Mapping:
    "Has keys, but is not a dict"
    def __init__(self, **kwargs): self.d = kwargs
    def keys(self): return self.d.keys()
    def __getitem__(self, k): return self.d[k]

x = torch.ones(2)

@pytest.mark.parametrize('o', [
    x, (x,None), [x,x*0], ([x,x*0],None), {'logits':x,'out':x*0}, {'out':(x,x*0)}, Mapping(out=x), Mapping(logits=x)])
def test_first_tensor(o): assert first_tensor(o) is x

@pytest.mark.parametrize('o', [None, (), [], ([],None), {}, {'x':x}, Mapping(x=x), 'out'])
def test_output_without_a_tensor(o):
    assert first_tensor(o) is None
    with pytest.raises(TypeError, match=f'the model returned a {type(o).__name__}: it must return a tensor'): model_output(o)

def test_output_of_all_layers_is_that_of_the_last(): assert model_output(([x*0,x], None)) is x

# Warnings
def test_a_warning_points_at_the_users_line():
    import sys
    from fastai.vision.all import Learner, CrossEntropyLossFlat, noop
    from fastkd.models.reading import DistillationWarning
    from fastkd.training.callback import KnowledgeDistillation
    from helpers import cnn, image_dls, seeded, student
    learn = student(image_dls(), cbs=KnowledgeDistillation(seeded(cnn, 8, 16)))
    with pytest.warns(DistillationWarning, match="The teacher's accuracy") as seen:
        learn.fit(1, 1e-3); line = sys._getframe().f_lineno
    assert {(o.filename, o.lineno) for o in seen if o.category is DistillationWarning} == {(__file__, line)}
