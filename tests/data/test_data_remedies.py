"What the errors of the data sets advise works"
import gzip, hashlib, os, shutil, tempfile
from functools import cache

import fastkd.data.gtsrb, fastkd.data.mnist
from fastai.data.external import fastai_cfg
from fastai.vision.all import *
from fastkd.all import *
from fastkd.data.files import check_classes, read_table
from fastkd.data.items import hold_out
from fastkd.data.mnist import read_idx
from remedies import *
from test_gtsrb import csv_of, write_class, write_test
from torchvision.datasets import MNIST

@pytest.fixture(autouse=True)
def in_a_new_folder(tmp_path, monkeypatch):
    "With fastai's folders in it, and a folder beside them as the web, from which the data sets are downloaded"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'web').mkdir()
    for o in ('data','archive'): monkeypatch.setitem(fastai_cfg().d, o, str(tmp_path/o))
    for o in (fastkd.data.mnist, fastkd.data.gtsrb): monkeypatch.setattr(o, '_url', (tmp_path/'web').as_uri()+'/')

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

def signs(**kwargs): return gtsrb_dls(gtsrb_files(), **{'classes':[3,14], **small, **kwargs})
def gtsrb_files(tracks=(5,11)):
    "A folder with two classes of GTSRB and four test images"
    path = Path(tempfile.mkdtemp(dir='.'))
    for c,n in zip((3,14), tracks): write_class(path, c, n)
    write_test(path, [14,3,14,14])
    return path

def few_tracks(**kwargs):
    "Class 14 has a single track"
    return len(gtsrb_dls(gtsrb_files((5,1)), **{'classes':[3,14], **small, **kwargs}).train)

def renamed(to):
    path = gtsrb_files()
    file = csv_of(path)
    file.write_text(file.read_text().replace('00004_00029.ppm', to))
    (file.parent/'00004_00029.ppm').rename(file.parent/to)
    return path

def on_the_web(name, *broken):
    "The files of a sample, of which those in `broken` have other contents"
    for f in samples()[name].glob('*.gz'): Path('web', f.name).write_bytes(b'' if f.name in broken else f.read_bytes())

def published(monkeypatch):
    "The files of the sample are those that were published"
    def md5(n): return hashlib.md5((samples()['mnist']/n).read_bytes()).hexdigest()
    monkeypatch.setattr(MNIST, 'resources', [(n, md5(n)) for n,_ in MNIST.resources])

def downloaded(): return len(mnist_dls(**small).train)

def labels(f):
    "MNIST, whose training labels are changed by `f`"
    path = copied('mnist')
    file = path/'train-labels-idx1-ubyte.gz'
    file.write_bytes(gzip.compress(f(gzip.decompress(file.read_bytes()))))
    return path

def one_less(data): return data[:7] + bytes([data[7]-1]) + data[8:-1]

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
    ('…: all images of a class are held out, and none is left for training',
     lambda: cassava(split(all_of_a_class)), 'pass the right split_file, or delete this file to make a new split',
     lambda: [cassava(split(all_of_a_class), split_file=split(noop)/'validation_set.csv'), anew(all_of_a_class)]),
    ('classes is …: give a list of class numbers, or None for all',
     lambda: signs(classes=3), 'or None for all', lambda: [len(signs(classes=[3]).train), len(every_sign().train)]),
    ('classes has …: give class numbers from 0 to 42',
     lambda: signs(classes=['Stop']), 'gtsrb_names has their names', lambda: len(signs(classes=[number('Stop')]).train)),
    ('split is …: choose \'track\' (the first tracks) or \'random\' (random tracks)',
     lambda: signs(split='file'), "'random'", lambda: [len(signs(split=o).train) for o in ('track','random')]),
    ('valid_pct is …: no whole track of 30 images would be in one of the parts for class …',
     lambda: signs(valid_pct=.1), 'change valid_pct', lambda: len(signs(valid_pct=.2).train)),
    ('valid_pct is …: no whole track of 30 images would be in one of the parts for class …',
     lambda: few_tracks(), 'leave these classes out', lambda: [few_tracks(classes=[3]), few_tracks(full=True)]),
    ('…: … says no track',
     lambda: gtsrb_dls(renamed('stop.ppm'), classes=[3], **small), 'restore the original name',
     lambda: len(gtsrb_dls(renamed('00004_00029.ppm'), classes=[3], **small).train)),
    ('dls has no class … in its vocabulary',
     lambda: gtsrb_test_dl(digits_dls(), every_sign_files()), 'make it with gtsrb_dls',
     lambda: gtsrb_test_dl(every_sign(), every_sign_files())[1].tolist()),
    ('… has … images, and … has … labels',
     lambda: mnist(labels(one_less)), 'take both files from the same one', lambda: mnist(labels(noop))),
    ('…: label … is unknown',
     lambda: mnist(labels(lambda o: o[:-1]+bytes([25]))), 'a data set with the classes 0 to 9', lambda: mnist(labels(noop))),
]

