"""Training that is killed and run again ends where it would have ended."""
import random
import signal
import time
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

from forked import ended, forked
from influence_aug.core.checkpoint import Checkpoint
from influence_aug.augment.generator import ShowGenerator, _setting_text, train_generator
from influence_aug.augment.wgan import *
from influence_aug.core.datasets import mnist_sample


def train_and_save(out, checkpoint=None):
    learn = train_generator(mnist_sample().pool[:200], steps=24, epochs=8, bs=2, checkpoint=checkpoint)
    torch.save(dict(learn.model.state_dict()) | dict(losses=torch.stack(list(learn.recorder.losses)), distances=torch.tensor(learn.wgan.distances)), out)


def started(*args): return forked(train_and_save, *args)


def test_killed_without_warning(tmp_path):
    file = tmp_path/'g.checkpoint'
    assert ended(started(tmp_path/'whole.pt')) == 0
    for wanted in (1, 4):
        killed = started(tmp_path/'parts.pt', file)
        while killed.is_alive() and not (file.exists() and len(torch.load(file, weights_only=True)['rows']) >= wanted): time.sleep(.02)
        killed.kill()
        assert ended(killed) == -signal.SIGKILL
    assert ended(started(tmp_path/'parts.pt', file)) == 0
    a, b = (torch.load(tmp_path/f'{o}.pt') for o in ('whole', 'parts'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def digits(): return mnist_sample().pool[:64]


def tiny(**kw): return train_generator(digits(), steps=4, epochs=2, bs=2, **kw)


def test_a_finished_checkpoint_is_not_trained_again(tmp_path):
    first = tiny(checkpoint=tmp_path/'g')
    again = tiny(checkpoint=tmp_path/'g')
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), again.model.parameters()))
    assert again.checkpoint.seconds == first.checkpoint.seconds and again.recorder.values == first.recorder.values
    assert [p.name for p in tmp_path.iterdir()] == ['g']


def test_pictures_are_drawn_of_trained_epochs_only(tmp_path):
    x, picture = torch.rand(2, 1, 28, 28), tmp_path/'looks.png'
    tiny(checkpoint=tmp_path/'g', cbs=ShowGenerator(x, every=1, path=picture))
    assert picture.stat().st_size > 1000
    picture.unlink()
    tiny(checkpoint=tmp_path/'g', cbs=ShowGenerator(x, every=1, path=picture))
    assert not picture.exists()


def test_settings_as_text():
    assert _setting_text(partial(tau_tanh, 3, low=.5)) == 'tau_tanh(3, low=0.5)' and _setting_text(tau_uniform) == 'tau_uniform' and _setting_text(.1) == '0.1'


@pytest.mark.parametrize('change,named', [(dict(lr=2e-3), 'lr=0.001 there, lr=0.002 here'), (dict(draw_tau=tau_uniform), 'draw_tau=None there, draw_tau=tau_uniform here'),
                                          (dict(seed=1), 'seed=0 there, seed=1 here'), (dict(penalty_every=1), 'penalty_every=1 here')])
def test_another_run_is_refused(tmp_path, change, named):
    tiny(checkpoint=tmp_path/'g')
    with pytest.raises(ValueError, match=named): tiny(checkpoint=tmp_path/'g', **change)


def test_an_unreadable_checkpoint_is_named(tmp_path):
    (tmp_path/'g').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='(?s)not a readable checkpoint.*delete it to start again'): tiny(checkpoint=tmp_path/'g')


@pytest.mark.parametrize('steps,epochs', [(0, 1), (7, 2), (5, 10)])
def test_steps_that_do_not_divide_are_refused(steps, epochs):
    with pytest.raises(ValueError, match=f'{steps} steps in {epochs} epochs: expected a positive multiple of {epochs}'): train_generator(digits(), steps=steps, epochs=epochs)


class Stop(Exception): """What stands for any interruption."""


def shuffled_learner():
    torch.manual_seed(3)
    data = list(zip(torch.rand(40, 5), torch.randint(0, 2, (40,))))
    dls = DataLoaders(DataLoader(data, bs=8, shuffle=True), DataLoader(data, bs=8))
    return Learner(dls, nn.Sequential(nn.Linear(5, 4), nn.Dropout(.5), nn.Linear(4, 2)), F.cross_entropy)


def test_any_learner_with_shuffling_and_dropout(tmp_path):
    def fit(interrupt=None):
        random.seed(0)
        learn, file = shuffled_learner(), Checkpoint(tmp_path/'c')
        if interrupt: learn.add_cb(interrupt)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, .01, cbs=file)
        return learn
    whole = fit()
    (tmp_path/'c').unlink()
    class Break(Callback):
        def after_batch(self):
            if self.training and self.train_iter == 12: raise Stop('here')
    with pytest.raises(Stop): fit(Break())
    parts = fit()
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), parts.model.parameters()))
    assert whole.recorder.iters == parts.recorder.iters and whole.recorder.values == parts.recorder.values
