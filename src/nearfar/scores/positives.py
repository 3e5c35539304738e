"""Sums of a query's positive scores in O(n·d): dot products are linear in the keys, so that the keys are added up first."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.scores.similarity import some_scores


def can_be_summed(pairs: Pairs) -> bool:
    """Whether ids alone say who is positive."""
    return pairs.ids is not None and 0 not in pairs.shape


def sum_of_positives(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], offsets: Float[Tensor, " m"] | None, pairs: Pairs
) -> Float[Tensor, " n"]:
    """``Σ_{p∈P(i)} (⟨x_i, y_p⟩ + o_p) = ⟨x_i, Σ_p y_p⟩ + Σ_p o_p``; 0 for a query without any."""
    if pairs.layout == 1:
        total = some_scores(x, y, "dot") * (1.0 if pairs.own is None else 0.0)
        return total if offsets is None or pairs.own is not None else total + offsets
    views = pairs.layout if pairs.own is not None else None
    return _of_views(x, y, offsets, views) if views else _of_classes(x, y, offsets, pairs)


def _of_views(x: Tensor, y: Tensor, offsets: Tensor | None, views: int) -> Tensor:
    """The other views of a sample stand whole batches away."""
    n, total = len(x) // views, x.new_zeros(())
    for view in range(1, views):
        total = total + some_scores(x, y.roll(n * view, 0), "dot")
        total = total if offsets is None else total + offsets.roll(n * view)
    return total


def _of_classes(x: Tensor, y: Tensor, offsets: Tensor | None, pairs: Pairs) -> Tensor:
    """Every class's keys are added up once, at the place of the class's first key in order."""
    assert pairs.ids is not None
    query, key = pairs.ids
    ordered, _ = key.sort()
    slot = torch.searchsorted(ordered, key)
    home = torch.searchsorted(ordered, query).clamp(max=len(ordered) - 1)
    found = ordered[home] == query
    keys = y if offsets is None else torch.cat([y, offsets[:, None]], 1)
    sums = torch.zeros_like(keys).index_add_(0, slot, keys)[home]
    if pairs.itself is not None:
        i, j = pairs.itself
        sums[i] -= keys[j] if query is key and pairs.own == 0 else keys[j] * (query[i] == key[j])[:, None]
    total = some_scores(x, sums[:, : x.shape[1]], "dot")
    total = total if offsets is None else total + sums[:, -1]
    return total.masked_fill(~found, 0.0)
