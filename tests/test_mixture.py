"""Rankings and learning through training: kinds of data, number types, kills and resumes, bad input, and invariants of the shares."""
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.losses import CrossEntropyLossFlat
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from forked import ended, forked
from influence_aug.augment.augmenter import *
from influence_aug.augment.learned_distribution import *
from influence_aug.augment.learned_mixture import *
from influence_aug.augment.named import *
from influence_aug.core.data import *
from influence_aug.core.datasets import *
from influence_aug.influence.branches import *
from influence_aug.influence.mixture import *
from influence_aug.influence.ranking import *
from influence_aug.influence.smoothness import *
from influence_aug.influence.training import Backward

FLIPS = {'mirror': lambda x: x.flip(3), 'upside down': lambda x: x.flip(2)}
SHORT = dict(steps=20, bs=16)


@pytest.fixture(scope='module')
def splits(): return draw_splits(mnist_sample(), frac=.01)


def net(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 5, 4), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def tensors(images): return images.x.float()/255, images.y


@pytest.mark.parametrize('through, how', [('training', dict(trainings=1)), ('branches', {})])
def test_images_tensors_and_loaders_give_the_same_ranking(splits, through, how):
    u, v = splits.labelled, splits.tune[:60]
    loader = lambda o: DataLoader(TensorDataset(*tensors(o)), 50)
    first, *others = (rank_augmentations(net(), a, b, FLIPS, through=through, **how, **SHORT)
                      for a, b in [(u, v), (tensors(u), tensors(v)), (loader(u), loader(v))])
    for o in others: pd.testing.assert_frame_equal(first, o)


@pytest.mark.parametrize('through, how', [('training', dict(trainings=1)), ('branches', {})])
def test_float64_models_are_ranked_in_float64(splits, through, how):
    single, double = (rank_augmentations(net().to(t), splits.labelled, splits.tune[:60], FLIPS, through=through, fresh=False, **how, **SHORT)
                      for t in (torch.float32, torch.float64))
    assert np.allclose(single.predicted, double.predicted[single.index], rtol=2e-2, atol=1e-4)
    assert not np.array_equal(single.predicted, double.predicted[single.index])


@pytest.mark.parametrize('through, how', [('training', dict(trainings=1)), ('branches', {})])
def test_models_and_random_states_stay_as_they_were(splits, through, how):
    model = net().eval()
    before, state = {k: o.clone() for k, o in model.state_dict().items()}, torch.random.get_rng_state()
    rank_augmentations(model, splits.labelled, splits.tune[:60], FLIPS, through=through, **how, **SHORT)
    assert all(torch.equal(o, before[k]) for k, o in model.state_dict().items()) and not model.training
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize('through', ['training', 'branches'])
@pytest.mark.parametrize('wrong, told', [
    (dict(copies=0), 'copies=0'), (dict(since=1), 'since=1'), (dict(steps=0), 'steps'), (dict(steps=2.5), 'steps'),
    (dict(loss=CrossEntropyLossFlat(label_smoothing=.1)), "through='head'"), (dict(candidates={}), 'expected a dict'),
    (dict(candidates={'gone': lambda x: x[:1]}), "Candidate 'gone' failed"),
])
def test_bad_input_is_refused_before_any_step(splits, through, wrong, told, monkeypatch):
    monkeypatch.setattr('influence_aug.influence.training.Training.step', lambda *_: pytest.fail('a step was made'))
    given = dict(candidates=FLIPS) | SHORT | wrong
    with pytest.raises(ValueError, match=told):
        rank_augmentations(net(), splits.labelled, splits.tune[:60], through=through, **given)


def test_a_layer_whose_weights_cannot_be_drawn_is_refused(splits):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.ones(1))

        def forward(self, x): return self.p*x
    model = nn.Sequential(Own(), net())
    with pytest.raises(ValueError, match='0 is a Own whose weights cannot'):
        rank_augmentations(model, splits.labelled, splits.tune[:60], FLIPS, through='branches', **SHORT)
    rank_augmentations(model, splits.labelled, splits.tune[:60], FLIPS, through='branches', fresh=False, **SHORT)


def rank_and_save(splits, path, table):
    "A ranking that saves after every step back, then its table."
    run = Backward.run
    Backward.run = lambda self: run(self, save_every=0.)
    rank_augmentations(net(), splits.labelled, splits.tune[:60], FLIPS, through='training', steps=120, bs=16, since=0., trainings=1, path=path).to_csv(table)


