"Short epochs: each goes on where the one before it stopped, in the order of ordinary passes, and all else is as in an ordinary fit"
from copy import deepcopy

import pytest
from fastai.callback.all import *

from fastkd.losses.contrastive import CRD
from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
import fastkd.training.cycles  # `Learner.fit_clr`
from fastkd.training.features import item_numbers
from fastkd.training.resume import Resume
from fastkd.training.short_epochs import ItemsLeft, ShortDL, ShortEpochs
from helpers import *
from interrupted import *
from fastcore.test import test_close as close, test_eq as eq  # after the others, which have an `eq` of their own

class Items(Callback):
    "The numbers of the items in each batch, epoch by epoch, in training (0) and validation (1)"
    order,name = 70,'items'
    def before_fit(self): self.seen,self.lengths,self.pcts = [],[],[]
    def before_epoch(self): self.seen.append(([],[]))
    def before_batch(self):
        self.seen[-1][not self.training].append(self.x.flatten().int().tolist())
        self.lengths.append((self.training, self.n_iter, len(self.dl)))
        if self.training: self.pcts.append(self.pct_train)

def numbers(n=16, m=6, bs=4, valid_bs=2, **kwargs):
    "Loaders of `n` training items, shuffled, and `m` validation items; each is its own number"
    x = torch.arange(float(n+m))[:,None]
    items = list(zip(x, x))
    kwargs = {'shuffle':True, **kwargs}
    return DataLoaders(DataLoader(items[:n], bs=bs, **kwargs), DataLoader(items[n:], bs=valid_bs), device='cpu')

def counting(*args, cbs=(), **kwargs):
    "A learner that records the items"
    learn = Learner(numbers(*args, **kwargs), seeded(nn.Linear,1,1), loss_func=MSELossFlat(), lr=1e-6, cbs=[Items(), *L(cbs)])
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def batches(learn, part=0): return [b for e in learn.items.seen for b in e[part]]
def ordinary(n_passes, *args, part=0, **kwargs):
    "The batches of ordinary passes"
    set_seed(3)
    learn = counting(*args, **kwargs)
    learn.fit(n_passes)
    return batches(learn, part)

sizes = [dict(n=16), dict(n=18), dict(n=18, drop_last=True), dict(n=17, num_workers=2), dict(n=12, shuffle=False)]

cases = [(o,n) for o in sizes for n in ((2,7) if 'num_workers' in o else (1,2,3,4,7))]

@pytest.mark.parametrize('kwargs,n_train', cases, ids=str)
def test_the_batches_are_those_of_ordinary_passes(kwargs, n_train):
    want = ordinary(5, **kwargs)
    set_seed(3)
    learn,n_epoch = counting(cbs=ShortEpochs(n_train), **kwargs),13//n_train
    learn.fit(n_epoch)
    eq([len(e[0]) for e in learn.items.seen], [n_train]*n_epoch)
    eq(batches(learn), want[:n_train*n_epoch])

@pytest.mark.parametrize('n_valid', [1, 2, 3, 9, None])
def test_validation_goes_on_too_but_is_never_longer_than_a_pass(n_valid):
    learn = counting(cbs=ShortEpochs(2, n_valid))
    learn.fit(4)
    want = [[16,17],[18,19],[20,21]]*4
    n = min(n_valid or 3, 3)
    eq([len(e[1]) for e in learn.items.seen], [n]*4)
    eq(batches(learn, 1), want[:4*n])

@pytest.mark.parametrize('kwargs', [dict(cbs=None), dict(cbs=True), dict(cbs=True, lr_find=True), dict(cbs=True, validate=True)], ids=str)
def test_the_next_fit_goes_on(kwargs):
    "With the callback in the learner, or a new one in each fit; whatever is done in between"
    cb = lambda: ShortEpochs(3, 1)
    learn,seen = counting(cbs=cb() if kwargs['cbs'] is None else ()),[]
    for _ in range(4):
        learn.fit(1, cbs=cb() if kwargs['cbs'] else None)
        seen += batches(learn)
        if 'validate' in kwargs: learn.validate(), learn.get_preds(), learn.get_preds(ds_idx=0)
        if 'lr_find' in kwargs:
            with learn.no_bar(): learn.lr_find(num_it=6, show_plot=False)
    for i in 0,4,8: eq(sorted(sum(seen[i:i+4], [])), list(range(16)))

def test_two_learners_with_the_same_loaders_have_a_place_each():
    a,b = counting(cbs=ShortEpochs(2)),counting(cbs=ShortEpochs(3))
    b.dls = a.dls
    got = {}
    for _ in range(2):
        for o in a,b:
            o.fit(1)
            got.setdefault(o, []).extend(batches(o))
    eq(sorted(sum(got[a], [])), list(range(16)))
    eq(sorted(sum(got[b][:4], [])), list(range(16)))

