"""Single samples through training: predictions against retraining without some, with the same seeds and batches.

    python benchmarks/training.py retrain smooth   # train without each of 40 random twentieths; resumable
    python benchmarks/training.py retrain f
    python benchmarks/training.py score smooth     # every method, one row each in results/training_lds.csv
    python benchmarks/training.py score f

600 digits (seed 0). `smooth` is a small CNN with GroupNorm, GELU and average pooling under SGD with a highest learning rate
of 0.01, taken for its score on the first 16 sets; `smooth_0.02` and `smooth_0.1` are the same with higher ones; `f` is the
project's F under Adam, as it stands. A method's value of a sample is the change of the loss of 500 validation images that it
predicts if the sample is left out; LDS is Spearman's correlation, over the 40 sets, of the sum of values with the change by retraining.
Peers (dattri's TRAK and TracIn, captum's TracIn, kronfluence's EK-FAC) are measured if they are installed.
"""
import argparse
import sys
import time
from copy import deepcopy

import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import nn

from influence_aug.augment.classifier import small_cnn
from influence_aug.core.batches import Batches
from influence_aug.core.data import draw_splits
from influence_aug.core.datasets import mnist
from influence_aug.influence.influence import Influence
from influence_aug.influence.mixture import mixture_training
from influence_aug.influence.rules import sgd
from influence_aug.influence.smoothness import leaving, trained_with
from influence_aug.influence.training import Backward, States
from influence_aug.studies.results import append_rows, has_row, read_results

RETRAINED, SCORES = 'results/training_lds_retrained.csv', 'results/training_lds.csv'
SETS, PART = 40, 20


def command(): return 'python benchmarks/training.py '+' '.join(sys.argv[1:])


def data():
    s = draw_splits(mnist(), frac=.01, seed=0)
    (x, y), (u, v) = ((o.x.float()/255, o.y) for o in (s.labelled, s.tune))
    i = torch.randperm(len(v), generator=torch.Generator().manual_seed(0))[:500]
    return (x, y), (u[i], v[i])


def smooth_net():
    return nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.GroupNorm(2, 8), nn.GELU(), nn.AvgPool2d(2),
                         nn.Conv2d(8, 16, 3, 1, 1), nn.GroupNorm(2, 16), nn.GELU(), nn.AvgPool2d(2),
                         nn.Flatten(), nn.Linear(144, 10))


def smooth(lr): return smooth_net, dict(rule=sgd(.9), lr=lr, steps=300, bs=100)


SETTINGS = {'smooth': smooth(.01), 'smooth_0.02': smooth(.02), 'smooth_0.1': smooth(.1), 'f': (lambda: small_cnn(1, 10), {})}


def setting(name, train):
    torch.manual_seed(0)
    make, how = SETTINGS[name]
    model = make()
    training = mixture_training(model, Batches(train), {}, [1.], fresh=False, **how)
    return training, training.batch.images


def left_out(k, n): return torch.randperm(n, generator=torch.Generator().manual_seed(1000+k))[:n//PART]


def loss_without(training, order, gone, x, valid):
    v = leaving(order, gone)
    return training.final(trained_with(training, lambda t: 1+v(t)), x, valid)[0]


def retrain(name):
    (x, y), valid = data()
    training, order = setting(name, (x, y))
    for k in [-1, *range(SETS)]:
        if has_row(RETRAINED, setting=name, left_out=k): continue
        start = time.time()
        gone = left_out(k, len(y)) if k >= 0 else torch.tensor([], dtype=torch.long)
        loss = loss_without(training, order, gone, x, valid)
        append_rows(RETRAINED, [dict(setting=name, left_out=k, loss=f'{loss:.8g}', command=command(), seconds=round(time.time()-start, 1))])
        print(name, k, f'{loss:.5f}', flush=True)


def through(training, states, order, x, valid, n):
    "Minus the derivative in the sample's weight at all of its steps."
    gradient = training.final(states[len(training)][0], x, valid)[1]
    found, total = Backward(states, gradient).run().weights, torch.zeros(n)
    for t, w in found.items(): total.index_add_(0, order[t], w)
    return -total


def trained(training, states, x):
    "The module at the end, BatchNorm with the statistics of the training images."
    model = training.model
    nn.utils.vector_to_parameters(states[len(training)][0], model.parameters())
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = None; m.reset_running_stats()
    with torch.no_grad(): model.train()(x)
    return model.eval()


def by_head(model, train, valid): return Influence(model, train, valid).fit().change_if_removed(*train)


def loaders(train, valid): return (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*o), 100) for o in (train, valid))


