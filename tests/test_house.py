"""How the house is built: arrows go one way, data sets have one place, cells and lines are short, what is public is documented."""
import ast
import importlib
import inspect
import json
import re
import sys
import tokenize
from pathlib import Path

import pytest
from fastcore.docments import docments

ROOT = Path(__file__).parents[1]
PACKAGE, NBS = ROOT/'influence_aug', ROOT/'nbs'
FLOORS = ['core', 'influence', 'augment', 'studies']
NOTEBOOKS = {p: json.loads(p.read_text(encoding='utf-8')) for p in sorted(NBS.rglob('*.ipynb'), key=lambda p: p.name) if '.ipynb_checkpoints' not in str(p)}
sources = lambda nb: [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']


def module_of(path):
    "core.data for nbs/core/01_data.ipynb; None for a notebook that exports nothing."
    return next((m[1] for s in sources(NOTEBOOKS[path]) if (m := re.match(r'#\| default_exp (\S+)', s))), None)


ROOMS = [m for m in map(module_of, NOTEBOOKS) if m]
FILES = {m: PACKAGE/(m.replace('.', '/')+'.py') for m in ROOMS}
IDS = [p.stem for p in NOTEBOOKS]


def place(module):
    "Where a module stands: floor, then the number of its notebook."
    floor = module.split('.')[0]
    return (FLOORS.index(floor) if floor in FLOORS else len(FLOORS)), ROOMS.index(module)


def imported(file):
    "Modules of this package that `file` imports, as core.data."
    here = file.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name.removeprefix('influence_aug.') for a in node.names if a.name.startswith('influence_aug.'))
        if isinstance(node, ast.ImportFrom):
            if node.level: yield '.'.join([*here[:len(here)-node.level+1], *(node.module or '').split('.')]).strip('.')
            elif (node.module or '').startswith('influence_aug.'): yield node.module.removeprefix('influence_aug.')


@pytest.mark.parametrize('module', ROOMS)
def test_arrows_go_one_way(module):
    "A room imports from floors below, and from earlier rooms of its own floor; never nbdev."
    for other in imported(FILES[module]): assert place(other) < place(module), f'{module} imports {other}'
    assert not re.search(r'^\s*(from|import) (nbdev|execnb)', FILES[module].read_text(encoding='utf-8'), re.M)


def test_an_arrow_back_is_found(tmp_path):
    (tmp_path/'x.py').write_text('from influence_aug.studies.mnist import *')
    names = [node.module.removeprefix('influence_aug.') for node in ast.walk(ast.parse((tmp_path/'x.py').read_text())) if isinstance(node, ast.ImportFrom)]
    assert place(names[0]) > place('core.data')


@pytest.mark.parametrize('module', [m for m in ROOMS if not m.startswith('studies.') and m not in ('core.datasets', 'all')])
def test_the_library_names_no_data_set_and_no_size(module):
    with open(FILES[module], 'rb') as f:
        for t in tokenize.tokenize(f.readline):
            if t.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT): assert not re.search('mnist|cifar|digit', t.string.replace('../nbs', ''), re.I), (t.start, t.string[:80])
            if t.type == tokenize.NUMBER: assert t.string not in ('28', '784', '3136'), t.start


@pytest.mark.parametrize('module', ROOMS)
def test_lines_are_readable(module):
    text = FILES[module].read_text(encoding='utf-8')
    text = re.sub(r'^__all__ = \[.*?\]$', lambda m: '\n'*m[0].count('\n'), text, flags=re.M | re.S)
    for i, line in enumerate(text.splitlines(), 1): assert len(line) <= 120, f'{module}:{i} has {len(line)} characters'


def code_lines(source):
    "Lines of a cell without directives, imports, blank ones, documented arguments and the rest of a docstring."
    source = re.sub(r'"""(?:[^"]|"(?!""))*"""', '""', source)
    lines = [o for o in source.splitlines() if o.strip() and not o.startswith(('#|', 'import ', 'from '))]
    return [o for o in lines if not re.match(r'\s+[*\w][^#()]*(=[^#]*)?,?\s+# \S', o)]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=IDS)
def test_cells_are_short(path):
    long = [(len(code_lines(s)), s[:70]) for s in sources(NOTEBOOKS[path]) if len(code_lines(s)) > 12]
    assert not long, long


@pytest.mark.parametrize('path', NOTEBOOKS, ids=IDS)
def test_one_definition_a_cell(path):
    for s in sources(NOTEBOOKS[path]):
        if not s.startswith('#| export'): continue
        body = ast.parse(s).body
        defined = [o.name for o in body if isinstance(o, (ast.FunctionDef, ast.ClassDef))]
        assert len(defined) <= 1 and (not defined or len(body) == 1), (path.name, defined)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=IDS)
def test_notebooks_are_not_too_long(path):
    exported = [o for s in sources(NOTEBOOKS[path]) if s.startswith('#| export') for o in s.splitlines() if o.strip() and not o.startswith('#|')]
    assert len(exported) <= 280, len(exported)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=IDS)
def test_notebooks_begin_with_a_title_a_line_and_a_question(path):
    first = ''.join(NOTEBOOKS[path]['cells'][0]['source'])
    assert re.match(r'# \S[^\n]*\n\n> \S[^\n]*\n\n', first) and '?*' in first, first[:200]


@pytest.mark.parametrize('module', ROOMS)
def test_what_is_public_is_documented(module):
    "Everything `import *` gives has a one-line docstring; arguments of functions and classes are told."
    mod = importlib.import_module('influence_aug.'+module)
    for name in getattr(mod, '__all__', []):
        o = getattr(mod, name)
        if not (inspect.isfunction(o) or inspect.isclass(o)) or not o.__module__.startswith('influence_aug'): continue
        assert o.__doc__ and '\n' not in o.__doc__.strip(), f'{module}.{name} has no docstring of one line'
        many = {k for k, p in inspect.signature(o).parameters.items() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        known = docments(o.__init__ if inspect.isclass(o) and '__init__' in vars(o) and not hasattr(o, '__dataclass_fields__') else o, returns=False)
        silent = [k for k, v in known.items() if not v and k not in {'self', 'cls', 'args', 'kwargs'} | many]
        assert not silent, f'{module}.{name} says nothing about {silent}'


def test_star_imports_give_no_plumbing():
    for module in ROOMS:
        names = getattr(importlib.import_module('influence_aug.'+module), '__all__', [])
        assert not [n for n in names if re.match('_|check_', n)], module
