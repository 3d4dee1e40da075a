"MNIST: idx files, plain and gzipped, under all the names they have, and files that are no such thing"
import gzip, struct
import numpy as np, pytest, torch
from fastkd.data.mnist import *
import fastkd.data.mnist as mod

def idx(a, kind=8): return struct.pack('>BBBB', 0, 0, kind, a.ndim) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes()

def arrays(n, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n,28,28), dtype=np.uint8), np.arange(n, dtype=np.uint8)%10

def write(path, z=False, dot=False):
    "60 training and 20 test images"
    path.mkdir(parents=True, exist_ok=True)
    for name,n,seed in (('train',60,0),('t10k',20,1)):
        for kind,a in zip(('images-idx3-ubyte','labels-idx1-ubyte'), arrays(n, seed)):
            file = f"{name}-{kind.replace('-idx', '.idx') if dot else kind}" + ('.gz' if z else '')
            (path/file).write_bytes(gzip.compress(idx(a)) if z else idx(a))
    return path

@pytest.fixture
def path(tmp_path): return write(tmp_path)
def dls(path, **kw): return mnist_dls(path, **dict(bs=10)|kw)

@pytest.mark.parametrize('kw', [{}, dict(z=True), dict(dot=True), dict(z=True, dot=True)], ids=str)
@pytest.mark.parametrize('folder', ['.','raw','MNIST/raw'])
def test_files_under_all_their_names(tmp_path, kw, folder):
    write(tmp_path/folder, **kw)
    data = dls(tmp_path)
    (x,y),(xt,yt) = arrays(60, 0),arrays(20, 1)
    assert (np.stack([o for o,_ in data.train_ds.items]) == x).all() and [int(o) for _,o in data.train_ds.items] == y.tolist()
    assert (np.stack([o for o,_ in data.valid_ds.items]) == xt).all() and [int(o) for _,o in data.valid_ds.items] == yt.tolist()
    assert list(data.vocab) == [str(i) for i in range(10)]

def test_a_gzipped_file_without_the_ending(path):
    for f in path.iterdir(): f.write_bytes(gzip.compress(f.read_bytes()))
    assert len(dls(path).train_ds) == 60

def test_batches_are_normalised(path):
    xb,yb = dls(path).valid.one_batch()
    want = (torch.tensor(arrays(20, 1)[0][:10]).float()/255 - .131)/.308
    torch.testing.assert_close(torch.Tensor(xb.as_subclass(torch.Tensor))[:,0].cpu(), want, atol=1e-4, rtol=0)
    assert yb.tolist() == list(range(10)) and dls(path, size=14).one_batch()[0].shape == (10,1,14,14)

def test_a_share_of_the_training_images_is_held_out(path):
    data = dls(path, valid=.5)
    assert [len(data.train_ds),len(data.valid_ds)] == [30,30]
    assert sorted(int(y) for _,y in data.valid_ds.items) == sorted([*range(10)]*3)
    assert len(dls(path, n=40).train_ds) == 30 and len(dls(path, n=40).valid_ds) == 10

def test_shape_of_the_data_set(path):
    "28×28 is not asked for: Fashion-MNIST and others have the same files"
    (path/'train-images-idx3-ubyte').write_bytes(idx(np.zeros((60,12,10), np.uint8)))
    (path/'t10k-images-idx3-ubyte').write_bytes(idx(np.zeros((20,12,10), np.uint8)))
    assert dls(path, size=12).one_batch()[0].shape == (10,1,12,12)

@pytest.mark.parametrize('name,data,msg', [
    ('train-images-idx3-ubyte', idx(np.zeros(60, np.uint8)), 'of another kind, with type 8 and 1 dimensions; it must have type 8 .* and 3'),
    ('train-labels-idx1-ubyte', idx(np.zeros((60,28,28), np.uint8)), 'of another kind, with type 8 and 3 dimensions'),
    ('train-images-idx3-ubyte', idx(np.zeros((60,28,28), np.float32), 13), 'of another kind, with type 13'),
    ('train-images-idx3-ubyte', b'\x89PNG....', 'no idx file, it begins with'), ('train-images-idx3-ubyte', b'', 'no idx file'),
    ('train-images-idx3-ubyte', idx(np.zeros((60,28,28), np.uint8))[:-9], r'has 47031 bytes of data, and shape \(60, 28, 28\)'),
    ('train-images-idx3-ubyte', idx(np.zeros((60,28,28), np.uint8))[:9], 'and shape None'),
    ('train-images-idx3-ubyte', gzip.compress(idx(np.zeros((60,28,28), np.uint8)))[:-20], "can't be unpacked"),
    ('t10k-labels-idx1-ubyte', idx(np.zeros(19, np.uint8)), 'has 20 images, and .* has 19 labels'),
    ('t10k-labels-idx1-ubyte', idx(np.full(20, 26, np.uint8)), 'label 26 is unknown')], ids=range(10))
def test_files_of_another_kind(path, name, data, msg):
    (path/name).write_bytes(data)
    with pytest.raises(ValueError, match=msg) as e: dls(path)
    assert str(path/name) in str(e.value)

def test_missing_file(path):
    (path/'t10k-labels-idx1-ubyte').unlink()
    with pytest.raises(FileNotFoundError, match='no file t10k-labels-idx1-ubyte or .*gz in .*/raw: download train-images.* from https'):
        dls(path)
    with pytest.raises(FileNotFoundError, match='does not exist'): dls(path/'no')

@pytest.mark.parametrize('kw,msg', [(dict(valid='t10k'), "valid is 't10k'"), (dict(valid=0), 'valid is 0'),
    (dict(n=19), 'n is 19: choose from 20'), (dict(bs=61), 'bs is 61')], ids=str)
def test_bad_arguments(path, kw, msg):
    with pytest.raises(ValueError, match=msg): dls(path, **kw)

def test_download_asks_for_the_published_files(path, monkeypatch):
    asked = []
    monkeypatch.setattr(mod, 'fetch', lambda name,files: asked.extend(files) or path)
    assert len(mnist_dls(bs=10).train_ds) == 60
    assert [u.split('/')[-1] for u,_ in asked] == \
        [f'{p}-{k}.gz' for p in ('train','t10k') for k in ('images-idx3-ubyte','labels-idx1-ubyte')]
    assert all(len(md5) == 32 for _,md5 in asked)
