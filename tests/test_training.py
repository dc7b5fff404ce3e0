"""Going back through training: against central differences, PyTorch's own training, and itself under memory limits, kills and resumes."""
import math
import signal
import time
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from forked import ended, forked
from influence_aug.influence.rules import *
from influence_aug.influence.training import *
from influence_aug.influence.training import _statistics_of_first, _training_mode, _with_weight

F64 = torch.float64


def points(n, seed=0, dtype=F64):
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return (torch.randn(n, 1, 6, 6, generator=rng, dtype=F64)+.5*y.view(-1, 1, 1, 1)).to(dtype), y


def net(norm='batch', dtype=F64):
    torch.manual_seed(0)
    layer = dict(batch=lambda: nn.BatchNorm2d(4), group=lambda: nn.GroupNorm(2, 4), plain=nn.Identity, affine_free=lambda: nn.BatchNorm2d(4, affine=False), dropout=lambda: nn.Dropout(.3))[norm]()
    return nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).to(dtype)


def make(norm='batch', rule=None, steps=12, dtype=F64, lr=.05):
    x, y = points(30, dtype=dtype)
    def batch(t):
        i = torch.randperm(30, generator=torch.Generator().manual_seed(t))[:8]
        return x[i], y[i]
    return Training(net(norm, dtype), batch, one_cycle(lr, steps), rule or adam()), x


RULE = {'adam': adam(), 'adamw': adam(weight_decay=.1), 'sgd': sgd(), 'plain sgd': sgd(0.), 'sgd with decay': sgd(.9, .01)}


@pytest.mark.parametrize('rule', RULE)
@pytest.mark.parametrize('norm', ['batch', 'group', 'plain', 'affine_free', 'dropout'])
def test_weights_against_central_differences(rule, norm):
    training, x = make(norm, RULE[rule])
    valid = points(20, 1)
    states = States(training)
    found = Backward(states, training.final(states[12][0], x, valid)[1]).run().weights
    loss = lambda t, i, h: training.final(_with_weight(training, t, i, h), x, valid)[0]
    largest = max(o.abs().max() for o in found.values()).item()
    for t, i in [(0, 0), (4, 3), (8, 7), (11, 2)]:
        assert abs((loss(t, i, 1e-4)-loss(t, i, -1e-4))/2e-4-found[t][i].item()) < 1e-6*largest+1e-9


@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_images_against_central_differences(norm):
    training, x = make(norm)
    valid, seen = points(20, 1), {}
    states = States(training)
    Backward(states, training.final(states[12][0], x, valid)[1], each=lambda t, o: seen.update({t: o.images})).run()
    own = training.batch
    for t, at in [(2, (1, 0, 2, 3)), (9, (5, 0, 0, 0))]:
        def with_pixel(h):
            def batch(s):
                a, b = own(s)
                if s == t: a = a.clone(); a[at] += h
                return a, b
            moved = Training(training.model, batch, training.lrs)
            return moved.final(States(moved)[12][0], x, valid)[0]
        assert abs((with_pixel(1e-4)-with_pixel(-1e-4))/2e-4-seen[t][at].item()) < 1e-6*seen[t].abs().max().item()+1e-9


@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_further_samples_against_central_differences(norm):
    """A sample that was not there, weighed in by hand: BatchNorm sees the batch alone."""
    training, x = make(norm)
    valid, new = points(20, 1), points(3, 5)
    states = States(training)
    back = Backward(states, training.final(states[12][0], x, valid)[1], further=lambda t: new).run()
    def with_sample(t, i, h):
        theta, state = training.theta, training.rule.start(training.theta)
        for s in range(12):
            if s != t: theta, state = training.step(s, theta, state); continue
            at = theta.detach().requires_grad_()
            a, b = training.batch(s)
            with _training_mode(training.model), _statistics_of_first(training.model, 8):
                z = training.logits(at, torch.cat([a, new[0][i:i+1]]))
            l = F.cross_entropy(z[:8], b)+h/8*F.cross_entropy(z[8:], new[1][i:i+1])
            theta, state = training.rule.update(at, torch.autograd.grad(l, at)[0], state, training.lrs[s], s)
            theta, state = theta.detach(), tuple(o.detach() for o in state)
        return training.final(theta, x, valid)[0]
    for t, i in [(0, 0), (5, 1), (11, 2)]:
        assert abs((with_sample(t, i, 1e-4)-with_sample(t, i, -1e-4))/2e-4-back.others[t][i].item()) < 1e-6*max(o.abs().max() for o in back.others.values()).item()+1e-9


