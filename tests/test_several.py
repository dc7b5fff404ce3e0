"Two processes, started by `accelerate launch` as fastai documents, against one: the same s_val, tables and weights, each with its share of the work."
import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

import several


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "What tests/several.py measures: in one process, and on both ranks of two that speak gloo."
    folder = tmp_path_factory.mktemp('ranks')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no',
              '--dynamo_backend', 'no', '--main_process_port', str(port), several.__file__, str(folder)]
    path = os.pathsep.join([str(Path(several.__file__).parents[1]), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(launch, env=dict(os.environ, ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1', PYTHONPATH=path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout+done.stderr
    with TemporaryDirectory() as d: one = several.measured(d)
    return [one, *(torch.load(folder/f'{i}.pt', weights_only=False) for i in (0, 1))]


@pytest.mark.parametrize('what,atol', dict(plain=1e-6, augment=1e-6, maxup=1e-6, checkpoint=1e-6, trajectory=1e-5, G=1e-4).items())
def test_weights_of_f_and_g(found, what, atol):
    one, first, second = (o[what] for o in found)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one, atol=atol, rtol=0)


@pytest.mark.parametrize('what', ['E', 'stochastic', 'fixed'])
def test_weights_of_e(found, what):
    "Of three steps of 1e-3; the guard takes the figures of rank 0, and so nobody stops."
    (one, epochs), (first, epochs_first), (second, epochs_second) = (o[what] for o in found)
    assert epochs == epochs_first == epochs_second == 3 and torch.equal(first, second)
    torch.testing.assert_close(first, one, atol=2e-5, rtol=0)


def test_the_weights_compared_are_those_of_different_trainings(found):
    one = found[0]
    for a, b in [('plain', 'augment'), ('plain', 'maxup'), ('augment', 'maxup')]: assert (one[a]-one[b]).abs().max() > 1e-3
    assert torch.equal(one['plain'], one['checkpoint']) and (one['E'][0]-one['fixed'][0]).abs().max() > 1e-4


def test_means(found):
    "Of one batch and of many, of matrices and numbers, float32 and float64, and of mixtures in mixtures."
    one, first, second = (o['means'] for o in found)
    for a, b, c in zip(one, first, second):
        assert torch.equal(b, c)
        torch.testing.assert_close(b, a, atol=1e-14, rtol=0)


@pytest.mark.parametrize('what,rtol', dict(exact=1e-12, cg=1e-12, lissa=1e-12, smoothed=1e-12, all=1e-3).items())
def test_s_val_and_the_share_of_each(found, what, rtol):
    "Conjugate gradients through all layers stop at a residual of 1e-4."
    (one, images), (first, images_first), (second, images_second) = (o[what] for o in found)
    assert torch.equal(first, second) and (first-one).norm() <= rtol*one.norm()
    if what != 'all': assert (images, images_first, images_second) == (190, 100, 90)  # Batches of 16: 4 and 3 of training, 3 and 3 of validation
    else: assert max(images_first, images_second) < .6*images


@pytest.mark.parametrize('what', ['ranking', 'training', 'find'])
def test_tables(found, what):
    one, first, second = (getattr(o[what], 'table', o[what]) for o in found)
    assert first.equals(second) and list(first.index) == list(one.index) and (first.verdict == one.verdict).all()
    numbers = one.select_dtypes('number').columns
    assert len(numbers) >= 3 and (first[numbers]-one[numbers]).abs().max().max() < 1e-6*one.predicted.abs().max()


def test_what_only_one_rank_saw_changing_has_changed(found):
    for o in found: assert (o['ranking'].verdict == 'changes nothing').to_dict() == {'nothing': True, 'one': False, 'noise': False, 'shift': False}


def test_suggestions(found): assert len({o['find'].suggestion for o in found}) == 1


def test_one_rank_alone(found):
    one, first, second = (o['alone'] for o in found)
    assert first is None and torch.equal(one[0], second[0]) and one[1] == second[1] == 190


@pytest.mark.parametrize('what,named', [('other_data', 'train is not the same on all 2 ranks'), ('other_model', 'The model is not the same on all 2 ranks')])
def test_ranks_that_hold_different_things_are_refused(found, what, named):
    one, first, second = (o[what] for o in found)
    assert one is None and first == second and named in first and 'with alone()' in first


def test_each_rank_has_draws_of_its_own(found):
    one, first, second = (o['draws'] for o in found)
    assert one[:1] == first[:1] and not set(first) & set(second)
