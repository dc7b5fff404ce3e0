"""Our warps against torchvision's and kornia's: are they equal, and what do they cost? One row a comparison in results/speed.csv.

    python benchmarks/warp.py

128 MNIST digits of the embedded sample, one CPU thread, float32. `ours` and `peer` are medians in milliseconds over 30
alternating calls, `ratio` is ours over peer (below 1: ours is faster), `difference` the largest difference of a pixel inside
the border where both compute the same. kornia is measured if it is installed (`pip install kornia`); the library does not need
it. Rows that are there already are not measured again.
"""
import math
import statistics
import time
from pathlib import Path

import torch
import torchvision
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import v2

from influence_aug.augment.augmenter import load_generator
from influence_aug.augment.classifier import small_cnn
from influence_aug.augment.transforms import pixel_grid, random_affine_flow, recolor, warp
from influence_aug.augment.wgan import tau_uniform
from influence_aug.core.datasets import mnist_sample
from influence_aug.studies.results import append_rows, read_results

RESULTS, N, SIZE = 'results/speed.csv', 128, 28


def milliseconds(*fs, repeats=30):
    "Median time of each function, called in turn."
    times = [[] for _ in fs]
    for _ in range(repeats+3):
        for t, f in zip(times, fs):
            start = time.perf_counter()
            f()
            t.append(1000*(time.perf_counter()-start))
    return [statistics.median(t[3:]) for t in times]


def compare(what, ours, peer, peer_name, same=None):
    "Time `ours` against `peer`; `same` is a pair of results to be compared inside a border of two pixels, if there is one."
    if Path(RESULTS).exists() and (read_results(RESULTS).what == what).any():
        return print(f'{what}: is there already')
    a, b = milliseconds(ours, peer)
    difference = '' if same is None else f'{(same[0]-same[1])[..., 2:-2, 2:-2].abs().max().item():.1e}'
    print(f'{what}: ours {a:.2f} ms, {peer_name} {b:.2f} ms, ratio {a/b:.2f}, difference {difference}', flush=True)
    append_rows(RESULTS, [dict(what=what, ours=f'{a:.3f}', peer=f'{b:.3f}', ratio=f'{a/b:.3f}', difference=difference, unit='ms',
                               n=N, peer_name=peer_name, machine='1 CPU thread', command='python benchmarks/warp.py')])


def rotation_flow(angle):
    "Flows (n, SIZE, SIZE, 2) of rotations by `angle` (n,)."
    matrix = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    return torch.einsum('nab,hwb->nhwa', matrix, pixel_grid(SIZE, SIZE))


def randomly_warped(x): return warp(x, random_affine_flow(N, SIZE, like=x))


def against_torchvision(x, angle, shift):
    name, bilinear = f'torchvision {torchvision.__version__}', TF.InterpolationMode.BILINEAR
    rotated = lambda o, a: TF.affine(o, a, [0, 0], 1., [0, 0], bilinear)
    ours, theirs = (lambda: warp(x, rotation_flow(angle))), (lambda: torch.stack([*map(rotated, x, angle.rad2deg().tolist())]))
    compare('rotation, one angle per image, vs torchvision affine', ours, theirs, name, (ours(), theirs()))
    ours = lambda: warp(x, pixel_grid(SIZE, SIZE)+shift)
    theirs = lambda: torch.cat([TF.elastic(o[None], s[None]) for o, s in zip(x, shift)])
    compare('one flow per image, vs torchvision elastic', ours, theirs, name, (ours(), theirs()))
    tfm = v2.RandomAffine(20, (.1, .1), (.8, 1.2), (-15, 15), bilinear)
    compare('drawing and applying a random affine map per image, vs torchvision RandomAffine',
            lambda: randomly_warped(x), lambda: torch.stack([tfm(o) for o in x]), name)


def against_kornia(x, angle, shift):
    try: import kornia
    except ImportError: return print('kornia is not installed: pip install kornia')
    name, K = f'kornia {kornia.__version__}', kornia.geometry.transform
    ours, theirs = (lambda: warp(x, rotation_flow(angle))), (lambda: K.rotate(x, -angle.rad2deg()))
    compare('rotation, one angle per image, vs kornia rotate', ours, theirs, name, (ours(), theirs()))
    flow = pixel_grid(SIZE, SIZE)+shift
    pixels = (flow+1)*SIZE/2-.5
    ours, theirs = (lambda: warp(x, flow)), (lambda: K.remap(x, pixels[..., 0], pixels[..., 1], align_corners=True))
    compare('one flow per image, vs kornia remap', ours, theirs, name, (ours(), theirs()))
    tfm = kornia.augmentation.RandomAffine(20., (.1, .1), (.8, 1.2), 15., p=1.)
    compare('drawing and applying a random affine map per image, vs kornia RandomAffine',
            lambda: randomly_warped(x), lambda: tfm(x), name)


def generator_against_classifier(x):
    "What an augmented batch costs, beside the forward pass of the classifier that will see it."
    G, F, tau = load_generator('mnist').eval(), small_cnn(1, 10).eval(), tau_uniform(N)
    compare('G: τ to filters, flow and warped images, vs one forward pass of F', lambda: G(x, tau), lambda: F(x), 'small_cnn')
    flow, (c_w, c_b) = G.spatial(tau), G.appearance(tau)
    compare('only the warp and the colour filter, vs one forward pass of F',
            lambda: recolor(warp(x, flow), c_w, c_b), lambda: F(x), 'small_cnn')


def main():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    x = mnist_sample().valid.x[:N].float()/255
    angle, shift = math.radians(20)*(2*torch.rand(N)-1), .2*(2*torch.rand(N, SIZE, SIZE, 2)-1)
    with torch.no_grad():
        against_torchvision(x, angle, shift)
        against_kornia(x, angle, shift)
        generator_against_classifier(x)


if __name__ == '__main__': main()
