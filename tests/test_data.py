import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.vision.all import ImageDataLoaders, Normalize, Resize, aug_transforms, imagenet_stats
from hypothesis import given, strategies as st
from torchvision.io import write_png

from forked import ended, forked
from influence_aug.core.data import *
from influence_aug.core.datasets import *
from influence_aug.core.files import *
from influence_aug.studies.results import append_rows, read_results
from influence_aug.core.data import stratified_halves
from influence_aug.core.datasets import _SAMPLE, _SAMPLE_SHA256, _read_checked

ROLES = 'labelled unlabelled tune holdout test'.split()


def digits_folder(path, images, n):
    for k, name in enumerate(images.vocab):
        (path/name).mkdir(parents=True)
        for i, x in enumerate(images.x[images.y == k][:n]): write_png(x, str(path/name/f'{i}.png'))
    return path


@given(per=st.integers(1, 600), seed=st.integers(0, 2**31))
def test_splits_are_balanced_disjoint_and_complete(sample, per, seed):
    s = draw_splits(sample, n=10*per, seed=seed)
    assert s.labelled.counts().tolist() == [per]*10
    ids = torch.cat([getattr(s, k).ids for k in ROLES])
    assert ids.unique().numel() == len(ids) == 10_000
    assert (s.tune.counts()-s.holdout.counts()).abs().max() <= 1


@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_halves_are_as_balanced_as_can_be(counts, seed):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    a, b = stratified_halves(y, seed)
    assert sorted(torch.cat([a, b]).tolist()) == list(range(len(y)))
    assert abs(len(a)-len(b)) <= 1
    for k in range(len(counts)): assert abs(int((y[a] == k).sum())-int((y[b] == k).sum())) <= 1


def test_all_labels_when_nothing_is_asked_for(sample):
    s = draw_splits(sample)
    assert len(s.labelled) == 6000 and len(s.unlabelled) == 0


@pytest.mark.parametrize('n', [-10, 0, 5, 601])
def test_impossible_numbers_of_labels(sample, n):
    with pytest.raises(ValueError, match='labelled images asked for'): draw_splits(sample, n=n)


def test_damaged_sample_is_refused(tmp_path):
    bytes = bytearray(_SAMPLE.read_bytes())
    bytes[1000] ^= 1
    (tmp_path/'bad.npz').write_bytes(bytes)
    with pytest.raises(ValueError, match='the file is damaged'): _read_checked(tmp_path/'bad.npz', _SAMPLE_SHA256)
    with pytest.raises(FileNotFoundError, match='reinstall'): _read_checked(tmp_path/'none.npz', _SAMPLE_SHA256)


def test_sample_comes_from_the_right_parts_of_mnist(sample):
    assert 5000 <= sample.pool.ids.min() and sample.pool.ids.max() < 60_000
    assert sample.valid.ids.max() < 5000 and sample.test.ids.min() >= 60_000


def test_sources_that_overlap_or_lack_a_class_are_refused(sample):
    with pytest.raises(ValueError, match='in both pool and valid'): Source(sample.pool, sample.pool[:100])
    with pytest.raises(ValueError, match="without a validation image: \\['3'\\]"): Source(sample.pool, sample.valid[sample.valid.y != 3])
    with pytest.raises(ValueError, match='No validation images'): Source(sample.pool, sample.valid[:0])


@pytest.mark.parametrize('channels', [1, 3])
def test_folder(tmp_path, sample, channels):
    path = digits_folder(tmp_path/'own', sample.valid, 5)
    s = source_from_folder(path, channels=channels, size=32, valid=.4, test=.2)
    assert s.pool.x.shape == (20, channels, 32, 32) and len(s.valid) == 20 and len(s.test) == 10
    assert s.pool.vocab == sample.pool.vocab and s.name == 'own'


def test_folder_mistakes(tmp_path, sample):
    path = digits_folder(tmp_path/'own', sample.valid, 4)
    write_png(torch.zeros(1, 20, 20, dtype=torch.uint8), str(path/'3'/'small.png'))
    with pytest.raises(ValueError, match='differ in size .* pass size='): source_from_folder(path)
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='No images in'): source_from_folder(tmp_path/'empty')
    one = tmp_path/'one'
    digits_folder(one, sample.valid[sample.valid.y == 0], 4)
    for k in range(1, 10): (one/str(k)).rmdir()
    with pytest.raises(ValueError, match='One class only'): source_from_folder(one)
    few = digits_folder(tmp_path/'few', sample.valid, 2)
    with pytest.raises(ValueError, match='expected at least 3 in each'): source_from_folder(few)


@pytest.mark.parametrize('settings, words', [
    (dict(channels=2), 'channels=2: expected 1'), (dict(size=(28, 32)), r'size=\(28, 32\): expected one number'), (dict(size=0), 'size=0: expected'),
    (dict(valid=0), 'valid=0, test=0.0: expected shares'), (dict(valid=.6, test=.4), 'valid=0.6, test=0.4: expected shares'), (dict(test=-.1), 'test=-0.1: expected')])
def test_folder_settings(tmp_path, sample, settings, words):
    with pytest.raises(ValueError, match=words): source_from_folder(digits_folder(tmp_path/'own', sample.valid, 5), **settings)


