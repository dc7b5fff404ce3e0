import warnings
from functools import partial
from types import SimpleNamespace

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy.optimize import root
from torch import nn
from torch.func import functional_call, grad, hessian, vmap
from torchvision.models import resnet18
from torchvision.transforms import v2

from influence_aug.augment.classifier import small_cnn, tensor_dls
from influence_aug.core.batches import *
from influence_aug.core.data import draw_splits
from influence_aug.core.datasets import mnist_sample
from influence_aug.influence.body import *
from influence_aug.influence.head import *
from influence_aug.influence.influence import *
from influence_aug.influence.body import FeatureBatches
from influence_aug.influence.ranking import *
from influence_aug.influence.solvers import *
from influence_aug.influence.solvers import EXACT_UP_TO, dot

F64 = torch.float64


def problem(n=40, d=3, k=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    return torch.randn(n, d, generator=rng, dtype=F64)+torch.randn(k, d, generator=rng, dtype=F64)[y], y


def linear(d=3, k=3): return nn.Linear(d, k).double()


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(.5), nn.Linear(12, 3)).double()


def pictures(n=30, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=rng, dtype=F64), torch.arange(n) % 3


@settings(max_examples=20)
@given(seed=st.integers(0, 99), l2=st.floats(1e-3, 1))
def test_values_are_derivatives_of_the_validation_loss(seed, l2):
    "Give one sample more weight, fit again, take differences: an answer that uses none of our formulas."
    h, y = problem(30, seed=seed)
    h_val, y_val = problem(20, seed=seed+1000)
    infl = Influence(linear(), (h, y), (h_val, y_val), l2=l2).fit()

    def refitted(eps):
        loss = lambda w: head_loss(w.view(3, 4), h, y, l2)+eps*head_loss(w.view(3, 4), h[:1], y[:1])
        numpy = lambda f: lambda w: f(loss)(torch.from_numpy(w)).numpy()
        found = root(numpy(grad), infl.problem.W.flatten().numpy(), jac=numpy(hessian), tol=1e-13)
        return head_loss(torch.from_numpy(found.x).view(3, 4), h_val, y_val).item()

    by_differences = (refitted(1e-4)-refitted(-1e-4))/2e-4
    assert abs(infl.upweighting(h, y)[0].item()-by_differences) < 1e-5
    assert torch.allclose(infl.upweighting(h, y), -infl.values(h, y))


def test_signs_by_retraining():
    h, y = problem(60)
    h_val, y_val = problem(40, seed=1)
    infl = Influence(linear(), (h, y), (h_val, y_val), l2=.05).fit()
    base = head_loss(infl.problem.W, h_val, y_val)
    predicted = infl.change_if_replaced(h, y, -h)
    for i in predicted.abs().argsort(descending=True)[:10]:
        changed = h.clone()
        changed[i] = -h[i]
        actual = head_loss(fit_head(changed, y, 3, .05).W, h_val, y_val)-base
        assert actual*predicted[i] > 0
    assert torch.allclose(infl.augmenting(h, y, -h), infl.upweighting(-h, y)-infl.upweighting(h, y))
    assert torch.allclose(predicted*60, infl.augmenting(h, y, -h))
    assert torch.allclose(infl.change_if_removed(h, y), infl.values(h, y)/60)


@pytest.mark.parametrize('params', ['all', ['0', '6'], 'head'])
def test_values_against_gradients_of_single_samples(params):
    model, (x, y) = conv_net(), pictures()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        infl = Influence(model, (x, y), pictures(seed=1), params=params).fit()
    if params == 'head':
        h = features(infl.problem.body, x)
        expected = torch.stack([dot(infl.s.view_as(infl.problem.W), head_grad(infl.problem.W, h[i:i+1], y[i:i+1])) for i in range(len(y))])
    else:
        flat = infl.problem.flat
        expected = vmap(lambda x, y: grad(lambda t: flat.loss(t, x[None], y[None]))(flat.theta))(x, y)@infl.s
    assert torch.allclose(infl.values(x, y), expected, atol=1e-10)


@pytest.mark.parametrize('params', ['all', 'head'])
def test_values_are_differentiable_in_the_image(params):
    model, (x, y) = conv_net(), pictures()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        infl = Influence(model, (x, y), pictures(seed=1), params=params).fit()
    model.train()
    z = x[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: infl.values(z, y[:2]), (z,), atol=1e-6)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('kwargs', [dict(), dict(params='all'), dict(params=['6'], solver='cg'), dict(params='all', solver='lissa'), dict(refit=False)])
