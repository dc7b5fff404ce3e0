"""What can I bring? Each case is tried: it works, with a value from something independent, or is refused with a message before long work.
`python tests/test_bring.py` writes results/bring.csv, from which the page of that name is made; the test compares it with what happens now."""
import re
import sys
import tempfile
import time
import warnings
from collections import namedtuple
from copy import deepcopy
from functools import partial
from pathlib import Path

import albumentations
import kornia.augmentation as K
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner, load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat, MSELossFlat
from fastai.vision.all import CutMix, MixUp, RandomErasing, TensorImage, TensorMask, aug_transforms
from fastai.vision.augment import Rotate
from PIL import Image
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler
from torchvision import transforms as v1
from torchvision.transforms import v2

from influence_aug.augment.augmenter import load_generator
from influence_aug.augment.callbacks import AddTarget, Augment, MaxUp
from influence_aug.augment.classifier import train_classifier
from influence_aug.augment.policies import random_tau
from influence_aug.core.batches import Batches
from influence_aug.core.data import Images, Source, draw_splits
from influence_aug.core.files import images_from_folder, source_from_folder, source_from_folders
from influence_aug.core.policy import Policy
from influence_aug.influence.influence import Influence
from influence_aug.influence.ranking import rank_augmentations

ROWS = Path(__file__).parents[1]/'results'/'bring.csv'
Case = namedtuple('Case', 'kind what run')
flip = {'mirror': lambda x: x.flip(3)}


def tiny(n=30, seed=0, channels=1, size=8, classes=3):
    """Images of as many classes as they have bright columns."""
    rng, y = torch.Generator().manual_seed(seed), torch.arange(n) % classes
    x = .5*torch.rand(n, channels, size, size, generator=rng)
    for i, k in enumerate(y): x[i, ..., :k+1] += .5
    return x, y


def net(channels=1, size=8, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels*size**2, 8), nn.Tanh(), nn.Linear(8, classes))


TRAIN, VALID = tiny(30, 0), tiny(24, 1)


