"The traffic signs: which tracks are held out, the vocabulary, the test images, and what a broken folder is told"
import re
from functools import partial
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import Learner, nn
from sklearn.metrics import f1_score
from fastkd.data.gtsrb import *
from fastkd.evaluation.tta import test_time_aug

COLUMNS = ['Filename','Width','Height','Roi.X1','Roi.Y1','Roi.X2','Roi.Y2','ClassId']
ppm = b'P6\n4 4\n255\n' + bytes(range(48))

def write(folder, names, labels, table):
    folder.mkdir(parents=True)
    for o in names: (folder/o).write_bytes(ppm)
    rows = [[o,4,4,0,0,3,3,c] for o,c in zip(names, labels)]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder/table, sep=';', index=False)

def write_class(path, c, tracks, short=()):
    "Tracks of 30 frames; those in `short` have 29"
    names = [f'{t:05d}_{f:05d}.ppm' for t in range(tracks) for f in range(29 if t in short else 30)]
    write(path/'Final_Training'/'Images'/f'{c:05d}', names[::-1], [c]*len(names), f'GT-{c:05d}.csv')  # the table needn't be sorted

def write_test(path, labels): write(path/'Final_Test'/'Images', [f'{i:05d}.ppm' for i in range(len(labels))], labels, 'GT-final_test.csv')

def dls(path, **kw): return gtsrb_dls(path, **dict(size=4, bs=8, num_workers=0)|kw)
def items(ds): return [(f.parent.name, f.name) for f,_ in ds.items]
def tracks(ds): return {(c, n[:5]) for c,n in items(ds)}

@pytest.fixture(scope='module')
def full(tmp_path_factory):
    "All 43 classes; class c has 5 + c%6 tracks"
    path = tmp_path_factory.mktemp('gtsrb')
    for c in range(43): write_class(path, c, 5+c%6)
    write_test(path, [3,7,3,42])
    return path

@pytest.fixture
def few(tmp_path):
    "Two classes, of 5 and 11 tracks"
    write_class(tmp_path, 3, 5)
    write_class(tmp_path, 14, 11)
    write_test(tmp_path, [14,3,14,14])
    return tmp_path

def csv_of(path, c=3): return path/'Final_Training'/'Images'/f'{c:05d}'/f'GT-{c:05d}.csv'

def test_counts_of_all_classes(full):
    data = dls(full)
    n_tracks = [5+c%6 for c in range(43)]
    held = [2 if t == 10 else 1 for t in n_tracks]  # a fifth of them, rounded down
    assert len(data.valid_ds) == 30*sum(held) and len(data.train_ds) == 30*(sum(n_tracks)-sum(held))
    assert tracks(data.valid_ds) == {(f'{c:05d}', f'{t:05d}') for c in range(43) for t in range(held[c])}
    assert data.c == 43 and [data.vocab.o2i[str(c)] for c in range(43)] == list(range(43))

@pytest.mark.parametrize('kw', [{}, dict(split='random'), dict(split='random', seed=3), dict(valid_pct=.5), dict(n=500)], ids=str)
def test_no_track_is_in_both_parts(full, kw):
    data = dls(full, **kw)
    assert tracks(data.train_ds) and not tracks(data.train_ds) & tracks(data.valid_ds)

