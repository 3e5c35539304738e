"""Both sides of a small batch in one matrix: half the operations, and one way back from the scores' gradient to the raw rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.lengths import measured
from nearfar.scores.matmul import mm
from nearfar.scores.similarity import weights_of
from nearfar.types import Similarity

Wanted = tuple[bool, bool, bool, bool]
"""Whose gradient: the queries', the keys', the scale's, the offsets'."""
Less = Callable[[Tensor, Tensor, Literal["queries", "keys", "offsets"]], None]
"""Subtract some pairs' part from a gradient, given the rows of the other side: ones, for offsets."""


class Sides(NamedTuple):
    """Queries and keys as they are multiplied."""

    queries: Float[Tensor, "n d"]
    keys: Float[Tensor, "m d"]
    inverse: Float[Tensor, "rows 1"] | None
    """One over each row's length, queries first, where rows were divided by it; 0 for a row of zeros."""
    own: bool
    """Whether the queries are the keys."""

    @classmethod
    def of(cls, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"] | None, unit: bool) -> Sides:
        """Rows as they were given; ``y`` is ``None`` for rows paired with themselves."""
        if not unit:
            return cls(x, x if y is None else y, None, y is None)
        both = x if y is None else torch.cat([x, y])
        (both, inverse), n = measured(both), x.shape[0]
        return cls(both, both, inverse, True) if y is None else cls(both[:n], both[n:], inverse, False)

    def pull(
        self,
        slope: Float[Tensor, "n m"],
        wanted: Wanted,
        scale: float = 1.0,
        similarity: Similarity = "dot",
        distances: Float[Tensor, "n m"] | None = None,
        less: Less | None = None,
        more: tuple[Int[Tensor, " p"], Float[Tensor, " p"]] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the raw queries, the raw keys, the scale and the offsets.

        Args:
            slope: Gradient of the scores.
            wanted: Which gradients to compute; the others are ``None``.
            scale: What multiplied the products.
            similarity: What a score is.
            distances: The scores, where they are distances.
            less: Subtracts what the slope leaves out.
            more: Places in the slope, and what is to be added there.
        """
        doffsets = slope.sum(0) if wanted[3] else None
        if doffsets is not None and less is not None:
            less(doffsets[:, None], doffsets.new_ones(self.queries.shape[0], 1), "offsets")
        if doffsets is not None and more is not None:
            doffsets.index_add_(0, more[0] % slope.shape[1], more[1])
        metric, x, y = similarity != "dot", self.queries, self.keys
        if self.own:  # by way of a copy: a transposed sum reads its memory across
            slope = slope.T.clone(memory_format=torch.contiguous_format).add_(slope)
        elif metric or more is not None:
            slope = slope.clone(memory_format=torch.contiguous_format)
        if more is not None:
            place, n = more[0], slope.shape[1]
            slope.view(-1).index_add_(0, place, more[1])
            if self.own:
                slope.view(-1).index_add_(0, place % n * n + place // n, more[1])
        if metric:
            slope = weights_of(slope, distances, similarity)
        # frozen keys, such as a queue's, spare a product
        sides = [mm(slope, y) if wanted[0] or wanted[2] else None]
        sides.append(mm(slope.T, x) if wanted[1] and not self.own else None)
        if less is not None:
            if sides[0] is not None:
                less(sides[0], y, "queries")
            if sides[1] is not None:
                less(sides[1], x, "keys")
        if metric:  # a weighted graph Laplacian
            for part, rows, dim in zip(sides, (x, y), (1, 0)):
                if part is not None:
                    part.neg_().addcmul_(slope.sum(dim)[:, None], rows)
        dscale = None
        if wanted[2] and sides[0] is not None:  # ⟨∂/∂x, x⟩ by products, and twice that where x is on both sides
            dscale = torch.sum(sides[0] * x)
            dscale = dscale / 2 if self.own else dscale
        if self.inverse is not None:  # what changes a row's length alone is lost
            factor, n = self.inverse if scale == 1.0 else self.inverse * scale, x.shape[0]
            for part, rows, share in zip(sides, (x, y), (factor[:n], factor[n:])):
                if part is not None:
                    along = (part * rows).sum(1, keepdim=True)
                    part.addcmul_(rows, along, value=-1).mul_(share)
        elif scale != 1.0:
            sides = [None if part is None else part.mul_(scale) for part in sides]
        dx, dy = (part if want else None for part, want in zip(sides, wanted))
        return dx, dy, dscale, doffsets
