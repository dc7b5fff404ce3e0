"""Export the notebooks, execute them as JupyterLab would, keep their outputs, clean them, write README.md: `make notebooks`.

`python tools/run_notebooks.py 03 2` executes those whose names begin so. Cells marked `#| eval: false` or `#| heavy` and calls
of nbdev_export are not executed and keep the outputs they have; `--heavy` executes those marked `#| heavy` too.
"""
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelClient, AsyncKernelManager
from nbclient import NotebookClient

import colab

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault('PYTHONWARNINGS', 'ignore::FutureWarning')
os.environ.setdefault('OMP_NUM_THREADS', '1')
SKIPPED = '#| eval: false', '#| heavy', 'nbdev_export('


def notebooks():
    "All notebooks, by floor and number."
    return sorted((ROOT/'nbs').glob('*.ipynb')) + sorted((ROOT/'nbs').glob('*/*.ipynb'), key=lambda p: p.name)


class Client(AsyncKernelClient):
    "Without a heartbeat, whose thread can wait for ever for an answer of a kernel that has ended."
    def start_channels(self, **kwargs): super().start_channels(**kwargs | dict(hb=False))


class Manager(AsyncKernelManager):
    client_factory = Client


def executed(path, skipped=SKIPPED, kernel='python3'):
    "The notebook at `path` run from a clean kernel, and the seconds it took."
    start, nb = time.time(), nbformat.read(path, as_version=4)
    client = NotebookClient(nb, timeout=1800, kernel_name=kernel, kernel_manager_class=Manager, resources=dict(metadata=dict(path=path.parent)),
                            extra_arguments=['--log-level=ERROR'])
    with client.setup_kernel():
        for i, cell in enumerate(nb.cells):
            if not any(s in cell.source for s in skipped): client.execute_cell(cell, i)
    return nb, time.time()-start


def main(args):
    os.chdir(ROOT)
    skipped = [s for s in SKIPPED if not ("--heavy" in args and "heavy" in s)]
    prefixes = [o for o in args if o != "--heavy"]
    bin = Path(sys.executable).parent
    colab.main()
    subprocess.check_call([bin/'nbdev_export'])
    for path in notebooks():
        if prefixes and not path.name.startswith(tuple(prefixes)): continue
        nb, seconds = executed(path, skipped)
        nbformat.write(nb, path)
        print(f'{path.name}: {seconds:.0f} s', flush=True)
    subprocess.check_call([bin/'nbdev_clean'])
    if (ROOT/"nbs"/"index.ipynb").exists(): subprocess.check_call([sys.executable, ROOT/'tools'/'readme.py'])


if __name__ == '__main__': main(sys.argv[1:])
