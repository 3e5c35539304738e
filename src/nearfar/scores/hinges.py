"""Triplets of some anchors where each has few positives: a comparison a positive, and nothing else.

With ``u_p = d_ap + margin`` and ``v_n = d_an``, let ``c_n = #{p: u_p > v_n}`` and ``k_p = #{n: v_n < u_p}``. All hinges
``[u_p − v_n]₊`` add up to ``Σ_p k_p·u_p − Σ_n c_n·v_n``, with gradient ``k_p`` by each ``d_ap`` and ``−c_n`` by each ``d_an``.
Counts are floats, exact to 2²⁴, because a comparison that writes floats runs at the speed of an addition.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from nearfar.pairs import Pairs
from nearfar.scores.buffers import Buffer

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


@dataclass(frozen=True, eq=False)
class Hinges:
    """What a visit of some anchors found; the gradients are those of the total."""

    total: Tensor
    active: Tensor
    dropped: Tensor | int
    margin: Tensor | int
    distances: Float[Tensor, "b m"]


@dataclass(frozen=True, eq=False)
class FewPositives:
    """The hinges of anchors ``i``, from their distances to every key; ``memory``: three buffers of that size."""

    mates: Classmates
    margin: Tensor
    memory: tuple[Buffer, Buffer, Buffer]

    def _placed(self, distances: Tensor, i: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each anchor's positives: their keys, which count, their distances; and all distances, far where not to a negative."""
        index, valid = self.mates.positives(i)
        far = torch.finfo(distances.dtype).max / 4
        v, same = (buffer(*distances.shape) for buffer in self.memory[:2])
        torch.eq(self.mates.query[i, None], self.mates.key, out=same)
        return index, valid, distances.gather(1, index), torch.add(distances, same, alpha=far, out=v)

    def all(self, distances: Float[Tensor, "b m"], i: slice) -> Hinges:
        """Every triplet's."""
        index, valid, positive, v = self._placed(distances, i)
        flags, slope = (buffer(*distances.shape) for buffer in self.memory[1:])
        # around the middle of the u: the two sums of the total would cancel else
        u = positive + self.margin
        middle = u.masked_fill(~valid, 0.0).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
        u = (u - middle).masked_fill_(~valid, -torch.inf)
        v -= middle
        opened = []
        for p in range(self.mates.width):
            mark = slope if p == 0 else flags
            torch.lt(v, u[:, p, None], out=mark)
            opened.append(mark.sum(1))
            if p:
                slope.add_(flags)
        below = torch.stack(opened, 1)
        total = (below * u.masked_fill(~valid, 0.0)).sum(dtype=torch.float64)
        total = total - torch.mul(slope, v, out=flags).sum(1).sum(dtype=torch.float64)
        active = below.sum(dtype=torch.float64)
        return Hinges(total, active, 0, active, slope.neg_().scatter_add_(1, index, below))

    def semihard(self, distances: Float[Tensor, "b m"], i: slice, soft: bool) -> Hinges:
        """Each positive's with the nearest negative beyond it, if that is within the margin."""
        index, valid, u, v = self._placed(distances, i)
        flags, beyond = (buffer(*distances.shape) for buffer in self.memory[1:])
        far = torch.finfo(v.dtype).max / 8
        backward = torch.arange(
            v.shape[1], 0, -1, dtype=v.dtype, device=v.device
        )  # the lowest of equal keys counts most
        nearest, column = [], []
        for p in range(self.mates.width):
            torch.add(v, torch.le(v, u[:, p, None], out=flags), alpha=far, out=beyond)
            nearest.append(beyond.amin(1))
            torch.eq(beyond, nearest[-1][:, None], out=flags)
            column.append(v.shape[1] - flags.mul_(backward).amax(1).long())  # beyond the last, where all are NaN
        found, chosen = torch.stack(nearest, 1), torch.stack(column, 1).clamp_(max=v.shape[1] - 1)
        picked = valid & ~(found >= u + self.margin)  # NaN is not passed over
        gap = (u - found).masked_fill_(~picked, 0.0)
        value = softplus(gap) if soft else (gap + self.margin).clamp_(min=0)
        slope = (gap.sigmoid() if soft else (value > 0).to(v.dtype)).masked_fill_(~picked, 0.0)
        gradient = beyond.zero_().scatter_add_(1, index, slope).scatter_add_(1, chosen, -slope)
        total = value.masked_fill_(~picked, 0.0).sum(dtype=torch.float64)
        active = picked.sum(dtype=torch.float64)
        return Hinges(total, active, (valid & ~picked).sum(), 0 if soft else slope.sum(), gradient)
