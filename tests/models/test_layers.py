"Layer names, taps, layouts, sizes and adapters; none of them may change the model"
import random
from contextlib import nullcontext

import numpy as np, pytest, torch, timm, torchvision.models as tv
import torch.distributed as dist
from torch import nn
from fastai.text.models.awdlstm import WeightDropout
from fastai.text.models.core import SentenceEncoder
from fastai.torch_core import get_random_states

from fastkd.models.adapters import *
from fastkd.models.layers import *
from fastkd.models.taps import *
from small_models import swin, text_classifier, vit

torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def convnet(inplace=False, act=nn.ReLU):
    return nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), act(inplace=inplace), nn.Conv2d(4,5,3),
                         nn.Flatten(), nn.Dropout(0.5), nn.Linear(80,2))

def hooks(model): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in model.modules())
def image(size=8): return torch.randn(2,3,size,size)

class Raises(nn.Module):
    "Raises `exc` when called"
    def __init__(self, exc): super().__init__(); self.exc = exc
    def forward(self, x): raise self.exc

class Returns(nn.Module):
    "Returns `f(x)`"
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)

# unwrap

def test_unwrap_strips_compile_and_parallel_repeatedly():
    net = convnet()
    assert unwrap(torch.compile(nn.DataParallel(torch.compile(net)))) is net

def test_unwrap_keeps_other_modules_with_a_module_attribute():
    enc = SentenceEncoder(5, nn.Linear(2,2))
    drop = WeightDropout(nn.LSTM(2,2), 0.5)
    assert unwrap(enc) is enc and unwrap(drop) is drop

# names

def test_unknown_name_is_an_error_with_close_matches_and_the_argument():
    with pytest.raises(ValueError, match=r"hints='layer5': the model has no such layer; did you mean 'layer\d'.*layer_names\(model, x\)"):
        resolve_layers(tv.resnet18(), ['layer1','layer5'], arg='hints')

def test_root_is_not_a_layer():
    with pytest.raises(ValueError, match="layers=''"): resolve_layers(convnet(), [''])

def test_names_resolve_in_the_given_order_and_through_wrappers():
    net = convnet()
    assert resolve_layers(torch.compile(net), ['3','0']) == [net[3],net[0]]

def test_shared_layer_resolves_under_each_of_its_names():
    act = nn.ReLU()
    assert resolve_layers(nn.Sequential(nn.Linear(2,2), act, act), '2') == [act]

def test_layer_names_in_order_of_completion():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.last,self.first = nn.Linear(4,2),nn.Sequential(nn.Linear(3,4))
        def forward(self, x): return self.last(self.first(x))
    assert list(layer_names(Net(), torch.randn(2,3)).items()) == [('first.0',(2,4)), ('first',(2,4)), ('last',(2,2))]

def test_layer_names_takes_the_first_of_tuples_out_of_dicts_and_skips_the_rest():
    net = nn.Sequential(nn.LSTM(3,4,batch_first=True), Returns(lambda o: {'out':o[0]}),
                        Returns(lambda o: {'x':o['out']}), Returns(lambda o: o['x']))
    assert layer_names(net, torch.randn(2,5,3)) == {'0':(2,5,4), '1':(2,5,4), '3':(2,5,4)}

def test_layer_called_twice_is_listed_at_its_last_call():
    act = nn.ReLU()
    assert list(layer_names(nn.Sequential(act, nn.Linear(3,4), act), torch.randn(2,3)).items()) == [('1',(2,4)), ('0',(2,4))]

def test_layer_names_of_several_inputs():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.l = nn.Linear(3,4)
        def forward(self, a, b): return self.l(a+b)
    assert layer_names(Net(), (torch.zeros(2,3), torch.zeros(2,3))) == {'l':(2,4)}

def test_layer_names_of_a_compiled_model_after_its_first_call():
    net = convnet().eval()
    for c in torch.compile(net, backend='eager'),net:
        if c is net: net.compile(backend='eager')
        with torch.no_grad(): c(image())  # as the probe will call it
        assert list(layer_names(c, image())) == list('0123456')
    torch._dynamo.reset()

