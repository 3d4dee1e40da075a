"The losses beyond one label an image: pixels, words, tables, outputs of a regression, several inputs; each batch beside a formula"
import warnings

import pytest
from fastai.tabular.all import *
from fastai.text.all import *
from fastkd.all import *
from helpers import *
from test_applications import ByHand, fcn, image_loaders, kept, language_model, lm_dls, mask_dls, per_pixel, quiet, t_pred, table, table_dls, table_learner, taught, text_df, tiny

def fit(learn, teacher, loss, formula, epochs=2, lr=1e-2, rtol=1e-4, **kwargs):
    "Every batch's term beside `formula(learn)`"
    kd,hand = KnowledgeDistillation(teacher, loss, weight=1., **kwargs),ByHand(formula)
    quiet(learn).add_cb(kd)
    learn.fit(epochs, lr, cbs=hand)
    assert len(hand.seen) >= 2
    np.testing.assert_allclose(*zip(*hand.seen), rtol=rtol, atol=2**-17)  # as in `distil`
    return kd

# Pixels
def three_classes():
    "Images whose pixels are class 0, 1 or 2, and 255, which does not count"
    items = [(x, np.where(x[...,0]>110, 1, np.where(x[...,1]>90, 2, 0)).astype(np.uint8)) for x,_ in colour_items(24, 16)]
    for _,m in items: m[:3] = 255
    return DataBlock((ImageBlock,MaskBlock(codes=['other','red','green'])), getters=[ItemGetter(0),ItemGetter(1)], splitter=IndexSplitter(range(16,24))).dataloaders(items, bs=4, num_workers=0)

def net3(c): return nn.Sequential(*fcn(c)[:3], nn.Conv2d(c,3,1))

@pytest.mark.parametrize('loss', [DecoupledKD(), NormalizedKD(), WeightedSoftLabel(), DIST(), MultiLevel(), SoftTarget(standardize=True)], ids=lambda o: o.name)
def test_pixels_that_count_are_items(loss):
    dls = three_classes()
    t = taught(Learner(dls, seeded(net3, 8), loss_func=per_pixel()))
    def formula(l):
        z,zt = kept(l, t_pred(t.model, l.x))
        return loss.weight*loss(z, zt, y=tensor(l.y)[tensor(l.y)!=255].long())
    fit(Learner(dls, seeded(net3, 4, seed=1), loss_func=per_pixel()), t, loss, formula)

def channels_by_hand(a, b, T):
    p,q = [(o.flatten(2)/T).softmax(2) for o in (b,a)]
    return T**2*(p*(p/q).log()).sum()/(len(a)*a.shape[1])

poor_teacher = pytest.mark.filterwarnings("ignore:The teacher's")  # an epoch of two steps may leave a U-Net untrained
@poor_teacher
@pytest.mark.parametrize('loss', ['layers','logits'])
def test_unet_learns_by_channels(loss):
    dls = mask_dls(n=12)
    def unet(seed): return seeded(unet_learner, dls, resnet18, pretrained=False, n_out=2, loss_func=per_pixel(), seed=seed)
    t,learn = taught(unet(0), epochs=1, lr=1e-3),unet(1)
    if loss == 'logits': kd = fit(learn, t, partial(channel_wise, T=2), lambda l: channels_by_hand(l.pred, t_pred(t.model, l.x), 2), lr=1e-3, rtol=1e-3)
    else:
        seen = {}
        learn.model.layers[4].register_forward_hook(lambda m,i,o: seen.update(s=o.detach()))
        t.model.layers[4].register_forward_hook(lambda m,i,o: seen.update(t=o.detach()))
        def formula(l):
            t_pred(t.model, l.x)
            return channels_by_hand(seen['s'], seen['t'], 4)
        kd = fit(learn, t, ChannelWise(['layers.4']), formula, lr=1e-3, rtol=1e-3)
    assert kd.history.kd_loss.iloc[-1] < kd.history.kd_loss[0]

@poor_teacher
def test_unet_learns_by_channels_of_automatic_layers():
    dls = mask_dls(n=12)
    def unet(seed): return quiet(seeded(unet_learner, dls, resnet18, pretrained=False, n_out=2, loss_func=per_pixel(), seed=seed))
    t,learn = taught(unet(0), epochs=1, lr=1e-3),unet(1)
    learn.fit(2, 1e-3, cbs=(kd := KnowledgeDistillation(t, [SoftTarget(), ChannelWise()])))
    h = kd.history.channel_wise
    assert h.iloc[-1] < h[0]

# Words
@pytest.mark.parametrize('loss', [DecoupledKD(), DIST(), MultiLevel()], ids=lambda o: o.name)
def test_language_model_tokens_are_items(loss, lm_dls):
    t = taught(language_model(lm_dls, 0), epochs=8, lr=3e-2)
    twin = language_model(lm_dls, 2).model.eval()
    twin.load_state_dict(t.model.state_dict())
    class Reset(Callback):
        run_valid = False
        def before_train(self): twin.reset()
    learn = language_model(lm_dls, 1)
    learn.add_cb(Reset())
    fit(learn, t, loss, lambda l: loss.weight*loss(l.pred.flatten(0,1), twin(*l.xb)[0].flatten(0,1), y=tensor(l.y).flatten()), rtol=1e-3)

