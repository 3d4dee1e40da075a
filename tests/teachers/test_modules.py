"Teachers and students that are not plain float32 modules: scripted, float64, quantised, with buffers that move"

import pytest
from fastai.text.all import AWD_LSTM, get_text_classifier
from fastai.vision.all import *
from copy import deepcopy

from fastkd.all import *
from fastkd.models.layers import unwrap
from fastkd.models.reading import copy_model
from helpers import *

pytestmark = pytest.mark.filterwarnings('ignore')  # these teachers know nothing

def reg_dls(n_out=2):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=rng)
    ds = list(zip(x, x[:,:n_out]*2))
    return DataLoaders(DataLoader(ds[:48], bs=16), DataLoader(ds[48:], bs=16))

def reg_student(teacher, loss=None, **kw):
    learn = Learner(reg_dls(), seeded(nn.Linear, 4, 2), loss_func=MSELossFlat(), cbs=KnowledgeDistillation(teacher, loss, **kw))
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def first_terms(learn):
    "The value of the first term in the first batch of a fit of one epoch"
    seen = []
    class See(Callback):
        order,run_valid = 2,False
        def after_loss(self): seen.append(self.learn.loss.item())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit(1, 1e-2, cbs=See())
    return seen[0]

def dtypes(learn):
    "Those of the losses in a fit of one epoch"
    seen = set()
    class See(Callback):
        order,run_valid = 2,False
        def after_loss(self): seen.add(self.learn.loss.dtype)
    learn.fit(1, 1e-2, cbs=See())
    return seen

def expected_loss(teacher, f=F.mse_loss):
    "What the first batch's loss of a `reg_student` at weight=1 is, in plain PyTorch"
    x = torch.stack([o[0] for o in reg_dls().train.dataset[:16]])
    return f(seeded(nn.Linear, 4, 2)(x), teacher(x)).item()

plain = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), seed=3).eval()
x4 = torch.randn(3, 4)

def scripted(): return torch.jit.script(plain)
def traced(): return torch.jit.trace(plain, x4)
def fx_graph(): return torch.fx.symbolic_trace(deepcopy(plain))
def exported(): return torch.export.export(plain, (x4,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
def doubled(): return deepcopy(plain).double()

class Inference(nn.Module):
    "A model that predicts in inference mode"
    def __init__(self):
        super().__init__()
        self.net = deepcopy(plain)
    @torch.inference_mode()
    def forward(self, x): return self.net(x)

class WithGraph(Inference):
    "A model that switches gradients on"
    @torch.enable_grad()
    def forward(self, x): return self.net(x)

class Int8First(nn.Module):
    "Weights of int8 with a scale, and a layer in float32"
    def __init__(self):
        super().__init__()
        w = plain[0].weight.detach()
        self.scale = w.abs().max()/127
        self.q = nn.Parameter((w/self.scale).round().to(torch.int8), requires_grad=False)
        self.bias,self.last = nn.Parameter(plain[0].bias.detach().clone()),deepcopy(plain[2])
    def forward(self, x): return self.last(F.linear(x, self.q.float()*self.scale, self.bias).relu())

class Stays(Inference):
    "A quantised model as of bitsandbytes: it cannot be moved"
    def forward(self, x): return self.net(x)
    def to(self, *args, **kwargs): raise ValueError("`.to` is not supported for 8-bit models")

kinds = [scripted, traced, fx_graph, exported, doubled, Inference, WithGraph, Int8First, Stays]

@pytest.mark.parametrize('make', kinds, ids=lambda o: o.__name__)
def test_loss_is_that_of_plain_pytorch(make):
    teacher = make()
    expected = expected_loss(lambda x: teacher(x.double() if make is doubled else x).detach().clone().float())
    learn = reg_student(teacher, Logits(), weight=1)
    learn.knowledge_distillation.summary()
    assert first_terms(learn) == pytest.approx(expected, abs=1e-5)

@pytest.mark.parametrize('make', [doubled, Inference, WithGraph], ids=lambda o: o.__name__)
def test_a_list_of_teachers(make):
    def mean(x): return (make()(x.double() if make is doubled else x).detach().clone().float() + plain(x).detach())/2
    learn = reg_student([make(), deepcopy(plain)], Logits(), weight=1)
    assert first_terms(learn) == pytest.approx(expected_loss(mean), abs=1e-5)

@pytest.mark.parametrize('loss', [Logits, FitNet], ids=lambda o: o.__name__)
@pytest.mark.parametrize('make', [doubled, Inference, WithGraph], ids=lambda o: o.__name__)
def test_losses_have_the_precision_of_the_student(make, loss):
    learn = reg_student(plain)
    learn.remove_cb(KnowledgeDistillation)
    learn.model = nn.Sequential(learn.model)
    if loss is FitNet: loss = FitNet([('0', '0' if make is doubled else 'net.0')])
    learn.add_cb(KnowledgeDistillation(make(), loss))
    assert dtypes(learn) == {torch.float32}

def test_wrappers_are_still_found():
    m = nn.Linear(4, 2)
    assert unwrap(torch.compile(nn.DataParallel(m))) is m

def test_quantised_dynamically():
    q = torch.ao.quantization.quantize_dynamic(deepcopy(plain), {nn.Linear}, dtype=torch.qint8)
    learn = reg_student(q, Logits(), weight=1)
    assert first_terms(learn) == pytest.approx(expected_loss(q), abs=1e-5)

def test_a_model_on_another_device_that_cannot_be_moved():
    class Elsewhere(Stays):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 2, device='meta')
    with pytest.raises(ValueError, match='cannot be moved to cpu, where the student is, from meta'):
        reg_student(Elsewhere(), Logits()).fit(1)

# buffers
class Observed(nn.Module):
    "A model whose buffers move in eval mode: a range (which can be assigned anew), and a batch norm that always trains"
    def __init__(self):
        super().__init__()
        self.net,self.bn = deepcopy(plain),nn.BatchNorm1d(4)
        for k in 'low','seen','calls': self.register_buffer(k, torch.zeros(0 if k=='seen' else ()))
    def forward(self, x):
        self.low.copy_(torch.minimum(self.low, x.min()))
        self.seen.resize_(len(x)).copy_(x[:,0])
        self.calls = self.calls + 1
        b = self.bn
        x = F.batch_norm(x, b.running_mean, b.running_var, b.weight, b.bias, True, .1)
        return self.net(x)

def qat():
    "A model prepared for quantisation-aware training"
    m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).train()
    m.qconfig = torch.ao.quantization.get_default_qat_qconfig('fbgemm')
    return torch.ao.quantization.prepare_qat(m)

