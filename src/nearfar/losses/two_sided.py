"""Losses that read the scores from both sides, as images and texts do: CLIP and SigLIP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack, override

from nearfar.losses.arguments import Options, or_none, refuse, scale_of, takes
from nearfar.losses.base import Loss, Outcome, loss_function, mean_weights, query_stats
from nearfar.losses.batch import read
from nearfar.losses.numbers import FINITE
from nearfar.losses.softmax import SoftmaxLoss, against_others
from nearfar.losses.temperature import Temperature
from nearfar.pairs import Pairs
from nearfar.scores import Stage, sum_over
from nearfar.scores.exponentials import softplus


@loss_function
def clip_loss(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.07,
    logit_scale: float | Tensor | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """CLIP: InfoNCE both ways, ``½·(queries over keys + keys over queries)``.

    Source: Radford et al. 2021, arXiv:2103.00020, fig. 3. With labels or pairs several texts may belong to an image
    (Yang et al. 2022, UniCL, arXiv:2204.03610, eq. 2).

    Args:
        queries: Image embeddings ``(n, d)``, say.
        keys: Text embeddings ``(n, d)``; left out, the queries are their own keys, each excluded for itself.
        labels: Integers, once a row pair.
        pairs: In place of labels.
        temperature: τ; 0.07 is the paper's start.
        logit_scale: The exponentiated multiplier 1/τ, in place of the temperature.
        **options: See :class:`nearfar.losses.arguments.Options`; ``weights`` need as many queries as keys.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(4)
        >>> nf.functional.clip_loss(z, z, temperature=1.0)  # both ways log(1 + 3/e)
        tensor(0.7437)
    """
    given = (queries,) if keys is None else (queries, keys)
    batch = read(given, sided=True, labels=labels, pairs=pairs, options=options, normalized=True, ring=True)
    scores, ranks = batch.scores.scaled(batch.scale(temperature, logit_scale)), batch.ranks
    if batch.padding is not None:  # columns meet all queries but these
        scores = replace(scores, pairs=scores.pairs.without(queries=batch.padding))
    square = scores.pairs.shape[0] == (scores.pairs.shape[1] if ranks.alone else ranks.sizes[ranks.rank])
    if batch.weights is not None and not square:
        raise ValueError("weights= of CLIP's rows and columns need as many queries as keys")

    def sides() -> list[tuple[Tensor, Tensor]]:
        """Values of rows and of columns (this rank's of all ranks' queries), and which of them count."""
        if scores.plan == "dense" and ranks.alone:
            return [(against_others(side), side.count("positives") > 0) for side in (scores, scores.T)]
        single = batch.paired or (ranks.alone and scores.single and scores.T.single)
        # columns without offsets: one key's is the same for all, and cancels
        rows, columns = scores.logsumexp_both_ways("negatives" if single else "candidates")
        near, far = scores.mean_positive_both_ways()
        positives, others = scores.count("positives"), scores.pairs.T.count("positives", far.dtype)
        if not ranks.alone:
            columns, far, others = ranks.log_scatter(columns), ranks.scatter(far * others), ranks.scatter(others)
            far = far / others.masked_fill(others == 0, 1.0)
        sides = [(rows - near, positives > 0), (columns - far, others > 0)]
        return [(torch.where(keep, softplus(side) if single else side, 0.0), keep) for side, keep in sides]

    def value() -> Tensor:
        if batch.in_one(scores, both_ways=True):
            return scores.mean_softmax(batch.weights, both_ways=True)
        halves = [(side * mean_weights(keep, batch.weights, side.dtype, ranks)).sum() for side, keep in sides()]
        return ranks.total(halves[0] + halves[1]) / 2

    def per_query() -> Tensor:
        (rows, _), (columns, _) = sides()
        return (rows + columns) / 2

    return Outcome(value, per_query if square else None, query_stats(scores))


SIGLIP: Stage = {
    "near": sum_over("positives", lambda s, t: softplus(-(s * t.parameters["scale"] + t.parameters["bias"]))),
    "far": sum_over("negatives", lambda s, t: softplus(s * t.parameters["scale"] + t.parameters["bias"])),
}


@loss_function
@takes(bias=FINITE, logit_bias=or_none(FINITE))
def siglip_loss(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    logit_scale: float | Tensor | None = None,
    logit_bias: float | Tensor | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """SigLIP: every pair a binary decision, ``−1/n Σ_ij log σ(±(s_ij/τ + b))``.

    Source: Zhai et al. 2023, arXiv:2303.15343, sec. 3.2 and algorithm 1.

    Args:
        queries: ``(n, d)``.
        keys: ``(m, d)``; left out, the queries are their own keys, each excluded for itself.
        labels: Integers, once a row pair.
        pairs: In place of labels.
        temperature: τ; 0.1 (a scale of 10) is the paper's start.
        bias: b; −10 is the paper's start, near the log-odds of a positive.
        logit_scale: The multiplier 1/τ, in place of the temperature.
        logit_bias: In place of ``bias``.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(2)
        >>> nf.functional.siglip_loss(z, z, temperature=1.0, bias=0.0)  # softplus(−1) + log 2
        tensor(1.0064)
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    sides = (queries,) if keys is None else (queries, keys)
    batch = read(sides, sided=True, labels=labels, pairs=pairs, options=options, normalized=True)
    scores = batch.scores
    scale = batch.number(scale_of(temperature, logit_scale, scores.query_rows))
    shift = batch.number(bias if logit_bias is None else logit_bias)

    numbers = {"scale": scale, "bias": shift}

    def values() -> Tensor:
        found = scores.reduce(SIGLIP, numbers)
        return found["near"] + found["far"]

    outcome = batch.averaged(values, None, query_stats(scores))

    def value() -> Tensor:
        if batch.weights is None and batch.ranks.alone:
            return scores.total(SIGLIP, numbers) / max(len(scores.query_rows), 1)
        every = torch.ones_like(scores.query_rows[:, 0], dtype=torch.bool)
        weights = mean_weights(every, batch.weights, scores.query_rows.dtype, batch.ranks)
        return batch.ranks.total(scores.total(SIGLIP, numbers, weights))

    return replace(outcome, value=value)


