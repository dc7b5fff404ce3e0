"""The site: built as `make docs` builds it, read as HTML, then in a browser. Screenshots stay in _shots."""
import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
SHOTS = ROOT/'_shots'
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
NAMES = [re.sub(r'^\d+[a-z]?_', '', nb.stem)+'.html' for nb in NOTEBOOKS]

pytestmark = pytest.mark.skipif(not (shutil.which('quarto') or importlib.util.find_spec('smalldocs')),
                                reason='the site needs smalldocs (Python 3.11 or newer) or Quarto')


class Page(HTMLParser):
    "What a page refers to, what can be referred to in it, and the text a reader sees."
    def __init__(self, text):
        super().__init__()
        self.refs,self.ids,self.images,self.text,self.inside = [],set(),[],[],[]
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


@pytest.fixture(scope='module')
def docs():
    done = subprocess.run([sys.executable, ROOT/'tools'/'docs.py'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT/'_docs'


@pytest.fixture(scope='module')
def pages(docs): return {p.name: Page(p.read_text(encoding='utf-8')) for p in docs.glob('*.html')}


@pytest.fixture(scope='module')
def address(docs):
    server = subprocess.Popen([sys.executable, ROOT/'tools'/'docs.py', 'serve', '0'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    yield re.search(r'http://127\.0\.0\.1:\d+/', server.stdout.readline())[0]
    server.terminate()
    server.wait()


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='the browser tests need playwright')
    if not CHROMIUM: pytest.skip('the browser tests need chromium: apt-get install chromium')
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield chromium
        chromium.close()


def broken(name, ref, docs, pages):
    "Whether `ref`, on page `name`, leads nowhere in the site."
    to = urlsplit(ref)
    if to.scheme or to.netloc: return False
    target = unquote(to.path) or name
    if not (docs/target).exists(): return True
    return bool(to.fragment) and target in pages and unquote(to.fragment) not in pages[target].ids


def test_a_page_for_each_notebook(pages): assert sorted(pages) == sorted(NAMES)


def test_sidebar_in_reading_order(pages):
    order = ' '.join(['index.html'] + [n for n in NAMES if n != 'index.html'])
    for name,page in pages.items(): assert order in ' '.join(Path(r).name for r in page.refs if Path(r).name in NAMES), name


def test_front_page(docs, pages):
    "Figure 3 and the tables."
    assert any('figure3' in image['src'] for image in pages['index.html'].images)
    assert (docs/'index.html').read_text(encoding='utf-8').count('<table') >= 3


def test_no_link_anchor_or_file_is_missing(docs, pages):
    assert {(name, ref) for name,page in pages.items() for ref in page.refs if broken(name, ref, docs, pages)} == set()


def test_nothing_is_fetched_from_elsewhere(docs):
    "No style, script, picture or font has an address outside the site."
    for p in docs.glob('*.html'): assert not re.search(r'<(?:script|img|link)[^>]*(?:src|href)="(?:https?:)?//', p.read_text(encoding='utf-8')), p.name


def test_nothing_unrendered_is_left(pages):
    "No dollar signs around formulas, escape codes, syntax of the tools, leftovers of progress bars, addresses in memory."
    left = re.compile(r'\$[^$\n]+\$|\x1b\[|^:::|\{\.[a-z]|#\||<IPython|<style|Call self as|at 0x[0-9a-f]{6}', re.M)
    assert {(name, m[0]) for name,page in pages.items() for m in [left.search(''.join(page.text))] if m} == set()


def test_signatures_hold_no_links_in_markdown(docs):
    for p in docs.glob('*.html'): assert not re.search(r'# [^<\n]*\]\([\w.#]+\)', p.read_text(encoding='utf-8')), p.name


def visit(browser, address, name, **kwargs):
    "Page `name` in a new window, and what went wrong while it loaded."
    window = browser.new_page(**kwargs)
    wrong = []
    window.on('console', lambda m: wrong.append(m.text) if m.type in ('error', 'warning') else None)
    window.on('pageerror', lambda e: wrong.append(str(e)))
    window.on('request', lambda r: None if r.url.startswith((address, 'data:')) else wrong.append(r.url))
    window.on('response', lambda r: wrong.append(f'{r.status} {r.url}') if r.status >= 400 else None)
    window.goto(address+name)
    return window,wrong


@pytest.mark.parametrize('name', NAMES)
def test_page(browser, address, pages, name):
    window,wrong = visit(browser, address, name, color_scheme='light', viewport={'width': 1280, 'height': 900})
    try:
        assert not wrong
        assert window.evaluate('[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src.slice(0, 80))') == []
        assert window.locator('span.math').count() == window.locator('span.math .katex').count() and not window.locator('.katex-error').count()
        window.screenshot(path=SHOTS/f'{Path(name).stem}_light.png', full_page=True)
    finally: window.close()


@pytest.mark.parametrize('name', NAMES)
def test_page_on_a_phone_at_night(browser, address, name):
    window,wrong = visit(browser, address, name, color_scheme='dark', viewport={'width': 390, 'height': 844})
    try:
        assert not wrong
        assert window.evaluate('document.documentElement.scrollWidth') <= 390
        pale = """[...document.querySelectorAll('body, main :not(progress)')].filter(e => {
            const c = getComputedStyle(e).backgroundColor.match(/[0-9.]+/g).map(Number);
            return (c.length < 4 || c[3] > .5) && Math.min(...c.slice(0, 3)) > 150 }).map(e => e.outerHTML.slice(0, 80))"""
        assert window.evaluate(pale) == []
        window.screenshot(path=SHOTS/f'{Path(name).stem}_narrow.png', full_page=True)
    finally: window.close()


def test_search_finds_a_symbol(browser, address):
    window,wrong = visit(browser, address, 'index.html')
    window.keyboard.press('/')
    window.keyboard.type('hvp', delay=20)
    window.locator('a[href*="influence.html"]:visible', has_text='hvp').first.wait_for(timeout=5000)
    found = window.locator('a[href*="solvers.html#hvp"]:visible').first
    found.wait_for(timeout=5000)
    found.click()
    window.wait_for_url('**/solvers.html#hvp')
    assert not wrong
    window.close()
