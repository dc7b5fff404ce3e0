"""Every notebook from a clean kernel, as JupyterLab runs it: without an error, with outputs of the kind that is committed.

Times are printed and the slowest is named; a cell that hangs is ended after ten minutes."""
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tools'))
from run_notebooks import executed, notebooks
from warm import warm_kernels

NOTEBOOKS = notebooks()


@pytest.fixture(scope='module')
def runs():
    "All notebooks, two at a time."
    with warm_kernels() as kernel, ThreadPoolExecutor(2) as pool:
        futures = {path: pool.submit(executed, path, kernel=kernel) for path in NOTEBOOKS}
        yield futures
        pool.shutdown(cancel_futures=True)
    seconds, slowest = max((f.result()[1], p.name) for p, f in futures.items() if f.done() and not f.cancelled() and not f.exception())
    print(f'slowest: {slowest}, {seconds:.0f} s')


def kind(output):
    "What sort of thing a reader sees: a stream, a picture, a table with its columns; None for a progress bar, which comes with slowness, and for stderr."
    if output.output_type == 'stream': return output.name if output.name == 'stdout' else None
    html = output.get('data', {}).get('text/html', '-')
    if 'progress' in html or not html: return None
    return output.output_type, *sorted(output.get('data', {})), *re.findall('<th>([^<]*)</th>', html.split('</thead>')[0])


def kinds(cell): return [k for k,_ in groupby(kind(o) for o in cell.get('outputs', [])) if k]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def test_notebook(runs, path):
    nb, seconds = runs[path].result()
    print(f'{path.name}: {seconds:.0f} s')
    committed = nbformat.read(path, as_version=4)
    other = [(i, kinds(a), kinds(b)) for i,(a,b) in enumerate(zip(committed.cells, nb.cells)) if kinds(a) != kinds(b)]
    assert not other, f'cell, committed, now: {other}'