def state(net): return [m.training for m in net.modules()],hooks(net),{k:v.clone() for k,v in net.state_dict().items()}

@pytest.mark.parametrize('run', [layer_names, channel_axes])
@pytest.mark.parametrize('exc', [None, RuntimeError('x'), KeyboardInterrupt()])
def test_probing_leaves_flags_buffers_hooks_and_random_numbers(run, exc):
    net,x = convnet().append(Returns(lambda o: o+torch.rand(())+random.random()+np.random.rand())),image()
    if exc: net.append(Raises(exc))
    net[1].eval(); net.training = False  # mixed flags, which neither train() nor eval() could give back
    before,rng = state(net),get_random_states()
    with pytest.raises(type(exc)) if exc else nullcontext(): run(net, x)
    after = state(net)
    assert before[:2] == after[:2] and all(before[2][k].equal(v) for k,v in after[2].items())
    assert torch.get_rng_state().equal(rng['torch_state']) and random.getstate()==rng['random_state']
    assert np.array_equal(np.random.get_state()[1], rng['numpy_state'][1])

def test_probing_runs_in_eval_mode_without_a_graph():
    seen = []
    net = nn.Sequential(nn.Linear(3,4), Returns(lambda o: seen.append((o.requires_grad, net[2].training)) or o), nn.Dropout())
    layer_names(net, torch.randn(2,3))
    assert seen == [(False,False)]

def test_probing_resets_hidden_states():
    net = text_classifier()[0].module
    net(torch.randint(2,20,(4,5)))
    layer_names(net, torch.randint(2,20,(2,5)))
    assert all((h==0).all() for hs in net.hidden for h in hs)
    net(torch.randint(2,20,(4,5)))[0].sum().backward()

# layouts

@pytest.mark.parametrize('module,shape,axis', [
    (nn.Conv2d(3,8,1), (2,8,4,4), 1), (nn.ConvTranspose2d(3,8,1), (2,8,4,4), 1), (nn.BatchNorm2d(8), (2,8,8,8), 1),
    (nn.GroupNorm(2,8), (2,8,4,4), 1), (nn.InstanceNorm2d(8), (2,8,4,4), 1), (nn.Conv1d(3,8,1), (2,8,8), 1), (nn.Linear(3,8), (2,8,8), 2),
    (nn.Linear(3,8), (2,4,4,8), 3), (nn.LayerNorm(8), (2,4,4,8), 3), (nn.LayerNorm((8,4,4)), (2,8,4,4), 1),
    (timm.layers.LayerNorm2d(8), (2,8,8,8), 1), (nn.LSTM(3,4,bidirectional=True), (2,4,8), 2), (nn.LSTM(3,8,proj_size=4), (2,8,4), 2),
    (WeightDropout(nn.GRU(3,8), 0.5, 'weight_hh_l0'), (2,8,8), 2), (nn.MultiheadAttention(8,2), (2,5,8), 2),
    (nn.Embedding(9,8), (2,5,8), 2),
    (nn.Linear(3,8), (2,8), 1), (nn.ReLU(), (2,5,8), 2), (nn.ReLU(), (2,8,4,4), 1), (nn.LayerNorm(8), (2,8,4,4), 1),
    (nn.Conv1d(3,8,1), (2,4,8), 2), (nn.Sequential(nn.Linear(3,4), nn.Conv2d(4,8,1)), (2,8,4,4), 1),
    (tv.convnext.CNBlock(8, 1e-6, 0.), (2,8,8,8), 1), (tv.convnext.CNBlock(8, 1e-6, 0.), (2,8,4,4), 1)],
    ids=lambda o: type(o).__name__ if isinstance(o, nn.Module) else str(o))
def test_channel_axis(module, shape, axis): assert channel_axis(module, shape) == axis

