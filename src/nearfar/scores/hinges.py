"""All hinges ``[u_p − v_n]₊`` of some anchors where each has few positives: a comparison a positive, and nothing else.

With ``u_p = d_ap + margin``, ``v_n = d_an``, ``c_n = #{p: u_p > v_n}`` and ``k_p = #{n: v_n < u_p}``, the sum of all hinges is
``Σ_p k_p·u_p − Σ_n c_n·v_n``, its gradient ``k_p`` by each ``d_ap`` and ``−c_n`` by each ``d_an``. Counts are floats, exact to
2²⁴, because a comparison that writes floats runs at the speed of an addition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.scores.memory import Buffer

FEW = 32
"""Rows of the largest class up to which comparing beats bisection."""


@dataclass(frozen=True, eq=False)
class Classmates:
    """Where each query's positives are, for relations that classes alone define."""

    query: Float[Tensor, " n"]
    key: Float[Tensor, " m"]
    order: Int[Tensor, " m"]
    first: Int[Tensor, " n"]
    count: Int[Tensor, " n"]
    width: int
    own: int | None

    @classmethod
    def of(cls, pairs: Pairs, dtype: torch.dtype) -> Classmates | None:
        """The table of a relation; ``None`` where classes do not define it, or one has many rows."""
        classes = pairs.classes(dtype)
        if classes is None or 0 in pairs.shape:
            return None
        query, key = classes
        ordered, order = key.sort(stable=True)
        first = torch.searchsorted(ordered, query)
        count = torch.searchsorted(ordered, query, right=True) - first
        width = int(count.max())
        return cls(query, key, order, first, count, width, pairs.own) if width <= FEW else None

    def positives(self, i: slice) -> tuple[Int[Tensor, "b p"], Bool[Tensor, "b p"]]:
        """The keys of queries ``i``'s classes, and which of them are positives."""
        place = torch.arange(self.width, device=self.order.device)
        index = self.order[(self.first[i, None] + place).clamp_(max=len(self.order) - 1)]
        valid = place < self.count[i, None]
        if self.own is not None:
            own = torch.arange(i.start, i.stop, device=self.order.device)[:, None] + self.own
            valid = valid & (index != own)
        return index, valid


def all_hinges(
    distances: Float[Tensor, "b m"], margin: Tensor, i: slice, mates: Classmates, buffers: tuple[Buffer, Buffer, Buffer]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "b m"]]:
    """Sum of the hinges of anchors ``i``, how many are open, and the gradient by the distances (a buffer)."""
    shape = distances.shape
    v, flags, slope = (buffer(*shape) for buffer in buffers)
    far = torch.finfo(v.dtype).max / 4
    index, valid = mates.positives(i)
    u = (distances.gather(1, index) + margin).masked_fill_(~valid, -far)
    # around the middle of the u: the two sums of the total would cancel else
    middle = u.masked_fill(~valid, 0.0).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    u -= middle
    torch.sub(distances, middle, out=v)
    v.add_(torch.eq(mates.query[i, None], mates.key, out=flags), alpha=far)
    opened = []
    for p in range(mates.width):
        mark = slope if p == 0 else flags
        torch.lt(v, u[:, p, None], out=mark)
        opened.append(mark.sum(1))
        if p:
            slope.add_(flags)
    below = torch.stack(opened, 1)
    total = (below * u.masked_fill(~valid, 0.0)).sum(dtype=torch.float64)
    total = total - torch.mul(slope, v, out=flags).sum(1).sum(dtype=torch.float64)
    gradient = slope.neg_().scatter_add_(1, index, below)
    return total, below.sum(dtype=torch.float64), gradient
