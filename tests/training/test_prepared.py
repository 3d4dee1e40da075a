"What is tried before training has been through the learner's own `before_batch`"
import pytest
from fastai.vision.all import *

from fastkd.all import *
from helpers import *

pytestmark = pytest.mark.filterwarnings('ignore')

def flat_dls():
    ds = [(torch.randn(8,8, generator=torch.Generator().manual_seed(i)), torch.tensor(i%3)) for i in range(64)]
    return DataLoaders(DataLoader(ds[:48], bs=16), DataLoader(ds[48:], bs=16))

class AddChannel(Callback):
    calls = 0
    def before_batch(self):
        self.calls += 1
        self.learn.xb = (self.x[:,None],)

class AsDict(Callback):
    "Makes a dict of the input, as for transformers"
    def before_batch(self): self.learn.xb = ({'x': self.x[:,None]},)

class Unpacks(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = cnn(4, n_in=1)
    def forward(self, d): return self.net(d['x'])

def learner(cb, net, teacher):
    learn = Learner(flat_dls(), net, loss_func=CrossEntropyLossFlat(), cbs=[cb, KnowledgeDistillation(teacher, Logits(), weight=.5)])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def test_terms_of_summary_are_those_of_the_prepared_input():
    net,teacher = seeded(cnn, 4, n_in=1),seeded(cnn, 4, n_in=1, seed=1)
    learn = learner(AddChannel(), net, teacher)
    x = torch.stack([o[0] for o in learn.dls.valid.dataset])[:,None]
    with torch.no_grad(): expected = F.mse_loss(net.eval()(x), teacher.eval()(x)).item()
    net.train()
    text = learn.knowledge_distillation.summary()
    assert float(text.split('logits: ')[1].split()[0]) == pytest.approx(expected, rel=1e-3)
    assert learn.add_channel.calls == 0 and not hasattr(learn, 'xb')
    learn.fit(1, 1e-2)

def test_inputs_made_into_a_dict():
    learn = learner(AsDict(), Unpacks(), Unpacks())
    learn.knowledge_distillation.summary()
    learn.fit(1, 1e-2)
    assert learn.knowledge_distillation.history.logits.notna().all()