def test_channel_axes_of_activations_and_permutes_follow_the_layer_before():
    net = nn.Sequential(nn.Conv2d(3,8,1), nn.ReLU(), Returns(lambda o: o.permute(0,2,3,1)), nn.ReLU(),
                        nn.Linear(8,6), nn.GELU(), Returns(lambda o: o.movedim(-1,1)), nn.ReLU())
    assert list(channel_axes(net, image(4)).values()) == [1,1,3,3,3,3,1,1]

def test_channel_axes_of_a_layer_after_maps_of_another_layout():
    class Block(nn.Module):
        def __init__(self): super().__init__(); self.lin,self.attn,self.drop = nn.Linear(3,6),nn.Softmax(-1),nn.Dropout()
        def forward(self, x): x = self.lin(x); self.attn(torch.zeros(2,2,7,7)); return self.drop(x)
    assert channel_axes(Block(), torch.randn(2,5,4,3)) == {'lin':3, 'attn':1, 'drop':3}

def test_channels_first_moves_only_the_channels():
    f = torch.randn(2,4,5,3)
    assert to_channels_first(f, 3).equal(f.permute(0,3,1,2)) and to_channels_first(f, -1).equal(f.permute(0,3,1,2))
    assert to_channels_first(f, 1) is f
    v = torch.randn(2,3)
    assert to_channels_first(v, 1) is v and to_channels_first(v, -1) is v

@pytest.mark.parametrize('net,size,names', [
    (tv.resnet18(), 64, ['relu','layer1','layer4','fc']),
    (vit(hidden_dim=24), 32, ['encoder.layers.encoder_layer_0']),
    (swin(img_size=64, window_size=2), 64, ['layers.0','layers.3']),
    (timm.create_model('convnext_atto'), 64, ['stages.0','stages.3'])], ids=['resnet','vit','swin','convnext'])
def test_axis_of_real_models(net, size, names):
    expected = {'relu':64, 'layer1':64, 'layer4':512, 'fc':1000, 'encoder.layers.encoder_layer_0':24,
                'layers.0':24, 'layers.3':192, 'stages.0':40, 'stages.3':320}
    x = image(size)
    shapes,axes,layers = layer_names(net, x),channel_axes(net, x),dict(net.named_modules())
    for n in names:
        assert shapes[n][channel_axis(layers[n], shapes[n])] == expected[n]
        assert axes[n] == channel_axis(layers[n], shapes[n]) or n=='relu'

# taps

def test_taps_are_in_the_order_of_names_which_may_repeat():
    net = convnet().eval()
    with Taps(net, ['3','0','3']) as taps: net(image())
    a,b,c = taps.stored
    assert a is c and a.shape[1]==5 and b.shape[1]==4 and a.requires_grad

def test_taps_take_the_first_of_a_tuple():
    net = nn.Sequential(nn.LSTM(3,4,batch_first=True), Returns(lambda o: o[0]))
    with Taps(net, '0') as taps: y = net(torch.randn(2,5,3))
    assert taps.stored[0] is y

def test_features_keep_their_graph():
    net = convnet()
    with Taps(net, ['0']) as taps: net(image())
    taps.stored[0].sum().backward()
    assert net[0].weight.grad.abs().sum()>0 and net[3].weight.grad is None

@pytest.mark.parametrize('exc', [RuntimeError('x'), KeyboardInterrupt()])
def test_no_hook_is_left_when_forward_raises(exc):
    net = nn.Sequential(nn.Linear(3,4), Raises(exc))
    with pytest.raises(type(exc)):
        with Taps(net, ['0','1']): net(torch.randn(2,3))
    assert hooks(net)==0

def test_no_hook_is_left_when_registering_is_interrupted(monkeypatch):
    net = convnet()
    def interrupted(*args): raise KeyboardInterrupt
    monkeypatch.setattr(net[3], 'register_forward_hook', interrupted)
    with pytest.raises(KeyboardInterrupt):
        with Taps(net, ['0','3']): pass
    assert hooks(net)==0

