"""Features that do not fit into 256 MiB: passes of the body, seconds, memory, and the same answer. Writes results/features_scale.csv.

    python benchmarks/features.py [--n 17000] [--d 2048]

Images of 3×16×16 random pixels, ten classes, a body of random ReLU features; each way in a process of its own, one thread.
"""
import argparse
import resource
import subprocess
import sys
import time
import warnings

import torch
from torch import nn

from influence_aug.influence.body import FeatureBatches
from influence_aug.influence.influence import Influence
from influence_aug.studies.results import append_rows

WAYS = {'in memory': 2**40, 'in a file': 256*1024**2}


class Counted(nn.Module):
    "Random ReLU features, and the number of images they were computed for."
    def __init__(self, d):
        super().__init__()
        self.layer, self.images = nn.Sequential(nn.Flatten(), nn.Linear(768, d), nn.ReLU()), 0
    def forward(self, x):
        self.images += len(x)
        return self.layer(x)


def images(n, seed):
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 10
    return torch.rand(n, 3, 16, 16, generator=rng)*(.5+.05*y.view(-1, 1, 1, 1)), y


def one(way, n, d):
    "Passes over the training images, seconds, peak MiB before and after, and the sum of squares and of s_val."
    torch.manual_seed(0)
    body, train, valid = Counted(d), images(n, 0), images(2000, 1)
    FeatureBatches.__init__.__defaults__ = (WAYS[way],)
    infl, start = Influence(nn.Sequential(body, nn.Linear(d, 10)), train, valid), time.time()
    before, body.images = peak(), 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        infl.fit()
    print(body.images/(n+2000), time.time()-start, before, peak(), infl.report.residual, infl.s.norm().item(), infl.s.sum().item())


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=17_000)
    p.add_argument('--d', type=int, default=2048)
    p.add_argument('--way', choices=WAYS, help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(1)
    if args.way: return one(args.way, args.n, args.d)
    for way in WAYS:
        out = subprocess.run([sys.executable, __file__, '--way', way, '--n', str(args.n), '--d', str(args.d)], capture_output=True, text=True, check=True).stdout
        names = 'passes', 'seconds', 'peak_before_mib', 'peak_mib', 'residual', 's_norm', 's_sum'
        row = dict(features=way, n=args.n, d=args.d, mib=round(args.n*args.d*8/2**20), **dict(zip(names, map(float, out.split()[-7:]))),
                   command='python benchmarks/features.py', machine='1 CPU thread')
        append_rows('results/features_scale.csv', [row])
        print(row, flush=True)


if __name__ == '__main__': main()
