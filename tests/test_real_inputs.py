"""What people really bring: transforms, data, files, fastai around a Learner. One test a kind, its right value from something independent."""
import random
import warnings

import albumentations
import kornia.augmentation as K
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.vision.all import MixUp, CutMix, RandomResizedCropGPU, TensorImage, aug_transforms
from fastai.vision.augment import Rotate
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler
from torchvision import transforms as v1
from torchvision.transforms import v2

from influence_aug.augment.augmenter import load_generator
from influence_aug.augment.callbacks import AddTarget, Augment, MaxUp
from influence_aug.augment.classifier import TensorDL, train_classifier
from influence_aug.augment.policies import random_tau
from influence_aug.core.batches import Batches
from influence_aug.core.data import Images, Source, draw_splits
from influence_aug.core.datasets import mnist_sample
from influence_aug.core.files import images_from_folder, source_from_folder, source_from_folders
from influence_aug.core.policy import Policy
from influence_aug.influence.influence import Influence
from influence_aug.influence.ranking import rank_augmentations


@pytest.fixture(scope='module')
def splits(): return draw_splits(mnist_sample(), n=200)


@pytest.fixture(scope='module')
def learn(splits): return train_classifier(splits, [Augment(random_tau(load_generator('mnist'))), Augment(lambda x: x.flip(3), .1)], steps=60, epochs=1)


def copies(n=64): return mnist_sample().pool.x[:1].repeat(n, 1, 1, 1).float()/255
def distinct(x): return len(x.flatten(1).unique(dim=0))


# a policy is what it seems

def turn_at_random(x): return torch.rot90(x, random.randrange(4), (2, 3))


EACH_ITS_OWN = {
    'v2': v2.RandomRotation(30), 'v1': v1.RandomRotation(30), 'v1 Compose': v1.Compose([v1.RandomRotation(30), v1.RandomAffine(0, (.1, .1))]),
    'v2 Compose': v2.Compose([v2.RandomRotation(30)]), 'nn.Sequential': nn.Sequential(v1.RandomRotation(30), v1.RandomAffine(0, (.1, .1))),
    'list': [v1.RandomRotation(30), lambda x: x], 'v1 to Pillow and back': v1.Compose([v1.ToPILImage(), v1.RandomRotation(30), v1.ToTensor()]),
    'kornia': K.RandomRotation(30., p=1.), 'kornia sequence': K.AugmentationSequential(K.RandomRotation(30., p=1.)),
    'albumentations': albumentations.Rotate((-30, 30), p=1.), 'albumentations Compose': albumentations.Compose([albumentations.Rotate((-30, 30), p=1.)]),
    'fastai': Rotate(30, p=1.), 'fastai list': aug_transforms(max_rotate=30, p_affine=1.), 'fastai crop': RandomResizedCropGPU(28),
    'function of a batch': lambda x: v1.functional.rotate(x, float(torch.empty(1).uniform_(-30, 30))),
    'function drawing by NumPy': lambda x: v1.functional.rotate(x, np.random.uniform(-30, 30)),
    'dropout': nn.Dropout(.2), 'noise': lambda x: (x+.1*torch.randn_like(x)).clamp(0, 1),
}


@pytest.mark.parametrize('name', EACH_ITS_OWN)
def test_every_image_has_its_own_draw(name):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        new = Policy(EACH_ITS_OWN[name])(copies())
    assert new.shape == (64, 1, 28, 28) and new.dtype == torch.float32
    assert distinct(new) > 40


def test_a_function_with_four_outcomes_has_all_of_them():
    assert distinct(Policy(turn_at_random)(copies())) == 4


def test_blank_images_decide_nothing():
    """On blank images a random turn and a fixed function look alike: the decision waits for an image with contrast."""
    policy = Policy(turn_at_random)
    policy(torch.zeros(8, 1, 28, 28))
    assert distinct(policy(copies())) == 4


def test_fixed_functions_stay_on_the_batch():
    seen = []
    def mirror(x): seen.append(len(x)); return x.flip(3)
    policy = Policy(mirror)
    policy(copies()), policy(copies())
    assert seen[-1] == 64 and policy.changed == 128


