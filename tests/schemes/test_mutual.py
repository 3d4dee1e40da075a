"Two networks that learn from each other, and one that learns from its own average: each number by hand"
from copy import deepcopy
from functools import partial

import pytest
from fastai.callback.all import *

from fastkd.losses.soft_targets import SoftTarget
from fastkd.schemes.mean_teacher import MeanTeacher
from fastkd.schemes.mutual import MutualLearning
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.resume import Resume
from helpers import *
from interrupted import *
from fastcore.test import test_close as close, test_eq as eq

def pair(*ns, dls=None, p=0., make=net, **kwargs):
    "Learners with networks of the widths `ns`, on the same loaders, always in the same order"
    set_seed(0)
    dls = dls or vectors()
    res = [learner(seeded(make, *n, p=p, seed=i), dls, **kwargs) for i,n in enumerate(ns or ((8,),(5,)))]
    dls.train.rng = random.Random(0)
    set_seed(1)
    return res

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

# Mutual learning: the loss
def kl(z, t, T=1.): return T**2*F.kl_div((z/T).log_softmax(1), (t.detach()/T).softmax(1), reduction='batchmean')

class ByHand(Callback):
    "The gradients that each network got for a batch, and those of its own loss, by hand; BatchNorm is in eval mode for both"
    order,run_valid = 55,False
    def __init__(self, models, loss): self.models,self.loss,self.n = models,loss,0
    def before_step(self):
        zs = [m(*self.xb) for m in self.models]
        for i,m in enumerate(self.models):
            want = torch.autograd.grad(self.loss(self.learn, i, zs), list(m.parameters()), retain_graph=True)
            for p,g in zip(m.parameters(), want): assert torch.allclose(p.grad, g, atol=1e-6), (p.grad-g).abs().max()
        close(self.learn.loss.item(), self.loss(self.learn, 0, zs).item(), eps=1e-5)
        self.n += 1

def ce(learn, z): return F.cross_entropy(z, learn.yb[0])
def mixed_ce(learn, z):
    m = learn.mix_up
    return (m.lam*F.cross_entropy(z, learn.yb[0], reduction='none') + (1-m.lam)*F.cross_entropy(z, m.yb1[0], reduction='none')).mean()

@pytest.mark.parametrize('k,w,T,cbs,task', [(2,1.,1.,[],ce), (2,.7,3.,[],ce), (3,1.,1.,[],ce), (2,1.,1.,[MixUp],mixed_ce)])
def test_each_network_gets_the_gradient_of_its_own_loss(k, w, T, cbs, task):
    learn,*peers = pair(*[(6+i,) for i in range(k)])
    models = [o.model for o in (learn,*peers)]
    hand = ByHand(models, lambda l,i,zs: task(l, zs[i]) + w*sum(kl(zs[i], z, T) for j,z in enumerate(zs) if j!=i)/(k-1))
    learn.fit_mutual(peers if k>2 else peers[0], 2, 1e-2, weight=w, T=T, cbs=[*[c() for c in cbs], hand])
    eq(hand.n, 8)

def test_several_labels_compare_each_class():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    dl = DataLoader(list(zip(x, (x[:,:3]>0).float())), bs=8, num_workers=0)
    learn,peer = [learner(seeded(net, n, p=0., seed=n), DataLoaders(dl, dl, device='cpu'), loss_func=BCEWithLogitsLossFlat(), metrics=None) for n in (5,6)]
    def loss(l, i, zs):
        p,q = zs[1-i].detach().sigmoid(),zs[i].sigmoid()
        return F.binary_cross_entropy_with_logits(zs[i], l.yb[0]) + (p*(p/q).log() + (1-p)*((1-p)/(1-q)).log()).mean()
    learn.fit_mutual(peer, 1, 1e-2, cbs=ByHand([learn.model, peer.model], loss))

