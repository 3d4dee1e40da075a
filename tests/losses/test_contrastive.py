"Contrastive representation distillation: values, memory, negatives, random numbers, edge cases"
import copy, math
from functools import partial
from types import SimpleNamespace

import pytest, torch, torch.nn.functional as F
from fastai.torch_core import get_random_states
from fastcore.test import test_close
from helpers import image_dls, same_state, seeded, state, student, trained_teacher
from torch.autograd import gradcheck

from fastkd.losses.contrastive import *
from fastkd.training.callback import KnowledgeDistillation
from module_cases import each_network_pair, paired, wave
from pair_cases import feat

fs,ft = feat(6, 4, .37).mean((2,3)),feat(9, 2, .71).mean((2,3))
n,items = 20,torch.arange(8)*2 + 1
three_idx = torch.tensor([[0,3,4],[1,8,8],[2,0,1]])

def fixed_idx(items, m):
    "Each item with `m` others, always the same ones"
    shift = 5*torch.arange(m)[None] + 3*torch.arange(len(items))[:,None]
    return torch.cat([items[:,None], (items[:,None] + 1 + shift % (n-1)) % n], 1)

def memory(n=n, dim=4, seed=0, c_s=6, c_t=9): return seeded(partial(ContrastMemory, c_s, c_t, n, dim), seed=seed).double()
def waved():
    m = memory()
    wave([*m.embed_s.parameters(), *m.embed_t.parameters(), m.mem_s, m.mem_t])
    m.draw = fixed_idx
    return m

def unit(*shape, seed=0):
    torch.manual_seed(seed)
    return F.normalize(torch.randn(*shape).double(), dim=-1)
def units(): return unit(3,4),unit(3,4,seed=1),unit(9,4,seed=2),unit(9,4,seed=3)

# Value

def test_values_of_three_batches_are_the_reference_values():
    m = waved()
    values = [m(fs, ft, items, 7).item() for _ in range(3)]
    assert values == pytest.approx([11.568955540442502, 15.238101523341367, 14.973225386449794], rel=1e-12)

def test_function_is_the_first_of_them():
    m = waved()
    with torch.no_grad(): s,t = m.embed(fs, ft)
    assert crd(s, t, m.mem_s, m.mem_t, fixed_idx(items, 7)).item() == pytest.approx(11.568955540442502, rel=1e-12)

def test_value_is_the_papers_sum_of_logs():
    s,t,mem_s,mem_t = units()
    want = 0
    for f,mem,z in (s,mem_t,2.),(t,mem_s,3.):
        for b in range(3):
            p = torch.stack([(f[b]@mem[i]/.5).exp()/z for i in three_idx[b]])
            h = p/(p + 2/9)
            want -= (h[0].log() + (1-h[1:]).log().sum())/3
    test_close(crd(s, t, mem_s, mem_t, three_idx, tau=.5, log_z=torch.tensor([2.,3.]).double().log()), want, eps=1e-5)

def test_constants_are_n_times_the_mean_of_the_first_batch():
    s,t,mem_s,mem_t = units()
    def z(f, mem): return 9*torch.stack([(f[b]@mem[i]/.5).exp() for b in range(3) for i in three_idx[b]]).mean()
    log_z = torch.stack([z(s, mem_t), z(t, mem_s)]).log()
    value = partial(crd, s, t, mem_s, mem_t, three_idx, tau=.5)
    test_close(value(), value(log_z=log_z), eps=1e-12)

def test_embeddings_near_their_own_row_have_a_smaller_loss():
    mem,idx = unit(9,4),torch.tensor([[0,3,4],[1,7,8],[2,5,6]])
    args = dict(mem_s=mem, mem_t=mem, idx=idx, log_z=torch.full((2,), math.log(9.)+5))
    assert crd(mem[:3], mem[:3], **args) < crd(mem[3:6], mem[3:6], **args)

# Gradient

