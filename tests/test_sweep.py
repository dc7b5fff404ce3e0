"""Sweeps that are killed, fail, or run on a cluster: no finished run is lost, none is written twice or by half, and the same command goes on."""
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from forked import ended, forked
from influence_aug.augment.classifier import train_classifier
from influence_aug.augment.policies import random_affine
from influence_aug.augment.callbacks import Augment
from influence_aug.core.data import Images, Source, draw_splits
from influence_aug.core.randomness import own_randomness
from influence_aug.studies.results import append_rows, read_results
from influence_aug.studies.run import Study, run, sweep

SEEDS = 5


def noise(n, first): return Images(torch.randint(256, (n, 1, 28, 28)).byte(), torch.arange(n) % 4, tuple('abcd'), first+torch.arange(n))


def train_on_noise(variant: str = 'affine', seed: int = 0, steps: int = 3):
    "A training so small that a sweep of them can be done many times, and long enough to be killed in."
    with own_randomness(seed): source = Source(noise(60, 0), noise(40, 100), noise(20, 200))
    learn = train_classifier(draw_splits(source, n=40, seed=seed), [Augment(random_affine())], steps=steps, seed=seed, epochs=1, bs=8)
    time.sleep(.3)
    return dict(valid_loss=round(learn.validate()[0], 6))


def jobs(): return [dict(variant='affine', seed=s, steps=3) for s in range(SEEDS)]


STUDY = Study('small', train_on_noise, ('variant', 'seed', 'steps'), 'small.csv', jobs)
COMMAND = 'import sys; sys.path.insert(0, {!r}); from test_sweep import *; sweep(STUDY, sys.argv[1], processes=2)'.format(os.path.dirname(__file__))


def on_two_processes(file): return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', COMMAND, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def on_one(file): sweep(STUDY, file, processes=1)


def figures(file): return read_results(file).sort_values('seed').drop(columns=['command', 'seconds', 'version']).reset_index(drop=True)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The rows that five runs one after another make."
    file = tmp_path_factory.mktemp('whole')/'r.csv'
    for job in jobs(): run(STUDY, file, **job)
    return figures(file)


def killed_after(rows, file, sweeping, alive):
    "Rows that are left when a sweep is killed by kill -9 with `rows` rows in its file."
    while alive() and not (file.exists() and len(read_results(file)) >= rows): time.sleep(.01)
    os.kill(sweeping.pid, signal.SIGKILL)
    left = figures(file)
    assert len(left) >= rows and not left.isna().any().any() and not left.duplicated(['variant', 'seed']).any()
    return left


def test_killed_at_any_moment_a_sweep_loses_no_row_and_goes_on(tmp_path, whole, capfd):
    "kill -9 after the first row, where two processes work for it, and after the third."
    file = tmp_path/'r.csv'
    sweeping = on_two_processes(file)
    killed_after(1, file, sweeping, lambda: sweeping.poll() is None)
    assert sweeping.wait(60) == -signal.SIGKILL
    sweeping = forked(on_one, file)
    left = killed_after(3, file, sweeping, sweeping.is_alive)
    assert ended(sweeping) == -signal.SIGKILL
    capfd.readouterr()
    assert ended(forked(on_one, file)) == 0 and f'{SEEDS-len(left)} runs to do' in capfd.readouterr().out
    pd.testing.assert_frame_equal(figures(file), whole)
    assert ended(forked(on_one, file)) == 0 and '0 runs to do' in capfd.readouterr().out and len(figures(file)) == SEEDS


def dies_while_writing(file):
    "Half of the file is on the disk when the process ends."
    to_csv = pd.DataFrame.to_csv
    def dies(self, path, **kw):
        to_csv(self, path, **kw)
        os.truncate(path, 20)
        os.kill(os.getpid(), signal.SIGKILL)
    pd.DataFrame.to_csv = dies
    on_one(file)


def test_killed_in_the_middle_of_writing_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path/'r.csv'
    append_rows(file, [dict(variant='affine', seed=0, steps=3, valid_loss=1.)])
    before = file.read_text()
    assert ended(forked(dies_while_writing, file)) == -signal.SIGKILL
    assert file.read_text() == before
    sweep(STUDY, file, processes=1, seed=1)
    assert sorted(read_results(file).seed) == [0, 1]


def test_two_sweeps_at_once_share_a_file(tmp_path, whole):
    "Each may do runs of the other, but a run gets one row."
    file = tmp_path/'r.csv'
    both = [forked(on_one, file) for _ in range(2)]
    assert [ended(o) for o in both] == [0, 0]
    pd.testing.assert_frame_equal(figures(file), whole)


def test_on_a_dask_cluster_of_two_workers(tmp_path, whole):
    distributed = pytest.importorskip('distributed', reason='a Dask cluster needs distributed: pip install distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host='127.0.0.1') as cluster:
        assert sweep(STUDY, tmp_path/'r.csv', backend='dask', address=cluster.scheduler_address) == 0
        with distributed.Client(cluster.scheduler_address) as client: assert len(client.scheduler_info()['workers']) == 2
    pd.testing.assert_frame_equal(figures(tmp_path/'r.csv'), whole)


def broken_for_two(seed: int = 0):
    if seed == 2: raise RuntimeError('this one cannot be run')
    return dict(value=seed)


@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_that_fails_takes_no_other_with_it(tmp_path, capsys, processes):
    study = Study('broken', broken_for_two, ('seed',), 'r.csv', lambda: [dict(seed=s) for s in range(4)])
    assert sweep(study, tmp_path/'r.csv', processes=processes) == 1
    assert sorted(read_results(tmp_path/'r.csv').seed) == [0, 1, 3] and 'this one cannot be run' in capsys.readouterr().out


def test_mistakes(tmp_path):
    with pytest.raises(ValueError, match="backend='slurm': expected one of loky, dask, ray"): sweep(STUDY, tmp_path/'r.csv', backend='slurm')
    with pytest.raises(TypeError, match=r"small has no \['epochs'\]: expected settings among \['variant'"): run(STUDY, tmp_path/'r.csv', epochs=3)
    with pytest.raises(TypeError, match=r"small has no \['epochs'\]"): sweep(STUDY, tmp_path/'r.csv', epochs=3)
    assert not (tmp_path/'r.csv').exists()
