"""What does `aug_find` cost beside training, and how does that grow? Replaces its rows in results/find_speed.csv.

    python benchmarks/find.py [--threads 2] [--n 600 6000 60000] [--candidates 30]

MNIST, the small CNN and the first of the default candidates, 2,000 validation images; each number of training images in a process of its
own. Retraining is one training of 600 steps, as in all tables, once for each candidate and once without any.
"""
import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from influence_aug.all import *
from influence_aug.augment.candidates import *
from influence_aug.augment.classifier import train_classifier
from influence_aug.core.data import Images
from influence_aug.core.datasets import get_source
from influence_aug.core.display import Quiet
from influence_aug.studies.results import append_rows


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def one(n, candidates, threads):
    "Row of `n` training images: seconds of one training, seconds of `aug_find`, peak MiB before and after it."
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    source = get_source('mnist')
    pool = torch.cat([source.pool.x, source.valid.x]), torch.cat([source.pool.y, source.valid.y])
    valid = source.test[torch.arange(2000)]
    order = torch.randperm(len(pool[1]), generator=torch.Generator().manual_seed(0))[:n]
    train = Images(pool[0][order], pool[1][order], valid.vocab)
    splits = draw_splits(source, n=600)
    start = time.time()
    learn = train_classifier(splits, [Quiet()])
    training = time.time()-start
    asked = dict(list(flat_candidates(default_candidates(1, 28)).items())[:candidates])
    before, start = peak(), time.time()
    found = learn.aug_find({k: f for k, (_, _, f) in asked.items()}, train, valid, show_plot=False)
    seconds = time.time()-start
    return dict(n=len(train), candidates=len(found.table), seconds=round(seconds, 2), retraining=round((len(found.table)+1)*training, 1),
                ratio=round(seconds/training/(len(found.table)+1), 4), peak_before_mib=round(before), peak_mib=round(peak()))


def drop(results, command):
    "Take the rows of `command` out of the file, if it is there."
    if not Path(results).exists(): return
    old = pd.read_csv(results)
    old[old.command != command].to_csv(results, index=False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, nargs='+', default=[600, 6000, 60000])
    p.add_argument('--candidates', type=int, default=30)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--results', default='results/find_speed.csv')
    p.add_argument('--one', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    command = f'python benchmarks/find.py --n {a.n[0]} --candidates {a.candidates} --threads {a.threads}'
    if a.one:
        row = one(a.n[0], a.candidates, a.threads)
        drop(a.results, command)
        append_rows(a.results, [row | dict(machine=f'{a.threads} CPU thread'+'s'*(a.threads > 1), command=command)])
        return print(row)
    for n in a.n: subprocess.run([sys.executable, __file__, '--one', '--n', str(n), '--candidates', str(a.candidates), '--threads', str(a.threads), '--results', a.results], check=True)
    print(pd.read_csv(a.results).drop(columns=['command', 'version']).to_string(index=False))


if __name__ == '__main__': main()
