"The look at one validation batch, which a fit begins with and `summary()` shows"
import pytest
from fastai.torch_core import get_random_states

from fastkd.losses.batch import DIST
from fastkd.losses.features import FitNet
from fastkd.losses.label_aware import DecoupledKD
from fastkd.losses.soft_targets import SoftTarget, soft_target
from fastkd.teachers.teacher import Teachers
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.checks import bind_to_learner, look
from fastkd.training.objective import Objective
from fastkd.training.trained import Trained
from helpers import *

@pytest.fixture
def dls(): return seeded(image_dls, bs=32)  # 32 validation items: one batch, whatever its order

def bound(dls, *losses, weight=.5):
    learn,teachers,objective = student(dls, p=.5),Teachers(seeded(cnn, 8, 16)),Objective(list(losses), weight)
    bind_to_learner(learn, teachers, objective)
    return learn,teachers,objective

def test_terms_are_those_of_the_validation_batch_times_their_weights(dls):
    learn,teachers,objective = bound(dls, SoftTarget(T=2, weight=3.), DecoupledKD())
    seen = look(learn, teachers, objective)
    x = dls.valid.one_batch()[0]
    with torch.no_grad(): s,t = learn.model.eval()(x),teachers[0].model.eval()(x)
    assert seen['n'] == 32 and list(seen['terms']) == ['soft_target','decoupled_kd']
    assert seen['terms']['soft_target'].item() == pytest.approx(3*soft_target(s, t, T=2).item(), rel=1e-4)

def test_terms_on_features_are_only_measured_with_the_adapters(dls):
    learn,teachers,objective = bound(dls, SoftTarget(), FitNet())
    without,trained = look(learn, teachers, objective),Trained()
    seen = look(learn, teachers, objective, trained)
    assert without['terms']['fitnet'] is None and seen['terms']['fitnet'] > 0 and trained.features is not None
    assert torch.equal(without['terms']['soft_target'], seen['terms']['soft_target'])

def test_no_random_number_is_used_up_and_the_models_stay_as_they_were(dls):
    learn,teachers,objective = bound(dls, SoftTarget(), FitNet())
    learn.model.train()
    before,weights = get_random_states(),state(learn.model)
    look(learn, teachers, objective, Trained())
    after = get_random_states()
    assert torch.equal(before['torch_state'], after['torch_state']) and before['random_state'] == after['random_state']
    assert same_state(weights, state(learn.model)) and all(m.training for m in learn.model.modules()) and not n_hooks(learn.model)

def test_what_this_batch_cannot_show_is_not_measured(dls):
    unlabelled = DataLoaders(dls.train, dls.test_dl([o[0] for o in colour_items(8)]))
    learn = student(unlabelled, loss_func=CrossEntropyLossFlat(), cbs=KnowledgeDistillation(seeded(cnn, 8, 16), [SoftTarget(), DecoupledKD()]))
    text = learn.knowledge_distillation.summary()
    assert 'decoupled_kd: not measured' in text and 'soft_target: not' not in text and 'no labels' in text

def test_a_batch_of_one_cannot_show_correlations(dls):
    one = DataLoaders(dls.train, dls.test_dl(colour_items(1), with_labels=False))
    learn = student(one, loss_func=CrossEntropyLossFlat(), cbs=KnowledgeDistillation(seeded(cnn, 8, 16), DIST()))
    assert 'dist: not measured' in learn.knowledge_distillation.summary()

def test_without_validation_data_there_is_nothing_to_look_at(dls):
    learn,teachers,objective = bound(DataLoaders(dls.train), SoftTarget())
    assert look(learn, teachers, objective) is None
