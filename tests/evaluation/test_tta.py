"`fastkd.evaluation.tta` on 12-pixel images: equality with `Learner.tta`, one decode per image, masks, metrics, errors, nothing left behind"
import multiprocessing as mp, warnings
from functools import partial

import matplotlib
matplotlib.use('agg')
import numpy as np, pandas as pd, pytest, sklearn.metrics as skm, torch
from fastai.vision.all import *
from fastai.metrics import ActivationType
from fastcore.test import test_eq as eq, test_close as close

from fastkd.evaluation.masks import agreement, class_mask
from fastkd.evaluation.scoring import metric_value
from fastkd.evaluation.tta import test_time_aug, TTAEvaluator

for nm in [o for o in globals() if o == 'test' or o.startswith('test_') and o != 'test_time_aug']:
    del globals()[nm]  # fastcore's, not tests

n_valid = 15
opened = mp.get_context('fork').Value('i', 0)  # shared with the workers of data loaders

class CountedImage(PILImage):
    "An image that counts how often one is decoded"
    @classmethod
    def create(cls, fn, **kwargs):
        with opened.get_lock(): opened.value += 1
        return super().create(fn, **kwargs)

class Scribble(ItemTransform):
    "Writes into an image in place, in training only"
    split_idx,order = 0,-1
    def encodes(self, x):
        x[0].putpixel((5,5), (random.randint(0,255),0,0))
        return x

class SplitOpen(Transform):
    "A type transform that depends on the split"
    split_idx = 0
    def encodes(self, x:PILImage): return x.flip_lr()

class Noise(Transform):
    "A type transform that draws random numbers"
    order = 5
    def encodes(self, x:PILImage): return PILImage.create(np.array(x)//2 + np.random.randint(0, 99, dtype=np.uint8))

class StopAt(Callback):
    "Raises in the validation number `at`"
    def __init__(self, at): self.n,self.at = 0,at
    def before_validate(self):
        self.n += 1
        if self.n == self.at: raise RuntimeError('stopped')

class Record(Callback):
    "The passes of a learner"
    def before_fit(self): self.passes = []
    def before_validate(self): self.passes.append(self.learn.dl.dataset.split_idx)

@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path,rng = tmp_path_factory.mktemp('signs'),np.random.default_rng(0)
    for split,n in ('train',6),('valid',n_valid//3):
        for k,name in enumerate(['bend','stop','yield']):
            (path/split/name).mkdir(parents=True)
            for i in range(n):
                im = rng.integers(0, 200, (14,12,3), dtype=np.uint8)
                im[...,k] += 55
                Image.fromarray(im).save(path/split/name/f'{i}.png')
    return path

@pytest.fixture(autouse=True, scope='module')
def one_thread():
    "On images this small, threads cost more than they give"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)

def cnn(n_out):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out))

def get_learn(path, num_workers=0, blocks=None, get_y=parent_label, metrics=accuracy, item_tfms=(), **kwargs):
    set_seed(3)
    block = DataBlock(blocks or (ImageBlock(CountedImage), CategoryBlock), get_items=get_image_files, get_y=get_y,
                      splitter=GrandparentSplitter(), item_tfms=[RandomResizedCrop(12, min_scale=.5), *item_tfms],
                      batch_tfms=aug_transforms(max_warp=0.))
    dls = block.dataloaders(path, bs=8, num_workers=num_workers, device='cpu')
    learn = Learner(dls, cnn(dls.c), metrics=metrics, path=path, **kwargs)
    learn.remove_cb(ProgressCallback)
    with torch.no_grad(): learn.model[-1].weight *= 9
    return learn

@pytest.fixture
def learn(path): return get_learn(path)

def files(path): return get_image_files(path/'valid').sorted()
def labels(path): return [['bend','stop','yield'].index(o.parent.name) for o in files(path)]

def confidence(preds, targs): return preds[range_of(targs),targs].mean()

def tta(learn, seed, n, **kwargs):
    set_seed(seed)
    return learn.tta(n=n, **kwargs)

def same(a, b): return all(torch.equal(o, p) for o,p in zip(a, b)) and len(a) == len(b)

# equality with Learner.tta

