"Features, and the checks that every loss on a pair of features must pass: edge cases, precision, memory layouts, gradients"
import pytest, torch
from torch.autograd import gradcheck

def feat(c, h, a, B=8, w=None):
    "Closed-form features (B, c, h, w), float64"
    n = torch.arange(B*c*h*(w or h)).double()
    return (2*torch.sin(a*n) + .3*torch.cos(.013*n)).reshape(B, c, h, w or h)
fs,ft,fd = feat(6,4,.37),feat(6,4,.53),feat(9,2,.71)

def _outlier(o):
    o = o.clone()
    o[0,0] = 1e4
    return o
edges = dict(
    zero_student=lambda a,b: (0*a,b),
    zero_teacher=lambda a,b: (a,0*b),
    both_zero=lambda a,b: (0*a,0*b),
    constant=lambda a,b: (0*a+3,0*b-2),
    same_items=lambda a,b: (a[:1].expand_as(a),b[:1].expand_as(b)),
    two_same_items=lambda a,b: (torch.cat([a[:1],a[:-1]]),b),
    dead_channel=lambda a,b: (torch.cat([0*a[:,:1],a[:,1:]], 1),b),
    opposite_items=lambda a,b: (torch.cat([a[:4],-a[:4]]),b),
    equal=lambda a,b: (b,b),
    outlier=lambda a,b: (_outlier(a),_outlier(b)))

def each_of(losses): return pytest.mark.parametrize('f', losses, ids=lambda f: f.__name__)
half_precision = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def every_edge(test):
    "Decorator: run `test` on each of the `edges` in each precision"
    test = pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)(test)
    return pytest.mark.parametrize('edge', edges)(test)

def value_and_grad(f, a, b):
    a = a.detach().clone().requires_grad_()
    loss = f(a, b)
    loss.backward()
    return loss.detach(),a.grad

def check_close(value, expected, rel=1e-12):
    if isinstance(expected, torch.Tensor): expected = expected.item()
    assert value.item() == pytest.approx(expected, rel=rel)

def check_zero(f, b, grad=1e-10):
    "Value and gradient vanish where the student's features equal the teacher's"
    loss,g = value_and_grad(f, b, b)
    assert loss.abs() < 1e-12 and g.abs().max() < grad

def check_doubling(f): check_close(f(torch.cat([fs,fs]), torch.cat([ft,ft])), f(fs, ft))

def check_mean_over_items(f, rel):
    "The value is the mean over its items as batches of one"
    check_close(torch.stack([f(fs[i:i+1], ft[i:i+1]) for i in range(8)]).mean(), f(fs, ft), rel)

def check_edge(f, edge, dtype, a=fs, b=ft, limit=1e4):
    "Value and gradient are finite, and no division by a tiny number makes the gradient explode"
    a,b = edges[edge](a.to(dtype), b.to(dtype))
    loss,grad = value_and_grad(f, a, b)
    assert loss.isfinite() and loss.dtype in (torch.float32, torch.float64) and grad.isfinite().all()
    if edge != 'outlier': assert grad.abs().max() < limit

def check_half(f, dtype, a=fs, b=ft):
    "Under autocast and in half precision, the value is that of the same features in float64"
    a,b = a.to(dtype),b.to(dtype)
    expected = f(a.double(), b.double())
    for x,y in ((a,b), (a.float(),b.float())):
        with torch.autocast('cpu', dtype=torch.bfloat16): check_close(f(x, y), expected, 1e-4)

def _channels_last(o): return o.to(memory_format=torch.channels_last)
def _transposed(o): return o.transpose(0, 1).contiguous().transpose(0, 1)
def _strided(o): return o.repeat_interleave(2, 3)[...,::2]

def check_layouts(f, a=fs, b=ft):
    "Channels-last, transposed and strided features give the same value and gradient"
    loss,grad = value_and_grad(f, a, b)
    for layout in (_channels_last, _transposed, _strided):
        x = layout(a.detach()).requires_grad_()
        assert not x.is_contiguous()
        l = f(x, layout(b))
        l.backward()
        check_close(l, loss)
        torch.testing.assert_close(x.grad, grad)

def check_gradient(f, a, b): assert gradcheck(lambda x: f(x, b), a.clone().requires_grad_(), check_undefined_grad=False)

def check_out_of_range(make):
    with pytest.raises(ValueError, match='it must be finite and'): make()