def test_the_model_is_left_alone(kwargs):
    model, (x, y) = conv_net().train(), pictures()
    model[5].eval()
    before, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        infl = Influence(model, (x, y), pictures(seed=1), **kwargs).fit()
    assert torch.equal(infl.values(x, y), infl.values(x, y))
    assert infl.change_if_replaced(x, y, x.flip(3)).shape == (30,) and infl.table((x, y)).shape == (30, 3)
    assert [m.training for m in model.modules()] == modes and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert '| solver |' in infl.report._repr_markdown_()


def test_solvers_give_the_same_values():
    model, (x, y), valid = conv_net(), pictures(), pictures(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        make = lambda **kw: Influence(model, (x, y), valid, params='all', damping=.1, **kw).fit().values(x, y)
        reference = make(solver='exact')
        for solver in ('cg', 'lissa', partial(cg, rtol=1e-10)): assert (make(solver=solver)-reference).norm() < .05*reference.norm()
        assert not torch.allclose(make(curvature='hessian'), reference)
        own = make(curvature=lambda flat: lambda v, x, y: 0*v)
    assert own.isfinite().all()


def test_newton_steps_against_dense_algebra_and_retraining():
    (x, labels), n, l2 = problem(70), 40, .05
    h, y, h_val, y_val = x[:n], labels[:n], x[n:], labels[n:]
    infl = Influence(linear(), (h, y), (h_val, y_val), l2=l2).fit()
    W, base = infl.problem.W, head_loss(infl.problem.W, h_val, y_val)
    removed, replaced = infl.newton_if_removed(h[:8], y[:8]), infl.newton_if_replaced(h[:8], y[:8], -h[:8])
    errors = []
    for i in range(8):
        for found, first, new in [(removed, infl.change_if_removed(h, y), None), (replaced, infl.change_if_replaced(h, y, -h), -h[i:i+1])]:
            others = torch.cat([h[:i], h[i+1:]]+([] if new is None else [new])), torch.cat([y[:i], y[i+1:]]+([] if new is None else [y[i:i+1]]))
            part = len(others[1])/n
            H = part*head_hessian(W, others[0])+l2*torch.eye(W.numel(), dtype=F64)
            step = torch.linalg.solve(H, (part*head_grad(W, *others)-head_grad(W, h, y)).flatten()).view_as(W)
            assert abs(found[i]-(head_loss(W-step, h_val, y_val)-base)) < 1e-10
            actual = head_loss(fit_head(*others, 3, l2/part).W, h_val, y_val)-base
            if new is None: errors.append([abs(found[i]-actual).item(), abs(first[i]-actual).item()])
    step, first = torch.tensor(errors).mean(0)
    assert step < .3*first


def test_newton_steps_through_all_layers():
    model, (x, y) = conv_net(), pictures()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        infl = Influence(model, (x, y), pictures(seed=1), params='all', damping=.1).fit()
    flat, new = infl.problem.flat, x.flip(3)
    A = infl.A.dense(infl.s)
    def curvature(x): return Curvature(ggn_of(flat), Batches((x, y[:1])), 0., len(A)).dense(infl.s)/30
    def gradient(x): return grad(lambda t: flat.loss(t, x, y[:1]))(flat.theta)/30
    step = torch.linalg.solve(A-curvature(x[:1])+curvature(new[:1]), gradient(new[:1])-gradient(x[:1]))
    expected = infl._valid_loss(flat.theta-step)-infl._valid_loss(flat.theta)
    assert abs(infl.newton_if_replaced(x[:1], y[:1], new[:1])[0]-expected) < 1e-10


def test_newton_steps_of_a_wide_head_by_products():
    torch.manual_seed(0)
    train, valid = (torch.randn(60, 700, dtype=F64), torch.arange(60) % 3), problem(20, 700, seed=1)
    wide = Influence(linear(700), train, valid).fit()
    exactly = Influence(linear(700), train, valid, solver='exact').fit()
    exactly._factor = torch.linalg.lu_factor(exactly.A.dense(exactly.s))
    solve = torch.linalg.lu_solve(*exactly._factor, wide.b[:, None])[:, 0]
    assert wide.A.size > EXACT_UP_TO and (wide._inverse(wide.b[None])[0]-solve).norm() < 1e-3*solve.norm()
    assert wide.newton_if_removed(train[0][:2], train[1][:2]).isfinite().all()


def test_auto_says_what_it_picked_and_wide_features_go_to_a_file():
    torch.manual_seed(0)
    h, y = torch.randn(60, 700, dtype=F64), torch.arange(60) % 3
    infl = Influence(linear(700), (h, y), problem(20, 700, seed=1), solver='auto', bs=13).fit()
    assert infl.report.solver == 'cg' and infl.report.residual < 1e-4 and infl.report.size == 2103
    assert Influence(linear(700), (h, y), problem(20, 700, seed=1), solver='exact').fit().report.solver == 'exact'
    body = split_head(linear(700))[0]
    kept, streamed = FeatureBatches(body, Batches((h, y), bs=13)), FeatureBatches(body, Batches((h, y), bs=13), max_bytes=0)
    for _ in range(2): assert torch.equal(torch.cat([a for a, _ in kept]), torch.cat([a for a, _ in streamed]))
    assert isinstance(streamed.kept.x, torch.Tensor) and len(list(Path(streamed._folder.name).iterdir())) == 1 and not hasattr(kept, '_folder')
    for o in (kept, streamed): assert sorted(torch.cat([b for _, b in o.shuffled(7, torch.Generator())]).tolist()) == sorted(y.tolist())


def test_warnings_and_remedies():
    h, y = problem(60)
    with pytest.warns(UserWarning, match='θ is not at a minimum.*Pass refit=True'): Influence(linear(), (h, y), problem(seed=1), refit=False).fit()
    model, (x, y) = conv_net(), pictures()
    with pytest.warns(UserWarning, match="Raise damping by more than that, or use curvature='ggn'"):
        r = Influence(model, (x, y), pictures(seed=1), params='all', curvature='hessian', damping=1e-6).fit().report
    assert r.eigenvalues[0] < 0 and r.warnings and '**Warning.**' in r._repr_markdown_()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert not Influence(linear(), (h, problem(60)[1]), problem(seed=1)).fit().report.warnings


def test_finishing_is_the_change_that_fitting_makes():
    "−s·∇L predicts, to first order, what going to the minimum does to the validation loss."
    (h, y), (h_val, y_val) = problem(60), problem(seed=1)
    model = linear()
    W = fit_head(h, y, 3, .1).W+1e-4*torch.randn(3, 4, dtype=F64)
    with torch.no_grad(): model.weight.copy_(W[:, :-1]); model.bias.copy_(W[:, -1])
    infl = Influence(model, (h, y), (h_val, y_val), l2=.1, damping=0., refit=False).fit()
    actual = head_loss(fit_head(h, y, 3, .1).W, h_val, y_val)-head_loss(W, h_val, y_val)
    assert abs(infl.report.finishing/actual.item()-1) < .05


def test_images_and_loaders_of_known_models():
    torch.manual_seed(0)
    x, y = torch.rand(12, 3, 32, 32), torch.arange(12) % 2
    for model in (resnet18(num_classes=2), fastai_vision_model()):
        infl = Influence(model, torch.utils.data.DataLoader(list(zip(x, y)), batch_size=5), (torch.rand(6, 3, 32, 32), y[:6])).fit()
        assert infl.values(x, y).shape == (12,) and infl.report.n_train == 12
    splits = draw_splits(mnist_sample(), frac=.01)
    dls = tensor_dls(splits.labelled, splits.valid[:100], n_steps=3)
    a, b = (Influence(small_cnn(1, 10), *data).fit().n for data in ((dls.train, dls.valid), (splits.labelled, splits.valid[:100])))
    assert a == b == 600


def fastai_vision_model():
    from fastai.vision.all import create_vision_model
    return create_vision_model(resnet18, 2, pretrained=False)


def test_fastai_tensors_are_taken_as_they_come():
    from fastai.vision.all import TensorCategory, TensorImage
    model, (x, y) = conv_net(), pictures()
    infl = Influence(model, (x, y), pictures(seed=1)).fit()
    image, label = x[:3].as_subclass(TensorImage), y[:3].as_subclass(TensorCategory)
    for name in ('values', 'change_if_removed', 'newton_if_removed'):
        assert torch.equal(getattr(infl, name)(image, label), getattr(infl, name)(x[:3], y[:3]))
    assert type(infl.change_if_replaced(image, label, image.flip(3))) is torch.Tensor


def test_bad_input():
    x, y = pictures()
    valid, model = pictures(seed=1), conv_net()
    make = lambda train=(x, y), valid=valid, model=model, **kw: Influence(model, train, valid, **kw).fit()
    broken = x.clone()
    broken[0, 0, 0, 0] = float('nan')
    for match, kw in {
        'values in train are NaN': dict(train=(broken, y)),
        'Labels from 0 to 3 in train: expected 0 to 2': dict(train=(x, torch.arange(30) % 4)),
        r'Classes without a training image: \[2\]': dict(train=(x, torch.arange(30) % 2)),
        '3 training images are validation images too': dict(valid=(x[:3], y[:3])),
        r'cannot take images of shape \(3, 8, 8\)': dict(train=(x.repeat(1, 3, 1, 1), y)),
        "solver='magic': expected one of auto, cg, exact, lissa": dict(solver='magic'),
        "curvature='fisher': expected one of": dict(params='all', curvature='fisher'),
        "params='0': expected 'head', 'all', or a list": dict(params='0'),
        'expected finite numbers ≥ 0': dict(damping=-1.),
        'leave scaling and softmax to the loss': dict(model=nn.Sequential(conv_net(), nn.Softmax(1))),
    }.items():
        with pytest.raises(ValueError, match=match): make(**kw)
    with pytest.raises(RuntimeError, match=r'call fit\(\) first'): Influence(model, (x, y), valid).values(x, y)
    assert Influence(nn.Sequential(conv_net(), nn.Softmax(1)), (x, y), valid, params='all').problem is not None


@pytest.fixture(scope='module')
def digits():
    splits = draw_splits(mnist_sample(), frac=.01)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 10))
    return model, splits.labelled, splits.valid[:300]


