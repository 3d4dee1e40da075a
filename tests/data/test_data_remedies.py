"What the errors of the data sets advise works"
import os, shutil, tempfile
from functools import cache

from fastai.vision.all import *
from fastkd.all import *
from fastkd.data.files import check_classes, read_table
from fastkd.data.items import hold_out
from fastkd.data.mnist import read_idx
from remedies import *

@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)

@cache
def samples():
    "Small samples in the layouts of three data sets"
    d = Path(tempfile.mkdtemp())
    return {n: sample(n, d/n, k) for n,k in (('mhist',50),('cassava',200),('mnist',200))}

def copied(name):
    "A copy of a sample, to be spoilt"
    return Path(shutil.copytree(samples()[name], Path.cwd()/f'{name}{len(os.listdir())}'))

small = dict(size=8, bs=4, num_workers=0)
def mhist(path=None, **kwargs): return len(mhist_dls(path or samples()['mhist'], **{**small, **kwargs}).train)
def cassava(path=None, **kwargs): return len(cassava_dls(path or copied('cassava'), **{**small, **kwargs}).train)
def mnist(path=None, **kwargs): return len(mnist_dls(path or samples()['mnist'], **{**small, **kwargs}).train)

def without(name, *files):
    path = copied(name)
    for f in files: (path/f).unlink()
    return path

def table(text, columns=('a','b'), sep=','):
    Path('table.csv').write_text(text)
    return len(read_table(Path('table.csv'), list(columns), sep))

def split(f):
    "A folder whose saved split is changed by `f`"
    path = copied('cassava')
    cassava(path)
    file = path/'validation_set.csv'
    f(pd.read_csv(file, dtype=str)).to_csv(file, index=False)
    return path

def relabel(df): return df.assign(label=[str((int(df.label[0])+1)%5), *df.label[1:]])
def rename(df): return df.assign(image_id=['x.jpg', *df.image_id[1:]])
def anew(f):
    "As the error says, without the file"
    path = split(f)
    (path/'validation_set.csv').unlink()
    return cassava(path)

def idx(data):
    Path('file.idx').write_bytes(data)
    return len(read_idx('file.idx', 1))
def read_all(path):
    "Every image once"
    return [b for dl in mhist_dls(path, **small, batch_tfms=[]).loaders for b in dl.new(shuffle=False, drop_last=False)]

good = bytes([0,0,8,1,0,0,0,2,3,4])

def broken(name):
    path = copied(name)
    first((path/'images').iterdir()).write_text('text')
    return path

