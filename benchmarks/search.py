"""What was tried on the way to notebook 08a, judged on validation alone: `python benchmarks/search.py --variant NAME --seed 0` adds a row to results/search.csv.

A plain training loop instead of a Learner, so figures differ from those of `ia-estimator` by the order of random numbers.
"""
import time

import torch
import torch.nn.functional as F
from fastcore.script import call_parse
from functools import partial

from influence_aug.data import append_row, draw_splits, mnist
from influence_aug.estimator import load_generator, max_loss, min_loss
from influence_aug.head import frozen
from influence_aug.learner import small_cnn
from influence_aug.mnist import has_row
from influence_aug.policies import random_affine

G = load_generator('mnist').eval().requires_grad_(False)


def tau(x, sigma=1.): return G(x, (sigma*torch.randn(len(x), 128)).tanh())[0].clamp(0, 1)


def crop(x, pad=2):
    "All images cropped at once, each at its own place."
    n, _, h, w = x.shape
    x, r = F.pad(x, (pad,)*4), torch.arange(h)
    i, j = torch.randint(0, 2*pad+1, (n,)), torch.randint(0, 2*pad+1, (n,))
    return x[torch.arange(n)[:, None, None], :, (i[:, None]+r)[:, :, None], (j[:, None]+r)[:, None, :]].permute(0, 3, 1, 2)