def test_gradcheck():
    s,t,mem_s,mem_t = units()
    value = partial(crd, tau=.5, log_z=torch.tensor([1.,2.]).double())
    assert gradcheck(value, (s.requires_grad_(), t.requires_grad_(), mem_s, mem_t, three_idx))

def test_gradient_is_that_of_the_memory_before_its_update():
    m = waved()
    s,t = m.embed(fs, ft)
    old = m.mem_s.clone(),m.mem_t.clone()
    want = torch.autograd.grad(crd(s, t, *old, fixed_idx(items, 7)), m.embed_s.weight)[0]
    got, = torch.autograd.grad(m(fs, ft, items, 7), m.embed_s.weight)
    test_close(got, want, eps=1e-12)
    assert not torch.equal(m.mem_s, old[0])

@pytest.mark.parametrize('shape_s,shape_t', [((4,6,4,4),(4,9,2,2)), ((4,6,17),(4,9,8,8)), ((4,6),(4,9)), ((1,6),(1,9))])
def test_gradients_reach_both_embeddings_and_the_student(shape_s, shape_t):
    torch.manual_seed(0)
    m,s,t = memory(seed=1).float(),torch.randn(shape_s, requires_grad=True),torch.randn(shape_t)
    m(s, t, items[:len(s)], 7).backward()
    assert {k for k,_ in m.named_parameters()} == {'embed_s.weight','embed_s.bias','embed_t.weight','embed_t.bias'}
    assert all(p.grad.abs().sum()>0 for p in (s, *m.parameters()))

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('tau', [.07, 1e-3])
def test_embeddings_in_any_precision_and_at_a_low_temperature_are_finite(dtype, tau):
    s,t,a,b = [unit(*o).to(dtype) for o in ((3,4),(3,4),(9,4),(9,4))]
    s.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16): v = crd(s, t, a, b, three_idx, tau)
    v.backward()
    assert v.dtype==torch.float32 and v.isfinite() and s.grad.isfinite().all()

@pytest.mark.parametrize('value', [0., 7., 6e4])
def test_constant_features_are_finite_under_autocast_and_leave_a_finite_memory(value):
    m,s = memory().float(),torch.full((8,6,4,4), value).requires_grad_()
    for _ in range(2):
        with torch.autocast('cpu', torch.bfloat16): v = m(s, torch.full((8,9), value), items, 7)
        v.backward()
        grads = [o.grad for o in (s, *m.parameters())]
        assert all(o.isfinite().all() for o in (v, *grads, *m.buffers()))

def test_memory_layouts_make_no_difference():
    x = torch.randn(8,6,4,4).double()
    layouts = x,x.to(memory_format=torch.channels_last),x.transpose(2,3).contiguous().transpose(2,3)
    values = [memory()(o, ft, items, 7) for o in layouts]
    test_close(values[0], values[1], eps=1e-12)
    test_close(values[0], values[2], eps=1e-12)

# Memory

def test_only_the_rows_of_the_batch_change():
    m = memory()
    old = m.mem_s.clone(),m.mem_t.clone()
    m(fs, ft, items, 7)
    for a,b in zip(old, (m.mem_s,m.mem_t)): assert (a != b).any(1).nonzero().flatten().tolist() == items.tolist()

@pytest.mark.parametrize('momentum', [0., .3, 1.])
def test_a_row_mixes_its_old_and_new_embedding_by_momentum(momentum):
    m = memory()
    old = m.mem_s.clone(),m.mem_t.clone()
    embedded = m.embed(fs, ft)
    m(fs, ft, items, 7, momentum=momentum)
    for a,b,v in zip(old, (m.mem_s,m.mem_t), embedded):
        r = momentum*a[items] + (1-momentum)*v
        test_close(b[items], r/r.pow(2).sum(1, keepdim=True).sqrt(), eps=1e-12)

def test_constants_stay_those_of_the_first_batch():
    m = memory()
    assert m.log_z.tolist() == [-math.inf]*2
    m(fs, ft, items, 7)
    z = m.log_z.clone()
    m(3*fs+1, ft-2, items-1, 7)
    assert z.isfinite().all() and torch.equal(m.log_z, z)

