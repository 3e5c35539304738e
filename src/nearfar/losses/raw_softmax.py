"""Softmax losses on rows as they are, of any length: N-pairs (dot products) and neighbourhood components (distances)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from nearfar.losses.arguments import Options, one_of, scale_of, takes
from nearfar.losses.base import Loss, Outcome, costly_to_trace, having, kept, loss_function, query_stats
from nearfar.losses.batch import read
from nearfar.losses.numbers import NOT_NEGATIVE
from nearfar.losses.softmax import SoftmaxLoss, softmax
from nearfar.pairs import Pairs
from nearfar.scores import Stage, logsumexp_over
from nearfar.scores.exponentials import softplus


@loss_function
@takes(regularization=NOT_NEGATIVE)
def n_pairs_loss(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    regularization: float = 0.0,
    **options: Unpack[Options],
) -> Outcome:
    """N-pairs: ``log(1 + Σ_{j≠i} e^{⟨x_i, y_j⟩ − ⟨x_i, y_i⟩})`` on raw dot products: InfoNCE with τ = 1.

    Source: Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective", eq. 7–8.

    Args:
        queries: ``(n, d)``.
        keys: ``(n, d)``; as in InfoNCE.
        labels: Integers, once a sample.
        pairs: In place of labels.
        regularization: Weight of the mean squared norm of all rows; 0 by default, the paper used 0.002.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.n_pairs_loss(torch.eye(4), torch.eye(4))
        tensor(0.7437)
    """
    sides = (queries,) if keys is None else (queries, keys)
    batch = read(sides, sided=True, labels=labels, pairs=pairs, options=options, normalized=False, ring=True)
    outcome = softmax(batch, 1.0, "out")
    if not regularization:
        return outcome

    def value() -> Tensor:
        there = None if batch.padding is None else (~batch.padding).to(batch.scores.queries.dtype)
        each = [z.to(batch.scores.queries.dtype).square().sum(1) for z in sides]
        squares = [(square if there is None else square * there).sum() for square in each]
        counts = [torch.full_like(total, len(z)) if there is None else there.sum() for total, z in zip(squares, sides)]
        norms = batch.ranks.total(torch.stack(squares)) / batch.ranks.total(torch.stack(counts)).clamp(min=1)
        return outcome.value() + regularization * norms.mean()

    return Outcome(value, None, outcome.stats)


NCA: Stage = {
    "others": logsumexp_over("negatives", lambda s, t: s * -t.parameters["scale"]),
    "own": replace(logsumexp_over("positives", lambda s, t: s * -t.parameters["scale"]), weighted=False),
}


@costly_to_trace
@takes(objective=one_of("log", "probability"))
def nca_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float | Tensor | None = None,
    objective: Literal["log", "probability"] = "log",
    **options: Unpack[Options],
) -> Outcome:
    """Neighbourhood components analysis: a query should pick a neighbour of its class, ``p_ij ∝ e^{−‖z_i − z_j‖²/τ}``.

    Source: Goldberger et al. 2004, "Neighbourhood components analysis": ``"log"`` is their eq. 7, ``"probability"``
    their eq. 3, as ``1 − p_i``.

    Args:
        *views: One or more matrices ``(n, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels; a neighbour belongs together or not, whatever its weight.
        temperature: τ; 1 is the paper's.
        logit_scale: The multiplier 1/τ, in place of the temperature.
        objective: ``−log p_i`` or ``1 − p_i``.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.nca_loss(torch.ones(4, 2), labels=torch.tensor([0, 0, 1, 1]))  # collapsed: log 3
        tensor(1.0986)
    """
    batch = read(
        views, sided=False, labels=labels, pairs=pairs, options=options, normalized=False, similarity="sqeuclidean"
    )
    scores = batch.scores
    scale = batch.number(scale_of(temperature, logit_scale, scores.query_rows))
    if scores.offsets is not None:
        scores = replace(scores, offsets=-scores.offsets / scale)  # the stage turns distances into logits
    keep = having(scores, "positives")

    def values() -> Tensor:
        found = scores.reduce(NCA, {"scale": scale})
        gap = kept(found["others"] - found["own"], keep)
        return kept(softplus(gap) if objective == "log" else gap.sigmoid(), keep)  # −log p and 1 − p, small ones too

    return batch.averaged(values, keep, query_stats(scores))


# ---- modules --------------------------------------------------------------------------------------------------------


class NPairsLoss(Loss):
    """N-pairs loss; see :func:`nearfar.functional.n_pairs_loss`.

    Args:
        regularization: Weight of the rows' mean squared norm.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.NPairsLoss()(torch.eye(4), torch.eye(4))
        tensor(0.7437)
    """

    function = n_pairs_loss
    own_options = frozenset({"regularization"})

    def __init__(self, regularization: float = 0.0, **options: Any) -> None:
        super().__init__(regularization=regularization, **options)


class NCALoss(SoftmaxLoss):
    """Neighbourhood components analysis; see :func:`nearfar.functional.nca_loss`.

    Args:
        temperature: τ, 1 by default.
        learnable: Learn τ.
        max_scale: Largest 1/τ that learning may reach; 100 by default, or the start's where that is larger.
        **options: ``objective``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.NCALoss()(torch.ones(4, 2), labels=torch.tensor([0, 0, 1, 1]))
        tensor(1.0986)
    """

    function = nca_loss
    default_temperature = 1.0
    own_options = frozenset({"objective"})
