"""What the rows of the tables share: the budget of labels, networks of any size, recipes, sequences that come with the package."""
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_aug.augment.augmenter import load_generator
from influence_aug.augment.classifier import train_classifier
from influence_aug.augment.policies import random_elastic
from influence_aug.augment.resnets import resnet, sgd, step_decay
from influence_aug.augment.tanda import load_sequences
from influence_aug.core.data import Images, Source, draw_splits
from influence_aug.studies.methods import METHODS, ShuffledLabels, within_budget


def noise(n, k=4, side=8, channels=1, first=0):
    return Images(torch.randint(256, (n, channels, side, side)).byte(), torch.arange(n) % k, tuple('abcdefghij'[:k]), first+torch.arange(n))


def splits_of(n, k=4, **how): return draw_splits(Source(noise(3*n, k, **how), noise(4*k, k, first=10**6, **how), noise(2*k, k, first=2*10**6, **how)), n=n)


@settings(deadline=None, max_examples=25)
@given(each=st.integers(4, 30), k=st.integers(2, 6), share=st.floats(.1, .6))
def test_no_label_outside_the_budget(each, k, share):
    splits = splits_of(each*k, k)
    honest = within_budget(splits, share)
    read = [set(o.ids.tolist()) for o in (honest.labelled, honest.tune, honest.holdout)]
    assert set.union(*read) == set(splits.labelled.ids.tolist()) and sum(map(len, read)) == each*k
    assert honest.valid.counts().tolist() == [max(2, round(share*each))]*k
    assert set(honest.valid.ids.tolist()) == read[1] | read[2]
    assert honest.test is splits.test and torch.equal(honest.unlabelled.ids, splits.unlabelled.ids)


def test_a_budget_too_small_is_refused():
    with pytest.raises(ValueError, match='images of each class asked for'): within_budget(splits_of(4))


def test_shuffled_labels_keep_their_counts_and_leave_validation_alone():
    seen = []
    class Watch(ShuffledLabels):
        def before_batch(self):
            before = self.yb[0].clone()
            super().before_batch()
            seen.append((before, self.yb[0]))
    train_classifier(splits_of(40), [Watch()], steps=4, epochs=2, bs=20)
    assert len(seen) == 4 and all(torch.equal(a.bincount(), b.bincount()) for a, b in seen)
    assert any(not torch.equal(a, b) for a, b in seen)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('channels,side,depth', [(1, 28, 8), (3, 32, 20), (3, 33, 14), (3, 7, 8)])
def test_residual_networks_take_images_of_any_size(channels, side, depth, dtype):
    model = resnet(channels, 7, depth).to(dtype)
    out = model(torch.rand(2, channels, side, side, dtype=dtype))
    assert out.shape == (2, 7) and out.dtype == dtype and out.isfinite().all()
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('depth', [0, 2, 18, 21, 57])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=f'depth={depth}: expected 6n'): resnet(3, 10, depth)


@settings(deadline=None, max_examples=10)
@given(lr=st.floats(1e-3, 1), by=st.floats(2, 20), at=st.floats(.2, .6))
def test_the_learning_rate_falls_where_it_is_told(lr, by, at):
    fit = partial(step_decay, at=(at,), by=by)
    learn = train_classifier(splits_of(40), steps=20, epochs=2, bs=10, make_model=partial(resnet, depth=8), opt_func=sgd(), fit=fit, lr=lr)
    for i, o in enumerate(learn.recorder.lrs):
        if abs(i/20-at) > .1: assert o == pytest.approx(lr if i/20 < at else lr/by, rel=1e-4)


def test_the_recipe_reaches_every_training_of_a_method():
    "Those that learn or ask train a classifier of their own before F: by the same recipe, with the same further policies."
    trained, mirrored = [], []
    def train(splits, cbs=None, **how):
        trained.append(how['seed'])
        return train_classifier(splits, cbs, make_model=partial(resnet, depth=8), epochs=1, bs=8, **how)
    def mirror(x):
        mirrored.append(len(x))
        return x.flip(3)
    splits = draw_splits(Source(noise(60, 10, 28), noise(40, 10, 28, first=100), noise(20, 10, 28, first=200)), n=40)
    for method in ('implicit', 'shared', 'aug_find', 'decision'):
        trained.clear(), mirrored.clear()
        cbs, *_ = METHODS[method](splits, load_generator('mnist'), seed=0, steps=1, e_steps=1, train=train, also=(mirror,))
        assert trained and (mirrored or method == 'aug_find'), method
        assert len(cbs) >= (2 if method == 'aug_find' else 3), 'the policy, the mirror, the crop'


def test_a_policy_of_the_package_or_of_a_file(tmp_path):
    for name, channels, side in (('tanda_mf', 1, 28), ('tanda_lstm', 1, 28), ('tanda_mf_cifar10', 3, 32), ('tanda_lstm_cifar10', 3, 32)):
        policy = load_sequences(name)
        policy.save(tmp_path/'own.safetensors')
        same = load_sequences(tmp_path/'own.safetensors').sequences.state_dict()
        assert all(torch.equal(v, same[k]) for k, v in policy.sequences.state_dict().items())
        x = torch.rand(3, channels, side, side)
        assert policy(x).shape == x.shape
    with pytest.raises(ValueError, match="No sequences 'tanda_gru' in the package: expected one of .*tanda_lstm"): load_sequences('tanda_gru')
    with pytest.raises(FileNotFoundError): load_sequences(tmp_path/'none.safetensors')


@pytest.mark.parametrize('channels,side', [(1, 28), (3, 32), (3, 224)])
def test_elastic_maps_bend_each_image_by_itself(channels, side):
    x = torch.rand(1, channels, side, side).expand(3, -1, -1, -1).contiguous()
    bent = random_elastic()(x)
    assert bent.shape == x.shape and bent.unique(dim=0).shape[0] == 3
    torch.testing.assert_close(random_elastic(0.)(x), x, atol=1e-6*side, rtol=0)
