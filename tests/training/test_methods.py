"Every loss at work: inside the callback, under autocast, between families of networks, with MixUp and CutMix"
import copy, warnings

import pytest, timm
from fastai.vision.all import *
from fastai.data.load import SkipItemException
from fastkd.all import *
from fastkd.losses.base import DistillationLoss
from fastkd.losses.features import FeatureLoss
from fastkd.training.features import item_numbers
from helpers import *
from fastcore.test import test_eq as eq

import fastkd.all as fastkd_all
classes = [o for o in (getattr(fastkd_all, n) for n in fastkd_all.__all__) if isinstance(o, type) and issubclass(o, DistillationLoss)]
on_features = [o for o in classes if issubclass(o, FeatureLoss)]
on_classes = [o for o in classes if o not in on_features and o is not TeacherBounded]

def vit(dim, depth=3, seed=0):
    set_seed(seed)
    return timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=dim, depth=depth, num_heads=2, num_classes=3)
def conv(*cs, seed=0): return seeded(cnn, *cs, seed=seed)
students = dict(cnn=lambda: conv(6,8,12, seed=1), vit=lambda: vit(12, seed=1))

@pytest.fixture(scope='module')
def dls(): return image_dls(n=60, bs=8)  # 5 batches an epoch

@pytest.fixture(scope='module')
def teachers(dls):
    def taught(net, lr):
        learn = Learner(dls, net)
        with learn.no_bar(), learn.no_logging(): learn.fit(6, lr)
        return learn
    return dict(cnn=taught(conv(8,16,24), 1e-2), vit=taught(vit(24), 3e-3))

class Start(Callback):
    "What is trained beside the student, before the first step"
    order,run_valid = 50,False
    def __init__(self): self.params = None
    def after_loss(self):
        opt = self.knowledge_distillation.adapter_opt
        if self.params is None: self.params = [p.detach().clone() for p in opt.params] if opt else []

def learnt(cls, teacher, model, dls, mode, lr=5e-3):
    "50 steps on the term alone, its weight 1: its mean by epoch, the callback, and what was trained beside the student at the start"
    kd,start = KnowledgeDistillation(teacher if cls.needs_teacher else None, cls(weight=1.), weight=1.),Start()
    learn = Learner(fixed(dls, 8), model, cbs=[kd, start, CPUMixedPrecision(mode)])
    with learn.no_bar(), learn.no_logging(): learn.fit(10, lr)
    h = kd.history[kd.objective.names[0]]
    assert np.isfinite(h).all() and len(h)*len(learn.dls.train) == 50
    return h,kd,start.params

def check_falls(h, cls):
    "A clear fall; what may be negative is compared by difference"
    assert h.iloc[-2:].mean() < h.iloc[0] - .03*abs(h.iloc[0]), f"{cls.__name__}: {h.tolist()}"

@pytest.mark.parametrize('mode', ['bf16','fp16'])
@pytest.mark.parametrize('cls', on_classes, ids=lambda o: o.__name__)
def test_prediction_term_falls_over_50_steps_under_autocast(cls, mode, dls, teachers):
    check_falls(learnt(cls, teachers['cnn'], students['cnn'](), dls, mode)[0], cls)

@pytest.mark.parametrize('pair', ['cnn-cnn','cnn-vit','vit-cnn'])
@pytest.mark.parametrize('cls', on_features, ids=lambda o: o.__name__)
def test_feature_term_falls_over_50_steps_under_autocast_and_adapters_move(cls, pair, dls, teachers):
    t,s = pair.split('-')
    h,kd,start = learnt(cls, teachers[t], students[s](), dls, 'bf16')
    check_falls(h, cls)
    after = kd.adapter_opt.params if kd.adapter_opt else []
    assert len(start) == len(after) == sum(p.requires_grad for p in kd.features.modules.parameters())
    assert all((a-b).abs().max() > 0 for a,b in zip(start, after))

# Two labels
with_labels = [o for o in on_classes if 'y' in o().needs]

