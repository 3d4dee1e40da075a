"`fastkd.evaluation.predictions` and the plots of predictions: the same items for all models, nothing left behind, calibration, confusion"
import matplotlib.pyplot as plt, numpy as np, pytest, sklearn.metrics as skm
from fastai.tabular.all import *
from fastai.vision.all import *
from fastkd.data.digits import digits_dls
from fastkd.evaluation.prediction_plots import confusion, plot_calibration, plot_confusion_change, shorten
from fastkd.evaluation.predictions import as_models, as_probs, labelled, outputs, predict, rows_of, subset
from fastkd.evaluation.style import style
from fastkd.training.callback import KnowledgeDistillation
from helpers import cnn, image_dls, n_hooks, same_state, seeded, state, student
from plot_layout import check_layout

pytestmark = pytest.mark.filterwarnings('ignore:.*load_learner', 'ignore:The given NumPy array is not writable')

@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')

def fitted(dls, cs=(4,8), n_out=3, epochs=2, **kwargs):
    learn = student(dls, cs, n_out=n_out, **kwargs)
    learn.fit(epochs, 1e-2)
    return learn

@pytest.fixture(scope='module')
def dls(): return image_dls(n=150)
@pytest.fixture(scope='module')
def small(dls): return fitted(dls, epochs=1, seed=5)
@pytest.fixture(scope='module')
def large(dls): return fitted(dls, (8,16), epochs=1)

def direct(model, dl):
    "Probabilities and labels of `dl`, batch by batch, without `Learner`"
    model.eval()
    with torch.no_grad(): outs = [(model(x).softmax(1), y) for x,y in dl.new(shuffle=False, drop_last=False)]
    return [torch.cat([o.as_subclass(Tensor) for o in os]) for os in zip(*outs)]

def close(a, b): np.testing.assert_allclose(a, b, atol=2e-6)

# predictions

def test_learners_and_modules_predict_the_same_items(dls, small, large):
    seen = predict(dict(a=small, b=large.model))
    for k,o in dict(a=small, b=large).items(): close(seen.probs[k], direct(o.model, dls.valid)[0])
    assert torch.equal(seen.targs, direct(small.model, dls.valid)[1]) and seen.names == ['a','b','c']
    assert type(seen.probs['a']) is Tensor

def test_models_and_learners_are_left_as_they_were(dls):
    class Watch(Callback):
        def before_fit(self): pass
    learn = fitted(dls, p=.3, metrics=[accuracy, RocAuc()], cbs=[Watch()])
    learn.add_cb(KnowledgeDistillation(seeded(cnn, 4, 8), weight=.5))
    learn.model.train()
    learn.model[0].eval()
    attrs,rec = dict(vars(learn)),{k: copy(v) for k,v in vars(learn.recorder).items()}
    flags,weights,cbs = [m.training for m in learn.model.modules()],state(learn.model),list(learn.cbs)
    def rngs(): return torch.get_rng_state().tolist(),np.random.get_state()[1].tolist(),random.getstate(),learn.dls.train.rng.getstate()
    before = rngs()
    predict(dict(a=learn, b=learn.model), learn.dls.train)
    assert vars(learn).items() >= attrs.items() and list(learn.cbs) == cbs and n_hooks(learn.model) == 0
    for k in ('values','losses','iters','lrs','metric_names'): assert getattr(learn.recorder, k) == rec[k] and len(rec[k]) > 1
    assert flags == [m.training for m in learn.model.modules()] and same_state(weights, state(learn.model))
    assert rngs() == before

def test_an_error_in_the_model_leaves_the_learner_as_it_was(dls):
    learn = fitted(dls)
    values,loss = list(learn.recorder.values),learn.loss_func
    learn.model[0][0].forward = lambda x: 1/0
    with pytest.raises(ZeroDivisionError): predict(dict(a=learn))
    assert learn.recorder.values == values and learn.loss_func is loss and learn.metrics[0].name == 'accuracy'

