import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.vision.all import ImageDataLoaders, Learner, Normalize, Resize
from hypothesis import given, strategies as st
from torch import nn
from torchvision.transforms import v2

from influence_aug.augment.augmenter import *
from influence_aug.augment.callbacks import *
from influence_aug.augment.classifier import *
from influence_aug.augment.estimator import *
from influence_aug.augment.objectives import *
from influence_aug.augment.policies import *
from influence_aug.augment.transforms import Generator
from influence_aug.augment.generator import train_generator
from influence_aug.core.batches import PixelScale
from influence_aug.core.data import Images
from influence_aug.core.policy import per_image
from influence_aug.core.modes import frozen
from test_data import digits_folder


@given(bs=st.integers(1, 700), n_steps=st.integers(1, 20))
def test_loader_draws_each_image_equally_often(splits, bs, n_steps):
    drawn = torch.tensor(TensorDL(splits.labelled, bs, n_steps).get_idxs()).bincount(minlength=600)
    assert drawn.sum() == bs*n_steps and drawn.max()-drawn.min() <= 1


def test_loader_in_order(splits):
    x, y = zip(*TensorDL(splits.holdout, 64))
    assert torch.equal(torch.cat(y), splits.holdout.y) and torch.equal((torch.cat(x)*255).round().byte(), splits.holdout.x)


class Flat(nn.Sequential):
    def __init__(self, d=784): super().__init__(nn.Flatten(), nn.Linear(d, 10))


def test_augment_undoes_and_redoes_normalize(tmp_path, sample):
    path = digits_folder(tmp_path/'own', sample.valid, 10)
    dls = ImageDataLoaders.from_folder(path, valid_pct=.3, seed=0, bs=16, num_workers=0, item_tfms=Resize(28), device='cpu',
                                       batch_tfms=Normalize.from_stats([.2]*3, [.4]*3))
    given_, seen = [], []

    def policy(x):
        given_.append((x.min().item(), x.max().item()))
        return torch.ones_like(x)

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Flat(3*784)
        def forward(self, x):
            if self.training: seen.append(x.mean().item())
            return self.net(x)

    with Learner(dls, Spy(), loss_func=F.cross_entropy, cbs=Augment(policy, 1.)).no_bar() as learn: learn.fit(1)
    assert given_ and all(-1e-5 <= a and b <= 1+1e-5 for a, b in given_)
    assert seen and all(abs(m-(1-.2)/.4) < 1e-4 for m in seen)


@pytest.mark.parametrize('p', [0., .3, 1.])
def test_share_of_augmented_images(splits, p):
    shares = []
    def policy(x):
        shares.append(len(x))
        return x
    augment = Augment(policy, p)
    augment.policy(splits.labelled.x[:8].float()/255)
    shares.clear()
    with Learner(tensor_dls(splits.labelled, splits.holdout, 64, 40), Flat(), F.cross_entropy, cbs=augment).no_bar() as learn: learn.fit(1)
    assert abs(sum(shares)/(40*64)-p) < .05


def quiet(monkeypatch):
    "No progress bars for Learners made inside the library."
    from fastai.callback.progress import ProgressCallback
    monkeypatch.setattr(ProgressCallback, 'before_fit', lambda self: None)
    for event in 'before_epoch before_train before_validate after_train after_validate after_batch after_fit'.split():
        monkeypatch.setattr(ProgressCallback, event, lambda self: None, raising=False)


def test_classifier_and_estimator_are_reproducible(splits, monkeypatch):
    quiet(monkeypatch)
    G = load_generator('mnist')

    def once():
        f = train_classifier(splits, Augment(random_tau(G), .5), steps=4, epochs=2, seed=3)
        e = train_estimator(f.model, Augmenter(G, StochasticEstimator(1, 28)), splits, steps=4, epochs=2, seed=3)
        return [*f.model.state_dict().values(), *e.model.estimator.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(once(), once()))