@pytest.mark.parametrize('num_workers, ks', [(0,range(1,7)),(2,(1,3))])
def test_preds_equal_tta_for_every_n(path, num_workers, ks):
    learn = get_learn(path, num_workers)
    want = [tta(learn, 7, k) for k in ks]
    assert not torch.equal(want[0][0], want[1][0])
    ev = TTAEvaluator(learn, seed=7)
    ev.preds(2)  # with more passes to come
    for k,w in reversed([*zip(ks, want)]): assert same(ev.preds(k), w)
    set_seed(7)
    ev = TTAEvaluator(learn)
    for k,w in reversed([*zip(ks, want)]): assert same(ev.preds(k), w)

def test_preds_in_order_of_dataset_and_labels(learn):
    plain,targs = learn.get_preds()
    assert same(TTAEvaluator(learn).preds(0), (plain,targs))
    eq(targs.tolist(), [learn.dls.vocab.o2i[o.parent.name] for o in learn.dls.valid_ds.items])

def test_unseeded_first_run_leaves_the_rng_where_tta_does(learn):
    for seed in range(4):  # several, since streams one draw apart often meet again in the crops' rejection sampling
        tta(learn, seed, 1)
        want = random.getstate(),torch.get_rng_state()
        set_seed(seed)
        TTAEvaluator(learn).preds(1)
        eq((random.getstate(),torch.get_rng_state()), want)

def test_asking_for_more_passes_continues_the_stream(learn):
    ev = TTAEvaluator(learn, seed=7)
    ev.preds(0); ev.preds(2)
    set_seed(99)
    assert same(ev.preds(5), tta(learn, 7, 5))
    set_seed(7)
    ev = TTAEvaluator(learn)
    ev.preds(1)
    random.random(); torch.rand(3)
    assert same(ev.preds(4), tta(learn, 7, 4))

def test_use_max_and_beta_as_tta(learn):
    for kw in dict(use_max=True),dict(beta=.6),dict(beta=0.):
        assert same(TTAEvaluator(learn, seed=7, **kw).preds(3), tta(learn, 7, 3, **kw))

@pytest.mark.parametrize('with_labels', [True,False])
def test_a_given_dl_as_tta(learn, path, with_labels):
    dl = learn.dls.test_dl(files(path)[2:9], with_labels=with_labels)
    ds = dl.dataset
    want = tta(learn, 7, 3, dl=dl)
    got = TTAEvaluator(learn, dl, seed=7).preds(3)
    assert torch.equal(got[0], want[0])
    if with_labels: eq(got[1].tolist(), labels(path)[2:9])
    else: assert got[1] is None and want[1] is None
    assert dl.dataset is ds

def test_the_training_dl_as_tta(learn):
    dl = learn.dls.train
    assert same(TTAEvaluator(learn, dl, seed=7).preds(2), tta(learn, 7, 2, dl=dl))

def test_a_dl_made_by_hand_that_knows_no_types_yet(learn):
    valid = learn.dls.valid
    new = lambda: TfmdDL(learn.dls.valid_ds, bs=4, num_workers=0, after_item=valid.after_item, after_batch=valid.after_batch)
    ev = TTAEvaluator(learn, dl := new(), seed=7)
    ev.preds(1)
    dl.new()  # the first `new` makes a trial pass, with random numbers
    assert same(ev.preds(3), tta(learn, 7, 3, dl=dl))

def test_a_loaded_learner_as_the_exported_one(path):
    learn = get_learn(path, blocks=(ImageBlock, CategoryBlock))
    learn.export('tta.pkl')
    loaded = load_learner(path/'tta.pkl')
    dl = loaded.dls.test_dl(files(path), num_workers=0)
    want = tta(learn, 7, 2, dl=learn.dls.test_dl(files(path)))
    assert torch.equal(TTAEvaluator(loaded, dl, labels(path), seed=7).preds(2)[0], want[0])
    with pytest.raises(ValueError, match='test_dl'): TTAEvaluator(loaded)

def test_decoding_that_writes_in_place_does_not_spoil_the_cache(path):
    learn = get_learn(path, item_tfms=[Scribble()])
    ev = TTAEvaluator(learn, seed=7)
    assert same(ev.preds(3), tta(learn, 7, 3))
    assert len(ev.passes.loader.items) == n_valid

