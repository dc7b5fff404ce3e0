"An augmenter outside of this library: torch.export, half precision, torchvision pipelines."
import pytest
import torch
from torchvision import tv_tensors as tv
from torchvision.transforms import v2

from influence_aug.augment.augmenter import *
from influence_aug.augment.named import NamedGenerator
from influence_aug.augment.policies import *

ESTIMATORS = [Estimator, RandomEstimator, StochasticEstimator, SharedEstimator]


def made(kind, E, dtype=torch.float32):
    G = load_generator('mnist') if kind == 'mnist' else load_generator('cifar10') if kind == 'cifar10' else NamedGenerator(3, 32)
    return Augmenter(G, E).to(dtype).eval()


@pytest.mark.parametrize('kind, E', [*(('mnist', E) for E in ESTIMATORS), ('cifar10', RandomEstimator), ('named', SharedEstimator)])
def test_exported_for_any_batch(E, kind):
    augmenter = made(kind, E)
    config = augmenter.generator.config
    x = torch.rand(5, config['channels'], config['size'], config['size'])
    exported = torch.export.export(augmenter, (x,), dynamic_shapes=({0: torch.export.Dim('n', min=2)},)).module()
    for n in (2, 5, 9):
        x = torch.rand(n, *x.shape[1:])
        torch.manual_seed(0); want = augmenter(x)
        torch.manual_seed(0); assert torch.allclose(exported(x), want, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize('E', ESTIMATORS)
def test_half_precision_is_close(E, dtype):
    x = torch.rand(4, 1, 28, 28)
    augmenter = made('mnist', E)
    tau = torch.randn(4, 128).tanh()
    whole = augmenter.generator(x, tau)[0].clamp(0, 1)
    low = made('mnist', E, dtype)
    half = low.generator(x.to(dtype), tau.to(dtype))[0].clamp(0, 1)
    assert half.dtype == dtype and low(x.to(dtype)).dtype == dtype
    assert (half.float()-whole).abs().mean() < .02


def test_pipeline_of_torchvision():
    pipeline = v2.Compose([v2.RandomCrop(28, 2), PolicyTransform(random_tau(load_generator('mnist'))), v2.Normalize([.5], [.5])])
    data = [(tv.Image(torch.rand(1, 28, 28)), i) for i in range(4)]
    for image, label in data:
        new, same = pipeline(image, label)
        assert type(new) is tv.Image and new.shape == image.shape and same == label
    for other in (tv.Mask(torch.zeros(28, 28)), tv.BoundingBoxes([[0, 0, 1, 1]], format='XYXY', canvas_size=(28, 28))):
        with pytest.raises(ValueError, match=type(other).__name__): pipeline(data[0][0], other)


def test_bank_follows_type_and_keeps_the_generator():
    G = load_generator('mnist')
    bank, x = RandomTauBank(G, size=64), torch.rand(6, 1, 28, 28)
    assert bank(x.double()).dtype == torch.float64 and next(G.parameters()).dtype == torch.float32
    assert bank(x).dtype == torch.float32 and bank.size == 64
    with pytest.raises(ValueError, match='reuse=0'): RandomTauBank(G, reuse=0)
    with pytest.raises(ValueError, match='this generator was made for'): bank(torch.rand(2, 3, 28, 28))
