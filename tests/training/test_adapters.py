"What is trained beside the student: saved and loaded on request, gone from the export"
from copy import deepcopy

import pytest
from fastai.vision.all import *
from fastkd.all import *
from helpers import *
from fastcore.test import test_eq as eq

@pytest.fixture(scope='module')
def dls(): return fixed(image_dls(n=48, bs=8), 8)
@pytest.fixture(scope='module')
def teacher(dls): return trained_teacher(dls, 8, 16)

losses = dict(fitnet=lambda: FitNet(weight=1.), vid=lambda: VID(), review=lambda: ReviewKD(), crd=lambda: CRD(n_negatives=16), ofd=lambda: OFD(weight=1.),
              learnt_T=lambda: SoftTarget(T=LearnableT()), several=lambda: [SoftTarget(), FitNet(weight=1.), VID()])

def distilled(dls, teacher, make, tmp_path, seed=1, **kwargs):
    learn = student(dls, seed=seed, cbs=KnowledgeDistillation(teacher, make(), weight=1.), path=tmp_path, **kwargs)
    return learn,learn.knowledge_distillation

def trained(kd): return [*(kd.features.modules.state_dict().values() if kd.features else []), *kd.learnt.state_dict().values()]
def tensors(kd): return [o.clone() for o in trained(kd) if isinstance(o, Tensor)]
def same(a, b): return len(a)==len(b)>0 and all(torch.equal(x,y) for x,y in zip(a,b))

@pytest.mark.parametrize('make', losses.values(), ids=losses)
def test_saved_adapters_are_those_loaded_also_before_the_first_fit(dls, teacher, make, tmp_path):
    learn,kd = distilled(dls, teacher, make, tmp_path)
    learn.fit(1, 1e-2)
    path = kd.save_adapters('adapters')
    eq(path, tmp_path/'models'/'adapters.pth')
    other,kd2 = distilled(dls, teacher, make, tmp_path, seed=5)
    kd2.load_adapters('adapters')
    other.fit(1, 0.)  # a learning rate of 0: nothing is trained
    moves = any(isinstance(l, (VID,ReviewKD,CRD,OFD)) for l in kd2.terms)  # buffers go on: batch norms, the memory
    if not moves: assert same(tensors(kd), tensors(kd2))
    a,b = [[p.detach() for p in o.adapter_opt.params] for o in (kd,kd2)]
    assert same(a, b)

@pytest.mark.parametrize('make', losses.values(), ids=losses)
def test_training_goes_on_from_a_save_as_without_a_stop(dls, teacher, make, tmp_path):
    "The student, its optimiser, the adapters and theirs: bit for bit"
    learn,kd = distilled(dls, teacher, make, tmp_path)
    learn.fit(1, 1e-2)
    learn.save('student')
    kd.save_adapters('adapters')
    learn.fit(1, 1e-2, reset_opt=False)
    other,kd2 = distilled(dls, teacher, make, tmp_path, seed=5)
    other.create_opt()
    other.load('student', with_opt=True)
    kd2.load_adapters('adapters')
    other.fit(1, 1e-2, reset_opt=False)
    assert same_state(state(learn.model), state(other.model))
    assert same(tensors(kd), tensors(kd2))

def test_without_the_optimiser_the_step_is_another(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, losses['fitnet'], tmp_path)
    learn.fit(1, 1e-2)
    kd.save_adapters('a')
    kd.load_adapters('a', with_opt=False)
    before = kd.adapter_opt.state_dict()['state'][0]['step']
    other,kd2 = distilled(dls, teacher, losses['fitnet'], tmp_path, seed=5)
    kd2.load_adapters('a', with_opt=False)
    other.fit(1, 1e-2)
    eq(kd2.adapter_opt.state_dict()['state'][0]['step'], before)  # it counts from 0 again
    learn.fit(1, 1e-2, reset_opt=False)
    eq(kd.adapter_opt.state_dict()['state'][0]['step'], 2*before)

