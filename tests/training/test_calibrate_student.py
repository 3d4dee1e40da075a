"`calibrate`: the temperature that fits the validation labels is in the last layer afterwards, wherever the model is used"
import pytest
from fastai.vision.all import *
from fastcore.test import test_close as close, test_eq as eq
from fastkd.all import *
from fastkd.teachers.calibrate import fit_temperature
from helpers import *

pytestmark = pytest.mark.filterwarnings('ignore:.*')

@pytest.fixture(scope='module')
def dls(): return image_dls(n=240)

def certain(dls, k=6., **kwargs):
    "A trained learner whose logits are `k` times as large"
    learn = trained_teacher(dls, 2, epochs=1, **kwargs)
    learn.remove_cb(ProgressCallback)
    with torch.no_grad():
        for p in learn.model[-1].parameters(): p.mul_(k)
    return learn

def logits(learn): return learn.get_preds(act=noop)

def test_the_last_layer_is_divided_by_the_temperature_that_fits(dls):
    learn = certain(dls)
    z,y = logits(learn)
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    T = calibrate(learn)
    eq(T, fit_temperature(z, y))
    assert T > 1.5
    for k,v in learn.model.state_dict().items(): close(v, before[k]/T if k.startswith(f'{len(learn.model)-1}.') else before[k], eps=1e-6)
    close(logits(learn)[0], z/T, eps=1e-4)
    assert nll(learn.get_preds()[0], y) < nll(z.softmax(1), y) - .01

def test_classes_stay_and_a_second_call_finds_nothing_to_do(dls):
    learn = certain(dls)
    acc = learn.validate()[1]
    calibrate(learn)
    eq(learn.validate()[1], acc)
    close(calibrate(learn), 1., eps=2e-3)

def test_a_distilled_student_and_its_export(dls, tmp_path):
    learn = student(dls, cbs=KnowledgeDistillation(certain(dls)), metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    learn.fit(1, 1e-2)
    T,(preds,_) = calibrate(learn),learn.get_preds()
    learn.export(tmp_path/'student.pkl')
    again = load_learner(tmp_path/'student.pkl')
    again.remove_cb(ProgressCallback)
    close(again.get_preds(dl=dls.valid)[0], preds, eps=1e-5)
    assert T > 0
    learn.fit(1, 1e-3)  # and training goes on

def test_other_labels_than_those_of_the_validation_set(dls):
    learn = certain(dls)
    z,y = learn.get_preds(ds_idx=0, act=noop)
    close(calibrate(learn, dls.train.new(shuffle=False, drop_last=False)), fit_temperature(z, y), eps=1e-5)

def test_pixels(dls):
    x,net = torch.randn(6, 3, 8, 8),seeded(cnn_dense)
    y = (net(x)+2*torch.randn(6, 4, 8, 8)).argmax(1)
    y[:,0] = 255
    dls = DataLoaders.from_dsets(L(zip(x, y)), L(zip(x, y)), bs=4, shuffle=False)
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(axis=1, ignore_index=255))
    learn.remove_cb(ProgressCallback)
    z = net.eval()(x).detach()
    T = calibrate(learn)
    close(T, fit_temperature(z[:,:,1:].movedim(1,-1).flatten(0,2), y[:,1:].flatten()), eps=1e-4)
    close(net(x), z/T, eps=1e-5)
    assert T > 1.2

def cnn_dense(): return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))

class Twice(Module):
    def __init__(self, m): self.m = m
    def forward(self, x): return 2*self.m(x)

@pytest.mark.parametrize('change,says', [
    (lambda o: setattr(o, 'model', Twice(o.model)), 'are not those of its layer'),
    (lambda o: setattr(o, 'model', nn.Sequential(o.model, nn.Softplus(), nn.BatchNorm1d(3))), 'does not end in a linear layer'),
    (lambda o: setattr(o, 'loss_func', BCEWithLogitsLossFlat()), 'single label per item'),
])
def test_models_and_tasks_that_it_is_not_for(dls, change, says):
    learn = certain(dls)
    change(learn)
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ValueError, match=says): calibrate(learn)
    for k,v in learn.model.state_dict().items(): assert v.equal(before[k])

def test_too_few_labels(dls):
    learn = certain(dls)
    with pytest.raises(ValueError, match='there are 20 labels'):
        calibrate(learn, learn.dls.test_dl(list(dls.valid.items)[:20], with_labels=True))
