"""The naive loops of `oracles.py`, continued: distances, noise, mutual information, classes, moments of two views."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from relations import average, distance, log1p_sum_exp, lse, negatives, positives, resolve, scores, total, unit


def contrastive(
    *given: Tensor, labels=None, pairs=None, margin=None, distance="euclidean", positive=1, normalize=False
):
    """Hadsell et al. 2006, eq. 4, without its factors ½."""
    margin = ({"cosine": 0.0}.get(distance, 1.0)) if margin is None else margin

    def value(d: Tensor, similar: bool) -> Tensor:
        if distance == "cosine":  # d = 1 − s
            return d if similar else (1.0 - d - margin).clamp(min=0.0)
        return d.square() if similar else (margin - d).clamp(min=0.0).square()

    if len(given) == 3:
        a, b, label = given
        d = [scores(x[None], y[None], distance, normalize)[0][0] for x, y in zip(a, b)]
        return average([value(x, int(y) == positive) for x, y in zip(d, label)]) + 0.0 * a.sum()
    q, k, relation = resolve("pairs", given, labels, pairs)
    d = scores(q, k, distance, normalize)
    chosen = [
        (i, j) for i, row in enumerate(relation) for j, r in enumerate(row) if r >= 0 and (len(given) == 2 or i < j)
    ]
    return average([value(d[i][j], relation[i][j] > 0) for i, j in chosen]) + 0.0 * q.sum()


def triplet(
    *views: Tensor,
    labels=None,
    pairs=None,
    weights=None,
    margin=0.2,
    mining="all",
    distance="euclidean",
    soft=False,
    fallback=None,
    normalize=False,
) -> Tensor:
    """Schroff et al. 2015, eq. 1–4; Hermans et al. 2017 (all, hard, soft)."""

    def value(positive: Tensor, negative: Tensor) -> Tensor:
        return F.softplus(positive - negative) if soft else (positive - negative + margin).clamp(min=0.0)

    if len(views) == 3 and labels is None and pairs is None:
        a, p, n = views
        n = n[:, None] if n.ndim == 2 else n
        each = []
        for x, y, others in zip(a, p, n):
            row = scores(x[None], torch.cat([y[None], others]), distance, normalize)[0]
            each += [value(row[0], other) for other in row[1:]]
        return average(each) + 0.0 * a.sum()
    q, k, relation = resolve("self", views, labels, pairs)
    chosen: list[tuple[int, Tensor]] = []  # (anchor, value)
    for i, (row, rel) in enumerate(zip(scores(q, k, distance, normalize), relation)):
        p, n = positives(rel), negatives(rel)
        if not p or not n:
            continue
        if mining == "hard":
            hardest = max((row[j] for j in p), key=Tensor.item), min((row[j] for j in n), key=Tensor.item)
            chosen.append((i, value(*hardest)))
        for j in p if mining in ("all", "semihard") else ():
            if mining == "all":
                each = [value(row[j], row[m]) for m in n]
                chosen += [(i, v) for v in each if soft or v > 0]
                continue
            beyond = [row[m] for m in n if row[m] > row[j]]
            if fallback is None:
                beyond = [x for x in beyond if x < row[j] + margin]
            if beyond:
                chosen.append((i, value(row[j], min(beyond, key=Tensor.item))))
            elif fallback == "farthest":
                chosen.append((i, value(row[j], max((row[m] for m in n), key=Tensor.item))))
    w = None if weights is None else [float(weights[i]) for i, _ in chosen]
    return average([v for _, v in chosen], w) + 0.0 * q.sum()


def lifted(*views: Tensor, labels=None, pairs=None, margin=1.0, normalize=False) -> Tensor:
    """Song et al. 2016, eq. 4: a positive pair against the negatives of both its ends."""
    q, k, relation = resolve("self", views, labels, pairs)
    d, values = scores(q, k, "euclidean", normalize), []
    for i, row in enumerate(relation):
        for j in positives(row):
            ends = [margin - d[i][m] for m in negatives(row)]
            ends += [margin - d[m][j] for m in range(len(q)) if relation[m][j] == 0]
            value = (lse(ends) + d[i][j]).clamp(min=0.0) if ends else d[i][j] * 0.0
            values.append(0.5 * value.square())
    return average(values) + 0.0 * q.sum()


def nce(
    queries: Tensor, targets: Tensor, table: Tensor, samples: Tensor, noise: Tensor, bias=None, log_z=0.0, weights=None
) -> Tensor:
    """Gutmann & Hyvärinen 2010, eq. 8, with the score of Mnih & Teh 2012; `samples`: (k,) shared or (n, k) ids."""
    q = noise / noise.sum()
    values = []
    for i, (x, target) in enumerate(zip(queries, targets)):
        drawn = samples if samples.ndim == 1 else samples[i]

        def delta(word, x=x, k=len(drawn)) -> Tensor:
            score = (x * table[word]).sum() + (0.0 if bias is None else bias[word])
            return score - log_z - torch.log(k * q[word])

        values.append(F.softplus(-delta(target)) + total([F.softplus(delta(word)) for word in drawn]))
    return average(values, None if weights is None else weights.tolist()) + 0.0 * queries.sum()


def information(
    first: Tensor, second: Tensor, batch: Tensor | None = None, estimator: str = "infonce", matrix: Tensor | None = None
):
    """Minus the bound: van den Oord et al. 2018, eq. 5; Hjelm et al. 2019, eq. 4 (jsd) and 2 (dv, Donsker–Varadhan)."""
    keys, owner = second, list(range(len(second))) if batch is None else [int(b) for b in batch]
    if second.ndim == 4:
        keys = torch.stack(
            [item[:, y, x] for item in second for y in range(item.shape[1]) for x in range(item.shape[2])]
        )
        owner = [i for i in range(len(second)) for _ in range(second.shape[2] * second.shape[3])]
    keys = keys if matrix is None else torch.stack([matrix @ y for y in keys])
    t = scores(first, keys, "dot", False)
    own = [(i, j) for i in range(len(first)) for j in range(len(keys)) if owner[j] == i]
    other = [(i, j) for i in range(len(first)) for j in range(len(keys)) if owner[j] != i]
    if estimator == "infonce":
        values = []
        for i, j in own:
            rivals = [t[i][m] for m in range(len(keys)) if owner[m] != i]
            values.append(t[i][j] - lse([t[i][j], *rivals]) + math.log(1 + len(rivals)))
        bound = average(values)
    elif estimator == "jsd":
        bound = average([-F.softplus(-t[i][j]) for i, j in own]) - average([F.softplus(t[i][j]) for i, j in other])
    else:  # without a marginal there is no bound: nothing to average
        marginal = [t[i][j] for i, j in other]
        bound = (
            average([t[i][j] for i, j in own]) - lse(marginal) + math.log(len(marginal))
            if own and marginal
            else total([])
        )
    return -bound + 0.0 * first.sum()


def classed(rows: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An oracle over the rows of a known label; `rows(z, labels, classes, **options)` has lists of rows."""

    def oracle(z: Tensor, labels: Tensor, table: Tensor, **options) -> Tensor:
        known = [i for i, y in enumerate(labels) if y >= 0]
        return rows([z[i] for i in known], [int(labels[i]) for i in known], list(table), **options) + 0.0 * z.sum()

    return oracle