def test_folders_without_images(tmp_path, sample):
    path = digits_folder(tmp_path/'own', sample.valid, 5)
    (path/'.ipynb_checkpoints').mkdir()
    assert len(source_from_folder(path).pool.vocab) == 10
    (path/'ten').mkdir()
    with pytest.raises(FileNotFoundError, match=r"No images in the folders \['ten'\] of .*own: expected .*/<class name>/<image>.png"): source_from_folder(path)


def test_splits_are_told_in_short(tmp_path, sample):
    own = draw_splits(source_from_folder(digits_folder(tmp_path/'own', sample.valid, 5)))
    assert 'labelled=Images(40 of 1×28×28, 10 classes)' in repr(own) and 'test=None' in repr(own) and len(repr(own)) < 300
    with pytest.raises(TypeError, match='source is a str: expected a Source, such as'): draw_splits('own')


def test_fastai_dataloaders_are_read_plain_and_left_as_they_were(tmp_path, sample):
    path = digits_folder(tmp_path/'own', sample.valid, 10)
    tfms = [*aug_transforms(max_rotate=45, p_affine=1.), Normalize.from_stats(*imagenet_stats)]
    dls = ImageDataLoaders.from_folder(path, valid_pct=.3, seed=0, bs=16, num_workers=0, item_tfms=Resize(28), batch_tfms=tfms, device='cpu')
    kinds = [type(t).__name__ for t in dls.train.after_batch.fs]
    s = source_from_dls(dls)
    assert [type(t).__name__ for t in dls.train.after_batch.fs] == kinds and dls.train.dataset.split_idx == 0
    assert len(s.pool) == 70 and len(s.valid) == 30 and s.pool.vocab == sample.pool.vocab
    original = {x.numpy().tobytes() for x in sample.valid.x}
    assert {x[:1].numpy().tobytes() for x in s.pool.x} <= original


def test_plain_dataloaders_and_their_mistakes(sample):
    from fastai.data.core import DataLoaders
    tensors = lambda d, f=1: torch.utils.data.TensorDataset(d.x.float()/255*f, d.y)
    dl = lambda d, f=1: torch.utils.data.DataLoader(tensors(d, f), batch_size=64)
    s = source_from_dls(DataLoaders(dl(sample.pool[:500]), dl(sample.valid[:100])))
    assert torch.equal(s.pool.x, sample.pool.x[:500])
    with pytest.raises(ValueError, match='in both pool and valid'): source_from_dls(DataLoaders(dl(sample.pool[:500]), dl(sample.pool[400:600])))
    with pytest.raises(ValueError, match='expected \\[0, 1\\]'): source_from_dls(DataLoaders(dl(sample.pool[:500], 255), dl(sample.valid[:100])))
    with pytest.raises(ValueError, match='expected \\[0, 1\\]'): source_from_dls(DataLoaders(dl(sample.pool[:500], float('nan')), dl(sample.valid[:100])))


def add_rows(path, who):
    for i in range(5): append_rows(path, [dict(who=who, i=i)])


def test_rows_from_several_processes(tmp_path):
    assert [ended(p) for p in [forked(add_rows, tmp_path/'r.csv', w) for w in range(3)]] == [0, 0, 0]
    rows = read_results(tmp_path/'r.csv')
    assert rows.groupby('who').i.apply(sorted).tolist() == [list(range(5))]*3
    assert list(rows)[-1] == 'version' and not list(tmp_path.glob('*.tmp'))


def test_old_numbers_are_kept_letter_by_letter(tmp_path):
    (tmp_path/'r.csv').write_text('a,b,command\n0.10,1e-3,x\n')
    append_rows(tmp_path/'r.csv', [dict(a=2, c=3, command='y')])
    assert (tmp_path/'r.csv').read_text().splitlines()[1].startswith('0.10,1e-3,,x')
    with pytest.raises(FileNotFoundError, match='run the command'): read_results(tmp_path/'none.csv')


def dies_when_written(path):
    "Killed before the new file takes the place of the old one."
    to_csv = pd.DataFrame.to_csv
    def dies(self, path, **kw):
        to_csv(self, path, **kw)
        os.kill(os.getpid(), signal.SIGKILL)
    pd.DataFrame.to_csv = dies
    append_rows(path, [dict(a=2)])


def test_a_killed_append_leaves_the_file_whole(tmp_path):
    append_rows(tmp_path/'r.csv', [dict(a=1)])
    assert ended(forked(dies_when_written, tmp_path/'r.csv')) == -signal.SIGKILL
    append_rows(tmp_path/'r.csv', [dict(a=3)])
    assert read_results(tmp_path/'r.csv').a.tolist() == [1, 3]


def test_committed_results_have_their_columns():
    root = Path(__file__).parents[1]/'results'
    mnist, wgan = (pd.read_csv(root/f'{k}.csv') for k in ('mnist', 'wgan'))
    assert list(mnist)[:6] == 'method frac scale seed accuracy valid_loss'.split()[:6] and list(mnist)[-3:] == ['command', 'seconds', 'version']
    assert not mnist.duplicated(['method', 'frac', 'scale', 'seed', 'steps']).any()
    broken = mnist.method.str.endswith('_all') | (mnist.method=='shuffled_labels')
    assert mnist.accuracy[~broken].between(50, 100).all() and mnist.accuracy[broken].between(0, 100).all()
    assert list(wgan)[:3] == ['dataset', 'measure', 'value'] and list(wgan)[-3:] == ['command', 'seconds', 'version']
