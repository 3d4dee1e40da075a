"Teachers: what they are, classes, inputs, ensembles"
from types import SimpleNamespace

import pytest
from fastai.vision.all import *

from fastkd.models.reading import *
from fastkd.teachers.classes import *
from fastkd.teachers.inputs import *
from fastkd.teachers.teacher import *
from helpers import *

vocab = ['a','b','c']

def bound(source, dls, **kwargs): return Teacher(source, **kwargs).bind(dls)

# promise 1: the teacher is only read
def test_eval_mode_at_every_batch_and_flags_given_back():
    m = cnn(4, p=.9)
    m[0].eval()
    flags = [o.training for o in m.modules()]
    teacher,x = bound(m, SimpleNamespace()),torch.randn(8,3,16,16)
    before = state(m)
    a,b = teacher((x,)),teacher((x,))
    assert torch.equal(a, b) and not a.requires_grad
    assert same_state(before, m.state_dict()) and flags == [o.training for o in m.modules()]

def test_flags_are_given_back_after_an_error():
    m = cnn(4).train()
    with pytest.raises(ValueError): bound(m, SimpleNamespace())((torch.randn(2,5,8,8),))
    assert all(o.training for o in m.modules())

def test_random_numbers_of_the_teacher_are_its_own():
    class Noisy(nn.Module):
        def forward(self, x): return x + torch.randn_like(x)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Teacher(Noisy())((torch.zeros(2,3),))
    assert torch.equal(torch.rand(3), expected)

# classes
def test_other_order_is_permuted():
    m = cnn(4)
    a = Teachers(Teacher(m, vocab=['c','a','b']))
    a.bind(SimpleNamespace(vocab=vocab))
    x = torch.randn(2,3,16,16)
    assert torch.equal(a((x,))[0], m.eval()(x)[:,[1,2,0]])
    assert 'another order' in a[0].notes[0]

def test_superset_is_cut():
    m = cnn(4, n_out=5)
    ts = Teachers(Teacher(m, vocab=['x','c','b','y','a']))
    ts.bind(SimpleNamespace(vocab=vocab))
    x = torch.randn(2,3,16,16)
    assert torch.equal(ts((x,))[0], m.eval()(x)[:,[4,2,1]])
    assert "out of the teacher's 5" in ts[0].notes[0]

def test_learners_are_matched_by_name():
    t = Learner(image_dls(['c','b','a']), cnn(4))
    ts = Teachers(t)
    ts.bind(image_dls(vocab))
    x = torch.randn(2,3,16,16)
    assert torch.equal(ts((x,))[0], t.model.eval()(x).flip(1))

def test_numbers_and_their_names_are_the_same_class():
    assert class_columns(['1','2'], class_names(SimpleNamespace(vocab=[2,1]))) == (None,[1,0])

def test_map_may_leave_classes_out():
    assert class_columns(vocab, ['x','y'], {'c':'x','a':'y'}) == ([0,2],[1,0])
    assert class_columns(vocab, ['x','y'], {'c':0,'a':1}) == ([0,2],[1,0])

@pytest.mark.parametrize('names,kw,text', [
    (['a','b'], {}, "lacks the student's class 'c'"),
    (['x','y','z'], {}, "none of the student's classes"),
    (['a','b'], dict(class_map={'d':'a'}), "class_map has the class 'd', which the student lacks"),
    (['apple','b'], dict(class_map={'a':'aple'}), "did you mean 'apple'"),
    (['a','b'], dict(class_map={}), 'maps no class'),
])
def test_class_errors(names, kw, text):
    with pytest.raises(ValueError, match=text): bound(cnn(4), SimpleNamespace(vocab=vocab), vocab=names, **kw)

# inputs
def recorded(t, dls, x):
    "What the model of teacher `t` gets to see of `x`"
    seen = []
    h = t.model.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    t.bind(dls)((x,))
    h.remove()
    return seen[0]

def norm(m, s): return Normalize.from_stats([m]*3, [s]*3, cuda=False)

def test_normalisation_is_mapped():
    dls,t_dls = image_dls(batch_tfms=norm(.5,.2)),image_dls(batch_tfms=norm(.3,.4))
    raw = torch.rand(4,3,16,16)
    for t in Teacher(Learner(t_dls, cnn(4))), Teacher(cnn(4), norm=([.3]*3,[.4]*3)):
        assert torch.allclose(recorded(t, dls, (raw-.5)/.2), (raw-.3)/.4, atol=1e-5)

