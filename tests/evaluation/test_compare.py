"`fastkd.evaluation.compare`: costs against published figures, columns against scikit-learn and torchmetrics, every task, errors"
import io, pickle, random, warnings
from functools import partial

import numpy as np, pandas as pd, pytest, sklearn.metrics as skm, torchmetrics.classification as tmc, torchvision
from fastai.tabular.all import *
from fastai.vision.all import *
from scipy import stats
from torch.utils.data import Dataset, TensorDataset

from fastkd.evaluation.compare import Comparison, compare, flops, latency_ms, latency_quartiles, n_parameters, size_mb
from helpers import cnn, image_dls, n_hooks, same_state, seeded, state, student, trained_teacher

def close(a, b, eps=1e-9): np.testing.assert_allclose(a, b, rtol=0, atol=eps)

def quiet(learn):
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

quick = partial(compare, latency=(), n_boot=20)

def fails(msg, models, *args, call=quick, **kwargs):
    "The comparison raises a ValueError with this message"
    with pytest.raises(ValueError, match=msg): call(models, *args, **kwargs)

weighted = partial(skm.f1_score, average='weighted')

@pytest.fixture(scope='module')
def dls(): return image_dls(n=150)

@pytest.fixture(scope='module')
def teacher(dls): return quiet(trained_teacher(dls, 8, 16, epochs=3))

@pytest.fixture(scope='module')
def students(dls):
    res = [student(dls, seed=i) for i in range(3)]
    for o in res: o.fit(2, 1e-2)
    return res

@pytest.fixture(scope='module')
def preds(teacher, students): return [o.get_preds() for o in (teacher, *students)]

# what a model costs

@pytest.mark.parametrize('name, gmacs, params', [
    ('resnet18', 1.82, 11_689_512), ('resnet50', 4.09, 25_557_032), ('mobilenet_v2', .30, 3_504_872)])
def test_published_figures(name, gmacs, params):
    net = getattr(torchvision.models, name)(weights=None)
    n = flops(net, torch.zeros(1,3,224,224))
    close(n/2e9, gmacs, .02*gmacs)  # FLOPs are two per MAC
    assert n_parameters(net) == params
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    assert size_mb(net) == len(file.getvalue())/1e6

def test_flops_are_per_item_whatever_the_batch():
    net = cnn(4, 8)
    macs = 8*8*4*3*9 + 4*4*8*4*9 + 8*3  # two stride-2 convolutions of a 16-pixel image, and the head
    for b in 1, 2, 7: assert flops(net, torch.zeros(b,3,16,16)) == 2*macs

