"The default loss calibrates the teachers: the loss of every batch by hand, every kind of data, and where there is nothing to calibrate with"
import pytest
from fastai.tabular.all import *
from fastai.vision.all import *

from fastkd.losses.batch import DIST
from fastkd.losses.soft_targets import SoftTarget
from fastkd.teachers.calibrate import fit_temperature, softening
from fastkd.teachers.teacher import Teacher, Teachers
from fastkd.training.calibrate import fit_temperatures
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.objective import Objective
from fastkd.training.task import task_of
from helpers import *
from fastcore.test import test_close as close, test_eq as eq

pytestmark = pytest.mark.filterwarnings("ignore:The teacher's")

class Times(Module):
    "A model whose logits are `k` times as large"
    def __init__(self, m, k): store_attr()
    def forward(self, *x): return self.k*self.m(*x)

@pytest.fixture(scope='module')
def dls(): return image_dls(n=240)  # 80 of them for validation
@pytest.fixture(scope='module')
def teacher(dls):
    learn = trained_teacher(dls, 2, epochs=1)
    return Times(learn.model.eval(), 5.)  # overconfident

def valid_logits(dls, t):
    x,y = zip(*[(x.as_subclass(Tensor),y.as_subclass(Tensor)) for x,y in dls.valid])
    with torch.no_grad(): return t(torch.cat(x)),torch.cat(y)

def calibrated_temperature(learn, teachers, task):
    "The temperature of the default loss's teachers, and the number of labels that it comes from"
    objective = Objective()
    objective.bind(task)
    n = fit_temperatures(learn, objective, teachers)
    return teachers.temperature,n

class Losses(Callback):
    "The loss of every batch beside a formula of predictions and the teacher's"
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, t, f): self.t,self.f,self.seen = t,f,[]
    def after_loss(self):
        with torch.no_grad(): self.seen.append((self.learn.loss.item(), self.f(self.pred.as_subclass(Tensor), self.t(*self.xb).as_subclass(Tensor)).item()))

def kl(z, zt, T=4.): return T**2*F.kl_div((z/T).log_softmax(1), (zt/T).softmax(1), reduction='batchmean')

def test_the_default_divides_the_teachers_logits_by_the_temperature_that_fits_the_validation_labels(dls, teacher):
    tau = fit_temperature(*valid_logits(dls, teacher))
    assert tau > 1.5
    T = softening(valid_logits(dls, teacher)[0]/tau)
    learn = student(dls, cbs=[KnowledgeDistillation(teacher, weight=1.), Losses(teacher, lambda z,t: kl(z, t/tau, T))])
    learn.fit(2, 1e-3)
    seen = learn.losses.seen
    np.testing.assert_allclose(*zip(*seen), rtol=1e-4)
    close(learn.knowledge_distillation.teachers.temperature, tau, 1e-6)

def test_losses_that_you_give_are_as_published(dls, teacher):
    learn = student(dls, cbs=[KnowledgeDistillation(teacher, SoftTarget(), weight=1.), Losses(teacher, kl)])
    learn.fit(1, 1e-3)
    np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-4)
    assert learn.knowledge_distillation.teachers.temperature == 1 and 'Calibration' not in learn.knowledge_distillation.summary()

def test_only_the_loss_that_asks_for_it_gets_calibrated_logits(dls, teacher):
    tau = fit_temperature(*valid_logits(dls, teacher))
    dist = DIST()
    both = KnowledgeDistillation(teacher, [SoftTarget(calibrated=True), dist], weight=1.)
    learn = student(dls, cbs=[both, Losses(teacher, lambda z,t: kl(z, t/tau) + dist.weight*dist(z, t))])
    learn.fit(1, 1e-3)
    np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-4)

def test_ensembles_are_calibrated_together(dls, teacher):
    pair = [teacher, Times(teacher.m, 1.)]
    z,y = zip(*[valid_logits(dls, o) for o in pair])
    tau = fit_temperature(torch.stack([o.softmax(1) for o in z]).mean(0).log(), y[0])
    learn = student(dls, cbs=KnowledgeDistillation(pair))
    learn.knowledge_distillation.summary()
    close(learn.knowledge_distillation.teachers.temperature, tau, 1e-4)

def test_summary_says_what_is_done(dls, teacher):
    text = student(dls, cbs=KnowledgeDistillation(teacher)).knowledge_distillation.summary()
    tau = fit_temperature(*valid_logits(dls, teacher))
    assert f'Calibration: logits divided by {tau:.3g}, which fits 80 validation labels best; SoftTarget() leaves them as they are' in text
    assert "SoftTarget(T='auto', standardize=False, weight=1, calibrated=True)" in text
    assert f'Temperature: {softening(valid_logits(dls, teacher)[0]/tau):.3g}, ' in text

@pytest.mark.parametrize('k,n,text', [(1e-4, 240, 'Temperature: 1, the lowest'), (1e4, 240, 'Temperature: 4, the highest'), (1., 96, 'Temperature: 4, since there are fewer than 50')])
def test_summary_says_why_the_temperature_is_at_a_limit(teacher, k, n, text):
    kd = KnowledgeDistillation(Times(teacher, k), SoftTarget('auto'))
    student(image_dls(n=n), cbs=kd)
    assert text in kd.summary()

