"Knowledge review: values, the fusion, gradients, edges"
from functools import partial
from types import SimpleNamespace

import pytest, timm, torch, torch.nn.functional as F
from fastcore.test import test_close
from fastkd.all import KnowledgeDistillation
from fastkd.losses.review import *
from fastkd.teachers.teacher import Teacher
from fastkd.training.features import FeaturePairs
from helpers import cnn, image_dls, seeded, state, student, trained_teacher

torch.set_num_threads(1)

def feat(c, h, a):
    n = torch.arange(8*c*h*h).double()
    return (2*torch.sin(a*n) + .3*torch.cos(.013*n)).reshape(8, c, h, h)
fs,ft,fd = feat(6, 4, .37),feat(6, 4, .53),feat(9, 2, .71)
stages = [(feat(4, 8, .37), feat(5, 8, .41)), (feat(6, 4, .53), feat(9, 4, .71))]

def wave(p, k): p.data = (.3*torch.sin(1.7*torch.arange(p.numel()).double() + k)).reshape(p.shape)
def vit(): return timm.models.VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=3)
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

def test_sides_that_are_as_small_already_are_not_pooled_again():
    s,t = fs[...,:2,:2],ft[...,:2,:2]
    test_close(review_kd(s, t), (F.mse_loss(s, t) + .5*F.mse_loss(s.mean((2,3)), t.mean((2,3))))/1.5, eps=1e-12)
    test_close(review_kd(s.mean((2,3)), t.mean((2,3))), F.mse_loss(s.mean((2,3)), t.mean((2,3))), eps=1e-12)

def test_oblong_maps_and_sequences_are_pooled_no_larger_than_they_are():
    s,t = fs[...,:1,:],ft[...,:1,:]
    test_close(review_kd(s, t), review_kd(s[...,0,:], t[...,0,:]), eps=1e-12)

def test_equal_features_have_no_loss(): assert review_kd(fs, fs) == 0
def test_twice_the_batch_has_the_same_loss(): test_close(review_kd(torch.cat([fs,fs]), torch.cat([ft,ft])), review_kd(fs, ft), eps=1e-12)

def test_gradcheck():
    assert torch.autograd.gradcheck(review_kd, tuple(f[:2,:2].clone().requires_grad_() for f in (fs,ft)))

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('value', [0., 3., 6e4])
def test_constant_features_in_any_precision_are_finite(dtype, value):
    s,t = torch.full((2,3,4,4), value, dtype=dtype, requires_grad=True),torch.zeros(2,3,4,4, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16): v = review_kd(s, t)
    v.backward()
    assert v.dtype==torch.float32 and v.isfinite() and s.grad.isfinite().all()

def test_layouts_in_memory_make_no_difference():
    s,t = fs.to(memory_format=torch.channels_last).requires_grad_(),ft.transpose(2,3).contiguous().transpose(2,3)
    test_close(review_kd(s, t), review_kd(fs, ft), eps=1e-12)
    review_kd(s, t).backward()
    assert s.grad.isfinite().all()

def test_unequal_channels_are_an_error():
    with pytest.raises(ValueError, match="6 channels and ft 9: fuse the student's features first"): review_kd(fs, fd)

# Fusion

def test_fused_value_is_the_reference_value():
    loss = ReviewKD()
    fusion = loss.make_modules(stages).double()
    for i,abf in enumerate(fusion.abfs):
        for k,p in enumerate(q for m in (abf.enter, abf.leave, abf.attend) if m for q in m.parameters()): wave(p, k+7*i)
    assert loss.pairs_loss(fusion, stages).item() == pytest.approx(2.6140177029265264, rel=1e-12)

def test_later_stages_reach_earlier_ones_and_not_the_other_way():
    fusion = ReviewKD().make_modules(stages).double().eval()
    def fused(*changed): return [s for s,_ in fusion([(s+10*(i in changed), t) for i,(s,t) in enumerate(stages)])]
    same = lambda a,b: [torch.equal(x, y) for x,y in zip(a, b)]
    assert same(fused(), fused(1)) == [False, False, False]
    assert same(fused(), fused(0)) == [False, True, True]

@pytest.mark.parametrize('shapes', [
    [((4,6,4,4),(4,9,4,4))], [((4,6,8,8),(4,9,4,4)), ((4,7,4,4),(4,5,8,8)), ((4,8,2,2),(4,5,2,2))], [((4,6),(4,9))], [((4,6,12),(4,9,12)), ((4,6,12),(4,9,12))],
    [((4,6,8,8),(4,9,17)), ((4,7,4,4),(4,9,17))], [((4,6,17),(4,9,8,8)), ((4,6,17),(4,5,4,4))], [((4,6,4,4),(4,9,4,4)), ((4,7),(4,9))], [((4,6,4,4),(4,9,4,4)), ((4,7,1,1),(4,9,1,1))]],
    ids=['one stage','three sizes','vectors','sequences','map-tokens','tokens-map','map and vector','already pooled'])