@pytest.mark.parametrize('make', [Observed, qat], ids=lambda o: o.__name__)
def test_buffers_of_a_teacher_never_move(make):
    teacher = make()
    before = state(teacher)
    learn = reg_student(teacher, Logits())
    learn.knowledge_distillation.summary()
    assert same_state(before, teacher.state_dict())
    learn.fit(2, 1e-2)
    assert same_state(before, teacher.state_dict())

@pytest.mark.parametrize('make', [Observed, qat], ids=lambda o: o.__name__)
@pytest.mark.parametrize('loss', [Logits, FitNet], ids=lambda o: o.__name__)
def test_buffers_of_a_student_move_only_in_training(make, loss):
    learn = reg_student(plain)
    learn.remove_cb(KnowledgeDistillation)
    learn.model = make()
    if loss is FitNet: loss = FitNet([('0' if make is qat else 'net.0', '0')])
    learn.add_cb(KnowledgeDistillation(plain, loss))
    before = state(learn.model)
    learn.knowledge_distillation.summary()
    assert same_state(before, learn.model.state_dict())

def test_only_the_buffers_that_move_are_kept():
    t,still = Teacher(Observed()),Teacher(cnn(4))
    t((x4,)), still((torch.randn(2,3,8,8),))
    assert {k for _,k in t.moving} == {'low','seen','calls','running_mean','running_var'} and still.moving == []

def test_a_prediction_that_is_a_buffer_is_not_put_back():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('z', torch.zeros(3, 4))
        def forward(self, x): return self.z.copy_(x)
    t = Teacher(Same())
    for _ in range(2): assert torch.equal(t((x4,)), x4) and not t.model.z.any()

# copies
def weight_normed():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
def spectral(): return nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
def parametrised():
    p = nn.utils.parametrizations
    return nn.Sequential(p.weight_norm(nn.Linear(4, 8)), nn.ReLU(), p.spectral_norm(nn.Linear(8, 2)))
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.b,self.out = nn.Linear(4, 4),nn.Linear(4, 4),nn.Linear(4, 2)
        self.b.weight = self.a.weight
    def forward(self, x):
        self.seen = [self.a(x)]  # a tensor with a graph in a list
        return self.out(self.b(self.seen[0]))

@pytest.mark.parametrize('make', [weight_normed, spectral, parametrised, Tied], ids=lambda o: o.__name__)
def test_mean_teacher_copies_any_model(make):
    learn = reg_student(plain)
    learn.remove_cb(KnowledgeDistillation)
    learn.model = seeded(make)
    learn.model(x4)
    first = {k: p.detach().clone() for k,p in learn.model.named_parameters()}
    ema,avg = MeanTeacher(decay=.5, loss=Logits()),[first]
    class See(Callback):
        order,run_valid = 70,False
        def after_step(self):
            d = min(.5, len(avg)/(9+len(avg)))
            avg.append({k: d*avg[-1][k] + (1-d)*p.detach() for k,p in self.model.named_parameters()})
    learn.fit(1, 1e-2, cbs=[ema, See()])
    got = dict(ema.ema_model.named_parameters())
    assert len(avg) == 4 and all(torch.allclose(got[k], v, atol=1e-5) for k,v in avg[-1].items())
    if make is Tied: assert ema.ema_model.a.weight is ema.ema_model.b.weight

def test_mean_teacher_of_awd_lstm():
    cfg = dict(emb_sz=8, n_hid=8, n_layers=2, pad_token=1, bidir=False, output_p=.1, hidden_p=.1, input_p=.1, embed_p=.1, weight_p=.2)
    model = get_text_classifier(AWD_LSTM, 20, 2, config=cfg, seq_len=10, lin_ftrs=[4])
    ds = [(torch.randint(2, 20, (6,)), torch.tensor(i%2)) for i in range(32)]
    learn = Learner(DataLoaders(DataLoader(ds, bs=8), DataLoader(ds, bs=8)), model, loss_func=CrossEntropyLossFlat(),
                    cbs=[ModelResetter(), RNNCallback()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)  # computes weights with a graph
        ema = MeanTeacher(decay=.5)
        learn.fit(1, 1e-2, cbs=ema)
    assert ema.n_updates == 4 and ema.history.soft_target.notna().all()

def test_copy_has_the_same_predictions_and_none_of_the_tensors():
    m = weight_normed()
    c = copy_model(m)
    assert torch.equal(c(x4), m(x4)) and not {id(p) for p in m.parameters()} & {id(p) for p in c.parameters()}

def test_failure_with_a_graph_shows_before_training():
    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return x.clone()
        @staticmethod
        def backward(ctx, g): raise RuntimeError('no gradient here')
    learn = reg_student(plain, lambda pred, teacher_pred: F.mse_loss(InPlace.apply(pred), teacher_pred))
    with pytest.raises(RuntimeError, match='no gradient here'): learn.knowledge_distillation.summary()
