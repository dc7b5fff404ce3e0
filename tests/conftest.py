import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from hypothesis import settings

from influence_aug.core.data import draw_splits
from influence_aug.core.datasets import mnist_sample

torch.set_num_threads(1)
torch.set_flush_denormal(True)
settings.register_profile('repo', deadline=None, max_examples=25, derandomize=True)
settings.load_profile('repo')


@pytest.fixture(scope='session')
def sample(): return mnist_sample()


@pytest.fixture(scope='session')
def splits(sample): return draw_splits(sample, frac=.01, seed=0)
