"""What `pip install .` brings: the modules, the digits and the generators, and nothing else."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns('.*', '_*', 'build', 'dist', '*.egg-info', '*.log', 'nbs', 'results')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "What `python -m build` says and the folder it fills, for a copy of this tree without what was built in it before."
    copy = tmp_path_factory.mktemp('package')/'tree'
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: LEFT_OUT(folder, names) if Path(folder) == ROOT else shutil.ignore_patterns('__pycache__')(folder, names))
    out = subprocess.run([sys.executable, '-m', 'build'], cwd=copy, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stdout[-3000:]+out.stderr[-3000:]
    return out.stdout+out.stderr, copy/'dist'


@pytest.fixture(scope='module')
def wheel(built): return next(built[1].glob('*.whl'))


def test_build_is_clean(built):
    said, dist = built
    assert len(list(dist.glob('*.whl'))) == len(list(dist.glob('*.tar.gz'))) == 1
    assert not re.search('deprecat|is absent from|WARNING ', said), said


def test_twine_finds_nothing_wrong(built):
    out = subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *built[1].iterdir()], capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.count('PASSED') == 2, out.stdout+out.stderr


def test_wheel_holds_code_digits_and_generators_only(wheel):
    names = [n for n in ZipFile(wheel).namelist() if '.dist-info/' not in n]
    assert all(re.fullmatch(r'influence_aug/((core/|influence/|augment/|studies/)?\w+\.py|mnist_sample\.npz|(generators|sequences)/\w+\.safetensors)', n) for n in names), names
    here = {str(f.relative_to(ROOT)) for f in (ROOT/'influence_aug').rglob('*') if f.suffix in {'.py', '.npz', '.safetensors'}}
    assert set(names) == here


def test_readme_tells_its_size(wheel):
    told = float(re.search(r'wheel of ([\d.]+) MB', (ROOT/'README.md').read_text(encoding='utf-8'))[1])
    assert abs(wheel.stat().st_size/1e6-told) < .1


def test_wheel_works_far_from_the_repository(wheel, tmp_path):
    subprocess.check_call([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', tmp_path/'site', wheel])
    code = '''import influence_aug
from influence_aug.all import *
x = draw_splits(mnist_sample(), frac=.01, seed=0).labelled.x[:2].float()/255
print(influence_aug.__file__, *(load_generator(name).config["size"] for name in ("mnist", "cifar10")), *random_tau(load_generator("mnist"))(x).shape)'''
    out = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=os.environ|dict(PYTHONPATH=str(tmp_path/'site')), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == [str(tmp_path/'site'/'influence_aug'/'__init__.py'), '28', '32', '2', '1', '28', '28']
