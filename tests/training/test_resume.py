"An interrupted fit continues as if nothing had happened: same weights, same table, whatever else is trained"
from contextlib import nullcontext
from copy import deepcopy
from functools import partial

import pytest
from fastai.callback.all import *

from fastkd.losses.features import FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.checkpoint import plain_data, random_states
from fastkd.training.resume import Resume
from helpers import *
from interrupted import *
from fastcore.test import test_close as close, test_eq as eq

def trained(fit, path, **kwargs):
    "A learner after an uninterrupted `fit`"
    learn = fresh(path, **kwargs)
    fit(learn, [])
    return learn

def teacher_of(learn): return seeded(net, 16, 12, seed=9).eval()
def kd(learn): return KnowledgeDistillation(teacher_of(learn), [SoftTarget(), FitNet(layers='1')], weight=SchedCos(.9, .1))

def plain(learn, cbs): learn.fit_one_cycle(4, 1e-2, cbs=cbs)
def flat(learn, cbs): learn.fit_flat_cos(4, 1e-2, cbs=cbs)
def distil(learn, cbs): learn.fit_one_cycle(4, 1e-2, cbs=[kd(learn), *cbs])
def mixup(learn, cbs): learn.fit_one_cycle(4, 1e-2, cbs=[MixUp(), *cbs])
def accumulate(learn, cbs):
    "With 4 batches of 8, an epoch carries gradients over to the next"
    learn.fit_one_cycle(4, 1e-2, cbs=[GradientAccumulation(24), *cbs])
def plateau(learn, cbs): learn.fit(4, 1e-2, cbs=[ReduceLROnPlateau(min_delta=100., patience=2, factor=3.), *cbs])
def fp16(learn, cbs): learn.fit_one_cycle(4, 1e-2, cbs=[CPUMixedPrecision('fp16', init_scale=512., growth_interval=3), *cbs])
def wrapped(learn, cbs):
    learn.opt_func = partial(OptimWrapper, opt=torch.optim.AdamW)
    learn.fit_one_cycle(4, 1e-2, cbs=cbs)
fits = [plain, flat, distil, mixup, accumulate, plateau, fp16, wrapped]

pytestmark = pytest.mark.filterwarnings('ignore:The teacher')

@pytest.mark.parametrize('fit,at', [(f,2) for f in fits] + [(plain,0), (distil,0), (accumulate,1)])
def test_interrupted_fit_goes_on_bit_for_bit(fit, at, tmp_path):
    whole = trained(fit, tmp_path)
    with pytest.raises(KeyboardInterrupt): fit(fresh(tmp_path), [Resume('a'), Stop(at)])
    learn,n = fresh(tmp_path, seed=7),Batches()  # other weights, other shuffling: all comes from the file
    fit(learn, [Resume('a'), n])
    eq(n.n, 4*(4-at))
    same(learn, whole)

def failing(event): return Callback(**{event: lambda cb: exec('raise RuntimeError("stopped")') if cb.epoch==1 else None})

@pytest.mark.parametrize('fit,stop', [
    *[(plain, Stop(1, RuntimeError, o)) for o in ('before_batch','after_loss','after_backward','after_step')],
    (plain, failing('before_validate')), (plain, failing('after_epoch')),
    (distil, Stop(1, RuntimeError)), (distil, Stop(0, RuntimeError)), (mixup, Stop(1, RuntimeError)), (accumulate, Stop(2, RuntimeError))])
def test_same_learner_goes_on_after_an_error_anywhere_in_an_epoch(fit, stop, tmp_path):
    whole,learn = trained(fit, tmp_path),fresh(tmp_path)
    with pytest.raises(RuntimeError): fit(learn, [Resume('a'), stop])
    assert all(c.run for c in learn.cbs)
    fit(learn, [Resume('a')])
    same(learn, whole)

def test_interrupted_twice(tmp_path):
    whole = trained(plain, tmp_path)
    for i,at in enumerate([1,1,3]):
        with pytest.raises(KeyboardInterrupt): plain(fresh(tmp_path, seed=i+1), [Resume('a'), Stop(at)])
    learn = fresh(tmp_path, seed=5)
    plain(learn, [Resume('a')])
    same(learn, whole)

def test_a_checkpoint_changes_nothing(tmp_path):
    whole,learn = trained(distil, tmp_path),fresh(tmp_path)
    distil(learn, [Resume('a')])
    same(learn, whole)

