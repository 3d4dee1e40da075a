"Cyclical learning rates: those of PyTorch's CyclicLR and of the formulas, set in the optimiser, whatever else is in the fit"
import math
from functools import partial

import matplotlib.pyplot as plt, numpy as np, pytest
from fastai.callback.all import *

from fastkd.losses.soft_targets import SoftTarget
from fastkd.training.callback import KnowledgeDistillation
from fastkd.training.cycles import CycleScheduler, clr_schedule
from fastkd.training.resume import Resume
from fastkd.training.short_epochs import ShortEpochs
from helpers import *
from interrupted import *
from fastcore.test import test_close as close, test_eq as eq  # after the others, which have an `eq` of their own

def torch_rates(n, base, top, step, **kwargs):
    "The rates of PyTorch's scheduler, (n, groups), and its momenta"
    opt = torch.optim.SGD([{'params':[nn.Parameter(torch.zeros(1))]} for _ in base], lr=1., momentum=.9)
    sched = torch.optim.lr_scheduler.CyclicLR(opt, list(base), list(top), step_size_up=step, **kwargs)
    rates,moms = [],[]
    for _ in range(n):
        rates.append([g['lr'] for g in opt.param_groups])
        moms.append(opt.param_groups[-1]['momentum'])
        opt.step()
        sched.step()
    return np.array(rates),np.array(moms)

modes = [dict(mode='triangular'), dict(mode='triangular2'), dict(mode='exp_range', gamma=.99),
         dict(scale_fn=lambda c: 1/c), dict(scale_fn=lambda i: .97**i, scale_mode='iterations')]

@pytest.mark.parametrize('step', [1, 7, 10, 10.5])
@pytest.mark.parametrize('kwargs', modes)
def test_three_cycles_are_those_of_torch(kwargs, step):
    n = math.ceil(6*step)+1
    want,_ = torch_rates(n, [1e-4,1e-3], [1e-2,.1], step, cycle_momentum=False, **kwargs)
    got = clr_schedule(n, [1e-4,1e-3], [1e-2,.1], step, **kwargs)
    assert got.shape == (n,2) and np.abs(got-want).max() < 1e-12

@pytest.mark.parametrize('mode,scale', [
    ('triangular', lambda c,i: 1), ('triangular2', lambda c,i: 1/2**(c-1)), ('exp_range', lambda c,i: .9**i),
    ('sinus', lambda c,i: .5*(1+math.sin(c*math.pi/2))), ('halfcosine', lambda c,i: .5*(1+math.cos(c*math.pi)**2))])
@pytest.mark.parametrize('start', [0, 1])
def test_the_formulas(mode, scale, start):
    step,base,top = 6,1e-7,1e-3
    got = clr_schedule(40, base, top, step, mode=mode, gamma=.9 if mode=='exp_range' else 1., start=start)
    for k,lr in enumerate(got):
        i = k+start
        cycle = math.floor(1+i/(2*step))
        close(lr, base+(top-base)*max(0, 1-abs(i/step-2*cycle+1))*scale(cycle, i), eps=1e-15)

@pytest.mark.parametrize('start', [0, 1])
def test_the_tail_divides_the_last_iterations_of_each_cycle(start):
    plain,got = (clr_schedule(250, 1e-7, 1e-3, 50, tail=o, start=start) for o in (None,30))
    for first in 0,100:
        eq(got[first:first+70], plain[first:first+70])
        for j in range(1, 31): close(got[first+69+j], plain[first+69+j]/(1.1*1.2**j), eps=1e-18)
    eq(got[200:], plain[200:])  # the cycle that the training cuts short

def test_the_tail_of_cycles_of_an_odd_number_of_iterations():
    plain,got = clr_schedule(15, 1., 2., 2.5),clr_schedule(15, 1., 2., 2.5, tail=2)
    close(plain/got, [1,1,1,1.1*1.2,1.1*1.2**2]*3)

def test_the_tail_of_all_groups():
    close(clr_schedule(4, [1.,10.], [3.,30.], 2, tail=1)[-1], [2/1.32, 20/1.32])

# In a fit

class Rates(Callback):
    "The rate of each group at each step"
    order,run_valid = 70,False
    def before_fit(self): self.seen_lrs,self.seen_moms = [],[]
    def before_batch(self):
        self.seen_lrs.append([h['lr'] for h in self.opt.hypers])
        self.seen_moms.append(self.opt.hypers[-1].get('mom'))

def split(m): return [params(m[0]), params(m[1]), params(m[2:])]

