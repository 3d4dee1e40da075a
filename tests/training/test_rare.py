"Teachers of rare classes: judged by balanced accuracy, and masks against one constant answer for all pixels"
import pytest
from fastai.vision.all import *
from fastcore.test import test_close as close, test_eq as eq

from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.checks import scores, verdicts
from fastkd.training.task import balanced, chance, score, task_of
from helpers import *

single,multi,squared = (task_of(f) for f in (CrossEntropyLossFlat(), BCEWithLogitsLossFlat(), MSELossFlat()))

def logits(answers, n): return 4*torch.eye(n)[list(answers)]

def test_a_teacher_that_finds_the_rare_class_is_not_called_untrained():
    "62 of 64 items of one class: accuracy 61/64 is below the best constant answer, 62/64; balanced accuracy is .976"
    y = tensor([0]*62 + [1]*2)
    r = scores(single, y, logits([0]*59 + [1]*5, 2))
    close((r['teacher'], r['chance'], *r['balanced'][0][:2]), (61/64, 62/64, (59/62 + 1)/2, .5))
    close(r['balanced'][0][2], (.25*(1/62 + 1/2))**.5 / 2)
    eq(verdicts(r), [])

@pytest.mark.parametrize('answers', [[0]*64, [1]*64, [1]*62 + [0]*2], ids=['always the frequent one','always the rare one','reversed'])
def test_guesses_about_a_rare_class_are_called_out(answers):
    y = tensor([0]*62 + [1]*2)
    assert 'no better than always giving the same answer' in verdicts(scores(single, y, logits(answers, 2)))[0]

def test_a_batch_with_one_rare_item_cannot_tell():
    eq(verdicts(scores(single, tensor([0]*63 + [1]), logits([0]*64, 2))), [])

def test_three_classes_two_of_them_rare():
    y = tensor([0]*52 + [1]*6 + [2]*6)
    r = scores(single, y, logits([0]*40 + [1]*12 + [1]*6 + [2]*6, 3))
    close((r['teacher'], r['chance'], r['balanced'][0][0]), (52/64, 52/64, (40/52 + 2)/3))
    eq(verdicts(r), [])

def test_a_student_that_always_gives_the_frequent_class_is_not_better_than_a_teacher_that_finds_the_rare_one():
    y = tensor([0]*95 + [1]*5)
    t,s = logits([0]*80 + [1]*20, 2),logits([0]*100, 2)
    r = scores(single, y, t, s)
    assert r['student'] == pytest.approx(.95) and r['teacher'] == pytest.approx(.85)
    eq(verdicts(r), [])
    better = logits([0]*93 + [1]*7, 2)
    assert "worse than the student's 0.980" in verdicts(scores(single, y, t, better))[0]

def test_rare_tags():
    "Two tags, each on 2 of 32 items, found with 3 false alarms"
    y,pred = torch.zeros(32, 2),torch.full((32,2), -4.)
    for j in range(2): y[j:j+2,j],pred[j:j+5,j] = 1,4
    r = scores(multi, y, pred)
    close((r['teacher'], r['chance'], r['balanced'][0][0]), (29/32, 30/32, (1 + 27/30)/2))
    eq(verdicts(r), [])
    assert 'no better than' in verdicts(scores(multi, y, torch.full((32,2), -4.)))[0]

@pytest.mark.parametrize('shape', [(4,1,8,8),(4,8,8)], ids=['targets with a channel','without'])
def test_the_constant_answer_for_masks_with_one_logit_is_one_answer(shape):
    "The upper half of each image is yes: one answer for each pixel would be right everywhere, one for all pixels for half of them"
    y = torch.zeros(4,1,8,8)
    y[:,:,:4] = 1
    pred = 8*y - 4
    pred[:,:,0] = -4  # an eighth is wrong
    r = scores(multi, y.reshape(shape), pred)
    close((r['chance'], r['teacher'], r['balanced'][0][0]), (.5, 7/8, (3/4 + 1)/2))
    eq(verdicts(r), [])

def test_masks_of_two_labels_have_one_answer_for_each_label():
    y = torch.zeros(2,2,4,4)
    y[:,0,:1],y[:,1] = 1,1
    close(chance(multi, y, 2), (.75 + 1)/2)
    eq(balanced(multi, 2*y-1, y)[0], 1.)  # of the first label alone: the second has only one answer

def test_r2_of_images_is_measured_against_one_mean_per_channel():
    y = torch.zeros(2,1,2,2)
    y[:,:,0] = 1
    pred = torch.where(y > 0, .75, .25)
    close(score(squared, pred, y), 1 - 8*.0625/(8*.25))
    close(score(squared, pred, y[:,0]), .75)

def test_the_summary_and_a_fit_of_rare_classes():
    "The teacher recognises red; one in 32 items is red, and the teacher has false alarms"
    set_seed(0)
    x = torch.randn(64, 4)
    y = (torch.arange(64) % 32 == 31).long()
    x[:,0] = torch.where((y == 1) | (torch.arange(64) % 20 == 3), 1., -1.)
    teacher = nn.Linear(4, 2)
    teacher.weight.data = tensor([[-3.,0,0,0],[3.,0,0,0]])
    dls = DataLoaders(*[DataLoader(list(zip(x, y)), bs=64)]*2)
    learn = Learner(dls, nn.Linear(4, 2), loss_func=CrossEntropyLossFlat(), cbs=KnowledgeDistillation(teacher, SoftTarget()))
    text = learn.knowledge_distillation.summary()
    assert 'no better' not in text and f'accuracy: teacher {61/64:.3f}' in text and f'best constant answer {62/64:.3f}' in text
    assert f'balanced accuracy: teacher {(59/62 + 1)/2:.3f}' in text and 'best constant answer 0.500' in text
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)  # a warning is an error here