def test_tensors_of_the_cache_are_clones(path):
    class Zero(ItemTransform):
        split_idx = 0
        def encodes(self, x):
            x[0].zero_()
            return x
    x = torch.rand(6, 4)
    ds = Datasets(range_of(x), [[lambda i: x[i].clone()], [lambda i: i%2, Categorize([0,1])]], splits=[[0,1,2],[3,4,5]])
    dls = ds.dataloaders(bs=2, after_item=Zero(), num_workers=0, device='cpu')
    learn = Learner(dls, nn.Linear(4, 2), loss_func=CrossEntropyLossFlat(), cbs=[], metrics=accuracy)
    learn.remove_cb(ProgressCallback)
    ev = TTAEvaluator(learn, seed=7)
    assert same(ev.preds(2), tta(learn, 7, 2)) and len(ev.passes.loader.items) == 3

@pytest.mark.parametrize('tfm', [SplitOpen,Noise])
def test_decoding_that_differs_each_time_is_not_cached(path, tfm):
    block = TransformBlock(type_tfms=[CountedImage.create, tfm()], item_tfms=ToTensor, batch_tfms=IntToFloatTensor)
    learn = get_learn(path, blocks=(block, CategoryBlock))
    ev = TTAEvaluator(learn, seed=7)
    assert same(ev.preds(2), tta(learn, 7, 2))
    eq(ev.passes.loader.items, {})

# passes and decodes

@pytest.mark.parametrize('num_workers', [0,2])
def test_a_curve_to_30_makes_31_passes_and_decodes_each_image_once(path, num_workers):
    learn = get_learn(path, num_workers, cbs=Record())
    ev,learn.record.passes = TTAEvaluator(learn, seed=7),[]
    ns,opened.value = ([0,5,10,20,30] if num_workers == 0 else [0,2]),0
    df = ev.curve(ns)
    eq(learn.record.passes, [0]*max(ns) + [1])
    eq(opened.value, n_valid)
    eq(list(df.columns), ['n_aug', 'accuracy', 'time'])
    eq(df.n_aug.tolist(), ns)
    assert (df.time > 0).all() and df.time.is_monotonic_increasing
    ev.curve([0, max(ns)+1])
    eq(learn.record.passes, [0])
    eq(opened.value, n_valid)

def test_curve_scores_equal_tta(learn):
    df = TTAEvaluator(learn, seed=7).curve([4,0,1], [accuracy, confidence])
    for i,k in (0,4),(2,1):
        preds,targs = tta(learn, 7, k)
        close(df.accuracy[i], skm.accuracy_score(targs, preds.argmax(1)))
        eq(df.confidence[i], confidence(preds, targs).item())
    close(df.accuracy[1], learn.validate()[1])

def test_time_is_that_of_decoding_the_first_n_passes_and_the_plain_one(learn):
    ev = TTAEvaluator(learn)
    ev.preds(2)
    passes = ev.passes
    passes.loader.seconds = 100.
    passes.plain = passes.plain._replace(seconds=10.)
    passes.aug = [o._replace(seconds=s) for o,s in zip(passes.aug, [1.,2.])]
    eq(ev.curve([0,1,2]).time.tolist(), [110.,111.,113.])

def test_max_cache_bounds_the_decoded_items_and_warns(learn):
    want = tta(learn, 7, 2)
    size = 14*12*4
    with pytest.warns(UserWarning, match='max_cache'):
        ev = TTAEvaluator(learn, seed=7, max_cache=7.5*size/2**30)
        assert same(ev.preds(2), want)
    assert 4 <= len(ev.passes.loader.items) <= 7
    opened.value = 0
    ev = TTAEvaluator(learn, seed=7, max_cache=0)
    assert same(ev.preds(2), want)
    eq(opened.value, 3*n_valid)

def test_decoding_in_the_main_thread(learn):
    ev = TTAEvaluator(learn, seed=7, threads=0)
    assert same(ev.preds(2), tta(learn, 7, 2)) and len(ev.passes.loader.items) == n_valid

