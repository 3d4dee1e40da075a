"A callback that is given to a second learner, as when a notebook cell runs again: it moves, starts afresh, and the first learner says so"
import pytest
from fastai.vision.all import *

from fastkd.losses.features import FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.schemes.mean_teacher import MeanTeacher
from fastkd.schemes.mutual import MutualLearning
from fastkd.training.attached import MovedAway
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.head import FasterHead
from fastkd.training.resume import Resume
from helpers import *
from fastcore.test import test_eq as eq

pytestmark = pytest.mark.filterwarnings("ignore:The teacher's")

@pytest.fixture(scope='module')
def dls(): return image_dls()
@pytest.fixture
def teacher(): return seeded(cnn, 8, 16, seed=3).eval()

def kd_of(teacher, **kwargs): return KnowledgeDistillation(teacher, [SoftTarget(), FitNet([('1','1')], weight=1.)], **kwargs)

def test_a_cell_that_runs_twice(dls, teacher):
    "The second learner trains as if the callback were new, and the history is its own"
    kd = kd_of(teacher)
    first = student(dls, cbs=kd)
    first.fit(2, 1e-2)
    again = student(dls, cbs=kd)
    again.fit(1, 1e-2)
    new = student(dls, cbs=kd_of(teacher))
    new.fit(1, 1e-2)
    assert same_state(state(again.model), state(new.model)) and again.knowledge_distillation is kd
    eq(kd.history[['fit','epoch']].values.tolist(), [[0,0]])
    np.testing.assert_allclose(kd.history.soft_target, new.knowledge_distillation.history.soft_target, rtol=1e-6)
    assert list(again.recorder.metric_names) == list(new.recorder.metric_names)

def test_the_first_learner_does_not_train_on_without_its_teacher(dls, teacher):
    kd = kd_of(teacher)
    first,second = student(dls, cbs=kd),student(dls, cbs=kd)
    before = state(first.model)
    text = 'the KnowledgeDistillation of this learner has moved to another learner.*add a new KnowledgeDistillation, or'
    for f in (lambda: first.fit(1, 1e-2)),(lambda: first.fit_one_cycle(1, 1e-2)),(lambda: first.fine_tune(1)):
        with pytest.raises(ValueError, match=text): f()
    assert same_state(before, state(first.model)) and not hasattr(first, 'knowledge_distillation')
    second.fit(1, 1e-2)

def test_the_first_learner_still_validates_predicts_and_exports(dls, teacher, tmp_path):
    kd = kd_of(teacher)
    first = student(dls, cbs=kd, path=tmp_path)
    student(dls, cbs=kd)
    n = first.validate()
    eq(len(first.get_preds()[0]), len(dls.valid_ds))
    first.export('f.pkl')
    data = (tmp_path/'f.pkl').read_bytes()
    assert b'fastkd' not in data and n[0] > 0

def test_what_the_message_advises_works(dls, teacher):
    kd = kd_of(teacher)
    first = student(dls, cbs=kd)
    student(dls, cbs=kd)
    first.remove_cb(first.moved_away)
    first.fit(1, 1e-2)
    kd = kd_of(teacher)
    second = student(dls, cbs=kd)
    student(dls, cbs=kd)
    second.add_cb(kd_of(teacher))
    second.fit(1, 1e-2)
    assert not any(isinstance(o, MovedAway) for o in second.cbs) and len(second.knowledge_distillation.history) == 1

def test_back_and_forth(dls, teacher):
    kd = kd_of(teacher)
    a,b = student(dls, cbs=kd),student(dls, cbs=kd)
    a.add_cb(kd)
    a.fit(1, 1e-2)
    with pytest.raises(ValueError, match='moved to another learner'): b.fit(1)
    b.fit(1, 1e-2, cbs=kd)  # for this fit only
    eq(len(kd.history), 1)
    assert kd.learn is None and kd not in b.cbs and not any(isinstance(o, MovedAway) for o in b.cbs)
    with pytest.raises(ValueError, match='moved to another learner'): a.fit(1)

def test_other_data_other_classes_other_sizes(dls, teacher):
    "Adapters of the first student don't fit the second, and its classes have another order"
    kd = KnowledgeDistillation(trained_teacher(dls, 8, 16, epochs=1), [SoftTarget(), FitNet([('1','1')], weight=1.)])
    student(dls, cbs=kd).fit(1, 1e-2)
    learn = student(image_dls(vocab=('c','a','b')), cs=(4,6), cbs=kd)
    learn.fit(1, 1e-2)
    eq(len(kd.history), 1)

def test_a_learner_that_cannot_have_it_leaves_all_as_it_was(dls, teacher):
    kd = kd_of(teacher)
    first = student(dls, cbs=kd)
    other = student(dls, cbs=kd_of(teacher))
    with pytest.raises(ValueError, match='has a KnowledgeDistillation already'): other.add_cb(kd)
    assert kd.learn is first and first.knowledge_distillation is kd
    first.fit(1, 1e-2)

@pytest.mark.parametrize('make', [lambda t,d,p: MeanTeacher(loss=SoftTarget()), lambda t,d,p: MutualLearning(student(d, seed=5)),
    lambda t,d,p: FasterHead(), lambda t,d,p: Resume(p/'r')], ids=['mean teacher','mutual learning','faster head','resume'])
def test_other_callbacks_move_too(dls, teacher, tmp_path, make):
    cb = make(teacher, dls, tmp_path)
    first,second = student(dls, cbs=cb),student(dls, cbs=cb)
    with pytest.raises(ValueError, match=f'the {type(cb).__name__} of this learner has moved'): first.fit(1)
    second.fit(1, 1e-2)
    assert cb.learn is second

def test_summary_says_if_it_is_before_or_after_training(dls, teacher):
    learn = student(dls, cbs=kd_of(teacher))
    kd = learn.knowledge_distillation
    assert ', before training: task loss' in kd.summary()
    for n in 1,2:
        learn.fit(1, 1e-3)
        assert f", after {n} epoch{'s' if n > 1 else ''}: task loss" in kd.summary()
