"""Pictures that have moved: the named generator over shapes, dtypes and values, target images in training, the decision, the list of runs."""
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.torch_core import TensorImage
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torchvision.io import write_png
from torchvision.transforms.v2 import functional as TF

from influence_aug.augment.adapt import TARGET_POLICIES, adapt, decide
from influence_aug.augment.augmenter import Augmenter, RandomEstimator, SharedEstimator, StochasticEstimator
from influence_aug.augment.callbacks import AddTarget, Augment
from influence_aug.augment.named import QUANTITIES, NamedGenerator
from influence_aug.core.data import Images, Source, draw_splits
from influence_aug.core.files import source_from_folders
from influence_aug.studies.shift import CANDIDATES, SHIFT, add_decisions, train_under_shift
from influence_aug.studies.shifts import CIFAR10_SHIFTS, MNIST_SHIFTS, SHIFTS, shift_source, shifted, sklearn_digits

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize('channels', [1, 2, 3, 5])
@pytest.mark.parametrize('size', [7, 28, 33, 96])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_the_named_generator_takes_any_size_and_channels(channels, size, dtype):
    G, x = NamedGenerator(channels, size), torch.rand(3, channels, size, size, dtype=dtype)
    tau = torch.rand(3, G.config['n_tau'], dtype=dtype)*2-1
    new, flow = G(x, tau)
    assert new.shape == x.shape and flow.shape == (3, size, size, 2) and new.dtype == dtype
    assert new.isfinite().all()
    still = G(x, torch.zeros_like(tau))[0]
    assert torch.allclose(still, x.clamp_min(1e-4), atol=1e-4 if dtype == torch.float32 else 1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-100, 100), min_size=11, max_size=11), st.integers(0, 2**31))
def test_what_the_named_generator_makes_is_finite_and_has_a_gradient(tau, seed):
    torch.manual_seed(seed)
    tau = (torch.tensor([tau])/100).requires_grad_()
    new, _ = NamedGenerator(1, 28)(torch.rand(1, 1, 28, 28).round(), tau)
    g, = torch.autograd.grad(new.square().sum(), tau)
    assert new.isfinite().all() and g.isfinite().all()


@pytest.mark.parametrize('degrees', [-40, -7, 15, 44])
def test_rotation_is_torchvisions(degrees):
    G, x = NamedGenerator(3, 64, **{k: 0 for k in QUANTITIES if k != 'rotation'}), TF.gaussian_blur(torch.rand(1, 3, 64, 64), [9, 9])
    new, _ = G(x, torch.tensor([[degrees/45]]))
    assert torch.allclose(new, TF.rotate(x, degrees, interpolation=TF.InterpolationMode.BILINEAR), atol=1e-3)


@pytest.mark.parametrize('quantity', list(QUANTITIES))
def test_each_quantity_alone_changes_the_image_and_says_so(quantity):
    G = NamedGenerator(3, 32, **{k: QUANTITIES[k].range if k == quantity else 0 for k in QUANTITIES})
    assert list(G.quantities) == [quantity] and G.config['n_tau'] == 1
    x = TF.gaussian_blur(torch.rand(2, 3, 32, 32), [7, 7])
    assert not torch.allclose(G(x, torch.ones(2, 1))[0], x, atol=1e-3)
    a = Augmenter(G, SharedEstimator)
    with torch.no_grad(): a.estimator.mu += 1.
    assert quantity in a.tell() and a.describe().index.tolist() == [quantity]


def test_ranges_are_arguments_and_survive_the_file(tmp_path):
    a = Augmenter(NamedGenerator(1, 20, padding_mode='border', rotation=90, gamma=0), SharedEstimator)
    with torch.no_grad(): a.estimator.mu[0] = 5.
    a.save(tmp_path/'a.safetensors')
    b = Augmenter.load(tmp_path/'a.safetensors')
    assert b.generator.config == a.generator.config and 'gamma' not in b.generator.quantities
    assert 88 < b.describe().loc['rotation', 'mean'] <= 90


@pytest.mark.parametrize('kind', [SharedEstimator, StochasticEstimator, RandomEstimator])
def test_every_e_can_be_described(kind):
    a = Augmenter(NamedGenerator(1, 28), kind)
    assert a.tell(torch.rand(5, 1, 28, 28)) == 'Learned: nothing that differs from random τ.'