def test_the_memo_is_dropped_when_weights_or_buffers_change(learn):
    ev = TTAEvaluator(learn, seed=7)
    old = ev.preds(2)[0]
    with learn.no_logging(): learn.fit(1, 1e-2)
    assert not torch.equal(ev.preds(2)[0], old) and same(ev.preds(2), tta(learn, 7, 2))
    learn.model[2].running_mean.data += 1  # neither a parameter, nor seen by autograd's version counter
    assert same(ev.preds(2), tta(learn, 7, 2))
    learn.model[-1].weight.data = learn.model[-1].weight.data[[1,0,2]]  # the same sum
    assert same(ev.preds(2), tta(learn, 7, 2))

def test_results_are_not_views_of_the_memo(learn):
    ev = TTAEvaluator(learn, seed=7)
    want = [ev.preds(n)[0].clone() for n in (0,1)]
    targs = ev.preds(0)[1].clone()
    for n in 0,1:
        for o in ev.preds(n): o.zero_()
    eq([ev.preds(n)[0] for n in (0,1)], want)
    eq(ev.preds(0)[1], targs)

# random numbers, exceptions, callbacks

def test_a_seed_leaves_the_global_rng_alone(learn):
    def draw(): return random.random(),np.random.rand(),torch.rand(1).item()
    set_seed(5); want = draw()
    set_seed(5)
    ev = TTAEvaluator(learn, classes='stop', seed=7)
    ev.preds(2); ev.curve([0,4])
    eq(draw(), want)

def test_the_constructor_draws_no_random_numbers(learn):
    before = random.getstate(),torch.get_rng_state()
    TTAEvaluator(learn, learn.dls.train, classes='stop')
    eq(random.getstate(), before[0])
    eq(torch.get_rng_state(), before[1])

@pytest.mark.parametrize('seed', [None,7])
def test_an_exception_leaves_nothing_behind_and_the_run_resumes(path, seed):
    learn = get_learn(path)
    learn.add_cb(ProgressCallback())
    dl = learn.dls.test_dl(files(path), with_labels=True)
    dl.dataset.tls.map(lambda o: setattr(o.tfms, 'split_idx', 1))
    want = tta(learn, 7, 4, dl=dl)
    before,cbs,ds = dict(learn.__dict__),list(learn.cbs),dl.dataset
    stop = StopAt(3)
    learn.add_cb(stop)
    set_seed(7)
    state = random.getstate()
    ev = TTAEvaluator(learn, dl, seed=seed)
    with pytest.raises(RuntimeError, match='stopped'): ev.preds(4)
    if seed is not None: eq(random.getstate(), state)
    learn.remove_cb(stop)
    eq(list(learn.cbs), cbs)
    assert dl.dataset is ds and ds.split_idx == 1 and learn.dl is None
    eq({k for k in learn.__dict__ if k not in before}, set())
    for k in 'logger','create_mbar','loss_func','model': assert getattr(learn, k) is before[k]
    assert not hasattr(learn.progress, 'mbar') and not hasattr(learn, 'gather_preds')
    eq(len(ev.passes.aug), 2)
    assert same(ev.preds(4), want)

def test_a_corrupt_image_raises_and_the_next_call_starts_again(learn, path, tmp_path):
    (tmp_path/'a.png').write_text('no image')
    bad = learn.dls.test_dl(L(files(path)[:3]) + [tmp_path/'a.png'])
    ev = TTAEvaluator(learn, bad, seed=7)
    with pytest.raises(Exception, match='a.png'): ev.preds(1)
    (tmp_path/'a.png').write_bytes(files(path)[0].read_bytes())
    assert torch.equal(ev.preds(1)[0], tta(learn, 7, 1, dl=bad)[0])
    eq(len(ev.passes.loader.items), 4)

def test_loggers_trackers_and_graphs_stay_silent(path):
    learn = get_learn(path)
    with learn.no_logging(): learn.fit(1, 1e-2, cbs=[SaveModelCallback(fname='best')])
    learn.add_cbs([CSVLogger(), SaveModelCallback(fname='best')])
    (path/'history.csv').write_text('kept')
    with torch.no_grad(): learn.model[-1].bias += 1
    bias = learn.model[-1].bias.clone()
    ev = TTAEvaluator(learn, seed=7)
    ev.preds(1)
    eq((path/'history.csv').read_text(), 'kept')  # `tta` itself empties the file
    eq(learn.model[-1].bias, bias)                 # `tta` itself loads the best model