@pytest.mark.parametrize('cls, gates', [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_count(cls, gates):
    mkldnn,cudnn = torch.backends.mkldnn.enabled,torch.backends.cudnn.enabled
    assert flops(cls(10, 20, batch_first=True), torch.zeros(2,7,10)) == 2*7*gates*20*(10+20)
    assert (torch.backends.mkldnn.enabled,torch.backends.cudnn.enabled) == (mkldnn,cudnn)

def test_attention_counts_where_pytorch_has_a_fused_path():
    L,D,H = 5,16,32
    layer = nn.TransformerEncoderLayer(D, 2, H, batch_first=True)
    assert flops(layer, torch.zeros(2,L,D)) == 2*(L*4*D*D + 2*L*L*D + L*2*D*H)
    assert torch.backends.mha.get_fastpath_enabled()

def test_attention_counts_on_any_device():
    q = torch.zeros(2,4,5,8)
    class Attend(nn.Module):
        def forward(self, x): return F.scaled_dot_product_attention(x, x, x)
    assert flops(Attend(), q) == 2*2*4*5*5*8
    assert torch.backends.cuda.flash_sdp_enabled()

def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(3, 4),nn.Linear(5, 4)
        def forward(self, x, y): return self.a(x)+self.b(y)
    assert flops(Two(), (torch.zeros(6,3),torch.zeros(6,5))) == 2*(12+20)
    assert latency_ms(Two(), (torch.zeros(6,3),torch.zeros(6,5)), n=2) > 0

def test_shared_parameters_count_once():
    lin = nn.Linear(4, 4)
    assert n_parameters(nn.Sequential(lin, lin)) == 20

class Sleepy(nn.Module):
    "A model that records the mode and the batch of each call"
    def __init__(self):
        super().__init__()
        self.drop,self.calls = nn.Dropout(),[]
    def forward(self, x):
        self.calls.append((self.training, torch.is_grad_enabled(), len(x)))
        torch.rand(1)
        return self.drop(x)

def test_latency_is_of_warm_runs_in_eval_mode():
    net = Sleepy()
    state = torch.get_rng_state()
    low,mid,high = latency_quartiles(net, torch.zeros(3,2), n=8)
    assert net.calls == [(False,False,3)]*13 and 0 < low <= mid <= high
    assert net.training and net.drop.training and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match='`n` is 0'): latency_ms(net, torch.zeros(3,2), n=0)

def test_latency_is_the_median_of_the_runs_that_count(monkeypatch):
    clock = iter(np.cumsum([0,9,0,9,0,9,0,9,0,9, 0,.001,0,.002,0,.004,0,.008]))
    monkeypatch.setattr('fastkd.evaluation.compare.time.perf_counter', lambda: next(clock))
    close(latency_quartiles(nn.Identity(), torch.zeros(1), n=4), np.quantile([1,2,4,8], [.25,.5,.75]), 1e-6)

# the columns

def test_columns_are_those_of_independent_implementations(teacher, students, preds):
    res = compare({'teacher': teacher, 'student': students[0]}, metrics=[accuracy, weighted, skm.roc_auc_score], latency=(1,3), n_boot=50)
    assert list(res.columns) == ['parameters','flops','size_mb','latency_ms_1','latency_ms_3', 'accuracy','accuracy_low','accuracy_high',
        'f1_score','f1_score_low','f1_score_high', 'roc_auc_score','roc_auc_score_low','roc_auc_score_high',
        'agreement','mcnemar_p','ece','nll']
    assert list(res.index) == ['teacher','student'] and res.metrics == ['accuracy','f1_score','roc_auc_score']
    (pt,y),(ps,_) = preds[:2]
    for nm,p,learn in ('teacher',pt,teacher),('student',ps,students[0]):
        row = res.loc[nm]
        close([row.accuracy, row.f1_score], [skm.accuracy_score(y, p.argmax(1)), weighted(y, p.argmax(1))], 1e-6)
        assert row.f1_score == weighted(y, p.argmax(1))
        close(row.roc_auc_score, skm.roc_auc_score(y, p, multi_class='ovr'))
        close([row.ece, row.nll], [tmc.MulticlassCalibrationError(3, 15)(p, y).item(), skm.log_loss(y, p.numpy())], 1e-6)
        assert row.parameters == sum(o.numel() for o in learn.model.parameters()) and row.size_mb == size_mb(learn.model)
        assert row.flops == flops(learn.model, torch.zeros(1,3,16,16))
        for m in res.metrics: assert row[f'{m}_low'] <= row[m] <= row[f'{m}_high']
    a,b = ps.argmax(1) == y,pt.argmax(1) == y
    close(res.agreement['student'], (ps.argmax(1) == pt.argmax(1)).float().mean(), 1e-6)
    only = int((a & ~b).sum()),int((b & ~a).sum())
    close(res.mcnemar_p['student'], stats.binomtest(only[0], sum(only)).pvalue)
    assert res.agreement['teacher'] == 1 and np.isnan(res.mcnemar_p['teacher'])
    assert (res.n_items,res.reference) == (len(y),'teacher')

def test_interval_of_the_accuracy(teacher, students, preds):
    res = compare({'s': students[0]}, latency=(), n_boot=400, seed=3)
    p,y = preds[1]
    right = (p.argmax(1) == y).numpy()
    rng = np.random.default_rng(3)
    vals = [right[rng.integers(len(y), size=len(y))].mean() for _ in range(400)]
    close([res.accuracy_low['s'], res.accuracy_high['s']], np.quantile(vals, [.025,.975]), 1e-6)
    lows = [quick({'s': students[0]}, metrics=skm.log_loss, seed=i).log_loss_low['s'] for i in (0,0,1)]
    assert lows[0] == lows[1] != lows[2]

def test_no_intervals_and_no_latencies(students):
    res = compare({'s': students[0]}, latency=None, n_boot=0)
    assert np.isnan(res.accuracy_low['s']) and not [c for c in res if c.startswith('latency')] and not len(res.latency)
    assert ' [' not in res.shown()['accuracy [95 %]'].iloc[0]

def test_latencies_have_quartiles_and_batches_larger_than_the_data(students, monkeypatch):
    seen = []
    def fake(model, x, n=30, bar=False):
        seen.append(x[0].shape)
        return 1.,2.,4.+len(x[0])
    monkeypatch.setattr('fastkd.evaluation.compare.latency_quartiles', fake)
    res = compare({'a': students[0], 'b': students[1]}, latency=(1,40), n_boot=0)
    assert seen == [(1,3,16,16),(40,3,16,16)]*2
    assert res.latency.loc[('b',40)].tolist() == [1,2,44] and list(res.latency.columns) == ['low','median','high']
    assert (res.latency_ms_40 == 2).all()

def test_per_class(teacher, students, preds):
    res = quick({'t': teacher, 's': students[0]}, reference='s')
    (pt,y),(ps,_) = preds[:2]
    rt,rs = [skm.recall_score(y, p.argmax(1), average=None) for p in (pt,ps)]
    assert list(res.per_class.columns) == ['n','t','s','t_change'] and list(res.per_class.index) == ['a','b','c']
    close(res.per_class.t, rt)
    close(res.per_class.t_change, rt-rs)
    assert res.per_class.n.tolist() == np.bincount(y).tolist() and res.reference == 's'

def test_lists_are_means_over_seeds(teacher, students, preds):
    res = quick({'t': teacher, 's': students}, metrics=[accuracy, weighted])
    (pt,y),*rest = preds
    accs = [skm.accuracy_score(y, p.argmax(1)) for p,_ in rest]
    row = res.loc['s']
    close([row.accuracy, row.accuracy_sd], [np.mean(accs), np.std(accs, ddof=1)], 1e-6)
    close(row.f1_score, np.mean([weighted(y, p.argmax(1)) for p,_ in rest]))
    close(row.agreement, np.mean([(p.argmax(1) == pt.argmax(1)).float().mean() for p,_ in rest]), 1e-6)
    close(row.nll, np.mean([skm.log_loss(y, p.numpy()) for p,_ in rest]), 1e-6)
    assert np.isnan([row.accuracy_low, row.mcnemar_p, res.loc['t'].accuracy_sd]).all()
    close(res.per_class.s, np.mean([skm.recall_score(y, p.argmax(1), average=None) for p,_ in rest], axis=0))

def test_lists_of_the_reference_are_compared_pair_by_pair(students, preds):
    p1,p2,p3 = [p.argmax(1) for p,_ in preds[1:]]
    res = quick({'a': students[:2], 'b': [students[2],students[0]], 'c': students[1]})
    agree = lambda a,b: (a == b).float().mean().item()
    close(res.agreement, [1, (agree(p1,p3)+agree(p2,p1))/2, (agree(p1,p2)+1)/2], 1e-6)

def test_a_list_of_one_is_a_single_model(students):
    a,b = quick({'s': students[:1]}),quick({'s': students[0]})
    pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b))

