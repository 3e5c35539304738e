"""All hinges of a batch where each anchor has few positives, a tile at a time, so that what is compared stays near.

What a positive's gradient needs, the number of negatives below it, is known when its anchor's last tile was seen; but that gradient
is a list, and added by itself. A tile's own is known at once. Rows are in order of class: tiles away from the diagonal hold no
positive, and need no mask.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.scores.buffers import Buffer
from nearfar.scores.hinges import Classmates
from nearfar.scores.matmul import add_mm, mm
from nearfar.scores.similarity import over, root, tile_squares
from nearfar.types import Similarity

LARGE = 2**20
"""Distances from which tiles pay for their start; below, whole rows stay in the cache."""
ROWS, COLUMNS = 512, 1024
"""Of a tile: four buffers of 2 MB. Smaller ones fit the cache better, but leave two threads too little to do each time."""


class HingeTiles:
    """The total of all hinges, and its gradient.

    Args:
        x: Anchors.
        y: Positives and negatives.
        margin: A scalar.
        mates: Where the positives are.
        similarity: What a score is; distances are ``1 − score`` of dot products.
    """

    def __init__(
        self,
        x: Float[Tensor, "n d"],
        y: Float[Tensor, "m d"],
        margin: Tensor,
        mates: Classmates,
        similarity: Similarity,
    ) -> None:
        self.margin, self.similarity = margin, similarity
        self.order = mates.query.argsort(stable=True)
        self.key_order = mates.order
        self.x, self.y = x[self.order], y[self.key_order]
        self.query, self.key = mates.query[self.order], mates.key[self.key_order]
        self.first, self.count = mates.first[self.order], mates.count[self.order]
        self.own = None
        self.width = mates.width
        if mates.own is not None:  # where each query's own sample stands among the keys
            place = torch.empty_like(self.key_order)
            place[self.key_order] = torch.arange(len(place), device=place.device)
            own = self.order + mates.own
            inside = (own >= 0) & (own < len(place))
            self.own = place[own.clamp(0, len(place) - 1)].masked_fill_(~inside, -1)
        self._memory = [Buffer(x, ROWS * COLUMNS) for _ in range(4)]

    def visit(self, dx: Tensor | None, dy: Tensor | None) -> tuple[Tensor, Tensor]:
        """The total and how many hinges are open; adds the total's gradient."""
        total = active = self.x.new_zeros((), dtype=torch.float64)
        n, m = len(self.x), len(self.y)
        x, y, y2 = self.x, self.y, self.y.square().sum(1)
        ends = [
            (self.query[::ROWS], self.query[ROWS - 1 :: ROWS]),
            (self.key[::COLUMNS], self.key[COLUMNS - 1 :: COLUMNS]),
        ]
        low, high = ([first.tolist() for first, _ in ends], [[*last.tolist(), torch.inf] for _, last in ends])
        to_x = None if dx is None else torch.zeros_like(x)
        to_y = None if dy is None else torch.zeros_like(y)
        y_weight = y.new_zeros(m)
        for a, start in enumerate(range(0, n, ROWS)):
            i = slice(start, min(start + ROWS, n))
            index, valid, near = self._positives(i)
            u = near + self.margin
            # around the middle of the u: the two sums of the total would cancel else
            middle = u.masked_fill(~valid, 0.0).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
            u = (u - middle).masked_fill_(~valid, -torch.inf)
            below, x_weight = torch.zeros_like(u), x.new_zeros(i.stop - i.start)
            for b, begin in enumerate(range(0, m, COLUMNS)):
                j = slice(begin, min(begin + COLUMNS, m))
                apart = high[0][a] < low[1][b] or high[1][b] < low[0][a]
                opened, value, slope = self._tile(i, j, u, middle, y2[j], apart, to_x is not None or to_y is not None)
                below += opened
                total = total - value
                if to_x is not None:
                    add_mm(to_x[i], slope, y[j])
                    x_weight += slope.sum(1)
                if to_y is not None:
                    add_mm(to_y[j], slope.T, x[i])
                    y_weight[j] += slope.sum(0)
            total = total + (below * u.masked_fill(~valid, 0.0)).sum(dtype=torch.float64)
            active = active + below.sum(dtype=torch.float64)
            if to_x is not None and self.similarity != "dot":
                to_x[i].addcmul_(x_weight[:, None], x[i], value=-1)
            self._add_positives(i, index, near, below, to_x, to_y)
        if to_y is not None and self.similarity != "dot":
            to_y.addcmul_(y_weight[:, None], y, value=-1)
        for given, order, found in ((dx, self.order, to_x), (dy, self.key_order, to_y)):
            if given is not None and found is not None:
                given.index_add_(0, order, found)
        return total, active

    def _positives(self, i: slice) -> tuple[Int[Tensor, "b p"], Tensor, Float[Tensor, "b p"]]:
        """The keys of each anchor's class, which of them are positives, and their distances."""
        place = torch.arange(self.width, device=self.first.device)
        index, valid = self.first[i, None] + place, place < self.count[i, None]
        index.clamp_(max=len(self.y) - 1)
        if self.own is not None:
            valid = valid & (index != self.own[i, None])
            if self.width > 1:  # what is left of a class fits one column less, or the query's own sample is not in it
                valid, order = valid.long().sort(dim=1, descending=True, stable=True)
                width = max(1, int(valid.sum(1).max()))
                index, valid = index.gather(1, order)[:, :width], valid[:, :width] > 0
        picked = self.y[index]
        if self.similarity == "dot":
            return index, valid, 1 - (self.x[i, None] * picked).sum(2)
        square = (self.x[i, None] - picked).square_().sum(2)
        return index, valid, square if self.similarity == "sqeuclidean" else root(square)

    def _tile(
        self, i: slice, j: slice, u: Tensor, middle: Tensor, y2: Tensor, apart: bool, differentiable: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How many negatives each positive is above, ``Σ_n c_n·v_n``, and ``c_n`` as a weight of ``y − x`` (of ``y``, if dot)."""
        shape = i.stop - i.start, j.stop - j.start
        distances, v, flags, slope = (buffer(*shape) for buffer in self._memory)
        if self.similarity == "dot":
            far, close = mm(self.x[i], self.y[j].T, distances).neg_().add_(1), False
        else:
            far, close = tile_squares(self.x[i], self.y[j], distances, y2)
            far = far.sqrt_() if self.similarity == "euclidean" else far
        torch.sub(far, middle, out=v)
        if not apart:
            same = torch.eq(self.query[i, None], self.key[j], out=flags)
            v.add_(same, alpha=torch.finfo(v.dtype).max / 4)
        opened = []
        for p in range(u.shape[1]):
            mark = flags if p else slope
            torch.lt(v, u[:, p, None], out=mark)
            opened.append(mark.sum(1))
            if p:
                slope.add_(flags)
        value = torch.mul(slope, v, out=flags).sum(1).sum(dtype=torch.float64)
        if differentiable and self.similarity == "sqeuclidean":
            slope.mul_(2)
        elif differentiable and self.similarity == "euclidean":
            slope = over(slope, far) if close else slope.div_(far)
        return torch.stack(opened, 1), value, slope

    def _add_positives(
        self, i: slice, index: Tensor, near: Tensor, below: Tensor, to_x: Tensor | None, to_y: Tensor | None
    ) -> None:
        """The positives' gradient: each counts as often as there are negatives below it."""
        if to_x is None and to_y is None:
            return
        x, picked = self.x[i, None], self.y[index]
        weight = below
        if self.similarity == "dot":
            pull, push = -picked, -x.expand_as(picked)
        else:
            pull = x - picked
            push = -pull
            weight = 2 * below if self.similarity == "sqeuclidean" else (below / near).masked_fill_(near == 0, 0.0)
        if to_x is not None:
            to_x[i] += (weight[:, :, None] * pull).sum(1)
        if to_y is not None:
            to_y.index_add_(0, index.reshape(-1), (weight[:, :, None] * push).flatten(0, 1))
