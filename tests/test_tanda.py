"""Transformation functions on images of every form, sequences of them, and a training that is stopped and goes on."""
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from hypothesis import given, strategies as st
from scipy import ndimage

from influence_aug.augment.functions import *
from influence_aug.augment.functions import rotate, shear, stages, swirl, zoom
from influence_aug.augment.tanda import *
from influence_aug.augment.tanda import discounted
from influence_aug.core.datasets import mnist_sample


@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('size', [(28, 28), (224, 224), (17, 40)])
def test_functions_keep_form_type_and_range(name, dtype, size):
    torch.manual_seed(0)
    x = torch.rand(2, 3, *size, dtype=dtype)
    before = x.clone()
    for k, f in FUNCTIONS[name].items():
        new = f(x)
        assert new.shape == x.shape and new.dtype == dtype and new.min() >= -1e-6 and new.max() <= 1+1e-6, k
        assert torch.equal(x, before), f'{k} changed its input'


@given(angle=st.floats(-30, 30, allow_subnormal=False), h=st.integers(8, 40), w=st.integers(8, 40))
def test_rotations_of_any_form_are_those_of_scipy(angle, h, w):
    "SciPy turns the same way, about the same centre, also where the image is not square."
    x = torch.rand(1, 1, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(h*w))
    theirs = ndimage.rotate(x[0, 0].numpy(), angle, reshape=False, order=1, mode='nearest')
    assert np.allclose(rotate(angle)(x)[0, 0], theirs, atol=1e-5)


@pytest.mark.parametrize('f,neutral', [(rotate, 0.), (zoom, 1.), (shear, 0.), (swirl, 0.)])
def test_nothing_happens_at_the_neutral_value(f, neutral):
    x = torch.rand(2, 1, 20, 30)
    assert torch.allclose(f(neutral)(x), x, atol=1e-5)


@given(seed=st.integers(0, 1000), n=st.integers(1, 5), length=st.integers(1, 4))
def test_a_batch_is_what_its_images_are_one_by_one(seed, n, length):
    "Of functions that draw nothing."
    torch.manual_seed(seed)
    functions = {k: f for k, f in FUNCTIONS['grey'].items() if 'elastic' not in k}
    x, k = torch.rand(n, 1, 12, 12), torch.randint(len(functions), (n, length))
    whole, single = stages(functions, x, k), [stages(functions, x[i:i+1], k[i:i+1]) for i in range(n)]
    assert whole.shape == (length+1, n, 1, 12, 12) and torch.allclose(whole, torch.cat(single, 1), atol=1e-6)


def test_the_same_seed_gives_the_same_images():
    x = torch.rand(6, 1, 28, 28)
    a, b = (torch.manual_seed(3) and random_functions()(x) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, random_functions()(x))


@given(gamma=st.floats(0, 1, allow_subnormal=False), n=st.integers(1, 4), steps=st.integers(1, 6))
def test_discounted_sums(gamma, n, steps):
    deltas = torch.randn(n, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(n*steps))
    R = discounted(deltas, gamma)
    for t in range(steps): assert torch.allclose(R[:, t], sum(gamma**(s-t)*deltas[:, s] for s in range(t, steps)))


@pytest.mark.parametrize('kind', SEQUENCES)
def test_log_probabilities_are_those_of_what_is_drawn(kind):
    "Training a sequence up makes it frequent: by chance a function takes 4% of the places."
    torch.manual_seed(0)
    model = SEQUENCES[kind]('grey', 4)
    wanted = torch.tensor([[2, 2, 7, 1]])
    opt = torch.optim.Adam(model.parameters(), .1)
    for _ in range(60):
        opt.zero_grad()
        (-model(wanted).sum()).backward()
        opt.step()
    assert (model.sample(400)[:, 0] == 2).float().mean() > .3


class Stop(Callback):
    def after_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


HOW = dict(kind='lstm', steps=9, epochs=3, bs=4, width=4, disc_lr=1e-3)


def test_stopped_and_gone_on_with(tmp_path):
    images, file = mnist_sample().pool[:60], tmp_path/'t.checkpoint'
    whole = train_tanda(images, **HOW)
    with pytest.raises(KeyboardInterrupt): train_tanda(images, **HOW, checkpoint=file, cbs=Stop())
    again = train_tanda(images, **HOW, checkpoint=file)
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), again.model.parameters()))
    assert whole.recorder.values == again.recorder.values
    with pytest.raises(ValueError, match='lr=0.001 there, lr=0.1 here'): train_tanda(images, **HOW, lr=.1, checkpoint=file)


def test_colour_images_of_another_size(tmp_path):
    x = (255*torch.rand(40, 3, 40, 40)).byte()
    learn = train_tanda(x, functions='colour', **HOW | dict(kind='mean_field'))
    policy = SequencePolicy(learn.model)
    policy.save(tmp_path/'s.safetensors')
    assert load_sequences(tmp_path/'s.safetensors')(x[:2].float()/255).shape == (2, 3, 40, 40)
    assert policy.frequencies(50).index.isin(FUNCTIONS['colour']).all()


@pytest.mark.parametrize('given,message', [(dict(kind='gru'), 'expected one of mean_field, lstm'), (dict(functions='digits'), 'expected one of grey, colour'),
    (dict(steps=10), '10 steps in 3 epochs'), (dict(length=0), 'length=0'), (dict(draws=0), 'draws=0')])
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message): train_tanda(mnist_sample().pool[:60], **HOW | given)
