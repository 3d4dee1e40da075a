"Stages and their pairs for the kinds of models that fastai users train"
import pytest, timm, torch, torchvision.models as tv
from torch import nn
from fastai.tabular.model import TabularModel
from fastai.torch_core import get_random_states
from fastai.vision.learner import create_timm_model, create_unet_model, create_vision_model

from fastkd.models.adapters import *
from fastkd.models.layers import *
from fastkd.models.pairs import *
from fastkd.models.taps import *
from small_models import language_model, swin, text_classifier, vit

torch.set_num_threads(1)

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def image(size=64): return torch.randn(2,3,size,size)
def ids(): return torch.randint(2,20,(2,15))
def same(*names): return [(n,n) for n in names]
def blocks(*idxs): return [f'encoder.layers.encoder_layer_{i}' for i in idxs]
def timm_vit(depth, **kwargs):
    return timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, depth=depth, embed_dim=12, num_heads=2,
                             num_classes=3, **kwargs)

class Wrapper(nn.Module):
    def __init__(self, net, f=lambda o: o): super().__init__(); self.net,self.f = net,f
    def forward(self, *x): return self.f(self.net(*x))

resnet = 'relu','layer1','layer2','layer3','layer4'

@pytest.mark.parametrize('teacher', [tv.resnet34,tv.resnet50])
def test_resnets_by_namesake(teacher): assert pair_layers(tv.resnet18(), teacher(), image()) == same(*resnet)

def test_fastai_bodies():
    s,t = (create_vision_model(o, 5, pretrained=False) for o in (tv.resnet18,tv.resnet34))
    assert pair_layers(s, t, image()) == same('0.2','0.4','0.5','0.6','0.7')

@pytest.mark.parametrize('student,names', [
    (tv.mobilenet_v3_small, ['features.0','features.1','features.3','features.8','features.12']),
    (tv.efficientnet_b0, ['features.1','features.2','features.3','features.5','features.8']),
    (tv.regnet_y_400mf, ['stem']+[f'trunk_output.block{i}' for i in range(1,5)]),
    (tv.densenet121, ['features.relu0']+[f'features.denseblock{i}' for i in range(1,4)]+['features.norm5'])])
def test_cnns_by_stride(student, names):
    s = student(weights=None)
    assert pair_layers(s, tv.resnet18(), image()) == list(zip(names, resnet))
    shapes = layer_names(s, image())
    assert [shapes[n][-1] for n in names] == [32,16,8,4,2]

def test_every_second_transformer_block():
    assert pair_layers(vit(6), vit(12), image(32)) == list(zip(blocks(*range(6)), blocks(1,3,5,7,9,11)))

def test_cnn_and_vit_by_relative_depth():
    assert pair_layers(tv.resnet18(), vit(8), image(32)) == list(zip(['relu','layer1','layer2','layer3'], blocks(1,3,5,7)))
    assert pair_layers(vit(2), tv.resnet18(), image(32)) == list(zip(blocks(0,1), ['layer1','layer3']))

def test_blocks_of_a_timm_vit():
    assert pair_layers(timm_vit(2), timm_vit(4), image(32)) == [('blocks.0','blocks.1'), ('blocks.1','blocks.3')]

def test_heads_of_attention_are_no_maps():
    assert [n for n,_ in layer_stages(timm_vit(3, qk_norm=True), image(32))] == ['blocks.0','blocks.1','blocks.2']

def test_swin_stages_channels_last():
    s,t = swin(),swin(2)
    assert pair_layers(s, t, image()) == same('layers.0','layers.1','layers.2','norm')
    names = [('layers.0','layer1'), ('layers.1','layer2'), ('layers.2','layer3'), ('norm','layer4')]
    assert pair_layers(s, tv.resnet18(), image()) == names

def test_torchvision_swin_with_permutes():
    m = tv.swin_transformer.SwinTransformer([4,4], 12, [1,1,1,1], [1,1,1,1], [2,2], num_classes=3)
    assert [level for _,level in layer_stages(m, image())] == [2,3,4,5]

