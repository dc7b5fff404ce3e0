"""Build the site into _docs: `make docs`, with Quarto if it is on PATH, else with smalldocs. `make serve` shows it on this computer."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from posixpath import relpath
from types import SimpleNamespace

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROC, DOCS, MATHS = ROOT/'_proc', ROOT/'_docs', ROOT/'site'/'katex'
FLOORS = ['core', 'influence', 'augment', 'studies', 'tutorials']
FOLDED = '#| eval: false\n#| code-fold: true\n'
DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
FENCE = re.compile(r'^(```+).*?^\1', re.M|re.S)
SYMBOL = re.compile(r'\[(`[^`]+`)\]\(([^)\s#]*/[^)\s#]+\.html)#([\w.]+)\)')


def process():
    "The notebooks as nbdev prepares them for a site, in `_proc`: documented, hidden cells left out, names linked."
    from nbdev import quarto, serve_drv
    read = serve_drv.read_nb
    serve_drv.read_nb = lambda path: readable(read(path))
    quarto._ensure_quarto = lambda: None
    quarto.nbdev_sidebar = SimpleNamespace(__wrapped__=lambda path, **_: (path/'sidebar.yml').write_text(sidebar(path), encoding='utf-8'))
    shutil.rmtree(PROC, ignore_errors=True)
    quarto.nbdev_proc_nbs.__wrapped__(n_workers=0)
    nbs = {path.relative_to(PROC): json.loads(path.read_text(encoding='utf-8')) for path in PROC.rglob('*.ipynb')}
    entries = {address(path): set(documented(nb)) for path,nb in nbs.items()}
    for path,nb in nbs.items(): (PROC/path).write_text(json.dumps(relinked(nb, path, entries)), encoding='utf-8')


def sidebar(path):
    "The sidebar's YAML: the notebooks on top, then one group a folder, each notebook with its number before its title."
    nbs = [nb.relative_to(path) for nb in sorted(path.rglob('*.ipynb')) if not re.search(r'(^|/)[._]', nb.relative_to(path).as_posix())]
    folders = {nb.parent.as_posix() for nb in nbs} - {'.'}
    groups = [f for f in FLOORS if f in folders] + sorted(folders - set(FLOORS))
    of = lambda folder: [dict(text=entry(path/nb), href=nb.as_posix()) for nb in nbs if nb.parent.as_posix() == folder]
    contents = sorted(of('.'), key=lambda o: o['href'] != 'index.ipynb') + [dict(section=f.replace('/', ', ').capitalize(), contents=of(f)) for f in groups]
    return yaml.safe_dump(dict(website=dict(sidebar=dict(contents=contents))), sort_keys=False, allow_unicode=True)


def entry(path):
    "What the sidebar says of the notebook at `path`: `13 Influence`."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    title = re.search(r'^# +(.+)', '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'), re.M)
    return ' '.join([*re.findall(r'^\d+[a-z]?(?=_)', path.stem), title[1].strip() if title else path.stem])


def readable(nb):
    """`nb` with its first paragraph, which nbdev takes for part of the title; each exported definition by itself, its source folded
    below; private ones folded only, after the public one they lead up to; figures in words; only pure imports run."""
    title,text = re.match(r'(# [^\n]*\n+> [^\n]*)?\s*(.*)', nb.cells[0].source, re.S).groups()
    cells = [new_cell(title, 'markdown'), new_cell(text, 'markdown')] if title else nb.cells[:1]
    waiting,constants,story = [],[],[text]

    def rest():
        "What no public definition followed."
        out = waiting + [folded(f'Source of {name}', part) for name,part in constants]
        waiting.clear()
        constants.clear()
        return out

    for cell in nb.cells[1:]:
        directives,code = re.match(r'((?:#\|[^\n]*(?:\n|$))*)(.*)', cell.source, re.S).groups()
        exported = cell.cell_type == 'code' and re.search(r'^#\| *export(i?)\b', directives, re.M)
        if exported:
            for part in definitions(code):
                name,kind = defined(part)
                public = kind == 'public' and not exported[1]
                cells.append(new_cell(f'#| export{"" if public else "i"}\n{part}'))
                if kind == 'constant': constants.append((name, part))
                if kind not in ('public', 'private'): continue
                whole = '\n'.join([*(o for _,o in constants), part])
                constants.clear()
                if public: cells += [folded('Source', whole), *rest()]
                else: waiting.append(folded(f'Source of {name}', whole, name))
            continue
        if not re.search(r'^#\| *(hide|default_exp)\b', directives, re.M): cells += rest()
        if cell.cell_type == 'markdown': story.append(cell.source)
        else: cell.source = ('#| eval: false\n' if mixed(code) else '') + in_words(cell, story) + cell.source
        cells.append(cell)
    nb.cells = type(nb.cells)(cells + rest())
    return nb


def new_cell(source, kind='code'):
    from execnb import nbio
    from fastcore.basics import AttrDict
    return nbio.mk_cell(source, kind, metadata=AttrDict())


def folded(summary, code, label=''):
    "A cell that shows `code` when it is unfolded; links to `label` lead to it."
    return new_cell(FOLDED + f'#| code-summary: {summary}\n' + (f'#| label: {label.lower()}\n' if label else '') + code)


def definitions(code):
    "`code` in parts with at most one definition each; other statements stay with what stands above them."
    body,lines,starts,full = ast.parse(code).body,code.splitlines(),[0],False
    for above,node in zip([None, *body], body):
        if full and isinstance(node, DEFINITIONS): starts.append(above.end_lineno)
        full = full or isinstance(node, DEFINITIONS)
    return ['\n'.join(lines[a:b]).strip('\n') for a,b in zip(starts, [*starts[1:], len(lines)])]


def defined(part):
    "The name that `part` defines and its kind: 'public', 'private' if it or its class has an underscore, 'constant'; None for imports alone."
    from nbdev.showdoc import showdoc_nm
    body = ast.parse(part).body
    for node in body:
        if not isinstance(node, DEFINITIONS): continue
        name = showdoc_nm(node)
        name = name if isinstance(name, str) else name[0]
        return name,'private' if any(o.startswith('_') and not o.endswith('__') for o in name.split('.')) else 'public'
    names = [o.id for node in body if isinstance(node, (ast.Assign, ast.AnnAssign)) for o in ast.walk(node) if isinstance(o, ast.Name) and isinstance(o.ctx, ast.Store)]
    return (names[0], 'constant') if names else (None, None)


def in_words(cell, story):
    "What a cell's figures are called for those who cannot see them: the labels in its code, or else the last sentence before; the heading."
    if 'fig-alt' in cell.source or not any('image/png' in o.get('data', {}) for o in cell.get('outputs', [])): return ''
    text = FENCE.sub('', '\n\n'.join(story))
    headings = re.findall(r'^#+ +(.+)', text, re.M)
    labels = re.findall(r"""(?:label|title)\w*(?:=|\()(['"])([^'"{}$]{3,})\1""", cell.source)
    prose = [p for p in re.split(r'\n\s*\n', text) if not re.match(r'\s*(#|\||```|\$\$|[-*>] |!\[)', p)]
    sentences = [plain(o) for o in re.split(r'(?<=[.!?])\s+(?=[A-Z(\[*])', ' '.join(prose[-1:])) if len(o)>20 and '$' not in o and o[0] != '(']
    said = '; '.join(dict.fromkeys(o for _,o in labels)) or ' '.join(sentences[-1:])
    alt = ' '.join(re.sub(r'[\w)]$', r'\g<0>.', o) for o in ['Figure: ' + plain(' '.join(headings[-1:])), said] if o)
    return f'#| fig-alt: {json.dumps(alt, ensure_ascii=False)}\n'


def plain(text):
    "Markdown without its marks, on one line."
    return ' '.join(re.sub(r'[*`$]|\[(?=[^\]]*\]\()|\]\([^)]*\)', '', text).split())


def mixed(source):
    "Whether a cell imports and does other things too: nbdev would run it, and it may need data or minutes."
    imports = [line.startswith(('import ', 'from ')) for line in source.splitlines() if line and not line.startswith('#')]
    return any(imports) and not all(imports)


def address(path):
    "The page of a notebook: `influence/13_influence.ipynb` is at `influence/influence.html`."
    return path.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', path.name.lower())).with_suffix('.html').as_posix()


def documented(nb):
    "What links to names can lead to on the page of `nb`: headings that `show_doc` wrote, folded sources with a label."
    for cell in nb['cells']:
        yield from re.findall(r'^#\| label: (.+)', ''.join(cell['source']), re.M)
        for o in cell.get('outputs', []): yield from (h.lower() for h in re.findall(r'^###+ (.+)', ''.join(o.get('data', {}).get('text/markdown', '')), re.M))


def relinked(nb, path, entries):
    "`nb` with its text and shown outputs cleaned."
    clean = partial(cleaned, path=path, entries=entries)
    for cell in nb['cells']:
        if cell['cell_type'] == 'markdown': cell['source'] = clean(''.join(cell['source']))
        for o in cell.get('outputs', []):
            if 'text' in o: o['text'] = nameless(''.join(o['text']))
            for kind,value in o.get('data', {}).items():
                if kind.startswith('text/'): o['data'][kind] = re.sub(r'^(###+ \S*?)__(\w+)__$', r'\1\_\_\2\_\_', clean(''.join(value)), flags=re.M)
    return nb


def cleaned(text, path, entries):
    """Links by the names that pages get, `13_influence.html` becomes `influence.html`, and from where `path` is. A method without an entry
    of its own leads to its class. None to sources while they have no address; no words nobody wrote, no addresses in memory; in code no
    links, and no types that only say that a default is None or a function."""
    here = path.parent.as_posix()

    def symbol(m):
        name,url,anchor = m.groups()
        page = next((o for o in sorted(entries, key=len, reverse=True) if url.endswith(f'/{o}')), None)
        if not page and '://' in url: return m[0]
        found = next((o for o in (anchor, anchor.split('.')[0]) if o in entries.get(page, ())), None)
        return f'[{name}]({relpath(page, here)}#{found})' if found else name

    text = re.sub(r'\[source\]\(/blob/[^)]*\)\{.*?\}\n', '\n', text)
    text = nameless(text.replace('*Call self as a function.*', ''))
    text = SYMBOL.sub(symbol, FENCE.sub(lambda m: re.sub(r':(?:NoneType|function|partial|type|builtin_function_or_method)(?==)', '', SYMBOL.sub(r'\1', m[0])), text))
    return re.sub(r'(\]\(|href=")((?:[\w.-]+/)*)(?:\d+[a-z]?_)(\w+\.html)', r'\1\2\3', text)


def nameless(text):
    "`text` without addresses in memory: functions by their names, objects by those of their classes."
    lt,gt = '(?:<|&lt;)','(?:>|&gt;)'
    text = re.sub(rf'{lt}(?:bound method|built-in method|function) (?:[\w.]|{lt}locals{gt})*?(\w+|{lt}lambda{gt}) (?:of .*? )?at 0x[0-9a-f]+{gt}+', r'\1', text)
    text = re.sub(rf'{lt}(?:[\w.]|{lt}locals{gt})*?(\w+) object at 0x[0-9a-f]+{gt}', r'\1()', text)
    text = re.sub(rf'{lt}lambda{gt}', 'lambda', text)
    return text.replace('functools.partial(', 'partial(')


def smalldocs():
    "Render `_proc` in pure Python, with nbdev's page names and mathematics from the site itself."
    from smalldocs import config, layout, site

    class Site(site.Site):
        def read(self, src):
            page = super().read(src)
            page.out = type(src)(address(src))
            return page

        def find_page(self, target):
            return super().find_page(target) or next((p for p in self.pages.values() if p.out == target), None)

    layout.KATEX = MATHS.name
    pages = Site(config.load(PROC), quiet=True)
    pages.build()
    for w in pages.warnings:
        if not re.search('output-file|html-math-method', w): print(w, file=sys.stderr)


def at_home(css):
    "`css` without fonts fetched from elsewhere; the next font in the list is used."
    return re.sub(r'@import\s*(?:url\()?["\']?(?:https?:)?//[^)"\']*["\']?\)?;?', '', css)


def finished(page, root):
    """The HTML of a page whose way to the top is `root`: mathematics found from there, long names to break at dots and underscores,
    tables in boxes that scroll, signatures with an element a line."""
    page = re.sub(rf'(href|src)="{MATHS.name}/', rf'\1="{root}/{MATHS.name}/', page)
    page = re.sub(r'(<a [^>]*data-scroll-target[^>]*>)(.*?)(?=</a>)', lambda m: m[1] + re.sub(r'([._])(?=\w)', r'\1<wbr>', m[2]), page)
    page = re.sub(r'<table\b.*?</table>', r'<div class="table-responsive">\g<0></div>', page, flags=re.S)
    line = lambda m: m[1] + re.sub(r'[^\n]*\n|[^\n]+$', r'<span class="line">\g<0></span>', m[2])
    return re.sub(r'(</h3>\n(?:<div[^>]*>)*<pre[^>]*><code[^>]*>)(<span class="kw">def</span>.*?)(?=</code>)', line, page, flags=re.S)


def build():
    "The whole site."
    os.chdir(ROOT)
    process()
    if shutil.which('quarto'): subprocess.run(['quarto', 'render', '--no-cache'], cwd=PROC, check=True)
    else: smalldocs()
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.move(PROC/'_docs', DOCS)
    shutil.copytree(MATHS, DOCS/MATHS.name)
    for f in DOCS.rglob('*.css'): f.write_text(at_home(f.read_text(encoding='utf-8')), encoding='utf-8')
    pages = list(DOCS.rglob('*.html'))
    for f in pages: f.write_text(finished(f.read_text(encoding='utf-8'), relpath(DOCS, f.parent)), encoding='utf-8')
    print(f'{len(pages)} pages in _docs; make serve shows them.')


def serve(port):
    "Show `_docs` on this computer only."
    with ThreadingHTTPServer(('127.0.0.1', port), partial(SimpleHTTPRequestHandler, directory=DOCS)) as server:
        print(f'The site is at http://127.0.0.1:{server.server_port}/ until you press Ctrl-C.', flush=True)
        try: server.serve_forever()
        except KeyboardInterrupt: pass


if __name__ == '__main__': serve(int(sys.argv[2])) if sys.argv[1:2] == ['serve'] else build()
