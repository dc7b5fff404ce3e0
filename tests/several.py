"What tests/test_several.py compares: run by one process, and by two that `accelerate launch` starts as it starts a user's script."
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from accelerate import InitProcessGroupKwargs
from fastai.callback.core import Callback
from fastai.distributed import DistributedDL, DistributedTrainer
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastai.torch_core import num_distrib, rank_distrib
from torch import nn

from influence_aug.augment.augmenter import *
from influence_aug.augment.callbacks import *
from influence_aug.augment.classifier import *
from influence_aug.augment.estimator import *
from influence_aug.augment.find import *
from influence_aug.augment.generator import *
from influence_aug.augment.objectives import *
from influence_aug.core.batches import Batches, Mixture, mean_over
from influence_aug.core.checkpoint import *
from influence_aug.core.data import *
from influence_aug.core.datasets import *
from influence_aug.core.display import Quiet
from influence_aug.core.ranks import alone, check_same, state_number
from influence_aug.influence.influence import *
from influence_aug.influence.mixture import *
from influence_aug.influence.ranking import *

WORLD, RANK = num_distrib() or 1, rank_distrib()
SPLITS = draw_splits(mnist_sample(), n=100)
TRAIN, VALID = SPLITS.labelled, SPLITS.valid[torch.arange(90)]
DATA = SimpleNamespace(labelled=TRAIN, valid=VALID, tune=VALID[::2], holdout=VALID[1::2], unlabelled=SPLITS.unlabelled[torch.arange(200)])


def second_half_mirrored(x): return torch.cat([x[:len(x)//2], x[len(x)//2:].flip(3)])


def one_image(x): return torch.where((x == TRAIN.x[20]/255).flatten(1).all(1)[:, None, None, None], 1-x, x)


HOW = dict(sync_bn=False, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=120))])  # A rank that waits longer fails
CANDIDATES = {'shift': lambda x: x.roll(3, 3), 'noise': lambda x: (x+.3*torch.rand_like(x)).clamp(0, 1), 'nothing': lambda x: x.clone(), 'one': one_image}


class Seeded(Callback):
    "The same indices in each epoch, however many numbers were drawn in the one before."
    order = -50
    def before_epoch(self): torch.manual_seed(self.epoch)


class Stop(Callback):
    def after_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


class AsTwoRanks(Callback):
    "The critics' parts of both halves, then those of G: the images that two ranks give to each."
    order = -1
    def before_batch(self):
        if self.training: self.learn.xb = (self.x.view(2, 2, -1, *self.x.shape[1:]).transpose(0, 1).flatten(0, 2),)


class OtherFigures(Callback):
    "On rank 1 labels seem to break, which rank 0 does not see."
    order = 59
    def after_epoch(self):
        if RANK: self.recorder.values[-1][-2] = 0.


class Draws(Callback):
    run_valid = False
    def before_fit(self): self.drawn = []
    def before_batch(self): self.drawn.append(torch.rand(1).item())


def broadcast(self, t, rank):
    "As fastai's, which sends from the GPU, since NCCL does; here is none."
    t = torch.tensor(t)
    torch.distributed.broadcast(t, rank)
    return t.tolist()


