"""Build the site into _docs: `make docs`, with Quarto if it is on PATH, else with smalldocs. `make serve` shows it on this computer."""
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDED = '#| eval: false\n#| code-fold: true\n#| code-summary: Source\n'
PROC, DOCS, MATHS = ROOT/'_proc', ROOT/'_docs', ROOT/'site'/'katex'


def process():
    "The notebooks as nbdev prepares them for a site, in `_proc`: documented, hidden cells left out, names linked."
    from nbdev import quarto, serve_drv
    read = serve_drv.read_nb
    serve_drv.read_nb = lambda path: readable(read(path))
    quarto._ensure_quarto = lambda: None
    shutil.rmtree(PROC, ignore_errors=True)
    quarto.nbdev_proc_nbs.__wrapped__(n_workers=0)
    for nb in PROC.glob('*.ipynb'): nb.write_text(relink(nb.read_text(encoding='utf-8')), encoding='utf-8')
    shutil.copytree(ROOT/'nbs'/'images', PROC/'images')


def readable(nb):
    "`nb` with its first paragraph, which nbdev takes for part of the title, exported code to unfold, and only pure imports run."
    from execnb.nbio import mk_cell
    title,text = re.match(r'(# [^\n]*\n+> [^\n]*)?\s*(.*)', nb.cells[0].source, re.S).groups()
    cells = [mk_cell(title, 'markdown'), mk_cell(text, 'markdown')] if title else nb.cells[:1]
    for cell in nb.cells[1:]:
        cells.append(cell)
        if cell.cell_type != 'code': continue
        directive,code = re.match(r'(#\|\s*export\b[^\n]*\n)?(.*)', cell.source, re.S).groups()
        if directive and re.search(r'^(def|class) ', code, re.M): cells.append(mk_cell(FOLDED + code, metadata=cell.metadata))
        if not directive and mixed(code): cell.source = '#| eval: false\n' + code
    nb.cells = type(nb.cells)(cells)
    return nb


def mixed(source):
    "Whether a cell imports and does other things too: nbdev would run it, and it may need data or minutes."
    imports = [line.startswith(('import ', 'from ')) for line in source.splitlines() if line and not line.startswith('#')]
    return any(imports) and not all(imports)


def relink(text):
    """Links by the names that pages get: `01c_influence.html` becomes `influence.html`. None to sources while they have no address;
    no words nobody wrote, no addresses in memory, no links within the code of a signature."""
    text = re.sub(r'\[source\]\(/blob/[^)]*\)\{.*?\}\\n', r'\\n', text)
    text = text.replace('*Call self as a function.*', '')
    text = re.sub(r'(?:functools\.)?(partial\()?<function (\w+) at 0x[0-9a-f]+>', r'\1\2', text)
    text = re.sub(r'^ *"    [^"\n]*, # .*$', lambda m: re.sub(r'\[(`[^`]+`)\]\([^)]*\)', r'\1', m[0]), text, flags=re.M)
    return re.sub(r'(\]\(|href=\\")/*(?:\d+[a-z]?_)?(\w+\.html)', r'\1\2', text)


def smalldocs():
    "Render `_proc` in pure Python, with nbdev's page names and mathematics from the site itself."
    from smalldocs import config, layout, site

    class Site(site.Site):
        def read(self, src):
            page = super().read(src)
            page.out = src.with_name(page.front['output-file'])
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
    print(f'{len(list(DOCS.glob("*.html")))} pages in _docs; make serve shows them.')


def serve(port):
    "Show `_docs` on this computer only."
    with ThreadingHTTPServer(('127.0.0.1', port), partial(SimpleHTTPRequestHandler, directory=DOCS)) as server:
        print(f'The site is at http://127.0.0.1:{server.server_port}/ until you press Ctrl-C.', flush=True)
        try: server.serve_forever()
        except KeyboardInterrupt: pass


if __name__ == '__main__': serve(int(sys.argv[2])) if sys.argv[1:2] == ['serve'] else build()