def rank(model=None, train=TRAIN, valid=VALID, candidates=flip, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return rank_augmentations(net() if model is None else model, train, valid, candidates, **kwargs)


def same_as_tensors(train, valid=VALID, model=None):
    """A way to bring the data gives the table that the two pairs of tensors give."""
    assert np.allclose(rank(model, train, valid).predicted, rank(model).predicted, atol=1e-6)


def values_agree(model, channels=1, size=8, params='head', loss=None, of=F.cross_entropy, tol=1e-3):
    """Values are s·∇l with the gradient that PyTorch gives backwards, through the model as it is."""
    (x, y), data = tiny(3, 2, channels, size), [tiny(n, s, channels, size) for n, s in ((12, 0), (9, 1))]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        infl = Influence(model, *data, params, damping=1., refit=False, loss=loss).fit()
    p = next(model.parameters())
    model = deepcopy(model).eval()
    if params == 'head':
        head = next(m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.shape == infl.problem.W[:, :m.weight.shape[1]].shape)
        parts, S = [o for o in (head.weight, head.bias) if o is not None], infl.s.view_as(infl.problem.W)
        split = [S[:, :head.weight.shape[1]], S[:, -1]]
    else:
        parts = [o for o in model.parameters() if o.requires_grad]
        split = [o.view_as(q) for o, q in zip(infl.s.split([q.numel() for q in parts]), parts)]
    for p in parts: p.requires_grad_()
    scale = of(torch.zeros(12, 3), data[0][1]).item()/of(torch.zeros(12, 3), data[0][1], reduction='none').mean().item()
    for i in range(3):
        g = torch.autograd.grad(of(model(x[i:i+1].to(p.dtype)).float(), y[i:i+1], reduction='none').sum()*scale, parts)
        expected = sum((a.double()*b.double()).sum() for a, b in zip(g, split)).item()
        assert abs(infl.values(x[i:i+1].to(p.dtype), y[i:i+1]).item()-expected) <= tol*(abs(expected)+infl.s.norm().item()), (i, expected)


# models

class Headed(nn.Module):
    """A head registered before the body, a linear layer aside, and something after the head."""
    def __init__(self, after=lambda z: z, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.aside, self.after = nn.Linear(8, 3, bias=bias), nn.Linear(8, 7), after
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    def forward(self, x): return self.after(self.head(self.body(x)))


class Two(Headed):
    def forward(self, x): return self.head(self.body(x)), self.aside(self.body(x))


class Rows(nn.Module):
    """A network over the rows of an image."""
    def __init__(self, layer):
        super().__init__()
        self.rows, self.head = layer, nn.Linear(8, 3)
    def forward(self, x):
        h = self.rows(x[:, 0])
        return self.head((h[0] if isinstance(h, tuple) else h).mean(1))


class OneWay(torch.autograd.Function):
    """A layer that can be differentiated backwards only."""
    @staticmethod
    def forward(ctx, x): return x*2
    @staticmethod
    def backward(ctx, g): return g*2


class Backwards(nn.Module):
    def forward(self, x): return OneWay.apply(x)


def spoiled(model, value):
    with torch.no_grad(): model[1].weight[0, 0] = value
    return model


def frozen_all(model): return model.requires_grad_(False)


class Doubled(nn.Linear):
    def forward(self, x): return 2*super().forward(x)


class Beside(nn.Module):
    def __init__(self): super().__init__(); self.body, self.head = net()[:3], net()[3]
    def forward(self, x):
        z = self.head(self.body(x))
        self.other = self.head(self.body(x.flip(2)))
        return z


class Random(Beside):
    def forward(self, x): return self.head(F.dropout(self.body(x)))


def has_run():
    model = torch.compile(net(), backend='eager')
    model(TRAIN[0])
    return model


def pruned():
    model = net()
    prune.l1_unstructured(model[1], 'weight', .5)
    with torch.no_grad(): model(TRAIN[0])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        Influence(model, TRAIN, VALID, 'all', damping=1.).fit()
    deepcopy(model)


class Functional(nn.Module):
    def __init__(self): super().__init__(); self.body, self.weight = nn.Linear(64, 8), nn.Parameter(torch.ones(3, 8))
    def forward(self, x): return F.linear(self.body(x.flatten(1)).tanh(), self.weight)


class Shared(nn.Module):
    """One layer in two places, and one weight in two layers."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.b.weight, self.again = self.a.weight, self.a
    def forward(self, x): return self.head(self.b(self.again(self.a(x.flatten(1)).tanh()).tanh()).tanh())


def shared_layers():
    model = Shared()
    Influence(model, TRAIN, VALID, 'all', damping=1.)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters()) and model.b.weight is model.again.weight
    return model


def normed(norm): torch.manual_seed(0); return nn.Sequential(nn.Flatten(), norm(nn.Linear(64, 8)), nn.Tanh(), nn.Linear(8, 3))
def transformer(): return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
def seeded(make): torch.manual_seed(0); return make()


MODELS = [
    ('a small network', lambda: values_agree(net())), ('its head without biases', lambda: values_agree(Headed(bias=False))),
    ('a head registered before the body, an unused layer aside', lambda: values_agree(Headed())), ('ending in log-softmax', lambda: values_agree(Headed(lambda z: z.log_softmax(1)))),
    ('torchvision ResNet', lambda: values_agree(seeded(lambda: torchvision.models.resnet18(num_classes=3)), 3, 32)),
    ('torchvision ViT', lambda: values_agree(seeded(lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=3)), 3, 32)),
    ('float64', lambda: values_agree(net().double())), ('float16, head', lambda: values_agree(net().half(), tol=.02)), ('bfloat16, head', lambda: values_agree(net().bfloat16(), tol=.1)),
    ("params='all'", lambda: values_agree(net(), params='all')), ("LSTM, params='all'", lambda: values_agree(seeded(lambda: Rows(nn.LSTM(8, 8, batch_first=True))), params='all')),
    ("GRU, params='all'", lambda: values_agree(seeded(lambda: Rows(nn.GRU(8, 8, batch_first=True))), params='all')),
    ("attention, params='all'", lambda: values_agree(seeded(lambda: Rows(transformer())), params='all')),
    ("ViT, params='all'", lambda: values_agree(seeded(lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=3)), 3, 32, params='all')),
    ("layers that share weights, params='all'", lambda: values_agree(shared_layers(), params='all')), ('torch.compile', lambda: same_as_tensors(TRAIN, model=torch.compile(net(), backend='eager'))), ('DataParallel', lambda: same_as_tensors(TRAIN, model=nn.DataParallel(net()))),
    ('a body with weight_norm, spectral_norm', lambda: (values_agree(normed(weight_norm)), values_agree(normed(spectral_norm)))),
    ("part frozen, params='all'", lambda: values_agree(nn.Sequential(frozen_all(net()[:3]), nn.Linear(8, 3)), params='all')),
    ('a linear layer with a forward of its own', lambda: rank(nn.Sequential(net()[:3], Doubled(8, 3)))), ('TorchScript', lambda: rank(torch.jit.script(net()))), ('lazy layers that have not run', lambda: rank(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))),
    ('a head without a layer, by F.linear', lambda: rank(Functional())), ("weight_norm, params='all'", lambda: Influence(normed(weight_norm), TRAIN, VALID, 'all')),
    ('a head that runs once more beside', lambda: same_as_tensors(TRAIN, model=Beside())), ('a model that torch.compile has run', lambda: same_as_tensors(TRAIN, model=has_run())), ("a pruned layer, params='all'", lambda: pruned()),
    ('random in eval mode', lambda: rank(Random())), ('scores that depend on the batch', lambda: rank(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)))),
    ('logits scaled after the head', lambda: rank(Headed(lambda z: 2*z))), ('softmax at the end', lambda: rank(Headed(lambda z: z.softmax(1)))),
    ('several outputs', lambda: rank(Two())), ('a dict of outputs', lambda: rank(Headed(lambda z: dict(logits=z)))), ('one output', lambda: rank(Headed(lambda z: z[:, 0]))),
    ('a convolution as the head', lambda: rank(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()))), ('scores for each row', lambda: rank(nn.Sequential(nn.Flatten(2), nn.Linear(64, 3)))),
    ('a function', lambda: rank(lambda x: x)), ('a class instead of a model', lambda: rank(torchvision.models.ResNet)), ('no parameters', lambda: rank(nn.Flatten())),
    ('a layer by a name that it has not', lambda: rank(net(), head_layer='fc')), ('a layer that is not the head', lambda: rank(Headed(), head_layer='aside')),
    ('for images of another size', lambda: rank(net(size=9))), ('for images of other channels', lambda: rank(seeded(lambda: torchvision.models.resnet18(num_classes=3)))),
    ('fewer classes than the labels', lambda: rank(net(classes=2))), ('more classes than the labels', lambda: rank(net(classes=4))),
    ('weights that are not finite', lambda: rank(spoiled(net(), torch.nan))), ("all frozen, params='all'", lambda: Influence(frozen_all(net()), TRAIN, VALID, 'all')),
    ("a layer's name that is not there", lambda: Influence(net(), TRAIN, VALID, ['fc'])), ("bfloat16, params='all'", lambda: Influence(net().bfloat16(), TRAIN, VALID, 'all')),
    ("a layer without forward derivative, params='all'", lambda: Influence(nn.Sequential(net(), Backwards()), TRAIN, VALID, 'all')),
]

# losses

WEIGHT = torch.tensor([1., 5., .5])


def learner(loss, pairs=None, model=None, cbs=(), valid=None, **kwargs):
    pairs = pairs or [(TensorImage(a), b) for a, b in zip(*TRAIN)]
    dls = DataLoaders.from_dsets(pairs, valid or [(TensorImage(a), b) for a, b in zip(*VALID)], bs=10, num_workers=0, device='cpu', **kwargs)
    return Learner(dls, model or net(), loss_func=loss, cbs=list(cbs))


class Squared(nn.CrossEntropyLoss):
    def forward(self, z, y): return super().forward(z, y)**2


LOSSES = [
    ('none given: plain cross-entropy', lambda: values_agree(net())),
    *[(f"{name}, params={p!r}", lambda loss=loss, of=of, p=p: values_agree(net(), params=p, loss=loss, of=of)) for p in ('head', 'all') for name, loss, of in [
        ('class weights', nn.CrossEntropyLoss(WEIGHT), partial(F.cross_entropy, weight=WEIGHT)), ('label smoothing', nn.CrossEntropyLoss(label_smoothing=.1), partial(F.cross_entropy, label_smoothing=.1)),
        ('both', nn.CrossEntropyLoss(WEIGHT, label_smoothing=.1), partial(F.cross_entropy, weight=WEIGHT, label_smoothing=.1))]],
    ("fastai's CrossEntropyLossFlat(weight=…)", lambda: values_agree(net(), loss=CrossEntropyLossFlat(weight=WEIGHT), of=partial(F.cross_entropy, weight=WEIGHT))),
    ("fastai's LabelSmoothingCrossEntropyFlat", lambda: values_agree(net(), loss=LabelSmoothingCrossEntropyFlat(eps=.1), of=partial(F.cross_entropy, label_smoothing=.1))),
    ('F.cross_entropy with arguments bound', lambda: values_agree(net(), loss=partial(F.cross_entropy, weight=WEIGHT), of=partial(F.cross_entropy, weight=WEIGHT))),
    ("a Learner's own", lambda: np.testing.assert_allclose(rank(learner(nn.CrossEntropyLoss(WEIGHT))).predicted, rank(loss=nn.CrossEntropyLoss(WEIGHT)).predicted)),
    *[(name, lambda loss=loss: rank(loss=loss)) for name, loss in [
        ('focal', FocalLossFlat()), ('binary cross-entropy', BCEWithLogitsLossFlat()), ('mean squared error', MSELossFlat()), ('margin', nn.MultiMarginLoss()), ('negative log-likelihood', nn.NLLLoss()),
        ('a sum instead of a mean', nn.CrossEntropyLoss(reduction='sum')), ('no reduction', nn.CrossEntropyLoss(reduction='none')), ('a class that derives from cross-entropy', Squared()),
        ('weights of other classes', nn.CrossEntropyLoss(torch.ones(4))), ('negative weights', nn.CrossEntropyLoss(-WEIGHT)), ('an index that is ignored', nn.CrossEntropyLoss(ignore_index=1)),
        ('weights inside a function', lambda z, y: F.cross_entropy(z, y, weight=WEIGHT)), ('weighted, divided by the number of samples', lambda z, y: (F.cross_entropy(z, y, reduction='none')*WEIGHT[y]).mean()), ('with a penalty', lambda z, y: F.cross_entropy(z, y)+z.square().mean()), ('weights and smoothing of fastai, weighed apart', LabelSmoothingCrossEntropyFlat(eps=.1, weight=WEIGHT)),
        ('a name', 'cross_entropy')]],
]

# data


class Pairs(Dataset):
    def __init__(self, x, y, change=lambda x: x): self.x, self.y, self.change = x, y, change
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.change(self.x[i]), self.y[i]


class Stream(IterableDataset):
    def __iter__(self): return zip(*TRAIN)


def images(x, y, vocab=('a', 'b', 'c')): return Images((255*x).round().to(torch.uint8), y, vocab)
def exact(n, seed): x, y = tiny(n, seed); return (255*x).round()/255, y
def set_to(x, value): x = x.clone(); x[0, 0, 0, 0] = value; return x


def bytes_agree():
    pair = exact(30, 0)
    assert np.allclose(rank(train=images(*pair), valid=VALID).predicted, rank(train=pair).predicted, atol=1e-6)


def part_only():
    table = rank(train=Subset(TensorDataset(*TRAIN), range(15)))
    assert np.allclose(table.predicted, rank(train=tuple(o[:15] for o in TRAIN)).predicted, atol=1e-6)


def normalised_agrees():
    model, after = net(), Normalize.from_stats([.5], [.25], cuda=False)
    class Inside(nn.Module):
        def __init__(self): super().__init__(); self.model = model
        def forward(self, x): return self.model((x-.5)/.25)
    learn = learner(F.cross_entropy, model=model, after_batch=after)
    assert np.allclose(rank(model, learn.dls.train, learn.dls.valid).predicted, rank(Inside()).predicted, atol=1e-5)


def one_normalised():
    a, b = learner(F.cross_entropy, after_batch=Normalize.from_stats([.5], [.25], cuda=False)), learner(F.cross_entropy)
    return rank(net(), a.dls.train, b.dls.valid)


DATA = [
    ('a pair of tensors', lambda: same_as_tensors(TRAIN)), ('NumPy arrays', lambda: same_as_tensors(tuple(o.numpy() for o in TRAIN), tuple(o.numpy() for o in VALID))),
    ('bytes from 0 to 255 in Images', bytes_agree), ('a PyTorch DataLoader', lambda: same_as_tensors(DataLoader(TensorDataset(*TRAIN), 7))),
    ('one that shuffles', lambda: same_as_tensors(DataLoader(TensorDataset(*TRAIN), 7, shuffle=True))), ('one with workers', lambda: same_as_tensors(DataLoader(TensorDataset(*TRAIN), 7, num_workers=2))),
    ('a bare Dataset', lambda: same_as_tensors(Pairs(*TRAIN))), ('a stream (IterableDataset)', lambda: same_as_tensors(DataLoader(Stream(), 7))), ('a Subset', part_only),
    ("fastai's loaders", lambda: same_as_tensors(learner(F.cross_entropy).dls.train, learner(F.cross_entropy).dls.valid)), ("fastai's loaders with Normalize", normalised_agrees),
    ('a batch sampler', lambda: same_as_tensors(DataLoader(TensorDataset(*TRAIN), batch_sampler=BatchSampler(range(30), 7, False)))), ('labels as int8', lambda: same_as_tensors((TRAIN[0], TRAIN[1].to(torch.int8)))), ('nested lists', lambda: same_as_tensors(tuple(o.tolist() for o in TRAIN))),
    ('labels as floats 0., 1., 2.', lambda: same_as_tensors((TRAIN[0], TRAIN[1].float()))), ('labels of shape (n, 1)', lambda: same_as_tensors((TRAIN[0], TRAIN[1][:, None]))),
    ('one-hot labels', lambda: rank(train=(TRAIN[0], F.one_hot(TRAIN[1])))), ('several labels an image', lambda: rank(train=(TRAIN[0], torch.ones(30, 3)))),
    ('fractional labels', lambda: rank(train=(TRAIN[0], TRAIN[1]+.5))), ('labels from 1', lambda: rank(train=(TRAIN[0], TRAIN[1]+1))), ('negative labels', lambda: rank(train=(TRAIN[0], TRAIN[1]-1))),
    ('a class that is missing in training', lambda: rank(train=tuple(o[TRAIN[1] > 0] for o in TRAIN))), ('more labels than images', lambda: rank(train=(TRAIN[0][:20], TRAIN[1]))),
    ('three parts', lambda: rank(train=(*TRAIN, TRAIN[1]))), ('one tensor', lambda: rank(train=TRAIN[0])), ('batches of three parts', lambda: rank(train=DataLoader(TensorDataset(*TRAIN, TRAIN[1]), 7))),
    ('batches that are dicts', lambda: rank(train=DataLoader([dict(image=a, label=b) for a, b in zip(*TRAIN)], 7))), ('images of Pillow in a Dataset', lambda: rank(train=Pairs([Image.new('L', (8, 8))]*30, TRAIN[1]))),
    ('a generator', lambda: rank(train=zip(*TRAIN))), ('both loaders at once', lambda: rank(train=learner(F.cross_entropy).dls)), ('a Learner as data', lambda: rank(train=learner(F.cross_entropy))),
    ('a path', lambda: rank(train=Path('pictures'))), ('a number', lambda: rank(train=5)), ('a dict', lambda: rank(train=dict(x=TRAIN[0], y=TRAIN[1]))), ('nothing', lambda: rank(train=None)),
    ('labels as text', lambda: rank(train=(TRAIN[0], list('abc')*10))), ('channels last', lambda: rank(train=(TRAIN[0].permute(0, 2, 3, 1), TRAIN[1]))), ('images without a channel', lambda: rank(train=(TRAIN[0][:, 0], TRAIN[1]))),
    ('a batch sampler that drops its last batch', lambda: rank(train=DataLoader(TensorDataset(*TRAIN), batch_sampler=BatchSampler(range(30), 7, True)))), ('pairs in a list', lambda: rank(train=list(zip(*TRAIN)))),
    ('a loader that drops its last batch', lambda: rank(train=DataLoader(TensorDataset(*TRAIN), 7, drop_last=True))), ('no training images', lambda: rank(train=tuple(o[:0] for o in TRAIN))),
    ('no validation images', lambda: rank(valid=tuple(o[:0] for o in VALID))), ('the same images in both', lambda: rank(valid=TRAIN)),
    ('pixels from 0 to 255 as floats', lambda: rank(train=(255*TRAIN[0], TRAIN[1]))), ('the same in validation', lambda: rank(valid=(255*VALID[0], VALID[1]))), ('pixels already normalised', lambda: rank(train=((TRAIN[0]-.5)/.25, TRAIN[1]))),
    ('integers that are no bytes', lambda: rank(train=((255*TRAIN[0]).long(), TRAIN[1]))), ('NaN in an image', lambda: rank(train=(set_to(TRAIN[0], torch.nan), TRAIN[1]))), ('infinity in an image', lambda: rank(valid=(set_to(VALID[0], torch.inf), VALID[1]))),
    ('one loader normalised, one not', one_normalised), ('a random transform in the data set', lambda: rank(train=Pairs(*TRAIN, lambda x: (x*torch.rand(1)).clamp(0, 1)))),
    ('a sampler that draws again', lambda: rank(train=DataLoader(TensorDataset(*TRAIN), 7, sampler=WeightedRandomSampler(torch.ones(30), 30)))),
    ('another order of classes in validation', lambda: rank(train=images(*exact(30, 0)), valid=images(*exact(24, 1), ('a', 'c', 'b')))),
    ('images of other sizes in one Dataset', lambda: rank(train=Pairs([TRAIN[0][0], TRAIN[0][1][:, :6]]*15, TRAIN[1]))),
]

# transforms


def own_draws(transform, channels=1, size=16):
    x = tiny(1, channels=channels, size=size)[0].repeat(64, 1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        new = Policy(transform)(x)
    assert new.shape == x.shape and len(new.flatten(1).unique(dim=0)) > 40


def half_agrees(dtype):
    x, turned = tiny(8)[0], Policy(lambda x: torch.rot90(x, 1, (2, 3)))
    assert (turned(x.to(dtype)).float()-torch.rot90(x, 1, (2, 3))).abs().max() < .01


def verdicts_agree(): assert rank(candidates={'it': lambda x: x.mul_(.5)}).verdict.tolist() == rank(candidates={'it': lambda x: x*.5}).verdict.tolist()


def common_angle():
    x, turn = torch.zeros(64, 1, 16, 16), v2.RandomRotation(30)
    x[..., 8, :] = 1
    assert len((Policy(lambda x: (turn(x)+.02*torch.rand_like(x)).clamp(0, 1))(x) > .35).flatten(1).unique(dim=0)) > 20


def now_and_then(x):
    x = x.clone()
    x[torch.rand(len(x)) < .002] = torch.nan
    return x


def broken_rarely():
    torch.manual_seed(0)
    policy = Policy(now_and_then)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert all(policy(torch.rand(500, 1, 2, 2)).isfinite().all() for _ in range(10)) and policy.broken > 0


def fails(x): raise RuntimeError('out of paint')
class Cut(nn.Module):
    def forward(self, x): return x[..., :6]


TRANSFORMS = [
    ('torchvision v2', lambda: own_draws(v2.RandomRotation(30))), ('torchvision v1', lambda: own_draws(v1.RandomRotation(30))), ('v1 Compose', lambda: own_draws(v1.Compose([v1.RandomRotation(30), v1.RandomAffine(0, (.1, .1))]))),
    ('v2 Compose with ToImage and ToDtype', lambda: own_draws(v2.Compose([v2.ToImage(), v2.RandomRotation(30), v2.ToDtype(torch.float32, scale=True)]))), ('to Pillow and back', lambda: own_draws(v1.Compose([v1.ToPILImage(), v1.RandomRotation(30), v1.ToTensor()]))),
    ('nn.Sequential', lambda: own_draws(nn.Sequential(v1.RandomRotation(30)))), ('a list', lambda: own_draws([v2.RandomRotation(30), lambda x: x])), ('RandAugment, TrivialAugmentWide', lambda: (own_draws(v2.RandAugment(), 3), own_draws(v2.TrivialAugmentWide(), 3))),
    ('kornia', lambda: own_draws(K.RandomRotation(30., p=1.))), ('albumentations', lambda: own_draws(albumentations.Rotate((-30, 30), p=1.))), ("fastai's", lambda: own_draws(Rotate(30, p=1.))), ("fastai's aug_transforms()", lambda: own_draws(aug_transforms(max_rotate=30, p_affine=1.))),
    ('a function of a batch that draws once', lambda: own_draws(lambda x: v1.functional.rotate(x, float(torch.empty(1).uniform_(-30, 30))))), ('nn.Dropout', lambda: own_draws(nn.Dropout(.2))), ('an Augmenter of this library', lambda: own_draws(random_tau(load_generator('mnist')), size=28)),
    ('one that works in place', lambda: np.testing.assert_array_equal(rank(candidates={'it': lambda x: x.mul_(.5)}).drop(columns='verdict'), rank(candidates={'it': lambda x: x*.5}).drop(columns='verdict')) or verdicts_agree()),
    ('a draw for the batch beside noise of each pixel', common_angle), ('albumentations, the same again with one seed', lambda: np.testing.assert_array_equal(*(rank(candidates={'it': albumentations.GaussNoise(p=1.)}).predicted for _ in range(2)))),
    ('images in float16, bfloat16', lambda: (half_agrees(torch.float16), half_agrees(torch.bfloat16))), ('a rare image that is not finite', broken_rarely),
    *[(what, lambda f=f: rank(candidates={'it': f})) for what, f in [
        ('v2.Normalize', v2.Normalize([.5], [.1])), ('another size', v2.Resize(6)), ('another size, from a module', Cut()), ('another number of channels', lambda x: x.repeat(1, 3, 1, 1)), ('bytes', lambda x: (255*x).byte()), ('an array', lambda x: x.numpy()),
        ('nothing returned', lambda x: None), ('every image not finite', lambda x: x/0), ('values to 255', lambda x: 255*x), ('one that raises', fails), ('a class, not an instance', v2.RandomRotation), ('a name', 'mirror'), ('a callback', MixUp()),
        ("fastai's RandomErasing", RandomErasing(p=1.)), ('None', None)]],
    ('candidates as a list', lambda: rank(candidates=[v2.RandomRotation(30)])), ('no candidates', lambda: rank(candidates={})),
]

# settings

SETTINGS = [(what, run) for what, run in [
    ('share=0', lambda: rank(share=0)), ('share=1.5', lambda: rank(share=1.5)), ('draws=0', lambda: rank(draws=0)), ('draws=1.5', lambda: rank(draws=1.5)), ('l2=0', lambda: rank(l2=0)), ('l2=inf', lambda: rank(l2=float('inf'))), ('l2=-1', lambda: rank(l2=-1.)), ("l2='small'", lambda: rank(l2='small')),
    ('bs=0', lambda: rank(bs=0)), ('n_boot=0', lambda: rank(n_boot=0)), ('seed=None', lambda: rank(seed=None)), ('seed=-1', lambda: rank(seed=-1)), ('values of labels of shape (n, 1), bytes', lambda: values_as_read()), ('values of labels beyond the classes', lambda: Influence(net(), TRAIN, VALID).fit().values(TRAIN[0], TRAIN[1]+1)),
    ('one validation image gives no verdict', lambda: one_image()), ('draw_splits where a class has no image', lambda: draw_splits(without_one())), ('train_classifier of a Source', lambda: train_classifier(source())),
    ('train_classifier(make_model=a model)', lambda: train_classifier(splits(), make_model=net())), ("params='body'", lambda: Influence(net(), TRAIN, VALID, 'body')), ("solver='magic'", lambda: Influence(net(), TRAIN, VALID, solver='magic')),
    ("curvature='fisher'", lambda: Influence(net(), TRAIN, VALID, curvature='fisher')), ('damping=-1', lambda: Influence(net(), TRAIN, VALID, damping=-1.)), ('values before fit', lambda: Influence(net(), TRAIN, VALID).values(*TRAIN)),
    ('Augment(p=1.5)', lambda: Augment(lambda x: x, 1.5)), ('MaxUp(k=0)', lambda: MaxUp(lambda x: x, 0)), ('MaxUp(k=2.5)', lambda: MaxUp(lambda x: x, 2.5)), ('AddTarget(share=1)', lambda: AddTarget(images(*VALID), 1.)), ('AddTarget of nothing', lambda: AddTarget(images(*VALID)[:0])),
    ('a policy where callbacks are expected', lambda: train_classifier(splits(), lambda x: x)), ('train_classifier(steps=7)', lambda: train_classifier(splits(), steps=7)), ('train_classifier(steps=0)', lambda: train_classifier(splits(), steps=0)), ('train_classifier(epochs=0)', lambda: train_classifier(splits(), epochs=0)), ('train_classifier(bs=0)', lambda: train_classifier(splits(), bs=0)),
    ('draw_splits(n=0)', lambda: draw_splits(source(), n=0)), ('draw_splits(n=7)', lambda: draw_splits(source(), n=7)), ('draw_splits(n=3000)', lambda: draw_splits(source(), n=3000)), ('draw_splits(frac=2)', lambda: draw_splits(source(), frac=2.)), ('draw_splits of tensors', lambda: draw_splits(TRAIN)),
]]


def values_as_read():
    infl = Influence(net(), TRAIN, VALID).fit()
    x, y = (255*TRAIN[0][:3]).round().byte(), TRAIN[1][:3]
    assert torch.allclose(infl.values(x, y[:, None]), infl.values(x/255, y)) and torch.allclose(infl.newton_if_removed(x.numpy(), y[:, None].numpy()), infl.newton_if_removed(x/255, y))


def without_one(): a = source(); return Source(a.pool[a.pool.y < 2], a.valid)
def one_image(): assert rank(valid=(VALID[0][:1], VALID[1][:1])).verdict.tolist() == ['cannot tell']


def source(): return Source(*(Images(o.x, o.y, o.vocab, torch.arange(len(o))+1000*i) for i, o in enumerate(images(*tiny(60, s)) for s in range(3))))
def splits(): return draw_splits(source(), n=30)


# fastai

def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters())


def pairs(y=None, kind=TensorImage): return [(kind(a), b) for a, b in zip(TRAIN[0], TRAIN[1] if y is None else y)]
class TwoInputs(nn.Module):
    def __init__(self): super().__init__(); self.head = nn.Linear(66, 3)
    def forward(self, x, z): return self.head(torch.cat([x.flatten(1), z], 1))


def with_two(cb): fit(learner(F.cross_entropy, [(TensorImage(a), torch.rand(2), b) for a, b in zip(*TRAIN)], TwoInputs(), [cb], valid=[(TensorImage(a), torch.rand(2), b) for a, b in zip(*VALID)], n_inp=2))
def noisy(): return Augment(lambda x: (x+.1*torch.rand_like(x)).clamp(0, 1), 1.)
def hardest(): return MaxUp(noisy(), 2)
def several(cb): y = F.one_hot(TRAIN[1]).float(); fit(learner(nn.BCEWithLogitsLoss(), pairs(y), cbs=[cb], valid=pairs(y)))
def regression(cb): y = TRAIN[1][:, None]*.1; fit(learner(MSELossFlat(), pairs(y), net(classes=1), [cb], valid=pairs(y)))
def masks(cb): y = [TensorMask(o[0] > .5).long() for o in TRAIN[0]]; fit(learner(CrossEntropyLossFlat(axis=1), pairs(y), nn.Conv2d(1, 2, 1), [cb], valid=pairs(y)))
def by_hand(a): a = 4*a-2; a[0, 0, 0], a[0, 0, 1] = -2, 2; return a
def trained(): return train_classifier(splits(), steps=2, epochs=1)


def exported(dtype=torch.float32):
    with tempfile.TemporaryDirectory() as d:
        learn = trained()
        learn.model.to(dtype)
        learn.export(Path(d)/'learn.pkl')
        again = load_learner(Path(d)/'learn.pkl')
    assert all(torch.equal(p, q) and p.dtype == dtype for p, q in zip(again.model.parameters(), learn.model.parameters()))
    if dtype == torch.float32: assert torch.allclose(again.predict(TRAIN[0][0])[2], learn.predict(TRAIN[0][0])[2])


def mixed(kind): fit(getattr(learner(CrossEntropyLossFlat(), cbs=[noisy()]), kind)())


def erased(): fit(learner(F.cross_entropy, cbs=[noisy()], after_batch=[Normalize.from_stats([.5], [.25], cuda=False), RandomErasing(p=1.)]))


FASTAI = [
    ('Augment beside MixUp, CutMix', lambda: (fit(learner(CrossEntropyLossFlat(), cbs=[noisy(), MixUp()])), fit(learner(CrossEntropyLossFlat(), cbs=[CutMix(), noisy()])))), ('MaxUp beside MixUp', lambda: fit(learner(CrossEntropyLossFlat(), cbs=[hardest(), MixUp()]))),
    ('Augment before Normalize and RandomErasing', erased), ('Augment with several inputs: the first is augmented', lambda: with_two(noisy())), ('MaxUp with several inputs', lambda: with_two(hardest())), ('AddTarget with several inputs', lambda: with_two(AddTarget(images(*VALID)))),
    ('Augment and MaxUp with several labels an image', lambda: (several(noisy()), several(hardest()))), ('AddTarget with several labels an image', lambda: several(AddTarget(images(*VALID)))),
    ('Augment and MaxUp with a regression', lambda: (regression(noisy()), regression(hardest()))), ('AddTarget with a regression', lambda: regression(AddTarget(images(*VALID)))), ('Augment with masks', lambda: masks(noisy())),
    ('MaxUp with a loss that gives a mean only', lambda: fit(learner(lambda z, y: F.cross_entropy(z, y), cbs=[hardest()]))), ('AddTarget beside MixUp', lambda: fit(learner(CrossEntropyLossFlat(), cbs=[MixUp(), AddTarget(images(*VALID))]))), ('AddTarget with another order of classes', lambda: train_classifier(splits(), AddTarget(images(*VALID, ('c', 'b', 'a'))), steps=2, epochs=1)),
    ('AddTarget of a tuple', lambda: AddTarget(VALID)), ('MaxUp with a value for all', lambda: fit(learner(F.cross_entropy, cbs=[MaxUp(noisy(), 2, lambda model, x, y: x.mean())]))),
    ('AddTarget of another size', lambda: fit(learner(F.cross_entropy, cbs=[AddTarget(images(*tiny(6, size=6)))]))),
    ('Augment of pixels that are normalised by hand', lambda: fit(learner(F.cross_entropy, [(TensorImage(by_hand(a)), b) for a, b in zip(*TRAIN)], cbs=[noisy()]))),
    ('export and load_learner', exported), ('export in bfloat16', lambda: exported(torch.bfloat16)), ('to_fp16, to_bf16', lambda: (mixed('to_fp16'), mixed('to_bf16'))), ('tta(batch_tfms=…)', lambda: trained().tta(batch_tfms=aug_transforms())), ('predict for another size', lambda: trained().predict(torch.zeros(1, 20, 20))),
]

# files


def a_folder(spoil=lambda path: None):
    path = Path(tempfile.mkdtemp())/'pictures'
    rng = np.random.default_rng(0)
    for k in 'ab':
        (path/k).mkdir(parents=True)
        for i in range(4): Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path/k/f'{i}.png')
    spoil(path)
    return path


def shown(name, save, channels=1):
    """What is read is what Pillow shows, upright."""
    from PIL import ImageOps
    path = a_folder(lambda p: save(p/'a'/name))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        data = images_from_folder(path, channels)
    with Image.open(path/'a'/name) as im: expected = np.array(ImageOps.exif_transpose(im).convert('L' if channels == 1 else 'RGB')).reshape(8, 8, -1)
    assert any(np.array_equal(o.permute(1, 2, 0).numpy(), expected) for o in data.x)


def colours(): return Image.fromarray(np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8))
def deep(f): Image.fromarray((np.arange(64).reshape(8, 8)*1000).astype(np.uint16)).save(f)
def sixteen():
    data = images_from_folder(a_folder(lambda p: deep(p/'a'/'deep.png')))
    assert any(torch.equal(o[0].float(), (torch.arange(64.).view(8, 8)*1000/257).round()) for o in data.x)
def upright(f): exif = Image.Exif(); exif[274] = 6; colours().save(f, exif=exif)
def two(p): (p/'b'/'twin.png').write_bytes((p/'a'/'0.png').read_bytes())
def only(p, keep): [f.unlink() for f in p.rglob('*.png') if f.parent.name != keep]
def leaking(): path = a_folder(); return source_from_folders(path, path)


FILES = [
    *[(f'{s.upper()}, grey and colour', lambda s=s: [shown(f'one.{s}', lambda f: colours().save(f, **({'lossless': True} if s == 'webp' else {})), c) for c in (1, 3)]) for s in ('png', 'jpg', 'bmp', 'gif', 'tif', 'webp')],
    ('16 bits', sixteen), ('turned by a camera (EXIF)', lambda: shown('one.png', upright, 3)),
    ('no such folder', lambda: images_from_folder('nowhere')), ('a folder without images', lambda: images_from_folder(a_folder(lambda p: only(p, '')))), ('a class without images', lambda: images_from_folder(a_folder(lambda p: only(p, 'a')))),
    ('one class', lambda: images_from_folder(a_folder(lambda p: (only(p, 'a'), (p/'b').rmdir())))), ('a file that is cut off', lambda: images_from_folder(a_folder(lambda p: (p/'a'/'0.png').write_bytes((p/'a'/'0.png').read_bytes()[:50])))),
    ('an empty file', lambda: images_from_folder(a_folder(lambda p: (p/'a'/'0.png').write_bytes(b'')))), ('text named .png', lambda: images_from_folder(a_folder(lambda p: (p/'a'/'0.png').write_text('hello')))),
    ('images of several sizes without size=', lambda: images_from_folder(a_folder(lambda p: Image.new('L', (5, 9)).save(p/'a'/'long.png')))), ('channels=2', lambda: images_from_folder(a_folder(), 2)), ('size=0', lambda: images_from_folder(a_folder(), size=0)),
    ('size=(28, 28)', lambda: images_from_folder(a_folder(), size=(28, 28))), ('valid=0', lambda: source_from_folder(a_folder(), valid=0)), ('one picture in two classes', lambda: images_from_folder(a_folder(two))), ('the same pictures in train and valid', leaking),
    ('pixels of 32 bits', lambda: images_from_folder(a_folder(lambda p: Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(p/'a'/'i.tif')))), ('shares that leave nothing', lambda: source_from_folder(a_folder(), valid=.9)),
    ('floating-point pixels', lambda: images_from_folder(a_folder(lambda p: Image.fromarray(np.zeros((8, 8), np.float32)).save(p/'a'/'f.tif')))),
]

CASES = [Case(kind, *o) for kind, cases in [('models', MODELS), ('losses', LOSSES), ('data', DATA), ('transforms', TRANSFORMS), ('files', FILES), ('fastai', FASTAI), ('settings', SETTINGS)] for o in cases]


def tried(case):
    """(outcome, message, seconds) of a case."""
    start = time.time()
    try: case.run()
    except Exception as e:
        words = re.sub(r'/\S*/pictures', 'pictures', str(e))
        words = re.sub(r'^Exception occured in `\w+` when calling event `\w+`:\s*', '', words)
        return 'refused', f'{type(e).__name__}: {words}', time.time()-start
    return 'works', '', time.time()-start


def rows(): return pd.DataFrame([dict(kind=c.kind, what=c.what, outcome=o, message=m) for c in CASES for o, m, _ in [tried(c)]])


def ends(message):
    """Its first and last words: between them may stand what another library said."""
    words = message.split()
    return words[:6], words[-6:]


def test_each_case_has_one_name_and_enough_are_bad():
    committed = pd.read_csv(ROWS, keep_default_na=False)
    assert committed.what.tolist() == [c.what for c in CASES] and not committed.duplicated(['kind', 'what']).any()
    assert (committed.outcome == 'refused').sum() >= 60


@pytest.mark.parametrize('case', CASES, ids=lambda c: f'{c.kind}: {c.what}')
def test_what_can_be_brought(case):
    committed = pd.read_csv(ROWS, keep_default_na=False).query('kind==@case.kind and what==@case.what').iloc[0]
    outcome, message, seconds = tried(case)
    assert (outcome, *ends(message)) == (committed.outcome, *ends(committed.message))
    if outcome == 'refused': assert message.startswith(('ValueError', 'TypeError', 'FileNotFoundError', 'RuntimeError: No s_val')) and seconds < 20


if __name__ == '__main__':
    rows().to_csv(ROWS, index=False)
    print(pd.read_csv(ROWS, keep_default_na=False).value_counts(['kind', 'outcome']).sort_index().to_string(), file=sys.stderr)