def test_training_loaders_are_read_in_order_with_validation_transforms(dls):
    digits = digits_dls(32)
    learn = student(digits, n_out=10, cs=(4,))
    learn.model[0][0] = nn.Conv2d(1, 4, 3, 2, 1)
    seen = predict(dict(a=learn), digits.train)
    with digits.train.dataset.set_split_idx(1): want,targs = direct(learn.model, digits.train)
    close(seen.probs['a'], want)
    assert torch.equal(seen.targs, targs) and digits.train.dataset.split_idx == 0

def test_a_loader_of_some_items_gives_these_in_the_order_of_the_dataset(dls, small):
    dl = subset(dls.valid, [7,2,30])
    want,targs = direct(small.model, dls.valid)
    seen = predict(dict(a=small, b=small.model), dl)
    for o in seen.probs.values(): close(o, want[[2,7,30]])
    assert rows_of(dl) == [2,7,30] and torch.equal(seen.targs, targs[[2,7,30]])

def test_a_module_in_a_sorted_loader_keeps_the_order_of_the_dataset():
    class Backwards(TfmdDL):
        def get_idxs(self): return list(range(self.n))[::-1]
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    dl = Backwards(Datasets(range(10), [[lambda i: x[i]], [lambda i: i%3, Categorize([0,1,2])]]), bs=3)
    model = nn.Linear(4, 3)
    seen = predict(dict(a=model), dl)
    close(seen.probs['a'], model(x).softmax(1).detach())
    assert seen.targs.tolist() == [i%3 for i in range(10)]

def test_a_teacher_sees_the_items_through_its_own_normalisation_and_size(dls, small):
    own = image_dls(n=150, size=16, batch_tfms=Normalize.from_stats(*imagenet_stats, cuda=False), item_tfms=Resize(12))
    teacher = fitted(own, (8,16))
    seen = predict(dict(student=small, teacher=teacher))
    close(seen.probs['teacher'], direct(teacher.model, own.valid)[0])
    assert (seen.probs['teacher'] - direct(teacher.model, dls.valid)[0]).abs().max() > .01
    module = predict(dict(student=small, teacher=teacher.model)).probs['teacher']
    close(module, direct(teacher.model, dls.valid)[0])  # a module gets the inputs as they are
    given = predict(dict(student=small, teacher=teacher, module=teacher.model), own.valid)
    close(given.probs['student'], direct(small.model, dls.valid)[0])
    close(given.probs['module'], direct(teacher.model, own.valid)[0])
    assert torch.equal(given.targs, seen.targs)

def test_classes_are_matched_by_name(dls, small):
    other = fitted(image_dls(['c','a','b'], n=150), seed=2)
    seen = predict(dict(a=small, b=other))
    close(seen.probs['b'], direct(other.model, other.dls.valid)[0][:,[1,2,0]])
    assert torch.equal(seen.targs, predict(dict(a=small)).targs)

def test_a_teacher_with_more_classes_predicts_those_of_the_student(dls, small):
    more = student(image_dls(['z','c','a','b'], n=150), n_out=4)
    p = direct(more.model, dls.valid)[0][:,[2,3,1]]
    close(predict(dict(a=small, b=more)).probs['b'], p/p.sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r"b: it doesn't know the class 'z' \(1 of 4 are unknown to it\)"): predict(dict(a=more, b=small))

def test_items_of_a_class_that_the_teacher_does_not_know(small):
    with pytest.raises(ValueError, match=r"teacher: it doesn't know the class 'd' \(1 of 4"):
        predict(dict(student=student(image_dls('abcd'), n_out=4), teacher=small))

def test_an_exported_learner_needs_a_loader(dls, small, tmp_path):
    small.export(tmp_path/'s.pkl')
    loaded = load_learner(tmp_path/'s.pkl')
    loaded.remove_cb(ProgressCallback)
    with pytest.raises(ValueError, match='`dl` is empty'): predict(dict(a=loaded))
    close(predict(dict(a=loaded), dls.valid).probs['a'], direct(small.model, dls.valid)[0])

