"`fastkd.evaluation.image_plots`: images as they are seen, the numbers beside them, attention maps, errors, nothing left on the models"
import matplotlib.pyplot as plt, numpy as np, pytest
from fastai.vision.all import *
from fastkd.data.digits import digits_dls
from fastkd.evaluation.image_plots import (attention_maps, disagreements, images, plot_attention, plot_disagreements, plot_soft_targets)
from fastkd.evaluation.style import is_dark, palette, style
from fastkd.models.pairs import pair_layers
from helpers import cnn, colour_items, image_dls, n_hooks, same_state, seeded, state, student
from plot_layout import check_layout

stats = imagenet_stats

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

def fitted(dls, cs=(4,8), n_out=3, epochs=1, **kwargs):
    learn = student(dls, cs, n_out=n_out, **kwargs)
    learn.fit(epochs, 1e-2)
    return learn

@pytest.fixture(scope='module')
def dls(): return image_dls(n=150, batch_tfms=Normalize.from_stats(*stats, cuda=False))
@pytest.fixture(scope='module')
def small(dls): return fitted(dls, seed=5)
@pytest.fixture(scope='module')
def large(dls): return fitted(dls, (8,16,16))

def pixels(i, n=150): return colour_items(n)[n*2//3+i][0]/255  # of the validation image i
def logits(learn, dl=None):
    "Logits of the validation set, batch by batch"
    with torch.no_grad(): return torch.cat([learn.model.eval()(x).as_subclass(Tensor) for x,_ in learn.dls.valid])
def labels(dls): return torch.cat([y for _,y in dls.valid]).as_subclass(Tensor)
def shown(ax): return np.asarray(ax.images[0].get_array())

# images

def test_colour_images_are_shown_as_they_were_before_the_transforms(dls):
    ims,b = images(dls.valid, [4,0,49])
    for im,i in zip(ims, [4,0,49]): np.testing.assert_allclose(im, pixels(i), atol=1/254)
    assert b[0].min() < 0  # the batch is normalised

def test_grey_images_have_one_channel_and_no_augmentation():
    digits = digits_dls(32)
    ims,b = images(digits.train, [3,5])
    assert ims[0].shape == (16,16) and 0 <= ims[0].min() and ims[0].max() > .8
    again,_ = images(digits.train, [3,5])
    np.testing.assert_array_equal(ims, again)
    np.testing.assert_allclose(ims[0], b[0][0,0]*.35+.29, atol=.005)

@pytest.mark.parametrize('scale, shift', [(1,0), (255,0), (6,-3)])
def test_plain_tensors_are_scaled_to_what_can_be_seen(scale, shift):
    x = torch.rand(8, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    x[0,0,0,:2] = tensor([0.,1.])
    dl = TfmdDL(Datasets(range(8), [[lambda i: x[i]*scale+shift], [lambda i: i%2]]), bs=4)
    ims,_ = images(dl, [0])
    np.testing.assert_allclose(ims[0], x[0].permute(1,2,0), atol=1e-5)

@pytest.mark.parametrize('plot', [plot_soft_targets, lambda o: plot_disagreements(o, o), lambda o: plot_attention(o, o)],
                         ids=['soft targets','disagreements','attention'])
def test_other_inputs_are_an_error_before_anything_is_predicted(plot):
    class Never(nn.Module):
        def forward(self, x): raise AssertionError('predicted')
    for shape,text in ((4,), r'\(1, 4\)'), ((2,5,5), r'\(1, 2, 5, 5\)'):
        ds = Datasets(range(8), [[lambda i: torch.zeros(shape)], [lambda i: i%2, Categorize([0,1])]], splits=[range(4),range(4,8)])
        learn = Learner(ds.dataloaders(bs=2, num_workers=0), Never(), loss_func=CrossEntropyLossFlat())
        with pytest.raises(ValueError, match=f'`dl` has inputs of type Tensor of shape {text}: this plot shows images'): plot(learn)
    with pytest.raises(ValueError, match='`dl` is None, but no model is a `Learner`'): plot(Never())

# soft targets

def widths(ax): return np.array([o.get_width() for o in ax.patches])

def test_bars_are_the_softmax_at_each_temperature(dls, large):
    axs = plot_soft_targets(large, idxs=[7,2], Ts=(1,3.5))
    z,y = logits(large),labels(dls)
    assert len(axs) == 6
    for row,i in zip((axs[:3], axs[3:]), [7,2]):
        np.testing.assert_allclose(shown(row[0]), pixels(i), atol=1/254)
        assert row[0].get_title() == f"true: {'abc'[y[i]]}"
        for ax,T in zip(row[1:], (1,3.5)):
            e = np.exp(z[i].double().numpy()/T)
            np.testing.assert_allclose(widths(ax), e/e.sum(), rtol=1e-4)
            texts = [f'{100*o:.1f} %' if o >= .0005 else '< 0.1 %' for o in widths(ax)]
            assert [o.get_text() for o in ax.texts] == texts
            assert ax.patches[e.argmax()].get_facecolor() != ax.patches[e.argmin()].get_facecolor()
    assert [o.get_text() for o in axs[1].get_yticklabels()] == ['a','b','c'] and not any(o.get_text() for o in axs[2].get_yticklabels())
    assert [o.get_title() for o in axs[1:3]] == ['T = 1','T = 3.5'] and [o.get_xlabel() for o in axs[4:]] == ['probability']*2
    assert axs[1].get_xlim() == axs[4].get_xlim() and axs[1].get_ylim()[0] > axs[1].get_ylim()[1]  # first class on top
    check_layout(axs[0].figure)

def test_without_indexes_the_most_and_the_least_confident_images_are_shown(large):
    axs = plot_soft_targets(large, n=3, Ts=1)
    order = logits(large).softmax(1).max(1).values.argsort(descending=True)
    want = [order[0], order[round(49/2)], order[-1]]
    for ax,i in zip(axs[::2], want): np.testing.assert_allclose(shown(ax), pixels(int(i)), atol=1/254)

def test_many_classes_are_cut_to_the_most_probable_ones():
    names = [f'a rather long name of class {i:03d}' for i in range(30)]
    data = image_dls(names, n=150)
    learn = student(data, n_out=30)
    with torch.no_grad(): learn.model[-1].weight *= 20
    axs = plot_soft_targets(learn, idxs=[3], Ts=(1,4))
    z = logits(learn)[3]
    top = sorted(range(30), key=lambda i: -z[i])[:8]
    assert [int(o.get_text()[-3:]) for o in axs[1].get_yticklabels()] == sorted(top)
    np.testing.assert_allclose(widths(axs[2]), (z/4).softmax(0)[sorted(top)], rtol=1e-4)
    assert axs[1].get_xlabel() == 'probability\n(8 of 30 classes)'
    check_layout(axs[0].figure)

def test_a_module_and_a_model_with_probabilities(dls, large):
    z = logits(large)[5]
    for m in (large.model, nn.Sequential(large.model, nn.Softmax(1))):
        axs = plot_soft_targets(m, dls.valid, idxs=[5], Ts=[2])
        np.testing.assert_allclose(widths(axs[1]), (z/2).softmax(0), rtol=1e-3)

def test_images_without_label_have_no_truth(dls, large):
    axs = plot_soft_targets(large, large.dls.test_dl(dls.valid_ds.items), idxs=[1])
    assert axs[0].get_title() == ''

@pytest.mark.parametrize('kwargs, text', [
    (dict(idxs=[50]), r'`idxs` is \[50\]: give one or more indexes of the 50 items, from 0 to 49'), (dict(idxs=[]), r'`idxs` is \[\]'),
    (dict(idxs=-1), r'`idxs` is \[-1\]'), (dict(Ts=(1,0)), '`Ts` has 0: give temperatures above 0'), (dict(Ts=['a']), "`Ts` has 'a'"),
    (dict(Ts=()), '`Ts` is empty'), (dict(n=0), '`n` is 0: give the number of images'),
    (dict(axs=[1,2]), '`axs` has 2 axes, but this plot has 12')])
def test_bad_arguments(large, kwargs, text):
    if 'axs' in kwargs: kwargs = dict(axs=plt.figure().subplots(1, 2))
    with pytest.raises(ValueError, match=text): plot_soft_targets(large, **kwargs)

def test_multi_label_teachers_have_no_softmax(dls):
    learn = student(dls, loss_func=BCEWithLogitsLossFlat())
    with pytest.raises(ValueError, match='teacher: it was trained with BCEWithLogitsLoss'):
        plot_soft_targets(learn, learn.dls.test_dl(dls.valid_ds.items))

# disagreements

def brute_force(a, b):
    "Indexes of different predictions, the most confident first"
    p,q = a.softmax(1),b.softmax(1)
    found = [i for i in range(len(p)) if p[i].argmax() != q[i].argmax()]
    return sorted(found, key=lambda i: -(p[i].max()+q[i].max()).item()),p,q

def test_disagreements_come_with_both_predictions_and_the_truth_most_confident_first(dls, small, large):
    axs = plot_disagreements(small, large, n=4)
    order,p,q = brute_force(logits(small), logits(large))
    y = labels(dls)
    assert len(order) > 4 and len(axs) == 4
    for ax,i in zip(axs, order):
        np.testing.assert_allclose(shown(ax), pixels(i), atol=1/254)
        def words(o): return f"{'abc'[o[i].argmax()]} ({100*o[i].max():.0f} %) {'✓' if o[i].argmax()==y[i] else '✗'}"
        assert ax.get_title() == f"student: {words(p)}\nteacher: {words(q)}\ntrue: {'abc'[y[i]]}"
    fig = axs[0].figure
    assert fig.get_suptitle().replace('\n', ' ') == f'4 of {len(order)} images with different predictions, of 50 in all'
    check_layout(fig)
    assert len(fig.axes) == 6 and [o.axison for o in fig.axes] == [True]*4+[False]*2

def test_disagreements_is_a_function_of_two_sets_of_probabilities():
    p,q = torch.tensor([[.9,.1],[.6,.4],[.2,.8],[.3,.7]]),torch.tensor([[.8,.2],[.1,.9],[.95,.05],[.6,.4]])
    assert disagreements(p, q).tolist() == [2,1,3]

def test_fewer_disagreements_than_axes_and_none(small, large):
    order,*_ = brute_force(logits(small), logits(large))
    own = plt.figure().subplots(8, 6)
    axs = plot_disagreements(small, large, n=48, axs=own)
    assert axs == list(own.flat)[:len(order)] and [o.axison for o in own.flat] == [True]*len(order)+[False]*(48-len(order))
    assert own[0,0].figure.get_suptitle() == ''
    with pytest.raises(ValueError, match='student and teacher predict the same class for all 50 images'):
        plot_disagreements(small, small.model)

def test_unlabelled_images_have_neither_truth_nor_verdict(dls, small, large):
    ax = plot_disagreements(small, large, small.dls.test_dl(dls.valid_ds.items), n=1)[0]
    assert re.fullmatch(r'student: [abc] \(\d+ %\)\nteacher: [abc] \(\d+ %\)', ax.get_title())

def test_long_names_are_wrapped(dls):
    names = [f'Speed limit {i} km/h in residential areas at night' for i in 'abc']
    data = image_dls(names, n=150)
    axs = plot_disagreements(student(data, seed=1), student(data, seed=2), n=5)
    assert all(len(o) <= 34 for ax in axs for o in ax.get_title().split('\n'))
    check_layout(axs[0].figure)

# attention

def activations(learn, name, x):
    "The output of a layer, with a hook by hand"
    out = []
    h = dict(learn.model.named_modules())[name].register_forward_hook(lambda m, i, o: out.append(o.detach()))
    with torch.no_grad(): learn.model.eval()(x)
    h.remove()
    return out[0].as_subclass(Tensor).numpy()

def by_hand(f):
    "Mean of squares, divided by the maximum; (B, h, w)"
    m = (f**2).mean(1)
    return m/m.max((1,2), keepdims=True)

def enlarged(m): return F.interpolate(tensor(m)[:,None], (16,16), mode='bilinear', align_corners=False)[:,0].numpy()

def test_maps_are_the_mean_of_the_squared_activations(small, large, dls):
    axs = plot_attention(small, large, layers=[('0','0'),('1.0','1.0')], n=2)
    assert len(axs) == 10
    batch = torch.stack([dls.valid.one_batch()[0][0], list(dls.valid)[-1][0][-1]])  # the first and the last image
    ids = [(small,'0'),(large,'0'),(small,'1.0'),(large,'1.0')]
    for k,(learn,name) in enumerate(ids):
        want = enlarged(by_hand(activations(learn, name, batch)))
        for r in range(2): np.testing.assert_allclose(shown(axs[5*r+1+k]), want[r], atol=1e-5)
        assert axs[1+k].get_title() == f"{'student' if learn is small else 'teacher'}, layer\n{name}"
    for r,i in enumerate((0,49)): np.testing.assert_allclose(shown(axs[5*r]), pixels(i), atol=1/254)
    assert axs[0].figure.axes[-1].get_ylabel() == 'attention (share of the maximum)'
    assert all(o.images[0].norm.vmin == 0 and o.images[0].norm.vmax == 1 for o in axs)
    check_layout(axs[0].figure)

def test_attention_maps_keep_a_single_peak_and_survive_zeros():
    f = torch.zeros(2, 3, 4, 4)
    f[0,1,2,3] = -5
    m = attention_maps(f, (4,4))
    assert m[0].max() == m[0,2,3] == 1 and (m[0] > 0).sum() == 1 and not m[1].any()

def test_pairs_are_the_last_four_of_pair_layers():
    data = image_dls(n=30, size=64)
    a,b = student(data, (4,)*5),student(data, (6,)*5)
    axs = plot_attention(a, b, n=1)
    x = data.valid.one_batch()[0]
    want = pair_layers(a.model, b.model, x)
    assert len(want) == 5
    assert [o.get_title().split('\n')[1] for o in axs[1:]] == [n for p in want[1:] for n in p]

def test_the_same_names_for_both(small, large):
    assert [o.get_title() for o in plot_attention(small, large, layers='0', n=1)] == ['image','student, layer\n0','teacher, layer\n0']

class Tokens(nn.Module):
    "A transformer with a class token, channels last"
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.block = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
        self.head = nn.Linear(12, 3)
    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.block(torch.cat([x.mean(1, keepdim=True), x], 1))[:,0])

def test_tokens_become_a_map(dls, small):
    model = seeded(Tokens).eval()
    axs = plot_attention(small, model, layers=[('0','block')], n=1)
    f = activations(SimpleNamespace(model=model), 'block', dls.valid.one_batch()[0][:1])
    m = f[:,1:].transpose(0, 2, 1).reshape(1, 12, 4, 4)  # without the class token
    np.testing.assert_allclose(shown(axs[2]), enlarged(by_hand(m))[0], atol=1e-4)

def test_the_teacher_gets_its_own_inputs(small):
    own = image_dls(n=150, size=16, item_tfms=Resize(12))
    teacher = fitted(own, (8,16))
    axs = plot_attention(small, teacher, layers='0', n=1)
    m = by_hand(activations(teacher, '0', own.valid.one_batch()[0][:1]))
    np.testing.assert_allclose(shown(axs[2]), enlarged(m)[0], atol=1e-5)

def test_models_are_only_read(small, large):
    for o in (small, large): o.model.train()
    before = [(state(o.model), [m.training for m in o.model.modules()], list(o.recorder.values)) for o in (small, large)]
    rng = torch.get_rng_state()
    for plot in (plot_attention, plot_disagreements): plot(small, large, n=2)
    plot_soft_targets(large)
    for o,(s,flags,values) in zip((small, large), before):
        assert same_state(state(o.model), s) and flags == [m.training for m in o.model.modules()] and n_hooks(o.model) == 0
        assert o.recorder.values == values and len(values[0]) == 3
    assert torch.equal(rng, torch.get_rng_state())

@pytest.mark.parametrize('layers, text', [
    ([('0','9')], "layers='9': the model has no such layer"), ([('0','4')], r"`layers` has \('0', '4'\), whose features are not maps"),
    ([('0','1','2')], r"`layers` is \[\('0', '1', '2'\)\]: give pairs of names"), ([], r'`layers` is \[\]: give pairs')])
def test_layers_that_have_no_map(small, large, layers, text):
    with pytest.raises(ValueError, match=text): plot_attention(small, large, layers=layers)

def test_models_without_maps(dls):
    flat = student(dls)
    flat.model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"`layers` has \('1', '1'\), whose features are not maps"): plot_attention(flat, flat.model)

@pytest.mark.parametrize('dark', [False,True])
def test_background_and_text_suit_the_style(small, large, dark):
    with style(dark):
        figs = [plot(small, large, n=2)[0].figure for plot in (plot_attention, plot_disagreements)] + [plot_soft_targets(large)[0].figure]
    for fig in figs:
        assert is_dark(fig.get_facecolor()) == dark
        texts = [o for ax in fig.axes for o in (ax.title, ax.yaxis.label, *ax.texts, *ax.get_xticklabels())]
        assert all(is_dark(o.get_color()) != dark for o in texts)