def test_a_module_is_its_learner(teacher, students):
    res = quick({'t': teacher, 'learner': students[0], 'module': students[0].model}, metrics=[accuracy, skm.log_loss])
    pd.testing.assert_series_equal(res.loc['learner'], res.loc['module'], check_names=False)

def test_modules_alone_need_data_and_metrics(students, dls):
    net,res = students[0].model,quick({'s': students[0]})
    alone = quick({'net': net}, dls.valid, metrics=accuracy)
    pd.testing.assert_series_equal(alone.loc['net'], res.loc['s'], check_names=False)  # integer targets: a softmax
    fails('`metrics` is None, but no model is a `Learner`', {'net': net}, dls.valid)
    fails(r"`dl` is None, but there is no validation set for `models\['net'\]`", {'net': net}, metrics=accuracy)

def test_a_module_without_parameters(teacher, dls):
    "A baseline: the nearest of the classes' mean images"
    class Nearest(nn.Module):
        def __init__(self, means):
            super().__init__()
            self.register_buffer('means', means)
        def forward(self, x): return -torch.cdist(x.flatten(1).as_subclass(Tensor), self.means)
    x,y = (torch.cat(o).as_subclass(Tensor) for o in zip(*dls.valid))
    near = Nearest(torch.stack([x[y==c].mean(0).flatten() for c in range(3)]))
    res = quick({'t': teacher, 'near': near})
    close(res.accuracy['near'], (near(x).argmax(1) == y).float().mean().item())
    assert res.parameters['near'] == 0 and res.size_mb['near'] > 0

