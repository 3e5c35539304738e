"""Both sides of a small batch in one matrix: half the operations, and one way back from the scores' gradient to the raw rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores.matmul import mm
from nearfar.scores.similarity import weights_of
from nearfar.types import Similarity

Wanted = tuple[bool, bool, bool, bool]
"""Whose gradient: the queries', the keys', the scale's, the offsets'."""


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
        inverse = torch.linalg.vector_norm(both, dim=1, keepdim=True).reciprocal_()
        inverse.nan_to_num_(nan=torch.nan, posinf=0.0)  # a row of zeros
        both = both * inverse
        return cls(both if y is None else both[: len(x)], both if y is None else both[len(x) :], inverse, y is None)

    def pull(
        self,
        slope: Float[Tensor, "n m"],
        wanted: Wanted,
        scale: float = 1.0,
        similarity: Similarity = "dot",
        distances: Float[Tensor, "n m"] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the raw queries, the raw keys, the scale and the offsets.

        Args:
            slope: Gradient of the scores.
            wanted: Which gradients to compute; the others are ``None``.
            scale: What multiplied the products.
            similarity: What a score is.
            distances: The scores, where they are distances.
        """
        doffsets = slope.sum(0) if wanted[3] else None
        metric, x, y = similarity != "dot", self.queries, self.keys
        if self.own:  # by way of a copy: a transposed sum reads its memory across
            slope = slope.T.clone(memory_format=torch.contiguous_format).add_(slope)
        if metric:
            slope = weights_of(slope if self.own else slope.clone(), distances, similarity)
        # frozen keys, such as a queue's, spare a product
        sides = [mm(slope, y) if wanted[0] or wanted[2] else None]
        sides.append(mm(slope.T, x) if wanted[1] and not self.own else None)
        if metric:  # a weighted graph Laplacian
            for part, rows, dim in zip(sides, (x, y), (1, 0)):
                if part is not None:
                    part.neg_().addcmul_(slope.sum(dim)[:, None], rows)
        dscale = None
        if wanted[2] and sides[0] is not None:  # ⟨∂/∂x, x⟩ by products, and twice that where x is on both sides
            dscale = torch.sum(sides[0] * x)
            dscale = dscale / 2 if self.own else dscale
        if scale != 1.0:
            sides = [None if part is None else part.mul_(scale) for part in sides]
        if self.inverse is not None:  # what changes a row's length alone is lost
            for part, rows, inverse in zip(sides, (x, y), self.inverse.split([len(x), len(self.inverse) - len(x)])):
                if part is not None:
                    along = (part * rows).sum(1, keepdim=True)
                    part.addcmul_(rows, along, value=-1).mul_(inverse)
        dx, dy = (part if want else None for part, want in zip(sides, wanted))
        return dx, dy, dscale, doffsets
