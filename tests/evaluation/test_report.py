"`report`: one HTML file, opened in a headless Chromium; its numbers and words, what it must not contain or change, and bad input"
from copy import deepcopy
import ast, base64, os, re, resource, signal
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import *
from torch.utils.data import TensorDataset

import chromium
from fastkd.data.digits import digits_dls
from fastkd.evaluation.compare import compare
from fastkd.evaluation.facts import data_facts, fingerprint
from fastkd.evaluation.report import report
from fastkd.evaluation.tta import TTAEvaluator
from fastkd.losses.features import FitNet
from fastkd.losses.soft_targets import SoftTarget
from fastkd.schemes.trial import trial
from fastkd.training.callback import KnowledgeDistillation

def net(*widths):
    convs = [ConvLayer(i, o, stride=2) for i,o in zip((1,*widths), widths)]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(widths[-1], 10))

def learner(dls, *widths, cbs=None):
    learn = Learner(dls, net(*widths), metrics=accuracy, cbs=cbs)
    learn.remove_cb(ProgressCallback)
    return learn

def fitted(learn, epochs=1):
    with learn.no_logging(): learn.fit_one_cycle(epochs, 2e-2)
    return learn

@pytest.fixture(scope='module')
def made():
    "A teacher, a distilled student, and everything that was found out about them"
    dls = digits_dls(64)
    teacher = fitted(learner(dls, 16, 32), 3)
    kd = KnowledgeDistillation(teacher, [SoftTarget(T=SchedCos(8, 2)), FitNet([('1','1')], weight=2)], weight=.7)
    student = fitted(learner(dls, 4, 8, cbs=kd), 2)
    recorded = dict(vars(student.recorder))
    comparison = compare({'teacher': teacher, 'a <b> & "c"': student}, n_boot=50, latency=(1,4))
    tta = TTAEvaluator(student, seed=0)
    tta.curve([0,1,3])
    vars(student.recorder).update(recorded)  # predictions clear it
    found = trial(lambda: learner(dls, 4), teacher, seeds=2, n_epoch=1, lr_max=2e-2)
    return SimpleNamespace(dls=dls, teacher=teacher, student=student, comparison=comparison, tta=tta, trial=found)

@pytest.fixture(scope='module')
def full(made, tmp_path_factory):
    "A report with all parts"
    path = tmp_path_factory.mktemp('report')/'full.html'
    return report(path, 'All < parts & "more"', made.student, made.trial, made.comparison, made.tta)

@pytest.fixture(scope='module')
def browser():
    if chromium.path is None:
        if os.environ.get('CI'): pytest.fail("CI is set, but there is no chromium: apt-get install -y chromium")
        pytest.skip("chromium is not installed: apt-get install chromium")
    with chromium.Chromium() as o: yield o

class Tables(HTMLParser):
    "The tables of a page, as lists of rows of texts"
    def __init__(self, html):
        super().__init__()
        self.found,self.cell = [],None
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        if tag == 'table': self.found.append([])
        if tag == 'tr': self.found[-1].append([])
        if tag in ('td','th'): self.found[-1][-1].append('')
        if tag in ('td','th'): self.cell = True
    def handle_endtag(self, tag):
        if tag in ('td','th'): self.cell = None
    def handle_data(self, data):
        if self.cell: self.found[-1][-1][-1] += data

def tables(html): return {tuple(t[0]): t[1:] for t in Tables(html).found}
def table_with(html, head): return next((heads,rows) for heads,rows in tables(html).items() if any(head in o for o in heads))

# In the browser
@pytest.mark.parametrize('dark', [False,True], ids=['light','dark'])
@pytest.mark.parametrize('width', [360,1200])
def test_opens_without_errors_or_requests_and_fits_the_screen(browser, full, width, dark):
    messages,requests = browser.open(full, width, dark=dark)
    assert not messages
    assert {o.split(':')[0] for o in requests} <= {'file','data'} and requests.count(full.as_uri()) == 1
    assert sum(o.startswith('file:') for o in requests) == 1
    for unfold in 'false','true':
        browser.js(f"document.querySelectorAll('details').forEach(o => o.open = {unfold})")
        assert browser.js('innerWidth') == width
        assert browser.js('document.documentElement.scrollWidth') <= width
    shown = browser.js("[...document.images].filter(o => o.getBoundingClientRect().width > 0).map(o => o.className)")
    assert len(shown) == len(browser.js("[...document.images].map(o => o.className)"))/2 > 5
    assert set(shown) == {'dark' if dark else 'light'}
    assert all(browser.js("[...document.images].map(o => o.naturalWidth > 100)"))
    grey = sum(map(int, re.findall(r'\d+', browser.js("getComputedStyle(document.body).backgroundColor"))[:3]))/3
    assert (grey < 60) == dark