def test_a_module_that_returns_a_dict(students):
    class Dict(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
        def forward(self, x): return dict(out=self.net(x), aux=None)
    res = quick({'s': students[0], 'dict': Dict(students[0].model)})
    close(res.loc['s'].drop(['size_mb','mcnemar_p']), res.loc['dict'].drop(['size_mb','mcnemar_p']))
    assert res.mcnemar_p['dict'] == 1

def test_own_data_of_each_learner(dls, students):
    "Models with other sizes and normalisation, whose validation sets hold the same items"
    big = image_dls(n=150, item_tfms=Resize(24), batch_tfms=Normalize.from_stats(*imagenet_stats))
    other = student(big)
    res = quick({'s': students[0], 'big': other})
    close(res.accuracy['big'], other.validate()[1], 1e-6)
    assert res.flops['big'] > res.flops['s']

def test_other_data(teacher, dls):
    dl = dls.test_dl(dls.train_ds.items[:40], with_labels=True)
    res = quick({'t': teacher}, dl)
    close(res.accuracy['t'], teacher.validate(dl=dl)[1], 1e-6)
    assert res.n_items == 40
    shuffled = quick({'t': teacher, 'same': teacher}, dls.train)  # shuffled, without the last batch: all items in their order
    assert shuffled.n_items == len(dls.train_ds) and shuffled.agreement['same'] == 1

def test_metrics_of_every_library(teacher, preds):
    p,y = preds[0]
    m = tmc.MulticlassF1Score(3, average='macro')
    res = quick({'t': teacher}, metrics=[F1Score(average='macro'), partial(skm.f1_score, average='macro'), m])
    close(res.loc['t', ['f1_score','f1_score#2','MulticlassF1Score']].astype(float), skm.f1_score(y, p.argmax(1), average='macro'), 1e-6)
    assert not m.update_called

def test_a_metric_with_the_name_of_a_column(teacher):
    def ece(preds, targs): return tensor(.5)
    res = quick({'t': teacher}, metrics=ece)
    assert res['ece#2'].tolist() == [.5] and res.ece['t'] < .5 and res.metrics == ['ece#2']

def test_a_rare_class_leaves_an_interval(dls, teacher):
    "Resamples without one of the classes are left out, quietly"
    def picky(preds, targs):
        if len(targs.unique()) < 3: raise ValueError('a class is missing')
        return preds.max(1).values.mean()
    items = [o for o in dls.valid_ds.items if o[1] != 'c'] + [next(o for o in dls.valid_ds.items if o[1] == 'c')]
    with warnings.catch_warnings():
        warnings.simplefilter('error', skm.UndefinedMetricWarning if hasattr(skm, 'UndefinedMetricWarning') else RuntimeWarning)
        mets = [skm.roc_auc_score, skm.log_loss, skm.average_precision_score, picky]
        res = quick({'t': teacher}, dls.test_dl(items, with_labels=True), metrics=mets)
    assert np.isfinite(res.loc['t', [f'{m}_{o}' for m in res.metrics for o in ('low','high')]].astype(float)).all()

# other tasks

def tensors_dls(x, y, bs=16):
    ds = TensorDataset(x, y)
    dls = DataLoaders(DataLoader(ds, bs=bs, shuffle=True), DataLoader(ds, bs=bs))
    dls.n_inp = 1
    return dls

def data(n=60, d=5, seed=0): return tensor(np.random.default_rng(seed).normal(size=(n,d))).float()

def learner(dls, net, loss_func, **kwargs): return quiet(Learner(dls, net, loss_func=loss_func, **kwargs))

@pytest.mark.parametrize('loss', [BCEWithLogitsLossFlat(), nn.BCEWithLogitsLoss()])
def test_multi_label(loss):
    x = data()
    y = (x[:,:3] + .5*data(d=3, seed=1) > .3).float()
    dls = tensors_dls(x, y)
    a,b = [learner(dls, seeded(nn.Linear, 5, 3, seed=i), loss) for i in range(2)]
    a.fit(4, .1)
    res = quick({'a': a, 'b': b, 'net': b.model}, metrics=[accuracy_multi, partial(skm.f1_score, average='macro'), skm.roc_auc_score])
    pa,pb = [o.model(x).sigmoid().detach() for o in (a,b)]
    close(res.f1_score, [skm.f1_score(y, p > .5, average='macro') for p in (pa,pb,pb)])
    close(res.accuracy_multi, [((p > .5) == y.bool()).float().mean() for p in (pa,pb,pb)], 1e-6)
    close(res.agreement['b'], ((pa > .5) == (pb > .5)).float().mean(), 1e-6)
    ra,rb = [((p > .5) == y.bool()).all(1) for p in (pa,pb)]
    only = int((rb & ~ra).sum()),int((ra & ~rb).sum())
    close(res.mcnemar_p['b'], stats.binomtest(only[0], sum(only)).pvalue)
    close(res.nll['b'], F.binary_cross_entropy(pb, y), 1e-6)
    close(res.ece['b'], tmc.BinaryCalibrationError(15)(pb.flatten(), y.flatten().int()), 1e-6)
    close(res.per_class.b, skm.f1_score(y, pb > .5, average=None))
    assert res.per_class.n.tolist() == y.sum(0).tolist() and list(res.per_class.index) == [0,1,2]

def test_one_sigmoid_is_two_classes():
    x = data()
    y = (x[:,:1] + .5*data(d=1, seed=1) > 0).float()
    dls = tensors_dls(x, y)
    a,b = [learner(dls, seeded(nn.Linear, 5, 1, seed=i), BCEWithLogitsLossFlat()) for i in range(2)]
    res = quick({'a': a, 'b': b}, metrics=[skm.accuracy_score, skm.roc_auc_score])
    pa,pb = [o.model(x).sigmoid().detach()[:,0] for o in (a,b)]
    close(res.accuracy_score['b'], skm.accuracy_score(y, pb > .5))
    close(res.roc_auc_score['b'], skm.roc_auc_score(y, pb))
    close(res.nll['b'], skm.log_loss(y, pb.numpy()), 1e-6)
    close(res.agreement['b'], ((pa > .5) == (pb > .5)).float().mean(), 1e-6)
    close(res.per_class.b, skm.recall_score(y, pb > .5, average=None, labels=[0,1]))

def test_regression():
    x = data()
    y = x[:,:1]*2 + x[:,1:2]
    dls = tensors_dls(x, y)
    a,b = [learner(dls, seeded(nn.Linear, 5, 1, seed=i), MSELossFlat(), metrics=mse) for i in range(2)]
    res = quick({'a': a, 'b': b, 'seeds': [a,b]}, metrics=[mse, skm.r2_score, skm.mean_absolute_error])
    p = b.model(x).detach()
    close([res.mse['b'], res.r2_score['b'], res.mean_absolute_error['b']], [F.mse_loss(p, y), skm.r2_score(y, p), (p-y).abs().mean()], 1e-5)
    assert res[['agreement','mcnemar_p','ece','nll']].isna().all().all() and not len(res.per_class)
    assert res.mse_low['b'] < res.mse['b'] < res.mse_high['b'] and '–' in repr(res)

@pytest.mark.parametrize('ignore', [-100, 255])
def test_segmentation(ignore):
    rng = np.random.default_rng(0)
    x = tensor(rng.normal(size=(12,3,6,6))).float()
    y = x.argmax(1)
    y[:,:2] = ignore
    dls = tensors_dls(x, y, 4)
    net = lambda seed: seeded(nn.Conv2d, 3, 3, 3, padding=1, seed=seed)
    a,b = [learner(dls, net(i), CrossEntropyLossFlat(axis=1, ignore_index=ignore)) for i in range(2)]
    def seg_acc(preds, targs): return (preds.argmax(1) == targs)[targs != ignore].float().mean()
    res = quick({'a': a, 'b': b}, metrics=seg_acc)
    pa,pb = [o.model(x).softmax(1).detach() for o in (a,b)]
    keep = y != ignore
    flat = pb.permute(0,2,3,1)[keep]
    close(res.seg_acc['b'], (flat.argmax(1) == y[keep]).float().mean(), 1e-6)
    close(res.nll['b'], skm.log_loss(y[keep], flat.numpy()), 1e-6)
    close(res.ece['b'], tmc.MulticlassCalibrationError(3, 15)(flat, y[keep]), 1e-6)
    close(res.agreement['b'], (pa.argmax(1) == pb.argmax(1)).float().mean(), 1e-6)
    close(res.per_class.b, skm.recall_score(y[keep], flat.argmax(1), average=None))
    assert np.isnan(res.mcnemar_p['b']) and res.n_items == 12 and res.per_class.n.sum() == keep.sum()

def test_tabular_targets_have_a_column():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(colour=rng.choice(['r','g','b'], 90), x=rng.normal(size=90), label=rng.choice(['no','yes'], 90)))
    splits = list(range(60)),list(range(60,90))
    dls = TabularPandas(df, [Categorify,Normalize], ['colour'], ['x'], 'label', y_block=CategoryBlock(), splits=splits).dataloaders(bs=16)
    a,b = [quiet(seeded(tabular_learner, dls, layers=[4], metrics=accuracy, seed=i)) for i in range(2)]
    res = compare({'a': a, 'b': b, 'net': b.model}, metrics=[accuracy, skm.roc_auc_score], latency=(2,), n_boot=10)
    p,y = b.get_preds()
    close(res.roc_auc_score['b'], skm.roc_auc_score(y, p[:,1]))
    close(res.accuracy, [o.validate()[1] for o in (a,b,b)], 1e-6)
    assert list(res.per_class.index) == ['no','yes'] and res.agreement['net'] == res.agreement['b'] and res.n_items == 30