# ---- modules -------------------------------------------------------------------------------------------------------


class CLIPLoss(SoftmaxLoss):
    """CLIP's two-sided loss; see :func:`nearfar.functional.clip_loss`.

    Args:
        temperature: τ, 0.07 by default.
        learnable: Learn τ; 1/τ stays at most ``max_scale``.
        max_scale: 100 by default, which is CLIP's, or the start's where that is larger.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.CLIPLoss(temperature=1.0)(torch.eye(4), torch.eye(4))
        tensor(0.7437)
    """

    function = clip_loss
    default_temperature = 0.07


class SigLIPLoss(Loss):
    """SigLIP; see :func:`nearfar.functional.siglip_loss`.

    Args:
        temperature: τ, 0.1 by default (a scale of 10).
        bias: b, −10 by default.
        learnable: Learn both.
        max_scale: Largest 1/τ that learning may reach; the paper sets no bound, 1000, the default, keeps float32 safe.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.SigLIPLoss(temperature=1.0, bias=0.0)(torch.eye(2), torch.eye(2))
        tensor(1.0064)
    """

    function = siglip_loss

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        bias: float | Tensor = -10.0,
        *,
        learnable: bool = False,
        max_scale: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.tau = Temperature(temperature, learnable, max_scale, most=1000.0)
        start = FINITE("bias", bias)
        self.bias = torch.nn.Parameter(torch.tensor(float(start))) if learnable else bias

    @property
    def temperature(self) -> float | Tensor:
        """τ in force."""
        return self.tau()

    @override
    def arguments(self) -> dict[str, Any]:
        return {"temperature": self.tau(), "bias": self.bias}
