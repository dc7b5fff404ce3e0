"""Augment and MaxUp in the ways that fastai people train: accumulated gradients, frozen bodies, half precision, and trainings that end early."""
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD
from fastai.torch_core import params, set_seed
from torch import nn

from influence_aug.all import *
from influence_aug.augment.classifier import tensor_dls
from influence_aug.core.display import Quiet


def darker(x): return .5*x


def net():
    set_seed(3)
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten()), nn.Linear(4*13*13, 10))


def halves(model): return [params(model[0]), params(model[1])]


def learner(splits, cbs, bs=8, n_steps=4, make=net):
    learn = Learner(tensor_dls(splits.labelled, splits.holdout[torch.arange(10)], bs, n_steps, device='cpu'), make(), F.cross_entropy, cbs=[*cbs, Quiet()], splitter=halves)
    set_seed(5)
    return learn


def in_order(learn):
    "`learn`, which reads the first 32 images in each epoch."
    learn.dls.train.get_idxs = lambda: list(range(32))
    return learn


def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def with_noise():
    "A network whose BatchNorm and Dropout would tell if anything had gone through them in training mode."
    set_seed(3)
    return nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()), nn.Linear(4*13*13, 10))


WAYS = {'fit': lambda learn: learn.fit(2, 1e-2), 'one cycle': lambda learn: learn.fit_one_cycle(2, 1e-2), 'fine_tune': lambda learn: learn.fine_tune(1, 1e-2),
        'frozen': lambda learn: (learn.freeze(), learn.fit(1, 1e-2)), 'bfloat16': lambda learn: learn.to_bf16().fit(1, 1e-2),
        'accumulated': lambda learn: (learn.add_cb(GradientAccumulation(16)), learn.fit(2, 1e-2))}


@pytest.mark.parametrize('way', WAYS)
def test_the_hardest_of_equal_versions_trains_like_one_of_them(splits, way):
    "Rating leaves no trace: not in gradients that wait, in frozen layers, or in BatchNorm's means."
    one, hardest = (learner(splits, [cb], make=with_noise) for cb in (Augment(darker, 1.), MaxUp(Augment(darker, 1.), 3)))
    for o in (one, hardest): WAYS[way](in_order(o))
    for a, b in zip(one.model.state_dict().values(), hardest.model.state_dict().values()): assert torch.equal(a, b)
    assert not torch.equal(weights(one), torch.cat([p.detach().flatten() for p in with_noise().parameters()]))


def test_accumulated_batches_are_one_large_batch(splits):
    "Two batches of 8 before a step are a batch of 16, by SGD and without BatchNorm."
    def trained(bs, n_steps, *cbs):
        learn = in_order(learner(splits, [Augment(darker, 1.), *cbs], bs, n_steps))
        learn.opt_func = SGD
        learn.fit(1, .1)
        return weights(learn)
    small, large = trained(8, 4, GradientAccumulation(16)), trained(16, 2)
    assert torch.allclose(small, large, atol=1e-5) and not torch.allclose(small, trained(8, 4), atol=1e-4)


@pytest.mark.parametrize('cb', [lambda: Augment(darker, .5), lambda: MaxUp(Augment(darker, .5), 2)], ids=['Augment', 'MaxUp'])
def test_fine_tune_leaves_a_frozen_body_alone(splits, cb):
    learn = learner(splits, [cb()])
    body, head = (o.weight.detach().clone() for o in (learn.model[0][0], learn.model[1]))
    learn.freeze()
    learn.fit(1, 1e-2)
    assert torch.equal(learn.model[0][0].weight, body) and not torch.equal(learn.model[1].weight, head)
    assert not learn.model[0][0].weight.requires_grad and learn.model[1].weight.requires_grad
    learn.unfreeze()
    learn.fit(1, 1e-2)
    assert not torch.equal(learn.model[0][0].weight, body)


class Ends:
    "A policy that is `darker` for `n` calls, then raises."
    def __init__(self, error, n): self.error, self.n = error, n

    def __call__(self, x):
        self.n -= 1
        if self.n<0: raise self.error
        return darker(x)


@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('out of memory'), CancelFitException()], ids=['ctrl-c', 'failure', 'cancelled'])
@pytest.mark.parametrize('cb', [lambda f: Augment(f, 1.), lambda f: MaxUp(Augment(f, 1.), 2)], ids=['Augment', 'MaxUp'])
def test_a_training_that_ends_early_can_go_on(splits, cb, error):
    "What it changed for itself is as before: gradients, loaders, loss; the next training is an ordinary one."
    learn = learner(splits, [cb(Ends(error, 3))], make=with_noise)
    loss, loaders, cbs = learn.loss_func, list(learn.dls.loaders), list(learn.cbs)
    try: learn.fit(2, 1e-2)
    except (KeyboardInterrupt, RuntimeError) as e: assert e is error
    assert learn.loss_func is loss and learn.dls.loaders==loaders and list(learn.cbs)==cbs
    assert all(p.requires_grad for p in learn.model.parameters())
    kept = {k: o.clone() for k, o in learn.model.state_dict().items()}
    learn.remove_cbs([o for o in learn.cbs if isinstance(o, Augment)])
    fresh = learner(splits, [], make=with_noise)
    fresh.model.load_state_dict(kept)
    learn.opt = None
    for o in (learn, fresh): in_order(o).fit(1, 1e-2)
    for a, b in zip(learn.model.state_dict().values(), fresh.model.state_dict().values()): assert torch.equal(a, b)


def test_half_precision_rates_and_trains(splits):
    learn = learner(splits, [MaxUp(Augment(darker, .5), 2)]).to_bf16()
    assert any(isinstance(o, MixedPrecision) for o in learn.cbs)
    learn.fit(1, 1e-2)
    assert weights(learn).isfinite().all() and weights(learn).dtype == torch.float32


def test_exported_it_goes_on_elsewhere(splits, tmp_path):
    learn = learner(splits, [MaxUp(Augment(darker, .5), 2)])
    learn.fit(1, 1e-2)
    learn.export(tmp_path/'learn.pkl')
    again = load_learner(tmp_path/'learn.pkl')
    assert torch.equal(weights(again), weights(learn)) and again.max_up.k == 2
    again.dls = learn.dls
    again.fit(1, 1e-2)
    assert not torch.equal(weights(again), weights(learn))
