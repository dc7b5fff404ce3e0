"""Class weights and label smoothing, through the head and through all layers, against PyTorch's own loss; other losses refused by name."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat, MSELossFlat
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev

from influence_aug.core.losses import class_targets, loss_targets, masses, residual, set_targets
from influence_aug.influence.influence import Influence
from influence_aug.influence.ranking import rank_augmentations

F64 = torch.float64
WEIGHT = torch.tensor([1., 20., .5])
LOSSES = {'weights': nn.CrossEntropyLoss(WEIGHT), 'smoothing': nn.CrossEntropyLoss(label_smoothing=.2), 'both': nn.CrossEntropyLoss(WEIGHT, label_smoothing=.1),
          'function': partial(F.cross_entropy, weight=WEIGHT, label_smoothing=.1), 'fastai': CrossEntropyLossFlat(weight=WEIGHT), 'fastai smoothing': LabelSmoothingCrossEntropyFlat(eps=.2)}


def in_double(loss):
    """PyTorch's function with the same settings, in float64."""
    return {'weights': partial(F.cross_entropy, weight=WEIGHT.double()), 'smoothing': partial(F.cross_entropy, label_smoothing=.2),
            'both': partial(F.cross_entropy, weight=WEIGHT.double(), label_smoothing=.1), 'function': partial(F.cross_entropy, weight=WEIGHT.double(), label_smoothing=.1),
            'fastai': partial(F.cross_entropy, weight=WEIGHT.double()), 'fastai smoothing': partial(F.cross_entropy, label_smoothing=.2)}[loss]


