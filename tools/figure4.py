"""Draw Figure 4 of the paper for images of CIFAR-10: `python tools/figure4.py nbs/images/figure4_cifar10.png`."""
import sys

import matplotlib.pyplot as plt
import torch

from influence_aug.core.datasets import cifar10
from influence_aug.augment.augmenter import load_generator
from influence_aug.augment.transforms import interpolate_tau
from influence_aug.augment.wgan import tau_uniform


def main(path, images=(100, 3600), seed=0):
    G, x = load_generator('cifar10').eval(), cifar10().valid.x
    torch.manual_seed(seed)
    fig, axs = plt.subplots(len(images), 1, figsize=(6, 3.2*len(images)))
    for ax, i in zip(axs, images): interpolate_tau(G, x[i].float()/255, *tau_uniform(2)).show(ax=ax)
    fig.tight_layout()
    fig.savefig(path, dpi=80)


if __name__ == '__main__': main(sys.argv[1])
