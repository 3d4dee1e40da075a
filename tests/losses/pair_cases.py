"Features, and what every loss on a pair of them must stand: edges, precision, memory formats, gradients"
import pytest, torch
from torch.autograd import gradcheck

def feat(c, h, a, B=8, w=None):
    "Closed-form features (B, c, h, w), float64"
    n = torch.arange(B*c*h*(w or h)).double()
    return (2*torch.sin(a*n) + .3*torch.cos(.013*n)).reshape(B, c, h, w or h)
fs,ft,fd = feat(6,4,.37),feat(6,4,.53),feat(9,2,.71)

def value_and_grad(f, a, b):
    a = a.detach().clone().requires_grad_()
    loss = f(a, b)
    loss.backward()
    return loss.detach(),a.grad

def _outlier(o): o = o.clone(); o[0,0] = 1e4; return o
edges = dict(zero_student=lambda a,b: (0*a,b), zero_teacher=lambda a,b: (a,0*b), both_zero=lambda a,b: (0*a,0*b), constant=lambda a,b: (0*a+3,0*b-2),
             same_items=lambda a,b: (a[:1].expand_as(a),b[:1].expand_as(b)), two_same_items=lambda a,b: (torch.cat([a[:1],a[:-1]]),b),
             dead_channel=lambda a,b: (torch.cat([0*a[:,:1],a[:,1:]], 1),b), opposite_items=lambda a,b: (torch.cat([a[:4],-a[:4]]),b),
             equal=lambda a,b: (b,b), outlier=lambda a,b: (_outlier(a),_outlier(b)))
half_precision = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])

def check_edge(f, edge, dtype, a=fs, b=ft, limit=1e4):
    "Value and gradient are finite, and no division by almost nothing blows the gradient up"
    a,b = edges[edge](a.to(dtype), b.to(dtype))
    loss,grad = value_and_grad(f, a, b)
    assert loss.isfinite() and loss.dtype in (torch.float32, torch.float64) and grad.isfinite().all()
    if edge != 'outlier': assert grad.abs().max() < limit

def check_half(f, dtype, a=fs, b=ft):
    "Under autocast, and in half precision, the value is that of the same features in float64"
    a,b = a.to(dtype),b.to(dtype)
    expected = f(a.double(), b.double()).item()
    for x,y in ((a,b), (a.float(),b.float())):
        with torch.autocast('cpu', dtype=torch.bfloat16): assert f(x, y).item() == pytest.approx(expected, rel=1e-4)

def check_layouts(f, a=fs, b=ft):
    "Channels-last, transposed and strided features give the same value and gradient"
    loss,grad = value_and_grad(f, a, b)
    for g in (lambda o: o.to(memory_format=torch.channels_last), lambda o: o.transpose(0, 1).contiguous().transpose(0, 1), lambda o: o.repeat_interleave(2, 3)[...,::2]):
        x = g(a.detach()).requires_grad_()
        assert not x.is_contiguous()
        l = f(x, g(b))
        l.backward()
        assert l.item() == pytest.approx(loss.item(), rel=1e-12)
        torch.testing.assert_close(x.grad, grad)

def check_gradient(f, a, b): assert gradcheck(lambda x: f(x, b), a.clone().requires_grad_(), check_undefined_grad=False)