def digits(n=40):
    torch.manual_seed(0)
    return Images(torch.randint(0, 256, (n, 1, 12, 12), dtype=torch.uint8), torch.arange(n) % 4, tuple('abcd'))


class Seen(Callback):
    order, run_valid = 30, False
    def before_fit(self): self.x, self.y = [], []
    def before_batch(self): self.x.append(self.learn.xb[0].clone()); self.y.append(self.learn.yb[0].clone())


@pytest.mark.parametrize('normalised', [False, True])
@pytest.mark.parametrize('share', [.1, .5, .9])
def test_target_images_take_their_share_under_the_same_normalisation(normalised, share):
    data, target = digits(400), Images(torch.full((3, 1, 12, 12), 255, dtype=torch.uint8), torch.tensor([2, 2, 2]), tuple('abcd'))
    pairs = list(zip(TensorImage(data.x.float()/255), data.y))
    dls = DataLoaders.from_dsets(pairs, pairs, bs=50, num_workers=0, after_batch=Normalize.from_stats([.5], [.25]) if normalised else None)
    seen = Seen()
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), F.cross_entropy,
                    cbs=[AddTarget(target, share, policy=lambda x: x), Augment(torch.zeros_like, 1.), seen])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    x, y = torch.cat(seen.x), torch.cat(seen.y)
    white, black = (2., -2.) if normalised else (1., 0.)
    are_target = (x == white).flatten(1).all(1)
    assert abs(are_target.float().mean()-share) < .1 and (y[are_target] == 2).all()
    assert (x[~are_target] == black).all(), 'policies act on the training images alone, before target images come in'


@pytest.mark.parametrize('name', list(TARGET_POLICIES))
def test_target_policies_keep_images(name):
    x = torch.rand(6, 3, 16, 16)
    new = TARGET_POLICIES[name](2, "border")(x)
    assert new.shape == x.shape and 0 <= new.min() and new.max() <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(5, 100), st.integers(1, 40), st.integers(0, 2**31))
def test_the_decision_takes_the_lowest_loss_and_says_how_sure_it_is(n, gain, seed):
    torch.manual_seed(seed)
    base = 3+torch.rand(n)
    better, worse = base-gain/20-.01*torch.rand(n), base+.01+torch.rand(n)
    found = decide(dict(random_tau=base, joint=better, learned=worse))
    assert found.choice == 'joint' and 'luck' not in found.reason
    t = stats.ttest_rel(better.double(), base.double()).confidence_interval(.95)
    row = found.table.loc['joint']
    assert abs(row.difference-row['±']-t.low) < 1e-9 and abs(row.difference+row['±']-t.high) < 1e-9
    assert decide(dict(random_tau=base, learned=worse)).reason == f'No shift found on {n} watching images: use random_tau.'


def test_where_nothing_differs_the_decision_is_rarely_sure():
    torch.manual_seed(0)
    found = [decide({k: torch.rand(20).exp() for k in ('random_tau', 'a', 'b', 'c')}) for _ in range(400)]
    sure = sum('luck' not in o.reason and o.choice != 'random_tau' for o in found)
    assert sure/400 < .12, 'three intervals of 95%, one side of each'