def images(n, seed):
    """Three classes of unequal size, far from balanced."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(3), torch.multinomial(torch.tensor([.7, .1, .2]), n-3, True, generator=rng)])
    x = .2*torch.rand(n, 1, 4, 4, generator=rng, dtype=F64)+.5*torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=F64)[y]
    return x, y


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def fitted(loss, parts, l2, h, K=3):
    """The head at the minimum of Σ share·loss + l2/2‖W‖² by LBFGS; `parts` are (share, features, labels)."""
    W = torch.zeros(K, h+1, dtype=F64, requires_grad=True)
    opt = torch.optim.LBFGS([W], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn='strong_wolfe')
    def closure():
        opt.zero_grad()
        total = sum(share*loss(f@W[:, :-1].T+W[:, -1], y) for share, f, y in parts)+l2/2*W.square().sum()
        total.backward()
        return total
    opt.step(closure)
    return W.detach()


@pytest.mark.parametrize('name', LOSSES)
def test_ranking_under_another_loss(model, name):
    (x, y), (v, u), loss = images(60, 2), images(40, 3), in_double(name)
    flip, body = (lambda o: o.flip(3)), model[:3]
    table = rank_augmentations(model, (x, y), (v, u), {'flip': flip}, loss=LOSSES[name])
    with torch.no_grad(): h, h_new, hv = body(x), body(flip(x)), body(v)
    at = lambda W: loss(hv@W[:, :-1].T+W[:, -1], u).item()
    change = at(fitted(loss, [(.9, h, y), (.1, h_new, y)], 1e-2, 5))-at(fitted(loss, [(1., h, y)], 1e-2, 5))
    plain = rank_augmentations(model, (x, y), (v, u), {'flip': flip}).predicted['flip']
    assert abs(table.predicted['flip']-change) < 1e-6 and abs(plain-change) > 2e-5
    W = fitted(loss, [(1., h, y)], 1e-2, 5).requires_grad_()
    of = lambda W, f, labels: loss(f@W[:, :-1].T+W[:, -1], labels)
    H = hessian(lambda w: of(w.view(3, 6), h, y)+.005*w.square().sum())(W.detach().flatten())
    g = [torch.autograd.grad(of(W, *o), W)[0].flatten() for o in ((hv, u), (h_new, y), (h, y))]
    assert abs(table.first_order['flip']+.1*g[0]@torch.linalg.solve(H, g[1]-g[2])) < 1e-6


@pytest.mark.parametrize('name', LOSSES)
def test_leaving_one_out_under_another_loss(model, name):
    """The others keep their weights in the sum, as in Eq. 10: only the sample's own term goes."""
    (x, y), (v, u), loss = images(60, 2), images(40, 3), in_double(name)
    infl = Influence(model, (x, y), (v, u), loss=LOSSES[name]).fit()
    with torch.no_grad(): h, hv = model[:3](x), model[:3](v)
    norm = loss.keywords.get('weight', torch.ones(3, dtype=F64))[y].sum()
    at = lambda W: loss(hv@W[:, :-1].T+W[:, -1], u).item()
    full = at(infl.problem.W)
    for i in range(5):
        rest = torch.arange(60) != i
        summed = lambda z, labels: partial(loss, reduction='sum')(z, labels)/norm
        actual = at(fitted(summed, [(1., h[rest], y[rest])], 1e-2, 5))-full
        one = slice(i, i+1)
        assert abs(infl.newton_if_removed(x[one], y[one]).item()-actual) < .06*abs(actual)+1e-6
        assert abs(infl.change_if_removed(x[one], y[one]).item()-actual) < .5*abs(actual)+1e-5
    assert 'cross-entropy, class weights' in infl.report._repr_markdown_()


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('curvature', ['ggn', 'hessian'])
@pytest.mark.parametrize('solver', ['exact', 'cg'])
def test_all_layers_under_another_loss(model, name, curvature, solver):
    """Against matrices that PyTorch's own loss gives by automatic differentiation."""
    (x, y), (v, u), loss = images(30, 2), images(40, 3), in_double(name)
    for p in model[1].parameters(): p.requires_grad_(False)
    infl = Influence(model, (x, y), (v, u), 'all', curvature, solver, damping=3., loss=LOSSES[name])
    with pytest.warns(UserWarning, match='not at a minimum'): infl.fit()
    names = ['3.weight', '3.bias']
    theta = torch.cat([model.get_parameter(k).detach().flatten() for k in names])
    logits = lambda t, x: functional_call(model, {names[0]: t[:15].view(3, 5), names[1]: t[15:]}, (x,))
    g = grad(lambda t: loss(logits(t, v), u))(theta)
    if curvature == 'hessian': H = hessian(lambda t: loss(logits(t, x), y))(theta)
    else:
        J, B = jacrev(lambda t: logits(t, x))(theta).flatten(0, 1), hessian(lambda z: loss(z.view(30, 3), y))(logits(theta, x).flatten())
        H = J.T@B@J
    s = torch.linalg.solve(H+3.*torch.eye(len(theta), dtype=F64), g)
    assert torch.allclose(infl.s, s, atol=1e-4*s.norm().item())
    norm = loss.keywords.get('weight', torch.ones(3, dtype=F64))[y].sum()/30
    for i in range(3):
        one = grad(lambda t: partial(loss, reduction='sum')(logits(t, x[i:i+1]), y[i:i+1])/norm)(theta)
        assert abs(infl.values(x[i:i+1], y[i:i+1]).item()-s@one) < 1e-4*(s.norm()*one.norm()).item()


def test_lissa_and_conjugate_gradients_agree(model):
    (x, y), (v, u) = images(60, 2), images(40, 3)
    found = [Influence(model, (x, y), (v, u), solver=o, l2=.1, loss=LOSSES['both']).fit().s for o in ('exact', 'cg', 'lissa')]
    assert all((o-found[0]).norm() < .05*found[0].norm() for o in found)


def test_a_learners_loss_is_its_own(model):
    (x, y), (v, u) = images(60, 2), images(40, 3)
    model.float()
    dls = DataLoaders.from_dsets(list(zip(x.float(), y)), list(zip(v.float(), u)), bs=20, num_workers=0, device='cpu')
    learn = Learner(dls, model, loss_func=LOSSES['weights'])
    flip, data = {'flip': lambda o: o.flip(3)}, (dls.train, dls.valid)
    ranked = [rank_augmentations(o, *data, flip, **k) for o, k in ((learn, {}), (model, dict(loss=LOSSES['weights'])), (learn, dict(loss=nn.CrossEntropyLoss())), (model, {}))]
    assert ranked[0].equals(ranked[1]) and ranked[2].equals(ranked[3]) and not ranked[0].equals(ranked[2])
    with pytest.raises(ValueError, match='FocalLoss'): rank_augmentations(Learner(dls, model, loss_func=FocalLossFlat()), *data, flip)


