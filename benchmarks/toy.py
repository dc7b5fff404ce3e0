"""Figure 3 in numbers: both toy sets for twenty seeds, one row a measure in results/toy.csv.

    python benchmarks/toy.py               # seeds 0 to 19, two processes of one thread; runs that are there already are left out
    python benchmarks/toy.py --first 20 --seeds 10 --results results/toy_fresh.csv   # seeds nobody had looked at

`row` is 1 or 2 as in the figure; ratios are after/before, gains in percentage points, `angle_deg` is 0 straight down. `_free` means E without a
cost for pushes. Every classifier is trained to a gradient norm of 1e-8 in float64; `after` is trained from its first initial weights.
"""
import argparse
import functools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import torch

from influence_aug.data import append_row, read_results
from influence_aug.toy import learn_translation, misread_set, moved_set, toy_measures

SETS = {1: misread_set, 2: moved_set}
FREE = ('angle_deg', 'valid_loss_ratio')


def done(results):
    "Measures on record for each (row, seed)."
    if not Path(results).exists(): return {}
    return {k: set(o.measure) for k, o in read_results(results).groupby(['row', 'seed'])}


def run(job, rounds, points, results, command):
    "Learn with and without a cost, append what is not on record."
    row, seed = job
    torch.set_num_threads(1)
    start, toy = time.time(), SETS[row](seed)
    with open(os.devnull, 'w') as nowhere, redirect_stdout(nowhere):
        learned = learn_translation(toy, rounds, seed=seed)
        measures = dict(seconds_to_learn=time.time()-start, **toy_measures(learned, points))
        free = toy_measures(learn_translation(toy, rounds, cost=0., seed=seed), points=2)
    measures |= {f'{k}_free': free[k] for k in FREE}
    there = done(results).get(job, set())
    for k, v in measures.items():
        if k not in there: append_row(results, row=row, seed=seed, measure=k, value=f'{v:.6g}', machine='1 CPU thread', command=command, seconds=f'{time.time()-start:.1f}')
    return f'row {row}, seed {seed}: validation loss ×{measures["valid_loss_ratio"]:.2f}, {time.time()-start:.0f} s'


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=20)
    p.add_argument('--first', type=int, default=0, help='first seed')
    p.add_argument('--rounds', type=int, default=40)
    p.add_argument('--points', type=int, default=40, help='single points that are moved')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--results', default='results/toy.csv')
    args = p.parse_args()
    finished = {k for k, measures in done(args.results).items() if f'{FREE[-1]}_free' in measures}
    jobs = [(row, seed) for seed in range(args.first, args.first+args.seeds) for row in SETS if (row, seed) not in finished]
    if len(jobs) < args.seeds*len(SETS): print(f'{args.seeds*len(SETS)-len(jobs)} runs are there already')
    command = f'python benchmarks/toy.py --first {args.first} --seeds {args.seeds} --rounds {args.rounds} --results {args.results}'
    with ProcessPoolExecutor(args.workers, mp_context=get_context('spawn')) as pool:
        for line in pool.map(functools.partial(run, rounds=args.rounds, points=args.points, results=args.results, command=command), jobs): print(line, flush=True)


if __name__ == '__main__': main()