def test_finished_fit_is_loaded_and_not_repeated(tmp_path):
    whole = fresh(tmp_path)
    plain(whole, [Resume('a')])
    after = torch.rand(1)
    learn,n = fresh(tmp_path, seed=7),Batches()
    plain(learn, [Resume('a'), n])
    eq(n.n, 0)
    same(learn, whole)
    eq(torch.rand(1), after)  # what follows a fit is the same, too
    eq(learn.recorder.hps, whole.recorder.hps)
    assert not learn.model.training

@pytest.mark.parametrize('at', [None, 1])
def test_only_a_finished_fit_says_that_nothing_is_trained(at, tmp_path, capsys):
    "One that continues in its second epoch or its second half, says nothing"
    def tune(learn, cbs): learn.fine_tune(2, 1e-2, freeze_epochs=1, cbs=cbs)
    stop = [] if at is None else [Callback(after_backward=lambda cb: exec('raise KeyboardInterrupt') if (cb.n_epoch,cb.epoch)==(2,at) else None)]
    with nullcontext() if at is None else pytest.raises(KeyboardInterrupt): tune(fresh(tmp_path), [Resume('a'), *stop])
    tune(fresh(tmp_path, seed=7), [Resume('a')])
    eq(capsys.readouterr().out.count('a.pth\', 2 epochs: nothing is trained'), int(at is None))

@pytest.mark.parametrize('at', [0, 1, 2])
@pytest.mark.parametrize('new', [False, True])
def test_history_counts_an_interrupted_fit_once(at, new, tmp_path):
    learn = fresh(tmp_path)
    learn.add_cb(kd(learn))
    with pytest.raises(KeyboardInterrupt): learn.fit(3, 1e-2, cbs=[Resume('a'), Stop(at)])
    if new:
        learn = fresh(tmp_path, seed=7)
        learn.add_cb(kd(learn))
    learn.fit(3, 1e-2, cbs=Resume('a'))
    eq(learn.knowledge_distillation.history[['fit','epoch']].values.tolist(), [[0,0],[0,1],[0,2]])

def test_table_shows_the_rows_of_skipped_epochs_with_their_times(tmp_path, monkeypatch):
    monkeypatch.setattr('time.time', lambda: 0.)  # the clock stands still, so a slow machine shows the same times
    learn = fresh(tmp_path)
    slow = Callback(
after_train=lambda cb: setattr(cb.learn.recorder, 'start_epoch', cb.recorder.start_epoch-61))
    with pytest.raises(KeyboardInterrupt): plain(learn, [Resume('a'), Stop(2), slow])
    again,rows = fresh(tmp_path),[]
    again.logger = rows.append
    plain(again, [Resume('a')])
    eq([r[0] for r in rows], [0,1,2,3])
    eq([r[-1] for r in rows], ['01:01','01:01','00:00','00:00'])
    eq([list(r[1:-1]) for r in rows], table(again))

def test_early_stop_is_a_finished_fit(tmp_path):
    def fit(learn, cbs): learn.fit(6, 1e-2, cbs=[EarlyStoppingCallback(min_delta=100., patience=2), Resume('a'), *cbs])
    whole,learn,n = trained(fit, tmp_path),fresh(tmp_path, seed=7),Batches()
    fit(learn, [n])
    eq((n.n, len(table(learn))), (0,3))
    same(learn, whole)

def test_early_stopping_counts_on(tmp_path):
    def fit(learn, cbs): learn.fit(6, 1e-2, cbs=[EarlyStoppingCallback(min_delta=100., patience=3), *cbs])
    whole = trained(fit, tmp_path)
    with pytest.raises(KeyboardInterrupt): fit(fresh(tmp_path), [Resume('a'), Stop(2)])
    learn = fresh(tmp_path, seed=7)
    fit(learn, [Resume('a')])
    eq(len(table(learn)), 4)
    same(learn, whole)

def test_save_model_keeps_the_best_epoch_of_before_the_interruption(tmp_path):
    "With `valid_loss` to be greatest, the best is an early epoch; a skipped epoch must not overwrite it"
    def fit(learn, cbs): learn.fit(4, 1e-2, cbs=[SaveModelCallback(comp=np.greater, fname='best'), *cbs])
    whole = trained(fit, tmp_path/'a')
    assert np.argmax([r[1] for r in table(whole)]) < 2
    with pytest.raises(KeyboardInterrupt): fit(fresh(tmp_path/'b'), [Resume('r'), Stop(2)])
    learn = fresh(tmp_path/'b', seed=7)
    fit(learn, [Resume('r')])
    assert same_state(state(learn.model), state(whole.model))

