"""What does augmentation cost a training step? `python benchmarks/augment.py` replaces its rows in results/speed.csv.

Milliseconds, the least of five rounds in turn. First whole training steps of the small CNN on 64 digits against a plain step; then 128
images alone: the bank against G, transforms in one call against torchvision image by image, and torchvision's and kornia's RandAugment.
Diversity and label keeping of the bank stand beside those of G itself.
"""
import time

import kornia
import pandas as pd
import torch
import torchvision
from fastai.learner import Learner
from fastcore.script import call_parse
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from influence_aug.all import *
from influence_aug.augment.augmenter import StochasticEstimator
from influence_aug.augment.callbacks import with_crop
from influence_aug.augment.classifier import small_cnn, tensor_dls
from influence_aug.augment.policies import *
from influence_aug.core.batched import batched
from influence_aug.core.display import Quiet
from influence_aug.core.policy import per_image
from influence_aug.studies.quality import diversity, label_keeping, train_judge
from influence_aug.studies.results import append_rows

COMMAND = 'python benchmarks/augment.py'


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter()-start


def in_turn(*fs, rounds=5):
    "Least seconds of each of `fs`, after one call that is not counted."
    for f in fs: f()
    return [min(o) for o in zip(*([seconds(f) for f in fs] for _ in range(rounds)))]


def training(splits, *cbs, steps=20):
    "A function that trains for `steps` steps of 64 and validates ten images."
    few = splits.holdout[torch.arange(10)]
    learn = Learner(tensor_dls(splits.labelled, few, 64, steps), small_cnn(1, 10), cross_entropy, cbs=[*cbs, Quiet()])
    return lambda: learn.fit(1, 1e-3)


def steps_table(splits, G, bank, E):
    "(What, milliseconds a step, a plain step's)."
    ways = {'random τ, half of the images, from a bank': [Augment(bank)], 'random τ, half of the images, from G': [Augment(random_tau(G))],
            'random τ from a bank, then a crop of all': with_crop(bank), 'a crop of all': with_crop(),
            "E's path, half of the images": [Augment(Augmenter(G, E))],
            'MaxUp of four, from a bank': [MaxUp(bank)], 'MaxUp of four, from G': [MaxUp(random_tau(G))]}
    plain, *others = in_turn(training(splits), *(training(splits, *o) for o in ways.values()))
    return [(f'a training step: {k}', 1e3*o/20, 1e3*plain/20, 'a plain step', 64) for k, o in zip(ways, others)]


def batch_table(x, G, bank):
    "(What, milliseconds, the peer's, the peer)."
    each = lambda f: lambda: per_image(f)(x)
    size, byte = x.shape[-1], (255*x).byte()
    pairs = {'random τ': (lambda: bank(x), lambda: random_tau(G)(x).detach(), 'G for each image')}
    for f in (v2.RandomAffine(15, (.1, .1), (.9, 1.1), 10), v2.RandomRotation(15), v2.RandomPerspective(p=1.), v2.ElasticTransform(),
              v2.RandomCrop(size, 4), v2.RandomHorizontalFlip(), v2.GaussianBlur(5)):
        pairs[f'v2.{type(f).__name__}'] = (lambda f=f: batched(f)(x), each(f), f'torchvision {torchvision.__version__}, image by image')
    theirs = kornia.augmentation.auto.RandAugment(2, 9)
    pairs['random τ '] = (lambda: bank(x), lambda: [v2.RandAugment()(o) for o in byte], "torchvision's RandAugment, image by image")
    pairs['random τ  '] = (lambda: bank(x), lambda: theirs(x.expand(-1, 3, -1, -1)),
                            "kornia's RandAugment, the same operations for all")
    rows = []
    for what, (ours, peer, name) in pairs.items():
        a, b = in_turn(ours, peer)
        rows.append((f'{what.strip()}, 128 images of {size} pixels', 1e3*a, 1e3*b, name, len(x)))
    return rows


def quality_table(source, G, bank):
    "(What, of the bank, of G): labels kept in percent by a judge, and diversity of the flows in pixels."
    judge = train_judge(source, n=5000, steps=600).cpu()
    x, y = source.valid.x.float()/255, source.valid.y
    torch.manual_seed(0)
    kept = [label_keeping(f, judge, x, y) for f in (bank, random_tau(G))]
    with torch.no_grad(): flows = [diversity(lambda n: bank.held[0][torch.randint(bank.size, (n,))]),
                                   diversity(lambda n: G.spatial(torch.randn(n, G.config['n_tau']).tanh()))]
    return [('labels kept under random τ from the bank', *kept, '%', len(x)), ('diversity of its flows', *flows, 'pixels', 4000)]


@call_parse
def main(results:str='results/speed.csv', # Where the rows go
         threads:int=1):                  # Of torch
    "Time augmentations, and training steps with them."
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    source, G = mnist_sample(), load_generator('mnist')
    splits, bank, command = draw_splits(source, frac=.01), RandomTauBank(G), f'{COMMAND} --threads {threads}'
    with torch.no_grad(): timed = batch_table(source.pool.x[:128].float()/255, G, bank)
    timed = steps_table(splits, G, bank, StochasticEstimator)+timed
    rows = [dict(what=w, ours=round(a, 3), peer=round(b, 3), ratio=round(a/b, 3), unit='ms', n=n, peer_name=p) for w, a, b, p, n in timed]
    measured = quality_table(source, G, bank)
    rows += [dict(what=w, ours=round(a, 3), peer=round(b, 3), ratio=round(a/b, 3), unit=u, n=n, peer_name='G for each image')
             for w, a, b, u, n in measured]
    old = pd.read_csv(results)
    if old.command.eq(command).any(): old[~old.command.eq(command)].to_csv(results, index=False)
    append_rows(results, [o | dict(machine=f'{threads} CPU thread'+'s'*(threads>1), command=command) for o in rows])
    print(pd.DataFrame(rows).drop(columns='n').to_string(index=False))
