"Knowledge review: values, the fusion, gradients, edge cases"
from types import SimpleNamespace

import pytest, torch, torch.nn.functional as F
from fastcore.test import test_close
from torch.autograd import gradcheck

from fastkd.losses.review import *
from module_cases import check_constant, check_mixed_layouts, check_trained_by_the_callback, each_network_pair, every_constant, paired, wave
from pair_cases import fd, feat, fs, ft

stages = [(feat(4, 8, .37), feat(5, 8, .41)), (feat(6, 4, .53), feat(9, 4, .71))]
doubled_stages = [(torch.cat([s,s]),torch.cat([t,t])) for s,t in stages]

def random_pairs(*shapes, seed=0):
    torch.manual_seed(seed)
    return [(torch.randn(s, requires_grad=True), torch.randn(t)) for s,t in shapes]

# Hierarchical context loss

def test_value_is_the_reference_value(): assert review_kd(fs, ft).item() == pytest.approx(2.7231037253174355, rel=1e-12)

def test_full_size_then_4_2_and_1():
    torch.manual_seed(0)
    s,t = torch.randn(2,3,8,8),torch.randn(2,3,8,8)
    want = sum(w*F.mse_loss(*[F.adaptive_avg_pool2d(o, n) for o in (s,t)]) for w,n in ((1,8),(.5,4),(.25,2),(.125,1)))/1.875
    test_close(review_kd(s, t), want, eps=1e-6)

def test_small_maps_are_not_pooled_to_a_size_that_they_already_have():
    s,t = fs[...,:2,:2],ft[...,:2,:2]
    test_close(review_kd(s, t), (F.mse_loss(s, t) + .5*F.mse_loss(s.mean((2,3)), t.mean((2,3))))/1.5, eps=1e-12)
    test_close(review_kd(s.mean((2,3)), t.mean((2,3))), F.mse_loss(s.mean((2,3)), t.mean((2,3))), eps=1e-12)

def test_oblong_maps_are_not_pooled_to_a_larger_size():
    s,t = fs[...,:1,:],ft[...,:1,:]
    test_close(review_kd(s, t), review_kd(s[...,0,:], t[...,0,:]), eps=1e-12)

def test_equal_features_have_no_loss(): assert review_kd(fs, fs) == 0
def test_twice_the_batch_has_the_same_loss(): test_close(review_kd(torch.cat([fs,fs]), torch.cat([ft,ft])), review_kd(fs, ft), eps=1e-12)
def test_gradcheck(): assert gradcheck(review_kd, tuple(f[:2,:2].clone().requires_grad_() for f in (fs,ft)))
@every_constant
def test_constant_features_in_any_precision_are_finite(dtype, value): check_constant(review_kd, dtype, value)
def test_memory_layouts_make_no_difference(): check_mixed_layouts(review_kd)

def test_unequal_channels_are_an_error():
    with pytest.raises(ValueError, match="6 channels and ft 9: fuse the student's features first"): review_kd(fs, fd)

# Fusion

def test_fused_value_is_the_reference_value():
    loss = ReviewKD()
    fusion = loss.make_modules(stages).double()
    for i,abf in enumerate(fusion.abfs): wave((p for m in (abf.enter, abf.leave, abf.attend) if m for p in m.parameters()), 7*i)
    assert loss.pairs_loss(fusion, stages).item() == pytest.approx(2.6140177029265264, rel=1e-12)

def test_later_stages_reach_earlier_ones_but_not_vice_versa():
    fusion = ReviewKD().make_modules(stages).double().eval()
    def fused(*changed): return [s for s,_ in fusion([(s+10*(i in changed), t) for i,(s,t) in enumerate(stages)])]
    def same(a, b): return [torch.equal(x, y) for x,y in zip(a, b)]
    assert same(fused(), fused(1)) == [False, False, False]
    assert same(fused(), fused(0)) == [False, True, True]

@pytest.mark.parametrize('shapes', [
    pytest.param([((4,6,4,4),(4,9,4,4))], id='one stage'),
    pytest.param([((4,6,8,8),(4,9,4,4)), ((4,7,4,4),(4,5,8,8)), ((4,8,2,2),(4,5,2,2))], id='three sizes'),
    pytest.param([((4,6),(4,9))], id='vectors'),
    pytest.param([((4,6,12),(4,9,12)), ((4,6,12),(4,9,12))], id='sequences'),
    pytest.param([((4,6,8,8),(4,9,17)), ((4,7,4,4),(4,9,17))], id='map-tokens'),
    pytest.param([((4,6,17),(4,9,8,8)), ((4,6,17),(4,5,4,4))], id='tokens-map'),
    pytest.param([((4,6,4,4),(4,9,4,4)), ((4,7),(4,9))], id='map and vector'),
    pytest.param([((4,6,4,4),(4,9,4,4)), ((4,7,1,1),(4,9,1,1))], id='already pooled')])