def single_loss(model, probability=False):
    def f(params, pair):
        x, y = pair
        l = F.cross_entropy(torch.func.functional_call(model, params, x[None]), y[None])
        return torch.exp(-l) if probability else l
    return f


def by_trak(model, train, valid):
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask
    def logit(params, pair):
        p = single_loss(model, True)(params, pair)
        return torch.log(p+1e-6)-torch.log(1-p+1e-6)
    task = AttributionTask(logit, model, [model.state_dict()])
    found = TRAKAttributor(task, single_loss(model, True), projector_kwargs=dict(proj_dim=2048, device='cpu'))
    loader, other = loaders(train, valid)
    with torch.no_grad():
        found.cache(loader)
        return found.attribute(other).sum(1)/len(valid[1])


def quarters(training): return [int(len(training)*q) for q in (.25, .5, .75, 1.)]


def by_tracin(training, states, train, valid, model):
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask
    T, at = len(training), quarters(training)
    def state(t):
        parts = training.flat.parts(states[t][0])
        return {**model.state_dict(), **{k: o.detach() for k, o in parts.items()}}
    task = AttributionTask(single_loss(model), model, [state(t) for t in at])
    lr = torch.tensor([training.lrs[min(t, T-1)] for t in at])*T/len(at)
    found = TracInAttributor(task, weight_list=lr, normalized_grad=False, device='cpu')
    return found.attribute(*loaders(train, valid)).mean(1)


def by_captum_tracin(training, states, train, valid, model):
    from captum.influence import TracInCP
    at = quarters(training)
    def load(m, t):
        with torch.no_grad(): nn.utils.vector_to_parameters(states[t][0], m.parameters())
        return training.lrs[min(t, len(training)-1)]*len(training)/len(at)
    found = TracInCP(deepcopy(model), torch.utils.data.TensorDataset(*train), at, load,
                     loss_fn=nn.CrossEntropyLoss(reduction='sum'), batch_size=100, sample_wise_grads_per_batch=True)
    return found.influence(valid).mean(0)


def by_ekfac(model, train, valid):
    from tempfile import TemporaryDirectory
    from influence import values_kronfluence
    with TemporaryDirectory() as folder: return values_kronfluence(deepcopy(model), train, valid, folder)


def score(name):
    (x, y), valid = data()
    rows = read_results(RETRAINED).query('setting==@name').set_index('left_out').loss
    training, order = setting(name, (x, y))
    states = States(training)
    values = {'through training': timed(lambda: through(training, states, order, x, valid, len(y)))}
    model = trained(training, states, x)
    rest = {'head influence': lambda: by_head(model, (x, y), valid), 'EK-FAC (kronfluence)': lambda: by_ekfac(model, (x, y), valid),
            'TRAK (dattri)': lambda: by_trak(model, (x, y), valid), 'TracIn (dattri)': lambda: by_tracin(training, states, (x, y), valid, model),
            'TracIn (captum)': lambda: by_captum_tracin(training, states, (x, y), valid, model)}
    for k, f in rest.items():
        try: values[k] = timed(f)
        except ImportError as e: print(f'{k} is not installed ({e})')
    sets = [left_out(k, len(y)) for k in range(SETS)]
    actual = [rows[k]-rows[-1] for k in range(SETS)]
    for k, (v, seconds) in values.items():
        predicted = [v[s].sum().item() for s in sets]
        row = dict(setting=name, method=k, lds=round(spearmanr(predicted, actual)[0], 4), pearson=round(pearsonr(predicted, actual)[0], 4),
                   score_seconds=round(seconds, 1), sets=SETS, left_out=len(y)//PART, n=len(y), command=command())
        print(row, flush=True)
        if not has_row(SCORES, setting=name, method=k): append_rows(SCORES, [row])


def timed(f):
    start = time.time()
    return f(), time.time()-start


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['retrain', 'score'])
    p.add_argument('setting', choices=list(SETTINGS))
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    a = p.parse_args()
    dict(retrain=retrain, score=score)[a.what](a.setting)
