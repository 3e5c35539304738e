"""One naive loop a loss, written from its paper and from `docs/losses.md`, importing nothing of the library.

Every oracle takes what the loss takes: the tensors by position, `labels=`, `pairs=` (here a dense relation matrix),
`weights=`, `offsets=` and the loss's own options, and walks over rows and pairs one at a time. Autograd differentiates
the loop. What is random or learned is an argument: the class table, the critic's matrix, the noise samples.
The losses of similarities are here, the others in `oracles_beyond.py`; `ORACLES` holds all of them by class name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import oracles_beyond as beyond
from relations import (
    Relation,
    average,
    log1p_sum_exp,
    lse,
    negatives,
    positives,
    resolve,
    scores,
    total,
    transposed,
    with_negatives,
)

Rows = list[Tensor | None]  # one value a query; None: the query is left out of the mean


def pairwise(kind: str, similarity: str = "dot", normalize: bool = True) -> Callable[[Callable[..., Rows]], Callable]:
    """Turn a loop over the rows of a score table into an oracle with every call form.

    `rows(s, relation, **options)` gives one value a query; the oracle averages them over the queries that have one.
    """

    def wrap(rows: Callable[..., Rows]) -> Callable[..., Tensor | Rows]:
        def oracle(
            *views: Tensor,
            labels=None,
            pairs=None,
            weights=None,
            normalize=normalize,
            in_batch=False,
            per_query=False,
            **options,
        ) -> Tensor | Rows:
            if len(views) == 3 and kind == "one-sided":
                q, k, relation = with_negatives(views[0], views[1], views[2], in_batch)
            else:
                q, k, relation = resolve(kind, views, labels, pairs)
            values = rows(scores(q, k, similarity, normalize), relation, **options)
            if per_query:
                return values
            kept = [(i, v) for i, v in enumerate(values) if v is not None]  # a sample's weight is that of all its views
            w = [1.0 if weights is None else float(weights[i % len(weights)]) for i, _ in kept]
            return average([v for _, v in kept], w) + 0.0 * q.sum()  # connected even when nothing is left

        return oracle

    return wrap


def logits(s: list[list[Tensor]], temperature, logit_scale=None, offsets=None) -> list[list[Tensor]]:
    """`s_ij/τ + offset_j`."""
    scale = 1.0 / temperature if logit_scale is None else logit_scale
    return [[x * scale + (0.0 if offsets is None else offsets[j]) for j, x in enumerate(row)] for row in s]


def softmax_rows(s: list[list[Tensor]], relation: Relation, form: str = "out") -> Rows:
    """Khosla et al. 2020, eq. 2 (out) and 3 (in); with one positive both are van den Oord et al. 2018, eq. 4."""
    values: Rows = []
    for row, rel in zip(s, relation):
        p, a = positives(rel), positives(rel) + negatives(rel)
        if not p:
            values.append(None)
            continue
        w = [rel[j] for j in p]
        outside = average([row[j] for j in p], w)
        inside = lse([row[j] + math.log(rel[j]) for j in p]) - math.log(sum(w))  # of the mean probability
        values.append(lse([row[j] for j in a]) - (outside if form == "out" else inside))
    return values


def infonce_rows(s, relation, temperature=0.1, form="out", logit_scale=None, offsets=None) -> Rows:
    return softmax_rows(logits(s, temperature, logit_scale, offsets), relation, form)


infonce = pairwise("one-sided")(infonce_rows)
ntxent = pairwise("self")(infonce_rows)
supcon = pairwise("self")(infonce_rows)


@pairwise("one-sided", normalize=False)
def _npairs(s, relation, offsets=None, logit_scale=None) -> Rows:
    return infonce_rows(s, relation, temperature=1.0, logit_scale=logit_scale, offsets=offsets)


def npairs(*views: Tensor, regularization=0.0, **options) -> Tensor | Rows:
    """Sohn 2016, section 3.2.2: beside the loss, the squared norms, averaged over rows and sides."""
    norms = average([average([(row * row).sum() for row in z]) for z in views]) if regularization else 0.0
    return _npairs(*views, **options) + regularization * norms if regularization else _npairs(*views, **options)


def clip(
    q, k=None, labels=None, pairs=None, weights=None, temperature=0.07, logit_scale=None, offsets=None, normalize=True
):
    """Radford et al. 2021, figure 3: both ways, each averaged over its own queries with a positive."""
    q, k, relation = resolve("two-sided", [q] if k is None else [q, k], labels, pairs)
    s = logits(scores(q, k, "dot", normalize), temperature, logit_scale, offsets)
    sides = []
    for side in (
        softmax_rows(s, relation),
        softmax_rows([[row[j] for row in s] for j in range(len(k))], transposed(relation, len(k))),
    ):
        kept = [(v, 1.0 if weights is None else float(weights[i])) for i, v in enumerate(side) if v is not None]
        sides.append(average([v for v, _ in kept], [w for _, w in kept]))
    return 0.5 * (sides[0] + sides[1]) + 0.0 * q.sum()


@pairwise("self", "sqeuclidean", normalize=False)
def nca(d, relation, temperature=1.0, objective="log", logit_scale=None, offsets=None) -> Rows:
    """Goldberger et al. 2004: the probability of choosing a neighbour that belongs together."""
    values: Rows = []
    for row, rel in zip(logits([[-x for x in row] for row in d], temperature, logit_scale, offsets), relation):
        p, a = positives(rel), positives(rel) + negatives(rel)
        if not p:
            values.append(None)
            continue
        log_probability = lse([row[j] for j in p]) - lse([row[j] for j in a])
        values.append(-log_probability if objective == "log" else 1.0 - log_probability.exp())
    return values


@pairwise("self")
def dcl(s, relation, temperature=0.1, logit_scale=None, offsets=None) -> Rows:
    """Yeh et al. 2022, eq. 6: the positive leaves the denominator."""
    values: Rows = []
    for row, rel in zip(logits(s, temperature, logit_scale, offsets), relation):
        p, n = positives(rel), negatives(rel)
        out = not p or not n
        values.append(None if out else lse([row[j] for j in n]) - average([row[j] for j in p], [rel[j] for j in p]))
    return values


@pairwise("self")
def hard_negative(s, relation, temperature=0.1, beta=1.0, tau_plus=0.1, logit_scale=None, offsets=None) -> Rows:
    """Robinson et al. 2021, eq. 4 and its estimator; β = 0 is Chuang et al. 2020, eq. 8."""
    scale = 1.0 / temperature if logit_scale is None else logit_scale
    floor = torch.exp(-torch.as_tensor(scale, dtype=torch.float64))
    values: Rows = []
    for row, rel in zip(logits(s, temperature, logit_scale, offsets), relation):
        p, n = positives(rel), negatives(rel)
        if not p or not n:
            values.append(None)
            continue
        w, count = [rel[j] for j in p], len(n)
        hard = lse([(1.0 + beta) * row[j] for j in n]) - lse([beta * row[j] for j in n])
        estimate = (count * hard.exp() - tau_plus * count * average([row[j].exp() for j in p], w)) / (1.0 - tau_plus)
        g = estimate if estimate > count * floor else count * floor
        values.append(average([-row[j] + (row[j].exp() + g).log() for j in p], w))
    return values


def debiased(*views: Tensor, **options) -> Tensor:
    return hard_negative(*views, **{"beta": 0.0, **options})


@pairwise("two-sided")
def siglip(s, relation, temperature=0.1, bias=-10.0, logit_scale=None, logit_bias=None) -> Rows:
    """Zhai et al. 2023, eq. 1: every pair on its own, the sum divided by the queries."""
    b = bias if logit_bias is None else logit_bias
    s = [[x + b for x in row] for row in logits(s, temperature, logit_scale)]
    return [
        total([F.softplus(-row[j]) for j in positives(rel)] + [F.softplus(row[j]) for j in negatives(rel)])
        for row, rel in zip(s, relation)
    ]


@pairwise("self")
def multi_similarity(s, relation, alpha=2.0, beta=50.0, base=0.5, epsilon: float | None = 0.1) -> Rows:
    """Wang et al. 2019, eq. 11–15: pairs chosen against the hardest of the other kind."""
    values: Rows = []
    for row, rel in zip(s, relation):
        p, n = positives(rel), negatives(rel)
        if epsilon is not None:
            p, n = (
                [j for j in p if n and row[j] < max(row[k] for k in n) + epsilon],
                [j for j in n if p and row[j] > min(row[k] for k in p) - epsilon],
            )
        pull = log1p_sum_exp([-alpha * (row[j] - base) for j in p]) / alpha
        values.append(pull + log1p_sum_exp([beta * (row[j] - base) for j in n]) / beta)
    return values


@pairwise("self")
def circle(s, relation, margin=0.25, scale=256.0, at=None) -> Rows:
    """Sun et al. 2020, eq. 6: the weights `[·]₊` carry no gradient; `at` takes them from another score table."""
    values: Rows = []
    for i, (row, rel) in enumerate(zip(s, relation)):
        p, n = positives(rel), negatives(rel)
        if not p or not n:
            values.append(None)
            continue
        fixed = [x.detach() for x in (row if at is None else at[i])]
        push = lse([scale * (fixed[j] + margin).clamp(min=0.0) * (row[j] - margin) for j in n])
        pull = lse([-scale * (1.0 + margin - fixed[j]).clamp(min=0.0) * (row[j] - (1.0 - margin)) for j in p])
        values.append(F.softplus(push + pull))
    return values


def spectral(*views: Tensor, labels=None, pairs=None, normalize=False) -> Tensor:
    """HaoChen et al. 2021, eq. 6, the two expectations as means over pairs."""
    q, k, relation = resolve("one-sided", views, labels, pairs)
    s = scores(q, k, "dot", normalize)
    pull = [s[i][j] for i, row in enumerate(relation) for j in positives(row)]
    push = [s[i][j].square() for i, row in enumerate(relation) for j in negatives(row)]
    return -2.0 * average(pull) + average(push) + 0.0 * q.sum()


ORACLES: dict[str, Callable] = {
    "ContrastiveLoss": beyond.contrastive,
    "TripletLoss": beyond.triplet,
    "InfoNCELoss": infonce,
    "NTXentLoss": ntxent,
    "SupConLoss": supcon,
    "CLIPLoss": clip,
    "SigLIPLoss": siglip,
    "MultiSimilarityLoss": multi_similarity,
    "CircleLoss": circle,
    "LiftedStructureLoss": beyond.lifted,
    "NPairsLoss": npairs,
    "NCALoss": nca,
    "DCLLoss": dcl,
    "HardNegativeLoss": hard_negative,
    "DebiasedLoss": debiased,
    "SpectralLoss": spectral,
    "NCELoss": beyond.nce,
    "MutualInformationLoss": beyond.information,
    "ProxyAnchorLoss": beyond.proxy_anchor,
    "ProxyNCALoss": beyond.proxy_nca,
    "ArcFaceLoss": beyond.arcface,
    "CosFaceLoss": beyond.cosface,
    "CenterLoss": beyond.center,
    "BarlowTwinsLoss": beyond.barlow_twins,
    "VICRegLoss": beyond.vicreg,
    "AlignUniformLoss": beyond.align_uniform,
}
