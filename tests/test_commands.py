"""Every path behind a heavy run, at a tiny size."""
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from fastcore.script import anno_parser
from PIL import Image

from influence_aug.core.datasets import mnist_sample
from influence_aug.augment.augmenter import load_generator
from influence_aug.studies.commands import STUDIES, ia_run
from influence_aug.studies.demo import demo
from influence_aug.studies.methods import METHODS
from influence_aug.studies.objectives import OBJECTIVES
from influence_aug.studies.run import run

ROOT = Path(__file__).parents[1]
TINY = dict(scale='sample', frac=.0025, steps=2, e_steps=2)


def study(name, results, **settings): return run(STUDIES[name], results, **settings)


@pytest.mark.parametrize('method', METHODS)
def test_each_method_writes_one_row_and_does_not_run_again(few_to_look_at, method, tmp_path, capsys):
    out = tmp_path/'mnist.csv'
    study('mnist', out, method=method, seed=1, **TINY)
    row = pd.read_csv(out).iloc[0]
    assert row.method == method and row.seed == 1 and row['scale'] == 'sample' and 0 <= row.accuracy <= 100
    capsys.readouterr()
    assert study('mnist', out, method=method, seed=1, **TINY) is None
    assert 'has this run already' in capsys.readouterr().out and len(pd.read_csv(out)) == 1


def test_a_longer_run_is_another_run(few_to_look_at, tmp_path):
    for steps in (2, 3, 2): study('mnist', tmp_path/'mnist.csv', method='none', **TINY | dict(steps=steps))
    assert pd.read_csv(tmp_path/'mnist.csv').steps.tolist() == [2, 3]


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_each_objective_writes_one_row_and_a_picture(few_to_look_at, objective, tmp_path):
    out = tmp_path/'estimator.csv'
    study('objectives', out, objective=objective, pictures=str(tmp_path/'estimator'), **TINY)
    row = pd.read_csv(out).iloc[0]
    assert row.objective == objective and 0 <= row.accuracy <= 100 and row.holdout_loss > 0
    assert Image.open(tmp_path/'estimator'/f'{objective}.png').size == (20*28, 3*28)


@pytest.mark.parametrize('variant', ['random_tau', 'tau growing', 'tau late', 'maxup', 'maxup until .8', 'maxup tau', 'hardest of the batch', 'uphill'])
def test_each_kind_of_variant_writes_one_row(few_to_look_at, variant, tmp_path):
    study('search', tmp_path/'search.csv', variant=variant, scale='sample', steps=2)
    row = pd.read_csv(tmp_path/'search.csv').iloc[0]
    assert row.variant == variant and 0 <= row.holdout_accuracy <= 100 and row.valid_loss > 0


def test_generator_trained_on_the_spot(few_to_look_at, tmp_path):
    study('mnist', tmp_path/'mnist.csv', method='random_tau', retrain_generator=True, g_steps=20, **TINY)
    assert '--retrain_generator --g_steps 20' in pd.read_csv(tmp_path/'mnist.csv').command[0]


@pytest.mark.parametrize('words, message', [
    ('mnist --method best', "Unknown method 'best': expected one of none, crop"), ('mnist --scale tiny', "Unknown scale 'tiny': expected one of full, sample"),
    ('objectives --objective best', "Unknown objective 'best': expected one of none, crop"), ('search --variant best', "No variant 'best': expected one of random_tau"),
    ('generator --dataset mnits', "No data set 'mnits': expected one of sample, mnist, cifar10, or a folder"), ('cooking', "Unknown study 'cooking'")])
def test_mistakes_are_named_before_any_work(tmp_path, words, message):
    with pytest.raises(SystemExit, match=message): ia_run([*words.split(), '--results', str(tmp_path/'r.csv')])
    assert not (tmp_path/'r.csv').exists()


def test_generator_command(few_to_look_at, tmp_path):
    study('generator', tmp_path/'wgan.csv', dataset='sample', steps=20, bs=2, judge_steps=5, threads=1, out=str(tmp_path/'g.safetensors'))
    rows = pd.read_csv(tmp_path/'wgan.csv')
    assert {'label_keeping_uniform', 'label_keeping_corner', 'label_keeping_affine', 'diversity_vs_affine', 'train_seconds', 'identity_distance', 'sliced_wasserstein'} <= set(rows.measure)
    assert sorted(p.suffix for p in tmp_path.glob('g.*')) == ['.png', '.safetensors']
    study('mnist', tmp_path/'mnist.csv', method='random_tau', generator=str(tmp_path/'g.safetensors'), **TINY)