@pytest.mark.parametrize('how', ['eval', 'no_grad'])
def test_outside_training_nothing_is_remembered(how):
    m = memory()
    if how=='eval': m.eval()
    before = state(m)
    with torch.set_grad_enabled(how=='eval'): values = [m(fs, ft, items, 7) for _ in range(2)]
    assert same_state(state(m), before) and values[0]==values[1]

def test_rows_start_with_an_average_length_of_1():
    m = memory(n=2000, dim=16)
    test_close(m.mem_s.pow(2).sum(1).mean(), 1., eps=.02)
    assert (m.mem_s != m.mem_t).all()

# Negatives and random numbers

def test_negatives_are_drawn_uniformly_from_the_other_items():
    idx = memory(n=5).draw(torch.tensor([0,2,4]), 8000)
    assert torch.equal(idx[:,0], torch.tensor([0,2,4]))
    for i,row in zip((0,2,4), idx[:,1:]):
        counts = row.bincount(minlength=5)
        assert counts[i]==0 and (counts[counts>0]-2000).abs().max()<200 and (counts>0).sum()==4

def test_two_items_are_each_others_negatives(): assert memory(n=2).draw(torch.tensor([0,1]), 3).tolist() == [[0,1,1,1],[1,0,0,0]]

def test_each_batch_has_new_negatives():
    m = memory()
    a = m.draw(items, 7)
    m(fs, ft, items, 7)
    assert torch.equal(a[:,0], items) and not torch.equal(m.draw(items, 7), a)

def test_global_random_numbers_are_left_alone():
    m = memory()
    before = get_random_states()
    m(fs, ft, items, 7)
    after = get_random_states()
    assert torch.equal(before['torch_state'], after['torch_state']) and before['random_state']==after['random_state']
    assert (before['numpy_state'][1]==after['numpy_state'][1]).all()

def test_the_seed_decides_the_negatives():
    a,b,c = memory(seed=1),memory(seed=1),memory(seed=2)
    assert torch.equal(a.draw(items, 7), b.draw(items, 7)) and not torch.equal(a.draw(items, 7), c.draw(items, 7))

def test_resuming_from_a_saved_state_equals_training_without_a_stop(tmp_path):
    a,b = memory(seed=1),memory(seed=2)
    for _ in range(2): a(fs, ft, items, 7)
    torch.save(a.state_dict(), tmp_path/'m.pth')
    b.load_state_dict(torch.load(tmp_path/'m.pth', weights_only=True))
    c = copy.deepcopy(a)
    want = [a(fs+i, ft, items-1, 7) for i in range(2)]
    for o in b,c: assert [o(fs+i, ft, items-1, 7) for i in range(2)] == want
    assert same_state(state(a), state(b))

def test_embeddings_learn_to_tell_items_apart():
    torch.manual_seed(0)
    x,m = torch.randn(32,6),memory(n=32, dim=8).float()
    t = torch.cat([x, x[:,:3]**2], 1)
    opt = torch.optim.Adam(m.parameters(), 1e-2)
    def step(b):
        opt.zero_grad()
        v = m(x[b], t[b], b, 64, tau=.2)
        v.backward()
        opt.step()
        return v.item()
    values = [step(torch.arange(32)[i%2::2]) for i in range(80)]
    assert sum(values[-10:])/10 < .6*sum(values[:10])/10
    with torch.no_grad(): u,v = m.embed(x, t)
    assert ((u @ v.T).argmax(1) == torch.arange(32)).float().mean() > .8

# Errors

@pytest.mark.parametrize('change,says', [
    (lambda o: None, 'needs the index of each item'),
    (lambda o: o+5, 'has the index 20, but the memory was made for 20 training items, 0 to 19'),
    (lambda o: o-2, 'has the index -1'),
    (lambda o: o[:3], r'shape \(3,\).*\(8,\)')])