@pytest.mark.parametrize('loss_func', [nn.CrossEntropyLoss(), F.cross_entropy, CrossEntropyLossFlat()], ids=['torch','function','fastai'])
def test_losses_of_torch_have_a_softmax_too(dls, small, loss_func):
    learn = student(dls, loss_func=loss_func)
    close(predict(dict(a=learn)).probs['a'], direct(learn.model, dls.valid)[0])

def test_a_module_that_returns_probabilities():
    p = torch.tensor([[.2,.8],[.6,.4]])
    close(as_probs(p, nn.Linear(2, 2)), p)
    close(as_probs(p.log(), nn.Linear(2, 2)), p)

def test_a_table_is_predicted_as_it_is():
    df = pd.DataFrame(dict(x=np.arange(40.), y=['ab'[i%2] for i in range(40)]))
    tab = TabularDataLoaders.from_df(df, '.', procs=[Normalize], cont_names=['x'], y_names='y', y_block=CategoryBlock(),
                                     valid_idx=range(25,40), bs=8)
    learn = tabular_learner(tab, layers=[4], metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    seen = predict(dict(a=learn, b=learn))
    want,targs = learn.get_preds()
    close(seen.probs['b'], want)
    assert torch.equal(seen.targs, targs.flatten().as_subclass(Tensor)) and seen.names == ['a','b']

# tasks and data that do not fit

def vector_images(*targets, loss_func=CrossEntropyLossFlat()):
    "A learner for random images with these targets"
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ds = Datasets(range(20), [[lambda i: TensorImage(x[i])], *targets], n_inp=1, splits=[range(10),range(10,20)])
    learn = Learner(ds.dataloaders(bs=5, num_workers=0), cnn(4, n_out=3), loss_func=loss_func)
    learn.remove_cb(ProgressCallback)
    return learn

def multi_label(): return vector_images([lambda i: TensorMultiCategory([i%2, 1, i%3==0]).float()], loss_func=BCEWithLogitsLossFlat())

@pytest.mark.parametrize('plot', [plot_calibration, lambda o, **kw: plot_confusion_change(o, o, **kw)], ids=['calibration','confusion'])
def test_what_cannot_be_drawn(dls, small, plot):
    unlabelled = small.dls.test_dl(dls.valid_ds.items)
    with pytest.raises(ValueError, match='`dl` has no labels: create it with'): plot(small, dl=unlabelled)
    with pytest.raises(ValueError, match=r'single label per item.*predictions and targets are \(2, 3\) and \(2, 3\)'): plot(multi_label())
    with pytest.raises(TypeError, match='`dl` is a DataLoaders: pass a fastai `DataLoader`'): plot(small, dl=dls)
    with pytest.raises(ValueError, match='`dl` is None, but no model is a `Learner`'): plot(small.model)
    with pytest.raises(TypeError, match="'resnet18' is a str: pass a `Learner`"): plot('resnet18')
    several = vector_images([lambda i: i%3, Categorize([0,1,2])], [lambda i: i%2, Categorize([0,1])])
    with pytest.raises(ValueError, match='predictions and targets are .* and several'): plot(several)

def test_regression_and_unknown_losses(dls):
    learn = student(dls, loss_func=MSELossFlat())
    with pytest.raises(ValueError, match="with the loss function MSELoss, the predictions don't add up to 1"): predict(dict(a=learn))
    with pytest.raises(ValueError, match=r'a: this plot is for tasks with a single label.*\(2, 1\)'): predict(dict(a=student(dls, n_out=1)))

def test_items_that_a_learner_cannot_read(dls, small):
    class Strict(Transform):
        def encodes(self, x:PILImage):
            if x.size != (16,16): raise ValueError('not 16 pixels wide')
            return x
    block = DataBlock((ImageBlock,CategoryBlock), getters=[ItemGetter(0),ItemGetter(1)], item_tfms=Strict())
    other = block.dataloaders([(np.zeros((16,16,3), np.uint8), 'abc'[i%3]) for i in range(12)], bs=4, num_workers=0)
    with pytest.raises(ValueError, match='items that the transforms of a learner can.t read'):
        predict(dict(a=student(other)), image_dls(size=20).valid)

def test_names_of_models(small, large):
    assert list(as_models({'s':[small, large], 't':large})) == ['s 1','s 2','t'] and list(as_models(small)) == ['model']
    with pytest.raises(ValueError, match='`models` is empty'): as_models({})

def test_items_without_a_label_do_not_count(small):
    seen = predict(dict(a=small))
    targs = seen.targs.clone()
    targs[::2] = -1
    probs,ys = labelled(seen._replace(targs=targs))
    assert torch.equal(ys, seen.targs[1::2]) and torch.equal(probs['a'], seen.probs['a'][1::2])
    with pytest.raises(ValueError, match='`dl` has no labels'): labelled(seen._replace(targs=torch.full_like(targs, -1)))

# calibration

def by_hand(probs, targs, n_bins):
    "Confidence, accuracy and number of items of the bins that are not empty, and the ECE"
    conf,right = probs.max(1).values.double().numpy(),(probs.argmax(1)==targs).numpy()
    which = np.minimum((conf*n_bins).astype(int), n_bins-1)
    rows = [(conf[which==b].mean(), right[which==b].mean(), (which==b).sum(), b) for b in range(n_bins) if (which==b).any()]
    return rows,sum(n*abs(c-a) for c,a,n,_ in rows)/len(targs)

@pytest.mark.parametrize('n_bins', [4,15])
def test_reliability_diagrams(dls, small, large, n_bins):
    ax = plot_calibration(dict(small=small, large=large.model), n_bins=n_bins)
    counts, = ax.child_axes
    assert ax.lines[0].get_xydata().tolist() == [[0,0],[1,1]]
    for i,(k,o) in enumerate(dict(small=small, large=large).items()):
        rows,e = by_hand(*direct(o.model, dls.valid), n_bins)
        np.testing.assert_allclose(ax.lines[i+1].get_xydata(), [r[:2] for r in rows], atol=1e-6)
        assert ax.lines[i+1].get_label() == f'{k}: ECE {100*e:.1f} %'
        bars = counts.containers[i]
        heights = dict(enumerate(b.get_height() for b in bars))
        assert len(bars) == n_bins and {b: n for b,n in heights.items() if n} == {r[3]: r[2] for r in rows}
        for b,bar in enumerate(bars): assert b/n_bins <= bar.get_x() and bar.get_x()+bar.get_width() <= (b+1)/n_bins
    texts = ax.get_ylabel(),counts.get_xlabel(),counts.get_ylabel(),ax.get_title()
    assert texts == ('accuracy','confidence','items','Reliability, 50 items')
    assert [o.get_text() for o in ax.get_legend().get_texts()] == [o.get_label() for o in ax.lines]
    check_layout(ax.figure)

def test_calibration_of_seeds_on_own_axes(small, large):
    own = plt.figure().add_subplot()
    ax = plot_calibration({'student': [small, large]}, ax=own)
    assert ax is own and [o.get_label().split(':')[0] for o in ax.lines[1:]] == ['student 1','student 2']

# confusion

def test_confusion_change_is_the_difference_of_sklearns_matrices(dls, small, large):
    ax = plot_confusion_change(small, large)
    (p,y),(q,_) = (direct(o.model, dls.valid) for o in (small,large))
    a,b = (skm.confusion_matrix(y, o.argmax(1), labels=range(3), normalize='true') for o in (p,q))
    im, = ax.images
    close(im.get_array(), 100*(b-a))
    assert np.abs(100*(b-a)).max() > 1 and -im.norm.vmin == im.norm.vmax == np.abs(im.get_array()).max()
    def number(v): return (f'{v:+.1f}' if abs(v) < 9.95 else f'{v:+.0f}').replace('-', '−')
    want = sorted((j, i, number(100*(b-a)[i,j])) for i,j in zip(*np.nonzero(np.abs(b-a) > 5e-4)))
    assert sorted((*o.get_position(), o.get_text()) for o in ax.texts) == want
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('predicted class','true class')
    accs = [f'{100*skm.accuracy_score(y, o.argmax(1)):.1f} %' for o in (p,q)]
    assert ax.get_title() == f'After minus before\naccuracy {accs[0]} → {accs[1]}, 50 items'
    for f in (ax.get_xticklabels, ax.get_yticklabels): assert [o.get_text() for o in f()] == ['a','b','c']
    assert ax.figure.axes[-1].get_ylabel() == 'change (percentage points of the true class)'
    check_layout(ax.figure)

class Columns(nn.Module):
    "Logits that are columns of the input"
    def __init__(self, *cols):
        super().__init__()
        self.cols = list(cols)
    def forward(self, x): return x[:,self.cols]

def test_the_scale_of_a_one_sided_change_is_symmetric():
    "Half of the predictions for each class move from both wrong classes to the right one"
    y = torch.arange(12)%3
    right,wrong = F.one_hot(y, 3).float(),F.one_hot((y+1+torch.arange(12)//3%2)%3, 3).float()
    x = torch.cat([right*5, torch.where(torch.arange(12)[:,None] < 6, wrong, right)*5], 1)
    dl = TfmdDL(Datasets(range(12), [[lambda i: x[i]], [lambda i: int(y[i]), Categorize([0,1,2])]]), bs=5)
    im, = plot_confusion_change(Columns(3,4,5), Columns(0,1,2), dl).images
    close(im.get_array(), 75*np.eye(3) - 25*np.ones((3,3)))
    assert (im.norm.vmin, im.norm.vmax) == (-50,50)

@pytest.mark.parametrize('dark', [False,True])
def test_no_change_has_the_colour_of_the_background(small, large, dark):
    with style(dark): ax = plot_confusion_change(small, large)
    im, = ax.images
    np.testing.assert_allclose(im.cmap(im.norm(0.)), ax.get_facecolor(), atol=.01)
    rise,fall = np.array(im.cmap(1.)),np.array(im.cmap(0.))
    assert rise[2] > rise[0] and fall[0] > fall[2]  # blue and red

def test_equal_models_change_nothing(small):
    ax = plot_confusion_change(small, small.model)
    assert not ax.images[0].get_array().any() and not ax.texts and ax.images[0].norm.vmax == 1

def test_rows_of_classes_without_items_are_missing():
    m = confusion(torch.tensor([[.9,.1,0],[.2,.8,0]]), torch.tensor([0,0]))
    np.testing.assert_array_equal(m, [[.5,.5,0],[np.nan]*3,[np.nan]*3])

def test_many_classes_with_long_names(dls):
    names = [f'Speed limit {i} km/h in residential areas at night' for i in range(10,42)]
    data = image_dls(names, n=150)
    ax = plot_confusion_change(*[student(data, n_out=32, seed=i) for i in (1,2)])
    labels = [o.get_text() for o in ax.get_yticklabels()]
    assert len(labels) == 32 and all(len(o) == 40 and o[0] == 'S' and o.endswith('at night') for o in labels)
    assert not ax.texts and len(ax.lines) == 1  # no numbers, but the diagonal
    check_layout(ax.figure)

@pytest.mark.parametrize('n', [5,12,40])
def test_short_names_are_kept_and_long_ones_lose_their_middle(n):
    s = 'abcdefghijklmnop'
    got = shorten(s, n)
    assert len(got) <= n and (got == s if n >= 16 else '…' in got and got[0] == 'a' and got[-1] == 'p')