def test_items_without_labels_count_for_the_comparison_only():
    class Hide(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.learn.yb = (torch.where(torch.arange(8)%4<self.iter, -1, self.yb[0]),)  # none, two, four, six of eight
    learn,peer = pair(loss_func=CrossEntropyLossFlat(ignore_index=-1))
    learn.fit_mutual(peer, 1, 1e-2, cbs=[Hide(), hand := ByHand([learn.model, peer.model], lambda l,i,zs: F.cross_entropy(zs[i], l.yb[0], ignore_index=-1) + kl(zs[i], zs[1-i]))])
    eq(hand.n, 4)

def test_beside_a_teacher():
    learn,peer = pair()
    t = seeded(net, 16, seed=9).eval()
    def loss(l, i, zs): return (.5*ce(l, zs[0]) + .5*kl(zs[0], t(l.xb[0]), 4.) if i==0 else ce(l, zs[1])) + kl(zs[i], zs[1-i])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.fit_mutual(peer, 1, 1e-2, cbs=[KnowledgeDistillation(t), hand := ByHand([learn.model, peer.model], loss)])
    eq(hand.n, 4)

# What does not change
@pytest.mark.parametrize('opt', [Adam, partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.AdamW)])
def test_weight_0_trains_each_as_by_itself_bit_for_bit(opt):
    alone = []
    for i in range(2):
        ls = pair(opt_func=opt)
        ls[i].fit_one_cycle(3, 1e-2, wd=.1)
        alone.append(ls[i])
    learn,peer = pair(opt_func=opt)
    learn.fit_mutual(peer, 3, 1e-2, weight=0., wd=.1)
    for a,b in zip(alone, (learn,peer)): assert same_state(state(a.model), state(b.model))
    eq([r[:3] for r in learn.recorder.values], list(alone[0].recorder.values))
    eq([r[3:] for r in learn.recorder.values], [r[1:] for r in alone[1].recorder.values])  # the peer's columns
    learn,peer = pair(opt_func=opt)
    learn.fit_mutual(peer, 3, 1e-2, wd=.1)
    assert not torch.equal(weights(learn), weights(alone[0])) and not torch.equal(weights(peer), weights(alone[1]))

def test_the_peers_dropout_leaves_the_learners_alone():
    alone,_ = pair(p=.5)
    alone.fit_one_cycle(2, 1e-2)
    learn,peer = pair(p=.5)
    learn.fit_mutual(peer, 2, 1e-2, weight=0.)
    assert same_state(state(alone.model), state(learn.model))
    seen = []
    learn,peer = pair((8,),(8,), p=.5)
    for l in (learn,peer): l.model[-2].register_forward_hook(lambda m,i,o: seen.append(o==0) if m.training else None)
    learn.fit_mutual(peer, 1, 1e-2)
    masks = list(zip(seen[::2], seen[1::2]))
    assert all(not torch.equal(a, b) for a,b in masks) and not torch.equal(seen[1], seen[3])

# Steps
def plain_net(n, p=0.): return nn.Sequential(nn.Linear(6,n), nn.Tanh(), nn.Linear(n,3))

def in_order(bs):
    dls = vectors(bs)
    return DataLoaders(dls.train.new(shuffle=False), dls.valid, device='cpu')

def test_gradient_accumulation_equals_one_big_batch_for_both():
    def run(bs, *cbs):
        learn,peer = pair(dls=in_order(bs), make=plain_net, opt_func=partial(SGD, mom=.9))
        learn.fit_mutual(peer, 2, .05, cbs=list(cbs), moms=(.9,.9,.9), div=1., div_final=1.)
        return weights(learn),weights(peer)
    big,small,other = run(32),run(8, GradientAccumulation(32)),run(8)
    for a,b,c in zip(big, small, other): assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, c, atol=1e-4)

class Moves(Callback):
    order,run_valid = 55,False
    def before_fit(self): self.seen = []
    def _now(self): return [weights(o).clone() for o in (self.learn, *self.mutual_learning.peers)]
    def before_batch(self): self.old = self._now()
    def after_batch(self): self.seen.append([not torch.equal(a,b) for a,b in zip(self.old, self._now())])

def test_fp16_scale_is_taken_out_and_overflow_skips_both():
    def run(*cbs):
        learn,peer = pair(dls=in_order(8), make=plain_net, opt_func=partial(SGD, mom=.9))
        start = weights(learn),weights(peer)
        learn.fit_mutual(peer, 2, 1e-2, cbs=list(cbs))
        return [a-b for a,b in zip((weights(learn),weights(peer)), start)]
    full = run()
    half = run(CPUMixedPrecision('fp16', init_scale=1024.))
    for a,b in zip(full, half): assert (a-b).norm() < .02*a.norm()
    skipped = run(CPUMixedPrecision('fp16', init_scale=2.**100, growth_interval=1000))
    for o in skipped: assert not o.any()

