"""nbs/troubleshooting.md has a row for each error and warning of fastkd, and none that is gone

`python tests/test_troubleshooting.py` prints the rows that are missing, for you to complete, and those to remove"""
import ast, re
from functools import cache
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
page = root/'nbs/troubleshooting.md'
files = [o for o in sorted((root/'fastkd').rglob('*.py')) if o.stem not in ('_modidx', '__main__')]
listed = 'verdicts', 'expectations', 'other_tasks', 'odd_values', '_too_large' # functions that return a list of warnings
passed_on = 'text', 'o' # variables with a warning that comes from elsewhere
sections = { # where a message appears, by the beginning of the path of its module; the first that fits
    'training/checkpoint': 'Checkpoints', 'training/resume': 'Checkpoints', 'training/trained': 'Checkpoints',
    'schemes/runs': 'Checkpoints',
    'training/expect': 'Warnings', 'training/': 'Starting a fit', 'teachers/': 'Teachers', 'losses/': 'Losses', 'models/': 'Layers',
    'schemes/trial': '`trial`', 'schemes/runner': '`trial`', 'schemes/methods': '`trial`', 'schemes/': 'Other ways to train',
    'evaluation/compare': '`compare`', 'evaluation/statistics': '`compare`', 'evaluation/scoring': 'Metrics',
    'evaluation/page': '`report`', 'evaluation/report': '`report`', 'evaluation/tta': 'Test-time augmentation',
    'evaluation/selection': 'Test-time augmentation', 'evaluation/masks': 'Test-time augmentation', 'evaluation/': 'Plots',
    'data/': 'Data', 'cli/': 'The command line'}

@cache
def tree(file): return ast.parse(file.read_text())

@cache
def functions(): return {o.name: o for f in files for o in ast.walk(tree(f)) if isinstance(o, ast.FunctionDef)}

def values(name, *scopes):
    "What is assigned to `name` in the first of `scopes` that assigns anything to it"
    for scope in filter(None, scopes):
        assigned = [n for n in ast.walk(scope) if isinstance(n, ast.Assign)]
        res = [n.value for n in assigned if any(isinstance(t, ast.Name) and t.id == name for t in n.targets)]
        if res: return res
    return []

def texts(o, scope=None, module=None):
    "The texts that the expression `o` in the function `scope` can be, with … for each value that is not known"
    def again(v): return texts(v, scope, module)
    if isinstance(o, ast.Constant): return [o.value] if isinstance(o.value, str) else []
    if isinstance(o, ast.JoinedStr): return [''.join(map(lambda v: _part(v, scope), o.values))]
    if isinstance(o, ast.BinOp) and isinstance(o.op, ast.Add):
        return [a+b for a in again(o.left) or ['…'] for b in again(o.right) or ['…']]
    if isinstance(o, ast.IfExp): return again(o.body) + again(o.orelse)
    if isinstance(o, ast.Name): return [t for v in values(o.id, scope, module) if not isinstance(v, ast.Name) for t in texts(v, None, None)]
    if not isinstance(o, ast.Call): return []
    if isinstance(o.func, ast.Attribute) and o.func.attr == 'format': return [re.sub(r'\{\w*\}', '…', t) for t in again(o.func.value)]
    f = functions().get(getattr(o.func, 'id', None))
    return [t for n in ast.walk(f) if isinstance(n, ast.Return) and n.value for t in texts(n.value, f)] if f else []

def _part(v, scope):
    "A part of an f-string: its text, that of a variable that is always the same text, or …"
    if isinstance(v, ast.Constant): return v.value
    found = values(v.value.id, scope) if isinstance(v.value, ast.Name) else []
    return texts(found[0])[0] if len(found) == 1 and isinstance(found[0], ast.JoinedStr) else '…'

def key(text):
    "What tells a message from others: what is before the first colon if these are three words or more, at most 100 characters"
    text = re.sub(r'…+', '…', re.sub(r'\s+', ' ', text)).strip()
    for m in re.finditer(r"(?<!')[:;](?= |$)", text):
        if len(re.findall(r'[a-zA-Z]\w*', text[:m.start()])) >= 3:
            text = text[:m.start()]
            break
    if len(text) > 100: text = text[:100].rsplit(' ', 1)[0]
    return re.sub(r'( \(…)?[ :,;(]*$', '', text)

def makes_message(f):
    "Does a call of `f` create an error or show a warning?"
    if isinstance(f, ast.Call): return getattr(f.func, 'id', '') == 'type'  # type(e)(…)
    n = getattr(f, 'id', getattr(f, 'attr', ''))
    return n.endswith(('Error', 'Warning')) or n in ('warn', 'warn_user') or n == 'append' and getattr(f.value, 'attr', '') == 'warnings'

