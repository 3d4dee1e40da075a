"Histology: the two partitions, a part of the training images held out, and what a broken folder is told"
import collections
import pandas as pd, pytest
from PIL import Image
from fastai.vision.all import Dihedral, Flip, Normalize
from fastkd.data.mhist import *

COLUMNS = ['Image Name','Majority Vote Label','Number of Annotators who Selected SSA (Out of 7)','Partition']

def write(path, n_train=40, n_test=20):
    "A quarter of the images are SSA; the partitions are mixed"
    (path/'images').mkdir(parents=True)
    rows = [(i, 'train' if i < n_train else 'test') for i in range(n_train+n_test)][::-1]
    rows = [[f'MHIST_{i:03d}.png', 'SSA' if i%4==0 else 'HP', 5 if i%4==0 else 2, p] for i,p in rows]
    for r in rows: Image.new('RGB', (8,8), (r[2]*30,0,0)).save(path/'images'/r[0])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path/'annotations.csv', index=False)
    return path

@pytest.fixture
def path(tmp_path): return write(tmp_path)
def dls(path, **kw): return mhist_dls(path, **dict(size=8, bs=4, num_workers=0)|kw)
def names(ds): return {f.stem for f,_ in ds.items}
def counts(ds): return dict(collections.Counter(y for _,y in ds.items))

def test_partitions_of_the_data_set(path):
    data = dls(path)
    assert names(data.train_ds) == {f'MHIST_{i:03d}' for i in range(40)}
    assert names(data.valid_ds) == {f'MHIST_{i:03d}' for i in range(40,60)}
    assert counts(data.train_ds) == {'SSA': 10, 'HP': 30} and counts(data.valid_ds) == {'SSA': 5, 'HP': 15}
    assert list(data.vocab) == ['HP','SSA'] and data.valid.one_batch()[0].shape == (4,3,8,8)

def test_counts_of_the_data_set(tmp_path):
    data = dls(write(tmp_path, 2175, 977))
    assert [len(data.train_ds),len(data.valid_ds)] == [2175,977]

def test_labels_belong_to_the_images(path):
    for f,y in dls(path).train_ds.items: assert Image.open(f).getpixel((0,0))[0] == (150 if y == 'SSA' else 60)

def test_a_share_of_the_training_images_is_held_out(path):
    data,again,other = dls(path, valid=.2),dls(path, valid=.2),dls(path, valid=.2, seed=1)
    assert counts(data.valid_ds) == {'SSA': 2, 'HP': 6} and counts(data.train_ds) == {'SSA': 8, 'HP': 24}
    assert names(data.train_ds) | names(data.valid_ds) == {f'MHIST_{i:03d}' for i in range(40)}  # no test image
    assert names(again.valid_ds) == names(data.valid_ds) != names(other.valid_ds)

def test_subset_is_stratified(path):
    data = dls(path, n=12)
    assert counts(data.train_ds) == {'SSA': 2, 'HP': 6} and counts(data.valid_ds) == {'SSA': 1, 'HP': 3}

def test_flips_both_ways_and_own_transforms(path):
    assert any(isinstance(o, Dihedral) for o in dls(path).after_batch.fs)
    tfms = dls(path, batch_tfms=[]).after_batch.fs
    assert not [o for o in tfms if isinstance(o, (Flip,Dihedral,Normalize))]

def test_no_download(path):
    with pytest.raises(ValueError, match=r"path is None.*form.*https://bmirds.github.io/MHIST.*images.zip.*sample\('mhist'\)"):
        mhist_dls()

def test_half_unpacked(path):
    with pytest.raises(FileNotFoundError, match='MHIST: .* does not exist'): dls(path/'no')
    (path/'images'/'MHIST_007.png').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 60 images are not there, the first is .*MHIST_007.png'): dls(path)
    (path/'images').rename(path/'pictures')
    with pytest.raises(FileNotFoundError, match='60 of 60 images are not there'): dls(path)
    (path/'annotations.csv').unlink()
    with pytest.raises(FileNotFoundError, match='no file annotations.csv in .*bmirds'): dls(path)

@pytest.mark.parametrize('old,new,msg', [
    (',', ';', "separated by ';', not by ','"), ('Partition', 'Part', "no column 'Partition'"),
    (',SSA,', ',TA,', "unknown class 'TA': the classes are HP, SSA"),
    (',test', ',valid', "unknown class 'valid': the classes are train, test"), ('_007', '_008', "'MHIST_008.png' is listed twice"),
    (',HP,', ',,', 'is incomplete')], ids=str)
def test_broken_tables(path, old, new, msg):
    file = path/'annotations.csv'
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=msg): dls(path)

def test_table_with_spaces_after_the_commas(path):
    file = path/'annotations.csv'
    file.write_text(file.read_text().replace(',', ', '))
    assert counts(dls(path).train_ds) == {'SSA': 10, 'HP': 30}

def test_broken_image_is_named(path):
    file = path/'images'/'MHIST_045.png'
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(OSError, match=f"the image {file} can't be read"): [*dls(path).valid]
    with pytest.raises(OSError, match=f"1 of 60 images are broken: {file}"): dls(path, verify=True)

@pytest.mark.parametrize('kw,msg', [(dict(valid='val'), "valid is 'val'"), (dict(valid=1.5), 'valid is 1.5'),
    (dict(valid=.01), 'valid is 0.01'),
                                    (dict(n=3), 'n is 3'), (dict(bs=41), 'bs is 41')], ids=str)
def test_bad_arguments(path, kw, msg):
    with pytest.raises(ValueError, match=msg): dls(path, **kw)
