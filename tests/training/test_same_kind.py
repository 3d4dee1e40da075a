"Student and teacher give logits, and were trained for the same kind of task; what isn't so is called out"
import pytest
from fastai.vision.all import *

from fastkd.losses.features import FitNet
from fastkd.losses.soft_targets import BinarySoftTarget, Logits, SoftTarget
from fastkd.teachers.teacher import Teacher
from fastkd.training.callback import KnowledgeDistillation
from helpers import *

x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
truth = nn.Linear(6, 3)
truth.weight.data,truth.bias.data = torch.cat([8*torch.eye(3), torch.zeros(3, 3)], 1),torch.zeros(3)
one = nn.Linear(6, 1)
one.weight.data,one.bias.data = tensor([[8.,0,0,0,0,0]]),torch.zeros(1)
two = nn.Linear(6, 2)
two.weight.data,two.bias.data = torch.stack([-4*torch.eye(6)[0], 4*torch.eye(6)[0]]),torch.zeros(2)

def labels(lf, n):
    z = truth(x).detach()
    if lf is bce: return (z[:,:n] > 0).float()
    return (z[:,0] > 0).long() if n < 3 else z.argmax(1)

def loaders(y): return DataLoaders(*[DataLoader(list(zip(x, y)), bs=64)]*2)
def learner(lf, n=3, end=(), y=None, **kwargs):
    "A student of `n` outputs with loss function `lf`"
    y = labels(lf, n) if y is None else y
    learn = Learner(loaders(y), nn.Sequential(seeded(nn.Linear, 6, n, seed=1), *end), loss_func=lf, **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def teacher(lf, model):
    "A learner with `model` and its loss function"
    return Learner(loaders(torch.zeros(64)), deepcopy(model), loss_func=lf)
def warnings_of(learn):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learn.fit(1, 1e-3)
    return [str(o.message) for o in seen]

ce,bce,mse = CrossEntropyLossFlat(),BCEWithLogitsLossFlat(),MSELossFlat()

class Functional(nn.Module):
    "A softmax or sigmoid that is no module"
    def __init__(self, model, f): super().__init__(); self.model,self.f = model,f
    def forward(self, x): return self.f(self.model(x))

# A softmax or a sigmoid at the end
@pytest.mark.parametrize('lf,n,end,text', [
    (ce, 3, nn.Softmax(1), r'the student, Sequential, predicts probabilities \(they sum to 1\), but CrossEntropyLoss needs logits: take the softmax off'),
    (ce, 3, nn.Sequential(nn.Softmax(1), nn.Dropout(.5)), 'CrossEntropyLoss needs logits'),
    (ce, 3, nn.Sigmoid(), 'its last module is a Sigmoid.*take the sigmoid off'),
    (bce, 3, nn.Sigmoid(), r'the student, Sequential, predicts probabilities \(its last module is a Sigmoid\), but BCEWithLogitsLoss needs logits'),
    (bce, 1, nn.Sigmoid(), 'take the sigmoid off'),
    (LabelSmoothingCrossEntropy(), 3, nn.Softmax(1), 'LabelSmoothingCrossEntropy needs logits'),
])
def test_a_student_that_ends_in_probabilities(lf, n, end, text):
    learn = learner(lf, n, [end])
    learn.add_cb(KnowledgeDistillation(deepcopy(one if n == 1 else truth)))
    before = state(learn.model)
    with pytest.raises(ValueError, match=text): learn.knowledge_distillation.summary()
    with pytest.raises(ValueError, match=text): learn.fit(1)
    assert same_state(before, state(learn.model))

def test_without_validation_data_it_is_said_at_the_first_batch():
    learn = learner(ce, 3, [nn.Softmax(1)], cbs=KnowledgeDistillation(truth))
    learn.dls = DataLoaders(learn.dls.train)  # no second loader
    with pytest.raises(ValueError, match='take the softmax off'): learn.fit(1, 1e-3)

@pytest.mark.parametrize('end', [nn.LogSoftmax(1), nn.Identity()])
def test_logarithms_and_logits_are_fine(end):
    learn = learner(ce, 3, [end], cbs=KnowledgeDistillation(truth, SoftTarget()))
    assert warnings_of(learn) == []

def test_a_softmax_with_a_loss_function_of_ones_own_and_a_loss_that_takes_logits():
    def my_loss(p, y): return F.nll_loss(p.log(), y)
    learn = learner(my_loss, 3, [nn.Softmax(1)], cbs=KnowledgeDistillation(truth, SoftTarget()))
    with pytest.raises(ValueError, match='but loss=soft_target needs logits'): learn.fit(1)
    def distance(p, t): return F.mse_loss(p, t.softmax(1))
    learn = learner(my_loss, 3, [nn.Softmax(1)], cbs=KnowledgeDistillation(truth, distance))
    learn.fit(1)  # a function may take probabilities

def test_weight_0_is_plain_training_whatever_the_student_ends_in():
    learn = learner(ce, 3, [nn.Softmax(1)], cbs=KnowledgeDistillation(truth, weight=0))
    learn.fit(1)

@pytest.mark.parametrize('lf,n,t', [
    (bce, 3, Functional(truth, torch.sigmoid)),
    (bce, 3, nn.Sequential(truth, nn.Sigmoid())),
    (bce, 1, Functional(one, torch.sigmoid)),
    (bce, 1, Functional(two, lambda z: z.softmax(1))),
    (bce, 1, nn.Sequential(two, nn.Softmax(1))),
    (ce, 2, nn.Sequential(one, nn.Sigmoid())),
], ids=['functional sigmoid','sigmoid','one probability','two probabilities for one logit','softmax for one logit','one probability for two logits'])
def test_a_teacher_that_ends_in_probabilities(lf, n, t):
    learn = learner(lf, n, cbs=KnowledgeDistillation(deepcopy(t)))
    with pytest.raises(ValueError, match='predicts probabilities'): learn.fit(1)

def test_a_softmax_of_which_only_some_classes_are_distilled():
    t = nn.Sequential(deepcopy(truth), nn.Softmax(1))
    learn = learner(ce, 2, cbs=KnowledgeDistillation(Teacher(t, class_map={0:1, 1:0})))
    with pytest.raises(ValueError, match='predicts probabilities'): learn.fit(1)

# Trained for another task
@pytest.mark.parametrize('lf,t_lf,loss,words', [
    (ce, bce, SoftTarget(), 'BCEWithLogitsLoss, for multi-label or binary classification, and the student with CrossEntropyLoss'),
    (bce, ce, BinarySoftTarget(), 'CrossEntropyLoss, for single-label classification, and the student with BCEWithLogitsLoss'),
    (bce, LabelSmoothingCrossEntropyFlat(), BinarySoftTarget(), 'LabelSmoothingCrossEntropy, for single-label'),
    (ce, mse, SoftTarget(), 'MSELoss, for regression'),
    (ce, bce, Logits(weight=.01), 'so logits compares what does not mean the same'),
])
def test_a_teacher_that_was_trained_for_another_task(lf, t_lf, loss, words):
    learn = learner(lf, 3, cbs=KnowledgeDistillation(teacher(t_lf, truth), loss))
    text = learn.knowledge_distillation.summary()
    assert 'Warning: teacher=Learner Linear was trained with' in text and words in text
    found = warnings_of(learn)
    assert len(found) == 1 and words in found[0] and warnings_of(learn) == []

def test_in_an_ensemble_the_one_teacher_is_called_out():
    learn = learner(ce, 3, cbs=KnowledgeDistillation([teacher(ce, truth), teacher(bce, truth)], SoftTarget()))
    assert sum('was trained with BCEWithLogitsLoss' in o for o in warnings_of(learn)) == 1

@pytest.mark.parametrize('lf,t_lf,n,t', [
    (ce, ce, 3, truth),
    (ce, LabelSmoothingCrossEntropyFlat(), 3, truth),
    (ce, FocalLossFlat(), 3, truth),
    (bce, bce, 3, truth),
    (bce, ce, 1, two),
    (ce, bce, 2, one),
    (ce, lambda p, y: p.sum(), 3, truth),
])
def test_the_same_task_says_nothing(lf, t_lf, n, t):
    "Also a yes/no task with one logit on one side and two on the other"
    assert warnings_of(learner(lf, n, cbs=KnowledgeDistillation(teacher(t_lf, t)))) == []

def test_two_independent_labels_are_no_yes_no_task():
    t = nn.Linear(6, 2)
    t.weight.data,t.bias.data = truth.weight.data[:2],torch.zeros(2)
    y = (truth(x)[:,0] < truth(x)[:,1]).long()
    assert 'was trained with BCEWithLogitsLoss' in warnings_of(learner(ce, 2, y=y, cbs=KnowledgeDistillation(teacher(bce, t), SoftTarget())))[0]

def test_a_teacher_that_was_trained_with_probabilities():
    learn = learner(bce, 3, cbs=KnowledgeDistillation(teacher(BCELossFlat(), truth)))
    with pytest.raises(ValueError, match='its loss function is BCELoss.*take the sigmoid off'): learn.fit(1)

def test_losses_on_features_do_not_care():
    learn = learner(ce, 3, cbs=KnowledgeDistillation(teacher(bce, nn.Sequential(truth)), FitNet([('0','0')], weight=.01)))
    assert warnings_of(learn) == []
