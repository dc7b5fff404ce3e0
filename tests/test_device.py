"""The whole method on an accelerator, or on the device that DEVICE names; and, where there is none, whether any computation mixes devices.

FakeTensorMode knows shapes and devices and computes nothing, so it finds without a GPU what would fail on one."""
import math
import os
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from influence_aug.all import *
from influence_aug.augment.augmenter import Estimator, StochasticEstimator
from influence_aug.augment.callbacks import with_crop
from influence_aug.augment.estimator import learn_augmenter
from influence_aug.augment.functions import FUNCTIONS, random_functions
from influence_aug.augment.generator import train_generator
from influence_aug.augment.named import NamedGenerator
from influence_aug.augment.policies import random_affine, randaugment
from influence_aug.augment.resnets import BFloat16, resnet, sgd
from influence_aug.augment.tanda import SequencePolicy, train_tanda
from influence_aug.augment.transforms import Generator
from influence_aug.core.data import Images, Source
from influence_aug.influence.influence import Influence

DEVICE = torch.device(os.environ.get('DEVICE') or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else 'cpu'))
MAPS = {f'{kind} {name}': (f, 1 if kind == 'grey' else 3) for kind, fs in FUNCTIONS.items() for name, f in fs.items() if 'elastic' not in name}
MAPS |= dict(affine=(random_affine(), 3), affine_grey=(random_affine(), 1))


@pytest.mark.parametrize('name', MAPS)
def test_maps_stay_on_their_device(name):
    f, channels = MAPS[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = f(torch.empty(4, channels, 28, 28, device='cuda'))
        assert y.device.type == 'cuda' and y.shape == (4, channels, 28, 28)


@pytest.mark.parametrize('make', [lambda: Generator(3, 32), lambda: NamedGenerator(3, 32)], ids=['G', 'named'])
@pytest.mark.parametrize('E', [Estimator, StochasticEstimator])
def test_networks_stay_on_their_device(make, E):
    with FakeTensorMode(), torch.device('cuda'):
        G, x = make(), torch.empty(4, 3, 32, 32)
        assert Augmenter(G, E)(x).device.type == 'cuda' and random_tau(G)(x).device.type == 'cuda'


def test_residual_networks_stay_on_their_device():
    with FakeTensorMode(), torch.device('cuda'): assert resnet(3, 10)(torch.empty(4, 3, 32, 32)).device.type == 'cuda'


def pictures(n, seed):
    "Noise over a level that tells the class."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    return Images((60+90*y[:, None, None, None]+torch.randint(60, (n, 3, 32, 32), generator=g)).byte(), y, ('dark', 'light'), 1000*seed+torch.arange(n))


@pytest.fixture(scope='module')
def splits(): return draw_splits(Source(pictures(160, 1), pictures(40, 2), pictures(40, 3), crop_padding=4), n=80)


def trained(splits, *policies, cbs=(), device=DEVICE, **kw):
    how = dict(make_model=partial(resnet, depth=8), opt_func=sgd(), lr=.05, bs=32, steps=40, epochs=2, device=device) | kw
    return train_classifier(splits, [*with_crop(*policies), *cbs], **how)


@pytest.fixture(scope='module')
def learn(splits): return trained(splits)


@pytest.mark.parametrize('cbs', [[], [BFloat16()]], ids=['float32', 'bfloat16'])
def test_f_learns(splits, cbs):
    learn = trained(splits, random_affine(), randaugment(), random_functions(FUNCTIONS['colour'], 2), cbs=cbs)
    assert next(learn.model.parameters()).device.type == DEVICE.type and learn.validate()[1] > .9


def test_maxup_learns(splits): assert train_classifier(splits, [MaxUp(random_tau(load_generator('cifar10')), k=2)], steps=40, epochs=2, device=DEVICE).validate()[1] > .9


@pytest.mark.parametrize('params', ['head', 'all'])
def test_influence_is_that_of_the_cpu(splits, learn, params):
    "In float64, as float32 sums in another order elsewhere."
    values = []
    for device in (DEVICE, 'cpu'):
        model, (x, y), (a, b) = deepcopy(learn.model).double().to(device).eval(), *(to_double(o, device) for o in (splits.labelled, splits.tune))
        values.append(Influence(model, (x, y), (a, b), params=params).fit().values(x, y).cpu())
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-7)


def to_double(o, device): return (o.x.double()/255).to(device), o.y.to(device)


def test_aug_find(splits, learn):
    found = learn.aug_find({'mirror': lambda x: x.flip(3), 'invert': lambda x: 1-x}, train=splits.labelled, valid=splits.tune, show_plot=False)
    assert found.table.loc['invert', 'predicted'] > found.table.loc['mirror', 'predicted']


def test_e_learns(splits):
    policy, figures = learn_augmenter(splits, load_generator('cifar10'), steps=20, e_steps=5, train=lambda s, cbs, steps, seed: trained(s, steps=steps, seed=seed, cbs=cbs))
    x = splits.labelled.x[:4].to(DEVICE).float()/255
    assert policy(x).device.type == DEVICE.type and all(map(math.isfinite, figures.values()))


def test_g_and_tanda_learn(splits):
    G = train_generator(splits.unlabelled, steps=4, epochs=2, device=DEVICE).model
    game = train_tanda(splits.unlabelled, 'lstm', 'colour', 4, 2, device=DEVICE, width=8)
    x = splits.labelled.x[:4].to(DEVICE).float()/255
    for policy in (random_tau(G), SequencePolicy(game.model)): assert policy(x).device.type == DEVICE.type and policy(x).isfinite().all()
