"""Losses of a labelled batch that weigh its pairs against one another: multi-similarity, circle, lifted structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from nearfar.losses.arguments import Options, or_none, refuse, takes
from nearfar.losses.base import Loss, Outcome, costly_to_trace, having, kept, query_stats
from nearfar.losses.batch import read
from nearfar.losses.numbers import FINITE, NOT_NEGATIVE, POSITIVE
from nearfar.pairs import Pairs
from nearfar.scores import Stage, logsumexp_over, sum_over
from nearfar.scores.exponentials import log_add_exp, softplus
from nearfar.scores.squares import square

MULTI_SIMILARITY: Stage = {
    "near": logsumexp_over("positives", lambda s, t: -t.parameters["alpha"] * (s - t.parameters["base"])),
    "far": logsumexp_over("negatives", lambda s, t: t.parameters["beta"] * (s - t.parameters["base"])),
}
# Mining keeps a negative above the hardest positive less ε, and a positive below the hardest negative plus ε.
MINED: Stage = {
    "near": logsumexp_over("positives", MULTI_SIMILARITY["near"].of, keep=lambda s, t: t.rows["ceiling"] - s),
    "far": logsumexp_over("negatives", MULTI_SIMILARITY["far"].of, keep=lambda s, t: s - t.rows["floor"]),
}


@costly_to_trace
@takes(alpha=POSITIVE, beta=POSITIVE, base=FINITE, epsilon=or_none(FINITE))
def multi_similarity_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    **options: Unpack[Options],
) -> Outcome:
    """Multi-similarity: ``1/α·log(1 + Σ_P e^{−α(s−λ)}) + 1/β·log(1 + Σ_N e^{β(s−λ)})`` over mined pairs.

    Source: Wang et al. 2019, arXiv:1904.06627, eq. 15, mining eq. 11–12; λ as in the authors' code. Averaged over all
    queries.

    Args:
        *views: One or more matrices ``(n, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels.
        alpha: Sharpness for positives; 2 is the paper's.
        beta: Sharpness for negatives; 50 is the paper's.
        base: λ, a cosine; 0.5 is the authors' code's (the paper's text says 1).
        epsilon: Slack of the mining, 0.1 in the paper; ``None`` keeps all pairs.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> nf.functional.multi_similarity_loss(z, labels=torch.tensor([0, 0, 1]), epsilon=None)
        tensor(0.3994)
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    batch = read(views, sided=False, labels=labels, pairs=pairs, options=options, normalized=True)
    scores = batch.scores
    numbers = {name: batch.number(value) for name, value in (("alpha", alpha), ("beta", beta), ("base", base))}

    def values() -> Tensor:
        if epsilon is None:
            found = scores.reduce(MULTI_SIMILARITY, numbers)
        else:
            bounds = {
                "floor": scores.extreme("positives", "min") - epsilon,
                "ceiling": scores.extreme("negatives", "max") + epsilon,
            }
            found = scores.reduce(MINED, numbers, bounds)
        return softplus(found["near"]) / alpha + softplus(found["far"]) / beta

    return batch.averaged(values, None, query_stats(scores))


# The weights in brackets carry no gradient: [1 + m − s]₊ and [s + m]₊
CIRCLE: Stage = {
    "near": logsumexp_over(
        "positives",
        lambda s, t: (
            -t.parameters["scale"]
            * (1 + t.parameters["margin"] - s).detach().relu()
            * (s - (1 - t.parameters["margin"]))
        ),
    ),
    "far": logsumexp_over(
        "negatives",
        lambda s, t: (
            t.parameters["scale"] * (s + t.parameters["margin"]).detach().relu() * (s - t.parameters["margin"])
        ),
    ),
}


@costly_to_trace
@takes(margin=FINITE, scale=POSITIVE)
def circle_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    margin: float | Tensor = 0.25,
    scale: float | Tensor = 256.0,
    **options: Unpack[Options],
) -> Outcome:
    """Circle loss: ``log(1 + Σ_N e^{γ[s+m]₊(s−m)} · Σ_P e^{−γ[1+m−s]₊(s−(1−m))})``, the bracketed weights constant.

    The double sum factors, so that it is ``softplus`` of two log-sum-exps. Averaged over queries with a positive and a
    negative.

    Source: Sun et al. 2020, arXiv:2002.10857, eq. 6 with its sec. 3.3 choice of optima and margins.

    Args:
        *views: One or more matrices ``(n, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels.
        margin: m; 0.25 is the paper's for faces.
        scale: γ; 256 is the paper's for faces.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(2).repeat_interleave(2, 0)  # s⁺ = 1, s⁻ = 0: softplus(log 2 − 2·m²)
        >>> nf.functional.circle_loss(z, labels=torch.tensor([0, 0, 1, 1]), scale=1.0)
        tensor(1.0170)
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    batch = read(views, sided=False, labels=labels, pairs=pairs, options=options, normalized=True)
    scores = batch.scores
    keep = having(scores, "positives", "negatives")
    numbers = {"margin": batch.number(margin), "scale": batch.number(scale)}

    def values() -> Tensor:
        found = scores.reduce(CIRCLE, numbers)
        return softplus(kept(found["near"] + found["far"], keep))

    return batch.averaged(values, keep, query_stats(scores, negatives=True))


LIFTED_REPULSION: Stage = {"repulsion": logsumexp_over("negatives", lambda s, t: t.parameters["margin"] - s)}
LIFTED: Stage = {
    "value": sum_over(
        "positives",
        lambda s, t: square((log_add_exp(t.rows["repulsion"], t.columns["repulsion"]) + s).relu()),
    )
}
_NOTHING = -1e30  # stands for log 0 where −∞ would make a NaN gradient


@costly_to_trace
@takes(margin=NOT_NEGATIVE)
def lifted_structure_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    margin: float | Tensor = 1.0,
    **options: Unpack[Options],
) -> Outcome:
    """Lifted structure: each positive pair against all negatives of both its ends.

    ``½·mean_{(i,j)∈P} [log(Σ_{k∈N(i)} e^{m − d_ik} + Σ_{l∈N(j)} e^{m − d_jl}) + d_ij]₊²``.

    Source: Song et al. 2016, arXiv:1511.06452, eq. 4, averaged over positive pairs.

    Args:
        *views: One or more matrices ``(n, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels; for queries and keys, a key's negatives are queries.
        margin: m, in units of the distance; 1 is the paper's.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[0.0], [0.0], [1.0]])  # ½·(log(e⁰ + e⁰) + 0)²
        >>> nf.functional.lifted_structure_loss(z, labels=torch.tensor([0, 0, 1]))
        tensor(0.2402)
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    refuse(options, "weights", "they are per query, and the mean runs over positive pairs")
    batch = read(
        views, sided=False, labels=labels, pairs=pairs, options=options, normalized=False, similarity="euclidean"
    )
    scores, ranks = batch.scores, batch.ranks
    numbers = {"margin": batch.number(margin)}

    def finite(found: Tensor) -> Tensor:
        return found.masked_fill(found == -torch.inf, _NOTHING)

    def value() -> Tensor:
        rows = finite(scores.reduce(LIFTED_REPULSION, numbers)["repulsion"])
        if batch.symmetric:
            columns = ranks.gather(rows)
        else:
            found = scores.T.reduce(LIFTED_REPULSION, numbers)["repulsion"]
            columns = finite(ranks.gather(ranks.log_scatter(found)))
        found = scores.reduce(LIFTED, None, {"repulsion": rows}, {"repulsion": columns})["value"]
        return ranks.total(found.sum()) / (2 * ranks.total(scores.count("positives").sum()).clamp(min=1))

    return Outcome(value, None, query_stats(scores))


class MultiSimilarityLoss(Loss):
    """Multi-similarity loss; see :func:`nearfar.functional.multi_similarity_loss`.

    Args:
        alpha: Sharpness for positives.
        beta: Sharpness for negatives.
        base: λ, a cosine.
        epsilon: Slack of the mining; ``None`` keeps all pairs.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> nf.MultiSimilarityLoss(epsilon=None)(z, labels=torch.tensor([0, 0, 1]))
        tensor(0.3994)
    """

    function = multi_similarity_loss
    own_options = frozenset({"alpha", "beta", "base", "epsilon"})

    def __init__(
        self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1, **options: Any
    ) -> None:
        super().__init__(alpha=alpha, beta=beta, base=base, epsilon=epsilon, **options)


class CircleLoss(Loss):
    """Circle loss; see :func:`nearfar.functional.circle_loss`.

    Args:
        margin: m.
        scale: γ.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(2).repeat_interleave(2, 0)
        >>> nf.CircleLoss(scale=1.0)(z, labels=torch.tensor([0, 0, 1, 1]))
        tensor(1.0170)
    """

    function = circle_loss
    own_options = frozenset({"margin", "scale"})

    def __init__(self, margin: float | Tensor = 0.25, scale: float | Tensor = 256.0, **options: Any) -> None:
        super().__init__(margin=margin, scale=scale, **options)


class LiftedStructureLoss(Loss):
    """Lifted structure loss; see :func:`nearfar.functional.lifted_structure_loss`.

    Args:
        margin: In units of the distance.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[0.0], [0.0], [1.0]])
        >>> nf.LiftedStructureLoss()(z, labels=torch.tensor([0, 0, 1]))
        tensor(0.2402)
    """

    function = lifted_structure_loss
    own_options = frozenset({"margin"})

    def __init__(self, margin: float | Tensor = 1.0, **options: Any) -> None:
        super().__init__(margin=margin, **options)
