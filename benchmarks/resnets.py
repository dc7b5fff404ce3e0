"""What makes a training step of a residual network faster, and what do a crop and a mirror cost it? `python benchmarks/resnets.py [--depth 56]`
replaces its rows in results/speed.csv.

Milliseconds for a step on 128 images of CIFAR-10's size, the least of five rounds in turn, by fastai's loop from bytes to weights,
on the device that fastai takes. Each way against the plain step: float32, weights as PyTorch lays them out.
"""
from pathlib import Path

import pandas as pd
import torch
from fastai.learner import Learner
from fastai.torch_core import default_device
from fastcore.script import call_parse
from torch.nn.functional import cross_entropy

from augment import in_turn
from influence_aug.augment.callbacks import with_crop
from influence_aug.augment.classifier import tensor_dls
from influence_aug.augment.policies import mirror
from influence_aug.augment.resnets import BFloat16, resnet, sgd
from influence_aug.core.data import Images
from influence_aug.core.display import Quiet
from influence_aug.studies.results import append_rows

BS, STEPS = 128, 10


def pictures(n, first=0):
    "Noise: a step takes as long. Ids from `first` on."
    return Images(torch.randint(256, (n, 3, 32, 32)).byte(), torch.arange(n) % 10, tuple('abcdefghij'), first+torch.arange(n))


def training(depth, *cbs, last=True, compiled=False):
    "A function that trains for some steps and validates ten images."
    model = resnet(3, 10, depth)
    if last: model = model.to(memory_format=torch.channels_last)
    if compiled: model.compile()
    learn = Learner(tensor_dls(pictures(4000), pictures(10), BS, STEPS), model, cross_entropy, opt_func=sgd(), cbs=[*cbs, Quiet()])
    def fit():
        learn.fit(1, 1e-3)
        if learn.dls.device.type == 'cuda': torch.cuda.synchronize()
    return fit


@call_parse
def main(results:str='results/speed.csv', # Where the rows go
         depth:int=20,                    # Of the network
         threads:int=1,                   # Of torch
         compiled:bool=False):            # Try torch.compile as well, which needs a C++ compiler
    "Time training steps of a residual network."
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    crop = lambda: with_crop(mirror, padding=4)
    ways = {'plain': training(depth, last=False), 'channels last': training(depth), 'bfloat16': training(depth, BFloat16(), last=False),
            'channels last, bfloat16': training(depth, BFloat16()), 'channels last, a mirror of half and a crop of all': training(depth, *crop()),
            'channels last, bfloat16, a mirror of half and a crop of all': training(depth, BFloat16(), *crop())}
    if compiled: ways['channels last, bfloat16, compiled'] = training(depth, BFloat16(), compiled=True)
    least = dict(zip(ways, in_turn(*ways.values())))
    peers = {k: 'channels last, bfloat16' if 'bfloat16, a' in k else 'channels last' if ', a mirror' in k else 'plain' for k in ways if k != 'plain'}
    command = f'python benchmarks/resnets.py --depth {depth} --threads {threads}'+' --compiled'*compiled
    machine = torch.cuda.get_device_name() if default_device().type == 'cuda' else f'{threads} CPU thread'+'s'*(threads > 1)
    rows = [dict(what=f'a training step of ResNet-{depth}: {k}', ours=round(1e3*least[k]/STEPS, 3), peer=round(1e3*least[p]/STEPS, 3),
                 ratio=round(least[k]/least[p], 3), unit='ms', n=BS, peer_name=f'a step, {p}') for k, p in peers.items()]
    if Path(results).exists():
        old = pd.read_csv(results)
        if old.command.eq(command).any(): old[~old.command.eq(command)].to_csv(results, index=False)
    append_rows(results, [o | dict(machine=machine, command=command) for o in rows])
    print(pd.DataFrame(rows).drop(columns='n').to_string(index=False))