def test_held_out_are_the_first_files_as_the_rule_says(few):
    data = dls(few, classes=[3,14])
    for c,n in ((3,150),(14,330)):
        names = sorted(o.name for o in csv_of(few, c).parent.glob('*.ppm'))
        assert len(names) == n
        assert sorted(o for k,o in items(data.valid_ds) if int(k) == c) == names[:int(n//30*.2)*30]

@pytest.mark.parametrize('short', [(0,), (19,)], ids=str)
def test_a_track_with_a_missing_frame_stays_whole(tmp_path, short):
    "As track 19 of class 33 in the real data: 689 images, of which four whole tracks are held out"
    write_class(tmp_path, 33, 23, short=short)
    data = dls(tmp_path, classes=[33])
    assert tracks(data.valid_ds) == {('00033', f'{t:05d}') for t in range(4)}
    assert len(data.valid_ds) == 120-(short == (0,)) and len(data.train_ds) == 689-len(data.valid_ds)

def test_random_tracks_follow_the_seed(few):
    held = [tracks(dls(few, classes=[14], split='random', seed=s).valid_ds) for s in (0,0,1,2)]
    assert held[0] == held[1] and len({frozenset(o) for o in held}) > 1 and all(len(o) == 2 for o in held)

def test_some_classes_keep_the_whole_vocabulary(full):
    data = dls(full, classes=[14,'3'])
    assert {y for _,y in data.train_ds.items} == {y for _,y in data.valid_ds.items} == {'3','14'}
    assert data.c == 43 and data.vocab.o2i['14'] == 14
    assert set(data.one_batch()[1].tolist()) <= {3,14}

def test_full_trains_on_everything(few):
    part,data = dls(few, classes=[3,14]),dls(few, classes=[3,14], full=True)
    assert len(data.train_ds) == 16*30 and items(data.valid_ds) == items(part.valid_ds)

def test_full_needs_no_tracks_to_hold_out(tmp_path):
    write_class(tmp_path, 3, 2)
    data = dls(tmp_path, classes=[3], full=True)
    assert len(data.train_ds) == len(data.valid_ds) == 60

def test_subset_is_stratified_and_inside(few):
    data,part = dls(few, classes=[3,14]),dls(few, classes=[3,14], n=48)
    assert len(part.train_ds)+len(part.valid_ds) == 48
    assert set(items(part.valid_ds)) < set(items(data.valid_ds)) and set(items(part.train_ds)) < set(items(data.train_ds))
    assert [y for _,y in part.train_ds.items+part.valid_ds.items].count('3') == 15

def test_no_flips_and_the_statistics_of_imagenet(few):
    from fastai.vision.all import Flip, FlipItem, Normalize, imagenet_stats
    data = dls(few, classes=[3])
    tfms = data.after_batch.fs
    assert not [o for o in tfms if isinstance(o, (Flip,FlipItem))]
    torch.testing.assert_close(next(o for o in tfms if isinstance(o, Normalize)).mean.flatten().cpu(), torch.tensor(imagenet_stats[0]))
    assert data.valid.one_batch()[0].shape[1:] == (3,4,4)

def test_test_images_with_and_without_labels(few):
    data = dls(few, classes=[3])
    dl,y_true = gtsrb_test_dl(data, few)
    assert y_true.tolist() == [14,3,14,14] and isinstance(y_true, np.ndarray) and y_true.dtype.kind == 'i'
    assert [f.name for f,_ in dl.items] == [f'{i:05d}.ppm' for i in range(4)] and dl.bs == 8
    assert torch.cat([y for _,y in dl]).tolist() == y_true.tolist()
    assert gtsrb_test_dl(data, few, n=2)[1].tolist() in ([14,3],[3,14])

def test_test_images_where_the_archives_put_them(few):
    "The archive with the labels has the table alone, and the one with the images has a table without labels"
    images = few/'Final_Test'/'Images'
    (images/'GT-final_test.csv').rename(few/'GT-final_test.csv')
    (images/'GT-final_test.test.csv').write_text('Filename;Width\n00000.ppm;4\n')
    assert gtsrb_test_dl(dls(few, classes=[3]), few)[1].tolist() == [14,3,14,14]

def test_the_folder_in_the_archives_is_found(few, tmp_path_factory):
    outer = tmp_path_factory.mktemp('outer')
    few.rename(outer/'GTSRB')
    (outer/'GTSRB'/'Final_Test'/'Images'/'GT-final_test.csv').rename(outer/'GT-final_test.csv')
    data = dls(outer, classes=[3])
    assert len(data.train_ds) == 120 and len(gtsrb_test_dl(data, outer)[1]) == 4

def test_test_time_augmentation_takes_them(few):
    data = dls(few, classes=[3,14])
    learn = Learner(data, nn.Sequential(nn.Flatten(), nn.Linear(48, 43)))
    dl,y_true = gtsrb_test_dl(data, few)
    mask = np.isin(y_true, [data.vocab.o2i['14']])
    res = test_time_aug(learn, dl, y_true, partial(f1_score, average='weighted'), n_augs=[0,1], mask=mask)
    with learn.no_bar(): preds = learn.get_preds(dl=dl)[0].argmax(1).numpy()
    assert res.score[0] == pytest.approx(f1_score(y_true[mask], preds[mask], average='weighted'), abs=1e-9)

def test_export_loads_without_fastkd(few, tmp_path):
    import subprocess, sys
    learn = Learner(dls(few, classes=[3]), nn.Sequential(nn.Flatten(), nn.Linear(48, 43)))
    learn.export(tmp_path/'a.pkl')
    file = few/'Final_Test'/'Images'/'00000.ppm'
    with learn.no_bar(): want = learn.predict(file)[0]
    src = f"""import sys; sys.modules['fastkd'] = sys.modules['fastkd.data'] = None
from fastai.vision.all import *
learn = load_learner({str(tmp_path/'a.pkl')!r})
with learn.no_bar(): print(learn.predict(Path({str(file)!r}))[0])"""
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', src], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    assert res.stdout.split() == [want]

def test_names(few):
    (few/'signnames.csv').write_text('ClassId,SignName\n0,"Speed limit (20km/h)"\n14,Stop\n')
    assert gtsrb_names(few) == gtsrb_names(few/'signnames.csv') == {'0': 'Speed limit (20km/h)', '14': 'Stop'}
    with pytest.raises(FileNotFoundError, match='no file signnames.csv'): gtsrb_names(few/'Final_Test'/'Images')

# What a broken folder is told

@pytest.mark.parametrize('kw,msg', [
    (dict(classes=[3,43]), 'classes has 43.*from 0 to 42'), (dict(classes=['Stop']), "classes has 'Stop'"), (dict(classes=[]), 'classes is'),
    (dict(classes=3), 'classes is 3'), (dict(split='file'), "split is 'file'"), (dict(valid_pct=0), 'valid_pct is 0'),
    (dict(valid_pct=1), 'valid_pct is 1'),
    (dict(n=3), 'n is 3: choose from 4'), (dict(n=10**6), 'n is 1000000'), (dict(bs=0), 'bs is 0'),
    (dict(bs=391), 'bs is 391: there are 390'),
    (dict(size=0), 'size is 0'), (dict(size=(4,4)), 'size is')], ids=str)
def test_bad_arguments(few, kw, msg):
    with pytest.raises(ValueError, match=msg): dls(few, **dict(classes=[3,14])|kw)

@pytest.mark.parametrize('pct', [.2,.99])
def test_a_class_without_validation_or_training_items(tmp_path, pct):
    write_class(tmp_path, 3, 20)
    write_class(tmp_path, 7, 4 if pct == .2 else 1)
    with pytest.raises(ValueError, match=rf'valid_pct is {pct}: no whole track .* class 7 .*full=True'):
        dls(tmp_path, classes=[3,7], valid_pct=pct)

def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"path='{re.escape(str(tmp_path))}/no' does not exist: unpack GTSRB_Final"):
        dls(tmp_path/'no')
    (tmp_path/'a.zip').touch()
    with pytest.raises(FileNotFoundError, match='is a file, not a folder'): dls(tmp_path/'a.zip')
    with pytest.raises(FileNotFoundError, match=r'no file GT-00000.csv in .*Final_Training/Images/00000.*sid.erda.dk'): dls(tmp_path)

def test_half_unpacked(few):
    with pytest.raises(FileNotFoundError, match='no file GT-00000.csv'): dls(few)  # 43 classes, of which two are there
    (csv_of(few).parent/'00004_00007.ppm').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 150 images are not there, the first is .*00003/00004_00007.ppm: unpack'):
        dls(few, classes=[3])
    (few/'Final_Test'/'Images'/'00002.ppm').unlink()
    with pytest.raises(FileNotFoundError, match='1 of 4 images are not there, the first is .*00002.ppm'):
        gtsrb_test_dl(dls(few, classes=[14]), few)
    (few/'Final_Test'/'Images'/'GT-final_test.csv').unlink()
    with pytest.raises(FileNotFoundError, match='no file GT-final_test.csv in .*GTSRB_Final_Test_GT.zip'):
        gtsrb_test_dl(dls(few, classes=[14]), few)

@pytest.mark.parametrize('old,new,msg', [
    (';', ',', r"GT-00003.csv: the columns are separated by ',', not by ';'"),
    ('ClassId', 'Class', r"GT-00003.csv: there is no column 'ClassId'"),
    (';3\n', ';43\n', r"GT-00003.csv: line 2 has the unknown class '43': the classes are 3"), (';3\n', ';\n', 'line 2 is incomplete'),
    ('00004_00029.ppm', '00004_00028.ppm', "'00004_00028.ppm' is listed twice"),
    ('00004_00029.ppm', 'stop.ppm', "'stop.ppm' says no track")], ids=str)
def test_broken_tables(few, old, new, msg):
    file = csv_of(few)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=msg): dls(few, classes=[3])

