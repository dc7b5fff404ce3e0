"""Export the notebooks, execute them in order, keep their outputs, clean them and write README.md: `make notebooks`.

`python tools/run_notebooks.py 03 05` does it for those whose names begin so. Cells marked `#| eval: false` or `#| heavy` and
calls of nbdev_export are not executed and keep the outputs they have.
"""
import os
import subprocess
import sys
import time
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = '#| eval: false', '#| heavy', 'nbdev_export('


def skipped(cell): return cell.cell_type != 'code' or any(s in cell.source for s in SKIPPED)


def execute(path):
    start, nb, shell = time.time(), read_nb(path), CaptureShell(path)
    os.chdir(path.parent)
    shell.run_all(nb, exc_stop=True, preproc=skipped)
    write_nb(nb, path)
    print(f'{path.name}: {time.time()-start:.0f} s', flush=True)


def main(prefixes):
    if prefixes[:1] == ['--one']: return execute(Path(prefixes[1]))
    os.chdir(ROOT)
    bin = Path(sys.executable).parent
    subprocess.check_call([bin/'nbdev_export'])
    for path in sorted((ROOT/'nbs').glob('*.ipynb')):
        if not prefixes or path.name.startswith(tuple(prefixes)): subprocess.check_call([sys.executable, __file__, '--one', path])
    subprocess.check_call([bin/'nbdev_clean'])
    subprocess.check_call([sys.executable, ROOT/'tools'/'readme.py'])


if __name__ == '__main__': main(sys.argv[1:])
