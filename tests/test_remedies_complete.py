"Every error and warning of fastkd is provoked in a test that then does what the message advises"
import importlib, re, sys
from pathlib import Path

import pytest

tests = Path(__file__).parent
files = sorted(tests.rglob('test_*_remedies.py'))

def cases_of(file):
    sys.path.append(str(file.parent))
    return importlib.import_module(file.stem).cases

@pytest.mark.filterwarnings('ignore')
def test_no_message_is_without_its_remedy():
    from remedies import uncovered
    listed = [o for f in files for o in cases_of(f)]
    single = ''.join(f.read_text() for f in files)  # those that need a set-up of their own are checked by name
    left = [f'{m}: {k}' for m,k in uncovered(listed) if repr(k) not in single and f'"{k}"' not in single]
    assert not left, "add a case for:\n" + '\n'.join(left)
    assert len(files) >= 9 and len(listed) > 380
