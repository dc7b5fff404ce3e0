import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from influence_aug.augment.augmenter import *
from influence_aug.augment.augmenter import PACKAGE, _checksum
from influence_aug.augment.classifier import small_cnn
from influence_aug.augment.objectives import *
from influence_aug.augment.transforms import Generator
from influence_aug.core.modes import frozen
from influence_aug.influence.body import *
from influence_aug.influence.head import *
from influence_aug.influence.head import with_bias
from influence_aug.influence.solvers import *

KINDS_OF_E = [Estimator, StochasticEstimator, SharedEstimator, RandomEstimator]


@pytest.mark.parametrize('kind', KINDS_OF_E)
@pytest.mark.parametrize('channels,size,n_tau', [(1, 28, 128), (3, 32, 16), (3, 64, 8)])
def test_estimators(kind, channels, size, n_tau):
    E = kind(channels, size, n_tau)
    tau = E(torch.rand(3, channels, size, size))
    assert tau.shape == (3, n_tau) and tau.abs().max() <= 1


@pytest.mark.parametrize('kind', KINDS_OF_E)
def test_save_and_load(kind, tmp_path):
    a = Augmenter(Generator(3, 32, 16, padding_mode='border'), kind(3, 32, 16))
    a.save(tmp_path/'a.safetensors', note='x')
    b = Augmenter.load(tmp_path/'a.safetensors')
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.manual_seed(0)
        wanted = a(x)
        torch.manual_seed(0)
        assert torch.equal(b(x), wanted)
    assert b.generator.config == a.generator.config and load_modules(tmp_path/'a.safetensors')[1] == {'note': 'x'}
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


def test_files_that_are_not_augmenters(tmp_path):
    with pytest.raises(FileNotFoundError, match='train and save'): Augmenter.load(tmp_path/'none.safetensors')
    save_file({'w': torch.zeros(2)}, tmp_path/'other.safetensors')
    with pytest.raises(ValueError, match='no list of modules'): Augmenter.load(tmp_path/'other.safetensors')
    save_modules(tmp_path/'g.safetensors', dict(generator=Generator(1, 28)))
    with pytest.raises(ValueError, match='expected a generator and an estimator'): Augmenter.load(tmp_path/'g.safetensors')
    with pytest.raises(ValueError, match='in the package'): load_generator('nobody')


@pytest.mark.parametrize('name,channels,size', [('mnist', 1, 28), ('cifar10', 3, 32)])
def test_generators_in_the_package(name, channels, size):
    parts, info = load_modules(PACKAGE/'generators'/f'{name}.safetensors')
    G = parts['generator']
    assert info['command'].startswith((f'ia-generator --dataset {name}', f'ia-run generator --dataset {name}')) and (PACKAGE/'generators'/f'{name}.safetensors').stat().st_size < 3e6
    assert (G.config['channels'], G.config['size']) == (channels, size) and all(p.isfinite().all() for p in G.parameters())
    assert G(torch.rand(2, channels, size, size), torch.rand(2, 128))[0].shape == (2, channels, size, size)


def rewritten(file, change, **meta):
    """`file` again, with its tensors changed and its header kept, but for `meta`."""
    with safe_open(file, 'pt') as f: header = f.metadata()
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata=header | meta)
    return tensors


def test_a_changed_weight_is_noticed(tmp_path):
    file = tmp_path/'g.safetensors'
    save_modules(file, dict(generator=Generator(1, 28, n_tau=4)))
    def nudge(tensors): tensors['generator.trunk.0.bias'][0] += 1e-6
    rewritten(file, nudge)
    with pytest.raises(ValueError, match='is damaged: its weights have the SHA-256'): load_modules(file)


@pytest.mark.parametrize('change', [lambda t: t.pop('generator.trunk.0.bias'), lambda t: t.update({'generator.trunk.0.bias': torch.zeros(3)}), lambda t: t.update({'generator.trunk.0.more': torch.zeros(3)})])
def test_weights_of_another_shape_are_named(tmp_path, change):
    file = tmp_path/'g.safetensors'
    save_modules(file, dict(generator=Generator(1, 28, n_tau=4)))
    tensors = rewritten(file, change)
    rewritten(file, lambda t: None, sha256=_checksum(tensors))
    with pytest.raises(ValueError, match=r"does not fit a Generator of .*trunk.0.(bias|more)'\] missing, unknown or of another shape"): load_modules(file)


def problem(n=40):
    torch.manual_seed(0)
    model = small_cnn(1, 10).double().eval()
    x, y = torch.rand(n, 1, 28, 28).double(), torch.arange(n) % 10
    return model, split_head(model)[0], x, y


