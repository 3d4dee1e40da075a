"The public names are one API: every loss has a twin, the same order of arguments, a weight, a paper and shapes"
import ast, inspect, re
from pathlib import Path

import pytest
from fastcore.docments import docments
from fastkd.losses.base import DistillationLoss
from fastkd.losses.features import FeatureLoss
import fastkd.all as api

public = {n: getattr(api, n) for n in api.__all__}
losses = [o for o in public.values() if isinstance(o, type) and issubclass(o, DistillationLoss)]
on_features = [o for o in losses if issubclass(o, FeatureLoss)]
functions = [cls().func for cls in losses]
given = ['axis','mask','y1','lam']
name = lambda o: o.__name__
paper = r'\d{4}\.\d{4,5}|\((Jin|Chen|Yim|Huber|Peng)[\w .&,]*?(CVPR |NeurIPS |ICCV )?\d{4}\)'

def params(f): return inspect.signature(inspect.unwrap(f)).parameters
def words(cls): return [o for o in params(cls.__init__) if o!='self']
def hypers(f):
    "Between the tensors and what the callback gives"
    ps = list(params(f))
    return [o for o in ps[3 if ps[2:3]==['y'] else 2:] if o not in given]

def test_all_is_complete_sorted_and_each_loss_of_the_modules_is_public():
    import fastkd, importlib, pkgutil
    assert api.__all__ == sorted(api.__all__)
    mods = [importlib.import_module(m.name) for m in pkgutil.walk_packages(fastkd.__path__, 'fastkd.') if m.name not in ('fastkd.__main__','fastkd._modidx')]
    found = {o for m in mods for o in vars(m).values() if isinstance(o, type) and issubclass(o, DistillationLoss) and o.__module__==m.__name__}
    assert {name(o) for o in found} - {'DistillationLoss','FeatureLoss','FunctionLoss'} == {name(o) for o in losses}
    assert len(losses) >= 25

@pytest.mark.parametrize('cls', losses, ids=name)
def test_the_twin_is_public_and_named_in_the_docstring(cls):
    f = cls().func
    assert public[name(f)] is f and cls().name == name(f)
    assert f'`{name(f)}`' in cls.__doc__
    assert name(f) == name(f).lower() and name(f).replace('_','') == name(cls).lower().replace('_','')

@pytest.mark.parametrize('cls', losses, ids=name)
def test_arguments_of_the_class_are_those_of_the_twin_between_layers_and_weight(cls):
    ws,f = [o for o in words(cls) if o != 'calibrated'],cls().func  # the callback does that, before `func` sees the logits
    assert ws[-1] == 'weight' and ('layers' in ws) == (cls in on_features)
    if cls in on_features: assert ws[0] == 'layers'
    own = ws[1 if cls in on_features else 0:-1]
    made = {'CRD':['mem_s','mem_t','idx','log_z']}.get(name(cls), [])  # what the class finds or trains itself
    kept = {'CRD':['dim','n_negatives','momentum']}.get(name(cls), [])  # what only it needs
    assert [o for o in own if o not in kept] == [o for o in hypers(f) if o not in made]
    same = [o for o in own if o not in kept]
    assert [params(cls.__init__)[o].default for o in same] == [params(f)[o].default for o in same]
    loss = cls()
    assert all(hasattr(loss, o) for o in own) and loss.weight == params(cls.__init__)['weight'].default > 0

@pytest.mark.parametrize('f', functions, ids=name)
def test_twins_take_student_then_teacher_then_label_then_numbers_then_what_the_callback_gives(f):
    ps = list(params(f))
    assert ps[:2] in (['pred','teacher_pred'], ['fs','ft'])
    assert [o for o in ps if o in given] == ps[len(ps)-sum(o in given for o in ps):] == [o for o in given if o in ps]
    if ps[0]=='pred': assert {'axis','mask'} <= set(ps)
    if 'y1' in ps: assert 'lam' in ps and ps[2]=='y'
    for o in hypers(f)[:0 if name(f) in ('crd','ofd') else None]: assert params(f)[o].default is not inspect.Parameter.empty

@pytest.mark.parametrize('o', [*losses, *functions], ids=name)
def test_docstring_is_one_line_with_a_paper(o):
    assert '\n' not in o.__doc__.strip() and re.search(paper, o.__doc__), o.__doc__

@pytest.mark.parametrize('cls', losses, ids=name)
def test_docstring_gives_shapes(cls): assert '(B' in cls.__doc__, cls.__doc__

@pytest.mark.parametrize('f', functions, ids=name)
def test_tensors_are_documented_with_shapes_and_every_argument_in_place(f):
    docs = docments(inspect.unwrap(f))
    for n in params(f): assert docs[n], f"{name(f)}: {n}"
    for n in list(params(f))[:3 if 'y' in params(f) else 2]: assert '(B' in docs[n] or 'same shape' in docs[n] or 'as many' in docs[n] or 'not used' in docs[n], f"{name(f)}: {n}: {docs[n]}"
    assert docs['return'] and 'scalar' in docs['return']

@pytest.mark.parametrize('o', [o for o in public.values()], ids=lambda o: o.__name__)
def test_everything_public_has_a_docstring_and_documented_arguments(o):
    assert o.__doc__ and not o.__doc__.startswith(o.__name__+'(')
    f = o.__init__ if isinstance(o, type) else inspect.unwrap(o)
    docs = docments(f)
    for n in params(f):
        if n != 'self': assert docs.get(n), f"{o.__name__}: {n} is not documented"

@pytest.mark.parametrize('cls', losses, ids=name)
def test_a_schedule_is_taken_wherever_a_number_is(cls):
    "And what is misspelt or negative is not"
    from fastai.callback.schedule import SchedLin
    assert cls(weight=SchedLin(0,1)).hypers(.5) is not None
    with pytest.raises(TypeError): cls(wieght=1.)
    with pytest.raises(ValueError, match='weight=-1'): cls(weight=-1)
    if 'T' in words(cls):
        assert cls(T=SchedLin(2,4)).hypers(.5)['T'] == 3
        for T in (0, -1, float('nan'), float('inf')):
            with pytest.raises(ValueError, match='T='): cls(T=T)

def test_the_list_of_losses_has_each_with_its_defaults_weight_and_notebook():
    "nbs/losses/README.md, which README.md links to"
    folder = Path(__file__).parents[1]/'nbs/losses'
    rows = re.findall(r'^\| `(\w+)\((.*?)\)`.* \| ([\d.]+) \| \[\d\d\]\((.*?)\) \|$', (folder/'README.md').read_text(), re.M)
    assert sorted(o[0] for o in rows) == sorted(map(name, losses))
    for n,args,weight,nb in rows:
        ps = params(public[n].__init__)
        assert float(weight) == ps['weight'].default, n
        for k,v in re.findall(r'(\w+)=((?:\([^)]*\)|[^,])+)', args): assert ast.literal_eval(v) == ps[k].default, f"{n}: {k}"
        assert f'class {n}(' in (folder/nb).read_text(), f"{n} is not in {nb}"

def test_links_between_pages_lead_somewhere():
    root = Path(__file__).parents[1]
    for page in (root/'README.md', root/'CONTRIBUTING.md', *(root/'nbs').rglob('README.md')):
        for link in re.findall(r'\]\((?!https?:|#)([^)#]+)', page.read_text()): assert (page.parent/link).exists(), f"{page}: {link}"