CANDIDATES = {'nothing': lambda x: x, 'rotate': v2.RandomRotation(20), 'noise': lambda x: (x+.3*torch.randn_like(x)).clamp(0, 1), 'composed': v2.Compose([v2.RandomRotation(90), v2.RandomInvert(1.)])}


def test_ranking(digits):
    model, train, valid = digits
    state = torch.random.get_rng_state()
    table = rank_augmentations(model, train, valid, CANDIDATES, draws=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert table.equals(rank_augmentations(model, train, valid, CANDIDATES, draws=2))
    assert table.predicted.is_monotonic_increasing and table.loc['nothing', ['predicted', 'low', 'high', 'first_order']].abs().max() < 1e-6
    assert ((table.low <= table.predicted) & (table.predicted <= table.high)).all()
    assert (table.verdict == ['changes nothing' if k == 'nothing' else 'helps' if high < 0 else 'may harm' if low > 0 else 'cannot tell'
                               for k, low, high in zip(table.index, table.low, table.high)]).all()
    assert table.verdict['nothing'] == 'changes nothing'
    small = rank_augmentations(model, train, valid, CANDIDATES, share=1e-5)
    assert (small.predicted-small.first_order).abs().max() < 1e-3*small.first_order.abs().max()+1e-8
    assert plot_ranking(table).get_xlabel()


def test_ranking_undoes_fastai_normalize(digits):
    from fastai.data.all import Normalize, TfmdDL
    from fastai.vision.all import TensorImage
    model, train, valid = digits

    class OfNormalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
        def forward(self, x): return self.model(x*.3+.1)

    def loader(images):
        items = [(TensorImage(x), y) for x, y in zip(images.x.float()/255, images.y)]
        return TfmdDL(items, bs=64, num_workers=0, after_batch=[Normalize.from_stats([.1], [.3], cuda=False)])

    fixed = {'mirror': lambda x: x.flip(3), 'invert': lambda x: 1-x}
    assert abs(next(iter(loader(valid)))[0].min().item()+1/3) < 1e-6
    a, b = rank_augmentations(model, train, valid, fixed), rank_augmentations(OfNormalised(), loader(train), loader(valid), fixed)
    numbers = ['predicted', 'low', 'high', 'first_order']
    assert (a[numbers]-b[numbers]).abs().max().max() < 1e-5 < a[numbers].abs().max().max()


def test_ranking_names_what_is_wrong(digits):
    model, train, valid = digits
    rank = partial(rank_augmentations, model, train, valid)
    with pytest.raises(ValueError, match=r"Candidate 'small' failed on 5 images, a tensor \(5, 1, 28, 28\): .*\(5, 1, 28, 28\) into \(5, 1, 26, 28\)"): rank({'small': lambda x: x[:, :, 2:]})
    with pytest.raises(ValueError, match="Candidate 'nan' failed"): rank({'nan': lambda x: x*float('nan')})
    with pytest.raises(ValueError, match=r"Candidate 'bytes' failed on 5 images, a tensor \(5, 1, 28, 28\): .* values from 0 to 255: expected"): rank({'bytes': lambda x: x*255})
    with pytest.raises(ValueError, match=r"Candidate 'none' failed on 5 images, a tensor \(5, 1, 28, 28\): .* returned a NoneType"): rank({'none': lambda x: None})
    with pytest.raises(ValueError, match="Candidate 'three' failed on 5 images"): rank({'three': lambda x: x[:3]})
    for wrong in ({}, [lambda x: x]):
        with pytest.raises(ValueError, match='expected a dict of names and functions'): rank(wrong)
    with pytest.raises(TypeError, match='expected an nn.Module, or for influence a Learner'): rank_augmentations(SimpleNamespace(model=model), train, valid, CANDIDATES)
    with pytest.raises(TypeError, match='expected an nn.Module, or for influence a Learner'): Influence(SimpleNamespace(model=model), train, valid)
    with pytest.raises(ValueError, match='share=0: expected'): rank(CANDIDATES, share=0)
    with pytest.raises(ValueError, match='policies expect'): rank_augmentations(model, ((train.x.float()-128)/64, train.y), (valid.x.float()/255, valid.y), CANDIDATES)
