"fit_augmenter on Learners as people have them: nothing of the Learner changes, G and E of every kind, the losses by other means, bad input named."
import warnings
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from fastai.learner import Learner, load_learner
from fastai.metrics import accuracy
from torch.utils.data import DataLoader, TensorDataset

from influence_aug.all import *
from influence_aug.augment.augmenter import Estimator, RandomEstimator, SharedEstimator, StochasticEstimator, save_modules
from influence_aug.augment.classifier import small_cnn, tensor_dls
from influence_aug.augment.fit import *
from influence_aug.augment.named import NamedGenerator
from influence_aug.augment.transforms import Generator
from influence_aug.core.data import Images
from test_find import MODELS, dls, folder, same, state  # noqa: F401

pytestmark = pytest.mark.filterwarnings('ignore:The model reads')


@pytest.fixture(scope='module')
def few(sample):
    "Thirty digits of three classes to train on, twenty-four to validate on."
    i, j = (torch.cat([torch.where(d.y == k)[0][:n] for k in range(3)]) for d, n in ((sample.pool, 10), (sample.valid, 8)))
    return [Images(o.x, o.y, ('0', '1', '2'), o.ids) for o in (sample.pool[i], sample.valid[j])]


@pytest.fixture
def learn(few):
    torch.manual_seed(0)
    return Learner(tensor_dls(*few, n_steps=2), small_cnn(1, 3), F.cross_entropy)


