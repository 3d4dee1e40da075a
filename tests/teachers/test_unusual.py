"Teachers that are not plain float32 modules, or not quite teachers: values by hand, short errors with a remedy"
import pytest
from fastai.vision.all import *
from sklearn.linear_model import LogisticRegression

from fastkd.losses.base import as_loss
from fastkd.losses.batch import DIST
from fastkd.losses.features import Attention
from fastkd.losses.soft_targets import Logits, SoftTarget
from fastkd.models.layers import unwrap
from fastkd.teachers.classes import class_columns
from fastkd.teachers.teacher import Teacher, Teachers
from fastkd.training.callback import KnowledgeDistillation
from helpers import *
from fastcore.test import test_close as close, test_eq as eq

pytestmark = pytest.mark.filterwarnings("ignore:The teacher's", 'ignore:.*torch.jit', 'ignore:.*quantiz')

@pytest.fixture(scope='module')
def dls(): return image_dls()
@pytest.fixture
def net(): return seeded(cnn, 8, 16, seed=3).eval()

class Seen(Callback):
    "Loss, predictions and inputs of each training batch"
    order,run_valid = KnowledgeDistillation.order+.1,False
    def before_fit(self): self.batches = []
    def after_loss(self): self.batches.append((self.learn.loss.item(), self.pred.detach().clone().as_subclass(Tensor), self.xb[0].clone().as_subclass(Tensor)))

def kl(z, zt, T=4.): return T**2*F.kl_div((z/T).log_softmax(1), (zt/T).softmax(1), reduction='batchmean')
def trained(dls, teacher, loss, n=1, **kwargs):
    learn = student(dls, cbs=[KnowledgeDistillation(teacher, loss, weight=1., **kwargs), Seen()])
    learn.fit(n, 1e-3)
    return learn
def same_losses(learn, f): np.testing.assert_allclose([o[0] for o in learn.seen.batches], [f(z, x).item() for _,z,x in learn.seen.batches], rtol=1e-5, atol=1e-6)

# scripted, traced and other compiled modules
@pytest.mark.parametrize('compiled', [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(2,3,16,16)), torch.fx.symbolic_trace], ids=['script','trace','fx'])
def test_scripted_and_traced_teachers(dls, net, compiled):
    t = compiled(net)
    assert unwrap(t) is t
    learn = trained(dls, t, SoftTarget())
    with torch.no_grad(): same_losses(learn, lambda z,x: kl(z, net(x)))
    assert 'Teacher: module' in learn.knowledge_distillation.summary()

# precision
@pytest.mark.parametrize('loss,f', [(SoftTarget(), kl), (Logits(), F.mse_loss)], ids=['soft target','logits'])
@pytest.mark.parametrize('many', [False,True], ids=['one','list'])
def test_teachers_in_double_precision(dls, net, loss, f, many):
    t = deepcopy(net).double()
    learn = trained(dls, [t,t] if many else t, loss)
    with torch.no_grad(): same_losses(learn, lambda z,x: f(z, net(x)))
    assert all(o[0] == o[0] for o in learn.seen.batches) and len(learn.recorder.losses) == len(learn.seen.batches)

def test_features_of_a_teacher_in_double_precision(dls, net):
    a,b = (trained(dls, t, [Attention(layers=[('0','0')], weight=10), DIST()]) for t in (net, deepcopy(net).double()))
    np.testing.assert_allclose([o[0] for o in a.seen.batches], [o[0] for o in b.seen.batches], rtol=1e-5, atol=1e-6)

class Inference(nn.Module):
    "Runs under `inference_mode`"
    def __init__(self, m):
        super().__init__()
        self.m = m
    def forward(self, x):
        with torch.inference_mode(): return self.m(x)

@pytest.mark.parametrize('loss,f', [(SoftTarget(), kl), (Logits(), F.mse_loss)], ids=['soft target','logits'])
def test_teachers_under_inference_mode(dls, net, loss, f):
    learn = trained(dls, Inference(net), loss)
    with torch.no_grad(): same_losses(learn, lambda z,x: f(z, net(x)))

def test_the_first_parameter_can_be_an_integer(dls, net):
    "As in quantised models, whose inputs stay floats"
    class Quantised(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.q = nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
            self.m = m
        def forward(self, x): return self.m(x)
    learn = trained(dls, Quantised(net), SoftTarget())
    with torch.no_grad(): same_losses(learn, lambda z,x: kl(z, net(x)))

def test_dynamically_quantised_teachers(dls):
    t = nn.Sequential(nn.Flatten(), nn.Linear(3*16*16, 3)).eval()
    q = torch.ao.quantization.quantize_dynamic(t, {nn.Linear})
    learn = trained(dls, q, SoftTarget())
    with torch.no_grad(): same_losses(learn, lambda z,x: kl(z, q(x)))

def test_a_teacher_that_refuses_to_be_moved_stays_where_it_is(dls, net):
    class Stays(nn.Module):
        def __init__(self, m):
            super().__init__()
            self.m = m
        def to(self, *args, **kwargs): raise ValueError('`.to` is not supported for 4-bit models')
        def forward(self, x): return self.m(x)
    learn = trained(dls, Stays(net), SoftTarget())
    with torch.no_grad(): same_losses(learn, lambda z,x: kl(z, net(x)))
    with pytest.raises(ValueError, match="cannot be moved to meta.*4-bit models.*load it on meta"): Teachers(Stays(net)).to(torch.device('meta'))

# class numbers where there are no names
def tensors(n_out=3, n=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, generator=g), torch.tensor(i % n_out)) for i in range(n)]

