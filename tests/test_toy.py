import builtins
import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from scipy.stats import pearsonr
from torch import nn
from torch.func import grad, hessian

from influence_aug.influence.solvers import FlatModel
from influence_aug.studies import toy as toy_module, toy_sets
from influence_aug.studies.results import read_results
from influence_aug.studies.run import run
from influence_aug.studies.toy import *
from influence_aug.studies.toy_sets import *
from influence_aug.studies.toy import loss_and_accuracy, objective
from influence_aug.studies.toy_measures import *

ROOT = Path(__file__).parents[1]
SETS = [misread_set, moved_set]


@pytest.fixture(scope='module')
def learned(): return [learn_translation(make(0), rounds=6) for make in SETS]


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close('all')


def regularised(model, x, y, l2):
    flat = FlatModel(model)
    return (lambda t: flat.loss(t, x, y)+l2/2*t.square().sum()), flat.theta


@given(st.sampled_from(SETS), st.integers(0, 10**6), st.integers(24, 200))
def test_sets_are_balanced_repeatable_and_share_no_point(make, seed, n):
    toy, again = make(seed, n, n_test=50), make(seed, n, n_test=50)
    for part, same in [(toy.train, again.train), (toy.valid, again.valid), (toy.test, again.test)]:
        assert torch.equal(part[0], same[0]) and part[0].dtype == torch.float64
        assert abs(part[1].double().mean()-.5) < 1/len(part[1])
    assert toy.target.norm().item() == pytest.approx(1)
    assert len(torch.cat([toy.train[0], toy.valid[0]]).unique(dim=0)) == 2*n


@pytest.mark.parametrize('make', SETS)
@pytest.mark.parametrize('seed', [0, 1])
def test_networks_end_at_a_minimum(make, seed):
    toy = make(seed)
    model = fit_network(toy_network(seed), *toy.train)
    loss, theta = regularised(model, *toy.train, toy_module.L2)
    assert len(theta) == 114 and grad(loss)(theta).norm() <= 1e-8 and torch.linalg.eigvalsh(hessian(loss)(theta))[0] > 0


def test_fitting_agrees_with_a_peer():
    "A linear model's objective has one minimum: torch's own L-BFGS has to find the same."
    toy = moved_set()
    ours = fit_network(nn.Linear(2, 2).double(), *toy.train)
    peer = nn.Linear(2, 2).double()
    opt = torch.optim.LBFGS(peer.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn='strong_wolfe')

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(peer(toy.train[0]), toy.train[1])+toy_module.L2/2*sum(p.square().sum() for p in peer.parameters())
        loss.backward()
        return loss
    opt.step(closure)
    for a, b in zip(ours.parameters(), peer.parameters()): torch.testing.assert_close(a, b, atol=1e-7, rtol=0)


def test_fit_says_what_it_could_not_reach():
    toy = moved_set()
    with pytest.raises(RuntimeError, match='expected 1.0e-12. Use a float64'):
        fit_network(toy_network().float(), toy.train[0].float(), toy.train[1], tol=1e-12)
    model = fit_network(toy_network().float(), toy.train[0].float(), toy.train[1], tol=1e-3)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize('make', SETS)
