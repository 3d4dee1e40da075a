"Shared by all tests: one CPU thread, the same random numbers whatever ran before, no plots on a screen; a star import's test_… are no tests of ours"
import os
os.environ['CUDA_VISIBLE_DEVICES'] = ''  # for the processes that tests start, too

import matplotlib, pytest, torch
from fastai.torch_core import default_device, set_seed
from beside import Beside

matplotlib.use('Agg')
default_device(False)  # many tests compare bit for bit, which a GPU doesn't promise
torch.set_num_threads(1)  # the order of a sum, and so its last bits, depends on the number of threads

def reseed(): set_seed(42)

# Each module, fixture and test starts from the same random state, so neither the order of the tests nor the selection matters
@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(): reseed()
@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(): reseed()
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(): reseed()

def pytest_pycollect_makeitem(collector, name, obj):
    module = getattr(collector, 'module', None)
    if name.startswith('test') and callable(obj) and getattr(obj, '__module__', None) != getattr(module, '__name__', None): return []

# The tutorials take minutes: they run in the background from the start on, and their tests come last
def _is_tutorial(item): return item.nodeid.split('[')[0].endswith('test_tutorials.py::test_it_runs')

def pytest_collection_modifyitems(items): items.sort(key=_is_tutorial)

@pytest.fixture(scope='session', autouse=True)
def beside(request):
    runs = Beside()
    for o in request.session.items if 'PYTEST_XDIST_WORKER' not in os.environ else ():
        if _is_tutorial(o): runs.start(o.callspec.params['nb'])
    yield runs
    runs.stop()