def test_progress_bar_over_the_passes_unless_no_bar(path, capsys):
    learn = get_learn(path)
    learn.add_cb(ProgressCallback())
    capsys.readouterr()
    TTAEvaluator(learn).preds(2)
    out = capsys.readouterr().out
    assert 'Epoch' in out and 'train_loss' not in out
    with learn.no_bar(): TTAEvaluator(learn).preds(2)
    eq(capsys.readouterr().out.strip(), '')

# rows and columns

vocab = ['bend','stop','yield']

@pytest.mark.parametrize('y', [[0,2,1,1], np.array([0,2,1,1]), tensor([0,2,1,1]), L(0,2,1,1), pd.Series([0,2,1,1], index=[9,8,7,6])],
                         ids=['list','array','tensor','L','series'])
def test_class_mask_of_names_and_indexes(y):
    eq(class_mask(y, ['stop','bend'], vocab).tolist(), [True,False,True,True])
    eq(class_mask(y, 'stop', vocab, invert=True).tolist(), [True,True,False,False])
    eq(class_mask(y, [2], vocab).tolist(), [False,True,False,False])
    eq(class_mask(y, np.int64(2), None).tolist(), [False,True,False,False])
    assert class_mask(y, tensor([0,1]), vocab).dtype == torch.bool

def test_class_mask_takes_integers_for_names_where_the_vocab_holds_integers():
    eq(class_mask([0,1,2], 10, [30,10,0]).tolist(), [False,True,False])
    eq(class_mask([0,1,2], 0, [30,10,0]).tolist(), [False,False,True])
    with pytest.raises(ValueError, match='not in the vocabulary'): class_mask([0,1,2], 1, [30,10,0])

@pytest.mark.parametrize('y, classes, msg', [
    ([0,1], 'yeild', r"'yeild'.*\['yield'\]"), ([0,1], ['stop','xxxxx'], r"'xxxxx'.*'bend'"),
    ([0,1], 3, '3, which is not'), ([0,1], -1, '-1, which is not'),
    ([0,1], 'yield', 'None of the 2 items is left'), ([0,1], [], '`classes` is empty'),
    ([[0,1]], 'stop', r'shape \(1, 2\)'), (['stop'], 'stop', 'o2i')])
def test_class_mask_errors(y, classes, msg):
    with pytest.raises(ValueError, match=msg): class_mask(y, classes, vocab)

def test_class_mask_inverted_to_nothing():
    with pytest.raises(ValueError, match='None of the 2 items is left: all are'): class_mask([0,1], ['stop','bend'], vocab, invert=True)

@pytest.mark.parametrize('kw, keep', [
    (dict(classes='stop'), [1]), (dict(classes='stop', invert=True), [0,2]), (dict(classes=[0,2]), [0,2])])
def test_rows_of_classes(learn, path, kw, keep):
    rows = torch.isin(tensor(labels(path)), tensor(keep))
    preds,targs = tta(learn, 7, 2, dl=learn.dls.test_dl(files(path), with_labels=True))
    want = preds[rows],targs[rows]
    labelled,bare = learn.dls.test_dl(files(path), with_labels=True),learn.dls.test_dl(files(path))
    assert same(TTAEvaluator(learn, labelled, seed=7, **kw).preds(2), want)
    assert same(TTAEvaluator(learn, bare, labels(path), seed=7, **kw).preds(2), want)
    df = TTAEvaluator(learn, bare, labels(path), seed=7, **kw).curve([2])
    close(df.accuracy[0], skm.accuracy_score(want[1], want[0].argmax(1)))

