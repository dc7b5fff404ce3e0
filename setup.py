"Reads settings.ini, the one list of names and requirements."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
listed = lambda key: cfg.get(key, '').split()
url = {'url': cfg['git_url']} if cfg.get('git_url') else {}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=listed('keywords'),
    author=cfg['author'], license='Apache-2.0', python_requires=f">={cfg['min_python']}",
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Programming Language :: Python :: 3'],
    packages=find_namespace_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*'], exclude=['*.__pycache__']),
    package_data={cfg['lib_path']: ['*.npz'], **{f"{cfg['lib_path']}.{o}": ['*.safetensors'] for o in ('generators','sequences')}},
    install_requires=listed('requirements'), extras_require={'dev': listed('dev_requirements')},
    entry_points={'console_scripts': listed('console_scripts'), 'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown', zip_safe=False, **url)
