"Promise 7: mistakes are errors that name the argument, the value and the remedy, and change nothing"
from copy import deepcopy

import pytest
from fastai.distributed import ParallelTrainer
from fastai.vision.all import *

from fastkd.all import *
from helpers import *

dls = image_dls()
teacher = trained_teacher(dls)

def unchanged(f, err, text, learn):
    "`f()` raises `err` with `text`, and `learn` and the teacher are as before"
    def facts(): return [list(learn.cbs), learn.loss_func, [m.name for m in learn.metrics], n_hooks(learn.model), n_hooks(teacher.model), [m.training for m in teacher.model.modules()]]
    a,s,t = facts(),state(learn.model),state(teacher.model)
    with pytest.raises(err, match=text): f()
    assert facts() == a and same_state(s, learn.model.state_dict()) and same_state(t, teacher.model.state_dict())

@pytest.mark.parametrize('args,err,text', [
    (dict(teacher=[]), ValueError, 'is empty: give a trained Learner'),
    (dict(teacher=nn.Linear), TypeError, 'teacher=Linear is a class: give an object'),
    (dict(teacher='resnet34'), TypeError, "teacher='resnet34' is a str: give a trained Learner"),
    (dict(weight=1.5), ValueError, 'weight=1.5: it must be finite and at least 0 and at most 1'),
    (dict(weight=-.1), ValueError, 'weight=-0.1'),
    (dict(weight=float('nan')), ValueError, 'weight=nan'),
    (dict(weight='0.5'), TypeError, "weight='0.5': give a number"),
    (dict(weight=SchedLin(0,2)), ValueError, 'weight=2 at training progress 1.0'),
    (dict(hard_weight=-1), ValueError, 'hard_weight=-1'),
    (dict(loss='kl'), TypeError, "loss='kl': give a loss such as SoftTarget"),
    (dict(loss=[]), ValueError, r'loss=\[\]: give at least one loss'),
    (dict(loss=SoftTarget, temperature=3), TypeError, 'temperature'),
    (dict(teacher_weights=[1,2]), ValueError, '2 for 1 teacher'),
])
def test_constructor(args, err, text):
    with pytest.raises(err, match=text): KnowledgeDistillation(**{'teacher':teacher, **args})

def mismatched(n): return seeded(cnn, 4, n_out=n)

@pytest.mark.parametrize('kd,text', [
    (lambda l: KnowledgeDistillation(l), "is the student's own model: give another model"),
    (lambda l: KnowledgeDistillation(l.model), "is the student's own model"),
    (lambda l: KnowledgeDistillation(nn.Sequential(*l.model)), 'shares 10 parameters with the student'),
    (lambda l: KnowledgeDistillation(teacher, FitNet(['layer1'])), "'layer1'"),
    (lambda l: KnowledgeDistillation(teacher, FitNet([('1','11')])), "(?s)teacher.*'11'"),
    (lambda l: KnowledgeDistillation([teacher, mismatched(3)], [SoftTarget(), Attention()]), 'attention, which compares layers, but there are 2 teachers'),
    (lambda l: KnowledgeDistillation(Teacher(mismatched(2), vocab=['a','b'])), "lacks the student's class 'c'"),
    (lambda l: KnowledgeDistillation(Teacher(mismatched(3), vocab=['x','y','z'])), "none of the student's classes"),
    (lambda l: KnowledgeDistillation([Teacher(teacher, class_map={'a':'a','b':'b'}), mismatched(3)]), 'must leave out the same student classes'),
])
def test_when_it_is_added(kd, text):
    learn = student(dls)
    unchanged(lambda: learn.add_cb(kd(learn)), ValueError, text, learn)
    unchanged(lambda: learn.fit(1, cbs=kd(learn)), ValueError, text, learn)

def test_close_matches_of_a_layer_name():
    learn = student(dls)
    learn.model.add_module('classifier', nn.Identity())
    with pytest.raises(ValueError, match="classifier"): learn.add_cb(KnowledgeDistillation(teacher, FitNet([('clasifier','1')])))

def test_twice_in_one_learner():
    kd = KnowledgeDistillation(teacher)
    learn = student(dls, cbs=kd)
    unchanged(lambda: learn.add_cb(kd), ValueError, 'in this learner already', learn)
    unchanged(lambda: learn.add_cb(KnowledgeDistillation(teacher)), ValueError, 'has a KnowledgeDistillation already', learn)
    unchanged(lambda: learn.fit(1, cbs=KnowledgeDistillation(teacher)), ValueError, 'has a KnowledgeDistillation already', learn)
    other = student(dls)
    other.add_cb(kd)  # it moves
    unchanged(lambda: learn.fit(1), ValueError, 'has moved to another learner', learn)

