"Shared by all tests: no plots on a screen; functions named test_… that a star import brings are no tests of ours"
import matplotlib
matplotlib.use('Agg')

def pytest_pycollect_makeitem(collector, name, obj):
    module = getattr(collector, 'module', None)
    if name.startswith('test') and callable(obj) and getattr(obj, '__module__', None) != getattr(module, '__name__', None): return []
