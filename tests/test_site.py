"""The site: built as `make docs` builds it, read as HTML, then in a browser. `SHOTS=1` before the command leaves a screenshot of every page in _shots,
and lets axe look at every page, which takes minutes."""
import ast
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from posixpath import join, normpath
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
SHOTS = ROOT/'_shots'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
GROUPS = ['.', 'core', 'influence', 'augment', 'studies', 'tutorials']
NOTEBOOKS = sorted((p.relative_to(ROOT/'nbs') for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts),
                   key=lambda p: (GROUPS.index(p.parent.as_posix()), p.stem != 'index', p.stem))

pytestmark = pytest.mark.skipif(not (shutil.which('quarto') or importlib.util.find_spec('smalldocs')),
                                reason='the site needs smalldocs (Python 3.11 or newer) or Quarto')


def page_of(nb): return (nb.parent/re.sub(r'^\d+[a-z]?_', '', nb.stem)).as_posix() + '.html'


PAGES = [page_of(nb) for nb in NOTEBOOKS]
FIRST = {'index.html', 'quickstart.html', *{page.rpartition('/')[0]: page for page in PAGES}.values()}  # And one page a group


class Page(HTMLParser):
    "What a page refers to, what can be referred to in it, the prose a reader sees, and that with code and outputs."
    def __init__(self, text):
        super().__init__()
        self.refs,self.ids,self.images,self.text,self.all,self.inside = [],set(),[],[],[],[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag in ('a', 'link') and a.get('href'): self.refs.append(a['href'])
        if tag in ('img', 'script') and a.get('src'): self.refs.append(a['src'])
        if tag == 'img': self.images.append(a)
        if tag in ('script', 'style', 'pre', 'code'): self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag: self.inside.pop()

    def handle_data(self, data):
        if not self.inside: self.text.append(data)
        if not {'script', 'style'} & set(self.inside): self.all.append(data)


def loaded(name):
    "A module of tools/."
    spec = importlib.util.spec_from_file_location(name, ROOT/'tools'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def docs():
    done = subprocess.run([sys.executable, ROOT/'tools'/'docs.py'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT/'_docs'


@pytest.fixture(scope='module')
def texts(docs): return {p.relative_to(docs).as_posix(): p.read_text(encoding='utf-8') for p in docs.rglob('*.html')}


@pytest.fixture(scope='module')
def pages(texts): return {name: Page(text) for name,text in texts.items()}


@pytest.fixture(scope='module')
def address(docs):
    "As `make serve` shows it."
    server = subprocess.Popen([sys.executable, ROOT/'tools'/'docs.py', 'serve', '0'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield re.search(r'http://127\.0\.0\.1:\d+/', server.stdout.readline())[0]
    server.terminate()
    server.wait()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@pytest.fixture(scope='module')
def below(docs):
    "The site below the top of a server, as on a project's pages."
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=docs.parent)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/{docs.name}/'
        server.shutdown()


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='the browser tests need playwright')
    if not CHROMIUM: pytest.skip('the browser tests need chromium: apt-get install chromium')
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield chromium
        chromium.close()


def broken(name, ref, docs, pages):
    "Whether `ref`, on page `name`, leads nowhere in the site, or only when the site is at the top of a server."
    to = urlsplit(ref)
    if to.scheme or to.netloc: return False
    if to.path.startswith('/'): return True
    target = normpath(join(Path(name).parent.as_posix(), unquote(to.path))) if to.path else name
    if target.startswith('..') or not (docs/target).exists(): return True
    return bool(to.fragment) and target in pages and unquote(to.fragment) not in pages[target].ids


def cells(nb, kind): return [c for c in json.loads((ROOT/'nbs'/nb).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]


def title(nb): return re.search(r'^# +(.+)', '\n'.join(''.join(c['source']) for c in cells(nb, 'markdown')), re.M)[1].strip()


def exported(nb):
    "(name, public) of every definition that `nb` exports; those of a method patched in are named with its class."
    for cell in cells(nb, 'code'):
        source = ''.join(cell['source'])
        directive = re.search(r'^#\| *(exporti?)\b', source)
        for node in ast.parse(source).body if directive else ():
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            patched = [ast.unparse(node.args.args[0].annotation) for d in node.decorator_list if ast.unparse(d).startswith('patch')]
            name = '.'.join([*patched, node.name])
            yield name, directive[1] == 'export' and not re.search(r'(^|\.)_(?!_)', name)


def test_a_page_for_each_notebook(pages): assert sorted(pages) == sorted(PAGES)


def test_sidebar_has_every_notebook_in_groups_with_numbers(texts):
    expected = []
    for folder in GROUPS:
        nbs = [nb for nb in NOTEBOOKS if nb.parent.as_posix() == folder]
        expected += [folder.capitalize()]*(folder != '.' and bool(nbs))
        expected += [' '.join([*re.findall(r'^\d+[a-z]?(?=_)', nb.stem), title(nb)]) for nb in nbs]
    assert expected[0] == title(Path('index.ipynb')) and '13 Influence' in expected
    for name,text in texts.items():
        bar = re.search(r'<nav id="quarto-sidebar".*?</nav>', text, re.S)[0]
        assert [html.unescape(o) for o in re.findall(r'<span class="menu-text">(.*?)</span>', bar)] == expected, name
        links = [normpath(join(Path(name).parent.as_posix(), o)) for o in re.findall(r'href="([^"#]+)"', bar)]
        assert [o for o in links if o in PAGES] == PAGES, name


def test_front_page(texts, pages):
    "Figure 3 and the tables."
    assert any('figure3' in image['src'] for image in pages['index.html'].images)
    assert texts['index.html'].count('<table') >= 3


def test_no_link_anchor_or_file_is_missing(docs, pages):
    assert {(name, ref) for name,page in pages.items() for ref in page.refs if broken(name, ref, docs, pages)} == set()


def test_names_are_linked_across_folders(pages):
    assert any('../influence/influence.html#influence' in page.refs for page in pages.values())
    assert any('solvers.html#hvp' in page.refs for name,page in pages.items() if name.startswith('influence/'))
    assert any('influence/influence.html' in ref for ref in pages['index.html'].refs)


def test_nothing_is_fetched_from_elsewhere(texts):
    "No style, script, picture or font has an address outside the site."
    for name,text in texts.items(): assert not re.search(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//', text), name


def test_nothing_unrendered_is_left(pages):
    "No dollar signs around formulas, escape codes, syntax of the tools, leftovers of progress bars."
    left = re.compile(r'\$[^$\n]+\$|\x1b\[|^:::|\{\.[a-z]|#\||<IPython|<style|Call self as', re.M)
    assert {(name, m[0]) for name,page in pages.items() for m in [left.search(''.join(page.text))] if m} == set()


def test_no_addresses_in_memory_not_in_code_either(pages):
    left = re.compile(r'.{0,60}(?:at 0x[0-9a-f]{4}|<function |=<lambda>)')
    assert {(name, m[0]) for name,page in pages.items() for m in [left.search(''.join(page.all))] if m} == set()


def test_signatures_hold_no_links_in_markdown(texts):
    for name,text in texts.items(): assert not re.search(r'# [^<\n]*\]\([\w./]*#[\w.]+\)', text), name


def test_figures_have_words(pages):
    "Those of outputs as well as those in the text."
    assert sum(image['src'].startswith('data:') for page in pages.values() for image in page.images) > 40
    assert {(name, image['src'][:60]) for name,page in pages.items() for image in page.images if not (image.get('alt') or '').strip()} == set()


def test_public_definitions_have_a_heading_and_private_ones_their_source(texts):
    for nb in NOTEBOOKS:
        text = texts[page_of(nb)]
        headings = re.findall(r'<h3 id="[^"]*"[^>]*>([^<]+)</h3>', text)
        sources = re.findall(r'<summary>Source of (.+?)</summary>', text)
        for name,public in exported(nb): assert (name in headings, name in sources) == (public, not public), (nb, name)


@pytest.fixture(scope='module')
def processed(tmp_path_factory):
    "A notebook with all that is awkward, as the site's pages are made from it."
    pytest.importorskip('nbdev')
    from execnb.nbio import mk_cell, new_nb, read_nb, write_nb
    from nbdev.processors import FilterDefaults
    tool = loaded('docs')
    path = tmp_path_factory.mktemp('nb')/'07_name.ipynb'
    many = 'import math\nSIZE = 3\n\ndef second(key=lambda o: o, size=None): return size\n\n# Above\nclass First:\n    "One."\n    def __init__(self, made=object()): self.made = made\n\ndef _third(): return 1'
    image = dict(output_type='display_data', metadata={}, data={'image/png': 'iVBORw0KGgo='})
    cells = [mk_cell('# Name\n\n> One line\n\nA *question*?', 'markdown'), mk_cell('#| export\n'+many), mk_cell('#| exporti\ndef helper(): return 2'),
        mk_cell('#| hide\nx = 1'), mk_cell('#| export\nfrom fastcore.basics import patch\n@patch\ndef later(self:First, made=math.sqrt): return made'),
        mk_cell('## Shapes\n\nEarlier. The *grey* lines of [12](../influence/13_influence.html) are one pixel.', 'markdown'), mk_cell('1'),
        mk_cell("plt.plot(x); plt.xlabel('seconds')"), mk_cell('#| export\ndef _lonely(): return 3'), mk_cell('The end of `First.go`.', 'markdown')]
    for cell in cells:
        if cell.source.startswith(('1', 'plt')): cell.outputs = [image]
    write_nb(new_nb(cells), path)
    nb = tool.readable(read_nb(path))
    FilterDefaults().nb_proc(nb).process()
    return tool,nb


def test_definitions_of_one_cell_in_order_each_with_its_source_private_ones_last(processed):
    tool,nb = processed
    shown = []
    for cell in nb.cells:
        markdown = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell.get('outputs', []))
        shown += re.findall(r'^### (.+)', markdown, re.M) + re.findall(r'^#\| code-summary: (.+)', cell.source or '', re.M)
    assert shown == ['second', 'Source', 'First', 'Source', 'First.later', 'Source', 'Source of _third', 'Source of helper', 'Source of _lonely']
    sources = [cell.source for cell in nb.cells if cell.source and 'code-fold' in cell.source]
    assert 'SIZE = 3' in sources[0] and 'class First' not in sources[0] and sources[1].endswith('# Above\nclass First:\n    "One."\n    def __init__(self, made=object()): self.made = made')


def test_signatures_name_functions_and_objects(processed):
    tool,nb = processed
    text = json.dumps(tool.relinked(dict(cells=nb.cells), Path('core/07_name.ipynb'), {}), default=str)
    assert 'key=lambda, size=None' in text and 'made:object=object()' in text and 'made=sqrt' in text and 'at 0x' not in text
    address = 'at 0x7f47137e28e0>'
    for said,shown in {f'<function <lambda> {address}': 'lambda', f'<function tau_tanh {address}': 'tau_tanh', f'<function f.<locals>.<lambda> {address}': 'lambda',
        f'functools.partial(<function flow {address}, shift=0.15)': 'partial(flow, shift=0.15)', f'<function f.<locals>.g {address}': 'g',
        f'<influence_aug.core.data.Images object {address}': 'Images()', f'<object object {address}': 'object()', f'<bound method A.go of <m.A object {address}>': 'go',
        f'<built-in method relu of type object {address}': 'relu', f'&lt;function &lt;lambda&gt; {address[:-1]}&gt;': 'lambda'}.items(): assert tool.nameless(f'x={said}, y') == f'x={shown}, y'


def test_figures_are_named_by_their_labels_or_the_sentence_before(processed):
    alts = [json.loads(m[1]) for cell in processed[1].cells for m in [re.search(r'#\| fig-alt: (.+)', cell.source or '')] if m]
    assert alts == ['Figure: Shapes. The grey lines of 12 are one pixel.', 'Figure: Shapes. seconds.']


def test_links_start_from_the_page_and_lead_to_what_is_there():
    cleaned = partial(loaded('docs').cleaned, path=Path('studies/43_toy.ipynb'), entries={'core/data.html': {'images'}, 'index.html': set()})
    assert cleaned('[12](../influence/13_influence.html), [44](44_mnist.html#a)') == '[12](../influence/influence.html), [44](mnist.html#a)'
    assert cleaned('[`Images`](/core/data.html#images) [`Images.y`](/core/data.html#images.y) [`gone`](/core/data.html#gone)') == \
        '[`Images`](../core/data.html#images) [`Images.y`](../core/data.html#images) `gone`'
    assert cleaned('[`Images`](https://a.b/c/core/data.html#images) [`L`](https://d.e/foundation.html#l)') == '[`Images`](../core/data.html#images) [`L`](https://d.e/foundation.html#l)'
    assert cleaned('```python\ndef f(\n    x:NoneType=None, # [`Images`](/core/data.html#images)\n):\n```') == '```python\ndef f(\n    x=None, # `Images`\n):\n```'


def visited(browser, address, names, **kwargs):
    "A window that shows one page after another, and what went wrong while each loaded."
    window = browser.new_page(**kwargs)
    wrong = []
    window.on('console', lambda m: wrong.append(m.text) if m.type in ('error', 'warning') else None)
    window.on('pageerror', lambda e: wrong.append(str(e)))
    window.on('request', lambda r: None if r.url.startswith((address, 'data:')) else wrong.append(r.url))
    window.on('response', lambda r: wrong.append(f'{r.status} {r.url}') if r.status >= 400 else None)
    try:
        for name in names:
            wrong.clear()
            window.goto(address+name)
            yield name,window,wrong
    finally: window.close()


def shot(window, name, kind):
    if os.environ.get('SHOTS'): window.screenshot(path=SHOTS/f'{name.replace("/", "_").removesuffix(".html")}_{kind}.png', full_page=True)


UNLOADED = '[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80))'
CONTENTS = """(() => { const links = [...document.querySelectorAll('#TOC a, #quarto-sidebar a')]
    if (links.length) links[0].append('a_name_without_a_space_'.repeat(6)); if (links.length) document.querySelector('#TOC a')?.append('WithoutAnyBreakAtAll'.repeat(6))
    const out = links.filter(a => a.scrollWidth > a.clientWidth + 1 || a.getBoundingClientRect().right > innerWidth).map(a => a.textContent)
    for (const a of links) for (const t of a.childNodes) if (t.data?.match(/^a_name|^WithoutAny/)) t.remove()
    return out })()"""


@pytest.fixture(scope='module')
def harm():
    "A function of a page in a browser: what axe calls serious or critical there (WCAG), with one element for each."
    axe = pytest.importorskip('axe_playwright_python.sync_playwright', reason='the accessibility tests need axe-playwright-python')
    def found(window):
        wrong = axe.Axe().run(window, options=dict(resultTypes=['violations'])).response['violations']
        return [f"{o['id']}: {len(o['nodes'])}, such as {o['nodes'][0]['html'][:120]}" for o in wrong if o['impact'] in ('serious', 'critical')]
    return found


def test_pages_in_a_browser(browser, below, harm):
    "Pictures, formulas, contents; below the top of a server. Accessibility of a page a group, of all for SHOTS=1."
    found = {}
    for name,window,wrong in visited(browser, below, PAGES, color_scheme='light', viewport={'width': 1280, 'height': 900}):
        formulas = window.locator('span.math').count(), window.locator('span.math .katex').count(), window.locator('.katex-error').count()
        found[name] = wrong + window.evaluate(UNLOADED) + [formulas]*(formulas != (formulas[0], formulas[0], 0)) + window.evaluate(CONTENTS)
        if not window.evaluate("(a => { const r = a.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight })(document.querySelector('#quarto-sidebar a.active'))"): found[name].append('sidebar')
        if name in FIRST or os.environ.get('SHOTS'): found[name] += harm(window)
        shot(window, name, 'light')
    assert {name: w for name,w in found.items() if w} == {}


PALE = """[...document.querySelectorAll('body, main :not(progress, img)')].filter(e => {
    const c = getComputedStyle(e).backgroundColor.match(/[0-9.]+/g).map(Number);
    return (c.length < 4 || c[3] > .5) && Math.min(...c.slice(0, 3)) > 150 }).map(e => e.outerHTML.slice(0, 80))"""
CARDS = """[...document.querySelectorAll('main img')].filter(i => { const s = getComputedStyle(i)
    return s.backgroundColor != 'rgb(255, 255, 255)' || parseFloat(s.paddingLeft) < 6 || parseFloat(s.paddingTop) < 6 || parseFloat(s.borderTopLeftRadius) < 4 }).map(i => 'no card: ' + i.alt)"""
TABLES = """[...document.querySelectorAll('main table')].map(t => {
    let box = t.parentElement
    while (box && !['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) box = box.parentElement
    const torn = [...t.querySelectorAll('th, td')].filter(e => {
        const r = document.createRange(); r.selectNodeContents(e)
        const tops = [...r.getClientRects()].filter(o => o.width).sort((a, b) => a.top - b.top)
        return e.clientWidth < 330 && !e.querySelector('br') && tops.some((o, k) => k && o.top >= tops[k-1].bottom - 1) }).map(e => 'wrapped: ' + e.textContent)
    return {wrong: [...(box && box.clientWidth <= 390 ? [] : ['does not scroll']), ...torn], scrolls: !!box && box.scrollWidth > box.clientWidth + 1} })"""


def test_pages_on_a_phone_at_night(browser, address, harm):
    "Nothing wider than the phone, nothing pale but the cards of figures; tables scroll, their cells stay on one line; accessibility, of a page a group."
    found,scrolling = {},0
    for name,window,wrong in visited(browser, address, PAGES, color_scheme='dark', viewport={'width': 390, 'height': 844}):
        tables = window.evaluate(TABLES)
        scrolling += sum(t['scrolls'] for t in tables)
        found[name] = wrong + window.evaluate(PALE) + window.evaluate(CARDS) + [o for t in tables for o in t['wrong']]
        if window.evaluate('document.documentElement.scrollWidth') > 390: found[name].append('wide')
        if name in FIRST or os.environ.get('SHOTS'): found[name] += harm(window)
        shot(window, name, 'narrow')
    assert {name: w for name,w in found.items() if w} == {} and scrolling


@pytest.mark.parametrize('word, page', [('aug_find', 'augment/find.html'), ('maxup', 'augment/callbacks.html'), ('shift', 'studies/shift.html')])
def test_search_finds_what_people_look_for(browser, below, word, page):
    for _,window,wrong in visited(browser, below, ['index.html']):
        window.keyboard.press('/')
        window.keyboard.type(word, delay=20)
        window.locator(f'a[href*="{page}"]:visible').last.wait_for(timeout=5000)
        assert not wrong


@pytest.mark.parametrize('start', ['index.html', 'studies/toy.html'])
def test_search_finds_a_symbol(browser, below, start):
    for _,window,wrong in visited(browser, below, [start]):
        window.keyboard.press('/')
        window.keyboard.type('hvp', delay=20)
        window.locator('a[href*="influence/layers.html"]:visible', has_text='hvp').first.wait_for(timeout=5000)
        found = window.locator('a[href*="influence/solvers.html#hvp"]:visible').first
        found.wait_for(timeout=5000)
        found.click()
        window.wait_for_url(f'{below}influence/solvers.html#hvp')
        assert not wrong
