"aug_find on Learners as people have them: stock models, real loaders, other losses; nothing of the Learner changes; bad input is named."
import pickle
import random

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from fastai.data.transforms import Normalize, get_image_files, parent_label
from fastai.losses import LabelSmoothingCrossEntropyFlat
from fastai.learner import Learner, load_learner
from fastai.metrics import accuracy
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner
from hypothesis import given, strategies as st
from PIL import Image
from torchvision import models
from torchvision.transforms import v2

from influence_aug.all import *
from influence_aug.augment.candidates import *
from influence_aug.augment.classifier import small_cnn, tensor_dls
from influence_aug.augment.find import *
from influence_aug.augment.harm import *
from influence_aug.augment.learned_mixture import *
from influence_aug.core.batches import Batches

FEW = {'rotate': {'15°': v2.RandomRotation(15), '45°': v2.RandomRotation(45)}, 'mirror': v2.RandomHorizontalFlip(1.)}


def brighter(x): return (x+.1).clamp(0, 1)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Photographs of two classes, of different sizes."
    root, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for k, name in enumerate(('day', 'night')):
        (root/name).mkdir()
        for i in range(16):
            pixels = rng.integers(0, 128, (70+i, 80, 3))+100*k
            Image.fromarray(pixels.astype(np.uint8)).save(root/name/f'{i}.png')
    return root


@pytest.fixture
def dls(folder):
    return ImageDataLoaders.from_path_func(folder, get_image_files(folder), parent_label, valid_pct=.4, seed=0, bs=8, num_workers=0,
                                           item_tfms=Resize(64), batch_tfms=[*aug_transforms(), Normalize.from_stats([.5]*3, [.2]*3)])


def state(learn):
    "All of a Learner that a question could change."
    return [[o.clone() for o in learn.model.state_dict().values()], [m.training for m in learn.model.modules()],
            [p.requires_grad for p in learn.model.parameters()], str(learn.opt.state_dict() if learn.opt else None), [id(o) for o in learn.cbs],
            id(learn.loss_func), [list(o) for o in vars(learn.recorder).get('values', [])], [(id(dl), dl.rng.getstate()) for dl in learn.dls.loaders],
            [dl.after_batch.fs[0].split_idx for dl in learn.dls.loaders if len(dl.after_batch.fs)], torch.get_rng_state(),
            str(np.random.get_state()), random.getstate(), [p.grad for p in learn.model.parameters()], sorted(vars(learn))]


def same(a, b):
    if isinstance(a, (list, tuple)): return len(a)==len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a==b


MODELS = {'resnet18': lambda dls: vision_learner(dls, models.resnet18, pretrained=False, normalize=False, metrics=accuracy),
          'mobilenet': lambda dls: Learner(dls, models.mobilenet_v3_small(num_classes=2), metrics=accuracy),
          'vit': lambda dls: Learner(dls, models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=2), metrics=accuracy),
          'timm': lambda dls: Learner(dls, timm.create_model('mobilenetv3_small_050', num_classes=2), metrics=accuracy),
          'smoothed': lambda dls: Learner(dls, small_cnn(3, 2), LabelSmoothingCrossEntropyFlat(), metrics=accuracy),
          'cbs': lambda dls: Learner(dls, small_cnn(3, 2), metrics=accuracy, cbs=[MixUp(), GradientAccumulation(16)])}


