"""Fail unless notebooks, exported modules, README and cleaned notebooks agree: exports a copy and compares it with what is here."""
import difflib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
COPIED = 'settings.ini', 'pyproject.toml', 'setup.py', '_quarto.yml', 'README.md'


def made_again(root):
    "Relative path → text of all files that are made from notebooks, after making them again in the copy at `root`."
    for name in COPIED: shutil.copy(ROOT/name, root)
    for name in ('nbs', 'influence_aug', 'tools', 'results'): shutil.copytree(ROOT/name, root/name, ignore=shutil.ignore_patterns('__pycache__', '*.tmp', '*.lock'))
    for command in ([sys.executable, root/'tools'/'colab.py'], [BIN/'nbdev_export'], [BIN/'nbdev_clean'], [sys.executable, root/'tools'/'readme.py']):
        subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    return texts(root)


def texts(root):
    files = [*root.glob('influence_aug/**/*.py'), *root.glob('nbs/**/*.ipynb'), root/'README.md', root/'pyproject.toml']
    return {str(f.relative_to(root)): f.read_text(encoding='utf-8') for f in files if f.exists()}


def main():
    with TemporaryDirectory() as d: wanted = made_again(Path(d))
    here = texts(ROOT)
    wrong = [k for k in sorted(wanted.keys() | here.keys()) if wanted.get(k) != here.get(k)]
    for k in wrong:
        print(f'--- {k} is not what the notebooks make:')
        lines = difflib.unified_diff(here.get(k, '').splitlines(), wanted.get(k, '').splitlines(), 'here', 'made again', lineterm='', n=1)
        print('\n'.join([o[:200] for o in lines][:20]))
    if wrong: sys.exit('Run nbdev_export, nbdev_clean and make readme; edit notebooks, never exported files.')
    print(f'{len(here)} files agree')


if __name__ == '__main__': main()
