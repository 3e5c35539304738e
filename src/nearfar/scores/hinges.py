"""Triplets of some anchors where each has few positives: a comparison a positive, and nothing else.

With ``u_p = d_ap + margin`` and ``v_n = d_an``, let ``c_n = #{p: u_p > v_n}`` and ``k_p = #{n: v_n < u_p}``. All hinges
``[u_p − v_n]₊`` add up to ``Σ_p k_p·u_p − Σ_n c_n·v_n``, with gradient ``k_p`` by each ``d_ap`` and ``−c_n`` by each ``d_an``.
Counts are floats, exact to 2²⁴, because a comparison that writes floats runs at the speed of an addition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.scores.buffers import Buffer
from nearfar.scores.exponentials import softplus

FEW = 32
"""Rows of the largest class up to which comparing beats bisection."""
CUBE = 2**17
"""Numbers (anchor, positive, key) at a time: more leave the cache, fewer are all start of operations."""


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


@dataclass(frozen=True, eq=False)
class Hinges:
    """What a visit of some anchors found; the gradients are those of the total."""

    total: Tensor
    active: Tensor
    dropped: Tensor | int
    margin: Tensor | int
    distances: Float[Tensor, "b m"]


class FewPositives:
    """The hinges of some anchors at a time, from their distances to every key.

    Args:
        mates: Where their positives are.
        margin: A scalar.
        like: A tensor of their kind.
        size: Most distances at a time.
    """

    def __init__(self, mates: Classmates, margin: Tensor, like: Tensor, size: int) -> None:
        self.mates, self.margin = mates, margin
        self._negatives, self._slope = Buffer(like, size), Buffer(like, size)
        self._cube = like.new_empty(max(size, min(CUBE, size * mates.width)))

    def _placed(self, distances: Tensor, i: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each anchor's positives: their keys, which count, their distances; and all distances, far where not to a negative."""
        index, valid = self.mates.positives(i)
        far = torch.finfo(distances.dtype).max / 4
        same = torch.eq(self.mates.query[i, None], self.mates.key, out=self._slope(*distances.shape))
        v = torch.add(distances, same, alpha=far, out=self._negatives(*distances.shape))
        return index, valid, distances.gather(1, index), v

    def _compared(self, u: Float[Tensor, "b p"], v: Float[Tensor, "b m"]) -> Iterator[tuple[Tensor, Tensor]]:
        """As many positives at a time as fit, ``(b, q, 1)``, and memory to compare them with all keys in, ``(b, q, m)``."""
        (b, m), step = v.shape, max(1, len(self._cube) // max(v.numel(), 1))
        for part in u.split(step, 1):
            q = part.shape[1]
            yield part[:, :, None], self._cube[: b * q * m].view(b, q, m)

    def all(self, distances: Float[Tensor, "b m"], i: slice) -> Hinges:
        """Every triplet's."""
        index, valid, positive, v = self._placed(distances, i)
        # around the middle of the u: the two sums of the total would cancel else
        u = positive + self.margin
        middle = u.masked_fill(~valid, 0.0).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        u = (u - middle).masked_fill_(~valid, -torch.inf)
        v -= middle
        slope, below = self._slope(*v.shape), []
        for part, cube in self._compared(u, v):
            opened = torch.lt(v[:, None], part, out=cube)
            above = opened.sum(1) if opened.shape[1] > 1 else opened[:, 0]
            slope = slope.add_(above) if below else slope.copy_(above)
            below.append(opened.sum(2))
        below = torch.cat(below, 1)
        total = (below * u.masked_fill(~valid, 0.0)).sum(dtype=torch.float64)
        total = total - v.mul_(slope).sum(1).sum(dtype=torch.float64)
        active = below.sum(dtype=torch.float64)
        return Hinges(total, active, 0, active, slope.neg_().scatter_add_(1, index, below))

    def semihard(self, distances: Float[Tensor, "b m"], i: slice, soft: bool) -> Hinges:
        """Each positive's with the nearest negative beyond it, if that is within the margin."""
        index, valid, u, v = self._placed(distances, i)
        m, far = v.shape[1], torch.finfo(v.dtype).max / 8
        backward = torch.arange(m, 0, -1, dtype=v.dtype, device=v.device)  # the lowest of equal keys counts most
        nearest, column = [], []
        for part, cube in self._compared(u, v):
            beyond = torch.add(v[:, None], torch.le(v[:, None], part, out=cube), alpha=far, out=cube)
            nearest.append(beyond.amin(2))
            here = torch.eq(beyond, nearest[-1][:, :, None], out=cube)
            column.append(m - here.mul_(backward).amax(2).long())  # beyond the last, where all are NaN
        found, chosen = torch.cat(nearest, 1), torch.cat(column, 1).clamp_(max=m - 1)
        picked = valid & ~(found >= u + self.margin)  # NaN is not passed over
        gap = (u - found).masked_fill_(~picked, 0.0)
        value = softplus(gap) if soft else (gap + self.margin).clamp_(min=0)
        slope = (gap.sigmoid() if soft else (value > 0).to(v.dtype)).masked_fill_(~picked, 0.0)
        gradient = self._slope(*v.shape).zero_().scatter_add_(1, index, slope).scatter_add_(1, chosen, -slope)
        total = value.masked_fill_(~picked, 0.0).sum(dtype=torch.float64)
        active = picked.sum(dtype=torch.float64)
        return Hinges(total, active, (valid & ~picked).sum(), 0 if soft else slope.sum(), gradient)
