"""The oracle of the plans: the whole matrix of scores, plain torch, differentiable any number of times.

Never optimised. It serves small batches, second derivatives, and the tests of every other plan.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.scores.reductions import Reduction, Stage, Tile


def reduce(
    scores: Float[Tensor, "n m"],
    pairs: Pairs,
    stage: Stage,
    parameters: Mapping[str, Tensor],
    statistics: Mapping[str, Float[Tensor, " n"]],
    key_statistics: Mapping[str, Float[Tensor, " m"]],
) -> dict[str, Float[Tensor, " n"]]:
    """Every reduction of a lowered stage, one number a query."""
    columns = {name: value[None, :] for name, value in key_statistics.items()}
    rows = {name: value[:, None] for name, value in statistics.items()}
    tile = Tile(pairs.whole(), parameters, rows, columns)
    return {name: _reduce(reduction, scores, tile) for name, reduction in stage.items()}


def _reduce(reduction: Reduction, scores: Float[Tensor, "n m"], tile: Tile) -> Float[Tensor, " n"]:
    mask = reduction.mask(scores, tile)
    if mask is None or mask is True:
        mask = torch.full_like(scores, mask is True, dtype=torch.bool)
    if reduction.op == "count":
        return mask.sum(1).to(scores.dtype)
    weight = reduction.weight(tile)
    weight = mask.to(scores.dtype) if weight is None else (weight * mask).to(scores.dtype)
    if reduction.op == "weight":
        return weight.sum(1)
    values = reduction.values(scores, tile)
    if reduction.op == "logsumexp":
        values = values if reduction.weight(tile) is None else values + weight.masked_fill(~mask, 1.0).log()
        some = mask.any(1, keepdim=True)  # rows of −∞ alone have no derivative in forward mode
        return values.masked_fill(~mask & some, -torch.inf).logsumexp(1).masked_fill(~some[:, 0], -torch.inf)
    return (values.masked_fill(~mask, 0.0) * weight).sum(1)