def test_layer_not_called_is_named():
    net = convnet(); net.spare = nn.Linear(2,2)
    net.forward = lambda x: net[0](x)
    with Taps(net, ['0','spare']) as taps: net(image())
    with pytest.raises(ValueError, match="layers='spare': this layer was not called"): taps.stored

def test_layer_without_a_tensor_is_named():
    net = nn.Sequential(Returns(lambda o: {'x':o}), Returns(lambda o: o['x']))
    with pytest.raises(ValueError, match="layers='0': this layer returns no tensor"):
        with Taps(net, ['0']): net(image())
    assert hooks(net)==0

def test_in_place_change_is_reported_and_clone_keeps_the_output():
    net,x = convnet(inplace=True).eval(),image()
    bn = net[:2](x)
    with Taps(net, ['0','1','3']) as taps: net(x)
    assert taps.changed == [1] and taps.stored[1].min()==0
    with Taps(net, ['0','1','3'], clone=[1]) as taps: net(x)
    assert taps.changed == [] and taps.stored[1].equal(bn)
    taps.stored[1].sum().backward()
    assert net[0].weight.grad is not None

def test_taps_in_inference_mode():
    net = convnet()
    with torch.inference_mode(), Taps(net, ['0']) as taps: net(image())
    assert taps.changed == [] and len(taps.stored)==1

def test_pop_forgets_the_features():
    net = convnet()
    with Taps(net, ['0']) as taps: net(image())
    assert len(taps.pop())==1
    with pytest.raises(ValueError, match="'0'"): taps.pop()

def test_a_failed_pop_forgets_the_features_too():
    net = convnet(); net.spare = nn.Linear(2,2); net.forward = lambda x: net[0](x)
    with Taps(net, ['0','spare']) as taps: net(image())
    with pytest.raises(ValueError): taps.pop()
    assert not taps._out

def test_features_of_an_earlier_pass_do_not_stand_in():
    net = convnet()
    taps = Taps(net, ['0'])
    with taps: net(image())
    with taps: pass
    with pytest.raises(ValueError, match='not called'): taps.stored

# arm

def test_arm_records_one_call():
    net,x = convnet().eval(),image()
    taps = Taps(net, ['0']).arm(net)
    assert hooks(net)==0
    y = net(x)
    assert hooks(net)==0 and 'forward' not in net.__dict__
    f = taps.pop()[0]
    assert f.equal(net[0](x)) and y.equal(net(x))
    with pytest.raises(ValueError): taps.pop()

@pytest.mark.parametrize('exc', [RuntimeError('x'), KeyboardInterrupt()])
def test_arm_leaves_nothing_when_forward_raises(exc):
    net = nn.Sequential(nn.Linear(3,4), Raises(exc))
    Taps(net, ['0']).arm(net)
    with pytest.raises(type(exc)): net(torch.randn(2,3))
    assert hooks(net)==0 and 'forward' not in net.__dict__

def test_arm_gives_back_a_forward_of_the_instance():
    net = convnet()
    mine = lambda x: net[0](x)
    net.forward = mine
    taps = Taps(net, ['0']).arm(net)
    net(image())
    assert net.__dict__['forward'] is mine and len(taps.pop())==1
    taps.arm(net); taps.disarm()
    assert net.__dict__['forward'] is mine

def test_disarm_undoes_a_call_that_never_came():
    net = convnet()
    taps = Taps(net, ['0']).arm(net)
    taps.disarm(); taps.disarm()
    assert 'forward' not in net.__dict__
    net(image())
    with pytest.raises(ValueError): taps.pop()

def test_arming_twice_leaves_nothing():
    net = convnet()
    taps = Taps(net, ['0']).arm(net).arm(net)
    net(image())
    assert 'forward' not in net.__dict__ and len(taps.pop())==1