def target_splits(n_target=40, side=12):
    """Squares and crosses of two brightnesses, 4 classes; the target's are darker."""
    def draw(n, dark, ids):
        torch.manual_seed(n)
        y, x = torch.arange(n) % 4, torch.zeros(n, 1, side, side)
        for i, k in enumerate(y.tolist()): x[i, 0, 2+4*(k//2):6+4*(k//2), 2+4*(k % 2):6+4*(k % 2)] = 1
        x = (x*(.4 if dark else 1)+.05*torch.rand_like(x)).clamp(0, 1)
        return Images((x*255).byte(), y, tuple('abcd'), ids+torch.arange(n))
    return draw_splits(Source(draw(80, False, 0), draw(n_target, True, 1000)))


def test_adapt_from_end_to_end(capsys):
    found = adapt(target_splits(), steps=8, epochs=1, e_steps=10, rounds=2, policies={'still': lambda x: x})
    assert set(found.trials) == {'still', 'random_tau', 'learned', 'joint', 'learned_joint'}
    assert found.decision.choice == min(found.trials, key=lambda k: found.trials[k].loss)
    assert all(len(o.losses) == 20 for o in found.trials.values())
    assert found.decision.baseline == 'still' and 'still' not in found.augmenter.describe().index
    assert {'affine', 'crop'} >= {found.trials['joint'].settings['target_policy']}
    assert len(found.plot().get_yticks()) == 4 and len(found.show(n=4)) == 3
    out = capsys.readouterr().out
    assert 'train_loss' not in out and out.count('loss') >= 12, 'a line a trial, none an epoch'


def test_adapt_refuses_before_training():
    with pytest.raises(ValueError, match='watching half'): adapt(target_splits(8))
    with pytest.raises(ValueError, match=r"called \['random_tau'\]"): adapt(target_splits(), policies={'random_tau': lambda x: x})
    s = target_splits()
    s.source.valid.x = s.source.valid.x[..., :10, :10]
    with pytest.raises(ValueError, match='Resize'): adapt(s)


def write_folder(path, classes, side=12, n=3):
    for k in classes:
        (path/k).mkdir(parents=True)
        for i in range(n): write_png(torch.randint(0, 256, (1, side, side), dtype=torch.uint8), str(path/k/f'{i}.png'))
    return path


def test_two_folders_become_a_source(tmp_path):
    train, target, test = (write_folder(tmp_path/k, 'ab', n=n) for k, n in (('train', 5), ('target', 4), ('test', 2)))
    source = source_from_folders(train, target, test)
    assert [len(o) for o in (source.pool, source.valid, source.test)] == [10, 8, 4] and source.name == 'target'
    assert source_from_folders(train, target).test is None
    ids = torch.cat([source.pool.ids, source.valid.ids, source.test.ids])
    assert len(ids.unique()) == len(ids)


@pytest.mark.parametrize('classes, side, said', [('ac', 12, 'Classes of'), ('abc', 12, 'Classes of'), ('ab', 9, 'size=')])
def test_folders_that_do_not_fit_are_refused(tmp_path, classes, side, said):
    train, target = write_folder(tmp_path/'train', 'ab'), write_folder(tmp_path/'target', classes, side)
    with pytest.raises(ValueError, match=said): source_from_folders(train, target)


@pytest.mark.parametrize('name', list(MNIST_SHIFTS))
def test_shifts_of_digits_keep_bytes(name):
    data = sklearn_digits()[torch.arange(30)]
    new, again = (shifted(data, MNIST_SHIFTS[name], 0) for _ in range(2))
    assert new.x.dtype == torch.uint8 and new.x.shape == data.x.shape and torch.equal(new.x, again.x)
    assert torch.equal(new.x, data.x) == (name == 'none')


@pytest.mark.parametrize('name', list(CIFAR10_SHIFTS))
def test_shifts_of_photographs_keep_bytes(name):
    torch.manual_seed(0)
    data = Images(torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8), torch.arange(10), tuple('abcdefghij'))
    new = shifted(data, CIFAR10_SHIFTS[name], 0)
    assert new.x.dtype == torch.uint8 and new.x.shape == data.x.shape
    assert torch.equal(new.x, data.x) == (name == 'none')


@pytest.mark.parametrize('given, said', [(dict(method='joined'), 'shared_joint'), (dict(dataset='mnits'), 'cifar10'),
                                         (dict(shift='rotat'), 'rotate'), (dict(target_labels=30), 'multiple of 20')])
def test_bad_settings_are_refused_before_work(given, said):
    with pytest.raises(ValueError, match=said): train_under_shift(**given)


def test_each_run_is_listed_once_and_is_known():
    keys = [tuple(job[k] for k in SHIFT.key) for job in SHIFT.jobs()]
    assert len(keys) == len(set(keys))
    assert all(job['shift'] in SHIFTS[job['dataset']] for job in SHIFT.jobs())


def test_rows_on_record_are_whole():
    rows = pd.read_csv(ROOT/'results/shift.csv')
    assert not rows.duplicated(['dataset', 'shift', 'target_labels', 'method', 'seed']).any()
    assert rows.accuracy.between(0, 100).all() and rows.command.str.startswith('ia-run shift').all()
    counts = rows.holdout_losses.str.split().str.len()
    assert (counts == rows.target_labels//2).all()
    decided = add_decisions(rows)
    assert set(decided.get("chosen", pd.Series(dtype=str)).dropna()) <= set(CANDIDATES)
