"""The installer's messages, in a copy of the repository's own files."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def install(folder, **env):
    (folder/'tools').mkdir()
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'tools/install.py'): shutil.copy(ROOT/name, folder/name)
    if 'min_python' in env:
        settings = folder/'settings.ini'
        settings.write_text(settings.read_text().replace('min_python = 3.10', f"min_python = {env.pop('min_python')}"))
    env = {k: v for k, v in os.environ.items() if not k.startswith('PIP_')} | env
    return subprocess.run([sys.executable, folder/'tools'/'install.py'], capture_output=True, text=True, env=env)


def test_old_python(tmp_path):
    out = install(tmp_path, min_python='9.9')
    assert out.returncode == 1 and 'needs Python 9.9 or newer' in out.stderr and 'make demo PYTHON=' in out.stderr
    assert not (tmp_path/'.venv').exists()


def test_index_out_of_reach(tmp_path):
    out = install(tmp_path, PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_CONFIG_FILE=os.devnull)
    assert out.returncode == 1 and 'the package index cannot be reached' in out.stderr and 'Traceback' not in out.stderr
    assert (tmp_path/'.venv').exists() and not (tmp_path/'.venv'/'.demo').exists()
