"""What does one step of the game cost? `python benchmarks/wgan.py` replaces its rows in results/speed.csv.

Milliseconds for a whole step (three steps of both critics and one of G, 16 digits each), with one choice changed at a time:
`ours` is the choice of this library, `peer` the other one.
"""
import time

import pandas as pd
import torch
from fastcore.script import call_parse

from influence_aug.augment.augmenter import load_generator
from influence_aug.augment.wgan import *
from influence_aug.core.datasets import mnist_sample
from influence_aug.studies.results import append_rows

COMMAND = 'python benchmarks/wgan.py'


def game(penalty_every=2, layout=torch.channels_last, n_critic=3, bs=16, threads=1, flush=True, steps=24):
    "Mean milliseconds of `steps` steps of the game."
    torch.set_num_threads(threads)
    torch.set_flush_denormal(flush)
    torch.manual_seed(0)
    G, critics = load_generator('mnist'), [critic(1, 28), critic(2, 28)]
    x = mnist_sample().valid.x[:bs].float()/255
    for m in (G, *critics): m.to(memory_format=layout)
    opts = [torch.optim.Adam(o.parameters(), 5e-4, betas=(.5, .9)) for o in critics]
    G_opt, k = torch.optim.Adam(G.parameters(), 5e-4, betas=(.5, .9)), 0
    for step in range(4+steps):
        if step == 4: start = time.perf_counter()
        for _ in range(n_critic):
            k += 1
            critics_step(G, *critics, opts, x, penalty_weight=0. if k % penalty_every else 10.*penalty_every)
        loss = generator_loss(*critics, x, *G(x, tau_tanh(bs)))
        G_opt.zero_grad(); loss.backward(); G_opt.step()
    return 1e3*(time.perf_counter()-start)/steps


CHOICES = {'a penalty in every second critic step': ('a penalty in each', dict(penalty_every=1)),
           'channels last': ('channels first', dict(layout=torch.contiguous_format)),
           'three critic steps': ('two critic steps', dict(n_critic=2)),
           'batches of 16': ('batches of 32', dict(bs=32)),
           'denormals flushed': ('denormals kept', dict(flush=False)),
           'one thread': ('two threads', dict(threads=2)),
           'penalty and layout together': ('a penalty in each critic step, channels first',
                                           dict(penalty_every=1, layout=torch.contiguous_format))}


@call_parse
def main(results:str='results/speed.csv'): # Where the rows go
    "Time a step of the game under each choice."
    old = pd.read_csv(results)
    if old.command.eq(COMMAND).any(): old[~old.command.eq(COMMAND)].to_csv(results, index=False)
    for what, (peer_name, peer) in CHOICES.items():
        ours, theirs = (min(f() for _ in range(2)) for f in (game, lambda: game(**peer)))
        machine = '1 CPU thread' if 'thread' not in what else '1 or 2 CPU threads'
        append_rows(results, [dict(what=f'a step of the game: {what}', ours=round(ours, 1), peer=round(theirs, 1),
                                   ratio=round(ours/theirs, 3), unit='ms', n=16, peer_name=peer_name, machine=machine,
                                   command=COMMAND)])
        print(f'{what:40}{ours:8.1f}   {peer_name:50}{theirs:8.1f}   {ours/theirs:.2f}')
