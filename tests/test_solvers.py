import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import nn
from torch.func import hessian
from torch.utils.data import DataLoader, TensorDataset

from influence_aug.augment.classifier import TensorDL
from influence_aug.core.batches import *
from influence_aug.core.data import Images
from influence_aug.influence.solvers import *
from influence_aug.influence.spectrum import *
from influence_aug.core.batches import mean_over
from influence_aug.influence.solvers import EXACT_UP_TO, auto

F64 = torch.float64


def small_net(): return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(.5), nn.Linear(4, 2)).double()


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = small_net()
    net(torch.randn(50, 3, dtype=F64))
    return net, torch.randn(20, 3, dtype=F64), torch.arange(20) % 2


def matrix(A): return Curvature(lambda v, x, y: A@v, Batches((torch.zeros(10, 1), torch.zeros(10))), 0., len(A))


def test_products_against_dense(net):
    model, x, y = net
    flat = FlatModel(model)
    dense = hessian(lambda t: flat.loss(t, x, y))(flat.theta)
    A = Curvature(hessian_of(flat), Batches((x, y), bs=7), .3, len(flat.theta))
    assert torch.allclose(A.dense(flat.theta), dense+.3*torch.eye(len(dense), dtype=F64), atol=1e-10)
    v = torch.randn_like(flat.theta)
    assert torch.allclose(A(v), dense@v+.3*v, atol=1e-10)


def test_ggn_against_its_definition(net):
    model, x, y = net
    flat = FlatModel(model)
    J = torch.func.jacrev(lambda t: flat(t, x))(flat.theta)
    p = flat(flat.theta, x).softmax(1)
    Q = torch.diag_embed(p)-p[:, :, None]*p[:, None]
    dense = torch.einsum('nki,nkl,nlj->ij', J, Q, J)/len(x)
    G = Curvature(ggn_of(flat), Batches((x, y), bs=7), 0., len(flat.theta)).dense(flat.theta)
    assert torch.allclose(G, dense, atol=1e-10) and torch.linalg.eigvalsh(G)[0] > -1e-12


def test_flat_model_is_the_model_in_eval_mode_and_changes_nothing(net):
    model, x, y = net
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    model[3].eval()
    model[0].weight.requires_grad_(False)
    flat = FlatModel(model)
    a, b = flat(flat.theta, x), flat(flat.theta, x)
    assert model.training and not model[3].training and not model[0].weight.requires_grad and model[4].weight.requires_grad
    assert torch.equal(a, b) and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.allclose(a, model.eval()(x), atol=1e-12)
    assert len(FlatModel(model, ['4']).theta) == 10 and len(FlatModel(model, ['4.bias', '0']).theta) == 18
    with pytest.raises(ValueError, match="No parameters in .'head'.: expected names among .'0', '1', '4'."): FlatModel(model, ['4', 'head'])


@given(n=st.integers(2, 20), seed=st.integers(0, 99), factor=st.floats(1e-4, 10))
def test_lissa_is_never_nan(n, seed, factor):
    rng = torch.Generator().manual_seed(seed)
    B = torch.randn(n, n, generator=rng, dtype=F64)
    A, b = B+B.T, torch.randn(n, generator=rng, dtype=F64)
    found = lissa(matrix(A), b, passes=20, bs=5, scale=factor, tries=4)
    assert found.x.isfinite().all() and found.residual == found.residual
    A = matrix(B@B.T/n+torch.eye(n, dtype=F64))
    assert (lissa(A, b, passes=300, bs=5).x-exact(A, b).x).norm() < .02*b.norm()


def test_lissa_repeats_with_its_seed(net):
    model, x, y = net
    flat = FlatModel(model)
    A, b = Curvature(ggn_of(flat), Batches((x, y)), .1, len(flat.theta)), torch.randn_like(flat.theta)
    a = lissa(A, b, bs=4, passes=5)
    assert torch.equal(a.x, lissa(A, b, bs=4, passes=5).x) and not torch.equal(a.x, lissa(A, b, bs=4, passes=5, seed=1).x)
    assert lissa(A, b, bs=4, passes=5, scale=1e-3).scale > 1e-3


def test_solvers_agree_and_warn():
    torch.manual_seed(0)
    B = torch.randn(30, 30, dtype=F64)
    A, b = matrix(B@B.T+torch.eye(30, dtype=F64)), torch.randn(30, dtype=F64)
    assert torch.allclose(exact(A, b).x, cg(A, b, rtol=1e-10).x, atol=1e-7) and torch.equal(auto(A, b).x, exact(A, b).x)
    bad = matrix(torch.diag(torch.tensor([1., -.5], dtype=F64)))
    assert 'smallest eigenvalue is -5.0e-01' in exact(bad, torch.ones(2, dtype=F64)).warning
    assert 'Raise damping' in cg(bad, torch.tensor([0., 1.], dtype=F64)).warning


@pytest.mark.parametrize('dtype', [torch.float32, F64])
def test_extreme_eigenvalues(dtype):
    d = torch.cat([torch.linspace(-.2, 5, 80), torch.tensor([-1., 8.])]).to(dtype)
    low, high = extreme_eigenvalues(matrix(torch.diag(d)), d)
    assert abs(low+1) < .01 and abs(high-8) < .01
    assert extreme_eigenvalues(matrix(torch.diag(d[-3:])), d)[0] == pytest.approx(-1)


def test_batches_from_everything():
    images = Images((torch.rand(10, 1, 4, 4)*255).byte(), torch.arange(10) % 2, ('a', 'b'))
    x, y = images.x.float()/255, images.y
    sources = dict(tensors=(x, y), images=images, torch_loader=DataLoader(TensorDataset(x, y), batch_size=3), fastai=TensorDL(images, 4, n_steps=7))
    for name, data in sources.items():
        batches = Batches(data, bs=3)
        for _ in range(2):
            xs, ys = (torch.cat(o) for o in zip(*batches))
            assert torch.equal(xs, x) and torch.equal(ys, y), name
        xs, ys = (torch.cat(o) for o in zip(*batches.shuffled(2, torch.Generator().manual_seed(0))))
        assert sorted(ys.tolist()) == sorted(y.tolist()) and torch.allclose(xs.sum(), x.sum()), name
        assert next(iter(Batches(data, dtype=F64)))[0].dtype == F64
    with pytest.raises(ValueError, match='drops its last batch'): Batches(DataLoader(TensorDataset(x, y), batch_size=3, drop_last=True))
    with pytest.raises(ValueError, match='can be read only once'): Batches(iter([(x, y)]))
    with pytest.raises(ValueError, match='lengths .10, 9.'): Batches((x, y[:9]))


def test_batches_from_a_fastai_loader_skip_random_augmentation(tmp_path):
    from fastai.vision.all import CategoryBlock, DataBlock, ImageBlock, PILImageBW, aug_transforms, get_image_files, parent_label
    from torchvision.io import write_png
    for k in 'ab':
        (tmp_path/k).mkdir()
        for i in range(6): write_png((torch.rand(1, 8, 8)*255).byte(), str(tmp_path/k/f'{i}.png'))
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label, batch_tfms=aug_transforms(size=8))
    dls = block.dataloaders(tmp_path, bs=4, num_workers=0)
    a, b = (torch.cat([x for x, _ in Batches(dls.train)]) for _ in range(2))
    assert len(a) == len(dls.train_ds) and torch.equal(a, b) and type(a) is torch.Tensor
