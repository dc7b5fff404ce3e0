"""README.md is made from nbs/index.ipynb, and what it says can be run."""
import importlib.util
import re
from functools import partial
from pathlib import Path

import fastai.vision.all as vision
import numpy as np
from fastai.vision.all import ImageDataLoaders, PILImageBW, Resize
from PIL import Image

import influence_aug.all as everything
from influence_aug.augment.classifier import small_cnn
from influence_aug.studies import toy
from test_data import digits_folder

ROOT = Path(__file__).parents[1]
README = (ROOT/'README.md').read_text(encoding='utf-8')


def test_readme_is_what_the_index_makes():
    spec = importlib.util.spec_from_file_location('readme', ROOT/'tools'/'readme.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.readme() == README


def test_links_lead_somewhere():
    for target in re.findall(r'\]\((?!http|#)([^)]+)\)', README): assert (ROOT/target).exists(), target


def test_the_commands_exist():
    makefile = (ROOT/'Makefile').read_text()
    for target in re.findall(r"(?:`|^)make (\w+)", README, re.M): assert re.search(rf'^{target}:', makefile, re.M), target


SMALLER = {'Resize(224)': 'Resize(32)', 'fine_tune(3)': 'fine_tune(1)'}


def photo_folder(path, n=8):
    "Noise, bright or dark: two classes of colour pictures."
    rng = np.random.default_rng(0)
    for name, level in (('day', 150), ('night', 20)):
        (path/name).mkdir(parents=True)
        for i in range(n): Image.fromarray((level+rng.integers(0, 100, (40, 40, 3))).astype(np.uint8)).save(path/name/f'{i}.png')


def test_code_blocks_run(tmp_path, monkeypatch, sample, few_to_look_at):
    """In the order of the page, with smaller pictures, random weights, fewer steps and fewer digits to validate on; folders and `model` stand for the
    reader's own, and so does `dls` where the page asks for grey digits."""
    grey = ImageDataLoaders.from_folder(digits_folder(tmp_path/'own', sample.valid, 10), valid_pct=.3, bs=16, num_workers=0, img_cls=PILImageBW, item_tfms=Resize(28), device='cpu')
    for name, few in [('train_classifier', dict(steps=4, epochs=1)), ('learn_augmenter', dict(steps=4, e_steps=4, epochs=1)), ('adapt', dict(steps=4, e_steps=5, epochs=1))]:
        monkeypatch.setattr(everything, name, lambda *args, whole=getattr(everything, name), few=few, **how: whole(*args, **how|few))
    monkeypatch.setattr(vision, 'vision_learner', partial(vision.vision_learner, pretrained=False))
    monkeypatch.setattr(everything, 'mnist_sample', lambda: few_to_look_at)
    monkeypatch.setattr(toy, 'figure3', partial(toy.figure3, rounds=2))
    monkeypatch.chdir(tmp_path)
    photo_folder(tmp_path/'photos')
    for name, data, n in (('my_digits', sample.valid, 12), ('training', sample.pool, 12), ('camera', sample.valid, 4)): digits_folder(tmp_path/name, data, n)
    blocks = re.findall(r'^```python\n(.*?)^```', README, re.M | re.S)
    names = dict(model=small_cnn(1, 10))
    for code in blocks:
        if 'Learner(dls, model' in code: names['dls'] = grey
        for own, small in SMALLER.items(): code = code.replace(own, small)
        exec(compile(code, 'README.md', 'exec'), names)
        if re.search(r'earner\(dls.*cbs', code): names['learn'].fit(1)
    assert len(blocks) >= 8 and (tmp_path/'digits.safetensors').exists() and (tmp_path/'camera.pkl').exists()