def test_a_table_without_rows_or_content(few):
    csv_of(few).write_text(';'.join(COLUMNS)+'\n')
    with pytest.raises(ValueError, match='has no rows'): dls(few, classes=[3])
    csv_of(few).write_text('')
    with pytest.raises(ValueError, match='not a table'): dls(few, classes=[3])

@pytest.mark.parametrize('content', [ppm[:30], b'', b'hello', b'P6\n4'], ids=['cut off','empty','text','cut header'])
def test_broken_images_are_named(few, content):
    file = csv_of(few).parent/'00000_00000.ppm'
    file.write_bytes(content)
    data = dls(few, classes=[3], bs=30)
    with pytest.raises(OSError, match=f"the image {file} can't be read .*verify=True"): data.valid.one_batch()
    with pytest.raises(OSError, match=f"1 of 150 images are broken: {file}"): dls(few, classes=[3], verify=True)

def test_broken_test_image(few):
    file = few/'Final_Test'/'Images'/'00001.ppm'
    file.write_bytes(b'')
    with pytest.raises(OSError, match=f'1 of 4 images are broken: {file}'): gtsrb_test_dl(dls(few, classes=[3]), few, verify=True)

def test_other_data_loaders_are_refused_for_the_test_images(few):
    from fastkd.data.items import make_dls
    other = make_dls([(f, 'ab'[i%2]) for i,f in enumerate(sorted(csv_of(few).parent.glob('*.ppm')))], ['a','b'], range(9), 4, 8, [], num_workers=0)
    with pytest.raises(ValueError, match='dls has no class 14, 3 in its vocabulary'): gtsrb_test_dl(other, few)