def test_further_samples_beside_dropout():
    """Samples beside the batch have draws of their own: their derivatives are finite, and the same again."""
    training, x = make('dropout')
    states = States(training)
    gradient = training.final(states[12][0], x, points(20, 1))[1]
    a, b = (Backward(states, gradient, further=lambda t: points(3, 5)).run().others for _ in range(2))
    assert all(torch.equal(a[t], b[t]) and a[t].isfinite().all() for t in a)


@pytest.mark.parametrize('rule, opt', [(sgd(.9, .01), lambda p: torch.optim.SGD(p, .1, .9, weight_decay=.01)), (adam(eps=1e-9, weight_decay=.1), lambda p: torch.optim.AdamW(p, .1, (.9, .99), 1e-9, .1))])
def test_training_is_pytorchs(rule, opt):
    training, x = make('batch', rule)
    model = deepcopy(training.model).train()
    o = opt(model.parameters())
    for t, lr in enumerate(training.lrs):
        o.param_groups[0]['lr'] = lr
        o.zero_grad()
        a, b = training.batch(t)
        F.cross_entropy(model(a), b).backward()
        o.step()
    ours = States(training)[12][0]
    assert torch.allclose(ours, nn.utils.parameters_to_vector(model.parameters()), atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(training.model.parameters(), net().parameters())) and training.model[1].num_batches_tracked == 0


@settings(deadline=None, max_examples=15)
@given(steps=st.integers(1, 17), part=st.floats(.4, 1.))
def test_a_memory_limit_changes_nothing(steps, part):
    training, x = make(steps=steps, dtype=torch.float32)
    size = 3*training.theta.nbytes
    limit = max(int(part*(steps+1)*size), min((math.ceil(steps/k)+(k if k > 1 else 0))*size for k in range(1, math.isqrt(steps)+2)))
    few, all_ = States(training, limit), States(training)
    assert (len(few.kept)-1+(few.every if few.every > 1 else 0))*size <= limit+size
    gradient = training.final(all_[steps][0], x, points(20, 1, torch.float32))[1]
    a, b = (Backward(o, gradient).run().weights for o in (few, all_))
    assert sorted(a) == list(range(steps)) and all(torch.equal(a[t], b[t]) for t in a)


def test_the_same_again_and_other_generators_left_alone():
    training, x = make('dropout')
    before = torch.get_rng_state()
    a, b = States(training)[12][0], States(training)[12][0]
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), before)


def go_back_slowly(path):
    "Twenty steps a second, each saved."
    training, x = make(steps=60)
    states = States(training)
    gradient = training.final(states[60][0], x, points(20, 1))[1]
    Backward(states, gradient, path=path, further=lambda t: points(3, 5), each=lambda t, o: time.sleep(.05)).run(save_every=0.)


def test_killed_and_resumed(tmp_path):
    path = tmp_path/'back.pt'
    it = forked(go_back_slowly, path)
    while not path.exists() and it.is_alive(): time.sleep(.1)
    time.sleep(.5)
    it.kill()
    assert ended(it) == -signal.SIGKILL
    begun = torch.load(path, weights_only=True)
    assert 0 < begun['t'] < 60
    training, x = make(steps=60)
    states = States(training)
    gradient = training.final(states[60][0], x, points(20, 1))[1]
    further = lambda t: points(3, 5)
    resumed, whole = Backward(states, gradient, path=path, further=further).run(), Backward(states, gradient, further=further).run()
    assert all(torch.equal(whole.weights[t], resumed.weights[t]) and torch.equal(whole.others[t], resumed.others[t]) for t in range(60))
    with pytest.raises(ValueError, match='is of another run'): Backward(states, 2*gradient, path=path).run()


def test_bad_input():
    x, y = points(6)
    with pytest.raises(ValueError, match='steps=0'): Training(net(), lambda t: (x, y), [])
    with pytest.raises(TypeError, match='expected an nn.Module'): Training(lambda x: x, lambda t: (x, y), [.1])
    with pytest.raises(ValueError, match=r'max_bytes=10: expected at least [\d,]+ for 12 steps'): States(make()[0], 10)
