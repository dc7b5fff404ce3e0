"""What does a label pay for each range of an affine map? `python benchmarks/ranges.py` writes results/ranges.csv.

A classifier with 12,000 labels and a crop judges the 5,000 validation digits of full MNIST under affine maps of many ranges, and
under the package's G: label keeping in percent, and diversity in pixels. Rows that are there already are not run again, so delete those
of G when there is a new one. About four minutes on one thread.
"""
from functools import partial

import torch
from fastcore.script import call_parse
from fastprogress import progress_bar

from influence_aug.data import *
from influence_aug.estimator import load_generator
from influence_aug.mnist import has_row
from influence_aug.quality import *
from influence_aug.transforms import *
from influence_aug.wgan import *

SINGLE = dict(degrees=[5, 10, 15, 20, 30], scale=[.1, .15, .2, .3], shear=[5, 10, 15, 20, 30], shift=[.05, .1, .13, .15, .2])
MIXED = [(20, .2, 15, .1), (20, 0, 15, 0), (20, .2, 0, .1), (0, .2, 15, .1), (15, .15, 15, .1), (15, .1, 15, .12), (12, .12, 18, .13), (12, .15, 12, .14),
         (12, .12, 15, .15), (10, .1, 10, .1), (10, .15, 5, .13), (10, .15, 15, .14), (10, .1, 20, .14), (8, .15, 15, .15), (25, .25, 20, .12), (5, .05, 5, .05)]
KINDS = 'degrees', 'scale', 'shear', 'shift'


@call_parse
def main(
    results:str='results/ranges.csv', # Where the rows go
    judge_steps:int=1500,             # Training steps of the judge
    seed:int=0,                       # Draws everything
):
    "Label keeping and diversity of affine maps of many ranges, and of G."
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    source = mnist()
    judge = train_judge(source, steps=judge_steps, seed=seed).cpu()
    x, y = source.valid.x.float()/255, source.valid.y
    def row(name, change, flows, **ranges):
        if has_row(results, name=name, **ranges): return
        torch.manual_seed(seed)
        append_row(results, name=name, **ranges, keeping=round(keeping(change, judge, x, y), 3), diversity=round(diversity(flows), 3), seed=seed, n=len(y), command='python benchmarks/ranges.py')
    mixtures = [{k: bound if k == kind else 0 for k in KINDS} for kind, bounds in SINGLE.items() for bound in bounds] + [dict(zip(KINDS, o)) for o in MIXED]
    for ranges in progress_bar(mixtures):
        flows = partial(random_affine_flow, size=28, **ranges)
        row('affine', lambda x: warp(x, flows(len(x))), flows, **ranges)
    G = load_generator('mnist')
    with torch.no_grad():
        for draw in (tau_uniform, tau_tanh, tau_corners): row(f'G, {draw.__name__}', lambda x: G(x, draw(len(x)))[0], lambda n: G.spatial(draw(n)))
