"Splitters give each parameter to one group, freeze what they say, and export without fastkd"
import copy, subprocess, sys
from functools import partial

import pytest, timm, torch, torchvision.models as tv
from torch import nn
from fastai.data.core import Datasets
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.tabular.model import TabularModel
from fastai.torch_core import norm_types
from fastai.vision.learner import create_timm_model, create_unet_model, create_vision_model, default_split

from fastkd.models.split import *
from small_models import language_model, text_classifier, vit

torch.set_num_threads(1)

def covers(model, groups):
    "Each parameter exactly once, in the order of the model"
    ids,seen = [id(p) for p in model.parameters()],[id(p) for g in groups for p in g]
    assert sorted(ids)==sorted(seen) and len(set(seen))==len(seen)
    for g in groups: assert [id(p) for p in g]==sorted((id(p) for p in g), key=ids.index)

def check(model, head, splitter=body_head):
    "`splitter` puts exactly the parameters of `head`, a list of layer names, into the second group"
    body,got = groups = splitter(model)
    covers(model, groups)
    names = {id(p):n for n,p in model.named_parameters()}
    want = {n for n in names.values() if any(n.startswith(h+'.') for h in head)}
    assert {names[id(p)] for p in got}==want and want

@pytest.mark.parametrize('arch,head', [
    (tv.resnet18,['fc']), (tv.shufflenet_v2_x0_5,['fc']), (tv.mobilenet_v3_small,['classifier']), (tv.densenet121,['classifier']),
    (tv.efficientnet_b0,['classifier']), (tv.squeezenet1_1,['classifier']), (vit,['heads']),
    (lambda: tv.swin_transformer.SwinTransformer([4,4], 12, [2], [1], [2,2]),['head']),
    (lambda: tv.convnext.ConvNeXt([tv.convnext.CNBlockConfig(8,None,2)]),['classifier']),
    (lambda: tv.VGG(nn.Conv2d(3,512,3), num_classes=2),['classifier']),
    (lambda: tv.inception_v3(init_weights=False),['fc','AuxLogits']), (lambda: tv.googlenet(init_weights=False),['fc','aux1','aux2']),
    (lambda: tv.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None, aux_loss=True),['classifier','aux_classifier'])])
def test_torchvision(arch, head): check(arch(), head)

@pytest.mark.parametrize('arch,kwargs,head', [
    ('resnet10t',{},['fc']), ('vit_tiny_patch16_224',{'depth':1},['head']),
    ('deit_tiny_distilled_patch16_224',{'depth':1},['head','head_dist']),
    ('convnext_atto',{'depths':(1,1,1,1)},['head.fc']), ('mobilenetv3_small_050',{},['classifier'])])
def test_timm(arch, kwargs, head): check(timm.create_model(arch, num_classes=3, **kwargs), head)

def test_direct_parameters_are_body():
    m = timm.create_model('vit_tiny_patch16_224', depth=1, num_classes=3)
    body = {id(p) for p in body_head(m)[0]}
    assert id(m.cls_token) in body and id(m.pos_embed) in body

def test_fastai_vision_as_its_default_split():
    unet = create_unet_model(tv.resnet18, 3, (32,32), pretrained=False)
    for m in create_vision_model(tv.resnet18, 3, pretrained=False),create_timm_model('resnet10t', 3, pretrained=False)[0],unet:
        got,want = ([{id(p) for p in g} for g in f(m)] for f in (body_head,default_split))
        assert got==want
        covers(m, body_head(m))

def test_text_classifier(): check(text_classifier(), ['1'])

def test_language_model_keeps_tied_weights_in_the_body():
    m = language_model()
    body,head = body_head(m)
    covers(m, (body,head))
    assert [id(p) for p in head]==[id(m[1].decoder.bias)] and any(p is m[1].decoder.weight for p in body)

def test_language_model_with_nothing_but_tied_weights_in_the_head():
    with pytest.raises(ValueError, match='nothing to split, the head'): body_head(language_model(out_bias=False))

def test_tabular(): check(TabularModel([(3,2)]*2, 2, 2, [8,4]), ['layers.2'])

def test_flat_sequential_head_is_the_last_layer_with_parameters():
    check(nn.Sequential(nn.Conv2d(3,4,3), nn.ReLU(), nn.Flatten(), nn.Linear(4,4), nn.ReLU(), nn.Linear(4,2), nn.Sigmoid()), ['5'])