def test_overflow_of_the_peer_skips_its_step_and_that_of_the_learner_both():
    learn,peer = pair(dls=in_order(8), make=plain_net)
    moves,scales = Moves(),[]
    class Break(Callback):
        order,run_valid = 5,False
        def after_backward(self):
            if self.train_iter in (1,2): (peer if self.train_iter==1 else self.learn).model[0].weight.grad[0,0] = torch.inf
        def after_batch(self): scales.append(self.learn.scaler.get_scale())
    learn.fit_mutual(peer, 1, 1e-2, cbs=[CPUMixedPrecision('fp16', init_scale=1024.), moves, Break()])
    eq(moves.seen, [[True,True],[True,False],[False,False],[True,True]])
    eq(scales, [1024.,512.,256.,256.])

def test_schedule_is_the_learners_for_any_number_of_groups():
    dls,seen = vectors(),[]
    def split(m): return [list(m[:1].parameters()), list(m[1:].parameters())]
    learn,peer,other = learner(net(5), dls, splitter=split),learner(net(5), dls, splitter=split),learner(net(5), dls, opt_func=partial(SGD, mom=.5))
    class Rates(Callback):
        order,run_valid = 55,False
        def after_step(self): seen.append([[(h['lr'],h['mom']) for h in o.opt.hypers] for o in (learn,peer,other)])
    learn.fit_mutual([peer,other], 1, slice(1e-4,1e-2), cbs=Rates())
    assert len({o[0][0] for o in seen}) == 4
    for a,b,c in seen: assert a == b and c == a[-1:] and a[0][0] < a[1][0]

# The table, and the peer afterwards
def test_columns_hold_the_peers_validation():
    learn,peer,other = pair((4,),(5,),(6,), metrics=[accuracy, F1Score(average='macro')])
    learn.fit_mutual([peer,other], 2, 1e-2)
    eq(learn.recorder.metric_names, ['epoch','train_loss','valid_loss','accuracy','f1_score','peer1_valid_loss','peer1_accuracy','peer1_f1_score','peer2_valid_loss','peer2_accuracy','peer2_f1_score','time'])
    row = learn.recorder.values[-1]
    for i,l in enumerate((learn,peer,other)): close(row[1+3*i:4+3*i], l.validate(), eps=1e-6)
    eq(len(learn.validate()), 3)  # without them outside a fit

def test_monitoring_a_peers_column():
    learn,peer = pair()
    learn.fit_mutual(peer, 5, 1e-2, cbs=EarlyStoppingCallback(monitor='peer_valid_loss', min_delta=100., patience=2))
    eq(len(learn.recorder.values), 3)

def test_peer_is_a_learner_like_any_other_afterwards(tmp_path):
    set_seed(0)
    dls = image_dls()
    learn,peer = student(dls, path=tmp_path),student(dls, cs=(3,5), seed=2, path=tmp_path)
    cbs = list(peer.cbs)
    learn.fit_mutual(peer, 1, 1e-2)
    eq(list(peer.cbs), cbs)
    assert not peer.model.training and n_hooks(peer.model)==0 and peer.dl is None and all(not p.grad.any() for p in peer.model.parameters())
    assert peer.predict(dls.valid_ds.items[0][0])[0] in 'abc'
    peer.fit_one_cycle(1)
    peer.export('peer.pkl')
    for l in (learn,peer): eq(len(l.recorder.metric_names), 5 if l is peer else 7)

def test_mock_training_and_validation_leave_the_peer_alone(tmp_path):
    learn,peer = pair(path=tmp_path)
    learn.add_cb(MutualLearning(peer))
    before = state(peer.model)
    learn.lr_find(num_it=6, show_plot=False); learn.validate(); learn.get_preds()
    assert same_state(before, state(peer.model)) and peer.opt is None
    learn.fit(1)
    assert not same_state(before, state(peer.model))

def test_export_and_copy_hold_no_peer(tmp_path):
    dls = image_dls()
    learn,peer = student(dls, path=tmp_path),student(dls, cs=(64,128), path=tmp_path)
    learn.export('alone.pkl')
    learn.add_cb(m := MutualLearning(peer))
    learn.fit(1)
    learn.export('with.pkl')
    assert (tmp_path/'with.pkl').stat().st_size < 3*(tmp_path/'alone.pkl').stat().st_size < peer.path.joinpath(peer.save('p')).stat().st_size
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'with.pkl')
    assert not any('fastkd' in type(c).__module__ for c in loaded.cbs)
    c = deepcopy(learn)
    assert c.mutual_learning is not m and c.mutual_learning.peers[0] is peer and c.mutual_learning.learn is c

