"""Influence through a head of 1,000 classes and 2,048 features, on 50,000 samples. Replaces its rows in results/large_head.csv.

    python benchmarks/large_head.py [--threads 2] [--n 50000] [--peers curvlinops pydvl kronfluence] [--times 10]

The features are drawn, in float32, and so is the arithmetic. Ours, in a process of its own: the head fitted to a tenth, then to all;
s_val to a residual of 1e-3; the values of all samples; one candidate, whose features are given, ranked as `rank_through_head` does.
Then each peer that is installed, in a process of its own too, on the same arrays and the same fitted head: conjugate gradients of
curvlinops and pyDVL for s_val to the same residual, kronfluence's EK-FAC for its scores. It is ended after so many times our seconds
for the same (s_val and values).
"""
import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from influence import as_linear, kronfluence_task
from influence_aug.core.batches import Mixture, mean_over
from influence_aug.influence.head import fit_head_batches, head_grad, head_hvp, sample_values, solve_head_by_cg, with_bias
from influence_aug.studies.results import append_rows

L2, SHARE, RTOL, RESULTS = 1e-2, .1, 1e-3, 'results/large_head.csv'
FEATURES, CLASSES, VALID, BS = 2048, 1000, 5000, 2500


def features(n, seed, shift=0.):
    "Features as a rectifier leaves them, (n, 2048), around the mean of a class, and labels; `shift` moves them, as an augmentation would."
    rng, centres = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, FEATURES, generator=centres)
    y = torch.randint(CLASSES, (n,), generator=rng)
    noise = torch.randn(n, FEATURES, generator=rng)
    return noise.mul_(.6).add_(means[y], alpha=.2).add_(shift*means.roll(1, 0)[y]).relu_(), y


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024


def in_batches(h, y): return list(zip(h.split(BS), y.split(BS)))


def residual_of(s, W, train, valid):
    "The residual of `s`, from products and a gradient in float64."
    double = lambda h: h.double()
    W, s = double(W), double(s)
    b = mean_over(in_batches(*valid), lambda h, y: head_grad(W, double(h), y))
    Hs = mean_over(in_batches(*train), lambda h, y: head_hvp(s, W, double(h)))+L2*s
    return ((b-Hs).norm()/b.norm()).item()


class Clock:
    "Seconds of each of several steps."
    def __init__(self): self.seconds, self.last = {}, time.time()
    def __call__(self, what):
        now = time.time()
        self.seconds[what], self.last = now-self.last, now
        print(f'  {what}: {self.seconds[what]:.1f} s, peak {peak():.0f} MiB', file=sys.stderr, flush=True)


def ours(n, folder):
    "Fit, s_val, values and one candidate; what peers need is left in `folder`."
    train, valid, copies = features(n, 1), features(VALID, 2), features(n, 1, shift=.1)
    batches, clock, before = in_batches(*train), Clock(), peak()
    tenth = fit_head_batches(batches[::10], CLASSES, L2)
    clock('fit to a tenth')
    fit = fit_head_batches(batches, CLASSES, L2, tenth.W, tol=1e-4)
    clock('fit')
    b = mean_over(in_batches(*valid), lambda h, y: head_grad(fit.W, h, y))
    found = solve_head_by_cg(fit.W, batches, L2, b, RTOL)
    clock('s_val')
    values = torch.cat([sample_values(found.x, fit.W, h, y) for h, y in batches])
    clock('values')
    augmented = in_batches(*copies)
    G = SHARE*(mean_over(augmented, lambda h, y: head_grad(fit.W, h, y))-mean_over(batches, lambda h, y: head_grad(fit.W, h, y)))
    first_order = -(found.x*G).sum().item()
    new = fit_head_batches(Mixture((1-SHARE, batches), (SHARE, augmented)), CLASSES, L2, fit.W, tol=1e-4)
    loss = lambda W: mean_over(in_batches(*valid), lambda h, y: F.cross_entropy(with_bias(h, W)@W.T, y)).item()
    change = loss(new.W)-loss(fit.W)
    clock('one candidate')
    after = peak()
    torch.save(dict(W=fit.W, s=found.x, values=values), Path(folder)/'ours.pt')
    with torch.no_grad(): accuracy = mean_over(in_batches(*valid), lambda h, y: (with_bias(h, fit.W)@fit.W.T).argmax(1).eq(y).float().mean()).item()
    told = (f'{fit.steps} Newton steps after {tenth.steps} on a tenth, gradient {fit.grad_norm:.1e}; s_val in {found.steps} products; validation '
            f'accuracy {accuracy:.3f}; candidate {change:+.4f}, to first order {first_order:+.4f}')
    return dict(route='ours', **{k.replace(' ', '_'): round(v, 1) for k, v in clock.seconds.items()}, seconds=round(sum(clock.seconds.values()), 1),
                residual=residual_of(found.x, fit.W, train, valid), peak_before_mib=round(before), peak_mib=round(after), note=told)


