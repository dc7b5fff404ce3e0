"""README.md is made from nbs/index.ipynb, and what it says can be run."""
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT/'README.md').read_text(encoding='utf-8')


def test_readme_is_what_the_index_makes():
    spec = importlib.util.spec_from_file_location('readme', ROOT/'tools'/'readme.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.readme() == README


def test_links_lead_somewhere():
    for target in re.findall(r'\]\((?!http|#)([^)]+)\)', README): assert (ROOT/target).exists(), target


def test_the_commands_exist():
    makefile = (ROOT/'Makefile').read_text()
    for target in re.findall(r"(?:`|^)make (\w+)", README, re.M): assert re.search(rf'^{target}:', makefile, re.M), target