@pytest.mark.parametrize('objective', [FixedHead, ImplicitHead, AllLayers, maximise(min_loss), maximise(max_loss), lambda model, x, y, xv, yv, k: maximise(aligned(xv, yv))(model)])
def test_gradient_reaches_only_the_images(objective):
    model, body, x, y = problem()
    o = objective(model, x, y, x.flip(3), y, 10)
    x_aug = (x*.9).requires_grad_()
    with frozen(model): o(x_aug, y).backward()
    assert x_aug.grad.abs().sum() > 0 and all(p.grad is None for p in model.parameters())


def test_the_implicit_head_is_at_its_optimum_and_reading_does_not_move_it():
    model, body, x, y = problem()
    o = ImplicitHead(model, x, y, x.flip(3), y, 10)
    with frozen(model):
        o(x*.5, y)
        W, S = o.W.clone(), o.S.clone()
        o.value(x*.1, y)
    assert torch.equal(o.W, W) and torch.equal(o.S, S)
    assert head_grad(o.W, *o.training_set(), o.l2).norm() < 1e-7
    assert torch.equal(o.training_set()[0][len(x):], features(body, x*.5))


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_memory_keeps_as_many_augmentations_as_originals(sizes):
    model, body, x, y = problem()
    o = ImplicitHead(model, x, y, x, y, 10)
    with frozen(model):
        for n in sizes: o(x[:n], y[:n])
    assert len(o.recent_h) == len(o.recent_y) == len(x)


def test_easy_and_hard_are_opposite_and_worth_one_number_an_image():
    model, _, x, y = problem()
    assert torch.equal(min_loss(model, x, y), -max_loss(model, x, y)) and max_loss(model, x, y).shape == y.shape
    assert max_loss(model, x, y).mean() == -maximise(max_loss)(model)(x, y)


@given(size=st.floats(1., 1e4), seed=st.integers(0, 99))
def test_relative_value_does_not_grow_with_the_error(size, seed):
    """A gradient is the residual times a Jacobian: whatever the logits, a unit of error is worth no more than the Jacobian is long."""
    torch.manual_seed(seed)
    logits, along, y = size*torch.randn(20, 10).double(), torch.randn(20, 10).double(), torch.arange(20) % 10
    error = logits.softmax(1)-torch.nn.functional.one_hot(y, 10)
    assert (relative_influence((error*along).sum(1), logits, y).abs() <= along.norm(dim=1)+1e-9).all()


def test_alignment_is_the_derivative_along_the_validation_gradient():
    model, _, x, y = problem()
    x_val, y_val = x.flip(3), y.roll(1)
    torch.manual_seed(1)
    i = torch.randint(len(y), (256,))
    torch.manual_seed(1)
    with frozen(model): value = aligned(x_val, y_val)(model, x, y)
    loss = lambda x, y: torch.nn.functional.cross_entropy(model(x), y, reduction='none')
    grads = torch.autograd.grad(loss(x_val[i], y_val[i]).mean(), list(model.parameters()))
    size = sum(g.square().sum() for g in grads).sqrt()

    def moved(e):
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads): p += e*g/size
            res = loss(x, y)
            for p, g in zip(model.parameters(), grads): p -= e*g/size
        return res
    error = (model(x).softmax(1)-torch.nn.functional.one_hot(y, 10)).norm(dim=1)
    assert torch.allclose(value*error, (moved(1e-7)-moved(-1e-7))/2e-7, atol=1e-5)


class Telling(torch.nn.Module):
    """An estimator whose τ is the image's first pixels, which hold the class."""
    def forward(self, x): return x.flatten(1)[:, :10]


def test_probe_finds_a_leak_and_none_where_there_is_none():
    y = torch.randint(10, (2000,))
    x = torch.rand(2000, 1, 28, 28)
    x.view(2000, -1)[:, :10] = torch.nn.functional.one_hot(y, 10).float()
    assert class_leak(Telling(), x, y) == 1
    assert abs(class_leak(SharedEstimator(1, 28), x, y)-.1) < .05


def test_a_shared_estimator_does_not_look():
    E = SharedEstimator(1, 28, 16)
    with torch.no_grad(): E.mu += 1
    taus = []
    for x in (torch.zeros(5, 1, 28, 28), torch.rand(5, 1, 28, 28)):
        torch.manual_seed(0)
        taus.append(E(x))
    assert torch.equal(*taus) and taus[0].mean() > .4


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_the_weights_is_kept(dtype, tmp_path):
    augmenter = Augmenter(load_generator('mnist'), StochasticEstimator).to(dtype)
    augmenter.save(tmp_path/'a.safetensors')
    again, x = Augmenter.load(tmp_path/'a.safetensors'), torch.rand(4, 1, 28, 28).to(dtype)
    torch.manual_seed(0)
    expected = augmenter(x)
    torch.manual_seed(0)
    assert torch.equal(again(x), expected) and {p.dtype for p in again.parameters()} == {dtype}