def test_teacher_without_normalisation_gets_plain_images():
    raw = torch.rand(4,3,16,16)
    t = Teacher(Learner(image_dls(), cnn(4)))
    assert torch.allclose(recorded(t, image_dls(batch_tfms=norm(.5,.2)), (raw-.5)/.2), raw, atol=1e-6)
    assert torch.allclose(recorded(t, image_dls(), raw), raw)

def test_same_normalisation_is_left_alone():
    t,x = Teacher(cnn(4)),torch.rand(4,3,16,16)
    assert recorded(t, image_dls(batch_tfms=norm(.5,.2)), x) is x and t.notes == []

@pytest.mark.parametrize('exported', [False,True])
def test_input_size_is_mapped(exported, tmp_path):
    t = Learner(image_dls(item_tfms=Resize((32,24))), cnn(4))
    if exported:
        t.export(tmp_path/'t.pkl')
        t = load_learner(tmp_path/'t.pkl')
    t = Teacher(t)
    assert recorded(t, image_dls(), torch.rand(2,3,16,16)).shape[-2:] == (32,24)
    assert 'resized to 32×24' in t.notes[0]

def test_size_of_batch_transforms():
    t = Learner(image_dls(batch_tfms=aug_transforms(size=20)), cnn(4))
    assert input_size(t.dls) == (20,20)
    assert recorded(Teacher(t), image_dls(), torch.rand(2,3,16,16)).shape[-2:] == (20,20)

def test_half_precision_teacher_gets_half_inputs():
    m = cnn(4).bfloat16()
    assert Teacher(m)((torch.rand(2,3,16,16),)).dtype == torch.bfloat16

@pytest.mark.parametrize('out', [lambda z: (z, None), lambda z: ([z*0, z], None), lambda z: {'logits':z}, lambda z: {'out':z, 'aux':None}])
def test_outputs_that_are_not_a_tensor(out): assert torch.equal(model_output(out(torch.ones(2))), torch.ones(2))

# what is a teacher
@pytest.mark.parametrize('o,err,text', [
    ([], ValueError, r'teacher=\[\] is empty'),
    (nn.Linear, TypeError, 'teacher=Linear is a class'),
    ('teacher.pkl', TypeError, "teacher='teacher.pkl' is a str"),
    ([nn.Linear(1,1), 'b'], TypeError, "teacher='b'"),
    ([None], TypeError, 'teacher=None'),
    (lambda x: x, TypeError, 'function'),
])
def test_not_a_teacher(o, err, text):
    with pytest.raises(err, match=text): Teachers(o)

@pytest.mark.parametrize('ws', [[1],[1,-1],[0,0],[float('nan'),1]])
def test_odd_weights(ws):
    with pytest.raises(ValueError, match='teacher_weights='): Teachers([nn.Linear(1,1)]*2, ws)

# ensembles
@pytest.mark.parametrize('T', [1.,4.])
def test_probabilities_are_averaged_at_the_temperature(T):
    z = [torch.randn(4,5,dtype=torch.double) for _ in range(3)]
    ws = [.5,.3,.2]
    p = sum(w*(o/T).softmax(1) for w,o in zip(ws,z))
    assert torch.allclose((merge_logits(z, ws, T)/T).softmax(1), p, atol=1e-12)
    p = sum(w*torch.sigmoid(o/T) for w,o in zip(ws,z))
    assert torch.allclose(torch.sigmoid(merge_logits(z, ws, T, act='sigmoid')/T), p, atol=1e-12)
    assert torch.allclose(merge_logits(z, ws, act=None), sum(w*o for w,o in zip(ws,z)))

def test_averaging_has_the_gradient_of_the_mean_loss():
    from fastkd.losses.soft_targets import soft_target
    z = [torch.randn(4,5,dtype=torch.double) for _ in range(2)]
    def grad(f):
        s = torch.ones(4,5,dtype=torch.double).cumsum(1).requires_grad_()
        f(s).backward()
        return s.grad
    of_mean,mean_of = grad(lambda s: soft_target(s, merge_logits(z, T=4.))),grad(lambda s: sum(soft_target(s, o) for o in z)/2)
    assert torch.allclose(of_mean, mean_of, atol=1e-12)

def test_weight_zero_leaves_a_teacher_out():
    z = [torch.randn(4,5),torch.full((4,5), 9.)]
    assert torch.allclose(merge_logits(z, [1.,0.]).softmax(1), z[0].softmax(1), atol=1e-6)
