"""Influence checked against dense algebra, retraining and its peers: one row a check in results/influence.csv.

    python benchmarks/influence.py                # every check that has no row yet
    python benchmarks/influence.py head speed     # only these: head, wide, peers, ekfac, convex, cnn, speed, scaling

MNIST, seed 0, 600 labels unless a check says otherwise. Peers (pyDVL, curvlinops, dattri, kronfluence) are
measured if they are installed.
Samples that were retrained go to results/influence_retrained.csv, the scaling curve to results/influence_scaling.csv.
"""
import argparse
import functools
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO

import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import nn
from torch.func import grad, hessian, vmap
from torchvision.transforms import v2

from influence_aug.augment.classifier import small_cnn, train_classifier
from influence_aug.core.batches import Batches
from influence_aug.core.data import draw_splits, per_class
from influence_aug.core.datasets import mnist
from influence_aug.influence.body import features, split_head
from influence_aug.influence.head import (fit_head, head_grad, head_hessian, head_hvp, head_loss,
                                          kronecker_inverse, sample_values, solve_head_by_cg,
                                          validation_ihvp)
from influence_aug.influence.influence import Influence
from influence_aug.influence.solvers import Curvature, cg, conjugate_gradient, hvp, lissa
from influence_aug.studies.results import append_rows, read_results

CHECKS, RETRAINED, SCALING = 'results/influence.csv', 'results/influence_retrained.csv', 'results/influence_scaling.csv'
L2 = 1e-2


def command(): return 'python benchmarks/influence.py '+' '.join(sys.argv[1:])


def record(check, value, target='', note=''):
    if done(check): return
    print(f'{check}: {value:.4g} {target} {note}', flush=True)
    append_rows(CHECKS, [dict(check=check, value=f'{value:.6g}', target=target, note=note,
                              machine=f'{torch.get_num_threads()} CPU thread', command=command())])


def done(check):
    try: return (read_results(CHECKS).check == check).any()
    except FileNotFoundError: return False


def relative(x, truth): return ((x-truth).norm()/truth.norm()).item()


@functools.cache
def source():
    with redirect_stdout(StringIO()): return mnist()


@functools.cache
def classifier():
    splits = draw_splits(source(), frac=.01, seed=0)
    with redirect_stdout(StringIO()): return splits, train_classifier(splits, seed=0).model.eval()


@functools.cache
def head_problem():
    "Features of F for 600 training and 2,500 validation digits, and its re-fitted head, in float64."
    splits, model = classifier()
    body, _ = split_head(model)
    (h, y), (h_val, y_val) = ((features(body, d.x.float()/255).double(), d.y) for d in (splits.labelled, splits.tune))
    return h, y, h_val, y_val, fit_head(h, y, 10, L2).W


def curvature(W, h, y):
    product = lambda v, h, y: head_hvp(v.view_as(W), W, h).flatten()
    return Curvature(product, Batches((h, y)), L2, W.numel())