def test_impossible_items_are_an_error(change, says):
    loss = CRD(dim=4, n_negatives=7)
    mods = loss.make_modules([(fs,ft)], SimpleNamespace(n_items=n)).double()
    before = state(mods)
    with pytest.raises(ValueError, match=says): loss.pairs_loss(mods, [(fs,ft)], items=change(items))
    assert same_state(state(mods), before)

@pytest.mark.parametrize('at', [None, SimpleNamespace(n_items=None)])
def test_unknown_number_of_items_is_an_error(at):
    with pytest.raises(ValueError, match='their number is not known'): CRD().make_modules([(fs,ft)], at)

def test_one_training_item_is_an_error():
    at = SimpleNamespace(n_items=1)
    with pytest.raises(ValueError, match='n_items=1: CRD tells an item from others'): CRD().make_modules([(fs,ft)], at)

@pytest.mark.parametrize('kw,exc', [
    (dict(dim=0), ValueError),
    (dict(dim=4.), TypeError),
    (dict(n_negatives=0), ValueError),
    (dict(n_negatives=True), TypeError),
    (dict(tau=0.), ValueError),
    (dict(momentum=1.1), ValueError),
    (dict(momentum=-.1), ValueError),
    (dict(weight=-1.), ValueError)])
def test_hyper_parameters_out_of_range_are_an_error(kw, exc):
    with pytest.raises(exc, match=f'{[*kw][0]}='): CRD(**kw)

def test_shapes_that_differ_and_no_negatives_are_errors():
    s,mem,idx = unit(3,4),unit(9,4),torch.tensor([[0,1],[1,2],[2,3]])
    with pytest.raises(ValueError, match=r'\(3, 4\), \(3, 3\)'): crd(s, s[:,:3], mem, mem, idx)
    with pytest.raises(ValueError, match=r'\(8, 4\)'): crd(s, s, mem, mem[:8], idx)
    with pytest.raises(ValueError, match='at least one negative'): crd(s, s, mem, mem, idx[:,:1])
    with pytest.raises(ValueError, match='each of the 3 items'): crd(s, s, mem, mem, idx[:2])

# As a loss

def test_schedules_of_temperature_and_momentum_are_followed():
    def value(pos, **kwargs):
        loss = CRD(dim=4, n_negatives=7, **kwargs)
        mods = seeded(loss.make_modules, [(fs,ft)], SimpleNamespace(n_items=n)).double()
        return loss.pairs_loss(mods, [(fs,ft)], pos, items).item(),mods[0].mem_s
    a,b = value(.4, tau=lambda p: .1+p, momentum=lambda p: p),value(0., tau=.5, momentum=.4)
    assert a[0]==pytest.approx(b[0], rel=1e-12) and torch.allclose(a[1], b[1], atol=1e-12)

@each_network_pair('cnn-cnn', 'cnn-vit', 'vit-cnn')
def test_automatic_pairs_of_convolutions_and_transformers(s, t):
    fp,value = paired(CRD(dim=8, n_negatives=16), s, t, n_items=12)
    m, = fp.modules[0]
    assert m.log_z.isinf().all() and m.n_draws==0, 'the trial batch is not remembered'
    v = value(items=torch.tensor([11,0,5,6]))
    v.backward()
    assert v.isfinite() and len(fp.pairs)==1 and m.log_z.isfinite().all() and all(p.grad.abs().sum()>0 for p in fp.params)

def test_an_epoch_of_the_callback_remembers_every_item_and_the_loss_falls():
    dls = image_dls()
    kd = KnowledgeDistillation(trained_teacher(dls, epochs=2), loss=CRD(dim=16, n_negatives=64, weight=1), weight=1)
    learn = student(dls, cbs=kd)
    learn.fit(1, 1e-2)
    m = kd.features.modules[0][0]
    assert len(m.mem_s)==dls.train.n==64 and m.n_draws==4
    test_close(torch.stack([m.mem_s,m.mem_t]).norm(dim=2), torch.ones(2, 64), eps=1e-5)
    learn.fit(3, 1e-2)
    values = kd.history.crd
    assert values.iloc[3] < values.iloc[1]