def cosines(z: list[Tensor], classes: list[Tensor]) -> list[list[Tensor]]:
    return [[(unit(x) * unit(c)).sum() for c in classes] for x in z]


@classed
def proxy_anchor(z, labels, classes, margin=0.1, scale=32.0) -> Tensor:
    """Kim et al. 2020, eq. 4."""
    s, pull, push = cosines(z, classes), [], []
    for c in range(len(classes)):
        own = [-scale * (s[i][c] - margin) for i, y in enumerate(labels) if y == c]
        pull += [log1p_sum_exp(own)] if own else []
        push.append(log1p_sum_exp([scale * (s[i][c] + margin) for i, y in enumerate(labels) if y != c]))
    return average(pull) + average(push)


@classed
def proxy_nca(z, labels, classes, temperature=1.0, denominator="negatives") -> Tensor:
    """Movshovitz-Attias et al. 2017, eq. 2 and 4 (negatives); Teh et al. 2020, eq. 6 (all)."""
    values = []
    for x, y in zip(z, labels):
        d = [(unit(x) - unit(c)).square().sum() / temperature for c in classes]
        values.append(d[y] + lse([-d[c] for c in range(len(d)) if denominator == "all" or c != y]))
    return average(values)


def cross_entropy(logits: list[list[Tensor]], labels: list[int]) -> Tensor:
    return average([lse(row) - row[y] for row, y in zip(logits, labels)])