def test_epochs_of_a_whole_pass_are_ordinary_training_bit_for_bit(tmp_path):
    def trained(cbs):
        learn = fresh(tmp_path)
        learn.fit_one_cycle(3, 1e-2, cbs=cbs)
        return learn
    same(trained(None), trained(ShortEpochs(4, 1)))

def test_lengths_and_progress_are_those_of_the_short_epoch():
    learn = counting(cbs=ShortEpochs(3, 2))
    learn.fit(2)
    eq(learn.items.lengths, ([(True,3,3)]*3 + [(False,2,2)]*2)*2)
    close(learn.items.pcts, [i/6 for i in range(6)])
    eq(learn.train_iter, 6)
    eq(len(learn.recorder.losses), 6)
    eq(learn.recorder.iters, [3,6])

def test_the_progress_bar_has_the_short_length():
    totals = []
    class Totals(Callback):
        order = ProgressCallback.order+1
        def before_train(self): totals.append(self.learn.progress.pbar.total)
        def before_validate(self): totals.append(self.learn.progress.pbar.total)
    learn = counting(cbs=ShortEpochs(3, 2))
    learn.add_cbs([ProgressCallback(), Totals()])
    learn.fit(1)
    eq(totals, [3,2])

def test_fit_one_cycle_has_its_whole_schedule():
    learn,whole = counting(cbs=ShortEpochs(3, 1)),counting(n=12)
    for o in learn,whole: o.fit_one_cycle(2, 1e-3)
    close(learn.recorder.hps['lr'], whole.recorder.hps['lr'])

def test_lr_find_takes_as_many_steps_as_without():
    learn = counting(cbs=ShortEpochs(2, 1))
    with learn.no_bar(): learn.lr_find(num_it=10, end_lr=1e-5, show_plot=False, suggest_funcs=None)
    eq(len(learn.recorder.lrs), 10)

def test_validate_and_get_preds_use_all_items():
    learn = counting(cbs=ShortEpochs(2, 1))
    learn.fit(1)
    eq(len(learn.get_preds()[0]), 6)
    eq(len(learn.get_preds(ds_idx=0)[0]), 16)
    learn.validate()
    eq(len(batches(learn, 1)), 3)

def test_get_preds_within_an_epoch_uses_all_items():
    class Inner(Callback):
        order,run_valid,n = 80,False,[]
        def after_batch(self):
            dl,it = self.learn.dl,self.learn.iter
            self.n.append(len(self.learn.get_preds(inner=True)[0]))
            self.learn.dl,self.learn.training = dl,True
    learn = counting(cbs=[ShortEpochs(2, 1), Inner()])
    learn.fit(1)
    eq(Inner.n, [6,6])

def kept(dls):
    "The attributes of the loaders, without the two that fastai itself leaves behind when a pass is interrupted"
    return [(dl, set(vars(dl))-{'it','_DataLoader__idxs'}) for dl in dls.loaders]

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, CancelFitException, CancelTrainException, CancelEpochException])
@pytest.mark.parametrize('event', ['before_batch','after_loss','after_backward'])
def test_the_loaders_are_as_they_were_however_the_fit_ends(error, event):
    learn = counting(cbs=ShortEpochs(3, 1))
    learn.fit(1)
    before,loaders = kept(learn.dls),list(learn.dls.loaders)
    try: learn.fit(1, cbs=Stop(0, error, event))
    except (KeyboardInterrupt,RuntimeError): pass
    assert kept(learn.dls) == before
    assert all(a is b for a,b in zip(learn.dls.loaders, loaders))
    learn.fit(2)
    assert len(batches(learn)) == 6

def test_after_an_interruption_it_goes_on_with_the_next_batch():
    want = ordinary(2)
    set_seed(3)
    learn = counting(cbs=ShortEpochs(3, 1))
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop(0))  # in its second batch
    first = batches(learn)
    learn.fit(1)
    eq(first+batches(learn), want[:5])

def test_an_error_while_an_item_is_loaded_leaves_the_loader_as_it_was():
    learn = counting(cbs=ShortEpochs(3, 1))
    before = kept(learn.dls)
    learn.dls.train.after_item = lambda o: 1/0
    with pytest.raises(ZeroDivisionError): learn.fit(1)
    del learn.dls.train.after_item
    assert kept(learn.dls) == before

def test_other_loaders_start_afresh():
    learn = counting(cbs=ShortEpochs(3, 1))
    learn.fit(1)
    learn.dls = numbers(8)
    learn.fit(2)
    eq(sorted(sum(batches(learn)[:2], [])), list(range(8)))