def fit(n_epoch=3, *args, learn=None, **kwargs):
    "A learner with 4 batches an epoch after `fit_clr`, and the rates that its optimiser had"
    learn,seen = learn or learner(net(8,5)),Rates()
    learn.fit_clr(n_epoch, *args, cbs=[seen, *L(kwargs.pop('cbs', None))], **kwargs)
    return learn,np.array(seen.seen_lrs)

@pytest.mark.parametrize('kwargs', modes[:3])
def test_the_optimiser_has_the_rates_of_torch(kwargs):
    learn,rates = fit(6, 1e-4, 1e-2, step_size=4, **kwargs)
    want,_ = torch_rates(24, [1e-4], [1e-2], 4, cycle_momentum=False, **kwargs)
    assert np.abs(rates-want).max() < 1e-12
    assert np.abs(learn.recorder.hps['lr']-want[:,0]).max() < 1e-12
    assert np.abs(learn.recorder.lrs-want[:,0]).max() < 1e-12

def test_without_step_size_a_cycle_is_an_epoch():
    _,rates = fit(3, 1., 3.)
    close(rates[:,0], [1,2,3,2]*3)

def test_slices_give_each_group_its_rate():
    learn,rates = fit(2, slice(1e-4,1e-2), slice(1e-2,1.), step_size=2, learn=learner(net(8,5), splitter=split))
    close(rates[0], [1e-4,1e-3,1e-2])
    close(rates[2], [1e-2,1e-1,1.])
    _,rates = fit(2, 1e-5, slice(1e-2), step_size=2, learn=learner(net(8,5), splitter=split))
    close(rates[2], [1e-3,1e-3,1e-2])
    _,rates = fit(1, 1e-5, [1e-2,2e-2,3e-2], step_size=2, learn=learner(net(8,5), splitter=split))
    close(rates[2], [1e-2,2e-2,3e-2])

def test_momentum_goes_the_other_way_as_in_torch():
    learn,_ = fit(6, 1e-4, 1e-2, step_size=4, mode='triangular2', moms=(.95,.85), learn=learner(net(8,5), opt_func=SGD))
    _,moms = torch_rates(24, [1e-4], [1e-2], 4, mode='triangular2', base_momentum=.85, max_momentum=.95)
    assert np.abs(np.array(learn.recorder.hps['mom'])-moms).max() < 1e-12

def test_momentum_stays_without_moms():
    seen = Rates()
    learn = learner(net(8,5))
    learn.fit_clr(1, 1e-4, 1e-2, cbs=seen)
    eq(seen.seen_moms, [.9]*4)
    eq(list(learn.recorder.hps), ['lr'])

def test_a_schedule_shorter_than_the_training_holds_its_last_value():
    _,rates = fit(4, 1., 3., n_cycles=2, tail=1)
    last = 2/(1.1*1.2)
    close(rates[:,0], [1,2,3,last]*2 + [last]*8)

def test_the_second_fit_begins_with_the_first_cycle_also_after_lr_find():
    learn,first = fit(2, 1e-4, 1e-2)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=10, show_plot=False)
    _,second = fit(2, 1e-4, 1e-2, learn=learn)
    eq(first, second)

def others(learn):
    teacher = seeded(net, 16, 12, seed=9).eval()
    return dict(kd=KnowledgeDistillation(teacher, SoftTarget()), accumulate=GradientAccumulation(16), mixup=MixUp(),
                fp16=CPUMixedPrecision('fp16', init_scale=512.), skipped=CPUMixedPrecision('fp16', init_scale=2.**40))

@pytest.mark.filterwarnings('ignore:The teacher')
@pytest.mark.parametrize('name', ['kd','accumulate','mixup','fp16','skipped'])
def test_the_rates_are_those_of_the_iterations_whatever_else_is_in_the_fit(name):
    learn = learner(net(8,5))
    _,rates = fit(3, 1e-4, 1e-2, learn=learn, cbs=others(learn)[name], mode='triangular2')
    close(rates[:,0], clr_schedule(12, 1e-4, 1e-2, 2, mode='triangular2'), eps=1e-12)

def test_optimisers_of_pytorch():
    learn = learner(net(8,5), opt_func=partial(OptimWrapper, opt=torch.optim.SGD, momentum=.9))
    _,rates = fit(2, 1e-4, 1e-2, learn=learn, moms=(.95,.85))
    close(rates[:,0], clr_schedule(8, 1e-4, 1e-2, 2), eps=1e-12)
    close(learn.recorder.hps['mom'][2], .85)

def test_it_begins_at_start_epoch():
    _,rates = fit(3, 1e-4, 1e-2, mode='triangular2', start_epoch=1)
    close(rates[:,0], clr_schedule(12, 1e-4, 1e-2, 2, mode='triangular2')[4:], eps=1e-12)

