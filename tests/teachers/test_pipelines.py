"What the student's pipeline does to the inputs: several images, volumes, channels, inputs of the teacher's own"
from types import SimpleNamespace

import pytest
from fastai.vision.all import *

from fastkd.all import *
from helpers import *

def dls_with(*fs): return SimpleNamespace(after_batch=SimpleNamespace(fs=fs))
def normalised(mean, std, n=1): return dls_with(Normalize.from_stats([mean]*n, [std]*n, cuda=False))

class Seen(nn.Module):
    "Keeps what it was given"
    def forward(self, *xb):
        self.xb = xb
        return xb[0].flatten(1).mean(1, keepdim=True)

def seen(xb, dls=None, **kwargs):
    m = Seen()
    Teacher(m, **kwargs).bind(dls or SimpleNamespace())(xb)
    return m.xb

def test_all_images_of_an_item_are_mapped():
    a,b = torch.rand(2,3,32,32),torch.rand(2,3,32,32)
    got = seen((a, b), normalised(.5, .2, 3), norm=([.3]*3, [.4]*3), size=24)
    for x,z in zip((a,b), got):
        expected = F.interpolate(x, (24,24), mode='bilinear', antialias=True)*.5 + .5
        assert torch.allclose(z, expected, atol=1e-5)

@pytest.mark.parametrize('size,shape', [(4,(4,4,4)), ((4,6),(8,4,6)), ((2,4,6),(2,4,6))])
def test_volumes_are_mapped(size, shape):
    x = torch.rand(2,1,8,8,8)
    got, = seen((x,), normalised(.5, .2), norm=([.3],[.4]), size=size)
    assert torch.allclose(got, F.interpolate(x, shape, mode='trilinear')*.5 + .5, atol=1e-5)

def test_what_is_no_image_is_left_alone():
    x,n,i = torch.rand(2,3,8,8),torch.rand(2,5),torch.randint(0, 9, (2,1,8,8))
    got = seen((x, n, i), norm=([.5]*3,[.5]*3))
    assert torch.allclose(got[0], x*2-1, atol=1e-5) and torch.equal(got[1], n) and torch.equal(got[2], i)

@pytest.mark.parametrize('inputs,order', [([1],[1]), (1,[1]), ([2,0],[2,0])])
def test_chosen_inputs(inputs, order):
    xb = torch.rand(2,3,8,8),torch.rand(2,3,16,16),torch.rand(2,3,4,4)
    got = seen(xb, normalised(.5, .2, 3), inputs=inputs, norm=([.3]*3,[.4]*3))
    assert len(got) == len(order) and all(torch.allclose(z, xb[i]*.5+.5, atol=1e-5) for z,i in zip(got, order))

@pytest.mark.parametrize('inputs', [[], ['x'], [-1]])
def test_odd_inputs(inputs):
    with pytest.raises(ValueError, match='give the numbers of the student'): Teacher(Seen(), inputs=inputs)

def test_an_input_that_the_student_lacks():
    with pytest.raises(ValueError, match='the student has 1 inputs'): Teacher(Seen(), inputs=[1])((torch.rand(2,3),))

# channels
@pytest.mark.parametrize('kwargs', [{}, dict(norm=([.3]*3,[.4]*3))], ids=str)
def test_grey_images_become_three_channels(kwargs):
    m,x = cnn(4).eval(),torch.rand(2,1,16,16)
    t = Teacher(m, **kwargs).bind(SimpleNamespace())
    rgb = x.repeat(1,3,1,1)
    assert torch.allclose(t((x,)), m((rgb-.3)/.4 if kwargs else rgb), atol=1e-5)
    if not kwargs: assert 'channels: grey images are repeated as three channels' in t.notes

def test_a_model_that_repeats_grey_images_itself_gets_them_grey():
    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = cnn(4)
        def forward(self, x): return self.net(x.repeat(1,3,1,1))
    m,x = Repeats().eval(),torch.rand(2,1,16,16)
    assert torch.equal(Teacher(m)((x,)), m(x))

@pytest.mark.parametrize('n_in,n', [(1,3), (3,4), (4,3), (4,1)])
def test_other_channels_are_an_error(n_in, n):
    with pytest.raises(ValueError, match=f'Sequential takes {n_in} channels?, but the student.s inputs have {n}'):
        Teacher(cnn(4, n_in=n_in))((torch.rand(2,n,16,16),))

def test_statistics_of_other_channels_are_an_error():
    with pytest.raises(ValueError, match='norm has 4 channels, but the inputs have 3'):
        seen((torch.rand(2,3,8,8),), norm=([.3]*4,[.4]*4))

# what the two pipelines do
def test_two_normalisations_are_one():
    x = torch.rand(2,3,8,8)
    two = dls_with(IntToFloatTensor(), Normalize.from_stats([.5]*3, [.2]*3, cuda=False), Normalize.from_stats([.1]*3, [2.]*3, cuda=False))
    z = ((x-.5)/.2-.1)/2.
    got, = seen((z,), two, norm=([.3]*3, [.4]*3))
    assert torch.allclose(got, (x-.3)/.4, atol=1e-5)
    m = Seen()
    Teacher(m, norm=([.3]*3, [.4]*3)).bind(two)((z,))
    assert torch.allclose(m.xb[0], (x-.3)/.4, atol=1e-5)

def test_values_of_another_range():
    "A student whose images go from 0 to 255, and a teacher with the usual 0 to 1"
    x = torch.rand(2,3,8,8)
    got, = seen((x*255,), dls_with(IntToFloatTensor(div=1)), norm=([.3]*3, [.4]*3))
    assert torch.allclose(got, (x-.3)/.4, atol=1e-5)

class Darker(Transform):
    order = 100
    def __init__(self, by=.5): self.by = by
    def encodes(self, x:TensorImage): return x*self.by

def invert(x): return x

def of_both(s_tfms, t_tfms):
    "The student's learner, with a trained teacher"
    t = Learner(image_dls(batch_tfms=t_tfms), cnn(8), loss_func=CrossEntropyLossFlat())
    return Learner(image_dls(batch_tfms=s_tfms), cnn(4), loss_func=CrossEntropyLossFlat(), cbs=KnowledgeDistillation(t, SoftTarget()))

@pytest.mark.parametrize('s,t,text', [([], [Darker()], "the teacher's data goes through Darker(by=0.5), the student's does not"),
                                      ([Darker()], [], "the student's data goes through Darker(by=0.5), the teacher's does not"),
                                      ([Darker(.5)], [Darker(.7)], "the teacher's data goes through Darker(by=0.7)"),
                                      ([], [Transform(invert)], "goes through invert")])
def test_transforms_of_one_of_the_two_are_called_out(s, t, text):
    learn = of_both(s, t)
    assert text in learn.knowledge_distillation.summary()
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learn.fit(1, 1e-3)
    assert any('goes through' in str(o.message) for o in seen)

def test_augmentation_normalisation_and_common_transforms_are_not():
    norm = Normalize.from_stats(*imagenet_stats, cuda=False)
    learn = of_both([*aug_transforms(), Darker(), norm], [Darker(), *aug_transforms(size=8)])
    assert 'goes through' not in learn.knowledge_distillation.summary()
