"""The exported library imports and works with the newest fastai, and needs nothing that only the notebooks need."""
import os
import subprocess
import sys

import pytest

NEWEST = ['fastai>=2.8.12', 'fastcore>=2.2.22', 'fasttransform>=0.0.3', 'plum-dispatch<2.10']


def test_library_works_with_the_newest_fastai(tmp_path):
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--retries', '1', '--timeout', '20', '--no-deps', '--target', tmp_path]
    if subprocess.run([*pip, *NEWEST], capture_output=True).returncode: pytest.skip('the package index is out of reach, and the newest fastai has to come from there')
    code = ('import fastai, sys; assert fastai.__version__ >= "2.8.12", fastai.__version__; import influence_aug.all\n'
            'from influence_aug.studies.commands import ia_run\n'
            f'ia_run("mnist --method random_tau --scale sample --steps 2 --results {tmp_path/"r.csv"}".split())\n'
            'assert not {"nbdev", "execnb"} & set(sys.modules)')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert out.returncode == 0, out.stderr[-2000:]