def all_of_a_class(held):
    table = pd.read_csv(samples()['cassava']/'train.csv', dtype=str)
    return pd.concat([held[held.label!='3'], table[table.label=='3']])

def number(name):
    "The class of a sign, as `gtsrb_names` of a table from the web says"
    Path('signnames.csv').write_text('ClassId,SignName\n3,Speed limit (60km/h)\n14,Stop\n')
    return {v: k for k,v in gtsrb_names('.').items()}[name]

@cache
def every_sign_files():
    "All 43 classes, of two tracks"
    path = Path(tempfile.mkdtemp())
    for c in range(43): write_class(path, c, 2)
    write_test(path, [14,3,14,42])
    return path

def every_sign(): return gtsrb_dls(every_sign_files(), valid_pct=.5, **small)

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)

def test_a_file_that_could_not_be_downloaded_is_put_into_the_folder(monkeypatch):
    published(monkeypatch)
    on_the_web('mnist')
    lost = Path('web/t10k-labels-idx1-ubyte.gz').rename('lost')
    def by_hand():
        shutil.copy(lost, fastai_cfg().path('archive')/'t10k-labels-idx1-ubyte.gz')
        return downloaded()
    check('… could not be downloaded (…)', downloaded, f"download it by hand into {Path('archive').absolute()}", by_hand)

def test_a_file_that_could_not_be_downloaded_is_there_the_next_time(monkeypatch):
    published(monkeypatch)
    def later():
        on_the_web('mnist')
        return downloaded()
    check('… could not be downloaded (…)', downloaded, 'call again', later)

def test_an_archive_that_could_not_be_downloaded_is_put_into_the_folder(monkeypatch):
    monkeypatch.setattr(fastkd.data.gtsrb, '_archives', [(n,None) for n,_ in fastkd.data.gtsrb._archives])
    def by_hand():
        for name,folder in (('Training_Images', 'Final_Training'), ('Test_Images', 'Final_Test'), ('Test_GT', 'Final_Test')):
            shutil.make_archive(f'archive/GTSRB_Final_{name}', 'zip', every_sign_files(), folder)
        return len(gtsrb_dls(valid_pct=.5, **small).train)
    check('… could not be downloaded (…)', lambda: gtsrb_dls(**small), 'download it by hand into', by_hand)

def test_a_file_that_is_not_the_published_one(monkeypatch):
    published(monkeypatch)
    name = MNIST.resources[2][0]
    on_the_web('mnist', name)
    def again():
        Path('archive', name).unlink()
        on_the_web('mnist')
        return downloaded()
    key = '… is not the published file, its MD5 sum is not …'
    check(key, downloaded, 'or pass `path`', lambda: mnist(samples()['mnist']))
    check(key, downloaded, 'delete it and try again', again)