@pytest.mark.parametrize('make', losses.values(), ids=losses)
def test_export_is_that_of_the_student_alone(dls, teacher, make, tmp_path):
    learn,kd = distilled(dls, teacher, make, tmp_path)
    learn.fit(1, 1e-2)
    mine = [id(p) for p in kd.adapter_opt.params]
    assert not any(id(p) in mine for p in learn.model.parameters())
    learn.export('student.pkl')
    plain = student(dls, path=tmp_path)
    plain.fit(1)
    plain.export('plain.pkl')
    sizes = [(tmp_path/f).stat().st_size for f in ('student.pkl','plain.pkl')]
    assert abs(sizes[0]-sizes[1]) < .01*sizes[1]
    assert b'fastkd' not in (tmp_path/'student.pkl').read_bytes()
    loaded = load_learner(tmp_path/'student.pkl')
    eq(loaded.model.state_dict().keys(), plain.model.state_dict().keys())
    assert kd.adapter_opt is not None and len(learn.opt.all_params()) == len(list(learn.model.parameters()))

@pytest.mark.parametrize('make', losses.values(), ids=losses)
def test_lr_find_gives_back_what_it_trained(dls, teacher, make, tmp_path):
    learn,kd = distilled(dls, teacher, make, tmp_path)
    learn.fit(1, 1e-2)
    before,steps = tensors(kd),str(kd.adapter_opt.state_dict()['state'][0]['step'])
    learn.lr_find(num_it=6, show_plot=False)
    assert same(before, tensors(kd))
    eq(str(kd.adapter_opt.state_dict()['state'][0]['step']), steps)

@pytest.mark.parametrize('with_opt', [True,False])
@pytest.mark.parametrize('make', losses.values(), ids=losses)
def test_loaded_adapters_outlast_an_lr_find_before_the_first_fit(dls, teacher, make, with_opt, tmp_path):
    learn,kd = distilled(dls, teacher, make, tmp_path)
    learn.fit(1, 1e-2)
    kd.save_adapters('a')
    def goes_on(*first):
        other,kd2 = distilled(dls, teacher, make, tmp_path, seed=5)
        kd2.load_adapters('a', with_opt)
        for f in first: f(other)
        set_seed(3)
        other.fit(1, 1e-2)
        return tensors(kd2)
    assert same(goes_on(), goes_on(lambda l: l.lr_find(num_it=6, show_plot=False)))

def test_a_copy_learns_a_temperature_of_its_own(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, losses['learnt_T'], tmp_path)
    learn.fit(1, 1e-1)
    twin = deepcopy(learn)
    T,T2 = [l.knowledge_distillation.terms[0].T for l in (learn,twin)]
    before = T.theta.item()
    assert T2.theta.item() == before
    twin.fit(1, 1e-1)
    assert T.theta.item() == before and T2.theta.item() != before

def test_each_of_two_temperatures_under_one_name_is_learnt(dls, teacher, tmp_path):
    Ts = [LearnableT(),LearnableT()]
    learn,kd = distilled(dls, teacher, lambda: [ChannelWise(['0'], T=Ts[0]), ChannelWise(['0'], T=Ts[1], weight=2.)], tmp_path)
    learn.fit(1, 1e-1)
    assert all(T.theta.item() != LearnableT().theta.item() for T in Ts)
    assert {'channel_wise_1_T','channel_wise_2_T'} <= set(kd.history)

def test_copies_do_not_share_adapters(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, losses['several'], tmp_path)
    learn.fit(1, 1e-2)
    twin = deepcopy(learn)
    before = tensors(twin.knowledge_distillation)
    learn.fit(1, 1e-2)
    assert same(before, tensors(twin.knowledge_distillation)) and not same(before, tensors(kd))

# mistakes
def test_nothing_to_save(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, SoftTarget, tmp_path)
    learn.fit(1)
    with pytest.raises(ValueError, match='nothing to save'): kd.save_adapters('none')

def test_adapters_of_other_layers_do_not_fit(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, losses['fitnet'], tmp_path)
    learn.fit(1)
    kd.save_adapters('a')
    other,kd2 = distilled(dls, teacher, lambda: FitNet([('1','1')], weight=1.), tmp_path)
    kd2.load_adapters('a')
    with pytest.raises(ValueError, match='saved adapters do not fit'): other.fit(1)

def test_no_file(dls, teacher, tmp_path):
    learn,kd = distilled(dls, teacher, losses['fitnet'], tmp_path)
    with pytest.raises(FileNotFoundError): kd.load_adapters('missing')
def test_no_learner(teacher):
    with pytest.raises(ValueError, match='in no learner'): KnowledgeDistillation(teacher).save_adapters('a')