def divided(): return [DistributedTrainer(sync_bn=False)] if WORLD > 1 else []


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 6), nn.Tanh(), nn.Linear(6, 10))


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def learner(*cbs):
    "An F whose weights each rank draws by itself; every epoch is one step on 32 images in all."
    dls = tensor_dls(TRAIN, VALID, 32//WORLD, WORLD, valid_bs=32, device='cpu')
    return Learner(dls, network(RANK), CrossEntropyLossFlat(), opt_func=SGD, cbs=[Seeded(), Quiet(), *cbs])


def trained(*cbs):
    learn = learner(*cbs)
    with learn.distrib_ctx(**HOW): learn.fit(3, 1e-1)
    return learn


def f_weights(**cbs): return {k: weights(trained(*o).model) for k, o in cbs.items()}


def stopped_and_resumed(path):
    for o in ([Stop()], []):
        learn = learner(*o, Checkpoint(path))
        try:
            with learn.distrib_ctx(**HOW): learn.fit(3, 1e-1)
        except KeyboardInterrupt: continue
    return weights(learn.model)


def along_the_trajectory():
    torch.manual_seed(RANK)
    augmenter = Augmenter(load_generator('mnist'), Estimator)
    trained(Trajectory(augmenter, max_loss, every=1))
    return weights(augmenter.estimator)


def e_weights(kind, objective=ImplicitHead, cbs=()):
    torch.manual_seed(0)
    augmenter = Augmenter(load_generator('mnist'), kind)
    with mock.patch.object(torch, 'randn_like', lambda o: torch.full_like(o, .5)):
        learn = train_estimator(network(), augmenter, DATA, objective, steps=3*WORLD, epochs=3, bs=32//WORLD, device='cpu', cbs=[Seeded(), Quiet(), *cbs, *divided()])
    return weights(augmenter.estimator), len(learn.recorder.values)


def g_weights():
    tau = lambda n, n_tau, device: torch.linspace(-1, 1, n_tau).expand(n, -1)
    flow = lambda n, size, like: torch.nn.functional.affine_grid(torch.tensor([[[.9, .1, 0], [0, 1., .1]]]).expand(n, -1, -1), [n, 1, size, size], align_corners=False)
    rand = lambda *size, **kwargs: torch.full(size, .5, **kwargs)
    cbs = [Seeded(), Quiet(), *(divided() or [AsTwoRanks()])]
    with mock.patch.object(torch, 'rand', rand):
        learn = train_generator(DATA.unlabelled, steps=3*WORLD, epochs=3, bs=8//WORLD, n_critic=1, identity_weight=0., device='cpu', draw_tau=tau, draw_flow=flow, penalty_every=1, cbs=cbs)
    critics = [weights(o)[:-1] for o in learn.wgan.critics]  # The last bias has no gradient but rounding, of which Adam makes a step
    return torch.cat([weights(learn.model), *critics])


def asked(**kwargs):
    "s_val, and the number of images that the body saw."
    model, seen = network(), []
    infl = Influence(model, TRAIN, VALID, bs=16, **kwargs)
    model[0].register_forward_pre_hook(lambda m, x: seen.append(len(x[0])))
    infl.fit()
    return infl.s, sum(seen)


def means():
    x, y = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50)
    few, many = Batches((x[:9], y[:9]), bs=9), Batches((x.double(), y), bs=7)
    outer, number = (lambda x, y: x.T@x/len(x)), (lambda x, y: x.mean())
    return [mean_over(o, f).double() for o in (few, many, Mixture((.3, many), (.7, Mixture((.5, many), (.5, [(x.double(), y)]))))) for f in (outer, number)]


def message(f):
    try: f()
    except ValueError as e: return str(e)


def one_rank_alone():
    if RANK == WORLD-1:
        with alone(): return asked()


def measured(folder):
    "All that is compared, by name."
    warnings.simplefilter('ignore')
    found = f_weights(plain=[], augment=[Augment(lambda x: x.roll(2, 3), 1.)], maxup=[MaxUp([Augment(second_half_mirrored, 1.)], k=2)])
    found.update(checkpoint=stopped_and_resumed(Path(folder)/'f.pth'), trajectory=along_the_trajectory(), G=g_weights(), means=means())
    found.update(E=e_weights(Estimator), stochastic=e_weights(StochasticEstimator, cbs=[StayRandom(.1), Guard(.01, 9), OtherFigures()]))
    found.update(fixed=e_weights(Estimator, FixedHead), exact=asked(), cg=asked(solver='cg'), lissa=asked(solver='lissa'), all=asked(params='all', solver='cg', damping=.1),
                 smoothed=asked(loss=nn.CrossEntropyLoss(label_smoothing=.1)))
    found['ranking'] = rank_augmentations(network(), TRAIN, VALID, CANDIDATES, n_boot=50, bs=16, draws=2)
    found['training'] = rank_augmentations(network(), TRAIN, VALID, {'shift': CANDIDATES['shift']}, through='training', steps=4, bs=8)
    learn = trained()
    with learn.distrib_ctx(**HOW): found['find'] = learn.aug_find(CANDIDATES, show_plot=False, bs=16)
    shuffled = TRAIN[torch.randperm(100, generator=torch.Generator().manual_seed(RANK))]
    found.update(other_data=message(lambda: Influence(network(), shuffled, VALID).fit()), other_model=message(lambda: Influence(network(RANK), TRAIN, VALID).fit()))
    draws = Draws()
    f = train_classifier(DATA, [draws, Quiet(), *divided()], steps=2, epochs=1, bs=8, device='cpu').model
    check_same('F with BatchNorm', lambda: state_number(f))
    return dict(found, alone=one_rank_alone(), draws=draws.drawn)


if __name__ == '__main__':
    torch.set_num_threads(1)
    DistributedDL._broadcast = broadcast
    torch.save(measured(sys.argv[1]), Path(sys.argv[1])/f'{RANK}.pt')
