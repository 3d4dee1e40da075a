"What the errors and warnings of teachers and of their inputs advise works"
from copy import deepcopy

from fastai.tabular.all import *
from fastai.text.data import Numericalize
from fastai.vision.all import *
from fastkd.all import *
from remedies import *

dls = image_dls(n=48, bs=8, size=8)
teacher = trained_teacher(dls, 8, 8, epochs=12)
KD = KnowledgeDistillation

def quiet(learn, n):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, 1e-2)
    return learn

def fit(kd, dls=dls, m=None):
    "A student that has learned for an epoch"
    return quiet(Learner(dls, m or seeded(cnn, 4, 4), loss_func=CrossEntropyLossFlat(), cbs=kd), 1)

# Devices
def without_weights():
    with torch.device('meta'): return cnn(8, 8)

def loaded():
    m = without_weights().to_empty(device='cpu')
    m.load_state_dict(teacher.model.state_dict())
    return m

# Images
class Darker(Transform):
    "Half as bright"
    order = 20
    def encodes(self, x:TensorImage): return x/2

class Dark(nn.Module):
    "The same in a model"
    def forward(self, x): return x/2

dark = image_dls(n=48, bs=8, size=8, batch_tfms=Darker())
of_dark = trained_teacher(dark, 8, 8, epochs=12)
def around(learn): return Learner(dls, nn.Sequential(Dark(), learn.model))

# Tables
def table(colours='rgb', conts=('a','b')):
    rng = np.random.default_rng(0)
    df = pd.DataFrame({'colour': [colours[i%len(colours)] for i in range(64)], **{o: rng.normal(size=64) for o in conts}})
    df['label'] = np.where(df.colour == 'r', 'yes', np.where(df[conts[0]] > 0, 'no', 'maybe'))
    return TabularDataLoaders.from_df(df, procs=[Categorify, FillMissing, Normalize], cat_names=['colour'], cont_names=[*conts],
                                      y_names='label', y_block=CategoryBlock(), valid_idx=[*range(48,64)], bs=16,
                                      num_workers=0, device='cpu')
def tabular(dls, n=0): return quiet(seeded(tabular_learner, dls, layers=[8], loss_func=CrossEntropyLossFlat()), n)
def of_table(t, **kwargs):
    learn = tabular(table(**kwargs))
    learn.add_cb(KD(t))
    return quiet(learn, 1)

# Texts
words = [*'abcdef']
class AsDict(Transform):
    "Tokens as models of other libraries take them"
    def encodes(self, x): return {'ids': x.long()}

class OfTokens(nn.Module):
    "Looks up each token of a dict or a tensor"
    def __init__(self): super().__init__(); self.emb,self.lin = nn.Embedding(8, 8),nn.Linear(8, 3)
    def forward(self, x): return self.lin(self.emb(x['ids'] if isinstance(x, dict) else x).mean(1))

def texts(vocab, *tfms):
    "Texts of 5 words, the first of which tells the class"
    rng = np.random.default_rng(0)
    items = [[words[i%3], *rng.choice(words[3:], 4)] for i in range(48)]
    num = Numericalize(vocab=[*vocab])
    num.o2i = defaultdict(int, {o: i for i,o in enumerate(vocab)})
    ds = Datasets(range(48), [[lambda i: items[i], num, *tfms], [lambda i: i%3]], splits=[range(32),range(32,48)])
    return ds.dataloaders(bs=8, num_workers=0, device='cpu')

def of_texts(*tfms, vocab=words, t_vocab=words[::-1]):
    "A student with one vocabulary and a teacher with another"
    t = quiet(Learner(texts(t_vocab, *tfms), seeded(OfTokens), loss_func=CrossEntropyLossFlat()), 30)
    return fit(KD(t), texts(vocab, *tfms), seeded(OfTokens, seed=1))

cases = [
    ('teacher: its tokens have other numbers than the student\'s, and cannot be translated in a …',
     lambda: of_texts(AsDict()), 'give both the same vocabulary', lambda: [of_texts(AsDict(), t_vocab=words), of_texts()]),
    ('teacher: its … are …, the student\'s …',
     lambda: of_table(tabular(table('rgby'), 30)), "with the same categories of 'colour', in the same order",
     lambda: of_table(tabular(table('rgb'), 30))),
    ('teacher: its … are …, the student\'s …',
     lambda: of_table(tabular(table(conts=('b','a')), 30)), 'with the same continuous columns, in the same order',
     lambda: of_table(tabular(table(conts=('a','b')), 30))),
    ('… data goes through …, … does not, and this is not made up for',
     lambda: fit(KD(of_dark)), "give both the same transform, or put it into the teacher's model",
     lambda: [fit(KD(of_dark), dark), fit(KD(around(of_dark)))]),
    ('teacher=… cannot be moved to …, where the student is, from … (…)',
     lambda: fit(KD(without_weights())), 'load it on cpu', lambda: fit(KD(loaded()))),
    ('teacher_weights=…: give a list with one weight for each teacher',
     lambda: fit(KD([teacher, deepcopy(teacher.model)], teacher_weights=.5)), 'a list with one weight for each teacher',
     lambda: fit(KD([teacher, deepcopy(teacher.model)], teacher_weights=[.5,.5]))),
]

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