@pytest.mark.parametrize('name', ['resnet18', 'smoothed'])
def test_stock_models_are_asked_and_left_alone(dls, name):
    learn = MODELS[name](dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-3)
    learn.model.train()
    before, backend = deepcopy(state(learn)), (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    found = learn.fit_augmenter(steps=1, most=10)
    assert same(before[:5], state(learn)[:5]) and same(before[8:], state(learn)[8:])
    assert [id(dl) for dl in learn.dls.loaders] == [i for i, _ in before[7]] and same([o for _, o in before[7]], [dl.rng.getstate() for dl in learn.dls.loaders])
    assert backend == (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    assert set(found.decision.table.index) == {'none', 'random_tau', 'learned'} and found.augmenter.generator.config['size'] == 64
    assert (len(found.splits.labelled), len(found.splits.tune), len(found.splits.holdout)) == (10, 5, 5)


def test_the_same_seed_gives_the_same(learn):
    a, b, c = (learn.fit_augmenter(steps=2, seed=s) for s in (0, 0, 1))
    weights = [list(o.augmenter.state_dict().values()) for o in (a, b, c)]
    assert a.decision.table.equals(b.decision.table) and same(weights[0], weights[1]) and not same(weights[0], weights[2])


def test_the_losses_are_those_of_heads_fitted_otherwise(dls):
    "'none' against a head that LBFGS fits to the features of images that are normalised by hand."
    torch.manual_seed(0)
    learn = Learner(dls, small_cnn(3, 2))
    found = learn.fit_augmenter(steps=1)
    body = learn.model.eval()[0]
    with torch.no_grad(): h, h_holdout = (F.pad(body((o.x.float()/255-.5)/.2), (0, 1), value=1.).double() for o in (found.splits.labelled, found.splits.holdout))
    W = torch.zeros(2, 65, dtype=torch.double, requires_grad=True)
    opt = torch.optim.LBFGS([W], max_iter=500, tolerance_grad=1e-9, line_search_fn='strong_wolfe')
    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(h@W.T, found.splits.labelled.y)+.015*W.square().sum()
        loss.backward()
        return loss
    opt.step(closure)
    assert abs(F.cross_entropy(h_holdout@W.T, found.splits.holdout.y).item()-found.decision.table.loss['none']) < 1e-4


def test_a_learner_that_never_trained(learn):
    before = deepcopy((learn.model.state_dict(), learn.dls.train.rng.getstate()))
    found = learn.fit_augmenter(steps=1)
    assert same([*before[0].values()], [*learn.model.state_dict().values()]) and before[1] == learn.dls.train.rng.getstate() and learn.opt is None and found.tell().startswith('Learned')
    assert found.describe().shape == (11, 6) and len(found.plot().get_yticks()) == 2 and found.show(n=4) is not None


def test_in_half_precision(dls):
    learn = Learner(dls, small_cnn(3, 2)).to_fp16()
    table = learn.fit_augmenter(steps=1).decision.table
    assert set(table.index) == {'none', 'random_tau', 'learned'} and table.loss.between(0, 5).all() and (table.loss > 0).all()


def makers(tmp_path):
    save_modules(tmp_path/'g.safetensors', dict(generator=Generator(1, 28, 4)))
    Augmenter(NamedGenerator(1, 28), SharedEstimator).save(tmp_path/'a.safetensors')
    return {'name': ('mnist', 128), 'text': (str(tmp_path/'g.safetensors'), 4),
            'of an augmenter': (tmp_path/'a.safetensors', 11), 'module': (Generator(1, 28, 6), 6)}


@pytest.mark.parametrize('kind', ['name', 'text', 'of an augmenter', 'module'])
def test_g_in_every_form(learn, tmp_path, kind):
    G, n_tau = makers(tmp_path)[kind]
    kept = deepcopy(G)
    found = learn.fit_augmenter(G, steps=1)
    assert found.augmenter.generator.config['n_tau'] == n_tau and found.augmenter.generator is not G
    if kind == 'module': assert same(list(G.state_dict().values()), list(kept.state_dict().values())) and all(p.requires_grad for p in G.parameters())
    if kind == 'name':
        with pytest.raises(TypeError, match='has no names'): found.tell()


@pytest.mark.parametrize('estimator, trials', [(SharedEstimator, 2), (StochasticEstimator, 2), (Estimator, 1)])
def test_e_of_every_kind(learn, estimator, trials, capsys):
    E = estimator(1, 28, 11)
    kept = deepcopy(E.state_dict())
    found = learn.fit_augmenter(estimator=E, steps=2)
    assert capsys.readouterr().out.count('  E ') == trials
    assert same(list(kept.values()), list(E.state_dict().values())) and found.augmenter.estimator is not E and isinstance(found.augmenter.estimator, estimator)
    assert found.tell().startswith('Learned')


def test_own_images_in_every_form(learn, few):
    train, _ = few
    pairs = [(o.x.float()/255, o.y) for o in few]
    given = [(train, pairs[1]), tuple(DataLoader(TensorDataset(*o), 16) for o in pairs)]
    tables = [learn.fit_augmenter(train=a, valid=b, steps=1).decision.table for a, b in given]
    assert tables[0].equals(tables[1]) and tables[0].equals(learn.fit_augmenter(steps=1).decision.table)


def test_at_most_so_many_images(learn):
    found = learn.fit_augmenter(steps=1, most=15)
    assert len(found.splits.labelled) == 15 and len(found.splits.tune)+len(found.splits.holdout) == 15
    assert found.splits.labelled.counts().tolist() == [5]*3


def test_what_was_chosen_trains_saves_and_exports(learn, few, tmp_path):
    found = learn.fit_augmenter(steps=1)
    known = {'none': None, 'learned': found.augmenter}
    if found.decision.choice in known: assert found.policy is known[found.decision.choice]
    else: assert found.policy not in (*known.values(),) and found.policy(few[0].x.float()/255).shape == few[0].x.shape
    found.augmenter.save(tmp_path/'a.safetensors')
    mine = Learner(tensor_dls(*few, n_steps=2), small_cnn(1, 3), F.cross_entropy, metrics=accuracy, cbs=Augment(Augmenter.load(tmp_path/'a.safetensors'), .5))
    with mine.no_bar(), mine.no_logging(): mine.fit(1, 1e-3)
    mine.export(tmp_path/'learn.pkl')
    again = load_learner(tmp_path/'learn.pkl')
    assert same(list(again.augment.policy.f.state_dict().values()), list(found.augmenter.state_dict().values()))
    x = few[1].x.float()/255
    with torch.no_grad(): assert torch.equal(again.model.eval()(x), mine.model.eval()(x))


def test_an_f_that_reads_no_copies_is_warned_of(learn, few):
    "A model that reads one bright pixel for each class reads all originals, and few of their copies."
    train = Images(torch.zeros(30, 1, 12, 12).byte(), few[0].y, few[0].vocab)
    train.x[torch.arange(30), 0, 2*train.y+4, 6] = 200
    train.x[:, 0, 0, 0] = torch.arange(30).byte()
    valid = Images(torch.randint(0, 255, (24, 1, 12, 12)).byte(), few[1].y, few[1].vocab)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 3))
    with torch.no_grad():
        model[1].weight.zero_()[torch.arange(3), (2*torch.arange(3)+4)*12+6] = 10.
        model[1].bias.copy_(torch.tensor([0., 0., -1.]))
    with pytest.warns(UserWarning, match='reads 100% of the training images and'): Learner(learn.dls, model, F.cross_entropy).fit_augmenter(train=train, valid=valid, steps=1)