def head():
    "Closed forms, the derivative, conjugate gradients and LiSSA on F's head."
    h, y, h_val, y_val, W = head_problem()
    dense = hessian(lambda w: head_loss(w.view_as(W), h, y, L2))(W.flatten())
    record('head_exact_err', (head_hessian(W, h, L2)-dense).abs().max().item(), '<= 1e-10',
           "largest difference to autograd's dense Hessian, 650 parameters, float64")
    infl = Influence(nn.Linear(h.shape[1], 10).double(), (h, y), (h_val, y_val), l2=L2).fit()
    I_up = lambda i: infl.upweighting(h[i:i+1], y[i:i+1]).item()
    record('fd_err', max(abs(I_up(i)-by_differences(i, h, y, h_val, y_val, W)) for i in range(10)), '<= 1e-5',
           'I_up of 10 samples against central differences of re-fitted heads, eps 1e-5')
    b, A = head_grad(W, h_val, y_val).flatten(), curvature(W, h, y)
    s = torch.linalg.solve(dense, b)
    M = kronecker_inverse(W, [(h, y)], L2)
    found = conjugate_gradient(A, b, rtol=1e-4, precondition=lambda v: M(v.view_as(W)).flatten())
    record('cg_err', relative(found.x, s), '<= 2e-4',
           f'relative error of s, rtol 1e-4, Kronecker preconditioner, {found.steps} steps')
    record('cg_residual_gap', abs(found.residual-relative(dense@found.x, b)), '<= 1e-12',
           f'reported residual {found.residual:.3e} against the dense one')
    plain = cg(A, b, rtol=1e-4)
    record('cg_err_plain', relative(plain.x, s), '', f'the same without preconditioner, {plain.steps} steps')
    errors = [relative(lissa(A, b, passes=50, seed=k).x, s) for k in range(5)]
    record('lissa_err_50', max(errors), '<= 0.04',
           f'largest of seeds 0-4, mean {statistics.mean(errors):.4f}; 50 passes, batches of 64, scale found by '
           'power iteration')


def by_differences(i, h, y, h_val, y_val, W, eps=1e-5):
    "Derivative of the validation loss in the weight of sample i, from two fits by Newton on autograd's derivatives."
    def val_loss(eps):
        f = lambda w: head_loss(w.view_as(W), h, y, L2)+eps*head_loss(w.view_as(W), h[i:i+1], y[i:i+1])
        w = W.flatten()
        for _ in range(3):
            H = head_hessian(w.view_as(W), h, L2)+eps*head_hessian(w.view_as(W), h[i:i+1])
            w = w-torch.linalg.solve(H, grad(f)(w))
        return head_loss(w.view_as(W), h_val, y_val)
    return ((val_loss(eps)-val_loss(-eps))/(2*eps)).item()


def wide():
    "Steps of conjugate gradients for a head on 512 features of a wider F."
    splits, _ = classifier()
    make_model = functools.partial(small_cnn, widths=(16, 32, 32, 512))
    with redirect_stdout(StringIO()): model = train_classifier(splits, make_model=make_model, seed=0).model
    body, _ = split_head(model)
    h, y = features(body, splits.labelled.x.float()/255).double(), splits.labelled.y
    for l2 in (1e-2, 1e-3):
        W = fit_head(h, y, 10, l2).W
        A, b = lambda V: head_hvp(V, W, h)+l2*V, head_grad(W, features(body, splits.tune.x.float()/255).double(),
                                                           splits.tune.y)
        for name, M in [('plain', None), ('kronecker', kronecker_inverse(W, [(h, y)], l2))]:
            record(f'cg_steps_512_{name}_{l2:g}', conjugate_gradient(A, b, 1e-6, precondition=M).steps, '',
                   f'products to residual 1e-6 with 512 features, l2 {l2:g}')


def peers():
    "LiSSA as other libraries have it: the same system, batches and number of passes; the best of four scales."
    h, y, h_val, y_val, W = head_problem()
    b = head_grad(W, h_val, y_val).flatten()
    s = torch.linalg.solve(head_hessian(W, h, L2), b)
    model, order = as_linear(W), as_linear_order(W)
    steps = 50*len(h)//64
    for name, run in [('pydvl', lissa_pydvl), ('dattri', lissa_dattri)]:
        try: found = {scale: relative(run(model, h, y, b[order], steps, scale), s[order]) for scale in (1, 2, 5, 10)}
        except ImportError as e: print(f'{name} is not installed ({e})'); continue
        scale = min(found, key=lambda k: found[k] if found[k] == found[k] else 1e9)
        record(f'lissa_err_50_{name}', found[scale], '',
               f'best of scales {list(found)}: {scale}; {steps} batches of 64')