# Mistakes
def sharing(l): return learner(nn.Sequential(l.model[0], nn.Linear(8,3)), l.dls)

@pytest.mark.parametrize('kwargs,error,words', [
    (lambda l: dict(peer=l), ValueError, 'peer is the learner itself'),
    (lambda l: dict(peer=learner(l.model, l.dls)), ValueError, 'has its model'),
    (lambda l: dict(peer=sharing(l)), ValueError, 'peer shares 4 parameters with the learner'),
    (lambda l: dict(peer=[learner(net(5)), sharing(l)]), ValueError, 'peer number 2 shares 4 parameters with the learner'),
    (lambda l: dict(peer=[o := learner(net(5)), o]), ValueError, 'peer number 2 is peer number 1 itself'),
    (lambda l: dict(peer=net(5)), TypeError, 'Sequential'),
    (lambda l: dict(peer=[]), ValueError, 'empty'),
    (lambda l: dict(peer=learner(nn.Linear(6,4))), ValueError, r'predicts \(8, 4\) and the learner \(8, 3\)'),
    (lambda l: dict(peer=learner(net(5), loss_func=MSELossFlat())), ValueError, 'same loss function'),
    (lambda l: dict(peer=learner(net(5)), n_epoch=0), ValueError, 'n_epoch=0'),
    (lambda l: dict(peer=learner(net(5)), weight=-1.), ValueError, 'weight=-1'),
    (lambda l: dict(peer=learner(net(5)), T=0.), ValueError, 'T=0'),
    (lambda l: dict(peer=learner(net(5)), file=3), TypeError, 'file=3')])
def test_mistakes_are_errors_and_nothing_is_trained(kwargs, error, words):
    learn,_ = pair()
    before,cbs = state(learn.model),list(learn.cbs)
    with pytest.raises(error, match=words): learn.fit_mutual(**{'n_epoch':1, **kwargs(learn)})
    eq(list(learn.cbs), cbs)
    assert same_state({k:v for k,v in before.items() if 'running' not in k and 'num_batches' not in k}, {k:v for k,v in state(learn.model).items() if 'running' not in k and 'num_batches' not in k})

def test_peer_with_other_classes():
    learn,peer = student(image_dls()),student(image_dls(vocab=('b','a','c')))
    with pytest.raises(ValueError, match="classes \\['b', 'a', 'c'\\] and the learner \\['a', 'b', 'c'\\]"): learn.fit_mutual(peer, 1)

def test_regression_is_an_error():
    ls = pair(loss_func=MSELossFlat())
    with pytest.raises(ValueError, match='it is for classification'): ls[0].fit_mutual(ls[1], 1)

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, CancelFitException])
@pytest.mark.parametrize('event', ['before_batch','after_loss','after_backward'])
def test_nothing_is_left_after_an_interruption(event, error):
    learn,peer = pair()
    cbs = list(learn.cbs)
    try: learn.fit_mutual(peer, 2, 1e-2, cbs=Stop(1, error, event))
    except (RuntimeError,KeyboardInterrupt): pass
    eq(list(learn.cbs), cbs)
    assert not peer.model.training and peer.xb == (None,) and all(not p.grad.any() for p in peer.model.parameters())
    learn.fit_mutual(peer, 1, 1e-2)
    eq(len(learn.recorder.values[0]), 5)

# Resuming
@pytest.mark.parametrize('at', [0,2])
def test_mutual_learning_resumes_bit_for_bit(at, tmp_path):
    def fit(*cbs, seed=0, **kwargs):
        learn,peer = pair(p=.3, path=tmp_path)
        if seed:
            for l in (learn,peer): l.model.load_state_dict(seeded(net, *[l.model[0][0].out_features], seed=seed).state_dict())
            learn.dls.train.rng = random.Random(seed)
            set_seed(seed)
        try: learn.fit_mutual(peer, 4, 1e-2, cbs=list(cbs), **kwargs)
        except KeyboardInterrupt: pass
        return learn,peer
    whole,half = fit(),fit(Stop(at), file='a')
    assert not same_state(state(half[1].model), state(whole[1].model))
    again = fit(seed=5, file='a')
    same(again[0], whole[0])
    assert same_state(state(again[1].model), state(whole[1].model))
    alike(again[1].opt.state_dict()['state'], whole[1].opt.state_dict()['state'])
    with pytest.raises(ValueError, match="the file has 1 peers, but there are 2"): pair()[0].fit_mutual([learner(net(5)), learner(net(6))], 4, file=tmp_path/'models'/'a')

