"""Every path behind a heavy run, at a tiny size."""
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from influence_aug.data import mnist_sample
from influence_aug.estimator import load_generator
from influence_aug.mnist import METHODS, demo, main, summarise
from influence_aug.objectives import OBJECTIVES, estimator
from influence_aug.quality import generator

ROOT = Path(__file__).parents[1]
TINY = dict(scale='sample', steps=2, e_steps=2)


@pytest.mark.parametrize('method', METHODS)
def test_each_method_writes_one_row_and_does_not_run_again(method, tmp_path, capsys):
    out = tmp_path/'mnist.csv'
    main(method=method, seed=1, results=str(out), **TINY)
    row = pd.read_csv(out).iloc[0]
    assert row.method == method and row.seed == 1 and row['scale'] == 'sample' and 0 <= row.accuracy <= 100
    capsys.readouterr()
    main(method=method, seed=1, results=str(out), **TINY)
    assert 'has this run already' in capsys.readouterr().out and len(pd.read_csv(out)) == 1


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_each_objective_writes_one_row_and_a_picture(objective, tmp_path, capsys):
    out = tmp_path/'estimator.csv'
    estimator(objective=objective, results=str(out), **TINY)
    row = pd.read_csv(out).iloc[0]
    assert row.objective == objective and 0 <= row.accuracy <= 100 and row.watch_loss > 0
    assert Image.open(tmp_path/'estimator'/f'{objective}.png').size == (20*28, 3*28)
    capsys.readouterr()
    estimator(objective=objective, results=str(out), **TINY)
    assert 'has this run already' in capsys.readouterr().out and len(pd.read_csv(out)) == 1


def test_unknown_objective(tmp_path):
    with pytest.raises(SystemExit, match="Unknown objective 'best': expected one of none, crop"): estimator(objective='best', results=str(tmp_path/'r.csv'))


def test_generator_trained_on_the_spot(tmp_path):
    main(method='random_tau', results=str(tmp_path/'mnist.csv'), retrain_generator=True, g_steps=20, **TINY)
    assert '--retrain_generator --g_steps 20' in pd.read_csv(tmp_path/'mnist.csv').command[0]


def test_mistakes_are_named_before_any_work(tmp_path):
    with pytest.raises(SystemExit, match="Unknown method 'best': expected one of none, crop"): main(method='best', results=str(tmp_path/'r.csv'))
    with pytest.raises(ValueError, match="Unknown scale 'tiny'"): main(scale='tiny', results=str(tmp_path/'r.csv'))


def test_generator_command(tmp_path):
    generator(dataset='sample', steps=20, bs=2, judge_steps=5, threads=1, out=str(tmp_path/'g.safetensors'), results=str(tmp_path/'wgan.csv'))
    rows = pd.read_csv(tmp_path/'wgan.csv')
    assert {'label_keeping_uniform', 'label_keeping_corner', 'label_keeping_affine', 'diversity_vs_affine', 'train_seconds', 'identity_distance', 'sliced_wasserstein'} <= set(rows.measure)
    assert sorted(p.suffix for p in tmp_path.glob('g.*')) == ['.png', '.safetensors']
    main(method='random_tau', generator=str(tmp_path/'g.safetensors'), results=str(tmp_path/'mnist.csv'), **TINY)


def test_generator_of_a_folder_of_colour_images(tmp_path):
    data = mnist_sample().pool
    for k in range(3):
        (tmp_path/'images'/data.vocab[k]).mkdir(parents=True)
        for i, x in enumerate(data.x[data.y == k][:20]): Image.fromarray(x[0].numpy()).convert('RGB').save(tmp_path/'images'/data.vocab[k]/f'{i}.png')
    generator(dataset=str(tmp_path/'images'), steps=20, bs=2, judge_steps=5, threads=1, size=32, out=str(tmp_path/'g.safetensors'), results=str(tmp_path/'wgan.csv'))
    assert load_generator(tmp_path/'g.safetensors').config['size'] == 32 and (pd.read_csv(tmp_path/'wgan.csv').dataset == 'images').all()


def test_generator_of_nothing():
    with pytest.raises(SystemExit, match="No data set 'mnits': expected one of sample, mnist, cifar10, or a folder"): generator(dataset='mnits')


@pytest.mark.parametrize('retrain', [False, True])
def test_demo(tmp_path, capsys, retrain):
    demo(steps=5, e_steps=5, retrain_generator=retrain, g_steps=20, threads=1, out=str(tmp_path/'demo.png'))
    text = capsys.readouterr().out
    assert all(o in text for o in ('crop', 'random τ', 'hardest of 4', 'learned', 'test accuracy %', 'validation loss', 'seconds'))
    assert (tmp_path/'demo.png').stat().st_size > 5000 and (tmp_path/'demo.safetensors').exists()


def recompute_tool():
    spec = importlib.util.spec_from_file_location('recompute', ROOT/'tools'/'recompute.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize('kind', ['mnist', 'wgan'])
def test_rows_can_be_recomputed_and_a_wrong_one_is_found(tmp_path, capsys, kind):
    file, tool = tmp_path/f'{kind}.csv', recompute_tool()
    if kind == 'mnist': main(method='ours', results=str(file), **TINY)
    else: generator(dataset='sample', steps=20, bs=2, judge_steps=5, threads=1, out=str(tmp_path/'g.safetensors'), results=str(file))
    row = pd.read_csv(file).astype(object).iloc[0]
    (tmp_path/'again').mkdir()
    new = tool.again(row.command, tmp_path/'again')
    assert tool.compare(row, new, 1e-6)
    row[{'mnist': 'accuracy', 'wgan': 'value'}[kind]] += .5
    assert not tool.compare(row, new, 1e-6)
    assert 'DIFFERS' in capsys.readouterr().out


def test_recompute_names_a_row_that_is_not_there():
    out = subprocess.run([sys.executable, ROOT/'tools'/'recompute.py', ROOT/'results'/'mnist.csv', '--row', '9999'], capture_output=True, text=True)
    assert out.returncode == 1 and 'there is no row 9999' in out.stderr


def test_summary_by_hand():
    rows = pd.DataFrame([(m, s, a) for m, acc in {'crop': (90, 92), 'x': (91, 95)}.items() for s, a in enumerate(acc)], columns=['method', 'seed', 'accuracy'])
    table = summarise(rows)
    assert table.loc['x', 'accuracy'] == 93 and table.loc['x', 'minus crop'] == 2
    assert table.loc['x', '± '] == pytest.approx(12.706*1.41421/2**.5, rel=1e-3)


def test_commands_are_installed():
    ours = {e.name: e for e in importlib.metadata.entry_points(group='console_scripts') if e.value.startswith('influence_aug')}
    assert set(ours) == {'ia-mnist', 'ia-estimator', 'ia-generator', 'ia-demo'} and all(callable(e.load()) for e in ours.values())
    out = subprocess.run([Path(sys.executable).parent/'ia-demo', '--help'], capture_output=True, text=True)
    assert out.returncode == 0 and '--retrain_generator' in out.stdout
