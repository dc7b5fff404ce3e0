"Transforms in one go against torchvision's own, image by image, over shapes, types, fills and probabilities."
import pytest
import torch
from torchvision.transforms import v2

from influence_aug.core.batched import BATCHED, batched, has_batched
from influence_aug.core.policy import Policy

TRANSFORMS = [
    v2.RandomAffine(25, (.2, .1), (.7, 1.3), (-20, 20, -5, 5)), v2.RandomAffine(0, shear=(-40, 40), fill=.3, interpolation='bilinear'),
    v2.RandomAffine(10, center=(3, 4), fill=None), v2.RandomRotation(180), v2.RandomRotation(40, interpolation=v2.InterpolationMode.BILINEAR),
    v2.RandomPerspective(.6, p=1.), v2.RandomPerspective(.3, p=.3, fill=1), v2.ElasticTransform(40., [3., 2.]), v2.ElasticTransform(20., 0.),
    v2.ElasticTransform(60., 2., fill=.5), v2.GaussianBlur((5, 3), (.2, 3.)), v2.RandomHorizontalFlip(.3), v2.RandomVerticalFlip(1.),
    v2.RandomHorizontalFlip(0.), v2.RandomCrop((28, 28), (2, 5, 3, 1), padding_mode='reflect'), v2.RandomCrop((20, 24), fill=.5, padding=3),
    v2.RandomCrop(28, pad_if_needed=True)]


@pytest.mark.parametrize('shape', [(1, 28, 28), (3, 33, 47)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('f', TRANSFORMS, ids=lambda f: repr(f)[:60])
def test_the_same_images(f, shape, dtype):
    x = torch.rand(12, *shape, dtype=dtype)
    torch.manual_seed(1)
    one = torch.stack([f(o) for o in x])
    after = torch.rand(1)
    torch.manual_seed(1)
    new = batched(f)(x)
    assert torch.equal(torch.rand(1), after), 'other draws'
    assert new.dtype==dtype and ((new-one).abs()>1e-4).float().mean()<2e-3


def test_fill_for_each_channel():
    f = v2.RandomRotation((90, 90.001), fill=[.1, .5, .9], expand=False)
    new = batched(f)(torch.zeros(2, 3, 20, 40))
    assert torch.allclose(new[0, :, 0, 0], torch.tensor([.1, .5, .9]))


def test_every_kind_is_tried(): assert {type(f) for f in TRANSFORMS} == set(BATCHED)


@pytest.mark.parametrize('f', [v2.RandomRotation(9, expand=True), v2.RandomAffine(9, fill={torch.Tensor: 1}), v2.RandomResizedCrop(8), v2.Identity(),
                               type('Own', (v2.RandomHorizontalFlip,), {})()], ids=lambda f: type(f).__name__)
def test_others_are_called_one_by_one(f): assert not has_batched(f)


def test_policy_takes_them():
    f, x = v2.RandomAffine(30), torch.rand(5, 1, 16, 16)
    torch.manual_seed(0)
    new = Policy(f)(x)
    torch.manual_seed(0)
    assert torch.allclose(new, torch.stack([f(o) for o in x]), atol=1e-6)
