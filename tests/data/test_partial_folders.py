"The README's lines for a labelled and an unlabelled folder"
import re
from pathlib import Path
from fastai.vision.all import *
from fastkd.all import PartialCategoryBlock
from PIL import Image

readme = Path(__file__).parents[2]/'README.md'

def test_folders_with_and_without_labels_as_in_the_readme(tmp_path):
    for d,n in (('labelled/cat',6), ('labelled/dog',6), ('unlabelled',4)):
        (tmp_path/d).mkdir(parents=True)
        for i in range(n): Image.new('RGB', (8,8)).save(tmp_path/d/f'{i}.png')
    src = next(o for o in re.findall(r'^```\w*\n(.*?)^```', readme.read_text(), re.M|re.S) if 'PartialCategoryBlock' in o)
    random.seed(1)
    ns = dict(globals(), path=tmp_path)
    exec(src.replace('item_tfms=Resize(224)', 'item_tfms=Resize(8)'), ns)
    dls = ns['dls']
    assert dls.vocab == ['cat','dog']
    for ds in dls.train_ds,dls.valid_ds:
        for f,(_,y) in zip(ds.items, ds): assert int(y) == {'cat':0, 'dog':1, 'unlabelled':-1}[f.parent.name]
    assert len(dls.valid_ds) and not any(f.parent.name=='unlabelled' for f in dls.valid_ds.items)
    assert sum(f.parent.name=='unlabelled' for f in dls.train_ds.items) == 4
