"""The scores of a small batch as one node of the graph, from raw rows and back to them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores.autograd import full_precision, once
from nearfar.scores.edges import Edges
from nearfar.scores.matmul import mm
from nearfar.scores.sides import Sides
from nearfar.scores.similarity import tile_scores
from nearfar.scores.softmax import largest, longest_product
from nearfar.types import Similarity


def hold(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    scale: float | Float[Tensor, ""],
    offsets: Float[Tensor, " m"] | None,
    edges: Edges | None,
    similarity: Similarity,
    unit: bool,
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "p 1"] | None]:
    """All scores, and once more those of the positives, where their places are given."""
    return _Hold.apply(x, None if y is x else y, scale, offsets, edges, similarity, unit)  # pyright: ignore[reportReturnType]


def bound(
    x: Tensor, y: Tensor, scale: float | Tensor, offsets: Tensor | None, similarity: Similarity, unit: bool
) -> float:
    """No score is further from 0."""
    if similarity != "dot":
        return torch.inf
    with torch.no_grad():
        return float(scale) * (1.0 if unit else longest_product(x, y)) + largest(offsets)


class _Hold(torch.autograd.Function):
    """The scores, and once more those of the positives, so that their gradient is a list as well."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        scale: float | Tensor,
        offsets: Tensor | None,
        edges: Edges | None,
        similarity: Similarity,
        unit: bool,
    ) -> tuple[Tensor, Tensor | None]:
        sides, number, distances = Sides.of(x, y, unit), float(scale), None
        if similarity == "dot":
            scores = mm(sides.queries if number == 1.0 else sides.queries * number, sides.keys.T)
        else:
            scores = tile_scores(sides.queries, sides.keys, similarity, itself=y is None)
            distances = scores if similarity == "euclidean" else None
        if offsets is not None:
            scores = scores + offsets
        ctx.set_materialize_grads(False)
        ctx.edges, ctx.number, ctx.similarity = edges, number, similarity
        ctx.save_for_backward(x, y, scale if isinstance(scale, Tensor) else None, *sides[:3], distances)
        if edges is None:
            return scores, None
        near = scores.view(-1).index_select(0, edges.place) if edges.row.shape[0] else scores.new_zeros(0)
        return scores, near[:, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, scale, *sides, distances = ctx.saved_tensors
        of_scores, of_near = gradients
        if of_scores is None and of_near is None:
            return (None,) * 7
        with torch.no_grad(), full_precision(x):
            slope = x.new_zeros(ctx.edges.shape) if of_scores is None else of_scores
            if of_near is not None and of_near.shape[0]:
                slope = slope.clone(memory_format=torch.contiguous_format) if of_scores is not None else slope
                slope.view(-1).index_add_(0, ctx.edges.place, of_near[:, 0])
            sides, wanted = Sides(*sides, own=y is None), ctx.needs_input_grad[:4]
            dx, dy, dscale, doffsets = sides.pull(slope, wanted, ctx.number, ctx.similarity, distances)
            found = dx, dy, None if dscale is None else dscale.view(scale.shape), doffsets
        return *(once(gradient, x, y, scale) for gradient in found), None, None, None
