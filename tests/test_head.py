import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.func import grad, hessian
from torchvision.models import mobilenet_v3_small, resnet18

from influence_aug.influence.body import *
from influence_aug.influence.head import *
from influence_aug.influence.head import with_bias
from influence_aug.influence.solvers import *
from influence_aug.core.batches import Mixture, mean_over
from influence_aug.core.modes import frozen
from influence_aug.influence.solvers import EXACT_UP_TO, dot

F64 = torch.float64


def problem(n=40, d=3, k=3, seed=0, dtype=F64):
    rng = torch.Generator().manual_seed(seed)
    h = torch.randn(n, d, generator=rng, dtype=F64).to(dtype)
    y = torch.arange(n) % k
    h = h+torch.randn(k, d, generator=rng, dtype=F64).to(dtype)[y]
    return h, y


@given(n=st.integers(3, 50), d=st.integers(1, 6), k=st.integers(2, 5), seed=st.integers(0, 99), l2=st.floats(1e-4, 1))
def test_closed_forms_against_autograd(n, d, k, seed, l2):
    h, y = problem(max(n, k), d, k, seed)
    W = torch.randn(k, d+1, generator=torch.Generator().manual_seed(seed), dtype=F64)
    loss = lambda w: head_loss(w.view_as(W), h, y, l2)
    assert (head_grad(W, h, y, l2).flatten()-grad(loss)(W.flatten())).abs().max() < 1e-12
    assert (head_hessian(W, h, l2)-hessian(loss)(W.flatten())).abs().max() < 1e-12


@given(seed=st.integers(0, 200), scale=st.floats(.01, 30), l2=st.floats(1e-5, 10))
def test_the_fit_converges_from_anywhere(seed, scale, l2):
    h, y = problem(30, seed=seed)
    start = scale*torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    a, b = fit_head(h*scale, y, 3, l2), fit_head(h*scale, y, 3, l2, W=start)
    assert max(a.grad_norm, b.grad_norm) < 1.5e-8
    assert abs(a.loss-b.loss) < 1e-9


def test_float32_agrees_with_float64():
    h, y = problem(50)
    assert (fit_head(h.float(), y, 3).W-fit_head(h, y, 3).W).abs().max() < 1e-2
    assert fit_head(h.float(), y, 3).W.dtype == torch.float32


def test_bad_input():
    h, y = problem()
    with pytest.raises(ValueError, match='Labels from 0 to 2: expected 0 to 1'): fit_head(h, y, 2)
    with pytest.raises(ValueError, match='1 features are NaN'):
        h[0, 0] = float('nan')
        fit_head(h, y, 3)
    with pytest.raises(RuntimeError, match='Gradient norm .* expected'): fit_head(problem()[0], y, 3, max_steps=0)


@pytest.mark.parametrize('model,d', [(resnet18, 512), (mobilenet_v3_small, 1024)])
def test_heads_of_known_models(model, d):
    m = model(num_classes=7).eval()
    body, head = split_head(m)
    x = torch.rand(2, 3, 64, 64)
    h = features(body, x)
    assert h.shape == (2, d)
    with torch.no_grad(): assert torch.allclose(head(h), m(x), atol=1e-5)
    assert list(m.state_dict()) == list(model(num_classes=7).state_dict()) and not head._forward_pre_hooks


def test_fastai_vision_learner():
    from fastai.vision.all import create_vision_model
    m = create_vision_model(resnet18, 5, pretrained=False).eval()
    body, head = split_head(m)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(head(body(x)), m(x), atol=1e-5)


def test_features_leave_dropout_and_batchnorm_alone():
    m = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8, 2)).train()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    body, _ = split_head(m)
    x = torch.randn(50, 4)
    assert torch.allclose(features(body, x), features(body, x, bs=7), atol=1e-6)
    assert m.training and all(torch.equal(v, before[k]) for k, v in m.state_dict().items())