@pytest.mark.parametrize('make', [lambda: v1.RandomAffine(0, (.1, .1)), lambda: nn.Sequential(v1.RandomAffine(0, (.1, .1))), lambda: [v2.RandomAffine(0, (.1, .1))]])
def test_old_transforms_rank_as_the_new_one(splits, learn, make):
    def rank(f): return rank_augmentations(learn.model, splits.labelled, splits.tune, {'f': f}, draws=4).predicted['f']
    reference = rank(v2.RandomAffine(0, (.1, .1)))
    assert abs(rank(make())-reference) < .25*abs(reference)


def test_fastais_transforms_rank_as_torchvisions(splits, learn):
    table = rank_augmentations(learn.model, splits.labelled, splits.tune, draws=4, candidates={
        'fastai': Rotate(90, p=1., pad_mode='zeros', draw=lambda x: torch.empty(len(x)).uniform_(-90, 90)), 'v2': v2.RandomRotation(90)})
    assert abs(table.predicted['fastai']-table.predicted['v2']) < .2*abs(table.predicted['v2'])


def test_the_state_of_every_generator_is_left_alone(splits, learn):
    def uses_all(x): return x*(.9+.02*random.random()+.02*np.random.rand())+.01*torch.rand_like(x)
    def states(): return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    before, tables = states(), [rank_augmentations(learn.model, splits.labelled, splits.tune, {'f': uses_all}) for _ in range(2)]
    assert states() == before and tables[0].equals(tables[1])


def test_modes_are_the_same_in_ranking_and_training(splits):
    drop, seen = nn.Dropout(.5), []
    class Spy(nn.Module):
        def forward(self, x): seen.append((self.training, distinct(x))); return drop(x)
    spy = Spy()
    train_classifier(splits, Augment(spy, 1.), steps=2, epochs=1)
    rank_augmentations(train_classifier(splits, steps=2, epochs=1).model, splits.labelled, splits.tune, {'drop': spy})
    assert {o for o, _ in seen} == {True}
    spy.eval(); seen.clear(); Policy(spy)(copies())
    assert not any(o for o, _ in seen)


def test_float64_is_cast(splits):
    train_classifier(splits, Augment(lambda x: x.double().flip(3), 1.), steps=2, epochs=1)


def test_a_broken_image_is_replaced_and_a_broken_policy_is_not(splits):
    def now_and_then(x):
        new = x.flip(3)
        new[torch.rand(len(x)) < .002] = torch.inf
        return new
    policy = Policy(now_and_then)
    with pytest.warns(UserWarning, match='not finite') as said:
        for _ in range(40): assert policy(copies()).isfinite().all()
    assert 0 < policy.broken < 20 and len(said) == 1
    with pytest.raises(ValueError, match='not finite'): Policy(lambda x: x/0)(copies())


@pytest.mark.parametrize('policy', [v2.Normalize([.5], [.5]), v2.Normalize([.1307], [.3081]), K.Normalize(.5, .5), lambda x: 255*x, lambda x: x-1,
                                    Normalize.from_stats([.5], [.25], cuda=False)])
def test_normalising_is_no_augmentation(policy):
    with pytest.raises(ValueError, match='expected images in'): Policy(policy)(copies())


@pytest.mark.parametrize('policy', [lambda x: x, v2.RandomHorizontalFlip(0.), lambda x: x.clone()])
def test_a_candidate_that_changes_nothing_is_told(splits, learn, policy):
    with pytest.warns(UserWarning, match="'idle'.* changed no image"):
        table = rank_augmentations(learn.model, splits.labelled, splits.tune, {'idle': policy, 'mirror': lambda x: x.flip(3)})
    assert table.verdict['idle'] == 'changes nothing' and table.verdict['mirror'] != 'changes nothing'
    with pytest.warns(UserWarning, match='changed no image in this training'): train_classifier(splits, Augment(policy, 1.), steps=4, epochs=1)


@pytest.mark.parametrize('make, error, words', [
    (lambda: v2.RandomRotation, TypeError, 'the class RandomRotation'), (lambda: MixUp(), TypeError, 'the callback MixUp'),
    (lambda: 'rotate', TypeError, 'a str'), (lambda: [v2.RandomRotation(3), 5], TypeError, 'an? int'), (lambda: None, TypeError, 'NoneType')])
def test_what_is_no_policy_is_said(make, error, words):
    with pytest.raises(error, match=words): Policy(make())