def test_two_taps_on_one_model():
    net = convnet()
    a,b = Taps(net, ['0']).arm(net),Taps(net, ['3']).arm(net)
    net(image())
    assert a.pop()[0].shape[1]==4 and b.pop()[0].shape[1]==5 and 'forward' not in net.__dict__ and hooks(net)==0

def test_disarm_below_another_arm():
    net = convnet()
    a,b = Taps(net, ['0']).arm(net),Taps(net, ['3']).arm(net)
    a.disarm()
    net(image())
    assert len(b.pop())==1 and not a._out and 'forward' not in net.__dict__

@pytest.mark.parametrize('inplace', [False,True], ids=['torch.compile','model.compile'])
def test_arm_on_a_compiled_model(inplace):
    torch._dynamo.reset()
    net = convnet(inplace=True)
    c = net if inplace else torch.compile(net, backend='aot_eager')
    if inplace: net.compile(backend='aot_eager')
    attrs = dict(c.__dict__)
    with torch.no_grad(), Taps(c, ['0','1']) as taps: unwrap(c)._call_impl(image())
    assert taps.changed == [1]
    taps = Taps(c, ['0','1'], clone=[1])
    torch._dynamo.utils.counters.clear()
    for _ in range(3):
        x = image()
        taps.arm(c)
        c.train()(x)
        f0,f1 = taps.pop()
        torch.testing.assert_close(f0, net[0](x))
        assert f1.min()<0 and f0.requires_grad
        c.eval()(x)  # validation in between
    assert torch._dynamo.utils.counters['stats']['unique_graphs']==2  # one to train and one to validate: no recompilation per batch
    assert hooks(net)==0
    for o in 'forward','_compiled_call_impl': assert c.__dict__.get(o) is attrs.get(o)
    torch._dynamo.reset()