def test_wrappers_are_looked_into():
    check(nn.Sequential(nn.ReLU(), nn.Sequential(tv.resnet18())), ['1.0.fc'])
    m = tv.resnet18()
    for w in torch.compile(m),nn.DataParallel(m),torch.compile(nn.DataParallel(m)):
        assert [id(p) for p in body_head(w)[1]]==[id(p) for p in m.fc.parameters()]

def test_custom_modules_by_name_or_last_child():
    class Net(nn.Module):
        def __init__(self, **kw):
            super().__init__(); self.scale = nn.Parameter(torch.ones(1))
            for k,v in kw.items(): setattr(self, k, v)
    lin = lambda: nn.Linear(2,2)
    check(Net(fc=lin(), body=lin()), ['fc'])
    check(Net(a=lin(), b=lin(), act=nn.ReLU()), ['b'])
    check(Net(only=nn.Sequential(lin(), lin())), ['only'])
    check(Net(fc=lin(), classifier=lin()), ['classifier'])

def test_named_head_by_name_module_and_list():
    m = tv.resnet18()
    for head in 'layer4',m.layer4: check(m, ['layer4'], partial(body_head, head=head))
    check(m, ['layer4','fc'], partial(body_head, head=['layer4','fc']))

def test_tensor_shared_with_a_head_that_comes_first_is_body():
    m = nn.Sequential(nn.Linear(2,2), nn.Linear(2,2))
    m[1].weight = m[0].weight
    body,head = body_head(m, head='0')
    covers(m, (body,head))
    assert [id(p) for p in head]==[id(m[0].bias)]

def test_names_that_begin_alike_are_told_apart():
    m = nn.ModuleDict({'fc':nn.Linear(2,2), 'fc2':nn.Linear(2,2), 'f':nn.Linear(2,2)})
    check(m, ['fc'], partial(body_head, head='fc'))
    check(m, ['f'], split_at('f'))

def test_wrong_heads_are_errors():
    m = tv.resnet18()
    with pytest.raises(ValueError, match="head='classifer': the model has no such layer"): body_head(m, head='classifer')
    with pytest.raises(ValueError, match="did you mean 'layer4'"): body_head(m, head='layer5')
    with pytest.raises(ValueError, match='head=Linear: the module is not part of the model'): body_head(m, head=nn.Linear(2,2))
    with pytest.raises(ValueError, match="head='relu': nothing to split, the head"): body_head(m, head='relu')
    with pytest.raises(ValueError, match='nothing to split, the body of Linear'): body_head(torch.compile(nn.Linear(2,2)))

# split_at

def test_groups_begin_at_the_named_layers():
    m = tv.resnet18()
    groups = split_at('layer2','layer4.0')(m)
    covers(m, groups)
    assert len(groups)==3 and groups[2][-1] is m.fc.bias
    assert groups[1][0] is m.layer2[0].conv1.weight and groups[2][0] is m.layer4[0].conv1.weight

def test_split_at_with_tied_weights_and_wrappers():
    m = language_model()
    groups = split_at('1')(torch.compile(m))
    covers(m, groups)
    assert [id(p) for p in groups[1]]==[id(m[1].decoder.bias)]

@pytest.mark.parametrize('names,msg', [
    (['layer5'], "split_at='layer5': the model has no such layer; did you mean"),
    (['layer4','layer3'], "split_at='layer3': no parameters come between this layer and the one named before"),
    (['layer4','layer4.0'], "split_at='layer4.0': no parameters come between"),
    (['conv1'], "split_at='conv1': no parameters.*the start of the model"),
    (['avgpool'], "split_at='avgpool': this layer has no parameters")])
def test_wrong_layers_are_errors(names, msg):
    with pytest.raises(ValueError, match=msg): split_at(*names)(tv.resnet18())

def test_split_at_wants_names():
    for args in (),(3,),(['layer4'],):
        with pytest.raises(TypeError, match='give the names'): split_at(*args)

# learners

def learner(model, splitter, path='.'):
    dset = Datasets(torch.arange(4), [[lambda i: torch.zeros(3,32,32)+i],[lambda i: i%2]])
    return Learner(dset.dataloaders(bs=2, val_bs=2, device='cpu'), model, CrossEntropyLossFlat(), splitter=splitter, path=path)