def test_cancelled_within_an_epoch_goes_on_from_the_one_before(tmp_path):
    whole,learn = trained(plain, tmp_path),fresh(tmp_path)
    plain(learn, [Resume('a'), Stop(2, CancelFitException, 'after_batch')])
    again = fresh(tmp_path, seed=7)
    plain(again, [Resume('a')])
    same(again, whole)

def test_several_fits_of_one_resume_as_in_fine_tune(tmp_path):
    def split(m): return [list(m[:2].parameters()), list(m[2:].parameters())]
    def tune(learn, cbs): learn.fine_tune(3, 1e-2, freeze_epochs=2, cbs=cbs)
    whole,half = trained(tune, tmp_path, splitter=split),fresh(tmp_path, splitter=split)
    stop = Callback(after_backward=lambda cb: exec('raise KeyboardInterrupt') if cb.n_epoch==3 and cb.epoch==1 else None)
    with pytest.raises(KeyboardInterrupt): tune(half, [Resume('a'), stop])
    learn,n = fresh(tmp_path, seed=7, splitter=split),Batches()
    tune(learn, [Resume('a'), n])
    eq(n.n, 4*2)
    same(learn, whole)

def test_attached_for_good(tmp_path):
    "A second fit is another fit, after the first is finished"
    def two(learn, cbs):
        learn.fit(2, 1e-2)
        learn.fit(3, 1e-3)
    whole = trained(two, tmp_path)
    same(trained(two, tmp_path, cbs=Resume('a')), whole)
    again = trained(two, tmp_path, seed=7, cbs=[Resume('a'), Batches()])
    eq(again.batches.n, 0)
    same(again, whole)

def test_an_early_stop_before_the_interrupted_fit_is_not_trained_on(tmp_path):
    seen = []
    def two(learn, cbs):
        learn.fit(6, 1e-2, cbs=[EarlyStoppingCallback(min_delta=100., patience=2), *cbs])
        seen.append(table(learn))
        learn.fit(4, 1e-3, cbs=cbs)
    whole = trained(two, tmp_path)
    with pytest.raises(KeyboardInterrupt): two(fresh(tmp_path), [Resume('a'), Stop(3)])  # the first fit stops after 3 epochs
    learn,n = fresh(tmp_path, seed=7),Batches()
    two(learn, [Resume('a'), n])
    eq(n.n, 4)
    same(learn, whole)
    eq(seen[2], seen[0])

def test_an_interruption_while_epochs_are_skipped_wakes_the_callbacks(tmp_path):
    with pytest.raises(KeyboardInterrupt): plain(fresh(tmp_path), [Resume('a'), Stop(2)])
    learn,n = fresh(tmp_path),Batches()
    learn.add_cb(n)
    def stop(row): raise KeyboardInterrupt
    learn.logger = stop
    with pytest.raises(KeyboardInterrupt): plain(learn, [Resume('a')])
    assert n.run and all(c.run for c in learn.cbs)

def test_mock_training_validation_and_prediction_leave_the_file_alone(tmp_path):
    set_seed(0)
    learn = student(image_dls(), path=tmp_path, cbs=Resume('a'))
    file = tmp_path/'models'/'a.pth'
    def others():
        learn.validate(); learn.get_preds(); learn.predict(learn.dls.valid_ds.items[0][0]); learn.summary(); learn.tta(n=1)
        learn.lr_find(num_it=6, show_plot=False)
    others()
    assert not file.exists()
    with pytest.raises(KeyboardInterrupt): learn.fit(3, 1e-2, cbs=Stop(1))
    before,s = file.read_bytes(),state(learn.model)
    others()
    assert file.read_bytes() == before and same_state(s, state(learn.model))

def test_interruption_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    whole,learn,save,n = trained(plain, tmp_path),fresh(tmp_path),torch.save,[]
    def _save(o, f, *args, **kwargs):
        n.append(0)
        if len(n) < 4: return save(o, f, *args, **kwargs)
        Path(f).write_bytes(b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, 'save', _save)
    with pytest.raises(KeyboardInterrupt): plain(learn, [Resume('a')])
    monkeypatch.undo()
    eq([o.name for o in (tmp_path/'models').iterdir()], ['a.pth'])
    again = fresh(tmp_path, seed=7)
    plain(again, [Resume('a')])
    same(again, whole)

