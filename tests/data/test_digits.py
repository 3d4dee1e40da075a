"The digits: what is held out, which images keep their label, and what becomes of the others"
import copy, subprocess, sys
import numpy as np, pytest, torch
from fastai.vision.all import CrossEntropyLossFlat, Learner, PILImageBW, get_c, nn
from fastkd.data.digits import *

def targets(ds): return torch.stack([*ds.tls[1]]).as_subclass(torch.Tensor)
def images(ds): return np.stack([x for x,_ in ds.items])
def counts(y): return torch.bincount(y[y>=0], minlength=10).tolist()

def net(): return nn.Sequential(nn.Flatten(), nn.Linear(256,10))

def test_split_is_stratified_and_without_overlap():
    dls = digits_dls()
    both = np.concatenate([images(dls.train_ds), images(dls.valid_ds)])
    assert len(both)==1797 and len(np.unique(both, axis=0))==1797
    share = np.array(counts(targets(dls.valid_ds)))/np.array(counts(torch.cat([targets(dls.train_ds), targets(dls.valid_ds)])))
    assert abs(share-.28).max() < .01

@pytest.mark.parametrize('kw', [dict(n_labelled=20), dict(n_labelled=20, unlabelled=False, bs=8), dict(seed=3), dict(repeat=2)], ids=str)
def test_held_out_images_never_change(kw):
    a,b = digits_dls(),digits_dls(**kw)
    assert (images(a.valid_ds)==images(b.valid_ds)).all() and (targets(a.valid_ds)==targets(b.valid_ds)).all()

def test_labels_belong_to_the_images():
    from sklearn.datasets import load_digits
    x,y = load_digits(return_X_y=True)
    label = {(o*15).astype(np.uint8).tobytes(): c for o,c in zip(x,y)}
    ds = digits_dls(n_labelled=200).train_ds
    assert all(t in (-1,label[o.tobytes()]) for o,t in zip(images(ds), targets(ds).tolist()))

@pytest.mark.parametrize('n', [10,37,100])
def test_labels_are_balanced_and_the_others_are_minus_1(n):
    y = targets(digits_dls(n_labelled=n).train_ds)
    assert (y>=0).sum()==n and (y==-1).sum()==1293-n and max(counts(y))-min(counts(y))<=1

def test_seed_picks_the_labels_and_small_picks_lie_in_large_ones():
    y = {(n,s): targets(digits_dls(n_labelled=n, seed=s).train_ds)>=0 for n,s in ((50,0),(50,1),(100,0))}
    assert (targets(digits_dls(n_labelled=50, seed=0).train_ds)>=0).equal(y[50,0])
    assert not y[50,0].equal(y[50,1])
    assert (y[100,0] | ~y[50,0]).all()

def test_left_out_images_are_gone_and_repeat_makes_the_epoch_as_long():
    alone,both = digits_dls(bs=32, n_labelled=100, unlabelled=False, repeat=13),digits_dls(bs=32, n_labelled=100)
    y = targets(alone.train_ds)
    assert counts(y)==[130]*10 and (y>=0).all() and len(np.unique(images(alone.train_ds), axis=0))==100
    assert len(alone.train)==len(both.train)==40

@pytest.mark.parametrize('n', [None,100])
def test_ten_classes_with_and_without_unlabelled_images(n):
    dls = digits_dls(n_labelled=n)
    assert list(dls.vocab)==[str(i) for i in range(10)] and get_c(dls)==10
    assert (targets(dls.valid_ds)>=0).all()

def test_batches_are_normalised_and_of_the_asked_size():
    xb,_ = digits_dls(bs=504, size=12).valid.one_batch()
    assert xb.shape==(504,1,12,12) and abs(xb.mean())<.2 and abs(xb.std()-1)<.2

def test_only_training_batches_are_augmented():
    dls = digits_dls()
    valid,train = dls.valid,dls.train.new(shuffle=False)
    assert valid.one_batch()[0].equal(valid.one_batch()[0])
    assert not train.one_batch()[0].equal(train.one_batch()[0])

def test_show_batch_titles_unlabelled_images():
    import matplotlib; matplotlib.use('agg')
    import matplotlib.pyplot as plt
    dls = digits_dls(n_labelled=600)
    dls.show_batch(dls.one_batch(), max_n=36)
    titles = {o.get_title() for o in plt.gcf().axes}; plt.close()
    assert 'unlabelled' in titles and titles-{'unlabelled',''} <= set(dls.vocab) and len(titles)>3

def test_default_loss_ignores_unlabelled_images():
    dls = digits_dls(n_labelled=600)
    learn = Learner(dls, net())
    xb,yb = dls.one_batch()
    k = yb>=0
    assert 0<k.sum()<64
    torch.testing.assert_close(learn.loss_func(learn.model(xb), yb), CrossEntropyLossFlat()(learn.model(xb[k]), yb[k]))

def test_deepcopy_keeps_the_targets():
    dls = digits_dls(n_labelled=100)
    assert targets(copy.deepcopy(dls).train_ds).equal(targets(dls.train_ds))

def test_export_loads_and_predicts_without_fastkd(tmp_path):
    learn = Learner(digits_dls(n_labelled=100), net())
    learn.export(tmp_path/'a.pkl')
    im = np.arange(64, dtype=np.uint8).reshape(8,8)*3
    with learn.no_bar(): want = learn.predict(im)
    src = f"""import sys; sys.modules['fastkd'] = sys.modules['fastkd.data'] = None
from fastai.vision.all import *
learn = load_learner({str(tmp_path/'a.pkl')!r})
with learn.no_bar(): print(learn.predict(np.arange(64, dtype=np.uint8).reshape(8,8)*3)[0], learn.dls.c)"""
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', src], capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    assert res.stdout.split()==[want[0],'10']

def test_predict_takes_arrays_and_images():
    learn = Learner(digits_dls(), net())
    im = np.arange(64, dtype=np.uint8).reshape(8,8)*3
    with learn.no_bar(): a,b = (learn.predict(o)[2] for o in (im, PILImageBW.create(im)))
    assert a.equal(b)

@pytest.mark.parametrize('kw,msg', [
    (dict(n_labelled=9), 'n_labelled is 9'), (dict(n_labelled=0), 'n_labelled is 0'), (dict(n_labelled=1294), 'to 1293'),
    (dict(bs=0), 'bs is 0'), (dict(bs=1294), 'bs is 1294'), (dict(n_labelled=50, unlabelled=False), '50 training images.*repeat'),
    (dict(size=4), 'size is 4'), (dict(repeat=0), 'repeat is 0')], ids=str)
def test_bad_arguments(kw, msg):
    with pytest.raises(ValueError, match=msg): digits_dls(**kw)

def test_unknown_label_raises():
    with pytest.raises(KeyError, match='unlabeled'): PartialCategorize(vocab=['a'], sort=False)('unlabeled')
