"""Do predicted effects of augmentations rank them as retraining does? MNIST, 600 labels, 17 candidates.

    python benchmarks/aug_rank.py retrain --seeds 0,1,2,3 --repeats 2   # F from scratch with every candidate: results/aug_rank_retrained.csv
    python benchmarks/aug_rank.py rank --seeds 0,1,2,3                  # predictions, joined with it: results/aug_rank.csv

Every image is augmented with probability 1/2. Predictions read half A of the validation set, retraining is judged on half B.
Both commands go on where they were stopped.
"""
import argparse
import functools
import time
from contextlib import redirect_stdout
from io import StringIO

import pandas as pd
import torch
from torchvision.transforms import v2

from influence_aug.data import append_row, draw_splits, mnist, read_results
from influence_aug.influence import Influence, per_image, rank_augmentations
from influence_aug.learner import Augment, TensorDL, train_classifier

CANDIDATES = {
    'shift 2 px':  v2.RandomAffine(0, translate=(2/28, 2/28)),
    'shift 5 px':  v2.RandomAffine(0, translate=(5/28, 5/28)),
    'rotate 10°':  v2.RandomRotation(10),
    'rotate 30°':  v2.RandomRotation(30),
    'rotate 90°':  v2.RandomRotation(90),
    'scale 20%':   v2.RandomAffine(0, scale=(.8, 1.2)),
    'scale 50%':   v2.RandomAffine(0, scale=(.5, 1.5)),
    'shear 15°':   v2.RandomAffine(0, shear=(-15, 15)),
    'shear 40°':   v2.RandomAffine(0, shear=(-40, 40)),
    'mirror':      v2.RandomHorizontalFlip(1.),
    'upside down': v2.RandomVerticalFlip(1.),
    'invert':      v2.RandomInvert(1.),
    'noise 0.1':   v2.GaussianNoise(sigma=.1),
    'noise 0.5':   v2.GaussianNoise(sigma=.5),
    'blur':        v2.GaussianBlur(5, sigma=(1., 2.)),
    'erase':       v2.RandomErasing(1.),
    'elastic':     v2.ElasticTransform(alpha=60., sigma=4.),
}
HARMLESS = ['shift 2 px', 'shift 5 px', 'rotate 10°', 'rotate 30°', 'scale 20%', 'scale 50%', 'shear 15°', 'shear 40°', 'elastic']
RETRAINED, RANKED, CHECKS = 'results/aug_rank_retrained.csv', 'results/aug_rank.csv', 'results/influence.csv'


@functools.cache
def source():
    with redirect_stdout(StringIO()): return mnist()


def trained(cbs, splits, seed, repeat):
    with redirect_stdout(StringIO()): return train_classifier(splits, cbs, seed=1000*seed+repeat)


def loss_on(learn, images): return learn.validate(dl=TensorDL(images, 500, device=learn.dls.device))[0]


def done(path, **key):
    try: old = read_results(path)
    except FileNotFoundError: return False
    for k, v in key.items(): old = old[old[k] == v]
    return len(old) > 0


def retrain(seed, repeats):
    "Train F on its own and with every candidate, `repeats` times; one row for each training."
    splits = draw_splits(source(), frac=.01, seed=seed)
    for repeat in range(repeats):
        for name in ['none', *CANDIDATES]:
            key = dict(dataset='mnist', seed=seed, candidate=name, repeat=repeat)
            if done(RETRAINED, **key): continue
            start = time.time()
            learn = trained([] if name == 'none' else [Augment(per_image(CANDIDATES[name]), .5)], splits, seed, repeat)
            append_row(RETRAINED, **key, loss=round(loss_on(learn, splits.watch), 6), command=f'python benchmarks/aug_rank.py retrain --seeds {seed} --repeats {repeats}', seconds=round(time.time()-start, 1))


def rank(seed):
    "Predictions from one F trained without augmentation, beside the mean change over all retrainings; one row for each candidate."
    if done(RANKED, dataset='mnist', seed=seed): return
    start, splits = time.time(), draw_splits(source(), frac=.01, seed=seed)
    loss = read_results(RETRAINED).query('seed == @seed').groupby('candidate').loss
    changes, repeats = loss.mean()-loss.mean()['none'], loss.count()
    model = trained([], splits, seed, 0).model
    table = rank_augmentations(model, splits.labelled, splits.steer, CANDIDATES, seed=seed).drop(columns='verdict').rename(columns=dict(low='refit_low', high='refit_high'))
    table['refit_half'] = rank_augmentations(model, splits.labelled, splits.steer, CANDIDATES, share=.5, seed=seed).predicted
    table['unfitted'] = unfitted(model, splits, seed)
    for name, row in table.iterrows():
        append_row(RANKED, dataset='mnist', seed=seed, candidate=name, predicted=row.predicted, actual=round(changes[name], 6), **row.drop('predicted').round(6), harmless=name in HARMLESS,
                   repeats=repeats[name], command=f'python benchmarks/aug_rank.py rank --seeds {seed}', seconds=round(time.time()-start, 1))


def unfitted(model, splits, seed):
    "First order at the head as training left it, damping 1e-2: what happens without the re-fit."
    infl = Influence(model, splits.labelled, splits.steer, refit=False).fit()
    x, y = splits.labelled.x.float()/255, splits.labelled.y
    torch.manual_seed(seed)
    return pd.Series({k: .1*infl.aug(x, y, per_image(f)(x)).mean().item() for k, f in CANDIDATES.items()})


def summarise(seeds):
    "Spearman correlations of predicted with actual, seed by seed and as a mean over the seeds that chose nothing (all but 0)."
    def spearman(t, column): return t[column].corr(t.actual, 'spearman')
    rows = []
    for seed, t in read_results(RANKED).groupby('seed'):
        for part, o in [('all', t), ('harmless', t[t.harmless])]:
            rows.append(dict(seed=seed, part=part, **{k: spearman(o, k) for k in ('predicted', 'first_order', 'refit_half', 'unfitted')}))
    table = pd.DataFrame(rows).pivot(index='seed', columns='part')
    print(table.round(3))
    for (kind, part), v in table[table.index > 0].mean().items():
        check = f'rank_{kind}_{part}'
        if done(CHECKS, check=check): continue
        append_row(CHECKS, check=check, value=round(v, 4), target='>= 0.85' if check == 'rank_predicted_all' else '', note=f'mean Spearman over seeds {[s for s in table.index if s > 0]}',
                   command=f'python benchmarks/aug_rank.py rank --seeds {seeds}')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['retrain', 'rank'])
    p.add_argument('--seeds', default='0,1,2,3')
    p.add_argument('--repeats', type=int, default=2)
    p.add_argument('--threads', type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    for seed in [int(s) for s in args.seeds.split(',')]: retrain(seed, args.repeats) if args.what == 'retrain' else rank(seed)
    if args.what == 'rank': summarise(args.seeds)


if __name__ == '__main__': main()