def test_a_killed_ranking_goes_on_to_the_same_table(splits, tmp_path):
    def start(): return forked(rank_and_save, splits, tmp_path/'saved', tmp_path/'table.csv')
    running, deadline = start(), time.time()+120
    while not (tmp_path/'saved/0.pt').exists():
        assert running.is_alive() and time.time() < deadline
        time.sleep(.02)
    running.kill()
    assert ended(running) == -signal.SIGKILL and not (tmp_path/'table.csv').exists()
    assert 0 < torch.load(tmp_path/'saved/0.pt', weights_only=True)['t'] < 120
    assert ended(start()) == 0
    whole = rank_augmentations(net(), splits.labelled, splits.tune[:60], FLIPS, through='training', steps=120, bs=16, since=0.,
                               trainings=1)
    found = pd.read_csv(tmp_path/'table.csv', index_col='candidate')
    assert np.allclose(found.predicted, whole.predicted[found.index], rtol=1e-5)


def test_a_folder_of_another_run_is_refused(splits, tmp_path):
    ranked = lambda seed: rank_augmentations(net(), splits.labelled, splits.tune[:60], FLIPS, through='training', path=tmp_path,
                                             seed=seed, trainings=1, **SHORT)
    ranked(0)
    with pytest.raises(ValueError, match='is of another run'): ranked(1)


shares = st.lists(st.floats(.01, 1., allow_subnormal=False), min_size=2, max_size=8).map(lambda o: np.array(o)/sum(o))


@settings(max_examples=50, deadline=None)
@given(shares, st.data(), st.floats(.1, 3., allow_subnormal=False))
def test_exponentiated_shares_are_shares_and_follow_the_rates(p, data, step):
    rates = np.array(data.draw(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=len(p)-1, max_size=len(p)-1)))
    if np.abs(rates).max() < 1e-3: return
    new = exponentiated(p, rates, step)
    assert abs(new.sum()-1) < 1e-9 and (new >= 0).all()
    gain = new/p
    order = np.argsort(np.r_[0., rates], kind='stable')
    assert (np.diff(gain[order]) <= 1e-9*gain.max()).all()


def test_no_rates_at_all_leave_the_shares_as_they_are():
    assert np.allclose(exponentiated([.5, .25, .25], [0., 0.]), [.5, .25, .25])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=40), st.integers(0, 1000))
def test_agreement_and_carriers_stay_in_their_range(values, seed):
    a = torch.tensor(values).double()
    if not a.abs().max() > 1e-3: return
    b = torch.randn(len(a), generator=torch.Generator().manual_seed(seed)).double()
    assert -1-1e-9 <= sign_agreement(a, b) <= 1+1e-9 and 0 < carriers(a) <= 1
    assert abs(carriers(a)-carriers(-2*a.flip(0))) <= 1/len(a)


def test_a_learned_policy_draws_the_same_with_the_same_seed(splits):
    found = learn_mixture(net(), splits.labelled, splits.tune[:60], FLIPS, rounds=1, **SHORT)
    x = splits.tune.x[:20].float()/255
    def drawn(seed):
        torch.manual_seed(seed)
        return found.policy(x)
    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1)) and abs(found.shares.sum()-1) < 1e-9


@pytest.mark.parametrize('how', [dict(rounds=0), dict(step=-1), dict(copies=1.)])
def test_learning_refuses_bad_settings(splits, how):
    a = Augmenter(NamedGenerator(1, 28), SharedEstimator)
    for f, what in ((learn_mixture, FLIPS), (learn_distribution, a)):
        with pytest.raises(ValueError, match=f'{next(iter(how))}='): f(net(), splits.labelled, splits.tune[:60], what, **(SHORT | how))


def test_a_window_of_one_step_is_refused_before_any_training(splits, monkeypatch):
    monkeypatch.setattr('influence_aug.influence.training.Training.step', lambda *_: pytest.fail('a step was made'))
    with pytest.raises(ValueError, match='two steps or more'):
        learn_distribution(net(), splits.labelled, splits.tune[:60], Augmenter(NamedGenerator(1, 28), SharedEstimator), steps=2)


def test_a_distribution_is_learned_in_the_type_and_place_of_the_model(splits):
    start = Augmenter(NamedGenerator(1, 28), SharedEstimator)
    single, double = (learn_distribution(net(nn.Identity).to(t), splits.labelled, splits.tune[:60], start.to(t), rounds=1, **SHORT).augmenter
                      for t in (torch.float32, torch.float64))
    assert double.estimator.mu.dtype == torch.float64 and single.estimator.mu.abs().max() > .1
    assert torch.equal(start.estimator.mu, torch.zeros_like(start.estimator.mu))
