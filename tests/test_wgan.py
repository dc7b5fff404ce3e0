import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import wasserstein_distance
from torch import nn

from influence_aug.augment import wgan
from influence_aug.augment.generator import WGANCallback, train_generator
from influence_aug.augment.transforms import Generator
from influence_aug.augment.wgan import *
from influence_aug.core.datasets import mnist_sample


@given(norm=st.floats(.1, 5), n=st.integers(1, 8), shape=st.sampled_from([(4,), (1, 6, 6), (3, 4, 4)]))
def test_linear_critic(norm, n, shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    w *= norm/w.norm()
    D = lambda x: (x*w).flatten(1).sum(1, keepdim=True)
    real, fake = torch.rand(n, *shape).double(), torch.rand(n, *shape).double()
    got = critic_loss(D, real, fake, 7.)
    assert got.penalty.item() == pytest.approx((norm-1)**2, abs=1e-9)
    assert got.loss.item() == pytest.approx(7*(norm-1)**2-((real-fake)*w).flatten(1).sum(1).mean().item(), abs=1e-9)


def test_penalty_reaches_the_critic_but_not_the_images():
    D, real = nn.Linear(5, 1), torch.rand(3, 5)
    fake = torch.rand(3, 5, requires_grad=True)
    critic_loss(D, real, fake).loss.backward()
    assert D.weight.grad.abs().sum() > 0 and fake.grad is None


def test_one_epsilon_per_sample():
    seen = []
    def D(x):
        seen.append(x.detach())
        return x.flatten(1).sum(1)
    gradient_penalty(D, torch.ones(6, 1, 4, 4), torch.zeros(6, 1, 4, 4))
    assert all(o.unique().numel() == 1 for o in seen[0]) and seen[0].unique().numel() == 6


@pytest.mark.parametrize('channels,size', [(1, 28), (3, 32)])
def test_steps_move_only_their_own_network(channels, size):
    G, D, C = Generator(channels, size), critic(channels, size), critic(2, size)
    opts = [torch.optim.Adam(c.parameters(), 1e-3) for c in (D, C)]
    copies = [[p.clone() for p in m.parameters()] for m in (G, D, C)]
    a, b = critics_step(G, D, C, opts, torch.rand(4, channels, size, size))
    changed = [any(not torch.equal(p, q) for p, q in zip(m.parameters(), c)) for m, c in zip((G, D, C), copies)]
    assert changed == [False, True, True] and a.loss.isfinite() and b.loss.isfinite()


def test_divergence_is_named():
    with pytest.raises(FloatingPointError, match='Lower the learning rate'):
        critic_step(lambda x: x.sum(1)*float('inf'), None, torch.rand(2, 3), torch.rand(2, 3))


@pytest.mark.parametrize('draw', [tau_uniform, tau_tanh, tau_corners])
def test_tau_stays_in_the_cube(draw):
    tau = draw(50, 7)
    assert tau.shape == (50, 7) and tau.abs().max() <= 1


@pytest.mark.parametrize('every', [1, 2, 3])
def test_a_lazy_penalty_keeps_its_mean_weight(every):
    callback = WGANCallback(penalty_weight=10., penalty_every=every)
    callback.steps = 0
    weights = [callback.weight() for _ in range(6)]
    assert sum(weights) == 60 and sum(w > 0 for w in weights) == 6//every


def test_without_a_penalty_no_gradient_of_the_gradient(monkeypatch):
    monkeypatch.setattr(wgan, 'gradient_penalty', lambda *args: pytest.fail('the penalty was computed'))
    D = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    got = wgan.critic_loss(D, torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), penalty_weight=0.)
    assert got.penalty == 0 and got.loss.item() == pytest.approx(-D[1].weight.sum().item(), abs=1e-6)


def test_penalty_every_zero_is_refused():
    with pytest.raises(ValueError, match='penalty_every=0: expected 1 or more'): WGANCallback(penalty_every=0)


def test_an_exploding_critic_is_named_before_it_moves():
    D = nn.Linear(3, 1)
    opt, before = torch.optim.Adam(D.parameters(), 1.), D.weight.clone()
    with pytest.raises(FloatingPointError, match='beyond ±1e[+]05: training has diverged. Lower the learning rate'): critic_step(D, opt, torch.rand(2, 3)*1e9, torch.rand(2, 3))
    assert torch.equal(D.weight, before)


def test_a_learning_rate_that_explodes_ends_training():
    with pytest.raises(FloatingPointError, match='Lower the learning rate'): train_generator(mnist_sample().pool[:100], steps=40, epochs=1, bs=2, lr=5.)


@given(seed=st.integers(0, 99), n=st.integers(1, 30), k=st.integers(1, 5), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_sliced_wasserstein_against_scipy(seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    a, b = (torch.tensor(rng.normal(size=(n, k)), dtype=dtype) for _ in range(2))
    torch.manual_seed(seed)
    got = sliced_wasserstein(a, b, 7)
    torch.manual_seed(seed)
    d = torch.randn(k, 7, dtype=dtype)
    d /= d.norm(dim=0)
    assert got.item() == pytest.approx(np.mean([wasserstein_distance((a@o).numpy(), (b@o).numpy()) for o in d.T]), abs=1e-5)


def test_sliced_wasserstein_of_flows_is_zero_for_the_same_and_refuses_other_sizes():
    flows = realistic_flow(20, 12)
    assert sliced_wasserstein(flows, flows[torch.randperm(20)]) < 1e-6
    with pytest.raises(ValueError, match=r'shape \(20, 12, 12, 2\) and \(19, 12, 12, 2\): expected the same'): sliced_wasserstein(flows, flows[:19])