def test_items_that_are_skipped():
    learn = counting(cbs=ShortEpochs(2, 1))
    def odd(o):
        if o[0].item() % 2: raise SkipItemException
        return o
    learn.dls.train.after_item = odd
    learn.fit(4)
    seen = sum(batches(learn), [])
    eq(len(batches(learn)), 8)
    assert set(seen) == set(range(0, 16, 2))

def test_a_pass_without_a_batch_is_an_error():
    learn = counting(n=3, bs=4, drop_last=True, cbs=ShortEpochs(2, 1))
    with pytest.raises(ValueError, match='gave no batch'): learn.fit(1)
    learn.dls = DataLoaders(torch.utils.data.DataLoader([]), numbers().valid)
    with pytest.raises(ValueError, match='gave no batch'): learn.fit(1)

# Loaders that don't say which items come next

class Stream(torch.utils.data.IterableDataset):
    "Numbers, without a length"
    def __iter__(self): return ((x,x) for x in torch.arange(10.)[:,None])

@pytest.mark.parametrize('make', [lambda items: torch.utils.data.DataLoader(items, batch_size=4, shuffle=True),
                                  lambda items: DataLoader(Stream(), bs=4)])
def test_pytorch_loaders_and_streams(make):
    x = torch.arange(10.)[:,None]
    learn = counting(cbs=ShortEpochs(2, 1))
    learn.dls = DataLoaders(make(list(zip(x, x))), numbers().valid)
    learn.fit(2)
    first = batches(learn)
    learn.fit(1)
    got = first+batches(learn)
    eq([len(o) for o in got], [4,4,2,4,4,2])
    for i in 0,3: eq(sorted(sum(got[i:i+3], [])), list(range(10)))

def test_resume_says_that_it_cannot_save_them(tmp_path):
    x = torch.arange(10.)[:,None]
    learn = counting(cbs=ShortEpochs(2, 1))
    learn.path,learn.dls = tmp_path,DataLoaders(torch.utils.data.DataLoader(list(zip(x, x)), batch_size=4), numbers().valid)
    with pytest.raises(ValueError, match="can't save where ShortEpochs has stopped"): learn.fit(1, cbs=Resume('a'))

# With fastkd's own callbacks

pytestmark = pytest.mark.filterwarnings('ignore:The teacher')
def teacher(): return seeded(net, 16, 12, seed=9).eval()
def plain(learn, cbs): learn.fit_one_cycle(4, 1e-2, cbs=[ShortEpochs(3, 1), *cbs])
def distil(learn, cbs): learn.fit_one_cycle(4, 1e-2, cbs=[ShortEpochs(3, 1), KnowledgeDistillation(teacher(), SoftTarget()), *cbs])
def clr(learn, cbs): learn.fit_clr(4, 1e-4, 1e-2, cbs=[ShortEpochs(3, 1), *cbs])

@pytest.mark.parametrize('fit', [plain, distil, clr])
@pytest.mark.parametrize('at', [0, 1, 3])
def test_an_interrupted_fit_goes_on_bit_for_bit(fit, at, tmp_path):
    "Within a pass: an epoch has three of its four batches"
    whole = fresh(tmp_path)
    fit(whole, [])
    with pytest.raises(KeyboardInterrupt): fit(fresh(tmp_path), [Resume('a'), Stop(at)])
    learn = fresh(tmp_path, seed=7)
    fit(learn, [Resume('a')])
    same(learn, whole)

def test_resume_in_the_same_learner(tmp_path):
    whole,learn = fresh(tmp_path),None
    plain(whole, [])
    learn = fresh(tmp_path)
    with pytest.raises(KeyboardInterrupt): plain(learn, [Resume('a'), Stop(2)])
    plain(learn, [Resume('a')])
    same(learn, whole)

def test_resume_refuses_epochs_of_another_length(tmp_path):
    with pytest.raises(KeyboardInterrupt): plain(fresh(tmp_path), [Resume('a'), Stop(2)])
    with pytest.raises(ValueError, match=r'ShortEpochs\(3, 1\) in the file, ShortEpochs\(2, 1\) in this fit'):
        fresh(tmp_path).fit_one_cycle(4, 1e-2, cbs=[ShortEpochs(2, 1), Resume('a')])

def test_distillation_sees_the_short_epochs(tmp_path):
    learn = fresh(tmp_path)
    distil(learn, [])
    eq(len(learn.recorder.losses), 12)
    assert len(learn.recorder.values) == 4

def test_losses_with_a_memory_of_items_get_their_numbers():
    "Also of the batch after the last, smaller one of a pass"
    found = []
    class Numbers(Callback):
        order,run_valid = 70,False
        def after_pred(self):
            x = self.xb[0]
            found.append((item_numbers(self.learn.dl, self.iter, len(x)).tolist(), x.flatten().int().tolist()))
    learn = counting(n=10, cbs=[ShortEpochs(5), Numbers()])
    learn.fit(3)
    assert len(found) == 15 and all(a == b for a,b in found)