def entries(o):
    "What is in the list that `o` makes, or what `o` appends to one"
    if isinstance(o, ast.List): return o.elts
    return o.args if isinstance(o, ast.Call) and getattr(o.func, 'attr', '') == 'append' else []

def messages(file):
    "(line, text) of each error and warning in `file`; the text is None if it cannot be found by reading the source"
    def walk(o, scope):
        for n in ast.iter_child_nodes(o):
            if isinstance(n, ast.FunctionDef) and n.name in listed:
                yield from ((n.lineno, t) for l in ast.walk(n) for e in entries(l) for t in texts(e, n, tree(file)))
            if isinstance(n, ast.Call) and makes_message(n.func):
                found = next(filter(None, (texts(a, scope, tree(file)) for a in n.args)), [])
                yield from ((n.lineno, t) for t in found)
                if not found and not isinstance(n.func, ast.Call) and getattr(n.args[0] if n.args else None, 'id', '') not in passed_on:
                    yield n.lineno, None
            yield from walk(n, n if isinstance(n, ast.FunctionDef) else scope)
    yield from walk(tree(file), None)

def name(file): return file.relative_to(root/'fastkd').with_suffix('').as_posix()
def section(module): return next(v for k,v in sections.items() if module.startswith(k))

@cache
def in_source():
    "The modules of each key"
    res = {}
    for f in files:
        for _,t in messages(f):
            if t is not None: res.setdefault(key(t), []).append(name(f))
    return res

@cache
def on_page():
    "(section, cause, remedy) of each key"
    res,head = {},None
    for l in page.read_text().splitlines():
        if l.startswith('## '): head = l[3:]
        if head != 'Without a message' and (m := re.match(r'\| (``?) ?(.*?) ?\1 \| (.*) \| (.*) \|$', l)): res[m[2]] = (head, m[3], m[4])
    return res

def code(text): return f'`` {text} ``' if '`' in text else f'`{text}`'
def row(k, modules): return f"{section(modules[0])} ({', '.join(sorted(set(modules)))})\n| {code(k)} | CAUSE | REMEDY |"
def missing(): return [row(k, ms) for k,ms in in_source().items() if k not in on_page()]
def gone(): return [k for k in on_page() if k not in in_source()]

def test_every_message_is_on_the_page():
    advice = "complete these rows of nbs/troubleshooting.md; `python tests/test_troubleshooting.py` prints them:"
    if rows := missing(): pytest.fail('\n'.join([advice, *rows]), pytrace=False)

def test_no_row_is_left_of_a_message_that_is_gone():
    advice = "remove these rows of nbs/troubleshooting.md, or change their text:"
    if rows := gone(): pytest.fail('\n'.join([advice, *rows]), pytrace=False)

def test_rows_are_complete_and_in_a_section_that_is_known():
    for k,(head,cause,remedy) in on_page().items():
        assert head in sections.values() and cause.strip() and remedy.strip() and 'CAUSE' not in cause and 'REMEDY' not in remedy, k

def test_every_message_can_be_read_from_the_source():
    unknown = [f'{name(f)}:{line}' for f in files for line,t in messages(f) if t is None]
    assert not unknown, f"write the text of the message in the call, or in a function that returns it: {unknown}"
    assert len(in_source()) > 250

def test_texts_are_found_in_the_ways_in_which_they_are_written(tmp_path):
    file = tmp_path/'module.py'
    file.write_text("""
_note = "There are {n} of them. Take fewer"
def _odd(n): return f"too many ({n}) of these items: give " + "fewer"
def f(n, e):
    got = f"these got {n} items"
    if n > 5: raise ValueError(_odd(n))
    if n > 4: raise ValueError(f"{n} is not right but {got}: give less")
    if n > 3: raise type(e)(e.errno, f"path={n!r} is no file" if n else "there is no path at all")
    if n > 2: warn_user(_note.format(n=n))
    if n > 1: raise SomeError(n)
def verdicts(n): return [f"the teacher has {n} heads; too many"]
def odd_values(n, res): res.append(f"a loss of {n} is odd: check it")
def g(o, n): o.warnings.append(f"the data of {n} is other data")
""")
    functions.cache_clear()
    files.append(file)
    try: found = [t and key(t) for _,t in messages(file)]
    finally:
        files.remove(file)
        functions.cache_clear()
    assert found == ['too many (…) of these items', '… is not right but these got … items', 'path=… is no file', 'there is no path at all',
                     'There are … of them. Take fewer', None, 'the teacher has … heads', 'a loss of … is odd',
                     'the data of … is other data']

if __name__ == '__main__':
    if o := missing(): print("Missing: complete each row, and add it to its section of nbs/troubleshooting.md.\n", *o, sep='\n')
    if o := gone(): print("\nNo longer in the source: remove these rows from nbs/troubleshooting.md, or change their text.\n", *o, sep='\n')