def test_gradients_reach_every_parameter_and_every_stage(shapes):
    loss,pairs = ReviewKD(),random_pairs(*shapes)
    fusion = loss.make_modules(pairs)
    loss.pairs_loss(fusion, pairs).backward()
    assert all(s.grad.abs().sum()>0 for s,_ in pairs)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())
    # a bias before a batch norm, and attention that both branches share, may have next to no gradient, but none is left out
    assert all(p.grad.abs().sum()>0 for n,p in fusion.named_parameters() if n.endswith('0.weight'))

@pytest.mark.parametrize('shapes,n', [([((4,6,4,4),(4,9,4,4))], 2), ([((4,6),(4,9))], 1), ([((4,6,4,4),(4,9,4,4)), ((4,7,1,1),(4,9,1,1))], 2)])
def test_the_last_pair_averaged_is_a_stage_unless_it_has_one_position(shapes, n):
    assert len(ReviewKD().make_modules(random_pairs(*shapes)).abfs) == n

def test_tokens_of_images_are_a_grid_without_the_class_token_and_other_sequences_stay():
    pairs = random_pairs(((4,6,17),(4,9,65)))
    image,text = [ReviewFusion(pairs, size).stages(pairs) for size in ((32,32), None)]
    assert [tuple(s.shape) for s,_ in image] == [(4,6,4,4), (4,6,1,1)] and [tuple(s.shape) for s,_ in text] == [(4,6,17), (4,6,1)]
    assert torch.equal(image[0][0], pairs[0][0][:,:,1:].unflatten(2, (4,4)))

def test_tokens_of_oblong_images_are_an_oblong_grid():
    pairs = random_pairs(((4,6,9),(4,9,9)))
    at = SimpleNamespace(xs=(torch.randn(4,3,16,32),))
    assert ReviewKD().make_modules(pairs, at).stages(pairs)[0][0].shape == (4,6,2,4)

def test_maps_beside_sequences_are_an_error():
    with pytest.raises(ValueError, match='all maps or all sequences, but among them are'): ReviewKD().make_modules(random_pairs(((4,6,4,4),(4,9,4,4)), ((4,6,7),(4,9,7))))

def test_sequences_may_change_their_length():
    loss = ReviewKD()
    fusion = loss.make_modules(random_pairs(((4,6,12),(4,9,12))))
    assert loss.pairs_loss(fusion, random_pairs(((3,6,7),(3,9,7)))).isfinite()

def test_twice_the_batch_has_the_same_fused_loss():
    loss = ReviewKD()
    fusion = loss.make_modules(stages).double()
    test_close(loss.pairs_loss(fusion, [(torch.cat([s,s]), torch.cat([t,t])) for s,t in stages]), loss.pairs_loss(fusion, stages), eps=1e-10)

@pytest.mark.parametrize('value', [0., 7.])
def test_constant_stages_under_autocast_are_finite(value):
    loss,pairs = ReviewKD(),[(torch.full((2,c,h,h), value).requires_grad_(), torch.zeros(2,5,h,h)) for c,h in ((3,8),(4,4))]
    fusion = loss.make_modules(pairs)
    with torch.autocast('cpu', torch.bfloat16): v = loss.pairs_loss(fusion, pairs)
    v.backward()
    assert v.isfinite() and all(s.grad.isfinite().all() for s,_ in pairs) and all(p.grad.isfinite().all() for p in fusion.parameters())

def test_state_goes_round():
    loss = ReviewKD()
    a,b = [loss.make_modules(stages).double() for _ in range(2)]
    loss.pairs_loss(a, stages)
    b.load_state_dict(a.state_dict())
    assert loss.pairs_loss(a.eval(), stages) == loss.pairs_loss(b.eval(), stages)

# In a learner

@pytest.mark.parametrize('s,t', [(partial(cnn,4,8), partial(cnn,8,16)), (partial(cnn,4,8), vit), (vit, partial(cnn,8,16)), (vit, vit)], ids=['cnn-cnn','cnn-vit','vit-cnn','vit-vit'])
def test_automatic_pairs_of_convolutions_and_transformers(s, t):
    x = torch.randn(4,3,16,16)
    net,teacher = seeded(s),seeded(t, seed=1)
    fp = FeaturePairs([ReviewKD()], net, Teacher(teacher), (x,))
    st,tt = fp.taps()
    with st: net(x)
    with torch.no_grad(), tt: teacher.eval()(x)
    v, = fp(st.pop(), tt.pop())
    v.backward()
    assert v.isfinite() and len(fp.modules[0].abfs) == len(fp.pairs)+1 and all(p.grad is not None for p in fp.params)
    assert all(m.enter[0].weight.ndim==4 for m in fp.modules[0].abfs)

def test_fusion_is_trained_by_the_callback():
    dls = image_dls()
    learn = student(dls, cbs=KnowledgeDistillation(trained_teacher(dls, epochs=1), loss=ReviewKD(weight=1), weight=1))
    learn.fit(1, 1e-2)
    kd = learn.knowledge_distillation
    before = state(kd.features.modules)
    learn.fit(1, 1e-2)
    assert all((v != before[k]).any() for k,v in kd.features.modules.state_dict().items())
    assert kd.history.review_kd.iloc[1] < kd.history.review_kd.iloc[0]
