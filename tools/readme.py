"""Write README.md from nbs/index.ipynb: `make readme`. Hidden cells and directives are left out, links made to work from the top level."""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]


def shown(cell):
    "`cell` without nbdev's directives, or None if it is hidden."
    if re.search(r'^#\|\s*hide\b', cell.source, re.M): return None
    silent = re.search(r'^#\|\s*echo:\s*false', cell.source, re.M)
    cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip()
    cell['outputs'] = [o for o in cell.get('outputs', []) if not left_out(o.get('data', {}))] if cell.cell_type == 'code' else None
    if cell.cell_type != 'code': del cell['outputs']
    if silent: cell.source = ''
    return cell if cell.source or cell.get('outputs') else None


def left_out(data):
    "Pictures and what progress bars leave behind."
    return 'image/png' in data or 'fastprogress' in str(data) or data.get('text/plain', '').startswith('<IPython.core.display.HTML')


def readme():
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    nb.cells = [c for c in map(shown, nb.cells) if c]
    nb.metadata['language_info'] = {'name': 'python'}
    exporter = MarkdownExporter()
    exporter.register_preprocessor(prefer_plain, enabled=True)
    text, _ = exporter.from_notebook_node(nb)
    text = re.sub(r'\]\((?!http|#|/)([^)]*?)\.html\)', r'](nbs/\1.ipynb)', text)
    text = re.sub(r'```python\s*```\n*', '', text)
    text = re.sub(r'\]\(images/', '](nbs/images/', text)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def prefer_plain(nb, resources):
    "Plain text instead of HTML for tables in code output, so that the README reads as text anywhere."
    for cell in nb.cells:
        for o in cell.get('outputs', []):
            if 'text/markdown' not in o.get('data', {}): o.get('data', {}).pop('text/html', None)
    return nb, resources


if __name__ == '__main__': (ROOT/'README.md').write_text(readme(), encoding='utf-8')
