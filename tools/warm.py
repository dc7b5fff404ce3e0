"""Kernels that begin with fastai and others already imported: one process imports them once and forks for each notebook.

`with warm_kernels() as name:` gives the name of a kernel for nbclient. A kernel knows nothing else of another: what a notebook
defines, and the modules of this package, are its own. `python tools/warm.py serve SOCKET` is the process that forks, and
`python tools/warm.py start CONNECTION_FILE` asks it for a kernel and lives as long as that does.
"""
import builtins
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

AT = 'WARM_KERNELS'


@contextmanager
def warm_kernels():
    "The name of a kernel whose processes are forked; only inside the `with`."
    with tempfile.TemporaryDirectory() as folder:
        at, spec = Path(folder)/'socket', Path(folder)/'kernels'/'warm'/'kernel.json'
        spec.parent.mkdir(parents=True)
        argv = [sys.executable, __file__, 'start', '{connection_file}']
        spec.write_text(json.dumps(dict(argv=argv, display_name='warm', language='python', env={AT: str(at)})))
        before = os.environ.get('JUPYTER_PATH', '')
        os.environ['JUPYTER_PATH'] = os.pathsep.join([folder, *before.split(os.pathsep)]).rstrip(os.pathsep)
        server = subprocess.Popen([sys.executable, __file__, 'serve', str(at)])
        try:
            while not at.exists() and server.poll() is None: time.sleep(.1)
            yield 'warm'
        finally:
            server.kill()
            server.wait()
            os.environ['JUPYTER_PATH'] = before


def serve(at):
    """Import what takes long, for figures and progress bars as a kernel draws them; fork a kernel for each connection to `at`.

    On import fastcore and fastprogress ask `get_ipython` whether they are in a notebook."""
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'
    builtins.get_ipython = type('ZMQInteractiveShell', (), {})
    import fastai.vision.all, ipykernel.kernelapp, matplotlib.pyplot, pandas, scipy.stats, sklearn.model_selection, torchvision.transforms.v2  # noqa: F401
    del builtins.get_ipython
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(at+'.new')
        s.listen(8)
        os.rename(at+'.new', at)
        while True:
            asking, _ = s.accept()
            if os.fork() == 0: become_kernel(s, asking)
            asking.close()


def become_kernel(listening, asking):
    "Be the kernel that `asking` wants, until it or the one that asked ends."
    listening.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told = json.loads(asking.makefile().readline())
    os.chdir(told['cwd'])
    os.environ.clear()
    os.environ.update(told['env'])
    threading.Thread(target=lambda: asking.recv(1) or os._exit(0), daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp
    IPKernelApp.launch_instance(['-f', told['file'], '--log-level=ERROR'], parent_handle=os.getppid())
    os._exit(0)


def start(file):
    "Ask for a kernel, and end when it does."
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ[AT])
        s.sendall((json.dumps(dict(file=file, cwd=os.getcwd(), env=dict(os.environ)))+'\n').encode())
        s.recv(1)


if __name__ == '__main__': dict(serve=serve, start=start)[sys.argv[1]](sys.argv[2])