def loader(data): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=BS)


def flat(W): return torch.cat([W[:, :-1].flatten(), W[:, -1]])


def by_curvlinops(model, train, b):
    from curvlinops import CGInverseLinearOperator, HessianLinearOperator
    from curvlinops.examples import IdentityLinearOperator
    params = list(model.parameters())
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, in_batches(*train), check_deterministic=False)
    A = H+L2*IdentityLinearOperator([p.shape for p in params], b.device, b.dtype)
    return CGInverseLinearOperator(A, eps=0, tolerance=RTOL, max_iter=1000, max_tridiag_iter=0)@b


def by_pydvl(model, train, b):
    from pydvl.influence.torch.operator import CgOperator, HessianOperator
    op = CgOperator(HessianOperator(model, F.cross_entropy, loader(train)), regularization=L2, rtol=RTOL, atol=0.)
    return op.apply(b)


def by_kronfluence(model, train, valid, folder):
    "Scores by EK-FAC, summed over validation samples."
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    task, data = kronfluence_task(), [torch.utils.data.TensorDataset(*o) for o in (train, valid)]
    analyzer = Analyzer('head', prepare_model(nn.Sequential(model), task), task, cpu=True, output_dir=str(folder), disable_tqdm=True)
    analyzer.fit_all_factors('ekfac', data[0], per_device_batch_size=100, factor_args=FactorArguments('ekfac'))
    analyzer.compute_pairwise_scores('scores', 'ekfac', data[1], data[0], per_device_query_batch_size=100, per_device_train_batch_size=100,
                                     score_args=ScoreArguments(damping_factor=L2, aggregate_query_gradients=True))
    return analyzer.load_pairwise_scores('scores')['all_modules'].double().mean(0)


def theirs(route, n, folder):
    "One peer's seconds, and how near it comes to ours."
    train, valid, known = features(n, 1), features(VALID, 2), torch.load(Path(folder)/'ours.pt')
    model, before, start = as_linear(known['W']), peak(), time.time()
    if route == 'kronfluence':
        found = by_kronfluence(model, train, valid, folder)
        seconds, note = time.time()-start, f"Spearman with our values {spearmanr(found, known['values'])[0]:.3f}"
        return dict(route=route, seconds=round(seconds, 1), peak_before_mib=round(before), peak_mib=round(peak()), note=note)
    b = flat(mean_over(in_batches(*valid), lambda h, y: head_grad(known['W'], h, y)))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        s = dict(curvlinops=by_curvlinops, pydvl=by_pydvl)[route](model, train, b).detach().flatten()
    seconds, at = time.time()-start, CLASSES*FEATURES
    s = torch.cat([s[:at].view(CLASSES, FEATURES), s[at:, None]], 1)
    return dict(route=route, s_val=round(seconds, 1), seconds=round(seconds, 1), residual=residual_of(s, known['W'], train, valid), peak_before_mib=round(before),
                peak_mib=round(peak()), note='s_val alone, without a preconditioner')


def one(route, n, folder, threads):
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    return ours(n, folder) if route == 'ours' else theirs(route, n, folder)


def keep(row, command, threads):
    "Put `row` in place of the row of its command and route."
    if Path(RESULTS).exists():
        old = pd.read_csv(RESULTS)
        old[(old.command != command) | (old.route != row['route'])].to_csv(RESULTS, index=False)
    append_rows(RESULTS, [row | dict(machine=f'{threads} CPU thread'+'s'*(threads > 1), command=command)])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=50_000)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--times', type=float, default=10., help='a peer is ended after so many times our seconds')
    p.add_argument('--peers', nargs='*', default=['curvlinops', 'pydvl', 'kronfluence'])
    a = p.parse_args()
    command, limit = f'python benchmarks/large_head.py --n {a.n} --threads {a.threads} --times {a.times:g}', None
    with TemporaryDirectory() as folder:
        for route in ['ours', *a.peers]:
            print(route, flush=True)
            row = in_process(route, a, folder, limit)
            if route == 'ours': limit = a.times*(row['s_val']+row['values'])
            keep(dict(n=a.n)|row, command, a.threads)
            print(row, flush=True)


def in_process(route, a, folder, limit):
    "The row of `route`, or one that says why there is no figure."
    code = f'import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import large_head; row = large_head.one({route!r}, {a.n}, {folder!r}, {a.threads}); print("ROW", json.dumps(row))'
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    try: out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return dict(route=route, seconds=round(limit, 1), note=f'ended after {a.times:g} times our seconds for s_val and values')
    found = [o[4:] for o in out.splitlines() if o.startswith('ROW ')]
    return json.loads(found[0]) if found else dict(route=route, note='failed: see its own message')


if __name__ == '__main__': main()
