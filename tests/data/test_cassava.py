"Cassava leaves: the split is saved, read back identically, and refused if it doesn't fit"
import collections, os
import numpy as np, pandas as pd, pytest
from PIL import Image
from fastai.vision.all import Learner, nn
from fastkd.data.cassava import *

def write(path, counts=(11,22,24,132,26)):
    (path/'train_images').mkdir(parents=True)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), counts))
    ids = [f'{1000+i}.jpg' for i in range(len(labels))]
    Image.new('RGB', (8,6)).save(path/'train_images'/ids[0])
    jpg = (path/'train_images'/ids[0]).read_bytes()
    for o in ids: (path/'train_images'/o).write_bytes(jpg)
    pd.DataFrame({'image_id': ids, 'label': labels}).to_csv(path/'train.csv', index=False)
    return path

@pytest.fixture
def path(tmp_path): return write(tmp_path/'cassava')
def dls(path, **kw): return cassava_dls(path, **dict(size=4, bs=4, num_workers=0)|kw)
def names(ds): return [f.name for f,_ in ds.items]
def counts(ds): return [collections.Counter(y for _,y in ds.items)[o] for o in ('CBB','CBSD','CGM','CMD','Healthy')]

def test_split_is_stratified_and_whole(path):
    data = dls(path)
    assert len(data.valid_ds) == round(.1*215) and len(data.train_ds) == 215-len(data.valid_ds)
    assert all(abs(v-.1*n) <= 1 for v,n in zip(counts(data.valid_ds), (11,22,24,132,26)))
    train,valid = set(names(data.train_ds)),set(names(data.valid_ds))
    assert train | valid == set(os.listdir(path/'train_images')) and not train & valid
    assert list(data.vocab) == ['CBB','CBSD','CGM','CMD','Healthy'] and data.valid.one_batch()[0].shape == (4,3,4,4)

def test_labels_are_those_of_the_table(path):
    label = pd.read_csv(path/'train.csv').set_index('image_id').label
    data = dls(path)
    assert all(data.vocab.o2i[y] == label[f.name] for f,y in [*data.train_ds.items, *data.valid_ds.items])

def test_the_saved_split_is_read_back_identically(path):
    "By a second learner, with another seed, and with the rows of train.csv in another order"
    first = Learner(dls(path), nn.Flatten())
    text = (path/'validation_set.csv').read_bytes()
    second = Learner(dls(path, seed=5), nn.Flatten())
    assert second.dls.valid_ds.items == first.dls.valid_ds.items and second.dls.train_ds.items == first.dls.train_ds.items
    assert (path/'validation_set.csv').read_bytes() == text
    pd.read_csv(path/'train.csv').sample(frac=1, random_state=0).to_csv(path/'train.csv', index=False)
    assert set(names(dls(path).valid_ds)) == set(names(first.dls.valid_ds)) == set(pd.read_csv(path/'validation_set.csv').image_id)

def test_the_split_decides_and_not_the_seed_that_would_make_another(path):
    held = [set(names(dls(path, split_file=None, seed=s).valid_ds)) for s in (0,0,1)]
    assert held[0] == held[1] != held[2] and not (path/'validation_set.csv').exists()

def test_a_split_of_ones_own(path, tmp_path):
    df = pd.read_csv(path/'train.csv').groupby('label').head(4)
    df[['label','image_id']].to_csv(tmp_path/'mine.csv', index=False)
    assert set(names(dls(path, split_file=tmp_path/'mine.csv').valid_ds)) == set(df.image_id)
    assert not (path/'validation_set.csv').exists()

def test_a_subset_is_validated_on_held_out_images(path):
    few,data = dls(path, n=60),dls(path)
    assert len(few.train_ds)+len(few.valid_ds) == 60 and min(counts(few.train_ds)+counts(few.valid_ds)) >= 1
    assert set(names(few.valid_ds)) < set(names(data.valid_ds)) and set(names(few.train_ds)) < set(names(data.train_ds))

def test_a_split_in_a_folder_that_cant_be_written(path):
    with pytest.raises(OSError, match="can't be saved to .*no/split.csv.*pass a split_file in a folder that can be written"):
        dls(path, split_file='no/split.csv')

