"Samples: in the layout of the data sets, the same each time, said to be samples, and neither too easy nor too hard"
import hashlib, random
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.data.external import fastai_cfg
from fastkd.data.cassava import cassava_dls
from fastkd.data.drawings import *
from fastkd.data.gtsrb import *
from fastkd.data.mhist import mhist_dls
from fastkd.data.mnist import mnist_dls
from fastkd.data.sample import sample

small = dict(mhist=60, cassava=200, mnist=300)

def digest(path): return {f.relative_to(path): hashlib.md5(f.read_bytes()).hexdigest() for f in path.rglob('*') if f.is_file()}

@pytest.mark.parametrize('name', small)
def test_the_same_each_time_and_another_with_another_seed(name, tmp_path):
    a,b,c = (sample(name, tmp_path/k, n=small[name], seed=s) for k,s in (('a',0),('b',0),('c',1)))
    assert digest(a) == digest(b)
    assert len(set(digest(a).values()) & set(digest(c).values())) < 2

@pytest.mark.parametrize('name', small)
def test_global_random_states_stay_and_do_not_matter(name, tmp_path):
    np.random.seed(5); random.seed(5); torch.manual_seed(5)
    before = random.getstate(),np.random.get_state()[1].tobytes(),torch.get_rng_state()
    a = sample(name, tmp_path/'a', n=small[name])
    assert before[:2] == (random.getstate(),np.random.get_state()[1].tobytes()) and before[2].equal(torch.get_rng_state())
    np.random.seed(6)
    assert digest(sample(name, tmp_path/'b', n=small[name])) == digest(a)

@pytest.mark.parametrize('name', small)
def test_readme_says_that_it_is_a_sample(name, tmp_path):
    text = (sample(name, tmp_path/'a', n=small[name])/'README.txt').read_text()
    assert 'This is a sample and not the data set' in text and f"sample('{name}', n={small[name]}, seed=0)" in text

def test_traffic_signs(tmp_path):
    path = sample('gtsrb', tmp_path/'a')
    data = gtsrb_dls(path, size=8, num_workers=0)
    assert [len(data.train_ds),len(data.valid_ds)] == [43*4*30,43*30]
    dl,y_true = gtsrb_test_dl(data, path)
    assert np.bincount(y_true).tolist() == [10]*43 and len(dl.items) == 430
    assert len(gtsrb_names(path)) == 43 and gtsrb_names(path)['14'] == 'Stop'
    sizes = [Image.open(path/'Final_Training'/'Images'/'00003'/f'00002_{f:05d}.ppm').size[0] for f in range(30)]
    assert sizes == sorted(sizes) and sizes[0] == 18 and sizes[-1] >= 32  # the car comes nearer
    df = pd.read_csv(path/'Final_Training'/'Images'/'00003'/'GT-00003.csv', sep=';')
    assert list(df) == ['Filename','Width','Height','Roi.X1','Roi.Y1','Roi.X2','Roi.Y2','ClassId'] and (df.Width[60:90] == sizes).all()

def test_histology(tmp_path):
    path = sample('mhist', tmp_path/'a', n=100)
    df = pd.read_csv(path/'annotations.csv')
    assert list(df) == ['Image Name','Majority Vote Label','Number of Annotators who Selected SSA (Out of 7)','Partition']
    votes = df.iloc[:,2]
    assert ((votes > 3) == (df['Majority Vote Label'] == 'SSA')).all() and votes.between(0, 7).all() and votes.between(2, 5).any()
    data = mhist_dls(path, size=8, num_workers=0)
    assert [len(data.train_ds),len(data.valid_ds)] == [69,31] and Image.open(path/'images'/df['Image Name'][0]).size == (224,224)

def test_cassava(tmp_path):
    path = sample('cassava', tmp_path/'a', n=200)
    data = cassava_dls(path, size=8, num_workers=0)
    assert [len(data.train_ds),len(data.valid_ds)] == [180,20]
    assert pd.read_csv(path/'train.csv').label.value_counts()[3] == 123  # 61 %
    assert sample('cassava', path, n=200) == path and (path/'validation_set.csv').exists()  # the split stays

def test_digits(tmp_path):
    data = mnist_dls(sample('mnist', tmp_path/'a'))
    assert [len(data.train_ds),len(data.valid_ds)] == [1540,257]
    x = np.stack([o for o,_ in data.train_ds.items])
    assert x.shape[1:] == (28,28) and x.max() > 200 and not x[:,:4].any() and not x[:,:,-4:].any()

def test_default_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(fastai_cfg().d, 'data', str(tmp_path))
    assert sample('mnist', n=200) == tmp_path/'mnist_sample_200_0' and sorted(o.name for o in tmp_path.iterdir()) == ['mnist_sample_200_0']

def test_other_files_are_not_overwritten(tmp_path):
    (tmp_path/'a').mkdir()
    assert sample('mnist', tmp_path/'a', n=200) == tmp_path/'a'  # an empty folder is taken
    with pytest.raises(FileExistsError, match='choose a new folder'): sample('mnist', tmp_path/'a', n=210)
    with pytest.raises(FileExistsError, match='choose a new folder'): sample('cassava', tmp_path/'a')
    (tmp_path/'b').touch()
    with pytest.raises(FileExistsError, match='choose a new folder'): sample('mnist', tmp_path/'b')

def test_an_interrupted_sample_is_written_anew(tmp_path, monkeypatch):
    import fastkd.data.sample as mod
    def stop(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(mod, '_write_idx', stop)
        with pytest.raises(KeyboardInterrupt): sample('mnist', tmp_path/'a', n=200)
    assert not (tmp_path/'a').exists()
    assert len(digest(sample('mnist', tmp_path/'a', n=200))) == 5

@pytest.mark.parametrize('args,msg', [
    (('cifar',), "name is 'cifar': choose from 'gtsrb', 'mhist', 'cassava', 'mnist'"), (('mnist',None,1798), 'n is 1798'),
                                      (('gtsrb',None,100), 'n is 100: choose from 6450'), (('mhist',None,0), 'n is 0')], ids=str)
def test_bad_arguments(args, msg):
    with pytest.raises(ValueError, match=msg): sample(*args)

def test_votes_are_doubtful_in_the_middle_only():
    rng = np.random.default_rng(0)
    v = lambda s: [votes(s, rng) for _ in range(200)]
    assert max(v(0)) < 4 and min(v(1.2)) > 3 and 50 < sum(o > 3 for o in v(.55)) < 150

def test_frames_of_a_track_are_alike_and_other_tracks_are_not():
    rng = np.random.default_rng(0)
    a,b = (np.stack(sign_track(14, [32]*5, rng)).astype(float).mean((1,2)) for _ in range(2))
    assert a.std(0).max() < abs(a.mean(0)-b.mean(0)).max()
