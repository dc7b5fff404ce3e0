"""The whole method on an accelerator, or on the device that DEVICE names; and, where there is none, whether any computation mixes devices.

FakeTensorMode knows shapes and devices and computes nothing, so it finds without a GPU what would fail on one."""
import os
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from influence_aug.all import *
from influence_aug.augment.augmenter import Estimator, StochasticEstimator
from influence_aug.augment.callbacks import with_crop
from influence_aug.augment.estimator import learn_augmenter
from influence_aug.augment.functions import FUNCTIONS
from influence_aug.augment.generator import train_generator
from influence_aug.augment.named import *
from influence_aug.augment.policies import random_affine
from influence_aug.augment.resnets import BFloat16, resnet, sgd
from influence_aug.augment.tanda import SequencePolicy, train_tanda
from influence_aug.augment.transforms import *
from influence_aug.core.data import Images, Source
from influence_aug.influence.influence import Influence

DEVICE = torch.device(os.environ.get('DEVICE') or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else 'cpu'))
MAPS = {f'{kind} {name}': (f, 1 if kind == 'grey' else 3) for kind, fs in FUNCTIONS.items() for name, f in fs.items() if 'elastic' not in name}
MAPS |= dict(affine=(random_affine(), 3), affine_grey=(random_affine(), 1))


@pytest.mark.parametrize('name', MAPS)
def test_maps_stay_on_their_device(name):
    f, channels = MAPS[name]
    with FakeTensorMode():
        y = f(torch.empty(4, channels, 28, 28, device='cuda'))
        assert y.device.type == 'cuda' and y.shape == (4, channels, 28, 28)


@pytest.mark.parametrize('make', [lambda: Generator(3, 32), lambda: NamedGenerator(3)], ids=['G', 'named'])
@pytest.mark.parametrize('E', [Estimator, StochasticEstimator])
def test_networks_stay_on_their_device(make, E):
    with FakeTensorMode(), torch.device('cuda'):
        G, x = make(), torch.empty(4, 3, 32, 32)
        assert Augmenter(G, E)(x).device.type == 'cuda' and random_tau(G)(x).device.type == 'cuda'


@pytest.mark.parametrize('depth', [20, 56])
def test_residual_networks_in_bfloat16_stay_on_their_device(depth):
    with FakeTensorMode(), torch.device('cuda'), torch.autocast('cuda', torch.bfloat16):
        out = resnet(3, 10, depth).to(memory_format=torch.channels_last)(torch.empty(4, 3, 32, 32))
        assert out.device.type == 'cuda' and out.dtype == torch.bfloat16