cases = [
    ('path is None, and MHIST can\'t be downloaded without a form',
     lambda: mhist_dls(), "sample('mhist') writes a generated sample", lambda: len(mhist_dls(sample('mhist', 'm', 50), **small).train)),
    ('path is None, and Kaggle\'s data can\'t be downloaded without an account',
     lambda: cassava_dls(), "sample('cassava') writes a generated sample",
     lambda: len(cassava_dls(sample('cassava', 'c', 200), **small).train)),
    ('…: path=… …: …',
     lambda: mhist('nowhere'), 'into one folder', lambda: mhist()),
    ('…: there is no file … in …',
     lambda: mhist(without('mhist', 'annotations.csv')), 'unpack annotations.csv and images.zip into one folder',
     lambda: mhist(copied('mhist'))),
    ('…: … of … images are not there, the first is …',
     lambda: mhist(without('mhist', 'images/MHIST_0001.png')), 'unpack', lambda: mhist(copied('mhist'))),
    ('…: this is not a table separated by … (…)',
     lambda: table(''), 'restore the original file', lambda: table('a,b\n1,2')),
    ('…: the columns are separated by …, not by …',
     lambda: table('a;b\n1;2'), "save the table with ','", lambda: table('a,b\n1,2')),
    ('…: there is no column …',
     lambda: table('a,c\n1,2'), 'restore the original file', lambda: table('a,b\n1,2')),
    ('…: the table has no rows',
     lambda: table('a,b\n'), 'restore the original file', lambda: table('a,b\n1,2')),
    ('…: line … is incomplete',
     lambda: table('a,b\n1,'), 'line 2', lambda: table('a,b\n1,2')),
    ('…: … is listed twice, in line … again',
     lambda: table('a,b\n1,2\n1,3'), 'keep one', lambda: table('a,b\n1,2')),
    ('…: line … has the unknown class …',
     lambda: check_classes('t', ['x'], ['0','1']), 'the classes are 0, 1', lambda: check_classes('t', ['0'], ['0','1']) or 1),
    ('…: … of … images are not in train.csv, the first is …',
     lambda: cassava(split(rename)), 'delete this file to make a new split', lambda: anew(rename)),
    ('…: … has another label than in train.csv, and so have … others',
     lambda: cassava(split(relabel)), 'delete this file to make a new split', lambda: anew(relabel)),
    ('…: no image of class … is held out',
     lambda: cassava(split(lambda d: d[d.label!='3'])), 'delete this file to make a new split', lambda: anew(lambda d: d[d.label!='3'])),
    ('valid_pct is …, but … holds out … of … images',
     lambda: cassava(split(lambda d: d), valid_pct=.5), 'leave valid_pct out',
     lambda: [cassava(split(lambda d: d)), cassava(valid_pct=.5)]),
    ('the split can\'t be saved to … (…)',
     lambda: cassava(split_file='no/folder/x.csv'), 'a folder that can be written, or None',
     lambda: [cassava(split_file=Path('mine.csv').absolute()), cassava(split_file=None)]),
    ('the image … can\'t be read (…)',
     lambda: read_all(broken('mhist')), 'verify=True lists all broken images', lambda: mhist(verify=True)),
    ('… of … images are broken',
     lambda: mhist(broken('mhist'), verify=True), 'get these files again', lambda: mhist(verify=True)),
    ('n is …: choose from … (one item of each class in each part) to …, or None for all',
     lambda: mhist(n=1), 'or None for all', lambda: [mhist(n=20), mhist(n=None)]),
    ('… is …: choose a share between 0 and 1, such as .2',
     lambda: mhist(valid=20), 'such as .2', lambda: mhist(valid=.2)),
    ('… is …: … of … items are fewer than one of each class',
     lambda: hold_out([*'aabb'], .2), 'a larger share', lambda: len(hold_out([*'aabb'], .5))),
    ('… is …: no item of class … is left for training',
     lambda: hold_out([*'aaab'], .5), 'a smaller share', lambda: len(hold_out([*'aaabb'], .4))),
    ('size is …: give height and width in pixels, one whole number',
     lambda: mhist(size=(8,8)), 'one whole number', lambda: mhist(size=8)),
    ('bs is …: there are … training items, choose from 1 to …',
     lambda: mhist(bs=500), 'from 1 to', lambda: mhist(bs=1)),
    ('valid is …: choose \'test\', or a share of the training images, such as .2',
     lambda: mnist(valid='valid'), "'test', or a share", lambda: [mnist(valid='test'), mnist(valid=.2)]),
    ('name is …: choose from …',
     lambda: sample('cifar'), "'mnist'", lambda: str(sample('mnist', 'x', 200))),
    ('n is …: choose from … to … images for …, or None for …',
     lambda: sample('mhist', 'x', 10), 'choose from 50', lambda: str(sample('mhist', 'x', 50))),
    ('path=… has other files, and not this sample',
     lambda: [Path('full').mkdir(), Path('full/a.txt').write_text('a'), sample('mhist', 'full', 50)], 'choose a new folder',
     lambda: str(sample('mhist', 'new', 50))),
    ('…: the file can\'t be unpacked (…)',
     lambda: idx(b'\x1f\x8bxx'), 'download it again', lambda: idx(good)),
    ('…: this is no idx file, it begins with …',
     lambda: idx(b'<html>'), 'download train-images', lambda: idx(good)),
    ('…: this is an idx file of another kind, with type … and … dimensions',
     lambda: idx(bytes([0,0,8,3])+bytes(12)), 'it must have type 8 (bytes) and 1 dimensions', lambda: idx(good)),
    ('…: the file has … bytes of data, and shape …',
     lambda: idx(good[:-1]), 'download it again', lambda: idx(good)),
    ('n_labelled is …: choose from 10 (one of each digit) to …, or None for all',
     lambda: digits_dls(n_labelled=5), 'from 10', lambda: [len(digits_dls(n_labelled=o).train) for o in (10,None)]),
    ('size is …: the images have 8×8 pixels, choose 8 or more',
     lambda: digits_dls(size=4), '8 or more', lambda: len(digits_dls(size=8).train)),
    ('repeat is …: choose 1 or more',
     lambda: digits_dls(repeat=0), '1 or more', lambda: len(digits_dls(repeat=1).train)),
    ('bs is …: an epoch has … training images, choose from 1 to …, or a larger repeat',
     lambda: digits_dls(bs=2000), 'or a larger repeat', lambda: len(digits_dls(bs=2000, repeat=2).train)),
]

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
