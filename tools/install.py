"""Make .venv and install the library into it: `python tools/install.py [dev]`. Called by make; needs only Python itself."""
import os
import subprocess
import sys
try: from configparser import ConfigParser
except ImportError: sys.exit('This is Python 2; Python 3.10 or newer is needed. Try: make demo PYTHON=python3')

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, '.venv')
PIP_FAILED = '''
Installing failed; pip's own message stands above. Most often the package index cannot be reached. Check the network, or
tell pip about your index (pip config set global.index-url ..., or the environment variable PIP_INDEX_URL), then run make
again: it goes on from here.'''


def settings():
    config = ConfigParser(delimiters=['='])
    config.read(os.path.join(ROOT, 'settings.ini'), encoding='utf-8')
    return config['DEFAULT']


def check_python():
    need = settings()['min_python']
    if sys.version_info[:2] < tuple(int(n) for n in need.split('.')):
        sys.exit('influence_aug needs Python %s or newer; %s is %s.\nTry: make demo PYTHON=python3.11'
                 % (need, sys.executable, sys.version.split()[0]))


def run(*command, **kwargs): return subprocess.call(command, cwd=ROOT, **kwargs)


def main(kind):
    check_python()
    python = os.path.join(VENV, 'bin', 'python')
    if not os.path.exists(python):
        print('Making the environment .venv with Python ' + sys.version.split()[0], flush=True)
        if run(sys.executable, '-m', 'venv', VENV): sys.exit('Python could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv')
    what = '.[dev]' if kind == 'dev' else '.'
    print('Installing %s with pip. The first time this takes minutes: PyTorch is large.' % what, flush=True)
    if run(python, '-m', 'pip', 'install', '--quiet', '--no-compile', '--disable-pip-version-check', '--retries', '2', '--timeout', '30', '-e', what):
        sys.exit(PIP_FAILED)
    for stamp in {'demo', kind}: open(os.path.join(VENV, '.' + stamp), 'w').close()
    print('Installed.', flush=True)


if __name__ == '__main__': main('dev' if 'dev' in sys.argv[1:] else 'demo')