def test_frozen_restores_after_an_error():
    m = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    m[1].eval()
    m[0].bias.requires_grad_(False)
    with pytest.raises(KeyError):
        with frozen(m): raise KeyError
    assert m.training and not m[1].training and m[0].weight.requires_grad and not m[0].bias.requires_grad


@given(n=st.integers(2, 30), d=st.integers(1, 5), k=st.integers(2, 4), seed=st.integers(0, 99))
def test_products_against_the_dense_hessian(n, d, k, seed):
    h, y = problem(max(n, k), d, k, seed)
    rng = torch.Generator().manual_seed(seed)
    W, V = (torch.randn(k, d+1, generator=rng, dtype=F64) for _ in range(2))
    assert torch.allclose(head_hvp(V, W, h).flatten(), head_hessian(W, h)@V.flatten(), atol=1e-12)


def test_kronecker_inverse_is_exact_where_all_probabilities_agree():
    h, y = problem(30, 4)
    W, V = torch.zeros(3, 5, dtype=F64), torch.randn(3, 5, dtype=F64)
    exact = torch.linalg.solve(head_hessian(W, h, .1), V.flatten())
    assert torch.allclose(kronecker_inverse(W, [(h, y)], .1)(V).flatten(), exact, atol=1e-10)


def test_a_wide_head_reaches_the_minimum_that_scipy_finds():
    from scipy.optimize import minimize
    torch.manual_seed(0)
    h, y = torch.randn(80, 450, dtype=F64), torch.arange(80) % 5
    fit = fit_head(h, y, 5, 1e-2)
    f = lambda w: head_loss(w.view(5, 451), h, y, 1e-2)
    found = minimize(lambda w: f(torch.from_numpy(w)).item(), torch.zeros(2255, dtype=F64).numpy(), jac=lambda w: grad(f)(torch.from_numpy(w)).numpy(), method='L-BFGS-B', options=dict(maxiter=5000, ftol=1e-15, gtol=1e-9))
    assert fit.W.numel() > EXACT_UP_TO and fit.grad_norm < 1.5e-8
    assert abs(fit.loss-found.fun) < 1e-9 and (fit.W.flatten()-torch.from_numpy(found.x)).abs().max() < 1e-4


@given(n=st.integers(1, 30), seed=st.integers(0, 99), log_rtol=st.integers(-10, -1))
def test_conjugate_gradients_against_a_dense_solve(n, seed, log_rtol):
    rng = torch.Generator().manual_seed(seed)
    B, b = torch.randn(n, n, generator=rng, dtype=F64), torch.randn(n, generator=rng, dtype=F64)
    A = B@B.T+torch.eye(n, dtype=F64)
    found = conjugate_gradient(lambda v: A@v, b, 10.**log_rtol)
    assert not found.warning and found.residual <= 10.**log_rtol
    assert abs(found.residual-((b-A@found.x).norm()/b.norm()).item()) < 1e-12


def test_conjugate_gradients_in_float32_and_at_zero():
    A = torch.diag(torch.logspace(-3, 3, 50))
    found = conjugate_gradient(lambda v: A@v, torch.ones(50), 1e-4)
    assert found.residual <= 1e-4 or 'expected 1e-04' in found.warning
    nothing = conjugate_gradient(lambda v: A@v, torch.zeros(50))
    assert nothing.steps == 0 and nothing.residual == 0 and not nothing.warning
    assert 'Raise max_steps' in conjugate_gradient(lambda v: A@v, torch.ones(50), 1e-6, max_steps=3).warning


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), share=st.floats(.01, .99))
def test_means_do_not_depend_on_batches(sizes, share):
    x = torch.randn(sum(sizes), 2, dtype=F64)
    y = torch.zeros(len(x), dtype=torch.long)
    f = lambda x, y: x.mean(0)
    batches = list(zip(x.split(sizes), y.split(sizes)))
    assert torch.allclose(mean_over(batches, f), x.mean(0))
    assert torch.allclose(mean_over(Mixture((share, batches), (1-share, [(x+1, y)])), f), x.mean(0)+1-share)