@pytest.mark.parametrize('p', [-.1, 1.5, float('nan')])
def test_probabilities_are_checked(p):
    with pytest.raises(ValueError, match='expected a probability'): Augment(lambda x: x, p)


# the data are the ones given

def tensors(splits, n=100): return splits.labelled.x[:n].float()/255, splits.labelled.y[:n]
def read(data): return torch.cat([x for x, _ in Batches(data)])


@pytest.mark.parametrize('make', [
    lambda x, y: Subset(TensorDataset(x, y), range(30)), lambda x, y: DataLoader(TensorDataset(x, y), 16, sampler=range(30)),
    lambda x, y: DataLoader(Subset(TensorDataset(x, y), range(30)), 7), lambda x, y: TensorDataset(x[:30], y[:30]),
    lambda x, y: Subset(Images((x*255).round().byte(), y, tuple('0123456789')), range(30)),
    lambda x, y: (x[:30].numpy(), y[:30].numpy())])
def test_exactly_what_was_given_is_read(splits, make):
    x, y = tensors(splits)
    assert torch.allclose(read(make(x, y)), x[:30], atol=1e-6)


def test_a_shuffling_loader_is_read_in_one_order(splits):
    x, y = tensors(splits)
    loader = Batches(DataLoader(TensorDataset(x, y), 16, shuffle=True))
    once, again = (torch.cat([y for _, y in loader]) for _ in range(2))
    assert torch.equal(once, again) and not torch.equal(once, y) and torch.equal(once.sort()[0], y.sort()[0])


class Stream(IterableDataset):
    def __init__(self, x, y): self.pairs = list(zip(x, y))
    def __iter__(self): return iter(self.pairs)


def test_a_stream_has_no_length_and_is_read(splits, learn):
    x, y = tensors(splits, 200)
    ask = {'mirror': lambda o: o.flip(3)}
    tables = [rank_augmentations(learn.model, data, splits.tune, ask) for data in (DataLoader(Stream(x, y), 50), Stream(x, y), (x, y))]
    assert all(abs(t.predicted['mirror']-tables[2].predicted['mirror']) < 1e-9 for t in tables)


class Noisy(Dataset):
    def __init__(self, x, y, draw): self.x, self.y, self.draw = x, y, draw
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return .8*self.x[i]+.1*self.draw(), self.y[i]


@pytest.mark.parametrize('draw', [lambda: torch.rand(1), lambda: np.random.rand(), lambda: random.random(), lambda rng=np.random.default_rng(): rng.random()])
def test_a_random_data_set_is_refused_before_work(splits, learn, draw):
    x, y = tensors(splits, 200)
    with pytest.raises(ValueError, match='train gives other images at each pass'):
        rank_augmentations(learn.model, DataLoader(Noisy(x, y, draw), 50), splits.tune, {'mirror': lambda x: x.flip(3)})
    with pytest.raises(ValueError, match='train gives other images at each pass'):
        Influence(learn.model, DataLoader(TensorDataset(x, y), sampler=WeightedRandomSampler(torch.ones(200), 200)), splits.tune).fit()


@pytest.mark.parametrize('y, words', [
    (lambda y: F.one_hot(y, 10), r'argmax\(1\)'), (lambda y: y+.5, 'no fractions'), (lambda y: torch.stack([y, y], 1), 'argmax'),
    (lambda y: F.one_hot(y, 10).float()*.9+.01, 'argmax')])
def test_labels_that_are_no_class_indices_are_refused(splits, y, words):
    x, good = tensors(splits)
    for data in ((x, y(good)), DataLoader(TensorDataset(x, y(good)))):
        with pytest.raises(ValueError, match=words): list(Batches(data))


@pytest.mark.parametrize('y', [lambda y: y.float(), lambda y: y[:, None], lambda y: y.int(), lambda y: y.byte()])
def test_labels_that_are_class_indices_are_taken(splits, y):
    x, good = tensors(splits)
    assert torch.equal(torch.cat([b for _, b in Batches((x, y(good)))]), good)