def test_arm_on_distributed_data_parallel(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        net = convnet()
        ddp = nn.parallel.DistributedDataParallel(net)
        taps = Taps(ddp, ['3']).arm(ddp)
        y = ddp(image())
        f = taps.pop()[0]
        (f.sum()+y.sum()).backward()
        assert net[0].weight.grad is not None and hooks(net)==0 and 'forward' not in ddp.__dict__
        assert list(layer_names(ddp, image())) == list('0123456') and unwrap(ddp) is net
    finally: dist.destroy_process_group()

def test_rnn_features_of_a_text_classifier():
    net = text_classifier().train()
    with Taps(net, ['0','0.module.rnns.0','1']) as taps: y = net(torch.randint(2,20,(2,10)))
    enc,rnn,head = taps.stored
    assert enc.shape==(2,10,8) and rnn.shape==(2,5,12) and head is y[0]

# sizes

def shapes(s, t): return [tuple(o.shape[1:]) for o in match_maps(torch.randn(2,*s), torch.randn(2,*t))]

@pytest.mark.parametrize('s,t,out', [
    ((3,8,8), (5,4,4), ((3,4,4),(5,4,4))), ((3,8,4), (5,4,8), ((3,4,4),(5,4,4))), ((3,7,7), (5,197), ((3,7,7),(5,7,7))),
    ((5,198), (3,7,7), ((5,7,7),(3,7,7))), ((3,4,4), (5,16), ((3,4,4),(5,4,4))), ((3,2,2), (5,21), ((3,2,2),(5,2,2))),
    ((3,14,14), (5,50), ((3,7,7),(5,7,7))), ((3,2,4), (5,33), ((3,2,4),(5,2,4))), ((3,2,3), (5,61), ((3,2,3),(5,2,3))),
    ((3,197), (5,196), ((3,196),(5,196))), ((3,197), (5,198), ((3,196),(5,196))), ((3,12), (5,30), ((3,12),(5,12))),
    ((3,), (5,4,4), ((3,),(5,))), ((3,6), (5,), ((3,),(5,))), ((3,), (5,), ((3,),(5,))),
    ((3,4,4,4), (5,2,2,2), ((3,2,2,2),(5,2,2,2)))], ids=str)
def test_matched_shapes(s, t, out): assert shapes(s, t) == list(out)

def test_equal_features_pass_as_they_are():
    for sh in (2,3,4,4),(2,3,5),(2,3):
        fs,ft = torch.randn(sh),torch.randn(sh)
        a,b = match_maps(fs, ft)
        assert a is fs and b is ft

def test_only_the_larger_map_is_pooled_and_by_its_mean():
    fs,ft = torch.randn(2,3,4,4),torch.randn(2,5,2,2)
    a,b = match_maps(fs, ft)
    assert b is ft
    torch.testing.assert_close(a, fs.unflatten(2,(2,2)).unflatten(4,(2,2)).mean((3,5)))

@pytest.mark.parametrize('size,prefix', [((4,4),1), ((2,4),2)])
def test_tokens_keep_their_place_in_the_grid(size, prefix):
    grid = torch.randn(2,5,*size)
    tokens = torch.cat([torch.full((2,5,prefix), 100.), grid.flatten(2)], 2)
    assert match_maps(torch.randn(2,3,*size), tokens)[1].equal(grid)

def test_class_token_is_dropped_from_the_front():
    ft = torch.randn(2,5,16)
    fs = torch.cat([torch.full((2,5,2), 100.), ft], 2)
    a,b = match_maps(fs, ft)
    assert a.equal(ft) and b.equal(ft)

def test_sequence_is_averaged():
    fs = torch.randn(2,3,12)
    torch.testing.assert_close(match_maps(fs, torch.randn(2,3,6))[0], fs.unflatten(2,(6,2)).mean(3))

@pytest.mark.parametrize('s,t', [((2,3,7,7),(2,5,23)), ((2,3,4,4),(3,3,4,4)), ((2,3,4,4),(2,3,4,4,4)), ((2,),(2,3))], ids=str)
def test_impossible_match_names_both_shapes(s, t):
    with pytest.raises(ValueError) as e: match_maps(torch.randn(s), torch.randn(t))
    assert str(s) in str(e.value) and str(t) in str(e.value)

# adapters

@pytest.mark.parametrize('fs,ft,kind', [
    ((2,3,4,4),(2,5,4,4),nn.Conv2d), ((2,3,7),(2,5,7),nn.Conv1d), ((2,3),(2,5),nn.Linear), ((2,3,2,2,2),(2,5,2,2,2),nn.Conv3d)])
def test_adapter_gives_teacher_channels_linearly(fs, ft, kind):
    m = make_adapter(fs, ft)
    assert type(m) is kind and m(torch.randn(fs)).shape==ft
    a,b,zero = torch.randn(fs),torch.randn(fs),torch.zeros(fs)
    torch.testing.assert_close(m(a+b)-m(zero), m(a)+m(b)-2*m(zero), atol=1e-5, rtol=1e-5)

def test_no_adapter_for_equal_channels(): assert make_adapter((2,3,4,4), (2,3,4,4)) is None

def test_adapter_of_unmatched_features_is_an_error():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 5\).*match_maps"): make_adapter((2,3,4,4), (2,5))

# The input of a layer
def test_input_of_a_layer_is_recorded():
    net,x = convnet().eval(),image()
    with Taps(net, ['2:in','1','2']) as taps: net(x)
    assert taps.stored[0] is taps.stored[1] and taps.stored[0].min()<0 and taps.stored[2].min()==0

def test_input_of_an_in_place_activation_is_cloned():
    net,x = convnet(inplace=True).eval(),image()
    with Taps(net, ['2:in']) as taps: net(x)
    assert taps.changed == [0]
    with Taps(net, ['2:in'], clone=[0]) as taps: net(x)
    assert taps.stored[0].equal(net[:2](x))
    taps.stored[0].sum().backward()
    assert net[0].weight.grad is not None

def test_input_of_an_unknown_layer_is_an_error():
    with pytest.raises(ValueError, match="layers='9:in'"): resolve_layers(convnet(), ['9:in'])
