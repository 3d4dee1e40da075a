"Images that can't be read, stratified parts, and data loaders of them"
import collections, copy, pickle, random
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Learner, PILImage, PILImageBW, Transform, nn
from fastkd.data.digits import digits_dls
from fastkd.data.items import *

def counts(xs): return dict(collections.Counter(xs))
groups = ['a']*500 + ['b']*300 + ['c']*199 + ['d']

def test_proportions_and_at_least_one():
    even = np.repeat(['a','b','c'], [500,300,200])
    assert counts(even[stratified(even, 100)]) == {'a': 50, 'b': 30, 'c': 20}
    assert counts(np.array(groups)[stratified(groups, 4)]) == {'a': 1, 'b': 1, 'c': 1, 'd': 1}
    assert stratified(groups, 1000).tolist() == list(range(1000))

def test_small_parts_lie_in_large_ones_and_the_seed_picks():
    a,b,c = (set(stratified(groups, n, s)) for n,s in ((50,0),(200,0),(50,1)))
    assert a < b and a != c and len(a) == 50

def test_global_random_states_stay():
    before = random.getstate(),np.random.get_state()[1].tobytes(),torch.get_rng_state()
    stratified(groups, 50)
    hold_out(groups[:-1], .1)
    assert before[:2] == (random.getstate(),np.random.get_state()[1].tobytes()) and before[2].equal(torch.get_rng_state())

@pytest.mark.parametrize('n', [3,1001])
def test_parts_out_of_range(n):
    with pytest.raises(ValueError, match=f'n is {n}: choose from 4 .* to 1000'): stratified(groups, n)

@pytest.mark.parametrize('labels,pct,msg', [
    (groups, .1, 'no item of class d is left'), (groups[:-1], .002, 'fewer than one of each class'), (groups, 0, 'between 0 and 1'),
    (groups, 1, 'between 0 and 1'), (groups, 'half', "'half'"), (groups, float('nan'), 'nan')], ids=str)
def test_splits_that_leave_a_part_without_a_class(labels, pct, msg):
    with pytest.raises(ValueError, match=msg): hold_out(labels, pct)

def test_held_out_share():
    held = hold_out(groups[:-1], .1)
    assert counts(np.array(groups)[held]) == {'a': 50, 'b': 30, 'c': 20}

@pytest.mark.parametrize('content', [b'', b'text', b'\x89PNG\r\n\x1a\n', 'cut off'], ids=str)
def test_a_broken_file_is_named(tmp_path, content):
    file = tmp_path/'a.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64,64,3)).astype(np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:3000] if content == 'cut off' else content)
    for o in (file, str(file)):
        with pytest.raises(OSError, match=f"the image {file} can't be read"): OpenImage()(o)
    with pytest.raises(OSError, match=f'1 of 1 images are broken: {file}'): check_images([file])

def test_many_broken_files_are_shortened(tmp_path):
    files = [tmp_path/f'{i}.png' for i in range(9)]
    for f in files: f.touch()
    with pytest.raises(OSError, match='9 of 9 images are broken: .*0.png.*4.png …: get'): check_images(files)

def test_copies_are_transforms_of_fastai():
    for o in (pickle.loads(pickle.dumps(OpenImage(PILImageBW))), copy.deepcopy(OpenImage(PILImageBW))):
        assert type(o) is Transform and type(o(np.zeros((4,4), np.uint8))) is PILImageBW

def _items(n): return [(np.full((8,8,3), i, np.uint8), 'ab'[i%2]) for i in range(n)]
def _dls(valid=range(16,20), **kw): return make_dls(_items(20), ['a','b'], valid, **dict(size=8, bs=4, batch_tfms=[], num_workers=0)|kw)

def test_parts_and_order():
    dls = _dls(valid=[3,1])
    assert [int(x.max()) for x,_ in dls.valid_ds.items] == [1,3] and len(dls.train_ds) == 18
    assert len(_dls(full=True).train_ds) == 20 and len(_dls(full=True).valid_ds) == 4

def test_n_keeps_the_classes_of_both_parts():
    dls = _dls(n=10)
    assert [counts(y for _,y in o.items) for o in (dls.train_ds,dls.valid_ds)] == [{'a': 4, 'b': 4}, {'a': 1, 'b': 1}]

@pytest.mark.parametrize('kw,msg', [(dict(bs=17), 'bs is 17: there are 16'), (dict(size=8.), 'size is 8.0'),
    (dict(size=None), 'size is None'), (dict(n=3), 'n is 3')], ids=str)
def test_bad_numbers(kw, msg):
    with pytest.raises(ValueError, match=msg): _dls(**kw)

def test_all_classes_are_in_the_vocabulary():
    dls = make_dls([(x,'a') for x,_ in _items(9)], ['c','b','a'], [0], 8, 4, [], num_workers=0)
    assert list(dls.vocab) == ['c','b','a'] and dls.valid.one_batch()[1].tolist() == [2]

@pytest.mark.parametrize('make', [_dls, digits_dls], ids=['make_dls','digits_dls'])
def test_images_are_not_formatted_as_text(make):
    def fail(a): raise AssertionError("an image was formatted, which takes minutes for 70,000 of them")
    with np.printoptions(override_repr=fail): make()