def test_a_text_classifier_counts_its_recurrent_layers():
    from fastai.text.all import AWD_LSTM, TextBlock, awd_lstm_clas_config, text_classifier_learner
    df = pd.DataFrame(dict(text=['a b c d e']*10 + ['c d e f g']*10, label=['x']*10 + ['y']*10))
    blocks = TextBlock.from_df('text', seq_len=8, min_freq=1),CategoryBlock
    block = DataBlock(blocks, get_x=ColReader('text'), get_y=ColReader('label'), splitter=IndexSplitter(range(5,15)))
    dls = block.dataloaders(df, bs=4, seq_len=8, n_workers=1)
    config = dict(awd_lstm_clas_config, emb_sz=6, n_hid=8, n_layers=1, output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=0.)
    learn = quiet(text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False, metrics=accuracy))
    res = quick({'lstm': learn})
    steps = len(dls.valid.one_batch()[0][0])
    assert res.flops['lstm'] >= 2*steps*4*6*(6+6) and list(res.per_class.index) == ['x','y']  # its only layer has 6 units
    close(res.accuracy['lstm'], learn.validate()[1], 1e-6)

# it shows itself

@pytest.fixture(scope='module')
def shown(teacher, students): return compare({'teacher': teacher, 'a <b>': students[0], 'seeds': students}, latency=(1,), n_boot=20)