def test_text_classifier_learns_relations():
    blocks = TextBlock.from_df('text', seq_len=8, min_freq=1),CategoryBlock
    dls = DataBlock(blocks, get_x=ColReader('text'), get_y=ColReader('label'), splitter=IndexSplitter(range(40,60))).dataloaders(text_df(), bs=8, seq_len=8)
    def learner(seed): return quiet(seeded(text_classifier_learner, dls, AWD_LSTM, config=tiny(awd_lstm_clas_config), pretrained=False, seed=seed))
    t,learn = taught(learner(0), epochs=3, lr=3e-2),learner(1)
    learn.fit(4, 1e-2, cbs=(kd := KnowledgeDistillation(t, [SoftTarget(), RKD(), PKT()])))
    assert kd.history.rkd.iloc[-1] < kd.history.rkd[0]

def test_sorted_texts_do_not_tell_which_items_are_in_a_batch():
    blocks = TextBlock.from_df('text', seq_len=8, min_freq=1),CategoryBlock
    dls = DataBlock(blocks, get_x=ColReader('text'), get_y=ColReader('label'), splitter=IndexSplitter(range(40,60))).dataloaders(text_df(), bs=8, seq_len=8)
    def learner(seed): return quiet(seeded(text_classifier_learner, dls, AWD_LSTM, config=tiny(awd_lstm_clas_config), pretrained=False, seed=seed))
    t,learn = taught(learner(0), epochs=3, lr=3e-2),learner(1)
    with pytest.raises(ValueError, match='a SortedDL does not tell which items are in a batch'): learn.fit(1, cbs=KnowledgeDistillation(t, CRD(n_negatives=8)))

# Tables
@pytest.mark.parametrize('n_classes', [3])
def test_labels_of_a_table_are_a_column(n_classes):
    df = table()
    df['label'] = np.array(['a','b','c'])[np.digitize(df.x, [8,12])]
    dls = table_dls(df)
    t = taught(table_learner(dls, 32, 16), epochs=4)
    fit(table_learner(dls, 8, seed=1), t, DecoupledKD(), lambda l: decoupled_kd(l.pred, t_pred(t.model, *l.xb), tensor(l.y)[:,0].long()))

def test_features_of_a_table_are_vectors():
    dls = table_dls(table())
    t,learn = taught(table_learner(dls, 32, 16), epochs=3),table_learner(dls, 8, 8, seed=1)
    learn.fit(4, 1e-2, cbs=(kd := KnowledgeDistillation(t, [SoftTarget(), FitNet(weight=1.), VID(), RKD()])))
    assert kd.history.fitnet.iloc[-1] < kd.history.fitnet[0] and kd.history.vid.iloc[-1] < kd.history.vid[0]

# Regression
@pytest.mark.parametrize('loss,each', [(Huber(delta=.3), lambda z,zt,y: F.huber_loss(z, zt, delta=.3)),
    (TeacherBounded(margin=.01), lambda z,zt,y: torch.where((z-y)**2+.01 > (zt-y)**2, (z-y)**2, 0.).mean())], ids=['huber','teacher_bounded'])
def test_regression(loss, each):
    dls = image_loaders((ImageBlock,RegressionBlock), lambda y: [-1.,.5,2.][y])
    t = taught(Learner(dls, seeded(cnn, 8, 16, n_out=1)), epochs=4)
    fit(student(dls, n_out=1, metrics=mae), t, loss, lambda l: each(l.pred.flatten(), t_pred(t.model, l.x).flatten(), tensor(l.y).flatten()))

# Several inputs
class TwoInputs(nn.Module):
    "An image and the same image in another light"
    def __init__(self, c): super().__init__(); self.a,self.b,self.head = cnn(c, n_out=8),cnn(c, n_out=8),nn.Linear(16,3)
    def forward(self, x, y): return self.head(F.relu(torch.cat([self.a(x), self.b(y)], 1)))

def test_model_with_several_inputs():
    items = [(x, (x//2).astype(np.uint8), y) for x,y in colour_items(48)]
    dls = DataBlock((ImageBlock,ImageBlock,CategoryBlock(vocab=[0,1,2])), n_inp=2, getters=[ItemGetter(i) for i in range(3)], splitter=IndexSplitter(range(32,48))).dataloaders(items, bs=8, num_workers=0)
    t = taught(Learner(dls, seeded(TwoInputs, 12), metrics=accuracy), epochs=4)
    learn = Learner(dls, seeded(TwoInputs, 4, seed=1), metrics=accuracy)
    with torch.no_grad(): assert not torch.equal(t.model.eval()(*dls.one_batch()[:2]), t.model(*dls.one_batch()[:1]*2))
    kd = fit(learn, t, DecoupledKD(), lambda l: decoupled_kd(l.pred, t_pred(t.model, *l.xb), tensor(l.y)))
    assert 'Teacher: Learner TwoInputs' in kd.summary()
    learn = quiet(Learner(dls, seeded(TwoInputs, 4, seed=1)))
    learn.fit(3, 1e-2, cbs=(kd := KnowledgeDistillation(t, [SoftTarget(), FitNet([('a.0','a.0'), ('b.0','b.0')], weight=1.)])))
    assert kd.history.fitnet.iloc[-1] < kd.history.fitnet[0]

# Ensembles
def test_ensemble_teaches_its_mean_probabilities_to_a_loss_with_labels():
    dls = image_dls()
    ts = [trained_teacher(dls, 8), trained_teacher(dls, 12)]
    def formula(l):
        zs = [t_pred(t.model, l.x) for t in ts]
        mean = sum((z/4).softmax(1) for z in zs)/2
        return decoupled_kd(l.pred, 4*mean.log(), tensor(l.y))
    fit(student(dls), ts, DecoupledKD(), formula)