def test_wide_tables_and_code_scroll_in_their_own_boxes(browser, full):
    browser.open(full, 360)
    boxes = "[...document.querySelectorAll('.scroll, pre')]"
    assert browser.js(f"{boxes}.some(o => o.scrollWidth > o.clientWidth)")
    assert browser.js(f"{boxes}.every(o => getComputedStyle(o).overflowX == 'auto' && o.tabIndex == 0)")

def test_prints_all_folded_parts_on_white(browser, full):
    browser.open(full, 720, dark=True, media='print')
    assert browser.js("getComputedStyle(document.body).backgroundColor") == 'rgb(255, 255, 255)'
    assert min(browser.js("[...document.querySelectorAll('details > :not(summary)')].map(o => o.getBoundingClientRect().height)")) > 5
    assert set(browser.js("[...document.images].filter(o => o.getBoundingClientRect().width > 0).map(o => o.className)")) == {'light'}

def test_the_browser_would_notice_what_a_report_must_not_do(browser, tmp_path):
    page = tmp_path/'bad.html'
    page.write_text('<meta name="viewport" content="width=device-width"><img src="http://127.0.0.1:9/x.png">'
                    '<div style="width:900px">x</div><script>console.error("bad")</script>')
    messages,requests = browser.open(page, 360)
    assert len(messages) >= 2 and 'http://127.0.0.1:9/x.png' in requests
    assert browser.js('document.documentElement.scrollWidth') >= 900

# What stands in it
def test_the_verdict_of_the_trial_comes_first(full, made):
    paragraphs = re.findall(r'<p>(.*?)</p>', full.read_text(), re.S)
    assert made.trial.verdict.lower() == paragraphs[0].lower().replace('&#39;', "'")
    assert 'another seed can change more' not in full.read_text()  # the trial shows how much

def test_numbers_are_those_of_the_tables(full, made):
    html = full.read_text()
    heads,rows = table_with(html, 'standard error')
    df = made.trial.table
    assert [o[0] for o in rows] == list(df.index)
    for i,row in enumerate(rows):
        value,sd = re.findall(r'[\d.]+', row[heads.index('accuracy')])
        assert float(value) == pytest.approx(df.accuracy.iloc[i], abs=6e-5) and float(sd) == pytest.approx(df.accuracy_sd.iloc[i], abs=6e-5)
    diff = rows[1][next(i for i,o in enumerate(heads) if 'difference' in o)].replace('−', '-')
    found = [float(o) for o in re.findall(r'-?[\d.]+', diff)]
    assert found == pytest.approx(df.iloc[1][['difference','low','high']].tolist(), rel=1e-2, abs=1e-4)
    heads,rows = table_with(html, 'agreement')
    c = made.comparison
    for name,row in zip(c.index, rows):
        assert row[0] == name
        value,low,high = map(float, re.findall(r'[\d.]+', row[heads.index('accuracy')]))
        assert [value,low,high] == pytest.approx(c.loc[name, ['accuracy','accuracy_low','accuracy_high']].tolist(), abs=6e-5)
    heads,rows = table_with(html, 'parameters')
    assert [int(o[1].replace(',', '')) for o in rows] == c.parameters.tolist()
    assert [float(o[heads.index('MFLOPs per item')]) for o in rows] == pytest.approx((c.flops/1e6).tolist(), rel=.05, abs=1e-3)
    heads,rows = table_with(html, 'augmented passes')
    assert [float(o[1]) for o in rows] == pytest.approx(made.tta.curve([0,1,2,3]).accuracy.tolist(), abs=6e-5)