class Terms(Callback):
    "The term of each batch beside the two-label formula, item by item"
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, loss): self.loss,self.seen = loss,[]
    def after_loss(self):
        kd,mix = self.knowledge_distillation,next(c for c in self.learn.cbs if isinstance(c, MixHandler))
        zt = kd.teacher_preds[0] if kd.teacher_preds else None
        z,y,y1,lam = tensor(self.pred),tensor(self.yb[0]),tensor(mix.yb1[0]),mix.lam.expand(len(self.pred))
        def one(i, y): return self.loss(z[i:i+1], None if zt is None else zt[i:i+1], y=y[i:i+1])
        with torch.no_grad(): hand = sum(lam[i]*one(i,y) + (1-lam[i])*one(i,y1) for i in range(len(z)))/len(z)
        self.seen.append((self.learn.loss.item(), hand.item()))
        self.mixed = (y!=y1).any() and (lam<1).any()

@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('cls', with_labels, ids=lambda o: o.__name__)
def test_two_labels_are_weighted_by_lam_item_by_item(cls, mix, dls, teachers):
    loss = cls(weight=1.)
    terms = Terms(loss)
    learn = Learner(dls, students['cnn'](), cbs=[KnowledgeDistillation(teachers['cnn'] if cls.needs_teacher else None, loss, weight=1.), mix(), terms])
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert terms.mixed and len(terms.seen) == 10
    np.testing.assert_allclose(*zip(*terms.seen), rtol=1e-4)

