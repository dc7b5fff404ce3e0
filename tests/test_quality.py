import pytest
import torch
from torch import nn

from influence_aug.augment.transforms import *
from influence_aug.augment.wgan import *
from influence_aug.core.data import Images
from influence_aug.core.datasets import mnist_sample
from influence_aug.core.files import source_from_images
from influence_aug.studies.quality import *


def test_keeping_by_hand():
    """A judge that reads which half is brighter, and images that are mirrored: every label is lost, but for those it had wrong before."""
    x = torch.zeros(10, 1, 8, 8)
    x[:6, ..., :4] = 1
    x[6:, ..., 4:] = 1
    judge = lambda x: torch.stack([x[..., :4].sum((1, 2, 3)), x[..., 4:].sum((1, 2, 3))], 1)
    y = torch.tensor([0]*6+[1]*2+[0]*2)
    assert label_keeping(lambda x: x, judge, x, y) == 100 and label_keeping(lambda x: x.flip(3), judge, x, y, bs=3) == pytest.approx(25)
    assert label_keeping(lambda x: 5*x-2, judge, x, y) == 100


@pytest.mark.parametrize('n', [2, 10, 1000])
def test_diversity_by_hand(n):
    """Half of the flows stand still, half are three pixels to the right: a pair of two kinds is three pixels apart."""
    still = pixel_grid(12, 12).expand(n, -1, -1, -1).clone()
    still[::2, ..., 0] += 3*2/12
    pairs = (n/2)**2*2/(n*(n-1))
    assert diversity(lambda n: still, n) == pytest.approx(3*pairs**.5, rel=1e-5)


@pytest.mark.parametrize('channels,size', [(1, 28), (3, 32), (3, 20)])
def test_figures_of_any_generator(channels, size):
    torch.manual_seed(0)
    G = Generator(channels, size, padding_mode='border')
    judge = nn.Sequential(nn.Flatten(), nn.Linear(channels*size**2, 3))
    figures = generator_quality(G, judge, torch.rand(20, channels, size, size), torch.arange(20) % 3, n=50)
    assert all(torch.isfinite(torch.tensor(v)) for v in figures.values()) and figures['sliced_wasserstein_floor'] < figures['sliced_wasserstein']


def test_a_judge_for_few_colour_images():
    data = mnist_sample().pool[:300]
    source = source_from_images(Images(data.x.repeat(1, 3, 1, 1), data.y, data.vocab))
    judge = train_judge(source, steps=5)
    assert not judge.training and judge(torch.rand(2, 3, 28, 28)).shape == (2, 10)
