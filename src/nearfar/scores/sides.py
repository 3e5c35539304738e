"""Both sides of a small batch in one matrix: half the operations, and one way back from the scores' gradient to the raw rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores.matmul import add_mm, mm
from nearfar.scores.similarity import weights_of
from nearfar.types import Similarity

Wanted = tuple[bool, bool, bool, bool]
"""Whose gradient: the queries', the keys', the scale's, the offsets'."""


class Sides(NamedTuple):
    """Queries and keys as they are multiplied."""

    both: Float[Tensor, "rows d"]
    """Queries, then keys; once where they are the same."""
    inverse: Float[Tensor, "rows 1"] | None
    """One over each row's length, where rows were divided by it; 0 for a row of zeros."""
    n: int
    """Queries."""
    own: bool
    """Whether the queries are the keys."""

    @classmethod
    def of(cls, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"] | None, unit: bool) -> Sides:
        """Rows as they were given; ``y`` is ``None`` for rows paired with themselves."""
        both, inverse = x if y is None else torch.cat([x, y]), None
        if unit:
            inverse = torch.linalg.vector_norm(both, dim=1, keepdim=True).reciprocal_()
            inverse.nan_to_num_(nan=torch.nan, posinf=0.0)  # a row of zeros
            both = both * inverse
        return cls(both, inverse, len(x), y is None)

    @property
    def queries(self) -> Float[Tensor, "n d"]:
        """As they are multiplied."""
        return self.both if self.own else self.both[: self.n]

    @property
    def keys(self) -> Float[Tensor, "m d"]:
        """As they are multiplied."""
        return self.both if self.own else self.both[self.n :]

    def pull(
        self,
        slope: Float[Tensor, "n m"],
        wanted: Wanted,
        scale: float = 1.0,
        similarity: Similarity = "dot",
        distances: Float[Tensor, "n m"] | None = None,
    ) -> tuple[Float[Tensor, "rows d"], Float[Tensor, ""] | None, Float[Tensor, " m"] | None]:
        """Gradients of the raw rows, both sides, of the scale and of the offsets. Uses ``slope`` up.

        Args:
            slope: Of the products of rows, that is ``scale`` times that of the scores.
            wanted: Which gradients to compute; others are zeros or ``None``.
            scale: What multiplied the products.
            similarity: What a score is.
            distances: The scores, where they are distances.
        """
        doffsets = slope.sum(0) / scale if wanted[3] else None
        metric = similarity != "dot"
        if metric:
            slope = weights_of(slope, distances, similarity)
        x, y, n = self.queries, self.keys, self.n
        if self.own:  # by way of a copy: a transposed sum reads its memory across
            slope = slope.T.contiguous().add_(slope)
            gradient = mm(slope, x)
        else:
            gradient = torch.zeros_like(self.both)
            if wanted[0] or wanted[2]:
                add_mm(gradient[:n], slope, y)
            if wanted[1]:  # frozen keys, such as a queue's, spare a product
                add_mm(gradient[n:], slope.T, x)
        if metric:  # a weighted graph Laplacian
            gradient.neg_()
            for part, rows, dim in ((gradient[:n], x, 1), (gradient[n:], y, 0))[: 1 if self.own else 2]:
                part.addcmul_(slope.sum(dim)[:, None], rows)
        dscale = None
        if wanted[2]:  # ⟨∂/∂x, x⟩ = scale · ∂/∂scale, and twice that where x is on both sides
            dscale = torch.sum(gradient[:n] * x) / (2 * scale if self.own else scale)
        if self.inverse is not None:  # what changes a row's length alone is lost
            along = (gradient * self.both).sum(1, keepdim=True)
            gradient.addcmul_(self.both, along, value=-1).mul_(self.inverse)
        return gradient, dscale, doffsets

    def parts(self, gradient: Float[Tensor, "rows d"], wanted: Wanted) -> tuple[Tensor | None, Tensor | None]:
        """A gradient of both sides by side."""
        x, y = (gradient, None) if self.own else (gradient[: self.n], gradient[self.n :])
        return x if wanted[0] else None, y if wanted[1] else None