@pytest.mark.parametrize('make, words', [
    (lambda x, y: DataLoader([dict(image=a, label=b) for a, b in zip(x, y)]), r"a dict of \['image', 'label'\].*collate_fn"),
    (lambda x, y: DataLoader(TensorDataset(x, x, y)), '3 parts'), (lambda x, y: iter([(x, y)]), 'only once'), (lambda x, y: dict(x=x, y=y), 'a? ?dict'),
    (lambda x, y: x, 'expected a pair'), (lambda x, y: 'digits', 'images_from_folder'), (lambda x, y: (x, y[:-1]), 'of one length'),
    (lambda x, y: DataLoader(TensorDataset(x, y), 64, drop_last=True), 'drop_last=False'), (lambda x, y: ((x*1000).long(), y), 'torch.int64'),
    (lambda x, y: DataLoaders(DataLoader(TensorDataset(x, y)), DataLoader(TensorDataset(x, y))), 'dls.train'), (lambda x, y: 5, 'no data|int')])
def test_what_is_no_data_is_said(splits, make, words):
    with pytest.raises((ValueError, TypeError), match=words): list(Batches(make(*tensors(splits))))


def test_a_learner_is_no_data(learn):
    with pytest.raises(ValueError, match='learn.dls.train'): Batches(learn)


def test_vocabularies_are_compared(splits):
    d = splits.labelled
    fewer = Images(d.x[d.y > 0], d.y[d.y > 0]-1, tuple('123456789'))
    with pytest.raises(ValueError, match='Classes of valid'): Source(d, Images(fewer.x, fewer.y, fewer.vocab, fewer.ids+10**6))


def test_normalize_acts_on_fastais_images_alone(splits):
    """fastai's Normalize lets plain tensors pass: a policy must see the pixels as they are in both cases."""
    x, y = tensors(splits)
    for kind in (TensorImage, torch.Tensor):
        seen = []
        pairs = [(kind(a) if kind is TensorImage else a, b) for a, b in zip(x, y)]
        dls = DataLoaders.from_dsets(pairs, pairs, bs=50, num_workers=0, after_batch=Normalize.from_stats([.5], [.25], cuda=False), device='cpu')
        policy = Augment(lambda o: (seen.append((o.min().item(), o.max().item())), o.flip(3))[1], 1.)
        with Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), F.cross_entropy, cbs=[policy, AddTarget(splits.valid, .3)]).no_bar() as it: it.fit(1)
        assert min(a for a, _ in seen) > -1e-5 and abs(max(b for _, b in seen)-1) < 1e-5


@pytest.mark.parametrize('spoil', [lambda x: 255*x, lambda x: (x-.5)/.25, lambda x: x-.01])
@pytest.mark.parametrize('which', ['train', 'valid'])
def test_both_sets_must_hold_pixels(splits, learn, spoil, which):
    sets = dict(train=tensors(splits, 200), valid=(splits.tune.x.float()/255, splits.tune.y))
    sets[which] = (spoil(sets[which][0]), sets[which][1])
    with pytest.raises(ValueError, match='Pixels from' if which == 'train' else 'In valid: Pixels from'):
        rank_augmentations(learn.model, sets['train'], sets['valid'], {'mirror': lambda x: x.flip(3)})


def test_both_loaders_are_normalised_or_none(splits, learn):
    def loader(data, **kwargs):
        pairs = [(TensorImage(a), b) for a, b in zip(data.x.float()/255, data.y)]
        return DataLoaders.from_dsets(pairs, pairs, bs=50, num_workers=0, device='cpu', **kwargs).valid
    normalised = dict(after_batch=Normalize.from_stats([.5], [.25], cuda=False))
    few, mirror = splits.tune[torch.arange(200)], {'mirror': lambda x: x.flip(3)}
    with pytest.raises(ValueError, match='normalised in different ways'):
        rank_augmentations(learn.model, loader(splits.labelled), loader(few, **normalised), mirror)
    rank_augmentations(learn.model, loader(splits.labelled, **normalised), loader(few, **normalised), mirror)


# the head is the layer whose output is returned

class Odd(nn.Module):
    """A head registered before the body, a linear layer aside that is not used, and something after the head."""
    def __init__(self, after=lambda z: z, bias=True, two=False):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.aside = nn.Linear(32, 10, bias=bias), nn.Linear(32, 7)
        self.body, self.after, self.two = nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU()), after, two
        self.last = nn.Linear(32, 3)
    def forward(self, x):
        h = self.body(x)
        return (self.head(h), self.aside(h)) if self.two else self.after(self.head(h))