@pytest.mark.parametrize('ignore_index', [-100, 7])
def test_each_of_two_labels_counts_by_itself(ignore_index, dls, teachers):
    "Half of the first labels are missing, and other halves of the second"
    seen = []
    class Half(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.learn.yb = (torch.where(torch.arange(8)%2==0, tensor(self.y), ignore_index),)
    class Look(Callback):
        order,run_valid = KnowledgeDistillation.order+.1,False
        def after_loss(self):
            z,zt,mix = tensor(self.pred).detach(),self.knowledge_distillation.teacher_preds[0],self.mix_up
            total = n = 0
            for i in range(8):
                for y,w in (tensor(self.yb[0])[i:i+1],mix.lam[i]),(tensor(mix.yb1[0])[i:i+1],1-mix.lam[i]):
                    if 0 <= y < 3: total,n = total + w*decoupled_kd(z[i:i+1], zt[i:i+1], y),n+w
            seen.append((self.learn.loss.item(), (total/n).item()))
    kd = KnowledgeDistillation(teachers['cnn'], DecoupledKD(), weight=1.)
    learn = Learner(dls, students['cnn'](), loss_func=CrossEntropyLossFlat(ignore_index=ignore_index), cbs=[kd, MixUp(), Half(), Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(seen) == 5
    np.testing.assert_allclose(*zip(*seen), rtol=1e-4)

def test_which_losses_use_labels(): eq({o.__name__ for o in with_labels}, {'DecoupledKD','NormalizedKD','WeightedSoftLabel','TeacherFree'})

# Labels for some items
@pytest.mark.parametrize('cls', with_labels, ids=lambda o: o.__name__)
@pytest.mark.parametrize('ignore_index', [-100, -1, 7])
def test_items_without_label_do_not_count(cls, ignore_index, dls, teachers):
    "-1 is no label; neither is what the loss function ignores"
    loss,seen = cls(weight=1.),[]
    class Half(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.learn.yb = (torch.where(torch.arange(8)<4, tensor(self.y), -1 if self.iter%2 else ignore_index),)
    class Look(Callback):
        order,run_valid = KnowledgeDistillation.order+.1,False
        def after_loss(self):
            zt = self.knowledge_distillation.teacher_preds
            with torch.no_grad(): seen.append((self.learn.loss.item(), loss(tensor(self.pred)[:4], zt[0][:4] if zt else None, y=tensor(self.yb[0])[:4]).item()))
    kd = KnowledgeDistillation(teachers['cnn'] if cls.needs_teacher else None, loss, weight=1.)
    learn = Learner(dls, students['cnn'](), loss_func=CrossEntropyLossFlat(ignore_index=ignore_index), cbs=[kd, Half(), Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(seen) == 5
    np.testing.assert_allclose(*zip(*seen), rtol=1e-5)

def test_labels_of_classes_that_are_left_out_do_not_count(dls, teachers):
    "The teacher knows two of three classes: labels are numbered anew among those, and items of the third are left out of the term"
    big = teachers['cnn'].model
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.net = big
        def forward(self, x): return torch.cat([self.net(x)[:,[2,0]], self.net(x)[:,1:2]*0-3], 1)
    seen,loss = [],DecoupledKD(weight=1.)
    dls4 = image_dls(('a','b','c','d'), n=64, bs=16)
    class Look(Callback):
        order,run_valid = KnowledgeDistillation.order+.1,False
        def after_loss(self):
            y,zt = tensor(self.yb[0]),self.knowledge_distillation.teacher_preds[0]
            keep = y != 1  # 'b' is left out; a, c, d are columns 0, 2, 3
            new = torch.tensor([0,-9,1,2])[y[keep]]
            with torch.no_grad(): seen.append((self.learn.loss.item(), decoupled_kd(tensor(self.pred)[keep][:,[0,2,3]], zt[keep], new).item()))
    t = Teacher(Two(), vocab=['c','a','x'], class_map={'a':'a','c':'c','d':'x'})
    learn = student(dls4, n_out=4, cbs=[KnowledgeDistillation(t, loss, weight=1.), Look()])
    learn.fit(1)
    assert len(seen) >= 2
    np.testing.assert_allclose(*zip(*seen), rtol=1e-5)

def test_own_function_gets_labels_below_0_and_the_mask(dls, teachers):
    seen = []
    def own(pred, teacher_pred, y, mask):
        seen.append((y.tolist(), mask.tolist()))
        return (pred-teacher_pred).pow(2).mean()
    class Some(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.learn.yb = (torch.where(torch.arange(8)<2, -1, torch.where(torch.arange(8)<4, 7, tensor(self.y))),)
    learn = Learner(dls, students['cnn'](), loss_func=CrossEntropyLossFlat(ignore_index=7), cbs=[KnowledgeDistillation(teachers['cnn'], own, weight=1.), Some()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    y,mask = seen[-1]
    eq(mask, [True]*2 + [False]*2 + [True]*4)  # without a label an item counts for distillation
    assert y[:4] == [-1]*4 and min(y[4:]) >= 0

# Mistakes
def small(dls, teachers, loss, **kwargs): return student(dls, cbs=KnowledgeDistillation(teachers['cnn'], loss, weight=1.), **kwargs)

def test_labels_are_missing(dls, teachers):
    class NoLabels(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.learn.yb = ()
    learn = small(dls, teachers, DecoupledKD())
    before = state(learn.model)
    with pytest.raises(ValueError, match='loss=decoupled_kd needs labels, but batch 0 has none'): learn.fit(1, cbs=NoLabels())
    assert same_state(before, state(learn.model))

def test_several_labels_and_one_class_index(dls, teachers):
    with pytest.raises(ValueError, match='decoupled_kd needs one class index per item, but the student.s loss function BCEWithLogitsLoss'): small(dls, teachers, DecoupledKD(), loss_func=BCEWithLogitsLossFlat())
def test_softmax_over_several_labels_is_called_out(dls, teachers):
    with pytest.warns(UserWarning, match='soft_target takes a softmax over classes that BCEWithLogitsLoss treats as independent'): small(dls, teachers, SoftTarget(), loss_func=BCEWithLogitsLossFlat())

@pytest.mark.parametrize('cls', [o for o in classes if o.min_items>1], ids=lambda o: o.__name__)
def test_a_last_batch_of_one_is_an_error_before_the_first_step(cls, teachers):
    odd = image_dls(n=60, bs=13)  # 40 to train: three batches and one item
    odd = DataLoaders(odd.train.new(drop_last=False), odd.valid)
    learn = small(odd, teachers, cls())
    before = state(learn.model)
    with pytest.raises(ValueError, match='compares the items of a batch, at least 2, but the last batch of an epoch of 40 items is 1: choose another batch size, or drop_last=True'): learn.fit(1)
    assert same_state(before, state(learn.model))

def test_odd_last_batches_that_are_no_mistake(teachers):
    "Left out by drop_last; or of a loss that takes each item by itself"
    odd = image_dls(n=60, bs=13)
    small(odd, teachers, RKD()).fit(1)
    learn = small(DataLoaders(odd.train.new(drop_last=False), odd.valid), teachers, SoftTarget())
    learn.fit(1)
    assert len(learn.dls.train) == 4 and np.isfinite(learn.knowledge_distillation.history.soft_target[0])

def test_batches_of_one(teachers):
    one = image_dls(n=24, bs=1)
    with pytest.raises(ValueError, match='at least 2, but the batch size is 1'): small(one, teachers, RKD()).fit(1)

@pytest.mark.parametrize('cls', [DecoupledKD, NormalizedKD, DIST, partial(SoftTarget, standardize=True)])
def test_two_classes_where_a_loss_degenerates(cls):
    two = image_dls(('a','b'), n=48, bs=8)
    learn = student(two, n_out=2, cbs=KnowledgeDistillation(seeded(cnn, 8, n_out=2), cls()))
    before = state(learn.model)
    with warnings.catch_warnings(), pytest.raises(ValueError, match='2 classes|over 2 the correlation is 1 or -1'):
        warnings.simplefilter('ignore')
        learn.fit(1)
    assert same_state(before, state(learn.model))

@pytest.mark.parametrize('cls', [Attention, NST, FSP, FactorTransfer, ChannelWise], ids=lambda o: o.__name__)
def test_a_model_without_maps(cls):
    dls = image_dls(n=24, bs=8)
    def mlp(n): return nn.Sequential(nn.Flatten(), nn.Linear(768,n), nn.ReLU(), nn.Linear(n,n), nn.ReLU(), nn.Linear(n,3))
    learn = Learner(dls, mlp(8), cbs=KnowledgeDistillation(mlp(16), cls()))
    with warnings.catch_warnings(), pytest.raises(ValueError, match='needs features with positions'):
        warnings.simplefilter('ignore')
        learn.fit(1)

def test_no_teacher():
    with pytest.raises(ValueError, match='teacher=None, but the default loss needs one'): KnowledgeDistillation()
    with pytest.raises(ValueError, match='teacher=None, but soft_target needs one'): KnowledgeDistillation(loss=[TeacherFree(), SoftTarget()])
    assert 'Teacher: none' in student(image_dls(), cbs=KnowledgeDistillation(loss=TeacherFree())).knowledge_distillation.summary()

def test_memory_of_items_and_blended_items(dls, teachers):
    with pytest.raises(ValueError, match='crd remembers each item, but mix_up blends items'): student(dls, cbs=[MixUp(), KnowledgeDistillation(teachers['cnn'], CRD())])
    learn = small(dls, teachers, CRD(n_negatives=8))
    with pytest.raises(ValueError, match='crd remembers each item, but mix_up blends items'): learn.fit(1, cbs=MixUp())

@pytest.mark.filterwarnings("ignore:teacher=.*goes through")
def test_items_that_are_skipped_have_no_number(teachers):
    dls = image_dls(n=48, bs=8)
    seen = []
    def skips(o):
        seen.append(o)
        if len(seen) % 11 == 0: raise SkipItemException('a broken image')
        return o
    dls = DataLoaders(dls.train.new(drop_last=False), dls.valid)
    learn = small(dls, teachers, CRD(n_negatives=8))
    dls.train.after_item.add(Transform(skips))
    with pytest.raises(ValueError, match='items that are skipped or added while loading have no number'): learn.fit(1)

def test_summary_of_a_memory_of_fewer_items_than_a_validation_batch(teachers):
    dls = image_dls(n=60, bs=8)
    few = DataLoaders(dls.train.new(n=8), dls.valid.new(bs=20))
    assert few.train.n == 8 and 'crd:' in small(few, teachers, CRD(n_negatives=8)).knowledge_distillation.summary()

@pytest.mark.parametrize('n_workers', [0,2])
def test_numbers_are_those_of_the_items_whatever_the_workers(teachers, n_workers):
    dls = image_dls(n=60, bs=8)
    learn,seen = small(DataLoaders(dls.train.new(num_workers=n_workers), dls.valid), teachers, CRD(n_negatives=8)),[]
    class Look(Callback):
        order,run_valid = KnowledgeDistillation.order-.1,False
        def after_loss(self):
            items = item_numbers(self.dl, self.iter, len(self.y))
            seen.extend(zip(items.tolist(), tensor(self.y).tolist()))
    learn.fit(1, cbs=Look())
    eq(len(dict(seen)), 40)
    for i,y in seen: eq(int(dls.train_ds[i][1]), y)