def test_timm_convnext():
    assert pair_layers(timm.create_model('convnext_atto'), tv.resnet18(), image()) == [(f'stages.{i}',f'layer{i+1}') for i in range(4)]

def test_fastai_timm_model():
    m,_ = create_timm_model('resnet10t', 3, pretrained=False)
    assert [t for _,t in pair_layers(m, tv.resnet18(), image())] == list(resnet)

def test_unet_down_and_up():
    s,t = (create_unet_model(o, 3, (64,64), pretrained=False) for o in (tv.resnet18,tv.resnet34))
    pairs = pair_layers(s, t, image())
    down,up = [f'layers.0.{i}' for i in (2,4,5,6)],[f'layers.{i}' for i in (3,4,5,6,7,11)]
    assert pairs == same(*down, *up)
    sizes = layer_names(s, image())
    assert [sizes[n][-1] for n,_ in pairs] == [32,16,8,4,2,4,8,16,32,64]
    assert pair_layers(s, create_vision_model(tv.resnet34, 3, pretrained=False), image())[-1] == ('layers.3','0.7')

def test_rnn_layers_of_text_models():
    rnn = '0.module.rnns.{}'.format
    assert pair_layers(text_classifier(2), text_classifier(3), ids()) == [(rnn(0),rnn(0)), (rnn(1),rnn(2))]
    assert pair_layers(language_model(2), language_model(4), ids()) == [('0.rnns.0','0.rnns.1'), ('0.rnns.1','0.rnns.3')]

def test_tabular_layers_without_embeddings_and_prediction():
    s,t = (TabularModel([(3,2)]*5, 2, 2, o) for o in ([10,5],[20,10]))
    x = torch.randint(0,3,(4,5)),torch.randn(4,2)
    assert pair_layers(s, t, x) == same('layers.0','layers.1')

def test_conv1d_nets_by_stride():
    net = nn.Sequential(nn.Conv1d(3,8,3,2,1), nn.ReLU(), nn.Conv1d(8,8,3,1,1), nn.ReLU(), nn.Conv1d(8,8,3,2,1), nn.ReLU(),
                        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8,2))
    assert layer_stages(net, torch.randn(2,3,32)) == [('3',1), ('5',2)]

def test_leaves_where_nothing_repeats():
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.rnn,self.out = nn.LSTM(3,4,batch_first=True),nn.Linear(4,2)
        def forward(self, x): return self.out(self.rnn(x)[0][:,-1])
    assert layer_stages(Net(), torch.randn(2,5,3)) == [('rnn',None)]

def test_layers_that_read_the_same_tensor_are_no_sequence():
    class Block(nn.Module):
        def __init__(self): super().__init__(); self.q,self.k,self.v = (nn.Linear(4,4) for _ in range(3))
        def forward(self, x): return self.q(x)+self.k(x)*self.v(x)
    assert layer_stages(nn.Sequential(Block(), Block(), nn.Linear(4,2)), torch.randn(2,4)) == [('0',None), ('1',None)]

def test_prediction_is_never_a_stage_also_in_a_wrapper_or_another_view():
    net = nn.Sequential(nn.Conv2d(3,4,3,2,1), nn.ReLU(), nn.Conv2d(4,4,3,2,1), nn.ReLU(), nn.Conv2d(4,4,3,2,1))
    for f in lambda o: o, lambda o: o.flatten(1), lambda o: {'out':o}, lambda o: (o,net[0].weight):
        assert layer_stages(Wrapper(net, f), image(16)) == [('net.1',1), ('net.3',2)]

def test_bottleneck_that_strides_inside_does_not_end_the_stage_before():
    class Block(nn.Module):
        def __init__(self, stride):
            super().__init__()
            self.shortcut,self.conv1,self.conv2 = nn.Conv2d(4,4,1,stride),nn.Conv2d(4,4,1),nn.Conv2d(4,4,3,stride,1)
        def forward(self, x): return self.shortcut(x)+self.conv2(self.conv1(x))
    net = Wrapper(nn.Sequential(nn.Conv2d(3,4,3,2,1), Block(1), Block(2), Block(1), Block(2)), lambda o: o.mean((2,3)))
    assert layer_stages(net, image(32)) == [('net.1',1), ('net.3',2), ('net.4',3)]