# Mean teacher
class Track(Callback):
    "The average by hand: all floating parameters and buffers, after each step that was made"
    order,run_valid = 70,False
    def __init__(self, decay): self.decay,self.n,self.avg = decay,0,None
    def before_train(self):
        if self.avg is None: self.avg = {k: v.clone().double() for k,v in self.model.state_dict().items()}
    def after_step(self):
        if not getattr(self.learn, 'made', True): return
        d = min(self.decay, (1+self.n)/(10+self.n))
        for k,v in self.model.state_dict().items(): self.avg[k] = d*self.avg[k] + (1-d)*v if v.is_floating_point() else v.clone()
        self.n += 1

def check_average(mt, track):
    eq(mt.n_updates, track.n)
    for k,v in mt.ema_model.state_dict().items(): assert torch.allclose(v.double(), track.avg[k].double(), atol=1e-6), k

@pytest.mark.parametrize('decay', [.5,.9,0.])
def test_average_is_the_recurrence_for_weights_and_buffers(decay):
    learn,_ = pair((8,5),(5,))
    mt,track = MeanTeacher(decay=decay),Track(decay)
    learn.fit_one_cycle(3, 1e-2, cbs=[mt, track])
    check_average(mt, track)
    eq(mt.n_updates, 12)
    a,b = mt.ema_model.state_dict(),state(learn.model)
    eq(a['0.1.num_batches_tracked'].item(), 12)
    assert same_state(a, b) == (decay==0)
    assert not any(p.requires_grad or p.grad is not None for p in mt.ema_model.parameters()) and not mt.ema_model.training

def test_student_learns_from_the_average():
    learn,_ = pair()
    mt,seen = MeanTeacher(decay=.9, loss=SoftTarget(T=2.), weight=.3),[]
    class Loss(Callback):
        order,run_valid = KnowledgeDistillation.order+.1,False
        def after_loss(self): seen.append((self.learn.loss.item(), (.7*ce(self.learn, self.pred) + .3*kl(self.pred, self.mean_teacher.ema_model(self.xb[0]), 2.)).item()))
    learn.fit(2, 1e-2, cbs=[mt, Loss()])
    eq(len(seen), 8)
    for a,b in seen: close(a, b, eps=1e-5)

def test_weight_0_is_plain_training_and_still_averages():
    plain,_ = pair(p=.3)
    plain.fit_one_cycle(2, 1e-2)
    learn,_ = pair(p=.3)
    mt,track = MeanTeacher(decay=.8, weight=0.),Track(.8)
    learn.fit_one_cycle(2, 1e-2, cbs=[mt, track])
    assert same_state(state(learn.model), state(plain.model))
    check_average(mt, track)

def test_only_steps_that_are_made_count():
    learn,_ = pair()
    mt,track = MeanTeacher(decay=.9),Track(.9)
    learn.fit(3, 1e-2, cbs=[GradientAccumulation(24), mt, track])
    eq(mt.n_updates, 4)
    check_average(mt, track)
    learn,_ = pair()
    mt,before = MeanTeacher(decay=.9),weights(learn)
    learn.fit(1, 1e-2, cbs=[CPUMixedPrecision('fp16', init_scale=2.**100, growth_interval=1000), mt])
    eq(mt.n_updates, 0)
    assert torch.equal(weights(learn), before)

def test_shared_parameters_stay_shared_and_are_averaged_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.b = nn.Linear(6,6),nn.Linear(6,6)
            self.b.weight = self.a.weight
            self.head = nn.Linear(6,3)
        def forward(self, x): return self.head(self.b(self.a(x).tanh()))
    learn = learner(seeded(Tied))
    mt,track = MeanTeacher(decay=.5),Track(.5)
    learn.fit(1, 1e-2, cbs=[mt, track])
    assert mt.ema_model.a.weight is mt.ema_model.b.weight and mt.ema_model.a.weight is not learn.model.a.weight
    check_average(mt, track)

def test_averaged_lends_the_learner_the_average():
    learn,_ = pair()
    learn.fit(3, 1e-2, cbs=(mt := MeanTeacher(decay=.9)))
    own,params = state(learn.model),list(learn.model.parameters())
    with mt.averaged(learn) as l:
        assert l is learn and same_state(state(learn.model), state(mt.ema_model))
        z = learn.get_preds(act=noop)[0]
    close(z, mt.ema_model(learn.dls.valid.one_batch()[0]), eps=1e-5)
    with pytest.raises(RuntimeError):
        with mt.averaged(learn): raise RuntimeError('x')
    assert same_state(own, state(learn.model)) and all(a is b for a,b in zip(params, learn.model.parameters()))
    for o in None,learner(net(8)):
        with pytest.raises(ValueError, match='give the learner that was trained'):
            with mt.averaged(o): pass