@classed
def arcface(z, labels, classes, margin=0.5, scale=64.0) -> Tensor:
    """Deng et al. 2019, eq. 3, by `cos(θ + m) = cos θ·cos m − sin θ·sin m`."""
    s = cosines(z, classes)
    for row, y in zip(s, labels):
        squared = 1.0 - row[y].square()
        sine = squared.sqrt() if squared > 0 else squared * 0.0
        row[y] = row[y] * math.cos(margin) - sine * math.sin(margin)
    return cross_entropy([[scale * x for x in row] for row in s], labels)


@classed
def cosface(z, labels, classes, margin=0.35, scale=64.0) -> Tensor:
    """Wang et al. 2018, eq. 4."""
    s = cosines(z, classes)
    return cross_entropy(
        [[scale * (x - margin * (c == y)) for c, x in enumerate(row)] for row, y in zip(s, labels)], labels
    )


@classed
def center(z, labels, classes) -> Tensor:
    """Wen et al. 2016, eq. 2, averaged over rows."""
    return average([0.5 * (x - classes[y]).square().sum() for x, y in zip(z, labels)])


def centred(z: Tensor) -> list[Tensor]:
    """The columns of a view, each less its mean."""
    return [column - column.sum() / len(column) for column in z.T]


def barlow_twins(z1: Tensor, z2: Tensor, off_diagonal=0.005) -> Tensor:
    """Zbontar et al. 2021, eq. 1 and 2."""
    value = []
    for i, x in enumerate(centred(z1)):
        for j, y in enumerate(centred(z2)):
            spread = x.square().sum() * y.square().sum()
            c = (x * y).sum() / spread.sqrt() if spread > 0 else spread * 0.0
            value.append((1.0 - c).square() if i == j else off_diagonal * c.square())
    return total(value)


def vicreg(
    z1: Tensor, z2: Tensor, invariance=25.0, variance=25.0, covariance=1.0, gamma=1.0, eps=1e-4, form="paper"
) -> Tensor:
    """Bardes et al. 2022, eq. 1–6; form "code": the authors' code, invariance over d as well, variance terms halved."""
    n, d = z1.shape
    near = average([(x - y).square().sum() for x, y in zip(z1, z2)]) / (d if form == "code" else 1)
    spread, mixed = [], []
    for z in (z1, z2):
        columns = centred(z)
        cov = [[(x * y).sum() / max(n - 1, 1) for y in columns] for x in columns]
        spread.append(average([(gamma - (cov[i][i] + eps).sqrt()).clamp(min=0.0) for i in range(d)]))
        mixed.append(total([cov[i][j].square() for i in range(d) for j in range(d) if i != j]) / d)
    half = 0.5 if form == "code" else 1.0
    return invariance * near + variance * half * total(spread) + covariance * total(mixed)


def align_uniform(z1: Tensor, z2: Tensor, alpha=2.0, t=2.0, align=1.0, uniform=1.0, normalize=True) -> Tensor:
    """Wang & Isola 2020, section 4.1, both terms."""
    views = [[unit(x) if normalize else x for x in z] for z in (z1, z2)]
    near = average([distance(x, y) ** alpha for x, y in zip(*views)])
    spread = []
    for rows in views:
        each = [-t * (rows[i] - rows[j]).square().sum() for j in range(len(rows)) for i in range(j)]
        spread.append(lse(each) - math.log(len(each)) if each else total([]))
    return align * near + uniform * 0.5 * total(spread) + 0.0 * z1.sum()