def test_text_has_units_and_intervals(shown):
    text = repr(shown)
    for o in ('parameters','FLOPs per item','size (MB)','latency, batch of 1 (ms)','accuracy [95 %]','agreement with teacher',
              'McNemar p against teacher','ECE','NLL (nats)','50 items','half a multiply-add (MAC)','standard deviation over the learners'):
        assert o in text, o
    row = shown.loc['a <b>']
    assert f"{row.accuracy:.4f} [{row.accuracy_low:.4f}, {row.accuracy_high:.4f}]" in text
    assert f"{shown.accuracy['seeds']:.4f} ± {shown.accuracy_sd['seeds']:.4f}" in text
    assert all(len(o) < 140 for o in text.splitlines()[:-1])

def test_html_has_the_same_and_escapes_names(shown):
    page = shown._repr_html_()
    renamed = shown.copy()
    renamed.reference = 'a <b>'
    assert '<b>' not in renamed._repr_html_()
    assert 'a &lt;b&gt;' in page and '<b>' not in page and 'latency, batch of 1 (ms)' in page and page.count('<tr') == 4
    assert not re.search(r'\bnan\b', page, re.I)

def test_it_is_a_frame_that_keeps_what_it_knows(shown):
    for o in shown[['flops','ece']], shown.sort_values('flops'), shown.head(2), shown.copy(), pickle.loads(pickle.dumps(shown)):
        assert isinstance(o, Comparison) and o.reference == 'teacher' and o.metrics == ['accuracy'] and len(o.latency) == 3
        assert str(o) and o._repr_html_()
    assert type(shown.ece) is pd.Series and shown.parameters.dtype == int
    for o in shown.T, Comparison(dict(x=[1,2])), shown.iloc[:0]: assert str(o) and o._repr_html_()

# nothing is left behind

