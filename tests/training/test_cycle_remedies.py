"What the errors of `fit_clr` advise works"
from fastai.vision.all import *
from fastkd.all import *
from remedies import *

dls = image_dls(n=48, bs=8, size=8)  # 4 batches an epoch

def learner(dls=dls, **kwargs):
    rewind(dls)
    learn = Learner(dls, seeded(cnn, 4), **kwargs)
    learn.remove_cb(ProgressCallback)
    learn.logger = noop
    return learn

def fit(n=2, base_lr=1e-4, max_lr=1e-2, learn=None, **kwargs):
    learn = learn or learner()
    learn.fit_clr(n, base_lr, max_lr, **kwargs)
    return learn

def groups(): return learner(splitter=body_head(head='4'))
def falls(c): return .8**c
def below_0(c): return 1.5-c

cases = [
    ('mode=…: choose one of …, or pass scale_fn',
     lambda: fit(mode='cosine'), "'exp_range', or pass scale_fn",
     lambda: [*(fit(mode=o) for o in ('triangular','triangular2','sinus','halfcosine','exp_range')), fit(scale_fn=falls)]),
    ("scale_mode=…: choose 'cycle' or 'iterations'",
     lambda: fit(scale_fn=falls, scale_mode='batch'), "choose 'cycle' or 'iterations'",
     lambda: [fit(scale_fn=falls, scale_mode=o) for o in ('cycle','iterations')]),
    ('scale_fn=…: pass a function of one number',
     lambda: fit(scale_fn=.8), 'a function of one number', lambda: fit(scale_fn=lambda c: .8)),
    ('scale_fn replaces mode=…',
     lambda: fit(scale_fn=falls, mode='triangular2'), 'pass only one of them', lambda: [fit(scale_fn=falls), fit(mode='triangular2')]),
    ('scale_mode=… has no effect on mode=…',
     lambda: fit(scale_mode='iterations'), 'pass scale_fn, or leave it out',
     lambda: [fit(scale_mode='iterations', scale_fn=falls), fit()]),
    ('gamma=… has no effect here',
     lambda: fit(gamma=.9), "pass mode='exp_range'", lambda: fit(gamma=.9, mode='exp_range')),
    ('scale_fn returns … for …',
     lambda: fit(scale_fn=below_0), 'it must return finite numbers, 0 or more', lambda: fit(scale_fn=lambda c: max(0, below_0(c)))),
    ('step_size=…: half a cycle needs one iteration or more',
     lambda: fit(step_size=.5), 'one iteration or more', lambda: fit(step_size=1)),
    ('step_size=…: the training has only … iterations, too few to reach max_lr',
     lambda: fit(step_size=20), 'choose a smaller one', lambda: fit(step_size=8)),
    ('tail=…: a cycle has only … iterations',
     lambda: fit(tail=6), 'choose a smaller tail, or a larger step_size', lambda: [fit(tail=4), fit(tail=6, step_size=3)]),
    ('base_lr=… is above max_lr=…',
     lambda: fit(2, 1e-2, 1e-4), 'exchange them', lambda: fit(2, 1e-4, 1e-2)),
    ('…=…: give finite numbers, 0 or more',
     lambda: fit(2, -1e-4, 1e-2), 'finite numbers, 0 or more', lambda: [fit(2, o, 1e-2) for o in (0,1e-4)]),
    ('…=…: … Pass one number, a slice, or a number for each group.',
     lambda: fit(2, 1e-4, [1e-3,1e-2,1e-2], groups()), 'Pass one number, a slice, or a number for each group.',
     lambda: [fit(2, 1e-4, o, groups()) for o in (1e-2, slice(1e-3,1e-2), [1e-3,1e-2])]),
    ('moms=…: pass the momentum at base_lr and at max_lr, such as (.95, .85)',
     lambda: fit(moms=(.95,.85,.95)), 'such as (.95, .85)', lambda: fit(moms=(.95,.85))),
    ('step_size=None: an epoch of 1 batch has no room for a cycle',
     lambda: fit(4, learn=learner(fixed(dls, 32))), 'pass step_size', lambda: fit(4, learn=learner(fixed(dls, 32)), step_size=2)),
    ('n_cycles=… of … iterations',
     lambda: fit(2, n_cycles=3), 'choose fewer cycles, or train for more epochs', lambda: [fit(2, n_cycles=2), fit(3, n_cycles=3)]),
]

@parametrize(cases)
def test_the_advice_works(key, wrong, advice, right): check(key, wrong, advice, right)