def test_an_interrupted_fit_goes_on_with_its_rates(tmp_path):
    def clr(learn, cbs): learn.fit_clr(4, 1e-4, 1e-2, mode='triangular2', cbs=cbs)
    whole = fresh(tmp_path)
    clr(whole, [])
    with pytest.raises(KeyboardInterrupt): clr(fresh(tmp_path), [Resume('a'), Stop(2)])
    learn = fresh(tmp_path, seed=7)
    clr(learn, [Resume('a')])
    same(learn, whole)
    eq(learn.recorder.hps, whole.recorder.hps)

def test_short_epochs_have_a_cycle_each():
    _,rates = fit(3, 1., 3., cbs=ShortEpochs(6, 1))
    close(rates[:,0], clr_schedule(18, 1., 3., 3))

# The plot

def test_the_plot_shows_what_the_fit_will_do_and_trains_nothing():
    learn = learner(net(8,5), splitter=split)
    before = state(learn.model)
    args = dict(mode='triangular2', tail=2, n_cycles=2)
    ax = learn.plot_schedule(4, slice(1e-4,1e-3), slice(1e-2,1.), **args)
    assert isinstance(ax, plt.Axes) and len(ax.lines) == 3 and same_state(state(learn.model), before)
    _,rates = fit(4, slice(1e-4,1e-3), slice(1e-2,1.), learn=learn, **args)
    for line,want in zip(ax.lines, rates.T): close(line.get_ydata(), want, eps=1e-12)
    plt.close('all')

def test_the_plot_takes_axes_and_momentum_and_short_epochs():
    learn,ax = learner(net(8,5)),plt.subplots()[1]
    assert learn.plot_schedule(2, 1e-4, 1e-2, moms=(.95,.85), cbs=ShortEpochs(6, 1), ax=ax) is ax
    eq(len(ax.lines[0].get_ydata()), 12)
    learn.add_cb(ShortEpochs(3))
    eq(len(learn.plot_schedule(2, 1e-4, 1e-2).lines[0].get_ydata()), 6)
    plt.close('all')
    with pytest.raises(TypeError, match='taill'): learn.plot_schedule(2, 1e-4, 1e-2, taill=2)

# Bad input

@pytest.mark.parametrize('kwargs,message', [
    (dict(mode='triangle'), "mode='triangle'"), (dict(step_size=13), 'step_size=13: the training has only 12 iterations'),
    (dict(step_size=.5), 'step_size=0.5'), (dict(step_size=-1), 'step_size=-1'), (dict(step_size=float('nan')), 'step_size=nan'),
    (dict(tail=5), 'tail=5: a cycle has only 4 iterations'), (dict(tail=0), 'tail=0'), (dict(step_size=12, tail=13), 'tail=13'),
    (dict(n_cycles=4), 'n_cycles=4 of 4 iterations: the training has only 12'), (dict(n_cycles=0), 'n_cycles=0'),
    (dict(gamma=.9), 'gamma=0.9 has no effect'), (dict(mode='exp_range', gamma=-1), 'gamma=-1'),
    (dict(scale_fn=lambda c: c, mode='sinus'), "replaces mode='sinus'"),
    (dict(scale_mode='iterations'), "scale_mode='iterations' has no effect"),
    (dict(scale_fn=lambda c: c, scale_mode='cycles'), "scale_mode='cycles'"), (dict(scale_fn=lambda c: -1.), 'scale_fn returns -1.0 for 1'),
    (dict(scale_fn=lambda c: 1/(c-2) if c!=2 else float('nan')), 'scale_fn returns -1.0 for 1'), (dict(moms=.9), 'moms=0.9'),
    (dict(moms=(.9,1.5)), 'moms=1.5'), (dict(base_lr=1.), 'is above max_lr'), (dict(max_lr=float('inf')), r'max_lr=\[inf\]'),
    (dict(max_lr=[1e-2,1e-1]), 'there are 1 parameter groups')])
def test_mistakes_are_errors_before_the_first_step(kwargs, message):
    learn = learner(net(8,5))
    before = state(learn.model)
    with pytest.raises(ValueError, match=message): learn.fit_clr(3, **{'base_lr':1e-4, 'max_lr':1e-2, **kwargs})
    assert same_state(state(learn.model), before)
    learn.fit_clr(1, 1e-4, 1e-2)
    assert not any(isinstance(c, CycleScheduler) for c in learn.cbs)

def test_an_epoch_of_one_batch_needs_a_step_size():
    learn = learner(net(8,5), dls=vectors(32))
    with pytest.raises(ValueError, match='an epoch of 1 batch'): learn.fit_clr(4, 1e-4, 1e-2)
    _,rates = fit(4, 1., 3., step_size=2, learn=learn)
    close(rates[:,0], [1,2,3,2])