def two_groups(m): return [list(m[:1].parameters()), list(m[1:].parameters())]
@pytest.mark.parametrize('change,words', [
    (lambda p: fresh(p).fit_one_cycle(5, cbs=Resume('a')), 'epochs: 4 in the file, 5 in this fit'),
    (lambda p: plain(fresh(p, ns=(8,7)), Resume('a')), "model['1.0.weight']: 5×8 in the file, 7×8 in this fit"),
    (lambda p: plain(fresh(p, ns=(8,5,5)), Resume('a')), "model['3.weight']: 3×5 in the file, missing in this fit"),
    (lambda p: plain(fresh(p, bs=16), Resume('a')), 'batches: 4 in the file, 2 in this fit'),
    (lambda p: plain(fresh(p, splitter=two_groups), Resume('a')), 'groups: [10] in the file, [4, 6] in this fit'),
    (lambda p: plain(fresh(p, opt_func=partial(SGD, mom=.9)), Resume('a')),
     'in the file, weight_decay average_grad momentum_step in this fit'),
    (lambda p: distil(fresh(p), [Resume('a')]), "callbacks: [] in the file, ['knowledge_distillation'] in this fit")])
def test_another_setting_is_an_error(change, words, tmp_path):
    plain(fresh(tmp_path), [Resume('a')])
    with pytest.raises(ValueError, match='delete the file or use another name') as e: change(tmp_path)
    assert words in str(e.value) and 'a.pth' in str(e.value), e.value

def test_a_file_of_another_kind_is_an_error(tmp_path):
    learn = fresh(tmp_path)
    learn.save('weights')
    with pytest.raises(ValueError, match="weights.pth' is not a checkpoint"): learn.fit(1, cbs=Resume('weights'))
    (tmp_path/'models'/'text.pth').write_text('hello')
    with pytest.raises(ValueError, match="text.pth' can't be read"): learn.fit(1, cbs=Resume('text'))
    for f in None,3,'':
        with pytest.raises(TypeError, match='file='): Resume(f)
    with pytest.raises(ValueError, match='has a Resume already'): learn.fit(1, cbs=[Resume('a'), Resume('b')])

def test_a_state_that_cannot_be_saved_is_an_error_before_training(tmp_path):
    class Odd(Callback):
        def state_dict(self): return {'f': {1,2}}
        def load_state_dict(self, sd): pass
    learn,n = fresh(tmp_path),Batches()
    with pytest.raises(TypeError, match=r"\['callbacks'\]\['odd'\]\['f'\] has a set"): learn.fit(1, cbs=[Odd(), n, Resume('a')])
    eq(n.n, 0)

def test_export_leaves_it_behind_and_a_copy_has_its_own(tmp_path):
    learn = student(image_dls(), path=tmp_path, cbs=Resume('a'))
    learn.export('x.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        eq({type(c).__module__.split('.')[0] for c in load_learner(tmp_path/'x.pkl').cbs}, {'fastai'})
    c = deepcopy(learn)
    assert c.resume is not learn.resume and c.resume.learn is c

def test_random_states_have_all(tmp_path):
    learn = fresh(tmp_path)
    a = random_states(learn.dls)
    list(learn.dls.train)
    b = random_states(learn.dls)
    assert a['loaders'][0] != b['loaders'][0] and torch.equal(plain_data(a)['torch'], a['torch'])

def test_the_names_in_the_file_stay(tmp_path):
    "Else files that were written before don't load"
    accumulate(fresh(tmp_path), [Resume('a')])
    ck = torch.load(tmp_path/'models'/'a.pth', weights_only=True)
    eq(list(ck), ['fastkd_resume','fit','finished','fits','learner','random','train_iter','callbacks','scaler','recorder'])
    eq((ck['fastkd_resume'], ck['fit'], ck['finished'], ck['train_iter']), (1, 0, True, 16))
    eq(list(ck['fits'][0]), ['kind','done','rows','seconds'])
    eq(list(ck['fits'][0]['kind']), ['epochs','batches','model','optimiser','groups','callbacks'])
    eq(list(ck['learner']), ['model','opt','grads'])
    eq(list(ck['random']), ['python','numpy','torch','cuda','loaders'])
    eq(ck['callbacks'].keys(), {'param_scheduler','gradient_accumulation'})
    eq(list(ck['recorder']), ['lrs','iters','losses','count','val'])
