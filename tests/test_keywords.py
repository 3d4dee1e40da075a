"Names of arguments that people know from elsewhere, layers that can mean two things, and what the objects say of themselves"
import inspect
from functools import partial

import pytest
from fastkd.all import *
from fastkd.losses.base import as_loss, DistillationLoss
from fastkd.losses.features import FeatureLoss
from helpers import *
from fastcore.test import test_eq as eq
import fastkd.all as api

m = nn.Linear(2, 2)
on_features = [o for o in map(api.__dict__.get, api.__all__) if isinstance(o, type) and issubclass(o, FeatureLoss)]

@pytest.mark.parametrize('f,right', [
    (lambda: SoftTarget(temperature=2), "'temperature' (temperature=2): this is called 'T' here: T=2"),
    (lambda: SoftTarget(tau=2), 'T=2'),
    (lambda: BinarySoftTarget(temp=3.), 'T=3.0'),
    (lambda: partial(SoftTarget, tau=2)(), 'T=2'),
    (lambda: SoftTarget(alpha=.3), 'weight=0.3'),
    (lambda: SoftTarget(standardise=True), 'standardize=True'),
    (lambda: FitNet(layer='1'), "layers='1'"),
    (lambda: RKD(pairs=[('1','2')]), "'layers'"),
    (lambda: DecoupledKD(betta=2), "did you mean 'beta'?"),
    (lambda: KnowledgeDistillation(m, alpha=.5), "KnowledgeDistillation has no argument 'alpha' (alpha=0.5): this is called 'weight' here"),
    (lambda: KnowledgeDistillation(m, T=4), 'loss=SoftTarget(T=4)'),
    (lambda: KnowledgeDistillation(m, temperature=4), 'loss=SoftTarget(T=4)'),
    (lambda: KnowledgeDistillation(m, layers=['1']), 'loss=FitNet(layers=…)'),
    (lambda: KnowledgeDistillation(m, loss_func=Logits()), "'loss'"),
    (lambda: KnowledgeDistillation(m, size=224), 'teacher=Teacher(…, size=224)'),
    (lambda: KnowledgeDistillation(teacher_model=m), "'teacher'"),
    (lambda: KnowledgeDistillation(m, wieght=.5), "did you mean 'weight'"),
    (lambda: Teacher(m, stats=([.5],[.2])), "'norm'"),
    (lambda: Teacher(m, classes=['a','b']), "'vocab'"),
    (lambda: body_head(nn.Sequential(m, m), name='1'), "head='1'"),
    (lambda: body_head(layer='1'), "head='1'"),
    (lambda: split_at('0')(nn.Sequential(m, m), layer='1'), 'no argument'),
    (lambda: split_at(layer='1'), "split_at('1')"),
    (lambda: TTAEvaluator(None, n=4), 'TTAEvaluator(…).preds(n)'),
    (lambda: TTAEvaluator(None, metrics=accuracy), 'curve(metrics=…)'),
    (lambda: TTAEvaluator(None, test_dl=1), "'dl'"),
    (lambda: test_time_aug(None, None, None, accuracy, n=4), 'n_augs=4'),
    (lambda: trial(None, None, epochs=3), 'n_epoch=3'),
    (lambda: trial(None, None, weight=.9), "methods={'name': dict(weight=0.9)}"),
    (lambda: compare({}, learners=1), "'models'"),
    (lambda: compare({}, baseline='a'), "reference='a'"),
    (lambda: MeanTeacher(momentum=.9), 'decay=0.9'),
    (lambda: born_again(None, epochs=3), 'n_epoch=3'),
    (lambda: distill_chain(None, [], lr=.1, n_epoch=1), 'lr_max=0.1')])
def test_a_name_from_elsewhere_is_answered_with_the_right_one(f, right):
    with pytest.raises(TypeError) as e: f()
    assert right in str(e.value), e.value

@pytest.mark.parametrize('o', [SoftTarget, FitNet, KnowledgeDistillation, Teacher, TTAEvaluator, trial, compare, MeanTeacher])
def test_signatures_stay_as_written(o):
    ps = inspect.signature(o).parameters
    assert ps and not any(p.kind is p.VAR_KEYWORD for p in ps.values())
    eq(list(ps), [n for n in inspect.signature(inspect.unwrap(o.__init__ if isinstance(o, type) else o)).parameters if n != 'self'])

def test_a_loss_of_ones_own_answers_too():
    class Mine(DistillationLoss):
        def __init__(self, T=2.): super().__init__(lambda pred, teacher_pred, T: pred.mean(), T=T)
    with pytest.raises(TypeError, match="Mine has no argument 'tau'.*T=3"): Mine(tau=3)
    eq(Mine(T=3).T, 3)

@pytest.mark.parametrize('cls', on_features, ids=lambda o: o.__name__)
def test_two_names_in_a_tuple_are_asked_back_and_both_answers_work(cls):
    with pytest.raises(ValueError) as e: cls(layers=('1','2'))
    assert "['1', '2']" in str(e.value) and "[('1', '2')]" in str(e.value)
    eq(cls(layers=['1','2']).layers, [('1','1'),('2','2')])
    eq(cls(layers=[('1','2')]).layers, [('1','2')])
    eq(cls(layers=(('1','2'),('3','3'))).layers, [('1','2'),('3','3')])
    eq(cls(layers=('1','2','3')).layers, [('1','1'),('2','2'),('3','3')])

@pytest.mark.parametrize('o,text', [
    (SoftTarget(), 'SoftTarget(T=4, standardize=False, weight=1)'),
    (SoftTarget(T=SchedCos(8, 2), calibrated=True), 'SoftTarget(T=SchedCos(8, 2), standardize=False, weight=1, calibrated=True)'),
    (FitNet(['0',('1','2')]), "FitNet(layers=['0', ('1', '2')], weight=100)"),
    (Attention(), 'Attention(p=2, weight=1000)'),
    (Logits(weight=combined_cos(.3,1,2,3)), 'Logits(weight=schedule from 1 to 3)'),
    (as_loss(F.mse_loss), 'FunctionLoss(mse_loss, weight=1)'),
    (Teacher(m), 'Teacher(module Linear)'),
    (Teacher(m, norm=([.5],[.25]), size=8, vocab=['a','b'], inputs=[0]),
     "Teacher(module Linear, norm=([0.5], [0.25]), size=(8, 8), vocab=['a', 'b'], inputs=[0])"),
    (KnowledgeDistillation(m), 'KnowledgeDistillation(Teacher(module Linear), loss=by the task, weight=0.5)'),
    (KnowledgeDistillation([m,m], [Logits(), FitNet('0')], SchedCos(1,0), hard_weight=1),
     "KnowledgeDistillation(Teacher(module Linear), Teacher(module Linear), loss=[Logits(weight=1), FitNet(layers=['0'], weight=100)], "
     "weight=SchedCos(1, 0), hard_weight=1)"),
    (KnowledgeDistillation(loss=TeacherFree()), None)])
def test_repr_says_what_an_object_holds_in_a_line(o, text):
    assert '\n' not in repr(o) and '0x' not in repr(o)
    if text: eq(repr(o), text)
