"What a test needs that provokes an error or a warning of fastkd, and then does what its text advises"
import re, warnings
from pathlib import Path

import pandas as pd, pytest
from fastai.vision.all import *
from fastkd.models.reading import DistillationWarning
from helpers import *
from test_troubleshooting import in_source

def pattern(key):
    "A regular expression of the messages that `key`, a row of the page on errors, stands for"
    return '.*'.join(re.escape(o) for o in key.split('…'))

def said(f):
    "The error that `f` ends with, or else the warnings of fastkd that it shows, as texts without line breaks"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter('always')
        try: f()
        except Exception as e: found = [str(e)]
        else: found = [str(o.message) for o in ws if issubclass(o.category, DistillationWarning)]
    return [re.sub(r'\s+', ' ', o) for o in found]

def values(o):
    "The numbers in what a remedy returned"
    if isinstance(o, Learner): return [*o.recorder.losses, *(v for r in o.recorder.values for v in r)]
    if isinstance(o, Tensor): return o.detach().float().flatten().tolist()
    if isinstance(o, pd.DataFrame): return o.select_dtypes('number').fillna(0).values.ravel().tolist()
    if isinstance(o, (list,tuple)): return [v for x in o for v in values(x)]
    return [float(o)] if isinstance(o, (int,float)) else []

def check(key, wrong, advice, right):
    "`wrong()` says the message of `key` and gives this `advice`; `right()`, which follows it, says nothing, and its numbers are finite"
    assert key in in_source(), "not a message of fastkd"
    found = said(wrong)
    at = [o for o in found if re.search(pattern(key), o)]
    assert at, f"says {found}"
    assert advice in at[0], f"says {at[0]}"
    with warnings.catch_warnings():
        warnings.filterwarnings('error', category=DistillationWarning)
        res = right()
    assert res is not None and all(math.isfinite(v) for v in values(res)), res

def parametrize(cases):
    "A test for each of the `cases`: (key, wrong, advice, right)"
    return pytest.mark.parametrize('key,wrong,advice,right', cases, ids=[re.sub(r'[^\w=.…]+', ' ', o[0])[:60] for o in cases])

def uncovered(cases):
    "The messages of fastkd for which the `cases` have no remedy, by module"
    return sorted((ms[0],k) for k,ms in in_source().items() if k not in {o[0] for o in cases})