def test_influence_is_the_gradient_of_the_validation_loss_through_training(make):
    "Every weight of a moved E, against central differences of networks trained again."
    toy = make(2)
    (x, y), E = toy.train, Translation(2)
    with torch.no_grad():
        for p in E.parameters(): p.add_(.1*torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).double())
    model = fit_network(toy_network(2), E(x).detach(), y, tol=1e-11)
    objective(toy_influence(model, E(x).detach(), toy), E, x, y).backward()
    eps = 1e-4
    for name, p in E.named_parameters():
        found = []
        for sign in (1, -1):
            nudged = copy.deepcopy(E)
            with torch.no_grad(): nudged.get_parameter(name).flatten()[0].add_(sign*eps)
            again = fit_network(copy.deepcopy(model), nudged(x).detach(), y, tol=1e-11)
            found.append(loss_and_accuracy(again, *toy.valid)[0])
        assert p.grad.flatten()[0].item() == pytest.approx((found[0]-found[1])/(2*eps), rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize('make', SETS)
def test_help_field_and_its_slope(make):
    toy = make(1)
    infl = toy_influence(fit_network(toy_network(1), *toy.train), toy.train[0], toy)
    at = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    change, down = help_field(infl, at, 1)
    torch.testing.assert_close(change, infl.upweighting(at, torch.ones(5).long()).detach()/120)
    for k in range(2):
        h = 1e-5*torch.eye(2).double()[k]
        torch.testing.assert_close(-down[:, k], (help_field(infl, at+h, 1)[0]-help_field(infl, at-h, 1)[0])/2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('make', SETS)
def test_single_points_are_predicted(make):
    toy = make(3)
    model = fit_network(toy_network(3), *toy.train)
    effects = single_point_effects(toy, model, toy.train[0]+.5*toy.target, points=20)
    assert pearsonr(effects.predicted, effects.retrained)[0] > .95 and set(effects.label) == {0, 1}
    torch.testing.assert_close(loss_and_accuracy(model, *toy.valid), loss_and_accuracy(fit_network(toy_network(3), *toy.train), *toy.valid))


def test_learning_lowers_the_loss_towards_the_target(learned):
    for o in learned:
        measures = toy_measures(o, points=4)
        assert measures['valid_loss_ratio'] < .7 and measures['test_loss_ratio'] < .8 and measures['towards_cos'] > .8
        assert len(o.rounds) == 6 and len(o.snapshots) == 7 and (o.rounds.delivered.iloc[0] < 0)
        assert o.rounds.valid_loss.iloc[-1]-loss_and_accuracy(o.before, *o.toy.valid)[0] == pytest.approx(o.rounds.delivered.sum())
    assert toy_measures(learned[1], points=4)['angle_deg'] < 30


def test_learning_is_repeatable_and_leaves_the_random_state_alone(learned):
    state = torch.random.get_rng_state()
    again = learn_translation(moved_set(0), rounds=6)
    pd.testing.assert_frame_equal(again.rounds, learned[1].rounds, check_exact=True)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.equal(again.x_aug, learned[1].x_aug)


def test_a_cost_keeps_pushes_short(learned):
    push = lambda o: (o.x_aug-o.toy.train[0]).norm(dim=1).mean()
    assert push(learn_translation(moved_set(0), rounds=6, cost=10.)) < push(learned[1])


def test_figure3_in_both_formats_twice_the_same(tmp_path):
    for name in ('a', 'b'): figure3(1, tmp_path/'sub'/name, rounds=2)
    for kind in ('png', 'svg'): assert (tmp_path/f'sub/a.{kind}').read_bytes() == (tmp_path/f'sub/b.{kind}').read_bytes()
    pixels = plt.imread(tmp_path/'sub/a.png')
    assert pixels.shape[1] > 1400 and (pixels[0] == 1).all()
    svg = (tmp_path/'sub/a.svg').read_text()
    assert toy_sets.RED.lower() in svg and toy_sets.BLUE.lower() in svg and len(svg) < 10**6


def test_colours_stay_apart():
    "Luminance differs between the two class colours, and the points between them and the shades they lie on (WCAG 3:1 on white)."
    def luminance(c):
        rgb = [int(c[i:i+2], 16)/255 for i in (1, 3, 5)]
        return sum(w*(v/12.92 if v <= .04045 else ((v+.055)/1.055)**2.4) for w, v in zip((.2126, .7152, .0722), rgb))
    contrast = lambda a, b: (max(a, b)+.05)/(min(a, b)+.05)
    red, blue = luminance(toy_sets.RED), luminance(toy_sets.BLUE)
    assert contrast(red, 1) > 3 and contrast(blue, 1) > 3 and contrast(red, blue) > 1.2


@pytest.mark.parametrize('change,message', [
    (lambda x, y: (x, 0*y), 'All 30 points in train are of class 0: expected both classes'),
    (lambda x, y: (x.index_fill(0, torch.tensor([3]), float('nan')), y), '2 coordinates in train are NaN or infinite'),
    (lambda x, y: (x.index_fill(0, torch.tensor([3]), float('inf')), y), '2 coordinates in train are NaN or infinite'),
    (lambda x, y: (x[:, :1], y), r'train has points of shape \(30, 1\) and 30 labels: expected \(n, 2\)'),
    (lambda x, y: (x, y[:-1]), r'train has points of shape \(30, 2\) and 29 labels'),
    (lambda x, y: (x, y+1), r'Labels \[2\] in train: expected 0 and 1'),
    (lambda x, y: (x[:0], y[:0]), 'No train points'),
])
def test_training_points_that_cannot_be_used(change, message):
    toy = moved_set(n=30)
    with pytest.raises(ValueError, match=message): ToySet(change(*toy.train), toy.valid)
    with pytest.raises(ValueError, match=message.replace('train', 'valid')): ToySet(toy.train, change(*toy.valid))


def test_no_validation_points():
    with pytest.raises(ValueError, match='No valid points: expected some of both classes'): ToySet(moved_set().train, None)


def test_validation_points_among_the_training_points():
    toy = moved_set(n=30)
    with pytest.raises(ValueError, match='30 points are in both train and valid: expected none'): ToySet(toy.train, toy.train)


def test_measures_need_a_target(learned):
    o = copy.copy(learned[1])
    o.toy = ToySet(o.toy.train, o.toy.valid)
    with pytest.raises(ValueError, match='has no target or no test points'): toy_measures(o)


def test_shifts_by_hand():
    toy = moved_set(0)
    model = fit_network(toy_network(0), *toy.train)
    t = shift_effects(toy, model, torch.tensor([[0., 0.], [0., 1e-3], [0., -1.]]).double())
    assert t.retrained[0] == pytest.approx(0, abs=1e-9) and t.predicted[0] == 0
    assert t.retrained[1] == pytest.approx(t.predicted[1], rel=.02) and t.retrained[2] < -.5


def test_sliders_move_the_points(monkeypatch):
    widgets = pytest.importorskip('ipywidgets', reason='ipywidgets is optional: without it drag_shift draws four pictures, as the next test checks')
    seen = {}
    monkeypatch.setattr(widgets, 'interact', lambda f, **sliders: seen.update(f=f, **sliders))
    monkeypatch.setattr(plt, 'show', lambda: None)
    toy = moved_set(0, n=30)
    drag_shift(toy, fit_network(toy_network(0), *toy.train))
    assert all((seen[k].min, seen[k].value, seen[k].max) == (-2, 0, 2) for k in ('dx', 'dy'))
    seen['f'](dx=.5, dy=-1.)
    assert 'moved by (+0.5, -1.0)' in plt.gca().get_title()


def test_without_sliders_pictures(monkeypatch):
    real = builtins.__import__

    def without_widgets(name, *args, **kwargs):
        if name == 'ipywidgets': raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without_widgets)
    toy = moved_set(0, n=30)
    fig = drag_shift(toy, fit_network(toy_network(0), *toy.train))
    assert len(fig.axes) == 4 and all(re.search('predicted .* true', ax.get_title()) for ax in fig.axes)


def test_a_run_again_gives_the_same_measures(tmp_path):
    settings = dict(row=1, seed=0, rounds=1, points=3)
    first, again = (run(TOY, tmp_path/f'{k}.csv', **settings) for k in range(2))
    measures = lambda rows: {o['measure']: o['value'] for o in rows if o['measure'] != 'seconds_to_learn'}
    assert measures(first) == measures(again) and run(TOY, tmp_path/'0.csv', **settings) is None
    assert not read_results(tmp_path/'0.csv').duplicated(['row', 'seed', 'measure']).any()


def test_committed_figures_are_what_was_asked():
    t = read_results(ROOT/'results/toy.csv').pivot_table('value', ['row', 'seed'], 'measure')
    assert list(t.index) == [(row, seed) for row in (1, 2) for seed in range(20)] and not t.isna().any().any()
    one, two = t.loc[1], t.loc[2]
    assert (one.valid_loss_ratio <= .5).sum() >= 18 and (one.towards_cos > 0).sum() >= 18
    assert (two.angle_deg <= 30).sum() >= 18 and (two.accuracy_gain >= 10).sum() >= 18
    assert (t.towards_cos.loc[2]-t.angle_deg.loc[2].map(lambda a: math.cos(math.radians(a)))).abs().max() < 1e-4