def test_crd_trains(tmp_path):
    learn = fresh(tmp_path)
    learn.fit(2, 1e-2, cbs=[ShortEpochs(3, 1), KnowledgeDistillation(teacher(), [SoftTarget(), CRD(layers=[('1','1')], n_negatives=8)])])
    assert len(learn.recorder.losses) == 6

def test_one_in_a_learner():
    learn = counting(cbs=ShortEpochs(2, 1))
    with pytest.raises(ValueError, match='has a ShortEpochs already'): learn.add_cb(ShortEpochs(3))

def test_copies_and_exports_leave_the_loaders_behind(tmp_path):
    learn = counting(cbs=ShortEpochs(2, 1))
    learn.path = tmp_path
    learn.fit(1)
    other = deepcopy(learn)
    other.fit(1)
    learn.fit(1)
    dls,learn.dls = learn.dls,L()
    import pickle
    assert b'fastkd' not in pickle.dumps(learn.cbs.filter(lambda c: isinstance(c, ShortEpochs)))
    learn.dls = dls

# fastai's loaders of all kinds

def test_batches_of_a_language_model_are_those_of_ordinary_passes():
    "Its batches are parts of one stream of text, which the loader shuffles"
    from fastai.text.data import LMDataLoader
    texts = [torch.arange(9)+10*i for i in range(12)]
    def make(): return seeded(LMDataLoader, texts, bs=3, seq_len=5, shuffle=True, device='cpu')
    dl = make()
    want = [x.tolist() for _ in range(3) for x,_ in dl]
    dl,left = make(),ItemsLeft()
    eq(len(dl), 7)
    eq([x.tolist() for _ in range(4) for x,_ in ShortDL(dl, 5, left)], want[:20])

def test_batches_of_sorted_text_and_tables_and_weighted_items():
    from fastai.callback.all import WeightedDL
    from fastai.text.data import SortedDL
    texts = [(torch.arange(n),n) for n in range(1,13)]
    def text(): return seeded(SortedDL, texts, bs=4, shuffle=True, before_batch=lambda b: [(o[0][:1],o[1]) for o in b], device='cpu')
    def weighted(): return seeded(WeightedDL, list(range(12)), wgts=range(1,13), bs=4, device='cpu')
    def table():
        from fastai.tabular.all import TabularPandas
        to = TabularPandas(pd.DataFrame(dict(a=range(12), y=range(12))), cont_names=['a'], y_names='y')
        return seeded(to.dataloaders, bs=4, device='cpu').train
    for make in text,weighted,table:
        set_seed(0)
        dl = make()
        want = [b[-1].tolist() if isinstance(b, (tuple,list)) else b.tolist() for _ in range(3) for b in dl]
        set_seed(0)
        dl,left = make(),ItemsLeft()
        got = [b[-1].tolist() if isinstance(b, (tuple,list)) else b.tolist() for _ in range(4) for b in ShortDL(dl, 2, left)]
        eq(got, want[:8])

def test_two_processes_share_a_pass(monkeypatch):
    "Together they see all items once"
    from fastai.distributed import DistributedDL
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self, t, rank: t)
    seen = []
    for rank in 0,1:
        dl,left = seeded(DataLoader, list(range(12)), bs=2, shuffle=True),ItemsLeft()
        seen.append([o for _ in range(3) for b in ShortDL(DistributedDL(dl, rank, 2, device='cpu'), 2, left) for o in b.tolist()])
    for i in 0,6: eq(sorted(seen[0][i:i+6] + seen[1][i:i+6]), list(range(12)))

def test_mutual_learning():
    from fastkd.schemes.mutual import MutualLearning
    learn,peer = learner(net(8,5)),learner(net(6,5))
    learn.fit(2, 1e-2, cbs=[MutualLearning(peer), ShortEpochs(3, 1)])
    eq(len(learn.recorder.losses), 6)

def test_images_with_augmentation():
    learn = student(image_dls(batch_tfms=aug_transforms()), cbs=[ShortEpochs(3, 1), MixUp()])
    learn.fit(3)
    eq(len(learn.recorder.losses), 9)

@pytest.mark.parametrize('args,message', [((0,), 'n_train=0'), ((2,0), 'n_valid=0'), ((-3,), 'n_train=-3')])
def test_numbers_out_of_range(args, message):
    with pytest.raises(ValueError, match=message): ShortEpochs(*args)
    with pytest.raises(TypeError, match='n_train=2.5'): ShortEpochs(2.5)

def test_it_comes_after_fastais_trainer_of_several_processes():
    from fastai.distributed import DistributedDL, DistributedTrainer
    eq(ShortEpochs.order, DistributedTrainer.order+1)
    eq(DistributedDL.__name__, 'DistributedDL')  # by which it is known without an import