@pytest.mark.parametrize('kind,objective', [(Estimator, FixedHead), (StochasticEstimator, ImplicitHead)])
def test_estimator_training_moves_only_the_estimator(splits, monkeypatch, kind, objective):
    quiet(monkeypatch)
    G, model = Generator(1, 28), small_cnn(1, 10)
    model[0][1].running_mean += .1
    fixed = {**{'G'+k: v.clone() for k, v in G.state_dict().items()}, **{'F'+k: v.clone() for k, v in model.state_dict().items()}}
    augmenter = Augmenter(G, kind)
    before = [p.clone() for p in augmenter.estimator.parameters()]
    train_estimator(model, augmenter, splits, objective, steps=3, epochs=1, bs=32)
    now = {**{'G'+k: v for k, v in G.state_dict().items()}, **{'F'+k: v for k, v in model.state_dict().items()}}
    assert all(torch.equal(now[k], v) for k, v in fixed.items())
    assert any(not torch.equal(p, q) for p, q in zip(augmenter.estimator.parameters(), before))
    assert model.training and all(p.requires_grad for p in [*model.parameters(), *G.parameters()])


def test_watched_images_never_enter_the_head(splits, monkeypatch):
    quiet(monkeypatch)
    entered = []

    class Spied(ImplicitHead):
        def __call__(self, x_aug, y):
            entered.append(len(y))
            return super().__call__(x_aug, y)
    train_estimator(small_cnn(1, 10), Augmenter(Generator(1, 28), StochasticEstimator(1, 28)), splits, Spied, steps=4, epochs=2, bs=32)
    assert entered == [32]*4


@pytest.mark.parametrize('channels,size', [(1, 28), (3, 32)])
def test_generator_training_on_grey_and_colour(sample, monkeypatch, channels, size):
    from influence_aug.core.data import Images
    quiet(monkeypatch)
    x = F.interpolate(sample.pool.x[:100].float(), size).byte().expand(-1, channels, -1, -1)
    learn = train_generator(Images(x, sample.pool.y[:100], sample.pool.vocab), steps=2, epochs=1, bs=4)
    G = learn.model.eval().cpu()
    assert G.config['channels'] == channels and all(p.isfinite().all() for p in G.parameters())


def test_a_policy_on_images_of_another_size(splits):
    wrong = Augmenter(Generator(1, 32), RandomEstimator(1, 32))
    with Learner(tensor_dls(splits.labelled, splits.holdout), Flat(), F.cross_entropy, cbs=Augment(wrong)).no_bar() as learn:
        with pytest.raises(ValueError, match=r'made for \(1, 32, 32\)'): learn.fit(1)


def test_guard_keeps_the_best_and_says_why_it_stops(splits, monkeypatch, capsys):
    quiet(monkeypatch)
    model = small_cnn(1, 10)
    augmenter = Augmenter(load_generator('mnist'), StochasticEstimator(1, 28))
    at_start = {k: p.clone() for k, p in augmenter.estimator.state_dict().items()}
    learn = train_estimator(model, augmenter, splits, maximise(max_loss), steps=4, epochs=4, bs=32, cbs=Guard(floor=1.))
    assert len(learn.recorder.values) == 1 and 'less than 100%' in learn.guard.reason and 'those of the start' in capsys.readouterr().out
    assert all(torch.equal(p, at_start[k]) for k, p in augmenter.estimator.state_dict().items())
    learn = train_estimator(model, augmenter, splits, maximise(max_loss), steps=8, epochs=8, bs=32, lr=.05, cbs=[Guard(floor=0., patience=2)])
    losses = [v[-1] for v in learn.recorder.values]
    assert learn.guard.best == min(losses) and learn.guard.best_epoch == losses.index(min(losses))
    if learn.guard.reason: assert len(losses) == learn.guard.best_epoch+3


def test_trajectory_moves_only_the_estimator_and_starts_when_told(splits, monkeypatch):
    quiet(monkeypatch)
    augmenter = Augmenter(load_generator('mnist'), StochasticEstimator(1, 28))
    G = {k: v.clone() for k, v in augmenter.generator.state_dict().items()}
    tune = splits.tune.x.float()/255, splits.tune.y
    cb = Trajectory(augmenter, aligned(*tune, bs=32), start=.5, every=2)
    learn = train_classifier(splits, [cb, *with_crop(augmenter)], steps=8, epochs=2, bs=16)
    assert len(cb.history) == 2 and augmenter.estimator.encoder[-1].weight.abs().max() > 0
    assert all(torch.equal(v, G[k]) for k, v in augmenter.generator.state_dict().items())
    assert all(p.requires_grad for p in learn.model.parameters())