def ekfac():
    "Values of 600 samples by kronfluence's EK-FAC approximation of the same matrix, against the exact ones."
    from tempfile import TemporaryDirectory
    h, y, h_val, y_val, W = head_problem()
    exact = sample_values(validation_ihvp(W, h, y, h_val, y_val, L2), W, h, y)
    start = time.time()
    try:
        with TemporaryDirectory() as folder:
            found = values_kronfluence(nn.Sequential(as_linear(W)), (h, y), (h_val, y_val), folder)
    except ImportError as e: return print(f'kronfluence is not installed ({e})')
    seconds = time.time()-start
    ours, = median_seconds(lambda: sample_values(validation_ihvp(W, h, y, h_val, y_val, L2), W, h, y), repeats=5)
    record('values_kronfluence', pearsonr(found, exact)[0], '',
           f'Pearson r with the exact values of 600 samples through the head; {seconds:.1f} s with its files, ours '
           f'exactly in {ours:.3f} s')


def kronfluence_task():
    "Cross-entropy, for training and for validation."
    from kronfluence.task import Task
    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0])
            labels = torch.multinomial(logits.detach().softmax(1), 1)[:, 0] if sample else batch[1]
            return F.cross_entropy(logits, labels, reduction='sum')
        def compute_measurement(self, batch, model): return F.cross_entropy(model(batch[0]), batch[1], reduction='sum')
    return Classification()


def values_kronfluence(model, train, valid, folder):
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments

    torch.manual_seed(0)
    task, train, valid = kronfluence_task(), *(torch.utils.data.TensorDataset(*o) for o in (train, valid))
    analyzer = Analyzer('head', prepare_model(model, task), task, cpu=True, output_dir=folder, disable_tqdm=True)
    analyzer.fit_all_factors('ekfac', train, per_device_batch_size=100, factor_args=FactorArguments('ekfac'))
    analyzer.compute_pairwise_scores('scores', 'ekfac', valid, train, per_device_query_batch_size=100,
                                     per_device_train_batch_size=100, score_args=ScoreArguments(damping_factor=L2))
    return analyzer.load_pairwise_scores('scores')['all_modules'].double().mean(0)


def as_linear(W):
    "`W` as an nn.Linear, whose parameters peers read as weight, then bias."
    model = nn.Linear(W.shape[1]-1, len(W)).to(W.dtype)
    with torch.no_grad(): model.weight.copy_(W[:, :-1]); model.bias.copy_(W[:, -1])
    return model


def as_linear_order(W):
    at = torch.arange(W.numel()).view_as(W)
    return torch.cat([at[:, :-1].flatten(), at[:, -1]])


def loader(h, y, **kwargs): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(h, y), **kwargs)


def lissa_pydvl(model, h, y, b, steps, scale):
    from pydvl.influence.torch.batch_operation import HessianBatchOperation
    from pydvl.influence.torch.operator import LissaOperator
    torch.manual_seed(0)
    op = LissaOperator(HessianBatchOperation(model, F.cross_entropy), loader(h, y, batch_size=64, shuffle=True),
                       regularization=L2, maxiter=steps, scale=scale, rtol=0, warn_on_max_iteration=False)
    return op.apply(b)


def lissa_dattri(model, h, y, b, steps, scale):
    from dattri.func.hessian import ihvp_lissa
    torch.manual_seed(0)
    def loss(w, h, y): return F.cross_entropy(h@w[:-10].view(10, -1).T+w[-10:], y.long())+L2/2*w.square().sum()
    run = ihvp_lissa(loss, batch_size=64, recursion_depth=steps, scaling=scale)
    w = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    return run((w, h, y.to(h)), b[None], in_dims=(None, 0, 0))[0]


