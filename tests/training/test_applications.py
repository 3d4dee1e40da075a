"Every application of fastai: the loss that fits is chosen, its value is that of a formula written out here, and the student comes closer to the teacher"
import warnings

import pandas as pd, pytest, timm, torchvision
from fastai.tabular.all import *
from fastai.text.all import *

from fastkd.losses.features import Attention, FitNet
from fastkd.losses.soft_targets import BinarySoftTarget, Logits, SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.checks import valid_batch
from fastkd.training.task import task_of
from helpers import *
from fastcore.test import test_close as close, test_eq as eq # after the star imports, which bring another eq

def soft(z, zt, T=4.):
    "Soft targets of logits (N, C), by hand"
    p,q = (zt/T).softmax(1),(z/T).softmax(1)
    return T**2 * (p*(p/q).log()).sum(1).mean()

def two_way(z, zt, T=2.):
    p,q = torch.sigmoid(zt/T),torch.sigmoid(z/T)
    return T**2 * (p*(p/q).log() + (1-p)*((1-p)/(1-q)).log()).mean()

def squares(z, zt): return ((z-zt)**2).mean()

def quiet(learn):
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def taught(learn, epochs=3, lr=1e-2):
    quiet(learn).fit(epochs, lr)
    return learn

class ByHand(Callback):
    "The loss of every batch beside `f(learn)`"
    order,run_valid = KnowledgeDistillation.order+.1,False
    def __init__(self, f): self.f,self.seen = f,[]
    def after_loss(self):
        with torch.no_grad(): self.seen.append((self.learn.loss.item(), float(self.f(self.learn))))

def distil(learn, teacher, formula, default, task, loss=None, epochs=3, lr=1e-2, eps=1e-4):
    "Distil with weight 1, so that the loss is the term, and compare each batch with `formula(learn)`"
    assert loss is not None or type(task_of(learn.loss_func).default_loss) is default
    loss = SoftTarget() if loss is None and default is SoftTarget else loss  # not calibrated, as in the formula
    kd = KnowledgeDistillation(teacher, loss, weight=1., head_lr=1)  # few steps with a large, constant learning rate
    quiet(learn).add_cb(kd)
    assert loss is not None or type(kd.terms[0]) is default
    text = kd.summary()
    assert f'Task: {task}' in text and kd.objective.names[0] in text
    hand = ByHand(formula)
    learn.fit(epochs, lr, cbs=hand)
    assert len(hand.seen) >= 2
    # For terms of almost 0: the logarithms in a divergence are off by 2**-23 or so, twice, T² is 16, and the formula is another way to compute it
    np.testing.assert_allclose(*zip(*hand.seen), rtol=eps, atol=2**-17)
    assert kd.history.kd_loss.iloc[-1] < .9*kd.history.kd_loss[0], kd.history
    return kd,text

def t_pred(teacher, *xb): return teacher.eval()(*xb)