def trained(splits, cbs): return train_classifier(splits, cbs, steps=6, epochs=2, bs=32, seed=1).model.state_dict()


def test_the_best_of_one_is_plain_training(splits, monkeypatch):
    quiet(monkeypatch)
    policy = random_tau(load_generator('mnist'))
    plain, one, four = (trained(splits, cbs) for cbs in (with_crop(policy), MaxUp(with_crop(policy), 1), MaxUp(with_crop(policy), 4)))
    assert all(torch.equal(v, plain[k]) for k, v in one.items())
    assert any(not torch.equal(v, plain[k]) for k, v in four.items())


@pytest.mark.parametrize('value', [max_loss, min_loss])
def test_the_best_is_the_best(splits, value):
    model, x, y = small_cnn(1, 10), splits.labelled.x[::20].float()/255, splits.labelled.y[::20]
    cb = MaxUp(with_crop(random_tau(load_generator('mnist'))), 5, value)
    
    torch.manual_seed(0)
    best = cb.best(model, x, y)
    torch.manual_seed(0)
    versions = x.repeat(5, 1, 1, 1)
    for o in cb.augments: versions = o.change(versions)
    with frozen(model), torch.no_grad(): values = torch.stack([value(model, v, y) for v in versions.chunk(5)])
    with frozen(model), torch.no_grad(): assert torch.allclose(value(model, best, y), values.max(0).values, atol=1e-5)
    assert model.training


def test_the_best_is_judged_as_the_model_sees_it(splits):
    seen = []

    def value(model, x, y):
        seen.append(x)
        return x.flatten(1).mean(1)
    cb = MaxUp([Augment(lambda x: x*.5, 1.)], 2, value)
    cb.scale = PixelScale(.3, .5)
    x = splits.labelled.x[:8].float()/255
    best = cb.best(small_cnn(1, 10), x, splits.labelled.y[:8])
    assert torch.equal(best, x*.5) and torch.allclose(seen[0], (x.repeat(2, 1, 1, 1)*.5-.3)/.5)


def shifts_of(x):
    "How many different columns the white stripe of each image starts at."
    return x[:, 0, 0].argmax(1).unique().numel()


def test_torchvision_transforms_draw_for_each_image(splits):
    "On a batch they would draw once, and the hardest of four would be one of four for all."
    stripe = torch.zeros(64, 1, 28, 28)
    stripe[..., 10:18] = 1
    shift = v2.RandomAffine(0, translate=(.3, 0))
    assert shifts_of(shift(stripe)) == 1
    seen = []

    class Look(Callback):
        order = 100
        def after_pred(self): seen.append(shifts_of(self.x.as_subclass(torch.Tensor)))

    data = Images((255*stripe).byte(), torch.arange(64)%10, splits.labelled.vocab)
    dls = tensor_dls(data, data, 64, 1, device='cpu')
    for cb in (Augment(shift, p=1), MaxUp(Augment(shift, p=1)), MaxUp([shift])):
        seen.clear()
        with Learner(dls, Flat(), F.cross_entropy, cbs=[cb, Look()]).no_bar() as learn: learn.fit(1)
        assert seen[0] > 5, cb


@pytest.mark.parametrize('make, error, words', [
    (lambda s: train_classifier(s, lambda x: x), TypeError, r'cbs holds a function: expected callbacks; a policy becomes one by Augment\(policy\)'),
    (lambda s: train_classifier(s, [Augment(lambda x: x), Flat()]), TypeError, 'cbs holds a Flat: expected callbacks'),
    (lambda s: Augment('crop'), TypeError, 'policy is a str: expected a function'),
    (lambda s: MaxUp(Augment(lambda x: x), k=0), ValueError, 'k=0: expected a whole number'),
    (lambda s: train_classifier(s, Augment(lambda x: x[:, :, 1:]), steps=1, epochs=1), ValueError, r'\(\d+, 1, 28, 28\) into \(\d+, 1, 27, 28\): expected the same shape'),
    (lambda s: train_classifier(s, MaxUp(lambda x: x*255), steps=1, epochs=1), ValueError, 'values from 0 to 255: expected images in'),
])
def test_what_is_no_policy(splits, make, error, words):
    with pytest.raises(error, match=words): make(splits)