def test_equal_weights_are_plain_to_the_last_digit(model):
    (x, y), (v, u) = images(60, 2), images(40, 3)
    a, b = (rank_augmentations(model, (x, y), (v, u), {'flip': lambda o: o.flip(3)}, loss=o) for o in (None, nn.CrossEntropyLoss(torch.full((3,), 2.))))
    assert a.equals(b)


class Squared(nn.CrossEntropyLoss):
    def forward(self, z, y): return super().forward(z, y)**2


@pytest.mark.parametrize('loss, words', [
    (FocalLossFlat(), 'FocalLoss gives other values'), (nn.CrossEntropyLoss(reduction='sum'), 'CrossEntropyLoss gives other values'), (nn.CrossEntropyLoss(reduction='none'), 'CrossEntropyLoss'),
    (BCEWithLogitsLossFlat(), 'BCEWithLogitsLoss'), (MSELossFlat(), 'MSELoss'), (nn.NLLLoss(), 'log-probabilities'), (nn.MultiMarginLoss(), 'MultiMarginLoss gives'), (Squared(), 'Squared gives'),
    (nn.CrossEntropyLoss(torch.ones(4)), r'weights of shape \(4,\)'), (nn.CrossEntropyLoss(-WEIGHT), 'weights from -20'), (nn.CrossEntropyLoss(torch.tensor([1., float('nan'), 1.])), 'weights from nan'),
    (nn.CrossEntropyLoss(ignore_index=1), 'other values'), ('cross', 'str fails'), (LabelSmoothingCrossEntropyFlat(eps=.1, weight=WEIGHT), 'LabelSmoothingCrossEntropy gives other'),
    (lambda z, y: 2*F.cross_entropy(z, y), 'other values'), (lambda z, y: F.cross_entropy(z, y)+z.square().mean(), 'other values')])
def test_other_losses_are_refused_by_name(model, loss, words):
    (x, y), (v, u) = images(30, 2), images(40, 3)
    for params in ('head', 'all'):
        with pytest.raises(ValueError, match=f'(?s){words}.*pass loss=nn.CrossEntropyLoss'): Influence(model, (x, y), (v, u), params, loss=loss)


def test_half_precision_has_no_inverse(model):
    (x, y), (v, u) = images(30, 2), images(40, 3)
    with pytest.raises(ValueError, match='bfloat16 .*expected float32'): Influence(model.bfloat16(), (x, y), (v, u), 'all')


@settings(deadline=None, max_examples=40)
@given(K=st.integers(2, 12), n=st.integers(1, 30), smoothing=st.sampled_from([0., .1, .5, .9]), seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, F64]))
def test_targets_give_pytorchs_loss_and_gradient(K, n, smoothing, seed, dtype):
    rng = torch.Generator().manual_seed(seed)
    z, y, w = torch.randn(n, K, generator=rng, dtype=dtype), torch.randint(K, (n,), generator=rng), torch.rand(K, generator=rng, dtype=dtype)+.01
    t = set_targets(class_targets(w, smoothing), w, y.bincount(minlength=K))[y]
    asked = lambda z: F.cross_entropy(z, y, weight=w, label_smoothing=smoothing)
    tol = dict(rtol=1e-4, atol=1e-5) if dtype == torch.float32 else dict(rtol=1e-10, atol=1e-12)
    assert torch.allclose(F.cross_entropy(z, t), asked(z), **tol) and torch.allclose(residual(z, t)/n, grad(asked)(z), **tol)
    assert masses(y) is None and torch.allclose(masses(t), t.sum(1))
    found = loss_targets(nn.CrossEntropyLoss(w, label_smoothing=smoothing), K)
    assert torch.allclose(found.table, class_targets(w.double(), smoothing), rtol=1e-5)