def plain_learner(teacher, n_out=3, loss_func=None, **kwargs):
    dl = torch.utils.data.DataLoader(tensors(n_out), batch_size=8)
    learn = Learner(DataLoaders(dl, dl), seeded(nn.Linear, 6, n_out, seed=1), loss_func=loss_func or CrossEntropyLossFlat(),
                    cbs=[KnowledgeDistillation(teacher, SoftTarget(), weight=1., **kwargs), Seen()])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def test_class_numbers_stand_for_names_without_a_vocabulary():
    t = seeded(nn.Linear, 6, 5, seed=2)
    learn = plain_learner(Teacher(t, class_map={0: 4, 1: 2, 2: 0}))
    learn.fit(1, 1e-3)
    with torch.no_grad(): same_losses(learn, lambda z,x: kl(z, t(x)[:,[4,2,0]]))

def test_some_of_the_class_numbers():
    t = seeded(nn.Linear, 6, 5, seed=2)
    learn = plain_learner(Teacher(t, class_map={2: 0, 0: 4}))
    learn.fit(1, 1e-3)
    with torch.no_grad(): same_losses(learn, lambda z,x: kl(z[:,[0,2]], t(x)[:,[4,0]]))

def test_names_for_classes_without_names_are_called_out():
    with pytest.raises(ValueError, match=r"has the class 'cat', but the student's data has no class names: give class numbers, as in \{0: 4"):
        class_columns(None, None, {'cat': 0})

# yes or no, in one logit or two
def test_a_student_with_one_logit_of_a_teacher_with_two():
    t = seeded(nn.Linear, 6, 2, seed=2)
    dl = DataLoader([(x, (y % 2).float()[None]) for x,y in tensors()], bs=8)
    learn = Learner(DataLoaders(dl, dl), seeded(nn.Linear, 6, 1, seed=1), loss_func=BCEWithLogitsLossFlat(), cbs=[KnowledgeDistillation(t, weight=1.), Seen()])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    learn.fit(1, 1e-3)
    def two_way(z, zt, T=2.):
        p,q = torch.sigmoid(zt/T),torch.sigmoid(z/T)
        return T**2*(p*(p/q).log() + (1-p)*((1-p)/(1-q)).log()).mean()
    with torch.no_grad(): same_losses(learn, lambda z,x: two_way(z[:,0], t(x)[:,1]-t(x)[:,0]))

@pytest.mark.parametrize('flat', [False,True], ids=['(B,1)','(B,)'])
def test_a_student_with_two_logits_of_a_teacher_with_one(flat):
    lin = seeded(nn.Linear, 6, 1, seed=2)
    t = nn.Sequential(lin, nn.Flatten(0)) if flat else lin
    learn = plain_learner(t, 2)
    learn.fit(1, 1e-3)
    with torch.no_grad(): same_losses(learn, lambda z,x: kl(z, torch.cat([torch.zeros(len(x),1), lin(x)], 1)))

# not quite a teacher
class Sized: "Something else"
@pytest.mark.parametrize('o,text', [
    (lambda: cnn(64, 128).state_dict(), 'a state dict has no model: make the model, call model.load_state_dict'),
    (lambda: {'epoch': 3, 'state_dict': cnn(8).state_dict()}, 'a checkpoint is no model.*load the state dict from the checkpoint'),
    (lambda: 'teacher.pkl', r'give a trained Learner or an nn.Module: load_learner\(path\) reads'), (lambda: Path('teacher.pth'), r'load_state_dict\(torch.load'),
    (lambda: cnn, 'a function is no model: call it if it makes one'), (lambda: LogisticRegression(), 'wrap its predictions in an nn.Module.*logarithm of predict_proba'),
    (lambda: nn.ModuleDict(dict(a=cnn(4))), 'nn.ModuleDict: give one of its modules'), (lambda: Sized(), 'give a trained Learner, an nn.Module, or a list')])
def test_errors_are_short_and_have_a_remedy(o, text):
    with pytest.raises(TypeError, match=text) as e: KnowledgeDistillation(o())
    assert len(str(e.value)) < 300

def test_a_module_list_is_an_ensemble(dls, net):
    nets = nn.ModuleList([net, seeded(cnn, 8, 16, seed=4)]).eval()
    learn = trained(dls, nets, Logits())
    with torch.no_grad(): same_losses(learn, lambda z,x: F.mse_loss(z, (nets[0](x)+nets[1](x))/2))

# losses that are modules
class Criterion(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = k
    def forward(self, pred, teacher_pred): return self.k*(pred-teacher_pred).abs().mean()

@pytest.mark.parametrize('loss,f,name', [(nn.MSELoss(), F.mse_loss, 'MSELoss'), (nn.SmoothL1Loss(), F.smooth_l1_loss, 'SmoothL1Loss'),
    (Criterion(2.), lambda a,b: 2*(a-b).abs().mean(), 'Criterion')], ids=['MSELoss','SmoothL1Loss','own'])
def test_modules_as_losses(dls, net, loss, f, name):
    learn = trained(dls, net, loss)
    with torch.no_grad(): same_losses(learn, lambda z,x: f(z, net(x)))
    eq(learn.knowledge_distillation.objective.names, [name])

def test_a_module_that_needs_more_than_two_tensors_is_an_error():
    with pytest.raises(TypeError, match="TripletMarginLoss needs the argument 'negative'"): as_loss(nn.TripletMarginLoss())
