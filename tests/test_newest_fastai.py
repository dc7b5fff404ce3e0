"""The exported library never imports nbdev, respects the order of rooms, and imports with the newest fastai."""
import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]/'influence_aug'
ROOMS = 'data head solvers influence toy transforms wgan estimator learner policies quality mnist objectives'.split()
NEWEST = ['fastai>=2.8.12', 'fastcore>=2.2.22', 'fasttransform>=0.0.3', 'plum-dispatch<2.10']


def imported(module):
    tree = ast.parse((PACKAGE/f'{module}.py').read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom): yield '.'*node.level+(node.module or '')


@pytest.mark.parametrize('module', ROOMS)
def test_imports_go_one_way(module):
    names = set(imported(module))
    above = {o.split('.')[-1] for o in names if o.startswith('influence_aug') or (o.startswith('.') and not o.startswith('..'))}
    assert above <= set(ROOMS[:ROOMS.index(module)])
    assert not any(o.split('.')[0] in ('nbdev', 'execnb') for o in names)
    if ROOMS.index(module) < ROOMS.index('learner') and module != 'data': assert not any(o.startswith('fastai') for o in names)


def test_library_works_with_the_newest_fastai(tmp_path):
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--retries', '1', '--timeout', '20', '--no-deps', '--target', tmp_path]
    if subprocess.run([*pip, *NEWEST], capture_output=True).returncode: pytest.skip('the package index is out of reach, and the newest fastai has to come from there')
    code = ('import fastai, fastcore; assert fastai.__version__ >= "2.8.12", fastai.__version__; '
            f'from influence_aug.mnist import main; main(method="random_tau", scale="sample", steps=2, results={str(tmp_path/"r.csv")!r})')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert out.returncode == 0, out.stderr[-2000:]