def test_average_goes_on_in_a_second_fit_and_begins_anew_for_another_model():
    learn,other = pair()
    mt,track = MeanTeacher(decay=.9),Track(.9)
    learn.add_cbs([mt, track])
    learn.fit(1, 1e-2)
    learn.fit(1, 1e-2)
    check_average(mt, track)
    eq(mt.n_updates, 8)
    learn.remove_cbs([mt, track])
    other.fit(1, 1e-2, cbs=mt)
    eq(mt.n_updates, 4)

def test_average_starts_from_weights_that_are_loaded_after_it_was_attached():
    learn,_ = pair()
    learn.add_cbs([mt := MeanTeacher(decay=.9), track := Track(.9)])
    learn.model.load_state_dict(seeded(net, 8, p=0., seed=9).state_dict())
    learn.fit(1, 1e-2)
    check_average(mt, track)

def test_mock_training_leaves_the_average_alone(tmp_path):
    learn,_ = pair(path=tmp_path)
    learn.add_cb(mt := MeanTeacher(decay=.5))
    learn.fit(1, 1e-2)
    before = state(mt.ema_model)
    learn.lr_find(num_it=6, show_plot=False); learn.validate(); learn.get_preds(); learn.summary()
    assert same_state(before, state(mt.ema_model)) and mt.n_updates == 4

def test_export_holds_no_average_and_a_copy_its_own(tmp_path):
    learn = student(image_dls(), cs=(64,128), path=tmp_path)
    learn.export('alone.pkl')
    size = (tmp_path/'alone.pkl').stat().st_size
    learn.add_cb(mt := MeanTeacher(decay=.5))
    learn.export('with.pkl')
    assert (tmp_path/'with.pkl').stat().st_size < 1.05*size
    c = deepcopy(learn)
    assert c.mean_teacher.student is c.model and c.mean_teacher.ema_model is not mt.ema_model
    before = state(mt.ema_model)
    c.fit(1, 1e-2)
    assert same_state(before, state(mt.ema_model)) and not same_state(before, state(c.mean_teacher.ema_model))

@pytest.mark.parametrize('at', [0,2])
def test_mean_teacher_resumes_bit_for_bit(at, tmp_path):
    def fit(*cbs, seed=1):
        learn,mt = fresh(tmp_path, seed=seed),MeanTeacher(decay=.9, weight=SchedCos(0,.7))
        try: learn.fit_one_cycle(4, 1e-2, cbs=[mt, *cbs])
        except KeyboardInterrupt: pass
        return learn,mt
    whole,half,again = fit(),fit(Resume('a'), Stop(at)),fit(Resume('a'), seed=7)
    same(again[0], whole[0])
    assert same_state(state(again[1].ema_model), state(whole[1].ema_model))
    eq((again[1].n_updates, half[1].n_updates), (16, 4*at+1))

def test_items_without_labels_learn_from_the_average():
    class Hide(Callback):
        order,run_valid = -5,False
        def before_batch(self): self.learn.yb = (torch.where(torch.arange(8)<self.iter, self.yb[0], -1),)  # none, one, two, three of eight are labelled
    learn,_ = pair(loss_func=CrossEntropyLossFlat(ignore_index=-1))
    seen,mt = [],MeanTeacher(decay=.9, loss=SoftTarget(T=1.), hard_weight=1., weight=1.)
    class Loss(Callback):
        order,run_valid = KnowledgeDistillation.order+.1,False
        def after_loss(self): seen.append((self.learn.loss.item(), (F.cross_entropy(self.pred, self.yb[0], ignore_index=-1) if self.iter else 0.)+kl(self.pred, mt.ema_model(self.xb[0]))))
    learn.fit(1, 1e-2, cbs=[Hide(), mt, Loss()])
    for a,b in seen: close(a, b.item(), eps=1e-5)

@pytest.mark.parametrize('decay', [1.,-.1,1.5,float('nan')])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match='decay='): MeanTeacher(decay=decay)
def test_decay_of_another_type():
    with pytest.raises(TypeError, match='decay='): MeanTeacher(decay='a')
