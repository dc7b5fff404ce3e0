"""Each notebook says how to open it in Colab, where it installs the library first: if, and only if, `git_url` in settings.ini is set to a
GitHub address. `make notebooks` calls this; `python tools/colab.py` does it alone, after the address has changed."""
import json
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = 'colab'


def cells(cfg, name):
    "The two cells for notebook `name`: a link, and what Colab has to do before the first import."
    url = cfg.get('git_url', '').rstrip('/').removesuffix('.git')
    if 'github.com/' not in url: return []
    link = f"[Open in Colab](https://colab.research.google.com/github/{url.split('github.com/')[1]}/blob/{cfg['branch']}/nbs/{name}.ipynb)"
    here = f"/content/{cfg['repo']}"
    install = f"#| hide\n![ ! -e /content ] || [ -e {here} ] || (git clone -q -b {cfg['branch']} {url} {here} && pip install -q -e {here})\nimport os, sys\nif os.path.exists('{here}'): os.chdir('{here}/{Path('nbs', name).parent}'); sys.path.insert(0, '{here}')"
    return [dict(cell_type='markdown', id=f'{MARK}-link', metadata={}, source=[link]),
            dict(cell_type='code', execution_count=None, id=f'{MARK}-install', metadata={}, outputs=[], source=install.splitlines(True))]


def main():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    for path in sorted((ROOT/'nbs').rglob('*.ipynb')):
        nb = json.loads(path.read_text(encoding='utf-8'))
        before, kept = nb['cells'], [c for c in nb['cells'] if not c['id'].startswith(f'{MARK}-')]
        nb['cells'] = kept[:1] + cells(config['DEFAULT'], path.relative_to(ROOT/'nbs').with_suffix('').as_posix()) + kept[1:]
        if nb['cells'] != before: path.write_text(json.dumps(nb, ensure_ascii=False, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
