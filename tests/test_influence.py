import pytest
import torch
from hypothesis import given, strategies as st
from scipy.optimize import root
from torch import nn
from torch.func import grad, hessian
from torchvision.models import mobilenet_v3_small, resnet18

from influence_aug.influence import *

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


@given(seed=st.integers(0, 99), l2=st.floats(1e-3, 1))
def test_values_are_derivatives_of_the_validation_loss(seed, l2):
    "Give one sample more weight, fit again, take differences: an answer that uses none of our formulas."
    h, y = problem(30, seed=seed)
    h_val, y_val = problem(20, seed=seed+1000)
    infl = head_influence(h, y, h_val, y_val, 3, l2)

    def refitted(eps):
        loss = lambda w: head_loss(w.view(3, 4), h, y, l2)+eps*head_loss(w.view(3, 4), h[:1], y[:1])
        numpy = lambda f: lambda w: f(loss)(torch.from_numpy(w)).numpy()
        found = root(numpy(grad), infl.fit.W.flatten().numpy(), jac=numpy(hessian), tol=1e-13)
        return head_loss(torch.from_numpy(found.x).view(3, 4), h_val, y_val).item()

    by_differences = (refitted(1e-4)-refitted(-1e-4))/2e-4
    assert abs(infl.up(h, y)[0].item()-by_differences) < 1e-5
    assert torch.allclose(infl.up(h, y), -infl.values(h, y))


def test_signs_by_retraining():
    h, y = problem(60)
    h_val, y_val = problem(40, seed=1)
    infl = head_influence(h, y, h_val, y_val, 3, .05)
    base = head_loss(infl.fit.W, h_val, y_val)
    predicted = infl.change_if_replaced(h, y, -h)
    for i in predicted.abs().argsort(descending=True)[:10]:
        changed = h.clone()
        changed[i] = -h[i]
        actual = head_loss(fit_head(changed, y, 3, .05).W, h_val, y_val)-base
        assert actual*predicted[i] > 0
    assert torch.allclose(infl.aug(h, y, -h), infl.up(-h, y)-infl.up(h, y))
    assert torch.allclose(predicted*60, infl.aug(h, y, -h))


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
