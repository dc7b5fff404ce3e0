"""Make the package's MNIST sample from the full set: `python tools/make_sample.py` (see nbs/core/05_datasets.ipynb).

Pool (6,000) and validation (2,000) come from the official training images, and from the parts of them that the full set's
own pool and validation come from, so that nothing learned on the full pool has seen a validation image of the sample.
"""
import hashlib
from pathlib import Path

import numpy as np
from influence_aug.core.data import per_class
from influence_aug.core.datasets import mnist

FILE = Path(__file__).parents[1]/'influence_aug'/'mnist_sample.npz'
SIZES = dict(pool=600, valid=200, test=200)


def main():
    source, arrays = mnist(), {}
    for name, n in SIZES.items():
        part = getattr(source, name)
        part = part[per_class(part.y, n, seed=0)]
        arrays |= {f'{name}_x': part.x[:, 0].numpy(), f'{name}_y': part.y.byte().numpy(), f'{name}_ids': part.ids.int().numpy()}
    np.savez_compressed(FILE, **arrays)
    print(f'{FILE}: {FILE.stat().st_size:,} bytes\n_SAMPLE_SHA256 = {hashlib.sha256(FILE.read_bytes()).hexdigest()!r}')


if __name__ == '__main__': main()