def test_an_interrupted_write_leaves_no_split(path, monkeypatch):
    "Half a split would be taken for one"
    def stop(df, file, **kw):
        file.write_text('image_id,label')
        raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(pd.DataFrame, 'to_csv', stop)
        with pytest.raises(KeyboardInterrupt): dls(path)
    assert not (path/'validation_set.csv').exists()
    assert len(dls(path).valid_ds) == 22 and (path/'validation_set.csv').exists()

# A saved split that doesn't fit the data

def edit(path, f):
    dls(path)
    df = pd.read_csv(path/'validation_set.csv', dtype=str)
    f(df).to_csv(path/'validation_set.csv', index=False)

@pytest.mark.parametrize('f,msg', [
    (lambda df: df.assign(image_id='x'+df.image_id), "22 of 22 images are not in train.csv, the first is 'x1"),
    (lambda df: df.assign(label=df.label.map(lambda o: str((int(o)+1)%5))), "has another label than in train.csv, and so have 21 others"),
    (lambda df: df[df.label != '0'], 'no image of class CBB is held out'), (lambda df: df.iloc[:0], 'has no rows'),
    (lambda df: df.rename(columns={'label': 'y'}), "no column 'label'"),
    (lambda df: pd.concat([df,df[:1]]), 'is listed twice')], ids=range(6))
def test_a_split_that_does_not_fit(path, f, msg):
    edit(path, f)
    text = (path/'validation_set.csv').read_bytes()
    with pytest.raises(ValueError, match=f'validation_set.csv: .*{msg}'): dls(path)
    assert (path/'validation_set.csv').read_bytes() == text  # it isn't made anew in silence

def test_a_split_that_leaves_nothing_for_training(path):
    edit(path, lambda _: pd.read_csv(path/'train.csv'))
    with pytest.raises(ValueError, match='all images of a class are held out'): dls(path)

def test_a_share_that_the_saved_split_does_not_have(path):
    dls(path)
    assert len(dls(path, valid_pct=.1).valid_ds) == 22
    with pytest.raises(ValueError, match='valid_pct is 0.2, but .*validation_set.csv holds out 22 of 215'): dls(path, valid_pct=.2)

# A data set that isn't whole

def test_no_download():
    with pytest.raises(ValueError, match='path is None.*kaggle competitions download'): cassava_dls()

def test_half_unpacked(path):
    (path/'train_images'/'1003.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 215 images are not there, the first is .*1003.jpg'): dls(path)
    assert not (path/'validation_set.csv').exists()
    (path/'train.csv').unlink()
    with pytest.raises(FileNotFoundError, match='no file train.csv in .*kaggle'): dls(path)

@pytest.mark.parametrize('old,new,msg', [
    (',', ';', "separated by ';'"), ('image_id', 'image', "no column 'image_id'"),
    (',4\n', ',5\n', "unknown class '5': the classes are 0, 1, 2, 3, 4"),
    (',4\n', ',\n', 'incomplete'), ('1007.jpg', '1008.jpg', 'listed twice')], ids=str)
def test_broken_tables(path, old, new, msg):
    (path/'train.csv').write_text((path/'train.csv').read_text().replace(old, new))
    with pytest.raises(ValueError, match=f'train.csv: .*{msg}'): dls(path)

def test_broken_image_is_named(path):
    file = path/'train_images'/names(dls(path).valid_ds)[0]
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(OSError, match=f"the image {file} can't be read"): [*dls(path).valid]
    with pytest.raises(OSError, match=f"1 of 215 images are broken: {file}"): dls(path, verify=True)

def test_classes_too_small_for_the_share(tmp_path):
    path = write(tmp_path/'a', (1,9,9,9,9))
    with pytest.raises(ValueError, match='no item of class 0 is left for training'): dls(path, valid_pct=.3)
    with pytest.raises(ValueError, match='valid_pct is 0.01: 0 of 37'): dls(path, valid_pct=.01)
    with pytest.raises(ValueError, match='valid_pct is 2'): dls(path, valid_pct=2)