BAD = {'channels': (dict(G=NamedGenerator(3, 28)), 'made for images of .* .3, 28.: expected .1, 28.'), 'size': (dict(G='cifar10'), 'expected .1, 28.'),
       'no such name': (dict(G='nobody'), 'in the package'), 'no such file': (dict(G='no/file.safetensors'), 'No file'), 'G is a list': (dict(G=[1]), 'G is a list'),
       'G is a class': (dict(G=NamedGenerator), 'G is a type'), 'a plain module': (dict(G=torch.nn.Linear(1, 1)), 'G is a Linear'),
       'E is a name': (dict(estimator='shared'), 'estimator is a str'), 'E of others': (dict(estimator=SharedEstimator(1, 28, 3)), 'n_tau=11, E has n_tau=3'),
       'E learns nothing': (dict(estimator=RandomEstimator), 'nothing to learn'), 'steps': (dict(steps=0), 'steps=0'), 'steps of ten': (dict(steps=25), 'multiple of 10'),
       'most': (dict(most=0), 'most=0'), 'bs': (dict(bs=0), 'bs=0'), 'seed': (dict(seed=.5), 'seed=0.5'), 'negative seed': (dict(seed=-1), 'seed=-1'),
       'l2': (dict(l2=-1.), 'l2=-1')}


def refuse(*args, **kwargs): raise AssertionError('E was trained')


@pytest.mark.parametrize('name', BAD)
def test_bad_settings(learn, monkeypatch, name):
    monkeypatch.setattr('influence_aug.augment.fit.shift_augmenter', refuse)
    how, words = BAD[name]
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=words): learn.fit_augmenter(**how)


def of(x, y=None, k=2): return x, torch.arange(len(x))%k if y is None else y


DATA = {'few': (of(torch.rand(40, 1, 28, 28)), of(torch.rand(9, 1, 28, 28)), '4 images in the watching half'), 'not square': (of(torch.rand(40, 1, 28, 20)), None, '28×20'),
        'valid of another size': (of(torch.rand(40, 1, 28, 28)), of(torch.rand(20, 1, 20, 20)), 'of shape .1, 20, 20.'),
        'normalised': (of(torch.randn(40, 1, 28, 28)), None, 'expect .0, 1.'), 'NaN': (of(torch.full((40, 1, 28, 28), torch.nan)), None, 'NaN'),
        'labels': (of(torch.rand(40, 1, 28, 28), k=3), None, 'expected 0 to 1'), 'in both': (of(torch.ones(40, 1, 28, 28)), of(torch.ones(20, 1, 28, 28)), 'in both'),
        'a class missing': (of(torch.rand(40, 1, 28, 28), torch.zeros(40).long()), None, 'without a training image'), 'none': (of(torch.rand(0, 1, 28, 28)), None, 'No images')}


@pytest.mark.parametrize('name', DATA)
def test_bad_data(few, monkeypatch, name):
    monkeypatch.setattr('influence_aug.augment.fit.shift_augmenter', refuse)
    torch.manual_seed(0)
    learn = Learner(tensor_dls(*few, n_steps=2), small_cnn(1, 2), F.cross_entropy)
    train, valid, words = DATA[name]
    with pytest.raises(ValueError, match=words): learn.fit_augmenter(train=train, valid=valid or of(torch.rand(20, 1, 28, 28)))


def test_sizes_that_e_cannot_take():
    data = [of(torch.rand(n, 1, 10, 10)) for n in (20, 20)]
    learn = Learner(tensor_dls(*(Images((x*255).byte(), y, ('a', 'b')) for x, y in data), n_steps=1), small_cnn(1, 2), F.cross_entropy)
    with pytest.raises(ValueError, match='multiple of 4'): learn.fit_augmenter(estimator=StochasticEstimator)
    with warnings.catch_warnings(): assert learn.fit_augmenter(steps=1).augmenter.generator.config['size'] == 10


def test_a_model_without_a_head_is_refused(few):
    learn = Learner(tensor_dls(*few, n_steps=1), torch.nn.Sequential(small_cnn(1, 3), torch.nn.Softmax(1)), F.cross_entropy)
    with pytest.raises(ValueError, match='not that of a linear layer'): learn.fit_augmenter()