def trained(model):
    "Names of trainable parameters that are not of norm layers"
    norms = {id(p) for m in model.modules() if isinstance(m, norm_types) for p in m.parameters()}
    return {n for n,p in model.named_parameters() if p.requires_grad and id(p) not in norms}

def test_freeze_trains_the_head():
    learn = learner(tv.resnet18(num_classes=2), body_head)
    learn.freeze()
    assert trained(learn.model)=={'fc.weight','fc.bias'}
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())

def test_freeze_to_trains_from_the_named_layer_on():
    learn = learner(tv.resnet18(num_classes=2), split_at('layer4.0'))
    learn.freeze_to(1)
    assert trained(learn.model)=={n for n in trained(tv.resnet18()) if n.startswith(('layer4','fc'))}

def test_copies_keep_the_splitter():
    m = tv.resnet18()
    for s in body_head,split_at('layer4'):
        assert copy.copy(s) is s and copy.deepcopy(s) is s and copy.deepcopy(learner(nn.Sequential(), s)).splitter is s
    learn = learner(m, partial(body_head, head=m.layer4))
    new = copy.deepcopy(learn)
    check(new.model, ['layer4'], new.splitter)

def test_a_splitter_with_a_named_head():
    m = tv.resnet18()
    for s in body_head(head='layer4'),body_head(head=m.layer4),body_head(head='fc')(head='layer4'): check(m, ['layer4'], s)
    check(m, ['fc'], body_head())
    assert repr(body_head(head='fc'))=="body_head(head='fc')" and repr(body_head(head=m.fc))=='body_head(head=Linear)'
    with pytest.raises(ValueError, match="did you mean 'layer4'"): body_head(head='layer5')(m)
    with pytest.raises(TypeError, match='haed'): body_head(haed='fc')(m)

@pytest.mark.parametrize('how', [lambda **kw: partial(body_head, **kw), lambda **kw: body_head(**kw)])
def test_a_copy_of_a_learner_after_its_optimiser_is_made_splits_its_own_model(how):
    m = tv.resnet18()
    learn = learner(m, how(head=m.layer4))
    learn.create_opt()
    new = copy.deepcopy(learn)
    check(new.model, ['layer4'], new.splitter)
    check(m, ['layer4'], learn.splitter)

def test_splitter_keeps_name_and_doc():
    assert body_head.__name__=='body_head' and 'Splitter' in body_head.__doc__ and 'layer4' in repr(split_at('layer4'))

load = """
import sys, torch, warnings; sys.modules['fastkd'] = None; warnings.simplefilter('ignore')
from fastai.learner import load_learner
import fastai.callback.progress  # `no_bar`
for f in sys.argv[1:]:
    learn = load_learner(f)
    with learn.no_bar(): p,_ = learn.get_preds(dl=[(torch.ones(2,3,32,32),)])
    learn.create_opt()
    groups = len(learn.opt.param_lists)
    print(f.rsplit('/')[-1], tuple(p.shape), groups)
"""

def test_exported_learners_load_without_fastkd(tmp_path):
    net = lambda: nn.Sequential(nn.Conv2d(3,4,8,8), nn.ReLU(), nn.Flatten(), nn.Linear(64,2))
    named = {'named':body_head(head='0'), 'partial':partial(body_head, head='0'), 'twice':partial(body_head(head='3'), head='0')}
    splitters = {'body_head':body_head, **named, 'split_at':split_at('3')}
    for n,s in splitters.items():
        learn = learner(net(), s, tmp_path)
        learn.create_opt()
        learn.export(f'{n}.pkl')
        assert (learn.splitter is s or n in ('partial','twice')) and len(learn.opt.param_lists)==2
        if n in named: assert learn.opt.param_lists[1][0] is learn.model[0].weight
        assert b'fastkd' not in (tmp_path/f'{n}.pkl').read_bytes()
    files = [str(tmp_path/f'{n}.pkl') for n in splitters]
    out = subprocess.run([sys.executable, '-c', load, *files], capture_output=True, text=True, cwd=tmp_path)
    assert out.stdout.splitlines()==[f'{n}.pkl (2, 2) 1' for n in splitters], out.stderr