def test_mask_of_rows_alone_and_with_classes(learn, path):
    y,rows = tensor(labels(path)),torch.arange(n_valid)%2 == 0
    dl = learn.dls.test_dl(files(path), with_labels=True)
    eq(TTAEvaluator(learn, dl, mask=rows.numpy()).preds(0)[1], y[rows])
    eq(TTAEvaluator(learn, dl, mask=rows.tolist(), classes='yield', invert=True).preds(0)[1], y[rows & (y != 2)])
    eq(len(TTAEvaluator(learn, learn.dls.test_dl(files(path)), mask=rows).preds(0)[0]), rows.sum())

def test_columns_are_renormalised_and_others_zero(learn):
    plain = learn.get_preds()[0]
    preds,targs = TTAEvaluator(learn, pred_classes=['yield','bend']).preds(0)
    close(preds[:,[0,2]], plain[:,[0,2]]/plain[:,[0,2]].sum(1, keepdim=True))
    eq(preds[:,1], torch.zeros(n_valid))
    eq(len(targs), n_valid)

def test_columns_that_the_model_rules_out_are_alike_not_nan(learn):
    with torch.no_grad(): learn.model[-1].bias += tensor([0,1e4,0])
    eq(TTAEvaluator(learn, pred_classes=['yield','bend']).preds(0)[0], tensor([.5,0,.5]).repeat(n_valid, 1))

def test_columns_of_a_multi_label_model_are_not_renormalised(path):
    learn = multi_learn(path)
    plain = learn.get_preds()[0]
    preds = TTAEvaluator(learn, pred_classes=['stop']).preds(0)[0]
    eq(preds[:,1], plain[:,1])
    eq(preds[:,[0,2]].sum(), 0)

def test_columns_need_probabilities(learn):
    learn.loss_func = nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match='CrossEntropyLossFlat'): TTAEvaluator(learn, pred_classes='stop').preds(0)

# metrics

def multi_learn(path, metrics=accuracy_multi):
    get_y = lambda o: ['bend','yield'] if o.parent.name == 'bend' else [o.parent.name]
    return get_learn(path, metrics=metrics, blocks=(ImageBlock(CountedImage), MultiCategoryBlock), get_y=get_y)

def test_metrics_of_the_learner_and_their_names(path):
    metrics = [accuracy, error_rate, partial(top_k_accuracy, k=2), ValueMetric(lambda: 1, 'kd_loss'), F1Score(average='macro')]
    ev = TTAEvaluator(get_learn(path, metrics=metrics), seed=7)
    df,(preds,targs) = ev.curve(2),ev.preds(2)
    eq(list(df.columns), ['n_aug','accuracy','error_rate','top_k_accuracy','f1_score','time'])
    acc = skm.accuracy_score(targs, preds.argmax(1))
    top2,f1 = skm.top_k_accuracy_score(targs, preds, k=2),skm.f1_score(targs, preds.argmax(1), average='macro')
    close(df.iloc[0].tolist()[1:-1], [acc, 1-acc, top2, f1])

def test_metrics_with_one_name_stay_apart(learn):
    df = TTAEvaluator(learn).curve(0, [F1Score(average='macro'), F1Score(average='micro'), accuracy])
    eq(list(df.columns), ['n_aug','f1_score','f1_score#2','accuracy','time'])

def test_plain_functions_get_the_probabilities_of_tta(learn):
    seen = []
    class Called:
        def __call__(self, preds, targs):
            seen.append((preds,targs))
            return preds.max()
    df = TTAEvaluator(learn, seed=7).curve(3, Called())
    assert same(seen[0], tta(learn, 7, 3))
    eq(list(df.columns), ['n_aug','Called','time'])

def test_a_metric_class_and_a_metric_with_a_state(learn):
    class Wrong(Metric):
        def reset(self): self.n = 0
        def accumulate(self, learn): self.n += (learn.pred.argmax(1) != learn.y).sum()
        @property
        def value(self): return self.n
    ev = TTAEvaluator(learn, seed=7)
    preds,targs = ev.preds(2)
    own = Wrong()
    for m in Wrong,own: eq(ev.curve(2, m).wrong[0], (preds.argmax(1) != targs).sum().item())
    assert not hasattr(own, 'n')

