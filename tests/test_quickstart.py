"""The cells of the quick start that need a download and minutes, on a folder of noise in the download's place."""
import re
from functools import partial
from pathlib import Path

import fastai.vision.all as vision
import matplotlib.pyplot as plt
import nbformat
import numpy as np
from fastai.learner import Learner
from PIL import Image

import influence_aug.all as everything
from influence_aug.augment.callbacks import Augment

ROOT = Path(__file__).parents[1]
HEAVY = [c.source for c in nbformat.read(ROOT/'nbs'/'quickstart.ipynb', as_version=4).cells if re.search(r'^#\| heavy', c.source, re.M)]


def test_heavy_cells_run(tmp_path, monkeypatch):
    "One epoch each; a policy is put in where the noise leaves none to suggest."
    rng = np.random.default_rng(0)
    for k, name in enumerate(('cat', 'dog', 'ship')):
        (tmp_path/'train'/name).mkdir(parents=True)
        for i in range(4): Image.fromarray((60*k+rng.integers(0, 100, (32, 32, 3))).astype(np.uint8)).save(tmp_path/'train'/name/f'{i}.png')
    (tmp_path/'images').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vision, 'untar_data', lambda url: tmp_path)
    monkeypatch.setattr(vision, 'ImageDataLoaders', type('Few', (vision.ImageDataLoaders,), dict(from_path_func=partial(vision.ImageDataLoaders.from_path_func, num_workers=0, bs=4))))
    monkeypatch.setattr(Learner, 'fit_one_cycle', lambda self, n, lr: self.fit(1, lr))
    names = {}
    exec('import torch\nfrom influence_aug.all import *', names)
    for source in HEAVY:
        exec(compile(source.replace('Resize(64)', 'Resize(32)'), 'quickstart.ipynb', 'exec'), names)
        if 'learn.aug_find()' in source and not names['found'].cbs: names['found'].policy = lambda x: 1-x
    plt.close('all')
    assert len(HEAVY) >= 6 and len(names['found'].table) >= 30 and (tmp_path/'images'/'find.png').exists() and isinstance(names['learn'].augment, Augment)


def test_the_short_import_hides_nothing_of_fastai():
    hidden = [k for k in everything.__all__ if getattr(vision, k, None) not in (None, getattr(everything, k))]
    assert not hidden and everything.resumable