def by_hand(model, splits, l2, candidate, share=.1):
    """The change of the validation loss, by LBFGS on features that are computed here."""
    x, y = splits.labelled.x.float()/255, splits.labelled.y
    v, w = splits.tune.x.float()/255, splits.tune.y
    with torch.no_grad(): h, h_new, hv = (model.body(o).double() for o in (x, candidate(x), v))
    def fitted(weight):
        W, b = torch.zeros(10, 32, dtype=torch.float64, requires_grad=True), torch.zeros(10, dtype=torch.float64, requires_grad=True)
        parts = [W] if model.head.bias is None else [W, b]
        opt = torch.optim.LBFGS(parts, lr=1, max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn='strong_wolfe')
        def loss():
            opt.zero_grad()
            it = (1-weight)*F.cross_entropy(h@W.T+b, y)+weight*F.cross_entropy(h_new@W.T+b, y)+l2/2*sum(o.square().sum() for o in parts)
            it.backward()
            return it
        opt.step(loss)
        with torch.no_grad(): return F.cross_entropy(hv@W.T+b, w).item()
    return fitted(share)-fitted(0.)


@pytest.mark.parametrize('make', [lambda: Odd(), lambda: Odd(bias=False), lambda: Odd(lambda z: z.log_softmax(1))])
def test_the_ranking_is_that_of_the_real_head(splits, make):
    model, mirror = make(), lambda x: x.flip(3)
    table = rank_augmentations(model, splits.labelled, splits.tune, {'mirror': mirror})
    assert abs(table.predicted['mirror']-by_hand(model, splits, 1e-2, mirror)) < 1e-6


@pytest.mark.parametrize('make, words', [
    (lambda: Odd(lambda z: 2*z), 'leave scaling'), (lambda: Odd(lambda z: z.softmax(1)), 'leave scaling'), (lambda: Odd(two=True), 'returns a tuple'),
    (lambda: nn.Sequential(nn.Conv2d(1, 10, 28), nn.Flatten()), 'no linear layer ran'), (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(784, 10)), 'expected a tensor of scores')])
def test_another_kind_of_end_is_refused_before_work(splits, make, words):
    with pytest.raises(ValueError, match=words): rank_augmentations(make(), splits.labelled, splits.tune, {'mirror': lambda x: x.flip(3)})


def test_the_head_can_be_named(splits):
    model = Odd()
    with pytest.raises(ValueError, match="not the output of 'aside'.*'head'.*head_layer"): Influence(model, splits.labelled, splits.tune, head_layer='aside')
    assert Influence(model, splits.labelled, splits.tune, head_layer='head').problem.body.head is model.head


def test_frozen_layers_have_no_influence(splits):
    """As fastai's freeze leaves a body: only what is trainable is asked about, and names still reach the rest."""
    model = Odd()
    few = (splits.labelled.x[:60].float()/255, torch.arange(60) % 10)
    for p in model.body.parameters(): p.requires_grad_(False)
    infl = Influence(model, few, splits.tune[torch.arange(100)], params='all', damping=.1)
    assert infl.problem.theta.numel() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    named = Influence(model, few, splits.tune[torch.arange(100)], params=['body'], damping=.1)
    assert named.problem.theta.numel() == sum(p.numel() for p in model.body.parameters())
    for p in model.parameters(): p.requires_grad_(False)
    with pytest.raises(ValueError, match='Unfreeze'): Influence(model, few, splits.tune, params='all')


# files