def test_models_and_learners_are_only_read(dls, teacher, students):
    net = cnn(4)
    net[0].eval()
    learn = student(dls, cbs=CSVLogger(fname='never'))
    learn.model.train()
    learn.model[0].eval()
    models = teacher.model,learn.model,net
    flags,states = [[m.training for m in o.modules()] for o in models],[state(o) for o in models]
    before = list(learn.cbs),learn.dls,learn.loss_func,list(learn.metrics),[list(o) for o in teacher.recorder.values],dls.valid,learn.model
    set_seed(5)
    rng = random.getstate(),np.random.get_state()[1].copy(),torch.get_rng_state()
    compare({'t': teacher, 'l': learn, 'n': net}, metrics=[accuracy, weighted], latency=(1,), n_boot=5)
    assert random.getstate() == rng[0] and (np.random.get_state()[1] == rng[1]).all() and torch.equal(torch.get_rng_state(), rng[2])
    assert [[m.training for m in o.modules()] for o in models] == flags
    assert all(same_state(state(o), s) for o,s in zip(models, states)) and not sum(map(n_hooks, models))
    now = list(learn.cbs),learn.dls,learn.loss_func,list(learn.metrics),[list(o) for o in teacher.recorder.values],dls.valid,learn.model
    assert all(a is b if not isinstance(a, list) else a == b for a,b in zip(before, now))
    assert not Path('never').exists() and not (learn.path/'never').exists()

def test_the_recorder_keeps_the_training(dls):
    learn = student(dls)
    learn.fit(2, 1e-2)
    rec = learn.recorder
    before = {k: list(getattr(rec, k)) for k in ('values','losses','iters','lrs','metric_names')}
    quick({'l': learn, 'n': cnn(4)}, metrics=accuracy)
    assert {k: list(getattr(rec, k)) for k in before} == before and len(before['values']) == 2

def test_a_learner_reads_dl_with_its_own_transforms():
    "The teacher gets its own images, 24 pixels wide and with another normalisation, also if `dl` is the student's"
    plain,other = image_dls(n=150),image_dls(n=150, item_tfms=Resize(24), batch_tfms=Normalize.from_stats([.2]*3, [.1]*3, cuda=False))
    large,small = quiet(trained_teacher(other, 8, 16, epochs=3)),student(plain)
    for dl in plain.valid,other.valid,plain.test_dl(plain.valid_ds.items, with_labels=True):
        df = quick({'large': large, 'small': small}, dl)
        close(df.accuracy['large'], large.validate()[1], 1e-6)
        close(df.accuracy['small'], small.validate()[1], 1e-6)
    xb = plain.valid.one_batch()[0]
    assert df.flops['small'] == flops(small.model, xb) and df.flops['large'] == flops(large.model, other.valid.one_batch()[0])

def test_what_is_put_aside_comes_back_after_an_error(dls):
    class Broken(Callback):
        def after_pred(self): raise RuntimeError('broken')
    learn = student(dls)
    loss = learn.loss_func
    learn.add_cb(Broken())
    learn.model.train()
    with pytest.raises(RuntimeError, match='broken'): quick({'l': learn})
    assert learn.loss_func is loss and learn.model.training and torch.backends.mha.get_fastpath_enabled()

# errors

def test_models_must_be_a_dict_of_models(teacher, students, dls):
    for models,msg in [
        ([teacher], 'is a list: give a dict of names and learners'), (teacher, 'is a Learner: give a dict'), ({}, '`models` is empty'),
        ({'a': []}, r"`models\['a'\]` is an empty list"), ({'a': 'resnet18'}, r"`models\['a'\]` holds a str: give a `Learner`"),
        ({'a': [teacher,teacher]}, 'holds the same model twice'), ({'a': [teacher,teacher.model]}, 'holds the same model twice'),
        ({'a': [teacher,students[0]]}, 'a list is for seeds of one architecture'),
        ({'a': students[:2], 'b': [*students]}, r"`models\['b'\]` has 3 learners, the reference 'a' has 2")]:
        with pytest.raises(ValueError, match=msg): quick(models)

@pytest.mark.parametrize('kw, msg', [
    (dict(reference='studnet'), "`reference` is 'studnet', which is not in `models`; did you mean 'student'"),
    (dict(latency=(1,0)), '`latency` has 0: give batch sizes'), (dict(latency='all'), "`latency` has 'a'"),
    (dict(n_boot=-1), '`n_boot` is -1'),
    (dict(metrics='accuracy'), "`metrics` has 'accuracy'"), (dict(metrics=skm.silhouette_score), 'silhouette_score takes'),
    (dict(metrics=[]), 'no metric')])
