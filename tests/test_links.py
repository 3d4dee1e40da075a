"Every link inside the repository leads to a file that is there, and to a heading that is there"
import json, re
from pathlib import Path
from urllib.parse import unquote

import pytest

root = Path(__file__).parents[1]
def ours(o): return not any(p[0] == '.' or p in ('_docs','_proc','build','dist') for p in o.relative_to(root).parts)
pages = sorted(o for e in ('md','qmd','ipynb') for o in root.rglob(f'*.{e}') if ours(o))
def name(page): return page.relative_to(root).as_posix()

def prose(page):
    "The Markdown of a page, without code"
    text = page.read_text()
    if page.suffix == '.ipynb': text = '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    return re.sub(r'^( *)(```+|~~~+).*?^ *\2', '', text, flags=re.M|re.S)

def without_code(text): return re.sub(r'(`+)(?!`).*?(?<!`)\1(?!`)', '', text)

def slug(heading):
    "The anchor that GitHub gives to a heading"
    text = re.sub(r'!?\[(.*?)\]\(.*?\)', r'\1', heading).replace('`', '').replace('*', '')
    return re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')

def anchors(page):
    "The anchors of a page; a heading that comes again gets a number"
    res = []
    for h in re.findall(r'^#{1,6} +(.+?) *#*$', prose(page), re.M):
        n = sum(re.fullmatch(re.escape(slug(h)) + r'(-\d+)?', o) is not None for o in res)
        res.append(slug(h) + (f'-{n}' if n else ''))
    return res

def links(page):
    "The targets of the links and pictures of a page that don't begin with a scheme such as https:"
    text = without_code(prose(page))
    found = re.findall(r'\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)', text) + re.findall(r'(?:href|src)="([^"]+)"', text)
    found += re.findall(r'^\[[^\]^]+\]:\s*(\S+)', text, re.M) + re.findall(r'\{\{< *include +(\S+) *>\}\}', text)
    return [o for o in found if not re.match(r'[a-z][a-z+.-]*:', o)]

def faults(page):
    "What is wrong with the links of a page"
    for o in links(page):
        path,_,anchor = o.partition('#')
        target = (page.parent/unquote(path)).resolve() if path else page
        if not target.exists(): yield f"{o}: there is no {path}"
        elif not target.is_relative_to(root): yield f"{o}: leads out of the repository"
        elif anchor and target.suffix in ('.md','.qmd','.ipynb') and unquote(anchor) not in anchors(target):
            yield f"{o}: {name(target)} has no such heading, only {', '.join(anchors(target))}"

@pytest.mark.parametrize('page', pages, ids=name)
def test_links_lead_somewhere(page): assert not list(faults(page)), f"{name(page)}: " + '; '.join(faults(page))

def test_pages_of_every_kind_are_checked():
    assert {'README.md','CONTRIBUTING.md','nbs/losses/README.md','nbs/tutorials/recipe.ipynb'} <= set(map(name, pages))
    assert sum(len(links(o)) for o in pages) > 100

def test_anchors_are_those_of_github():
    assert [slug(o) for o in ('Is the student any better?', '`compare`', 'T² and [a link](x.md)', 'A, b & c')] == \
        ['is-the-student-any-better', 'compare', 't²-and-a-link', 'a-b--c']

def test_what_is_wrong_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'root', tmp_path)
    (tmp_path/'b.md').write_text("# One\n```\n# no heading\n[no link](nowhere.md)\n```\n## Two\n## Two\n")
    page = tmp_path/'a.md'
    page.write_text("[x](b.md) [x](b.md#two-1) ![p](p.png) [x](b.md#no-heading) `[x](c.md)` [x](https://a.b/c) [x](#here)\n"
                    "# Here\n[x](#there) <img src=\"q.png\">")
    assert [o.split(':')[0] for o in faults(page)] == ['p.png','b.md#no-heading','#there','q.png']