def picture(seed=0, size=(10, 14)): return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def folder_with(path, name, save, seed=0):
    for k in 'ab': (path/k).mkdir(parents=True, exist_ok=True)
    save(path/'a'/name)
    for i in range(3): Image.fromarray(picture(100+i+10*seed, (10, 14))).save(path/'b'/f'{i}.png')
    return path


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'gif', 'tif', 'tiff', 'webp', 'jpg', 'PNG'])
@pytest.mark.parametrize('channels', [1, 3])
def test_formats_give_what_pillow_shows(tmp_path, suffix, channels):
    im = Image.fromarray(np.stack([picture(k) for k in range(3)], 2))
    path = folder_with(tmp_path, f'one.{suffix}', lambda f: im.save(f, **({'lossless': True} if suffix == 'webp' else {})))
    data = images_from_folder(path, channels)
    with Image.open(path/'a'/f'one.{suffix}') as again: expected = np.array(again.convert('L' if channels == 1 else 'RGB')).reshape(10, 14, -1)
    assert np.array_equal(data.x[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize('size', [None, 8])
def test_sixteen_bits(tmp_path, size):
    deep = (np.arange(140).reshape(10, 14)*471).astype(np.uint16)
    data = images_from_folder(folder_with(tmp_path, 'deep.png', lambda f: Image.fromarray(deep).save(f)), size=size)
    expected = torch.from_numpy((deep.astype(float)/257).round().astype(np.uint8))
    if size is None: assert torch.equal(data.x[0, 0], expected)
    else: assert abs(data.x[0].float().mean()-expected.float().mean()) < 3


@pytest.mark.parametrize('tag, turned', [(3, lambda a: a[::-1, ::-1]), (2, lambda a: a[:, ::-1]), (4, lambda a: a[::-1])])
def test_exif_orientation(tmp_path, tag, turned):
    exif = Image.Exif()
    exif[274] = tag
    data = images_from_folder(folder_with(tmp_path, 'phone.png', lambda f: Image.fromarray(picture()).save(f, exif=exif)))
    assert np.array_equal(data.x[0, 0].numpy(), turned(picture()))


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.fromarray(picture(k)) for k in range(3)]
    data = images_from_folder(folder_with(tmp_path, 'moving.gif', lambda f: frames[0].save(f, save_all=True, append_images=frames[1:])))
    assert np.array_equal(data.x[0, 0].numpy(), picture(0))


def test_transparent_and_bilevel_pictures(tmp_path):
    alpha = Image.fromarray(np.dstack([picture(0), picture(1), picture(2), picture(3)]), 'RGBA')
    folder_with(tmp_path, 'alpha.png', alpha.save)
    Image.fromarray(picture() > 128).save(tmp_path/'a'/'two.png')
    data = images_from_folder(tmp_path, 3)
    assert np.array_equal(data.x[0].permute(1, 2, 0).numpy(), np.array(alpha.convert('RGB'))) and set(data.x[1].unique().tolist()) == {0, 255}


def test_what_is_not_read_is_counted(tmp_path):
    path = folder_with(tmp_path, 'one.png', Image.fromarray(picture()).save)
    (path/'a'/'._one.png').write_bytes(b'mac'), (path/'__MACOSX'/'a').mkdir(parents=True), (path/'.git').mkdir(), (path/'a'/'Thumbs.db').write_bytes(b'')
    (path/'b'/'more').mkdir()
    Image.fromarray(picture(5)).save(path/'b'/'more'/'deep.png'), Image.fromarray(picture(6)).save(path/'loose.png')
    with pytest.warns(UserWarning, match=r'1 images beside the class folders, 1 in folders inside them, 1 \.db files'): data = images_from_folder(path)
    assert data.vocab == ('a', 'b') and len(data) == 4


def test_copies_and_blanks_are_named(tmp_path):
    path = folder_with(tmp_path, 'one.png', Image.fromarray(picture()).save)
    (path/'a'/'twin.png').write_bytes((path/'a'/'one.png').read_bytes())
    Image.new('L', (14, 10), 255).save(path/'a'/'white.png')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        data = images_from_folder(path)
    words = ' '.join(str(o.message) for o in said)
    assert len(data) == 5 and 'twin.png, the same picture as' in words and '1 blank images, such as' in words and 'white.png' in words
    (path/'b'/'wrong.png').write_bytes((path/'a'/'one.png').read_bytes())
    with pytest.raises(ValueError, match='wrong.png .*one picture in two classes|one picture in two classes'): images_from_folder(path)


@pytest.mark.parametrize('spoil', [lambda f: f.write_bytes(b''), lambda f: f.write_bytes(b'x'*100), lambda f: f.write_bytes(f.read_bytes()[:60])])
def test_a_broken_file_is_named(tmp_path, spoil):
    path = folder_with(tmp_path, 'bad.png', Image.fromarray(picture()).save)
    spoil(path/'a'/'bad.png')
    with pytest.raises(ValueError, match='bad.png cannot be read as an image'): images_from_folder(path)


def test_train_and_valid_folders(tmp_path):
    for k, part in enumerate(('train', 'valid')): folder_with(tmp_path/part, 'one.png', Image.fromarray(picture(k)).save, seed=k)
    source = source_from_folders(tmp_path/'train', tmp_path/'valid')
    assert (len(source.pool), len(source.valid)) == (4, 4) and not set(source.pool.ids.tolist()) & set(source.valid.ids.tolist())
    (tmp_path/'valid'/'a'/'leak.png').write_bytes((tmp_path/'train'/'a'/'one.png').read_bytes())
    with pytest.raises(ValueError, match='leak.png is the same picture as .*one.png'): source_from_folders(tmp_path/'train', tmp_path/'valid')


@pytest.mark.parametrize('settings, words', [(dict(channels=2), 'channels=2'), (dict(size=0), 'size=0'), (dict(size=(28, 28)), r'size=\(28, 28\)'), (dict(valid=0), 'valid=0'), (dict(valid=1.2), 'valid=1.2')])
def test_wrong_settings_of_folders(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words): source_from_folder(folder_with(tmp_path, 'one.png', Image.fromarray(picture()).save), **settings)


# fastai around a Learner of train_classifier

def test_predictions_agree_with_the_model(learn, splits):
    p, y = learn.get_preds()
    x = splits.valid.x.float()/255
    with torch.no_grad(): expected = learn.model.eval()(x).softmax(1)
    assert torch.allclose(p, expected, atol=1e-5) and torch.equal(y, splits.valid.y)
    assert torch.allclose(learn.tta()[0], expected, atol=1e-5)


@pytest.mark.parametrize('as_item', [lambda x: x, lambda x: x.float()/255, lambda x: Image.fromarray(x[0].numpy()), lambda x: x[0]])
def test_predict_takes_pictures_of_several_kinds(learn, splits, as_item):
    x = splits.test.x[3]
    label, i, p = learn.predict(as_item(x))
    with torch.no_grad(): expected = learn.model.eval()(x[None].float()/255).softmax(1)[0]
    assert label == splits.labelled.vocab[int(i)] and torch.allclose(p, expected, atol=1e-5)


def test_predict_takes_a_file(learn, splits, tmp_path):
    Image.fromarray(splits.test.x[3, 0].numpy()).save(tmp_path/'three.png')
    assert learn.predict(tmp_path/'three.png')[0] == learn.predict(splits.test.x[3])[0]
    with pytest.raises(ValueError, match='Resize it'): learn.predict(torch.zeros(1, 20, 20))


def test_show_and_interpret(learn):
    assert len(np.ravel(learn.dls.show_batch(max_n=4))) >= 4
    learn.show_results(max_n=4)
    told = ClassificationInterpretation.from_learner(learn)
    p, y = learn.get_preds()
    assert np.array_equal(told.confusion_matrix(), np.array([[((y == a) & (p.argmax(1) == b)).sum() for b in range(10)] for a in range(10)]))
    told.plot_top_losses(4), told.plot_confusion_matrix(), told.most_confused()


def test_export_and_load(learn, splits, tmp_path):
    learn.export(tmp_path/'learn.pkl')
    again = load_learner(tmp_path/'learn.pkl')
    x = splits.test.x[3]
    assert torch.allclose(again.predict(x)[2], learn.predict(x)[2]) and len(again.dls.train.dataset) == 0
    assert (tmp_path/'learn.pkl').stat().st_size < 5e6


def test_transforms_of_a_tensor_loader_are_refused(learn):
    with pytest.raises(ValueError, match=r'Augment\(policy\)'): learn.tta(batch_tfms=aug_transforms())


@pytest.mark.parametrize('cbs', [lambda G: [MixUp()], lambda G: [CutMix()], lambda G: [MixUp(), Augment(G)], lambda G: [CutMix(), MaxUp(G, 2)], lambda G: [MaxUp(G, 2), MixUp()]])
def test_mixing_beside_policies(splits, cbs):
    it = train_classifier(splits, cbs(random_tau(load_generator('mnist'))), steps=4, epochs=1)
    assert all(o.isfinite().all() for o in it.model.parameters())


def test_a_tensor_loader_of_other_items(splits):
    dl = TensorDL(splits.valid, 500)
    assert torch.equal(dl.new([3, 5]).dataset.y, splits.valid.y[[3, 5]]) and len(dl.new(splits.test).dataset) == len(splits.test)