def test_folded_tables_hold_every_run_epoch_and_class(full, made):
    html = full.read_text()
    def n_rows(*names): return next(len(rows) for heads,rows in tables(html).items() if set(names) <= set(heads))
    assert n_rows('method', 'seed') == len(made.trial.runs) == 6
    assert n_rows('class', 'items') == 10 and n_rows('model', 'median') == 4
    assert n_rows('epoch', 'valid_loss') == n_rows('fit', 'kd_loss') == 2
    assert html.count('<details>') >= 6

def test_configuration_and_code_name_teacher_losses_weights_versions_and_data(full, made):
    html = full.read_text()
    shown = ['SoftTarget(T=SchedCos(8, 2), standardize=False, weight=1.0)', 'FitNet(layers=[(&#39;1&#39;, &#39;1&#39;)], weight=2)',
             torch.__version__, '1,293 items, fingerprint '+fingerprint(made.dls.train_ds), '10: 0, 1, 2, 3', 'highest learning rate 0.02', '<dd>0.7</dd>',
             f'{sum(p.numel() for p in made.teacher.model.parameters()):,} parameters']
    for o in shown: assert o in html, o
    assert ' at 0x' not in html

def test_the_code_is_python_with_every_call(full):
    import html
    source = html.unescape(re.search(r'<pre[^>]*><code>(.*?)</code>', full.read_text(), re.S)[1])
    tree = ast.parse(source)
    calls = {o.func.id: o for o in ast.walk(tree) if isinstance(o, ast.Call) and isinstance(o.func, ast.Name)}
    assigned = {o.targets[0].id for o in ast.walk(tree) if isinstance(o, ast.Assign)}
    assert {o.arg for o in calls['report'].keywords} == {'title','learn','trial','comparison','tta'}
    assert {o.value.id for o in calls['report'].keywords if o.arg != 'title'} <= assigned
    assert {'KnowledgeDistillation','Learner','trial','compare','TTAEvaluator','report','SoftTarget','SchedCos'} <= calls.keys()

def test_names_are_escaped(full):
    html = full.read_text()
    assert 'a &lt;b&gt; &amp; &#34;c&#34;' in html and '<b>' not in html
    assert '<h1>All &lt; parts &amp; &#34;more&#34;</h1>' in html and '<title>All &lt; parts' in html

def test_no_script_no_address_and_a_policy_that_forbids_both(full):
    html = full.read_text()
    assert '<script' not in html and not re.search(r'\bon\w+=', html)
    assert not re.search(r'https?:', html) and not re.search(r'url\(', html)
    assert set(re.findall(r'(?:src|href)="(\w+:|#)', html)) == {'data:', '#'}
    assert "default-src 'none'" in html
    for o in re.findall(r'data:image/svg\+xml;base64,([^"]+)', html):
        svg = base64.b64decode(o).decode()
        assert not re.search(r'(?:href|src)="(?!#)', svg) and 'url(http' not in svg

def test_no_path_of_the_disk_is_told(made, tmp_path):
    folder = tmp_path/'secret_place'
    for name in 'xy':
        (folder/name).mkdir(parents=True)
        for i in range(4): Image.fromarray(np.full((8,8,3), 30*i, np.uint8)).save(folder/name/f'{i}.png')
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.5, seed=0, bs=2, num_workers=0)
    learn = Learner(dls, nn.Sequential(Flatten(), nn.Linear(192, 2)), metrics=accuracy, path=folder)
    learn.remove_cb(ProgressCallback)
    html = report(tmp_path/'r.html', learn=fitted(learn)).read_text()
    rest = html.replace(str(tmp_path/'r.html'), '')
    for o in ('secret_place', str(tmp_path), str(Path.home())+'/', os.getcwd()): assert o not in rest
    assert 'x, y' in html and fingerprint(dls.train_ds, folder) in html

# Honest words
def test_a_learner_alone_shows_nothing_about_distillation(made, tmp_path):
    learn = deepcopy(made.student)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    html = report(tmp_path/'a.html', learn=learn).read_text()
    assert 'single run without a baseline' in html
    assert f"accuracy {learn.recorder.values[-1][2]:.4f}" in html
    with learn.no_bar(): learn.validate()
    assert f"accuracy {learn.knowledge_distillation.records.recorded[-1]['values'][2]:.4f}" in report(tmp_path/'v.html', learn=learn).read_text()
    plain = deepcopy(made.teacher)
    with plain.no_bar(): plain.validate()
    html = report(tmp_path/'b.html', learn=plain).read_text()
    assert 'single run, so there is no interval' in html and 'There is no record of the training' in html