def test_softmax_is_not_applied_twice():
    p,t = torch.rand(40, 3)**4,torch.arange(40)%3
    p /= p.sum(1, keepdim=True)
    p2,t2 = torch.rand(40, 2)**4,torch.arange(40)%2
    p2 /= p2.sum(1, keepdim=True)
    p2[0] = tensor([1.,0.])
    norm = p.double()/p.double().sum(1, keepdim=True)
    close(metric_value(RocAuc(), p, t), skm.roc_auc_score(t, norm, multi_class='ovr'), 1e-9)
    brier = skm_to_fastai(skm.brier_score_loss, activation=ActivationType.BinarySoftmax)
    close(metric_value(brier, p2, t2), skm.brier_score_loss(t2, p2[:,1]), 1e-6)

def test_ranking_of_tiny_probabilities_survives_roc_auc():
    p = tensor([1e-12,2e-12,3e-12,4e-12])
    eq(metric_value(RocAucBinary(), torch.stack([1-p,p], 1), tensor([0,0,1,1])), 1.)
    eq(metric_value(RocAucMulti(), torch.stack([p,p], 1), tensor([[0,0],[0,0],[1,1],[1,1]])), 1.)

def test_sigmoid_is_not_applied_twice(path):
    metrics = [accuracy_multi, partial(accuracy_multi, thresh=.3), F1ScoreMulti(thresh=.3), RocAucMulti()]
    ev = TTAEvaluator(multi_learn(path, metrics=metrics), seed=7)
    df,(p,t) = ev.curve(2),ev.preds(2)
    assert (p < .5).any()
    hit = lambda thresh: ((p > thresh) == t.bool()).float().mean().item()
    close(df.iloc[0].tolist()[1:-1], [hit(.5), hit(.3), skm.f1_score(t, p >= .3, average='macro'), skm.roc_auc_score(t, p)], 1e-6)

def test_logits_of_a_loss_without_activation_get_the_metrics_activation(path):
    learn = multi_learn(path)
    learn.loss_func = nn.BCEWithLogitsLoss()
    df = TTAEvaluator(learn).curve(0, [accuracy_multi, F1ScoreMulti()])
    logits,t = learn.get_preds()
    assert (logits < 0).any()
    acc = ((logits > 0) == t.bool()).float().mean().item()
    close(df.iloc[0].tolist()[1:-1], [acc, skm.f1_score(t, logits >= 0, average='macro')], 1e-6)

def test_metric_that_is_no_number(learn):
    with pytest.raises(ValueError, match=r'F1Score.*AccumMetric.*F1Score\(\)'): TTAEvaluator(learn).curve(0, F1Score)

# errors

@pytest.mark.parametrize('kw, msg', [
    (dict(classes='stopp'), r"\['stop'\]"), (dict(pred_classes='stopp'), r"`pred_classes` has 'stopp'"),
    (dict(classes=[]), '`classes` is empty'), (dict(invert=True), '`invert`'),
    (dict(y_true=[0,1]), '`y_true` has 2 entries, but `dl` has 15'), (dict(y_true=[3]*15), 'goes from 3 to 3'),
    (dict(y_true=[0]*15, classes='stop'), 'None of the 15'),
    (dict(mask=[False]*15), '`mask` is False everywhere'), (dict(mask=[True]*3), r'`mask` has shape \(3,\)'),
    (dict(mask=[1]*15), 'not booleans'),
    (dict(mask=[True]+[False]*14, y_true=[0]+[1]*14, classes='stop'), 'both in `mask`'),
    (dict(beta=None), '`beta`'), (dict(beta=2), '`beta`'), (dict(max_cache=-1), '`max_cache`')])
def test_errors_come_in_the_constructor(learn, kw, msg):
    opened.value = 0
    with pytest.raises(ValueError, match=msg): TTAEvaluator(learn, **kw)
    eq(opened.value, 0)

@pytest.mark.parametrize('n', [-1, 1.5, '3', True, None])
def test_number_of_augmentations_must_be_a_count(learn, n):
    with pytest.raises(ValueError, match='number of augmentations is'): TTAEvaluator(learn).curve([0,n])
    with pytest.raises(ValueError, match='number of augmentations is'): TTAEvaluator(learn).preds(n)

