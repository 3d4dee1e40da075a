"Tasks: what a loss function says, scores, labels of -1"
from functools import partial

import pytest, torch, torch.nn.functional as F
from fastai.losses import *
from torch import nn

from fastkd.training.checks import scores, verdicts
from fastkd.training.labels import *
from fastkd.training.task import *

@pytest.mark.parametrize('lf,kind,axis,ignore', [
    (CrossEntropyLossFlat(), 'single', -1, -100),
    (CrossEntropyLossFlat(axis=1, ignore_index=255), 'single', 1, 255),
    (nn.CrossEntropyLoss(ignore_index=0), 'single', 1, 0),
    (F.cross_entropy, 'single', 1, -100),
    (partial(F.cross_entropy, ignore_index=7), 'single', 1, 7),
    (FocalLossFlat(), 'single', -1, None),
    (LabelSmoothingCrossEntropyFlat(), 'single', -1, None),
    (LabelSmoothingCrossEntropy(), 'single', 1, None),
    (DiceLoss(), 'single', 1, None),
    (BCEWithLogitsLossFlat(), 'binary', -1, None),
    (nn.BCEWithLogitsLoss(), 'binary', 1, None),
    (MSELossFlat(), 'regression', -1, None),
    (nn.SmoothL1Loss(), 'regression', 1, None),
    (F.huber_loss, 'regression', 1, None),
    (lambda pred, targ: pred.sum(), 'unknown', 1, None),
])
def test_task_of(lf, kind, axis, ignore):
    t = task_of(lf)
    assert (t.kind, t.axis, t.ignore_index) == (kind, axis, ignore)

@pytest.mark.parametrize('lf,name', [(CrossEntropyLossFlat(), 'soft_target'), (BCEWithLogitsLossFlat(), 'binary_soft_target'), (MSELossFlat(), 'logits')])
def test_default_loss(lf, name): assert task_of(lf).default_loss.name == name

def test_loss_is_seen_through_mixup():
    from fastai.callback.mixup import MixUp
    lf,mix = CrossEntropyLossFlat(axis=1),MixUp()
    mix.old_lf = lf
    assert plain_loss(mix.lf) is lf and task_of(mix.lf).axis == 1

def test_scores_of_single_labels_leave_out_what_does_not_count():
    task = task_of(CrossEntropyLossFlat(ignore_index=9))
    y = torch.tensor([0,0,1,2,9,-1])
    pred = F.one_hot(torch.tensor([0,1,1,2,0,0]), 3).float()
    assert score(task, pred, y) == .75 and chance(task, y, 3) == .5

def test_scores_of_pixels():
    task,y = task_of(CrossEntropyLossFlat(axis=1)),torch.randint(0, 3, (2,4,4))
    assert score(task, F.one_hot(y, 3).movedim(-1, 1).float(), y) == 1.

def test_scores_of_several_labels():
    task,y = task_of(BCEWithLogitsLossFlat()),torch.tensor([[1.,0],[1,1],[1,0],[0,0]])
    assert score(task, 2*y-1, y) == 1. and score(task, 1-2*y, y) == 0. and chance(task, y) == .75

def test_r2_of_regression():
    task,y = task_of(MSELossFlat()),torch.tensor([1.,2,3,4])
    assert score(task, y[:,None], y) == 1. and score(task, torch.full((4,1), 2.5), y) == 0. == chance(task, y)

def test_nothing_to_measure():
    task = task_of(CrossEntropyLossFlat())
    assert scores(task, torch.full((4,), -1), torch.randn(4,3)) is None

def test_all_items_of_one_class_are_no_reason_to_warn():
    task,y = task_of(CrossEntropyLossFlat()),torch.zeros(8).long()
    assert verdicts(scores(task, y, torch.tensor([[1.,0]]*8))) == []

@pytest.mark.parametrize('lf', [BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss()])
def test_minus_one_among_several_labels(lf):
    y,pred = torch.tensor([[1.,0],[-1,-1],[0,-1]]),torch.randn(3,2)
    labels = Labels(task_of(lf), y)
    keep = y >= 0
    assert labels.loss(lf(pred, labels.y), lf, pred).item() == pytest.approx(F.binary_cross_entropy_with_logits(pred[keep], y[keep]).item(), rel=1e-5)

def test_minus_one_is_a_value_in_regression():
    y = torch.tensor([-1.,2])
    assert Labels(task_of(MSELossFlat()), y).y is y

def test_class_weights_are_kept():
    lf = CrossEntropyLossFlat(weight=torch.tensor([1.,5,2]))
    y,pred = torch.tensor([0,1,-1,2]),torch.randn(4,3)
    labels = Labels(task_of(lf), y)
    assert labels.loss(lf(pred, labels.y), lf, pred).item() == pytest.approx(lf(pred[[0,1,3]], y[[0,1,3]]).item(), rel=1e-5)

@pytest.mark.parametrize('lf,pred,y', [
    (CrossEntropyLossFlat(), torch.randn(4,3), torch.rand(4,3)),
    (CrossEntropyLossFlat(), torch.randn(4,3), torch.zeros(4,2).long()),
    (BCEWithLogitsLossFlat(), torch.randn(4,3), torch.zeros(4)),
    (lambda p, y: p.sum(), torch.randn(4,3), torch.zeros(4)),
])
def test_targets_of_another_form_are_not_scored(lf, pred, y): assert scores(task_of(lf), y, pred) is None

def test_blended_minus_one_is_an_error():
    with pytest.raises(ValueError, match='a label is -0.4: give 0 or 1'): Labels(task_of(BCEWithLogitsLossFlat()), torch.tensor([[1.,0],[-.4,.2]]))