@pytest.mark.parametrize('name', MODELS)
def test_stock_models_are_asked_and_left_alone(dls, name):
    learn = MODELS[name](dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    learn.model.train()
    before = state(learn)
    found = learn.aug_find(FEW, show_plot=False)
    assert same(before, state(learn))
    assert set(found.table.family)=={'rotate', 'mirror'} and set(found.table.index)=={'rotate 15°', 'rotate 45°', 'mirror'}
    assert found.per_class().shape==(2, 3) and set(found.per_class().index)=={'day', 'night'}
    again = learn.aug_find(FEW, show_plot=False)
    assert found.table.equals(again.table)


def test_a_learner_that_never_trained(dls):
    learn = Learner(dls, small_cnn(3, 2))
    before = state(learn)
    learn.aug_find(FEW, show_plot=False)
    assert same(before, state(learn)) and learn.opt is None


def test_a_learner_that_guesses_is_told_so(dls):
    learn = Learner(dls, small_cnn(3, 2))
    torch.nn.init.zeros_(learn.model[-1].weight); torch.nn.init.zeros_(learn.model[-1].bias)
    with pytest.warns(UserWarning, match='the answer means little'): learn.aug_find(FEW, show_plot=False)


def test_default_candidates_on_photographs(dls):
    found = Learner(dls, small_cnn(3, 2)).aug_find(show_plot=False)
    assert len(found.table)>=30 and 'mirror' in found.table.index
    assert len(found.plot(ncols=7).flat)>=found.table.family.nunique()
    assert len(found.plot_harmed('rotate 15°', k=3).flat)==3


def test_kept_images_give_the_same_table(dls, monkeypatch):
    "The training images of a loader are read once and kept; read again for each candidate, they give the same."
    learn, passes, loaded = Learner(dls, small_cnn(3, 2)), [], Batches._loaded
    monkeypatch.setattr(Batches, '_loaded', lambda self, *args, **kw: passes.append(1) or loaded(self, *args, **kw))
    kept, few = learn.aug_find(FEW, show_plot=False).table, len(passes)
    monkeypatch.setattr(Batches, 'keep', lambda self: self)
    assert kept.equals(learn.aug_find(FEW, show_plot=False).table) and len(passes)-few>=few+len(kept)


def test_fastai_candidates(dls):
    found = Learner(dls, small_cnn(3, 2)).aug_find(fastai_candidates(), show_plot=False)
    assert set(found.table.family)=={f'fastai {k}' for k in ('rotate', 'zoom', 'warp', 'brightness', 'contrast', 'flip')}


def test_nothing_helps(splits):
    learn = Learner(tensor_dls(splits.labelled, splits.holdout, n_steps=30), small_cnn(1, 10), torch.nn.functional.cross_entropy)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    found = learn.aug_find({'negative': lambda x: 1-x}, show_plot=False)
    assert found.policy is None and found.cbs==[] and found.suggestion.startswith('None of these')
    with pytest.raises(ValueError, match='No policy'): found.code()


@given(st.lists(st.floats(1e-4, 1), min_size=2, max_size=6))
def test_code_makes_the_policy_again(parts):
    "Rounded shares still have the sum one; what torchvision cannot tell is named for the reader to supply."
    shares, fs = [o/sum(parts) for o in parts], {f'rotate {k}°': v2.RandomRotation(k) for k in range(1, len(parts))}
    found = FoundAugmentations(pd.DataFrame(), '', MixturePolicy(fs | {'own': brighter}, [*shares[:-1], shares[-1]/2, shares[-1]/2]), None, [])
    names = dict(candidates={'own': brighter})
    assert '# candidates:' in found.code()
    exec(found.code(), names)
    assert torch.allclose(names['policy'].shares, found.policy.shares, atol=1e-5) and names['policy'].policies.keys()==found.policy.policies.keys()


def test_an_exported_learner_is_told_what_it_lacks(dls):
    "fastai exports a Learner with empty loaders."
    with pytest.raises(ValueError, match='give it some'): Learner(dls.new_empty(), small_cnn(3, 2)).aug_find(FEW, show_plot=False)


@pytest.mark.parametrize('how', [dict(n_draws=3), dict(augmentations=FEW), dict(through='branches', draw=2)], ids=str)
def test_settings_that_do_not_exist(splits, how):
    learn = Learner(tensor_dls(splits.labelled, splits.holdout, n_steps=2), small_cnn(1, 10), torch.nn.functional.cross_entropy)
    with pytest.raises(TypeError, match=[k for k in how if k!='through'][0]): learn.aug_find(FEW, show_plot=False, **how)


def test_policy_trains_saves_and_exports(splits, tmp_path):
    policy = MixturePolicy({'brighter': brighter, 'rotate': v2.RandomRotation(15)}, [.2, .4, .4])
    policy.save(tmp_path/'policy.pkl')
    assert sorted(p.name for p in tmp_path.iterdir())==['policy.pkl']
    again = MixturePolicy.load(tmp_path/'policy.pkl')
    learn = Learner(tensor_dls(splits.labelled, splits.holdout, n_steps=2), small_cnn(1, 10), torch.nn.functional.cross_entropy, cbs=Augment(again, 1.))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.export(tmp_path/'learn.pkl')
    assert isinstance(load_learner(tmp_path/'learn.pkl').augment.policy.f, MixturePolicy)
    x = torch.rand(6, 1, 28, 28)
    for seed in range(3):
        torch.manual_seed(seed); a = policy(x)
        torch.manual_seed(seed); assert torch.equal(a, pickle.loads(pickle.dumps(again))(x))


@pytest.mark.parametrize('candidates, words', [([v2.RandomInvert()], 'expected a dict'), ({'rotate': {}}, 'expected a dict'),
                                               ({'normal': v2.Normalize([.5], [.1])}, "Candidate 'normal' failed"),
                                               ({'rotate': {'15°': v2.RandomRotation}}, 'Make one')], ids=['list', 'empty', 'range', 'class'])
def test_bad_candidates(splits, candidates, words):
    learn = Learner(tensor_dls(splits.labelled, splits.holdout, n_steps=2), small_cnn(1, 10), torch.nn.functional.cross_entropy)
    with pytest.raises((ValueError, TypeError), match=words): learn.aug_find(candidates, show_plot=False)


@pytest.mark.parametrize('how, words', [(dict(most=0), 'most=0'), (dict(through='body'), 'through='), (dict(share=2), 'share=2'), (dict(n_boot=0), 'n_boot=0')], ids=str)
def test_bad_settings(splits, how, words):
    learn = Learner(tensor_dls(splits.labelled, splits.holdout, n_steps=2), small_cnn(1, 10), torch.nn.functional.cross_entropy)
    with pytest.raises(ValueError, match=words): learn.aug_find(FEW, show_plot=False, **how)


def test_through_training(splits):
    learn = Learner(tensor_dls(splits.labelled, splits.holdout, n_steps=2), small_cnn(1, 10), torch.nn.functional.cross_entropy)
    found = learn.aug_find(FEW, train=splits.labelled, valid=splits.tune[torch.arange(50)], through='training', steps=6, trainings=1, show_plot=False)
    assert 'rate' in found.table and found.changes is None
    with pytest.raises(ValueError, match="through='head'"): found.per_class()
