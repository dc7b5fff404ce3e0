"""What a GPU is wanted for, the most valuable part first, within some minutes. `python benchmarks/gpu.py --minutes 9`; the same command goes on.

1. `tests`: tests/test_device.py on it.  2. `steps`: training steps of ResNet-56 in several ways.  3. `speed`: F, G, E and `Influence` there and
on the processor beside it.  4. `rows`: Table 2 at the paper's scale, one row a finished run.  A part that is finished is noted in OUT/done.txt and
is not begun again; what it printed is in OUT/PART.log. Rows and figures go to OUT, by default results/: `--only rows` does one part alone.
"""
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from fastai.torch_core import default_device
from fastcore.script import call_parse

from augment import in_turn, seconds
from influence_aug.all import draw_splits, learn_augmenter, load_generator, train_classifier
from influence_aug.augment.generator import train_generator
from influence_aug.augment.policies import mirror
from influence_aug.augment.resnets import resnet, sgd
from influence_aug.core.data import Source
from influence_aug.influence.influence import Influence
from influence_aug.studies.results import append_rows
from resnets import pictures

SWEEP = "from influence_aug.studies.commands import ia_sweep; raise SystemExit(ia_sweep())"
PARTS = {
    'tests': ['-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', 'tests/test_device.py'],
    'steps': ['benchmarks/resnets.py', '--depth', '56', '--results', '{out}/speed.csv'],
    'speed': ['-c', 'import gpu; gpu.speed("{out}/speed.csv")'],
    'rows': ['-c', SWEEP, 'cifar10_paper', '--processes', '{processes}', '--results', '{out}/cifar10.csv'],
}


def works(large):
    "What is timed on the device that fastai takes: name ↦ a function that returns milliseconds."
    n, depth, few, many = (4000, 56, 10, 30) if large else (200, 8, 1, 2)
    splits = draw_splits(Source(pictures(2*n), pictures(n//2, 2*n), pictures(20, 3*n), crop_padding=4), n=n)
    how, device = dict(make_model=partial(resnet, depth=depth), opt_func=sgd(), bs=128, epochs=1), default_device()
    train = lambda s, cbs=None, **kw: train_classifier(s, cbs, **how | kw)
    model = train(splits, steps=2).model
    (x, y), tune = (((o.x.float()/255).to(device), o.y.to(device)) for o in (splits.labelled, splits.tune))
    E = lambda steps: learn_augmenter(splits, load_generator('cifar10'), steps=1, e_steps=steps, also=(mirror,), train=train)
    influence = lambda: Influence(model, (x, y), tune, params='head').fit().values(x, y).sum().item()
    def a_step(f):
        "What starting takes falls out."
        f(few)
        return 1e3*(seconds(lambda: f(many))-seconds(lambda: f(few)))/(many-few)
    return {f'a training step of ResNet-{depth}, 128 images': lambda: a_step(lambda k: train(splits, steps=k)),
            'a step of the game of G, 16 images': lambda: a_step(lambda k: train_generator(splits.unlabelled, steps=k, epochs=1)),
            'a step of E': lambda: a_step(E), f'influence through the head of {n} images': lambda: 1e3*in_turn(influence, rounds=2)[0]}


def speed(results='results/speed.csv', large=True):
    "Time the four works on the accelerator and on the processor beside it."
    default_device(True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else str(default_device())
    times = [{k: f() for k, f in works(large).items()}]
    default_device(False)
    times += [{k: f() for k, f in works(large).items()}]
    rows = [dict(what=f'on an accelerator: {k}', ours=round(o, 3), peer=round(times[1][k], 3), ratio=round(o/times[1][k], 3), unit='ms', n=1,
                 peer_name=f'{torch.get_num_threads()} CPU threads', machine=name, command='python benchmarks/gpu.py --only speed')
            for k, o in times[0].items()]
    append_rows(results, rows)
    print(pd.DataFrame(rows)[['what', 'ours', 'peer', 'ratio', 'peer_name', 'machine']].to_string(index=False), flush=True)


def run_part(part, out, processes, deadline):
    "Whether `part` was finished before the `deadline`, or is known to be."
    done = out/'done.txt'
    if done.exists() and part in done.read_text().split(): return True
    command = [sys.executable, *(o.replace('{out}', str(out)).replace('{processes}', str(processes)) for o in PARTS[part])]
    path = os.pathsep.join(['benchmarks', '.', os.environ.get('PYTHONPATH', '')])
    start, left = time.time(), deadline-time.time()
    if left < 5: return False
    print(f'{part}: at most {left:.0f} s', flush=True)
    with open(out/f'{part}.log', 'a') as log:
        run = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | dict(PYTHONPATH=path), start_new_session=True)
        try: code = run.wait(left)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # Its workers too
            code = 'no time left'
    print('\n'.join((out/f'{part}.log').read_text().splitlines()[-12:]), f'\n{part}: {code or "finished"}, {time.time()-start:.0f} s', flush=True)
    if not code: done.open('a').write(f'{part}\n')
    return not code


@call_parse
def main(minutes:float=9.,    # When to stop, at the latest
         out:str='results',   # Where rows, figures and logs go
         processes:int=4,     # Runs of Table 2 side by side on the device
         only:str=None):      # One part: tests, steps, speed or rows
    "Do what a GPU is wanted for, and stop in time."
    if not torch.accelerator.is_available(): raise SystemExit('PyTorch sees no accelerator here: python -c "import torch; print(torch.accelerator.is_available())"')
    if only and only not in PARTS: raise SystemExit(f'Unknown part {only!r}: expected one of {", ".join(PARTS)}.')
    folder, deadline = Path(out), time.time()+60*minutes
    folder.mkdir(parents=True, exist_ok=True)
    parts = [only] if only else list(PARTS)
    finished = [run_part(o, folder, processes, deadline) for o in parts]
    print({o: 'finished' if k else 'to be done' for o, k in zip(parts, finished)})