@pytest.mark.parametrize('t,text', [
    (lambda: mismatched(5), 'predicts 5 classes and the student 3: say which are which with Teacher'),
    (lambda: nn.Sequential(deepcopy(teacher.model), nn.Softmax(1)), 'predicts probabilities'),
    (lambda: nn.Sequential(cnn(4)[:-4]), r'predicts \(16, 4, 8, 8\) and the student \(16, 3\)'),
    (lambda: Teacher(mismatched(2), vocab=['c','b','a']), 'has class number 2, but it predicts 2 classes'),
])
def test_before_the_first_step(t, text):
    learn = student(dls, cbs=KnowledgeDistillation(t()))
    learn.create_opt()
    w = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match=text): learn.fit(1)
    assert all(map(torch.equal, w, learn.model.parameters())) and n_hooks(learn.model) == 0

def test_nan_from_the_teacher_at_first():
    t = deepcopy(teacher.model)
    t[-1].bias.data[0] = float('nan')
    learn = student(dls, cbs=KnowledgeDistillation(t))
    w = state(learn.model)
    with warnings.catch_warnings(), pytest.raises(ValueError, match='16 of 48 of its predictions are nan or inf'):
        warnings.simplefilter('ignore')
        learn.fit(1)
    assert all(torch.equal(w[n], p) for n,p in learn.model.named_parameters())

def test_nan_from_the_teacher_later_is_caught_before_the_step():
    t = deepcopy(teacher.model)
    class Break(Callback):
        def before_batch(self):
            if self.train_iter == 2: t[-1].bias.data[0] = float('nan')
    learn = student(dls, cbs=[KnowledgeDistillation(t), Break()])
    with pytest.raises(ValueError, match='predictions for batch 2 are nan or inf'): learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters())

def test_feature_loss_with_data_parallel():
    learn = student(dls)
    unchanged(lambda: learn.add_cb(KnowledgeDistillation(nn.DataParallel(deepcopy(teacher.model)), Attention())), ValueError, 'attention, which compares layers, but the model is in DataParallel', learn)
    learn = student(dls, cbs=KnowledgeDistillation(teacher, Attention()))
    learn.add_cb(ParallelTrainer(None))
    with pytest.raises(ValueError, match='in DataParallel, whose threads'): learn.fit(1)
    assert n_hooks(learn.model) == 0
    learn = Learner(dls, nn.DataParallel(cnn(4)))
    unchanged(lambda: learn.add_cb(KnowledgeDistillation(teacher, Attention())), ValueError, 'in DataParallel', learn)

def test_features_without_positions():
    learn = student(dls, cbs=KnowledgeDistillation(teacher, Attention(['3'])))
    with pytest.raises(ValueError, match="attention cannot compare the student's '3' with the teacher's '3': attention needs features with positions"): learn.fit(1)

def test_task_that_cannot_be_told():
    def my_loss(pred, targ): return F.cross_entropy(pred, targ)
    learn = student(dls, loss_func=my_loss)
    unchanged(lambda: learn.add_cb(KnowledgeDistillation(teacher)), ValueError, r'loss function my_loss: pass loss=SoftTarget\(\)', learn)
    learn.add_cb(KnowledgeDistillation(teacher, SoftTarget()))
    learn.fit(1)

def test_loss_on_probabilities():
    learn = student(dls, loss_func=BCELossFlat())
    unchanged(lambda: learn.add_cb(KnowledgeDistillation(teacher)), ValueError, 'takes probabilities, but distillation needs logits', learn)

# warnings: training can go on
def test_teacher_no_better_than_chance_warns_once():
    learn = student(dls, cbs=KnowledgeDistillation(Teacher(teacher.model, vocab=['b','c','a'])))
    with pytest.warns(UserWarning, match='no better than always giving the same answer') as seen: learn.fit(1); learn.fit(1)
    assert sum('no better' in str(w.message) for w in seen) == 1
    assert 'Warning: The teacher' in learn.knowledge_distillation.summary()

def test_wrong_normalisation_warns():
    "By a deviation so large that all images look alike to the teacher"
    learn = student(image_dls(batch_tfms=Normalize.from_stats([.5]*3,[1e6]*3)), cbs=KnowledgeDistillation(teacher.model))
    with pytest.warns(UserWarning, match='wrong normalisation'): learn.fit(1)

def test_good_teacher_does_not_warn():
    learn = student(dls, cbs=KnowledgeDistillation(teacher))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        learn.fit(1)

def test_teacher_worse_than_the_student_is_said_in_the_summary():
    class Half(nn.Module):  # never says the third class
        def __init__(self): super().__init__(); self.m = deepcopy(teacher.model)
        def forward(self, x): return self.m(x) - torch.tensor([0,0,99.])
    learn = student(image_dls(n=192, bs=64), cbs=KnowledgeDistillation(Half()))
    learn.model = deepcopy(nn.Sequential(teacher.model))
    assert "worse than the student's 1.000" in learn.knowledge_distillation.summary()

def test_summary_without_a_learner():
    with pytest.raises(ValueError, match='in no learner'): KnowledgeDistillation(teacher).summary()
