import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from hypothesis import given, strategies as st

from influence_aug.augment.transforms import *

sizes = st.sampled_from([8, 12, 16, 20, 28, 32, 40, 64])
dtypes = st.sampled_from([torch.float32, torch.float64])


@given(size=sizes, channels=st.sampled_from([1, 3]), n=st.integers(1, 4), dtype=dtypes)
def test_generator_shapes(size, channels, n, dtype):
    G = Generator(channels, size, n_tau=16).to(dtype)
    x = torch.rand(n, channels, size, size, dtype=dtype)
    moved, flow = G(x, torch.rand(n, 16, dtype=dtype))
    assert moved.shape == x.shape and moved.dtype == dtype
    assert flow.shape == (n, size, size, 2) and flow.isfinite().all()
    assert G.side == (size//8 if size % 8 == 0 else size//4)


@given(size=sizes, channels=st.sampled_from([1, 2, 3]), n_out=st.integers(1, 9))
def test_encoder_shapes(size, channels, n_out): assert encoder(channels, size, n_out)(torch.rand(2, channels, size, size)).shape == (2, n_out)


@given(h=st.integers(2, 20), w=st.integers(2, 20), dtype=dtypes)
def test_identity(h, w, dtype):
    x = torch.rand(2, 3, h, w, dtype=dtype)
    flow = flow_field(torch.zeros(2, 4, h, w, dtype=dtype), torch.zeros(2, 2, h, w, dtype=dtype))
    assert (warp(x, flow)-x).abs().max() < (1e-12 if dtype == torch.float64 else 1e-5)
    assert (smooth(flow, 3)-flow).abs().max() < 1e-6


@given(dx=st.integers(-5, 5), dy=st.integers(-5, 5))
def test_whole_pixel_shifts(dx, dy):
    x = torch.rand(1, 1, 12, 16, dtype=torch.float64)
    s_b = torch.zeros(1, 2, 12, 16, dtype=torch.float64)
    s_b[:, 0], s_b[:, 1] = 2*dx/16, 2*dy/12
    rows, cols = slice(max(0, -dy), 12-max(0, dy)), slice(max(0, -dx), 16-max(0, dx))
    assert torch.allclose(warp(x, flow_field(torch.zeros(1, 4, 12, 16).double(), s_b))[..., rows, cols], torch.roll(x, (-dy, -dx), (2, 3))[..., rows, cols])


@given(seed=st.integers(0, 99), size=st.sampled_from([8, 28]))
def test_constant_filters_are_affine(seed, size):
    rng = torch.Generator().manual_seed(seed)
    w, b = torch.randn(2, 4, 1, 1, generator=rng).double(), torch.randn(2, 2, 1, 1, generator=rng).double()
    matrix = torch.cat([w.view(2, 2, 2)+torch.eye(2), b.view(2, 2, 1)], -1)
    ours = flow_field(w.expand(2, 4, size, size), b.expand(2, 2, size, size))
    assert torch.allclose(ours, F.affine_grid(matrix, (2, 1, size, size), align_corners=False))


@pytest.mark.parametrize('angle', [-90, -33, 15, 180])
def test_rotation_against_torchvision(angle):
    x, a = torch.rand(1, 1, 28, 28), torch.tensor(angle*torch.pi/180)
    flow = pixel_grid(28, 28)[None]@torch.stack([torch.stack([a.cos(), a.sin()]), torch.stack([-a.sin(), a.cos()])]).T
    theirs = TF.affine(x, angle, [0, 0], 1., [0, 0], TF.InterpolationMode.BILINEAR)
    assert (warp(x, flow)-theirs).abs()[..., 1:-1, 1:-1].max() < 1e-3


def test_random_affine_flows_keep_their_ranges():
    flows = random_affine_flow(2000, 8, degrees=0, scale=0, shear=0, shift=.1)
    shifts = (flows-pixel_grid(8, 8)).mean((1, 2))
    assert shifts.abs().max() <= .2+1e-5 and shifts.abs().max() > .19
    turned = random_affine_flow(2000, 8, degrees=20, scale=0, shear=0, shift=0)
    angles = torch.atan2(*(turned[:, 4, 6]-turned[:, 4, 1]).flip(-1).unbind(-1)).rad2deg()
    assert 19 < angles.abs().max() <= 20.01


@given(window=st.integers(1, 6))
def test_windows(window):
    flow = pixel_grid(9, 9)[None]+torch.rand(1, 9, 9, 2)
    if window % 2: assert smooth(flow, window).shape == flow.shape
    else:
        with pytest.raises(ValueError, match=f'Use {window+1}'): smooth(flow, window)


@pytest.mark.parametrize('size', [0, 4, 7, 27, 30])
def test_sizes_that_do_not_halve(size):
    with pytest.raises(ValueError, match='expected a multiple of 4'): Generator(1, size)


def test_wrong_images():
    G = Generator(1, 28)
    with pytest.raises(ValueError, match=r'made for \(1, 28, 28\)'): G(torch.rand(1, 3, 28, 28), torch.rand(1, 128))
    with pytest.raises(ValueError, match='expected floats'): G(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), torch.rand(1, 128))


@pytest.mark.parametrize('channels,size,dtype', [(1, 28, torch.float32), (3, 32, torch.float64), (3, 20, torch.float32)])
def test_interpolation(channels, size, dtype):
    G, x = Generator(channels, size, n_tau=6).to(dtype), torch.rand(channels, size, size, dtype=dtype)
    ends = torch.rand(2, 6, dtype=dtype)
    way = interpolate_tau(G, x, *ends, steps=5)
    assert way.tau.shape == (5, 6) and way.flow.shape == (5, size, size, 2) and way.changed.shape == (5, channels, size, size)
    assert torch.allclose(way.tau[2], ends.mean(0)) and torch.allclose(way.moved+way.added, way.changed, atol=1e-6)
    with torch.no_grad(): assert torch.allclose(way.changed, G(x.expand(5, -1, -1, -1), way.tau)[0], atol=1e-5)
    assert way.show() is not None
    plt.close('all')


def test_interpolation_refuses():
    G, x, tau = Generator(1, 28), torch.rand(1, 28, 28), torch.rand(128)
    with pytest.raises(ValueError, match='steps=1: expected 2 or more'): interpolate_tau(G, x, tau, tau, steps=1)
    with pytest.raises(ValueError, match=r'made for \(1, 28, 28\)'): interpolate_tau(G, torch.rand(3, 32, 32), tau, tau)