def test_compiled_and_wrapped_models():
    s = torch.compile(nn.DataParallel(tv.resnet18()), backend='eager')
    assert pair_layers(s, tv.resnet18(), image()) == same(*resnet)

def test_models_with_disjoint_levels_by_depth():
    a = nn.Sequential(nn.Conv2d(3,4,3,1,1), nn.Conv2d(4,4,3,2,1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2))
    b = nn.Sequential(nn.Conv2d(3,4,4,4), nn.Conv2d(4,4,3,2,1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2))
    assert pair_layers(a, b, image(32)) == same('0','1')

def test_teacher_with_another_input():
    x,xt = image(32),image(64)
    assert pair_layers(vit(2), tv.resnet18(), x, xt) == list(zip(blocks(0,1), ['layer1','layer4']))

def test_nothing_to_pair_names_the_side():
    mlp,lin = nn.Sequential(nn.Linear(4,4), nn.Linear(4,2)),nn.Linear(4,2)
    with pytest.raises(ValueError, match='student: no layer.*layers='): pair_layers(lin, mlp, torch.randn(2,4))
    with pytest.raises(ValueError, match='teacher: no layer'): pair_layers(mlp, lin, torch.randn(2,4))

def small_swin(): return swin(img_size=32, window_size=1)
def tiny_cnn():
    return nn.Sequential(nn.Conv2d(3,4,3,2,1), nn.ReLU(), nn.Conv2d(4,8,3,2,1), nn.ReLU(), nn.Conv2d(8,8,3,2,1), nn.ReLU(),
                         nn.Flatten(), nn.Linear(128,2))

@pytest.mark.parametrize('student', [tiny_cnn,lambda: vit(5),small_swin], ids=['cnn','vit','swin'])
@pytest.mark.parametrize('teacher', [tv.resnet18,lambda: timm_vit(3),small_swin], ids=['resnet','vit','swin'])
def test_pairs_are_strictly_increasing_deterministic_and_match_in_size(student, teacher):
    (s,t),x = (student().eval(),teacher().eval()),image(32)
    pairs = pair_layers(s, t, x)
    assert len(pairs)>1 and pairs == pair_layers(s, t, x)
    fs = []
    for m,names in zip((s,t), zip(*pairs)):
        axes = channel_axes(m, x)
        order = [list(axes).index(n) for n in names]
        assert order == sorted(set(order))
        with torch.no_grad(), Taps(m, names) as taps: m(x)
        fs.append([to_channels_first(f, axes[n]) for f,n in zip(taps.stored, names)])
    for a,b in zip(*fs):
        a,b = match_maps(a, b)
        adapter = make_adapter(a.shape, b.shape)
        assert (adapter(a) if adapter else a).shape == b.shape

def test_pairing_leaves_models_and_random_numbers():
    s,t = tv.resnet18(),tv.mobilenet_v3_small()
    s.layer1.eval(); t.features.eval()
    before = [[m.training for m in o.modules()] for o in (s,t)],[{k:v.clone() for k,v in o.state_dict().items()} for o in (s,t)]
    x,rng = image(32),get_random_states()
    pair_layers(s, t, x)
    assert [[m.training for m in o.modules()] for o in (s,t)]==before[0] and torch.get_rng_state().equal(rng['torch_state'])
    assert all(b[k].equal(v) for o,b in zip((s,t),before[1]) for k,v in o.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for o in (s,t) for m in o.modules())

def test_before_the_activation_that_ends_a_stage():
    "The last ReLU of a torchvision block runs twice; a ViT has none"
    net = tv.resnet18(num_classes=5).eval()
    x = torch.randn(2,3,64,64)
    assert before_activation(net, ['layer1','layer2.0','conv1'], x) == ['layer1.1.relu:in','layer2.0.relu:in','conv1']
    with Taps(net, ['layer1.1.relu:in','layer1'], clone=[0]) as taps: net(x)
    assert taps.stored[0].relu().equal(taps.stored[1]) and taps.stored[0].min()<0