def test_classes_that_the_teacher_lacks_do_not_count(dls, teacher):
    two = Teacher(Times(seeded(cnn, 8, 16, n_out=2), 3.), vocab=['c','a'], class_map={'a':'a','c':'c'})
    learn = student(dls)
    teachers = Teachers(two)
    teachers.bind(dls)
    z,y = valid_logits(dls, two.model)
    keep = y != 1
    want = fit_temperature(z[keep][:,[1,0]], (y[keep] == 2).long())
    tau,n = calibrated_temperature(learn, teachers, task_of(learn.loss_func))
    close(tau, want, 1e-4)
    eq(n, int(keep.sum()))

def test_without_labels_or_validation_data_nothing_is_calibrated(dls, teacher):
    task = task_of(CrossEntropyLossFlat())
    few = image_dls(n=60)  # 20 validation labels
    for d in few,:
        learn = student(d)
        eq(calibrated_temperature(learn, Teachers(teacher), task)[0], 1.)
    learn = student(dls)
    learn.dls = DataLoaders(dls.train)
    eq(calibrated_temperature(learn, Teachers(teacher), task), (1.,0))

def test_masks_and_their_ignored_positions():
    "Pixels are items; those with the ignored label don't count"
    torch.manual_seed(0)
    x,y = torch.randn(12, 3, 8, 8),torch.randint(0, 4, (12,8,8))
    y[:,:2] = 255
    dl = DataLoader(list(zip(x, y)), bs=4)
    net = seeded(nn.Conv2d, 3, 4, 1)
    learn = Learner(DataLoaders(dl, dl), seeded(nn.Conv2d, 3, 4, 1, seed=1), loss_func=CrossEntropyLossFlat(axis=1, ignore_index=255))
    tau,n = calibrated_temperature(learn, Teachers(net), task_of(learn.loss_func))
    with torch.no_grad(): z = net(x).movedim(1, -1)[y != 255]
    eq(n, 12*6*8)
    close(tau, fit_temperature(z, y[y != 255]), 1e-4)

def test_tables_have_a_column_of_labels():
    df = pd.DataFrame(dict(a=np.linspace(-1, 1, 200), y=['no','yes']*100))
    dls = TabularDataLoaders.from_df(df, cont_names=['a'], y_names='y', y_block=CategoryBlock(), procs=[Normalize], bs=20, seed=0, valid_idx=range(100,200))
    def learner(): return tabular_learner(dls, layers=[4])
    learn = learner()
    eq(calibrated_temperature(learn, Teachers(learner().model), task_of(learn.loss_func))[1], 100)

def test_no_random_number_is_used_up_and_nothing_is_trained(dls, teacher):
    learn = student(dls, cbs=KnowledgeDistillation(teacher))
    before,t_before = state(learn.model),state(teacher)
    set_seed(3)
    rng = torch.get_rng_state(),random.getstate(),np.random.get_state()[1].copy(),learn.dls.train.rng.getstate()
    learn.knowledge_distillation.summary()
    assert torch.equal(torch.get_rng_state(), rng[0]) and random.getstate() == rng[1] and (np.random.get_state()[1] == rng[2]).all()
    assert learn.dls.train.rng.getstate() == rng[3] and same_state(before, state(learn.model)) and same_state(t_before, state(teacher))

def test_other_tasks_have_no_temperature(dls, teacher):
    learn = student(dls)
    for f in MSELossFlat(),BCEWithLogitsLossFlat(): eq(calibrated_temperature(learn, Teachers(teacher), task_of(f)), (1.,0))

# T='auto'
def entropy(z): return -(z.softmax(1)*z.log_softmax(1)).sum(1).mean().item()

@pytest.mark.parametrize('scale,T', [(30., 4.), (.05, 1.), (1., None)])
def test_the_temperature_makes_the_teacher_half_as_uncertain_as_guessing(scale, T):
    z = scale*torch.randn(400, 5, generator=torch.Generator().manual_seed(0))*3
    got = softening(z)
    if T is None: assert 1 < got < 4 and abs(entropy(z/got) - math.log(5)/2) < 1e-3
    else: eq(got, T)

@pytest.mark.parametrize('z', [torch.zeros(0,3), torch.zeros(4,1), torch.full((4,3), float('nan'))])
def test_nothing_to_measure(z): eq(softening(z), 4.)

def test_with_fewer_than_50_labels_it_stays_4(teacher):
    few = image_dls(n=96)  # 32 for validation
    learn = student(few, cbs=[KnowledgeDistillation(teacher, weight=1.), Losses(teacher, kl)])
    learn.fit(1, 1e-3)
    np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-4)

def test_auto_without_calibration(dls, teacher):
    T = softening(valid_logits(dls, teacher)[0])
    learn = student(dls, cbs=[KnowledgeDistillation(teacher, SoftTarget('auto'), weight=1.), Losses(teacher, lambda z,t: kl(z, t, T))])
    learn.fit(1, 1e-3)
    np.testing.assert_allclose(*zip(*learn.losses.seen), rtol=1e-4)

def test_another_learner_has_another_temperature(dls, teacher):
    "The callback moves: nothing of the first fit is left"
    kd = KnowledgeDistillation(teacher)
    learn = student(dls, cbs=kd)
    kd.summary()
    first = kd.terms[0].T.value
    few = student(image_dls(n=96), cbs=kd)
    kd.summary()
    assert first < 4 and kd.terms[0].T.value == 4

def test_a_number_is_still_a_number():
    eq(SoftTarget(2).T, 2)
    eq(repr(SoftTarget('auto')), "SoftTarget(T='auto', standardize=False, weight=1)")
    with pytest.raises(TypeError, match='give a number'): SoftTarget('automatic')
