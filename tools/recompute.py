"""Run the command of one row of a results file again and compare every number: `python tools/recompute.py results/mnist.csv --row 3`.

Exit status 1 if a number differs by more than the tolerance. On the same machine the numbers are the same; another processor, or
another number of threads, sums in another order, and training amplifies it.
"""
import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

WRITES = {'ia-generator': 'generator.safetensors'}
TIMES = 'seconds', 'train_seconds', 'version'


def again(command, folder):
    "The results file that `command` writes when run in `folder`."
    program, *arguments = shlex.split(command)
    out = ['--out', folder/WRITES[program]] if program in WRITES else []
    subprocess.run([Path(sys.executable).parent/program, *arguments, *out, '--results', folder/'again.csv'], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return pd.read_csv(folder/'again.csv')


def compare(row, new, tolerance):
    "One line for each number of `row`, with the recomputed one; returns whether all agree."
    if 'measure' in row: new = new[new.measure == row.measure]
    new, agree = new.iloc[0], True
    for name, old in row.items():
        if name in TIMES or row.get('measure') in TIMES or not isinstance(old, (int, float)) or pd.isna(old): continue
        same = abs(new[name]-old) <= tolerance*max(1, abs(old))
        agree &= same
        print(f'{name:24}{old:12.5g}{new[name]:12.5g}  {"agrees" if same else "DIFFERS"}')
    return agree


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('file')
    p.add_argument('--row', type=int, default=0, help='which row, from 0')
    p.add_argument('--tolerance', type=float, default=1e-6, help='relative, or absolute below 1')
    a = p.parse_args()
    rows = pd.read_csv(a.file).astype(object)
    if not 0 <= a.row < len(rows): sys.exit(f'{a.file} has rows 0 to {len(rows)-1}; there is no row {a.row}.')
    row = rows.iloc[a.row]
    print(row.command, flush=True)
    with TemporaryDirectory() as d: agree = compare(row, again(row.command, Path(d)), a.tolerance)
    sys.exit(0 if agree else 'Not the same numbers.')


if __name__ == '__main__': main()
