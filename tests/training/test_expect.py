"What is said before training if the teacher can add little: when, in which words, and when not"
import warnings

import pytest
from fastai.vision.all import *

from fastkd.losses.soft_targets import SoftTarget
from fastkd.teachers.teacher import Teachers
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.expect import expectations, right_in_training
from fastkd.training.task import task_of
from helpers import *
from fastcore.test import test_close as close, test_eq as eq

by_heart = 'right about all 128 training items'

def vectors(n=160, n_classes=3, noise=0):
    "Loaders of vectors whose classes a linear teacher knows, but for `noise` of the training items; and this teacher"
    set_seed(0)
    teacher,x = nn.Linear(6, n_classes),torch.randn(n, 6)
    y = teacher(x).argmax(1)
    wrong = (y + 1) % n_classes
    train = [(a, b if i < noise else c) for i,(a,b,c) in enumerate(zip(x, wrong, y))]
    return DataLoaders(DataLoader(train, bs=32, shuffle=True, drop_last=True), DataLoader(list(zip(x, wrong))[:20] + list(zip(x, y)), bs=64)),teacher

def learner(dls, teacher, n_classes=3, **kwargs):
    learn = Learner(dls, seeded(nn.Linear, 6, n_classes, seed=1), loss_func=CrossEntropyLossFlat(), cbs=KnowledgeDistillation(teacher, SoftTarget(), **kwargs))
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def warned(learn):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learn.fit(1, 1e-3)
    return [str(o.message) for o in seen]

def test_a_teacher_that_knows_the_training_items_by_heart_is_called_out_with_what_would_help():
    learn = learner(*vectors(128))
    text = next(o for o in warned(learn) if by_heart in o)
    assert 'augmentation, images without labels, or a teacher that has learned from more data would help' in text
    assert f'Note: {text}' in learn.knowledge_distillation.summary()
    assert not any(by_heart in o for o in warned(learn))  # once

@pytest.mark.parametrize('n,noise', [(128,1), (96,0)], ids=['one mistake','too few items'])
def test_others_are_not(n, noise):
    learn = learner(*vectors(n, noise=noise))
    assert not any('by heart' in o or 'right about all' in o for o in [*warned(learn), learn.knowledge_distillation.summary()])

def test_two_classes_are_a_note_in_the_summary_only():
    dls,teacher = vectors(128, 2, noise=9)
    learn = learner(dls, teacher, 2)
    assert 'Note: There are two classes' in learn.knowledge_distillation.summary()
    assert not any('two classes' in o for o in warned(learn))
    assert 'two classes' not in learner(*vectors(128, 3, noise=9)).knowledge_distillation.summary()

def test_plain_training_says_nothing():
    learn = learner(*vectors(128), weight=0)
    assert warned(learn) == [] and 'Note' not in learn.knowledge_distillation.summary()

def test_share_of_right_answers_by_hand():
    dls,teacher = vectors(160, noise=40)
    learn = learner(dls, teacher)
    eq(right_in_training(learn, Teachers(teacher), task_of(learn.loss_func)), (.75,160))

def test_what_cannot_be_measured():
    dls,teacher = vectors()
    learn = learner(dls, teacher)
    eq(right_in_training(learn, Teachers(teacher), task_of(MSELossFlat())), (None,0))
    eq(right_in_training(learn, Teachers(None), task_of(learn.loss_func)), (None,0))
    learn.dls = DataLoaders(DataLoader([(x,) for x,_ in dls.train.dataset], bs=32), dls.valid)
    eq(right_in_training(learn, Teachers(teacher), task_of(learn.loss_func)), (None,0))
    unlabelled = DataLoader([(x, tensor(-1)) for x,_ in dls.train.dataset], bs=32)
    learn.dls = DataLoaders(unlabelled, dls.valid)
    eq(right_in_training(learn, Teachers(teacher), task_of(learn.loss_func)), (None,0))

def test_where_the_teacher_says_more_than_the_labels():
    "Items without a label, and MixUp"
    dls,teacher = vectors(128)
    some = [(x, tensor(-1) if i % 9 == 0 else y) for i,(x,y) in enumerate(dls.train.dataset)]
    few = DataLoaders(DataLoader(some, bs=32), dls.valid)
    learn = learner(few, teacher)
    eq(right_in_training(learn, Teachers(teacher), task_of(learn.loss_func)), (None,0))
    learn = learner(dls, teacher)
    learn.add_cb(MixUp())
    eq(expectations(learn, Teachers(teacher), task_of(learn.loss_func)), [])

def test_no_random_number_is_used_up():
    dls,teacher = vectors()
    learn = learner(dls, teacher)
    set_seed(1)
    before = torch.get_rng_state(),random.getstate(),dls.train.rng.getstate()
    expectations(learn, Teachers(teacher), task_of(learn.loss_func))
    assert torch.equal(torch.get_rng_state(), before[0]) and (random.getstate(),dls.train.rng.getstate()) == before[1:]