def convex(n=1000, samples=60):
    "Multinomial logistic regression on 14×14 pixels: leave one out, replace one, fit again."
    s = source()
    train, valid = s.pool[per_class(s.pool.y, n//10, 0)], s.valid[:2000]
    pixels = lambda x: F.avg_pool2d(x.double()/255, 2).flatten(1)
    torch.manual_seed(0)
    x, y, x_val, y_val, x_aug = pixels(train.x), train.y, pixels(valid.x), valid.y, pixels(rotated(train.x))
    infl = Influence(nn.Linear(x.shape[1], 10).double(), (x, y), (x_val, y_val), l2=L2).fit()
    W = infl.problem.W
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:samples].tolist()
    at = x[chosen], y[chosen]
    first_order = {'removed': infl.change_if_removed(*at), 'replaced': infl.change_if_replaced(*at, x_aug[chosen])}
    predicted = {'removed': infl.newton_if_removed(*at), 'replaced': infl.newton_if_replaced(*at, x_aug[chosen])}
    def changed(i, kind):
        if kind == 'removed': return torch.cat([x[:i], x[i+1:]]), torch.cat([y[:i], y[i+1:]])
        return torch.cat([x[:i], x_aug[i:i+1], x[i+1:]]), y
    for kind, check, target in [('removed', 'loo_convex', 0.997), ('replaced', 'replace_convex', 0.993)]:
        actual = []
        for k, i in enumerate(chosen):
            h, labels = changed(i, kind)
            new = fit_head(h, labels, 10, L2*n/len(h), W).W
            actual.append((head_loss(new, x_val, y_val)-head_loss(W, x_val, y_val)).item())
            append_rows(RETRAINED, [dict(experiment='convex', kind=kind, sample=i,
                                         first_order=first_order[kind][k].item(), newton=predicted[kind][k].item(),
                                         actual=actual[-1], command=command())])
        note = f'Pearson r, 14x14 pixels, n {n}, l2 {L2}, {samples} samples'
        note += ', +-30 degrees and +-3 pixels'*(kind == 'replaced')
        record(check, pearsonr(predicted[kind], actual)[0], f'>= {target}',
               f"newton_if_{kind}: one step with the sample's own curvature; "+note)
        record(f'{check}_first_order', pearsonr(first_order[kind], actual)[0], f'>= {target}',
               f'change_if_{kind}; '+note)


def rotated(x):
    transform = v2.RandomAffine(30, translate=(3/28, 3/28))
    return torch.stack([transform(o) for o in x])


CNN_L2, PROXIMAL = 1e-2, 1e-2


def tanh_cnn():
    "Four convolutions and a linear layer, 654 parameters."
    layer = lambda a, stride: [nn.Conv2d(a, 4, 3, stride, 1), nn.Tanh()]
    return nn.Sequential(*layer(1, 2), *layer(4, 1), *layer(4, 2), *layer(4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(16, 10)).double()


def cnn(samples=40):
    "All layers of a small smooth network, retrained from its parameters; a proximal term makes the minimum unique."
    splits = draw_splits(source(), frac=.01, seed=0)
    pixels = lambda x: (F.avg_pool2d(x.double()/255, 2)-.13)/.3
    valid = splits.tune[torch.randperm(len(splits.tune), generator=torch.Generator().manual_seed(0))[:1000]]
    torch.manual_seed(2)
    x, y, x_val, y_val = pixels(splits.labelled.x), splits.labelled.y, pixels(valid.x), valid.y
    x_aug = pixels(rotated(splits.labelled.x))
    model = train_to_rest(tanh_cnn, x, y)
    with warnings.catch_warnings(record=True):
        infl = Influence(model, (x, y), (x_val, y_val), params='all', curvature='hessian', solver='exact', l2=CNN_L2,
                         damping=PROXIMAL, bs=100).fit()
    flat, theta, n = infl.problem.flat, infl.problem.theta, len(x)
    largest = infl.change_if_removed(x, y).detach().abs().argsort(descending=True)[:samples//2].tolist()
    others = [i for i in torch.randperm(n, generator=torch.Generator().manual_seed(1)).tolist() if i not in largest]
    chosen = largest+others[:samples-len(largest)]
    at = x[chosen], y[chosen]
    first_order = {'removed': infl.change_if_removed(*at).detach(),
                   'replaced': infl.change_if_replaced(*at, x_aug[chosen]).detach()}
    predicted = {'removed': infl.newton_if_removed(*at), 'replaced': infl.newton_if_replaced(*at, x_aug[chosen])}
    L_val, H = (lambda t: flat.loss(t, x_val, y_val)), infl.A.dense(theta)
    base, chol = L_val(theta), torch.linalg.cholesky(H)
    with torch.no_grad(): accuracy = (flat(theta, x_val).argmax(1) == y_val).double().mean().item()
    L = lambda t: flat.loss(t, x, y)+CNN_L2/2*t.square().sum()
    left = grad(L)(theta)
    def one(t, x, i): return flat.loss(t, x[i:i+1], y[i:i+1])/n
    def hessian_of_one(x, i):
        product = lambda v: hvp(lambda t: one(t, x, i), theta, v)
        return vmap(product, chunk_size=64)(torch.eye(len(theta), dtype=theta.dtype))
    for kind, check, target in [('removed', 'loo_cnn', '>= 0.94'), ('replaced', 'replace_cnn', '> 0.62, stretch 0.75')]:
        actual, newton = [], []
        for k, i in enumerate(chosen):
            new = kind == 'replaced'
            objective = lambda t: L(t)-one(t, x, i)+new*one(t, x_aug, i)-left@t+PROXIMAL/2*(t-theta).square().sum()
            t, left_over = descend(objective, theta, chol)
            exact_H = H-hessian_of_one(x, i)+(hessian_of_one(x_aug, i) if new else 0)
            actual.append((L_val(t)-base).item())
            newton.append((L_val(theta-torch.linalg.solve(exact_H, grad(objective)(theta)))-base).item())
            append_rows(RETRAINED, [dict(experiment='cnn', kind=kind, sample=i, first_order=first_order[kind][k].item(),
                                         newton=predicted[kind][k].item(), exact_newton=newton[-1], actual=actual[-1],
                                         exact_smallest_eigenvalue=torch.linalg.eigvalsh(exact_H)[0].item(),
                                         gradient_left=left_over, moved=(t-theta).norm().item(), command=command())])
        note = (f'{len(theta)} parameters, validation accuracy {accuracy:.3f}, l2 {CNN_L2}, d {PROXIMAL}, '
                f'gradient left {left.norm():.1e}, smallest eigenvalue of H + dI {torch.linalg.eigvalsh(H)[0]:.1e}')
        for name, p, t, what in [('', predicted[kind], target,
                                  f"newton_if_{kind}: one step with the sample's own Gauss-Newton curvature"),
                                 ('_first_order', first_order[kind], target, f'change_if_{kind}'),
                                 ('_exact_newton', torch.tensor(newton), '',
                                  f'one step with the exact Hessian of the changed loss; Spearman '
                                  f'{spearmanr(newton, actual)[0]:.3f}')]:
            half = pearsonr(p[samples//2:], actual[samples//2:])[0]
            record(check+name, pearsonr(p, actual)[0], t,
                   f'{what}; Pearson r of {samples} samples, {half:.3f} over the random half; {note}')


def train_to_rest(make_model, x, y, steps=1500):
    "Full-batch Adam to a gradient near zero of the loss with its L2 term."
    torch.manual_seed(0)
    model = make_model()
    opt = torch.optim.Adam(model.parameters(), 2e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(steps):
        opt.zero_grad()
        (F.cross_entropy(model(x), y)+CNN_L2/2*sum(p.square().sum() for p in model.parameters())).backward()
        opt.step()
        decay.step()
    return model


def descend(f, theta, chol, tol=1e-9):
    "Minimise `f` from `theta` by L-BFGS in coordinates in which the Hessian there, `chol` `chol`.T, is the identity."
    back = lambda u: theta+torch.linalg.solve_triangular(chol.T, u[:, None], upper=True)[:, 0]
    u = torch.zeros_like(theta, requires_grad=True)
    opt = torch.optim.LBFGS([u], max_iter=500, history_size=100, tolerance_grad=tol, tolerance_change=1e-16,
                            line_search_fn='strong_wolfe')
    def closure():
        opt.zero_grad()
        value = f(back(u))
        value.backward()
        return value
    opt.step(closure)
    closure()
    return back(u).detach(), u.grad.norm().item()


def median_seconds(*functions, repeats=20):
    "Median seconds of each function, called in turn so that a busy machine slows all alike."
    for f in functions: f()
    times = [[] for _ in functions]
    for _ in range(repeats):
        for f, seen in zip(functions, times):
            start = time.perf_counter()
            f()
            seen.append(time.perf_counter()-start)
    return [statistics.median(o) for o in times]


def speed():
    "Values in forwards of F, and s_val of a head against peers' conjugate gradients."
    splits, model = classifier()
    x, y = splits.unlabelled.x[:256].float()/255, splits.unlabelled.y[:256]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        all_layers = Influence(model, splits.labelled, splits.tune[:256], params='all',
                               solver=functools.partial(cg, max_steps=2)).fit()
    head_only = Influence(model, splits.labelled, splits.tune, l2=L2).fit()
    def forward():
        with torch.no_grad(): F.cross_entropy(model(x), y, reduction='none')
    f, a, h = median_seconds(forward, lambda: all_layers.values(x, y), lambda: head_only.values(x, y))
    note = f'batch 256, float32, one thread, median of 20 interleaved; a forward takes {1e3*f:.1f} ms'
    record('values_all_forwards', a/f, '<= 4', note)
    record('values_head_forwards', h/f, '<= 1.05', note)
    h, y, h_val, y_val, W = head_problem()
    s = validation_ihvp(W, h, y, h_val, y_val, L2)
    b, model, order = head_grad(W, h_val, y_val), as_linear(W), as_linear_order(W)
    solve = lambda rtol: solve_head_by_cg(W, [(h, y)], L2, b, rtol, preconditioner=None).x
    for name, make in [('pydvl', cg_pydvl), ('curvlinops', cg_curvlinops)]:
        try: peer = {rtol: make(model, h, y, b.flatten()[order], rtol) for rtol in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)}
        except ImportError as e: print(f'{name} is not installed ({e})'); continue
        error, rtol = first_below(2e-4, {k: relative(f(), s.flatten()[order]) for k, f in peer.items()})
        tolerances = (1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 1e-7, 1e-9, 1e-11)
        own_error, own = first_below(error, {k: relative(solve(k), s) for k in tolerances})
        ours, exactly, theirs = median_seconds(lambda: solve(own), lambda: validation_ihvp(W, h, y, h_val, y_val, L2),
                                               peer[rtol], repeats=9)
        record(f'speed_head_vs_{name}', theirs/ours, '>= 15',
               f'their CG {1e3*theirs:.1f} ms to error {error:.1e} (rtol {rtol:g}, the loosest below 2e-4), ours '
               f'{1e3*ours:.1f} ms to {own_error:.1e}; 600 x 64 features, l2 {L2}, float64, median of 9 interleaved')
        record(f'speed_head_exact_vs_{name}', theirs/exactly, '',
               f'the same against our exact solution, {1e3*exactly:.1f} ms with gradient and Hessian')


def first_below(limit, errors):
    "(error, tolerance) of the loosest tolerance whose error is below `limit`."
    return next((e, k) for k, e in errors.items() if e <= limit)


def cg_pydvl(model, h, y, b, rtol):
    from pydvl.influence.torch.operator import CgOperator, HessianOperator
    op = CgOperator(HessianOperator(model, F.cross_entropy, loader(h, y, batch_size=len(h))), regularization=L2,
                    rtol=rtol, atol=0.)
    return lambda: op.apply(b)


def cg_curvlinops(model, h, y, b, rtol):
    from curvlinops import CGInverseLinearOperator, HessianLinearOperator
    from curvlinops.examples import IdentityLinearOperator
    params = list(model.parameters())
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(h, y)], check_deterministic=False)
    inverse = CGInverseLinearOperator(H+L2*IdentityLinearOperator([p.shape for p in params], b.device, b.dtype),
                                      tolerance=rtol, eps=0., max_iter=2000, max_tridiag_iter=0)
    return lambda: inverse@b


class Repeated(torch.utils.data.Dataset):
    "`n` samples from a few, repeated: takes no memory of its own."
    def __init__(self, images, n): self.images, self.n = images, n
    def __len__(self): return self.n
    def __getitems__(self, idx):
        at = torch.tensor(idx) % len(self.images)
        return list(zip(self.images.x[at].float()/255, self.images.y[at]))


def scale_one(kind, n):
    "Fit once on `n` samples and print seconds and the peak of memory in MiB above what the program itself takes."
    import resource
    splits = draw_splits(source(), frac=.01, seed=0)
    train = torch.utils.data.DataLoader(Repeated(splits.labelled, n), batch_size=500)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        smooth = lambda: nn.Sequential(nn.AvgPool2d(2), tanh_cnn().float(), nn.Identity())[:2]
        model = small_cnn(1, 10).eval() if kind == 'head' else smooth()
        fit = {'head': lambda train: Influence(model, train, splits.tune).fit(),
               'all': lambda train: Influence(model, train, splits.tune, params='all',
                                              solver=functools.partial(cg, max_steps=5)).fit()}[kind]
        fit(splits.labelled)
        before, start = peak(), time.time()
        fit(train)
    print(f'{time.time()-start:.3f} {peak():.1f} {before:.1f}')


def scaling():
    "Seconds and memory from a thousand to a hundred thousand samples, each in a process of its own."
    for kind in ('head', 'all'):
        for n in (1000, 3000, 10_000, 30_000, 100_000):
            if scaled(kind, n): continue
            out = subprocess.run([sys.executable, __file__, 'scale_one', '--kind', kind, '--n', str(n)],
                                 capture_output=True, text=True, check=True).stdout
            seconds, memory, before = (float(o) for o in out.split()[-3:])
            append_rows(SCALING, [dict(params=kind, n=n, fit_seconds=seconds, peak_mib=memory, peak_before_mib=before,
                                       command=command())])
        (t0, m0), (t1, m1) = scaled(kind, 10_000), scaled(kind, 100_000)
        record(f'scaling_{kind}_seconds', t1/t0/10, '1 is linear',
               'seconds at 100,000 samples over seconds at 10,000, divided by ten')
        record(f'scaling_{kind}_memory', m1-m0, 'flat',
               f'MiB of peak memory at 100,000 samples more than at 10,000 (about {m0:.0f}, most of it torch '
               'and MNIST)')


def scaled(kind, n):
    "(seconds, peak MiB) of a fit that is on record, or None."
    try: rows = read_results(SCALING).query('params == @kind and n == @n')
    except FileNotFoundError: return None
    return (rows.fit_seconds.iloc[-1], rows.peak_mib.iloc[-1]) if len(rows) else None


FIRST = dict(head='head_exact_err', wide='cg_steps_512_plain_0.01', convex='replace_convex_first_order',
             cnn='replace_cnn_exact_newton', peers='lissa_err_50_dattri', ekfac='values_kronfluence',
             speed='speed_head_exact_vs_curvlinops', scaling='scaling_all_memory')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', nargs='*', choices=[[], *FIRST, 'scale_one'])
    p.add_argument('--kind', choices=['head', 'all'], help=argparse.SUPPRESS)
    p.add_argument('--n', type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args.what == ['scale_one']: return scale_one(args.kind, args.n)
    for name in args.what or FIRST:
        if done(FIRST[name]): print(f'{name}: rows are there already')
        else: globals()[name]()


if __name__ == '__main__': main()