# Images
def image_loaders(blocks, target, n=48, **kwargs):
    "Colour images whose target is `target(class)`"
    items = [(x, target(y)) for x,y in colour_items(n)]
    return DataBlock(blocks, getters=[ItemGetter(0),ItemGetter(1)], splitter=IndexSplitter(range(n*2//3, n)), **kwargs).dataloaders(items, bs=8, num_workers=0)

def test_single_label():
    dls = image_dls()
    t = trained_teacher(dls, 8, 16)
    _,text = distil(student(dls), t, lambda l: soft(l.pred, t_pred(t.model, l.x)), SoftTarget, 'single-label classification (CrossEntropyLoss')
    assert 'accuracy: teacher 1.000' in text

def test_multi_label():
    dls = image_loaders((ImageBlock,MultiCategoryBlock), lambda y: [['red'],['green','big'],['blue','big']][y])
    assert isinstance(dls.loss_func, BCEWithLogitsLossFlat)
    t = taught(Learner(dls, seeded(cnn, 8, 16, n_out=4)), epochs=6)
    _,text = distil(student(dls, n_out=4, metrics=accuracy_multi), t, lambda l: two_way(l.pred, t_pred(t.model, l.x)), BinarySoftTarget, 'multi-label or binary classification (BCEWithLogitsLoss)')
    assert 'accuracy: teacher' in text

def test_binary_with_one_logit():
    dls = image_loaders((ImageBlock,CategoryBlock), lambda y: 'red' if y==0 else 'other')
    def learner(model): return Learner(dls, model, loss_func=BCEWithLogitsLossFlat())
    t = taught(learner(seeded(cnn, 8, 16, n_out=1)))
    distil(learner(seeded(cnn, 4, 8, n_out=1, seed=1)), t, lambda l: two_way(l.pred, t_pred(t.model, l.x)), BinarySoftTarget, 'multi-label or binary classification (BCEWithLogitsLoss)')

def test_image_regression():
    dls = image_loaders((ImageBlock,RegressionBlock), lambda y: [-1.,.5,2.][y])
    t = taught(Learner(dls, seeded(cnn, 8, 16, n_out=1)), epochs=6)
    _,text = distil(student(dls, n_out=1, metrics=mae), t, lambda l: squares(l.pred, t_pred(t.model, l.x)), Logits, 'regression (MSELoss)')
    assert 'R²: teacher' in text

# Segmentation
def mask_dls(bs=4, n=24, size=32):
    "Images whose red pixels are class 1; a border of 255 does not count"
    items = [(x, (x[...,0]>110).astype(np.uint8)) for x,_ in colour_items(n, size)]
    for _,m in items: m[:5] = 255
    return DataBlock((ImageBlock,MaskBlock(codes=['other','red'])), getters=[ItemGetter(0),ItemGetter(1)], splitter=IndexSplitter(range(n*2//3, n))).dataloaders(items, bs=bs, num_workers=0)

def fcn(c): return nn.Sequential(nn.Conv2d(3,c,3,padding=1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c,2,1))
def per_pixel(): return CrossEntropyLossFlat(axis=1, ignore_index=255)

def kept(learn, zt):
    "Student's and teacher's logits at the pixels that count, (N, C)"
    keep = tensor(learn.y) != 255
    assert 0 < keep.float().mean() < 1
    return [o.permute(0,2,3,1)[keep] for o in (learn.pred, zt)]

def test_segmentation_counts_the_kept_pixels():
    dls = mask_dls()
    t = taught(Learner(dls, seeded(fcn, 8), loss_func=per_pixel()))
    _,text = distil(Learner(dls, seeded(fcn, 4, seed=1), loss_func=per_pixel()), t, lambda l: soft(*kept(l, t_pred(t.model, l.x))), SoftTarget, 'single-label classification (CrossEntropyLoss, class axis 1)')
    assert 'accuracy: teacher' in text

def test_segmentation_total_is_that_of_the_kept_pixels():
    dls = mask_dls()
    t = taught(Learner(dls, seeded(fcn, 8), loss_func=per_pixel()))
    def total(l):
        z,zt = kept(l, t_pred(t.model, l.x))
        return .7*F.cross_entropy(z, tensor(l.y)[tensor(l.y)!=255].long()) + .3*soft(z, zt)
    learn = quiet(Learner(dls, seeded(fcn, 4, seed=1), loss_func=per_pixel(), cbs=[KnowledgeDistillation(t, SoftTarget(), weight=.3), hand := ByHand(total)]))
    learn.fit(1)
    np.testing.assert_allclose(*zip(*hand.seen), rtol=1e-4)

def test_segmentation_teacher_at_half_the_size_is_resized():
    dls = mask_dls()
    t = nn.Sequential(seeded(fcn, 8), nn.AvgPool2d(2))
    def up(z): return F.interpolate(z, (32,32), mode='bilinear', align_corners=False)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # it is untrained
        distil(Learner(dls, seeded(fcn, 4, seed=1), loss_func=per_pixel()), t, lambda l: soft(*kept(l, up(t_pred(t, l.x)))), SoftTarget, 'single-label')

class Outputs:
    "The last output of a layer, by a hook of our own"
    def __init__(self, layer): layer.register_forward_hook(lambda m,i,o: setattr(self, 'out', o.detach()))

@pytest.mark.filterwarnings("ignore:The teacher's")  # an epoch of two steps may leave it untrained
def test_unet_learns_from_unet_by_pixels_and_layers():
    dls = mask_dls(n=12)
    def unet(seed): return seeded(unet_learner, dls, resnet18, pretrained=False, n_out=2, loss_func=per_pixel(), seed=seed)
    t = taught(unet(0), epochs=1, lr=1e-3)
    learn = unet(1)
    a,b = Outputs(learn.model.layers[4]),Outputs(t.model.layers[4])
    def total(l):
        zt = t_pred(t.model, l.x)  # also fills `b`
        return soft(*kept(l, zt)) + 100*squares(a.out, b.out) + 1000*squares(*[F.normalize((o**2).mean(1).flatten(1)) for o in (a.out, b.out)])
    _,text = distil(learn, t, total, SoftTarget, 'single-label classification (CrossEntropyLoss, class axis 1)',
                    loss=[SoftTarget(), FitNet(layers='layers.4'), Attention(layers='layers.4')], epochs=5, lr=1e-3, eps=1e-3)
    assert 'layers.4 512×2×2 ↔ layers.4 512×2×2' in text

# Text
def text_df(n=60):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    words = [rng.choice(['film','plot','the','a','was','acting'], 7).tolist() + rng.choice(['good','great','nice'] if k else ['bad','awful','dull'], 4).tolist() for k in y]
    return pd.DataFrame(dict(text=[' '.join(o) for o in words], label=np.where(y, 'pos', 'neg')))

def tiny(config): return {**config, 'emb_sz':20, 'n_hid':20, 'n_layers':2}

@pytest.fixture(scope='module')
def lm_dls():
    df = pd.DataFrame(dict(text=['the film was good but the plot was dull']*60))
    block = TextBlock.from_df('text', is_lm=True, seq_len=8, min_freq=1)
    return DataBlock(block, get_x=ColReader('text'), splitter=IndexSplitter(range(40,60))).dataloaders(df, bs=4, seq_len=8, shuffle=False)

def language_model(dls, seed): return quiet(seeded(language_model_learner, dls, AWD_LSTM, config=tiny(awd_lstm_lm_config), pretrained=False, seed=seed))

class Shadow(Callback):
    "A twin of the teacher that is reset before each epoch, and sees each training batch once"
    order,run_valid = KnowledgeDistillation.order+.05,False
    def __init__(self, twin, teacher):
        self.twin = twin.eval()
        twin.load_state_dict(teacher.state_dict())
    def before_train(self): self.twin.reset()
    def after_loss(self):
        with torch.no_grad(): self.preds = self.twin(*self.xb)[0]

def test_language_model_teacher_keeps_its_state_within_an_epoch_and_forgets_it_between(lm_dls):
    t,learn = taught(language_model(lm_dls, 0), epochs=8, lr=3e-2),language_model(lm_dls, 1)
    learn.add_cb(Shadow(language_model(lm_dls, 2).model, t.model))
    def formula(l): return soft(l.pred.flatten(0,1), l.shadow.preds.flatten(0,1))
    _,text = distil(learn, t, formula, SoftTarget, 'single-label classification (CrossEntropyLoss, class axis -1)', eps=1e-3)
    assert 'accuracy: teacher' in text

def test_language_model_student_is_undisturbed_by_the_teacher(lm_dls):
    "Weights and hidden state after two epochs with a term of weight 0 are those of plain training"
    t = language_model(lm_dls, 0)
    def run(*cbs):
        learn,hidden = language_model(lm_dls, 1),[]
        class Hidden(Callback):
            order,run_valid = 99,False
            def after_batch(self): hidden.append([o.clone() for h in self.model[0].hidden for o in h])
        learn.add_cbs([Hidden(),*cbs])
        set_seed(4)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # the teacher is untrained
            learn.fit(2, 1e-2)
        return state(learn.model),hidden
    (a,ha),(b,hb) = run(),run(KnowledgeDistillation(t, SoftTarget(weight=0.), hard_weight=1.))
    assert same_state(a, b) and len(ha) > 10
    assert all(torch.equal(x, y) for p,q in zip(ha, hb) for x,y in zip(p, q))

def test_text_classification():
    blocks = TextBlock.from_df('text', seq_len=8, min_freq=1),CategoryBlock
    dls = DataBlock(blocks, get_x=ColReader('text'), get_y=ColReader('label'), splitter=IndexSplitter(range(40,60))).dataloaders(text_df(), bs=8, seq_len=8)
    def learner(seed): return quiet(seeded(text_classifier_learner, dls, AWD_LSTM, config=tiny(awd_lstm_clas_config), pretrained=False, metrics=accuracy, seed=seed))
    t = taught(learner(0), epochs=3, lr=3e-2)
    def formula(l):
        t.model.reset()
        return soft(l.pred, t_pred(t.model, *l.xb)[0])
    distil(learner(1), t, formula, SoftTarget, 'single-label classification (CrossEntropyLoss, class axis -1)', eps=1e-3)

# Tables
def table(n=120):
    rng = np.random.default_rng(0)
    c,x = rng.integers(0, 3, n),rng.normal(size=(n,3))*[5,1,2] + [10,0,-3]
    return pd.DataFrame(dict(colour=np.array(['r','g','b'])[c], x=x[:,0], y=x[:,1], z=x[:,2], label=np.where((c==0)|(x[:,0]>12), 'yes', 'no'), value=x[:,0]/5+c))

def table_dls(df, target='label', block=CategoryBlock, conts=('x','y','z')):
    return TabularPandas(df, [Categorify,FillMissing,Normalize], ['colour'], list(conts), target, y_block=block(), splits=(list(range(80)),list(range(80,len(df))))).dataloaders(bs=16, val_bs=40)

def table_learner(dls, *layers, seed=0): return quiet(seeded(tabular_learner, dls, layers=list(layers), seed=seed))

def test_tabular_classification():
    dls = table_dls(table())
    t = taught(table_learner(dls, 32, 16), epochs=10)
    kd,_ = distil(table_learner(dls, 8, seed=1), t, lambda l: soft(l.pred, t_pred(t.model, *l.xb)), SoftTarget, 'single-label classification (CrossEntropyLoss, class axis -1)')
    xb,(y,) = valid_batch(kd.learn)  # the one that the summary looks at: fastai draws shuffled rows with replacement
    right = (t_pred(t.model, *xb).argmax(1) == y[:,0]).float().mean()  # labels of a table are (B, 1)
    assert right > .7 and f'accuracy: teacher {right:.3f}' in kd.summary()

def test_tabular_accuracy_takes_labels_in_a_column():
    from fastkd.training.task import score, task_of
    eq(score(task_of(CrossEntropyLossFlat()), torch.eye(2)[[0,1,1,1]], torch.tensor([[0],[1],[0],[0]])), .5)

def test_tabular_regression():
    dls = table_dls(table(), 'value', RegressionBlock)
    t = taught(table_learner(dls, 32, 16), epochs=8)
    distil(table_learner(dls, 8, seed=1), t, lambda l: squares(l.pred, t_pred(t.model, *l.xb)), Logits, 'regression (MSELoss)')

def test_tabular_teacher_with_other_statistics_sees_its_own_units():
    dls,t_dls = table_dls(table()),table_dls(table().assign(x=lambda d: d.x*1.5-3))
    t = taught(table_learner(t_dls, 32), epochs=3)
    def stats(d): return [torch.tensor([float(o[n]) for n in d.cont_names]) for o in (d.procs.normalize.means, d.procs.normalize.stds)]
    (m,s),(tm,ts) = stats(dls),stats(t_dls)
    def formula(l): return soft(l.pred, t_pred(t.model, l.xb[0], (l.xb[1]*s + m - tm)/ts))
    _,text = distil(table_learner(dls, 8, seed=1), t, formula, SoftTarget, 'single-label')
    assert 'continuous columns: rescaled' in text

@pytest.mark.parametrize('conts,what', [(('y','z','x'),'continuous columns'), (('x','y'),'continuous columns')])
def test_tabular_teacher_with_other_columns_is_an_error(conts, what):
    t = table_learner(table_dls(table(), conts=conts), 16)
    with pytest.raises(ValueError, match=f'its {what} are .* the same {what}, in the same order'): table_learner(table_dls(table()), 8).add_cb(KnowledgeDistillation(t))

# Models from elsewhere
vit = partial(timm.create_model, 'vit_tiny_patch16_224', img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3)
models = dict(timm_resnet=partial(timm.create_model, 'resnet10t'), timm_vit=vit, torchvision=torchvision.models.shufflenet_v2_x0_5)

@pytest.fixture(scope='module')
def big():
    "Loaders of 32 pixel images, and a teacher that knows them"
    dls = image_dls(size=32, bs=16)
    return dls,trained_teacher(dls, 8, 16, 16)

@pytest.mark.parametrize('name', models)
def test_models_of_timm_and_torchvision_as_students(big, name):
    dls,t = big
    learn = Learner(dls, seeded(models[name], num_classes=3, seed=1), metrics=accuracy)
    distil(learn, t, lambda l: soft(l.pred, t_pred(t.model, l.x)), SoftTarget, 'single-label', lr=2e-3, epochs=8)

@pytest.mark.parametrize('name', models)
def test_models_of_timm_and_torchvision_as_teachers(big, name):
    dls,_ = big
    t = taught(Learner(dls, seeded(models[name], num_classes=3)), epochs=2, lr=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # two epochs may not be enough for it
        distil(student(dls), t.model, lambda l: soft(l.pred, t_pred(t.model, l.x)), SoftTarget, 'single-label')

def test_vit_learns_the_attention_of_a_cnn(big):
    "Its 16 patches, without the class token, are the grid to which the CNN's map is averaged"
    dls,t = big
    learn = Learner(dls, seeded(vit, num_classes=3, seed=1), metrics=accuracy)
    a,b = Outputs(learn.model.blocks[1]),Outputs(t.model[1])
    def formula(l):
        t_pred(t.model, l.x)
        grid = a.out[:,1:].transpose(1,2).unflatten(2, (4,4))
        eq((b.out.shape[1:], a.out.shape[1:]), ((16,8,8), (17,48)))
        return 1000*squares(*[F.normalize((o**2).mean(1).flatten(1)) for o in (grid, F.avg_pool2d(b.out, 2))])
    distil(learn, t, formula, Attention, 'single-label', loss=Attention(layers=[('blocks.1','1')]), lr=2e-3, epochs=4)
