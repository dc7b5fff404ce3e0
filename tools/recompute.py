"""Run the command of one row of a results file again and compare every number: `python tools/recompute.py results/mnist.csv --row 3`.

Exit status 1 if a number differs by more than the tolerance. On the same machine the numbers are the same; another processor, or
another number of threads, sums in another order, and training amplifies it. Times, and what is made of them, are not compared.
"""
import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
TIMES = {'seconds', 'train_seconds', 'seconds_to_learn', 'e_seconds', 'fit_seconds', 'peak_mib', 'peak_before_mib', 'ours', 'peer', 'ratio', 'version'}
TEXTS = 'measure', 'candidate', 'check', 'what', 'name', 'kind', 'experiment', 'params'


def again(command, file, folder):
    "The file like `file` that `command` writes when its results go to `folder`."
    program, *arguments = shlex.split(command)
    if program == 'python':
        words, cwd, made = [sys.executable, ROOT/arguments[0], *arguments[1:]], folder, folder/'results'/file.name
    else:
        out = ['--out', folder/'generator.safetensors'] if 'generator' in arguments[:1] else []
        made = folder/file.name
        words, cwd = [Path(sys.executable).parent/program, *arguments, *out, '--results', made], ROOT
    subprocess.run(words, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return pd.read_csv(made)


def same_row(rows, at, new):
    "The row of `new` that stands for row `at` of `rows`: of those with the same texts, the one in the same place."
    row = rows.iloc[at]
    texts = [k for k in TEXTS if k in rows and k in new]
    alike = lambda table: (table[texts].astype(str) == row[texts].astype(str)).all(axis=1)
    place = (alike(rows.iloc[:at]) & (rows.iloc[:at].command == row.command)).sum()
    return new[alike(new)].iloc[place]


def compare(row, new, tolerance):
    "One line for each number of `row`, with the recomputed one; returns whether all agree."
    agree = True
    for name, old in row.items():
        if name in TIMES or row.get('measure') in TIMES or isinstance(old, (str, bool)) or pd.isna(old): continue
        same = abs(float(new[name])-old) <= tolerance*max(1, abs(old))
        agree &= same
        print(f'{name:26}{old:12.5g}{float(new[name]):12.5g}  {"agrees" if same else "DIFFERS"}')
    return agree


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('file', type=Path)
    p.add_argument('--row', type=int, default=0, help='which row, from 0')
    p.add_argument('--tolerance', type=float, default=1e-6, help='relative, or absolute below 1')
    a = p.parse_args()
    if not a.file.exists(): sys.exit(f'No file {a.file}: expected one of results/*.csv.')
    rows = pd.read_csv(a.file).astype(object) if a.file.suffix == '.csv' else pd.DataFrame()
    if 'command' not in rows: sys.exit(f'{a.file} has no column of commands: expected a results file, one of results/*.csv.')
    if not 0 <= a.row < len(rows): sys.exit(f'{a.file} has rows 0 to {len(rows)-1}; there is no row {a.row}.')
    row = rows.iloc[a.row]
    print(row.command, flush=True)
    with TemporaryDirectory() as d: agree = compare(row, same_row(rows, a.row, again(row.command, a.file, Path(d))), a.tolerance)
    sys.exit(0 if agree else 'Not the same numbers.')


if __name__ == '__main__': main()