def test_curve_without_numbers_metrics_or_labels(learn, path):
    opened.value = 0
    with pytest.raises(ValueError, match='`n_augs` is empty'): TTAEvaluator(learn).curve([])
    bare = TTAEvaluator(learn, learn.dls.test_dl(files(path)))
    with pytest.raises(ValueError, match='needs labels'): bare.curve([0])
    with pytest.raises(ValueError, match='needs labels'): TTAEvaluator(learn, learn.dls.test_dl(files(path)), classes='stop')
    with pytest.raises(ValueError, match='no metric'): TTAEvaluator(learn).curve([0], ValueMetric(lambda: 1, 'kd'))
    with pytest.raises(ValueError, match="'accuracy'"): TTAEvaluator(learn).curve([0], 'accuracy')
    learn.metrics = None
    with pytest.raises(ValueError, match='no metric'): TTAEvaluator(learn).curve([0])
    eq(opened.value, 0)

def test_a_dl_without_fastai_datasets(learn):
    with pytest.raises(TypeError, match='test_dl'): TTAEvaluator(learn, torch.utils.data.DataLoader([1,2]))

def test_classes_the_model_lacks(learn):
    ev = TTAEvaluator(learn, pred_classes=[0,2])
    ev.cols = [5]
    with pytest.raises(ValueError, match='has class 5, but the model predicts 3'): ev.preds(0)

# the shorter ways

@pytest.mark.parametrize('as_', [list,np.array,tensor])
def test_test_time_aug_columns_and_scores(learn, path, as_):
    y,dl = labels(path),learn.dls.test_dl(files(path))
    rows = class_mask(y, 'stop', learn.dls.vocab, invert=True)
    df = test_time_aug(learn, dl, as_(y), F1Score(average='weighted'), n_augs=[0,3], beta=.1, mask=rows, seed=7)
    eq(list(df.columns), ['n_aug','score','time'])
    preds,_ = tta(learn, 7, 3, dl=dl, beta=.1)
    close(df.score[1], skm.f1_score(tensor(y)[rows], preds[rows].argmax(1), average='weighted'))
    for kw in dict(),dict(beta=.6),dict(use_max=True):
        df = test_time_aug(learn, dl, y, confidence, [1], **kw, seed=7)
        eq(df.score[0], confidence(tta(learn, 7, 1, dl=dl, **{'beta': .1, **kw})[0], y).item())

def test_test_time_aug_errors(learn, path):
    dl,y = learn.dls.test_dl(files(path)),labels(path)
    bad = (dict(mask=[False]*n_valid), 'False everywhere'),(dict(mask=[True]), 'has shape'),(dict(n_augs=[-1]), 'augmentations is -1')
    for kw,msg in bad:
        with pytest.raises(ValueError, match=msg): test_time_aug(learn, dl, y, accuracy, **kw)
    for m in None,[accuracy,error_rate]:
        with pytest.raises(ValueError, match='`metric`'): test_time_aug(learn, dl, y, m)

def test_test_time_aug_is_no_test_of_pytest(): assert test_time_aug.__test__ is False

def test_plot_shows_scores_left_and_seconds_right(learn):
    ev = TTAEvaluator(learn, seed=7)
    ax,right = ev.plot([2,0,1], [accuracy, F1Score(average='macro')])
    df = ev.curve([0,1,2])
    eq([o.get_label() for o in ax.lines], ['accuracy','f1_score'])
    eq(ax.lines[0].get_xydata(), df[['n_aug','accuracy']].to_numpy())
    eq(right.lines[0].get_ydata(), df.time.to_numpy())
    eq([o.get_text() for o in right.get_legend().get_texts()], ['accuracy','f1_score','time (right axis)'])
    plt.close('all')

def test_agreement_counts_items_and_positions():
    a,b = tensor([[3.,1.,0.],[0.,2.,1.],[1.,0.,5.],[9.,0.,1.]]),tensor([[.5,.3,.2],[.1,.1,.8],[.1,.2,.7],[.4,.35,.25]])
    eq(agreement(a, b), .75)
    eq(agreement(a.T[None], b.T[None]), .75)
    for x,y in (a,b[:2]),(a[0],b[0]),(a[:0],b[:0]):
        with pytest.raises(ValueError, match='shape'): agreement(x, y)