def test_arguments_are_checked_before_time_is_spent(teacher, students, monkeypatch, kw, msg):
    monkeypatch.setattr(Learner, 'get_preds', None)
    with pytest.raises(ValueError, match=msg): compare({'teacher': teacher, 'student': students[0]}, **kw)

def test_other_classes_or_tasks_are_noticed_before_predictions(dls, teacher, monkeypatch):
    monkeypatch.setattr(Learner, 'get_preds', None)
    all_at = dict(call=compare)  # with the default arguments
    other,turned = student(image_dls(vocab=('a','b','d'), n=150)),student(image_dls(vocab=('c','b','a'), n=150))
    fails(r"predicts the classes \['a', 'b', 'd'\], the reference 't' \['a', 'b', 'c'\]", {'t': teacher, 'o': other}, **all_at)
    fails('for the same classes, in the same order', {'t': teacher, 'o': turned}, **all_at)
    fails(r"`models\['o'\]` has 5 outputs for a single-label task, the reference 't' has 3", {'t': teacher, 'o': cnn(4, n_out=5)}, **all_at)
    x = data()
    reg = learner(tensors_dls(x, x[:,:1]), nn.Linear(5, 1), MSELossFlat(), metrics=mse)
    fails('for a multi-label or regression task', {'t': teacher, 'o': reg}, **all_at)
    flat = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1,-1)))
    fails(r"`models\['o'\]` doesn't fit the data", {'t': teacher, 'o': flat}, **all_at)

def test_losses_of_different_kinds():
    x = data()
    y = (x[:,:2] > 0).float()
    dls = tensors_dls(x, y)
    a,b = learner(dls, nn.Linear(5, 2), BCEWithLogitsLossFlat()),learner(dls, nn.Linear(5, 2), MSELossFlat())
    fails("'b' are for the task 'regression', those of 'a' for 'binary'", {'a': a, 'b': b}, metrics=mse)

def test_other_items(teacher, dls):
    fewer,mixed = student(image_dls(n=120)),student(image_dls(n=150, seed=1))
    fails(r"`models\['o'\]` have 40 items, those of 't' 50", {'t': teacher, 'o': fewer})
    items = mixed.dls.valid_ds.items
    mixed.dls.loaders[1] = mixed.dls.test_dl(items[1:]+items[:1], with_labels=True)
    fails("other targets than those of 't'", {'t': teacher, 'o': mixed})

def test_data_without_labels(teacher, students, dls):
    dl = dls.test_dl([x for x,_ in dls.valid_ds.items])
    for models in {'t': teacher}, {'net': students[0].model}:
        fails('the data has no labels', models, dl, metrics=accuracy)
    with pytest.raises(TypeError, match='`dl` is a list, not a fastai `DataLoader`'): quick({'t': teacher}, [1,2])
    fails('`dl` is empty', {'t': teacher}, DataLoader([], bs=4))

@pytest.mark.parametrize('net, y, loss', [
    (nn.Linear(5, 3), torch.arange(60) % 4 - 1, CrossEntropyLossFlat()),
    (nn.Linear(5, 2), torch.arange(120).reshape(60,2) % 3 - 1., BCEWithLogitsLossFlat())])
def test_items_without_a_label(net, y, loss):
    learn = learner(tensors_dls(data(), y), net, loss)
    fails('targets are -1, which means no label', {'a': learn}, metrics=accuracy)

def test_two_targets():
    class Two(Dataset):
        def __len__(self): return 20
        def __getitem__(self, i): return torch.zeros(5),tensor(i%3),tensor(i%2)
    dls = DataLoaders(*[DataLoader(Two(), bs=5) for _ in range(2)])
    dls.n_inp = 1
    fails('has 2 targets per item', {'a': learner(dls, nn.Linear(5, 3), CrossEntropyLossFlat())}, metrics=accuracy)

def test_a_model_that_has_diverged(dls, teacher):
    broken = student(dls)
    with torch.no_grad(): broken.model[-1].weight[0] = np.nan
    fails(r"`models\['s'\]` predicts nan for 50 of 50 items", {'t': teacher, 's': broken})

def test_a_metric_that_does_not_fit_says_so(teacher):
    fails('mean_squared_error needs values', {'t': teacher}, metrics=skm.mean_squared_error)
    fails("f1_score: Target is multiclass but average='binary'", {'t': teacher}, metrics=skm.f1_score)