def test_generator_of_a_folder_of_colour_images(tmp_path):
    data = mnist_sample().pool
    for k in range(3):
        (tmp_path/'images'/data.vocab[k]).mkdir(parents=True)
        for i, x in enumerate(data.x[data.y == k][:20]): Image.fromarray(x[0].numpy()).convert('RGB').save(tmp_path/'images'/data.vocab[k]/f'{i}.png')
    study('generator', tmp_path/'wgan.csv', dataset=str(tmp_path/'images'), steps=20, bs=2, judge_steps=5, threads=1, size=32, out=str(tmp_path/'g.safetensors'))
    assert load_generator(tmp_path/'g.safetensors').config['size'] == 32 and (pd.read_csv(tmp_path/'wgan.csv').dataset == 'images').all()


def test_demo(tmp_path, capfd):
    demo(sets=1, steps=10, e_steps=10, out=str(tmp_path/'demo.png'))
    text = capfd.readouterr().out
    assert all(o in text for o in ('crop', 'random τ', 'labels added', 'learned', 'decision', 'Learned: ', 'points'))
    assert text.count('on the watching half') == 5 and not any(o in text for o in '█\r'), 'a line for each way of training, no fragments of bars'
    assert (tmp_path/'demo.png').stat().st_size > 5000 and (tmp_path/'demo.safetensors').exists()


def recompute_tool():
    spec = importlib.util.spec_from_file_location('recompute', ROOT/'tools'/'recompute.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize('name, settings', [
    ('mnist', dict(method='maxup', **TINY)), ('search', dict(variant='uphill', scale='sample', steps=2)), ('toy', dict(rounds=1, points=3)),
    ('generator', dict(dataset='sample', steps=20, bs=2, judge_steps=5, threads=1))])
def test_rows_can_be_recomputed_and_a_wrong_one_is_found(few_to_look_at, tmp_path, capsys, monkeypatch, name, settings):
    "The toy's in a process of its own, as all are; the others in this one, which has the smaller sample."
    file, tool = tmp_path/'r.csv', recompute_tool()
    if name != 'toy': monkeypatch.setattr(tool, 'subprocess', SimpleNamespace(run=lambda words, **_: ia_run([*map(str, words[1:])]), DEVNULL=None))
    study(name, file, **settings | (dict(out=str(tmp_path/'g.safetensors')) if name == 'generator' else {}))
    rows = pd.read_csv(file).astype(object)
    (tmp_path/'again').mkdir()
    new, at = tool.again(rows.command[0], file, tmp_path/'again'), len(rows)//2
    row = rows.iloc[at]
    assert tool.compare(row, tool.same_row(rows, at, new), 1e-6)
    number = next(k for k in ('accuracy', 'holdout_loss', 'value') if k in row)
    row[number] += .5
    assert not tool.compare(row, tool.same_row(rows, at, new), 1e-6)
    assert 'DIFFERS' in capsys.readouterr().out


def test_recompute_names_a_row_that_is_not_there():
    out = subprocess.run([sys.executable, ROOT/'tools'/'recompute.py', ROOT/'results'/'mnist.csv', '--row', '9999'], capture_output=True, text=True)
    assert out.returncode == 1 and 'there is no row 9999' in out.stderr
    for file, words in [('nope.csv', 'No file'), ('demo.txt', 'no column of commands')]:
        out = subprocess.run([sys.executable, ROOT/'tools'/'recompute.py', ROOT/'results'/file], capture_output=True, text=True)
        assert out.returncode == 1 and words in out.stderr


def test_commands_are_installed():
    ours = {e.name: e for e in importlib.metadata.entry_points(group='console_scripts') if e.value.startswith('influence_aug')}
    assert set(ours) == {'ia-run', 'ia-sweep', 'ia-mnist', 'ia-estimator', 'ia-generator', 'ia-demo'} and all(callable(e.load()) for e in ours.values())
    for name, command in ours.items():
        script = (Path(sys.executable).parent/name).read_text()
        module, function = command.value.split(':')
        assert f'from {module} import {function}' in script and script.startswith(f'#!{sys.executable}')
    assert '--e_steps' in anno_parser(demo).format_help()
