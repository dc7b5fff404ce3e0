"""What CONTRIBUTING.md says: where a new data set, policy, objective and study go. Each is added as told there, and used."""
import pandas as pd
import torch

from influence_aug.augment.augmenter import load_generator
from influence_aug.augment.objectives import FixedHead
from influence_aug.core.data import Images, draw_splits
from influence_aug.core.datasets import DATASETS, get_source
from influence_aug.core.files import source_from_images
from influence_aug.studies.commands import STUDIES, ia_run, ia_sweep
from influence_aug.studies.methods import METHODS, fixed_policy, learned_policy, run_method
from influence_aug.studies.objectives import OBJECTIVES
from influence_aug.studies.run import Study, run


def stripes():
    "Three classes of colour images of 20×20 pixels: stripes, one every 2, 3 or 4 pixels."
    y = torch.arange(90) % 3
    x = torch.randint(0, 60, (90, 3, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for i, k in enumerate(y.tolist()): x[i, :, ::k+2] += 150
    return source_from_images(Images(x, y, ('two', 'three', 'four')), valid=.3, test=.2, name='stripes')


def test_a_data_set(monkeypatch, tmp_path):
    monkeypatch.setitem(DATASETS, 'stripes', stripes)
    assert get_source('stripes').name == 'stripes'
    ia_run(f'generator --dataset stripes --steps 20 --judge_steps 5 --bs 2 --threads 1 --out {tmp_path/"g.safetensors"} --results {tmp_path/"r.csv"}'.split())
    assert (pd.read_csv(tmp_path/'r.csv').dataset == 'stripes').all()
    splits, G = draw_splits(get_source('stripes')), load_generator(tmp_path/'g.safetensors')
    for method in ('random_tau', 'maxup', 'implicit'): assert 0 <= run_method(method, splits, G, steps=4, e_steps=4)[2]['accuracy'] <= 100


def test_a_policy(few_to_look_at, monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, 'mirror', fixed_policy(lambda G: lambda x: x.flip(3)))
    row, = run(STUDIES['mnist'], tmp_path/'r.csv', method='mirror', scale='sample', steps=2)
    assert row['method'] == 'mirror' and '--method mirror' in row['command']


class Bright(FixedHead):
    "Rewards bright images."
    def value(self, x_aug, y): return -x_aug.mean()


def test_an_objective(few_to_look_at, monkeypatch, tmp_path):
    monkeypatch.setitem(OBJECTIVES, 'bright', learned_policy(objective=Bright))
    row, = run(STUDIES['objectives'], tmp_path/'r.csv', objective='bright', scale='sample', steps=2, e_steps=2)
    assert row['objective'] == 'bright' and row['acc_aug'] >= 0


def roots(
    n: int = 2,  # What to take the root of
):
    "Square root of a number."
    return dict(root=n**.5)


def test_a_study(monkeypatch, tmp_path):
    monkeypatch.setitem(STUDIES, 'roots', Study('roots', roots, ('n',), 'roots.csv', lambda: [dict(n=n) for n in (4, 9, 16)]))
    ia_run(['roots', '--n', '9', '--results', str(tmp_path/'r.csv')])
    ia_sweep(['roots', '--processes', '1', '--results', str(tmp_path/'r.csv')])
    assert pd.read_csv(tmp_path/'r.csv').root.tolist() == [3, 2, 4]