def test_intervals_of_a_comparison_are_over_items(made, tmp_path):
    html = report(tmp_path/'a.html', comparison=made.comparison).read_text()
    assert 'another seed can change more' in html and 'McNemar p' in html

def test_one_seed_has_no_interval(made, tmp_path):
    one = trial(lambda: learner(made.dls, 4), made.teacher, seeds=1, n_epoch=1)
    html = report(tmp_path/'a.html', trial=one).read_text()
    assert 'One seed: no standard deviation and no interval' in html
    heads,rows = table_with(html, 'standard error')
    assert all('to' not in o and '±' not in o for row in rows for o in row[1:])

def test_several_seeds_of_a_model_show_their_standard_deviation(made, tmp_path):
    several = compare({'teacher': made.teacher, 'students': [made.student, fitted(learner(made.dls, 4, 8))]}, n_boot=20, latency=())
    html = report(tmp_path/'a.html', comparison=several).read_text()
    assert f'± {several.accuracy_sd.iloc[1]:.4f} over seeds' in html
    assert 'latency' not in html.split('<h2 id="configuration">')[0].split('<h2 id="comparison">')[1]

# Nothing is changed
def test_learners_random_numbers_and_plots_stay_as_they_were(made, tmp_path):
    learn = made.student
    items = made.dls.test_dl(made.dls.valid_ds.items[:8], with_labels=True)
    tta = TTAEvaluator(learn, items)  # unseeded: its passes draw from the global random stream
    learn.model.train()
    def state():
        rec,rng = learn.recorder,(torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
        model = dict(training=[m.training for m in learn.model.modules()], weights=[p.tolist() for p in learn.model.parameters()])
        return dict(rng=rng, **model, cbs=[id(o) for o in learn.cbs], dls=learn.dls is made.dls, figures=plt.get_fignums(),
                    recorder=(rec.values, rec.metric_names, rec.lrs, rec.losses), rc=dict(plt.rcParams),
                    history=learn.knowledge_distillation.history.to_dict())
    old = state()
    report(tmp_path/'a.html', None, learn, made.trial, made.comparison, tta)
    new = state()
    for k in old: assert old[k] == new[k], k
    assert len(tta.passes.aug) == 30  # it had none, so the report made the default curve

def test_passes_that_were_made_are_not_made_again(made, tmp_path, monkeypatch):
    passes = made.tta.passes
    monkeypatch.setattr(passes, '_run', lambda *args: pytest.fail("a pass was made"))
    html = report(tmp_path/'a.html', tta=made.tta).read_text()
    assert [o[0] for o in table_with(html, 'augmented passes')[1]] == ['0','1','2','3']
    assert fingerprint(made.dls.train_ds) in html  # the evaluator knows the data

def test_two_reports_differ_in_nothing_but_the_time(made, tmp_path):
    def text(name): return re.sub(r'<p class="when">.*?</p>', '', report(tmp_path/name, learn=made.student, trial=made.trial).read_text())
    assert text('a.html').replace('a.html', 'b.html') == text('b.html')

# Fingerprint
def test_a_fingerprint_is_the_same_in_every_run_and_changes_with_items_and_labels():
    assert fingerprint(TensorDataset(torch.arange(6.).view(3,2), tensor([0,1,1]))) == '71de37673ea20d5f'
    a,b,c = digits_dls(64),digits_dls(32),digits_dls(64, n_labelled=100)
    assert fingerprint(a.train_ds) == fingerprint(b.train_ds) != fingerprint(c.train_ds)
    assert fingerprint(a.valid_ds) == fingerprint(c.valid_ds)

def test_a_dataset_that_cannot_be_read_is_no_reason_to_go_without_a_report():
    class Gone(list):
        def __getitem__(self, i): raise FileNotFoundError('/home/someone/secret')
    dl = torch.utils.data.DataLoader(Gone([1]))
    facts = data_facts(DataLoaders(dl, dl))
    assert 'FileNotFoundError' in facts['Training set'] and 'secret' not in facts['Training set']

# The file
def test_a_full_disk_leaves_the_old_file(made, tmp_path):
    path = tmp_path/'a.html'
    path.write_text('old')
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(OSError, match="can't be written .*what was there before is unchanged"): report(path, learn=made.student)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == 'old' and [o.name for o in tmp_path.iterdir()] == ['a.html']

def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(made, tmp_path, monkeypatch):
    monkeypatch.setattr('fastkd.evaluation.report.tta_curve', lambda *args: pytest.fail("computed"))
    (tmp_path/'file').write_text('')
    for bad in (tmp_path/'file'/'a.html', Path('/proc/no/a.html')):
        with pytest.raises(OSError, match="path='.*a.html' can't be written"): report(bad, tta=made.tta)
    with pytest.raises(ValueError, match='is a folder'): report(tmp_path, tta=made.tta)

def test_an_error_while_it_is_made_leaves_the_old_file(made, tmp_path):
    path = tmp_path/'a.html'
    path.write_text('old')
    broken = SimpleNamespace(**{k: getattr(made.trial, k) for k in ('runs','table','verdict','config','metric','methods')}, plot=None)
    with pytest.raises(TypeError): report(path, trial=broken)
    assert path.read_text() == 'old' and [o.name for o in tmp_path.iterdir()] == ['a.html']

def test_an_ending_and_missing_folders_are_added_and_an_old_report_is_replaced(made, tmp_path):
    for _ in range(2): path = report(str(tmp_path/'x'/'y'/'report'), learn=made.teacher)
    assert path == tmp_path/'x'/'y'/'report.html' and [o.name for o in path.parent.iterdir()] == ['report.html']
    assert oct(path.stat().st_mode & 0o444) == '0o444'  # others can read it, as any new file

def test_a_name_that_is_no_text_does_not_stop_it(made, tmp_path):
    html = report(tmp_path/'a.html', title='bad \udce4 name', learn=made.teacher).read_text()
    assert 'bad ? name' in html

# Bad input
def test_jinja2_missing(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    with pytest.raises(ImportError, match=r"pip install 'fastkd\[report\]'"): report(tmp_path/'a.html', learn=made.teacher)
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('kwargs,error,match', [
    ({}, ValueError, 'nothing to report'),
    (dict(learn=nn.Linear(1,1)), TypeError, 'learn is a Linear'),
    (dict(trial=pd.DataFrame()), TypeError, 'trial is a DataFrame: give what `trial` returned'),
    (dict(comparison=pd.DataFrame()), TypeError, 'comparison is a DataFrame'),
    (dict(tta=3), TypeError, 'tta is a int'),
    (dict(tta=pd.DataFrame(dict(n_aug=[1]))), ValueError, "tta has the columns \\['n_aug'\\]"),
    (dict(tta=pd.DataFrame(dict(n_aug=[], time=[], score=[]))), ValueError, '0 rows')])
def test_bad_input(tmp_path, kwargs, error, match):
    with pytest.raises(error, match=match): report(tmp_path/'a.html', **kwargs)
    assert not list(tmp_path.iterdir())

def test_unlabelled_items_for_test_time_augmentation(made, tmp_path):
    items = [o for o,_ in zip(made.dls.valid_ds.items, range(4))]
    with pytest.raises(ValueError, match='needs labels'): report(tmp_path/'a.html', tta=TTAEvaluator(made.teacher, made.dls.test_dl(items)))

def test_calibration_and_the_rate_of_the_last_layer_are_part_of_the_configuration(made, tmp_path):
    def page(**kwargs):
        learn = learner(made.dls, 4)
        learn.add_cb(KnowledgeDistillation(made.teacher, **kwargs))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return learn.knowledge_distillation,report(tmp_path/'r.html', learn=learn).read_text()
    kd,html = page()
    assert f'logits divided by {kd.teachers.temperature:.3g}' in html and 'head_lr=&#39;auto&#39;' in html
    assert 'calibrated=True' in html and 'head_lr=' not in html[html.index('kd = KnowledgeDistillation('):]
    kd,html = page(loss=SoftTarget(), head_lr=1)
    assert 'logits divided by' not in html and 'calibrated' not in html and 'head_lr=1' in html[html.index('kd = KnowledgeDistillation('):]
