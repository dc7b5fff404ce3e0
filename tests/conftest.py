import os
from dataclasses import replace

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import torch
from hypothesis import settings

from influence_aug.core.data import draw_splits
from influence_aug.core.datasets import DATASETS, mnist_sample

torch.set_num_threads(1)
torch.set_flush_denormal(True)
settings.register_profile('repo', deadline=None, max_examples=25, derandomize=True)
settings.load_profile('repo')


@pytest.fixture(autouse=True)
def one_thread():
    "Whatever a run before it has set."
    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def sample(): return mnist_sample()


@pytest.fixture(scope='session')
def splits(sample): return draw_splits(sample, frac=.01, seed=0)


@pytest.fixture
def few_to_look_at(sample, monkeypatch):
    "A sample with a tenth of the validation digits and of the test digits."
    few = replace(sample, valid=sample.valid[torch.arange(0, 2000, 10)], test=sample.test[torch.arange(0, 2000, 10)])
    monkeypatch.setitem(DATASETS, 'sample', lambda: few)
    return few