def test_gradients_reach_every_parameter_and_every_stage(shapes):
    loss,pairs = ReviewKD(),random_pairs(*shapes)
    fusion = loss.make_modules(pairs)
    loss.pairs_loss(fusion, pairs).backward()
    assert all(s.grad.abs().sum()>0 for s,_ in pairs)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())
    # a bias before a batch norm and attention that both branches share can have almost no gradient, but each has one
    assert all(p.grad.abs().sum()>0 for n,p in fusion.named_parameters() if n.endswith('0.weight'))

@pytest.mark.parametrize('shapes,n', [
    ([((4,6,4,4),(4,9,4,4))], 2),
    ([((4,6),(4,9))], 1),
    ([((4,6,4,4),(4,9,4,4)), ((4,7,1,1),(4,9,1,1))], 2)])
def test_the_averaged_last_pair_is_a_stage_unless_it_has_one_position(shapes, n):
    assert len(ReviewKD().make_modules(random_pairs(*shapes)).abfs) == n

def test_image_tokens_become_a_grid_without_the_class_token_and_other_sequences_stay():
    pairs = random_pairs(((4,6,17),(4,9,65)))
    image,text = [ReviewFusion(pairs, size).stages(pairs) for size in ((32,32), None)]
    assert [tuple(s.shape) for s,_ in image] == [(4,6,4,4), (4,6,1,1)]
    assert [tuple(s.shape) for s,_ in text] == [(4,6,17), (4,6,1)]
    assert torch.equal(image[0][0], pairs[0][0][:,:,1:].unflatten(2, (4,4)))

def test_tokens_of_oblong_images_become_an_oblong_grid():
    pairs = random_pairs(((4,6,9),(4,9,9)))
    at = SimpleNamespace(xs=(torch.randn(4,3,16,32),))
    assert ReviewKD().make_modules(pairs, at).stages(pairs)[0][0].shape == (4,6,2,4)

def test_mixing_maps_and_sequences_is_an_error():
    pairs = random_pairs(((4,6,4,4),(4,9,4,4)), ((4,6,7),(4,9,7)))
    with pytest.raises(ValueError, match='all maps or all sequences, but among them are'): ReviewKD().make_modules(pairs)

def test_sequences_can_change_their_length():
    loss = ReviewKD()
    fusion = loss.make_modules(random_pairs(((4,6,12),(4,9,12))))
    assert loss.pairs_loss(fusion, random_pairs(((3,6,7),(3,9,7)))).isfinite()

def test_twice_the_batch_has_the_same_fused_loss():
    loss = ReviewKD()
    fusion = loss.make_modules(stages).double()
    test_close(loss.pairs_loss(fusion, doubled_stages), loss.pairs_loss(fusion, stages), eps=1e-10)

@pytest.mark.parametrize('value', [0., 7.])
def test_constant_stages_under_autocast_are_finite(value):
    loss = ReviewKD()
    pairs = [(torch.full((2,c,h,h), value).requires_grad_(), torch.zeros(2,5,h,h)) for c,h in ((3,8),(4,4))]
    fusion = loss.make_modules(pairs)
    with torch.autocast('cpu', torch.bfloat16): v = loss.pairs_loss(fusion, pairs)
    v.backward()
    assert v.isfinite() and all(o.grad.isfinite().all() for o in (*[s for s,_ in pairs], *fusion.parameters()))

def test_a_loaded_state_gives_the_same_loss():
    loss = ReviewKD()
    a,b = [loss.make_modules(stages).double() for _ in range(2)]
    loss.pairs_loss(a, stages)
    b.load_state_dict(a.state_dict())
    assert loss.pairs_loss(a.eval(), stages) == loss.pairs_loss(b.eval(), stages)

# In a learner

@each_network_pair('cnn-cnn', 'cnn-vit', 'vit-cnn', 'vit-vit')
def test_automatic_pairs_of_convolutions_and_transformers(s, t):
    fp,value = paired(ReviewKD(), s, t)
    v = value()
    v.backward()
    assert v.isfinite() and len(fp.modules[0].abfs) == len(fp.pairs)+1 and all(p.grad is not None for p in fp.params)
    assert all(m.enter[0].weight.ndim==4 for m in fp.modules[0].abfs)

def test_fusion_is_trained_by_the_callback(): check_trained_by_the_callback(ReviewKD(weight=1))
