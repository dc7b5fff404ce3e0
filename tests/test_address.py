"""Links to the repository: to Colab and to sources once settings.ini has an address, none before."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = '01_data.ipynb', '10_solvers.ipynb', '20_transforms.ipynb', '43_toy.ipynb', 'shift.ipynb'
ADDRESS = 'https://github.com/somebody/influence_aug'


def address():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT'].get('git_url')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    "A copy of what the site is made of, with an address."
    root = tmp_path_factory.mktemp('address')
    for name in ('nbs', 'influence_aug', 'tools', 'results', 'site'): shutil.copytree(ROOT/name, root/name, ignore=shutil.ignore_patterns('__pycache__', '*.lock'))
    for name in ('setup.py', 'pyproject.toml', '_quarto.yml', 'README.md'): shutil.copy(ROOT/name, root)
    settings = (ROOT/'settings.ini').read_text(encoding='utf-8')
    (root/'settings.ini').write_text(re.sub('^git_url =.*', f'git_url = {ADDRESS}', settings, flags=re.M), encoding='utf-8')
    tool(root, 'colab.py')
    return root


def tool(root, name, *args):
    env = os.environ|dict(PYTHONPATH=str(root))
    done = subprocess.run([sys.executable, root/'tools'/name, *args], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout+done.stderr


def notebooks(root):
    "Text of every notebook by its path below nbs/, without the ending."
    return {p.relative_to(root/'nbs').with_suffix('').as_posix(): p.read_text(encoding='utf-8') for p in sorted((root/'nbs').rglob('*.ipynb'))}


def test_every_notebook_has_its_colab_link_once(tree):
    before = notebooks(tree)
    assert {'index', 'studies/43_toy'} < set(before)
    for name,text in before.items():
        link,install = json.loads(text)['cells'][1:3]
        assert ''.join(link['source']).endswith(f'colab.research.google.com/github/somebody/influence_aug/blob/main/nbs/{name}.ipynb)')
        assert f'git clone -q -b main {ADDRESS} ' in ''.join(install['source'])
        assert f"os.chdir('/content/influence_aug/{Path('nbs', name).parent.as_posix()}')" in ''.join(install['source'])
        compile(re.sub('^!.*', '', ''.join(install['source']), flags=re.M), name, 'exec')
    tool(tree, 'colab.py')
    assert notebooks(tree) == before


def test_cleaning_and_export_leave_the_links(tree):
    read = lambda: {name: json.loads(text) for name,text in notebooks(tree).items()}
    before = read()
    for command in ('nbdev_export', 'nbdev_clean'): subprocess.check_call([Path(sys.executable).parent/command], cwd=tree)
    assert read() == before


@pytest.mark.skipif(not (shutil.which('quarto') or importlib.util.find_spec('smalldocs')), reason='the site needs smalldocs (Python 3.11 or newer) or Quarto')
def test_site_links_to_sources_and_colab(tree, tmp_path):
    "A page of each floor; tests/test_site.py looks at all pages, without an address."
    few = shutil.copytree(tree, tmp_path/'few')
    for path in (few/'nbs').glob('*/*.ipynb'):
        if path.name not in PAGES: path.unlink()
    tool(few, 'docs.py')
    assert len(list((few/'_docs').rglob('*.html'))) == len(PAGES)+2
    page = (few/'_docs'/'studies'/'toy.html').read_text(encoding='utf-8')
    assert f'href="{ADDRESS}/blob/main/influence_aug/studies/toy.py#L' in page and 'somebody/influence_aug/blob/main/nbs/studies/43_toy.ipynb"' in page
    for path in (few/'_docs').rglob('*.html'):
        page = path.read_text(encoding='utf-8')
        assert 'git clone' not in page and page.count('>Open in Colab<') == 1, path


def test_readme_keeps_no_installing_cell(tree):
    tool(tree, 'readme.py')
    text = (tree/'README.md').read_text(encoding='utf-8')
    assert 'blob/main/nbs/index.ipynb)' in text and 'git clone' not in text


def test_without_an_address_there_is_none(tree):
    settings = tree/'settings.ini'
    settings.write_text(settings.read_text(encoding='utf-8').replace(ADDRESS, ''), encoding='utf-8')
    tool(tree, 'colab.py')
    assert not any('colab' in text for text in notebooks(tree).values())


@pytest.mark.skipif(bool(address()), reason='this repository has an address')
def test_here_there_is_none(): assert not any('colab' in text for text in notebooks(ROOT).values())
