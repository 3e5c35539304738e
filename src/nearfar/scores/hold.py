"""The scores of a small batch as one node of the graph, from raw rows and back to them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores.autograd import full_precision, once
from nearfar.scores.edges import Edges
from nearfar.scores.matmul import mm
from nearfar.scores.sides import Sides
from nearfar.scores.similarity import tile_scores
from nearfar.scores.softmax import RANGE, largest, longest_product
from nearfar.types import Similarity


class Given(NamedTuple):
    """What the scores of a small batch are made of."""

    x: Float[Tensor, "n d"]
    """Queries, not empty."""
    y: Float[Tensor, "m d"]
    """Keys, not empty; ``x`` itself for rows paired with themselves."""
    scale: float | Float[Tensor, ""]
    """Multiplies the products of rows; one number."""
    offsets: Float[Tensor, " m"] | None
    """Added to the scores of each key."""
    similarity: Similarity
    """What a score is."""
    unit: bool
    """Divide rows by their norm."""

    def hold(self, edges: Edges | None) -> tuple[Float[Tensor, "n m"], Float[Tensor, "p 1"] | None]:
        """All scores ``scale · ⟨x_i, y_j⟩ + o_j``, or distances; and again the positives', where their places are given."""
        y = None if self.y is self.x else self.y
        return _Hold.apply(self.x, y, self.scale, self.offsets, edges, self.similarity, self.unit)  # pyright: ignore[reportReturnType]

    def within(self, power: float, bound: float = RANGE) -> bool:
        """Whether no score times ``power`` is further from 0; none within the range overflows when it is exponentiated."""
        if self.similarity != "dot":
            return False
        with torch.no_grad():
            longest = 1.0 if self.unit else longest_product(self.x, self.y)
            return (float(self.scale) * longest + largest(self.offsets)) * power <= bound


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
            scores = mm(sides.queries, sides.keys.T)
            scores = scores if number == 1.0 else scores.mul_(number)  # once a score, not once an entry of its rows
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
            near = (ctx.edges.place, of_near[:, 0]) if of_near is not None and of_near.shape[0] else None
            sides, wanted = Sides(*sides, own=y is None), ctx.needs_input_grad[:4]
            dx, dy, dscale, doffsets = sides.pull(slope, wanted, ctx.number, ctx.similarity, distances, more=near)
            found = dx, dy, None if dscale is None else dscale.view(scale.shape), doffsets
        return *(once(gradient, x, y, scale, *gradients) for gradient in found), None, None, None