def train(draw, splits, seed, steps):
    "F of notebook 06 on the batches that `draw(model, x, y, i, t)` makes, `i` the images' places and `t` the share of training done."
    torch.manual_seed(seed)
    x, y = splits.labelled.x.float()/255, splits.labelled.y
    model = small_cnn()
    opt = torch.optim.Adam(model.parameters(), 1e-2, betas=(.9, .99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=steps, pct_start=.25, cycle_momentum=False, div_factor=25, final_div_factor=4e3)
    order = torch.cat([torch.randperm(len(x)) for _ in range(-(-steps*64//len(x)))])
    for k in range(steps):
        i = order[64*k:64*(k+1)]
        with torch.no_grad(): xb, yb = draw(model, x[i], y[i], i, k/steps)
        model.train()
        loss = F.cross_entropy(model(xb), yb)
        opt.zero_grad(); loss.backward(); opt.step(); schedule.step()
    return model.eval()


def some(policy, p=.5):
    "A share `p` under `policy`, then all cropped."
    def draw(model, x, y, i, t):
        chosen, x = torch.rand(len(x)) < p, x.clone()
        if chosen.any(): x[chosen] = policy(x[chosen])
        return crop(x), y
    return draw


def widening(sigma):
    "τ of a width that is a function of the share of training done."
    return lambda model, x, y, i, t: some(partial(tau, sigma=sigma(t)))(model, x, y, i, t)


def phases(p):
    "Random τ of width 1.5 for a share of images that is a function of the share of training done."
    return lambda model, x, y, i, t: some(partial(tau, sigma=1.5), p(t))(model, x, y, i, t)


def best(k, p, value=max_loss, before_crop=False, sigma=1., policy=None, share=1., until=1.):
    "The best of `k` versions for a `share` of the images, chosen among cropped versions, or `before_crop`; for the others, and for all after `until`, any version."
    policy = policy or partial(tau, sigma=sigma)

    def draw(model, x, y, i, t):
        n = len(x)
        if before_crop:
            chosen, x = torch.rand(n) < p, x.clone()
            if chosen.any():
                versions = policy(x[chosen].repeat(k, 1, 1, 1))
                x[chosen] = pick(versions, values(model, versions, y[chosen], k, value).argmax(0))
            return crop(x), y
        versions, chosen = x.repeat(k, 1, 1, 1), torch.rand(k*n) < p
        versions[chosen] = policy(versions[chosen])
        versions = crop(versions)
        first, any_one, choosing = values(model, versions, y, k, value).argmax(0), torch.randint(k, (n,)), torch.rand(n) < share
        return pick(versions, torch.where(choosing & torch.tensor(t < until), first, any_one)), y
    return draw


def values(model, versions, y, k, value):
    with frozen(model): return value(model, versions, y.repeat(k)).view(k, len(y))


def pick(versions, chosen):
    "Version `chosen[i]` of image i."
    return versions.view(-1, len(chosen), *versions.shape[1:])[chosen, torch.arange(len(chosen))]


def hardest_of_batch(k=4, p=.5):
    "The 64 hardest of all 64·k versions, so that easy images drop out of the batch."
    def draw(model, x, y, i, t):
        versions, chosen = x.repeat(k, 1, 1, 1), torch.rand(k*len(x)) < p
        versions[chosen] = tau(versions[chosen])
        versions, y = crop(versions), y.repeat(k)
        with frozen(model): kept = max_loss(model, versions, y).topk(len(x)).indices
        return versions[kept], y[kept]
    return draw


def uphill(step, p=.5):
    "One step of length `step` in u, τ = tanh(u), along the gradient of F's loss."
    def draw(model, x, y, i, t):
        chosen, x = torch.rand(len(x)) < p, x.clone()
        u = torch.randn(int(chosen.sum()), 128, requires_grad=True)
        with frozen(model), torch.enable_grad():
            g, = torch.autograd.grad(F.cross_entropy(model(G(x[chosen], u.tanh())[0].clamp(0, 1)), y[chosen], reduction='sum'), u)
        x[chosen] = G(x[chosen], (u.detach()+step*g/(g.norm(dim=1, keepdim=True)+1e-12)).tanh())[0].clamp(0, 1)
        return crop(x), y
    return draw


def both(x): return tau(random_affine()(x))


VARIANTS = {
    'random_tau': some(tau), 'random_tau p=.75': some(tau, .75), 'affine': some(random_affine()),
    'tau growing': widening(lambda t: .3+1.7*t), 'tau shrinking': widening(lambda t: 2-1.7*t),
    'tau off at the end': phases(lambda t: .8 if t < .8 else 0.), 'tau late': phases(lambda t: .2 if t < .3 else .8),
    'hardest': best(4, .5), 'hardest p=.75': best(4, .75), 'hardest k=8 p=.5': best(8, .5), 'hardest k=8 p=.75': best(8, .75), 'hardest until .8': best(4, .5, until=.8),
    'hardest tau': best(4, .5, before_crop=True), 'hardest tau p=.75': best(4, .75, before_crop=True), 'hardest tau p=1': best(4, 1., before_crop=True),
    'hardest tau k=12': best(12, .5, before_crop=True), 'hardest tau k=3 p=.75 sigma=1.5': best(3, .75, before_crop=True, sigma=1.5),
    'hardest affine and tau p=.75': best(4, .75, before_crop=True, policy=both), 'easiest tau': best(4, .5, min_loss, before_crop=True),
    'hardest of the batch': hardest_of_batch(), 'uphill': uphill(1.),
}


@torch.no_grad()
def judged(model, data, name):
    z = torch.cat([model(o.float()/255) for o in data.x.split(500)])
    return {f'{name}_accuracy': round(100*(z.argmax(1) == data.y).float().mean().item(), 2), f'{name}_loss': round(F.cross_entropy(z, data.y).item(), 4)}


@call_parse
def main(
    variant: str = 'hardest',  # One of VARIANTS
    seed: int = 0,             # Draws the labelled images and everything else
    steps: int = 600,          # Of F
    threads: int = 1,          # Torch threads
    results: str = 'results/search.csv',  # Where the row goes
):
    "Train F with one variant and append its figures on validation to a results file; the test set is not touched."
    if variant not in VARIANTS: raise SystemExit(f"No variant {variant!r}: expected one of {', '.join(VARIANTS)}.")
    key = dict(variant=variant, seed=seed, steps=steps)
    if has_row(results, **key): return print(f'{results} has this run already: {key}')
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    splits, start = draw_splits(mnist(), frac=.01, seed=seed), time.time()
    model = train(VARIANTS[variant], splits, seed, steps)
    seconds = round(time.time()-start, 1)
    append_row(results, **key, **judged(model, splits.watch, 'watch'), **judged(model, splits.valid, 'valid'), seconds=seconds,
               command=f"python benchmarks/search.py --variant '{variant}' --seed {seed} --steps {steps} --threads {threads}")
