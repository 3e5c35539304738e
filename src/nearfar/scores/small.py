"""The mean softmax loss of a batch that fits one tile: value and gradient at once, a few dozen operations in all.

At the sizes that most people train with, time goes into the number of operations, not into arithmetic. This plan builds the
scores once, and what backward would need is a product away while they are still at hand.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.scores.autograd import full_precision, once, presigned
from nearfar.scores.softmax import within_range


def mean_softmax(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    weights: Float[Tensor, " n"] | None,
    pairs: Pairs,
    both_ways: bool = False,
) -> Float[Tensor, ""]:
    """Weighted mean of ``LSE(candidates) − mean(positives)`` over the queries with a positive.

    Args:
        x: Queries.
        y: Keys; ``x`` itself for rows paired with themselves.
        offsets: Added to the scores of each key.
        weights: Of the queries (and of the keys, both ways); constants.
        pairs: Who belongs with whom.
        both_ways: The mean of this and of the same with keys asking queries (the offsets cancel there).
    """
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, y, offsets))
    own = y is x
    return _MeanSoftmax.apply(x, None if own else y, offsets, weights, pairs, both_ways, wanted)[0]  # pyright: ignore[reportOptionalSubscript]


@presigned
class _MeanSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor,
        y: Tensor | None,
        offsets: Tensor | None,
        weights: Tensor | None,
        pairs: Pairs,
        both_ways: bool,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        with full_precision(x):
            return _forward(x, y, offsets, weights, pairs, both_ways, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        _, *gradients = output
        ctx.mark_non_differentiable(*(g for g in gradients if g is not None))
        ctx.save_for_backward(*inputs[:2], *gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, *saved = ctx.saved_tensors
        with torch.no_grad():
            found = [None if gradient is None else gradient * gradients[0] for gradient in saved]
        return *(once(gradient, x, y) for gradient in found), None, None, None, None


def _forward(
    x: Tensor,
    y: Tensor | None,
    offsets: Tensor | None,
    weights: Tensor | None,
    pairs: Pairs,
    both_ways: bool,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    keys = x if y is None else y
    scores = torch.mm(x, keys.T)
    if offsets is not None:
        scores += offsets
    positives = _Diagonals(pairs) if pairs.layout is not None and pairs.rows is None else _Mask(pairs, x.dtype)
    attraction = positives.of(scores)
    scores = positives.without_ignored(scores)
    bounded = within_range(x, keys, offsets)
    value, slope = _side(scores, positives, attraction, weights, 1, bounded)
    if both_ways:
        # an offset is the same for all queries of a key, and cancels
        back, more = _side(scores, positives, attraction, weights, 0, bounded)
        value, slope = (value + back) / 2, slope.add_(more).mul_(0.5)
    doffsets = slope.sum(0) if wanted[2] else None
    if y is None:
        return value, torch.mm(slope + slope.T, x) if wanted[0] else None, None, doffsets
    return value, torch.mm(slope, y) if wanted[0] else None, torch.mm(slope.T, x) if wanted[1] else None, doffsets


def _side(
    scores: Tensor, positives: _Mask | _Diagonals, attraction: Tensor, weights: Tensor | None, dim: int, bounded: bool
) -> tuple[Tensor, Tensor]:
    """One side's mean and the gradient of its scores."""
    count = positives.count(attraction, dim)
    keep = count > 0
    share = keep.to(scores.dtype) if weights is None else weights * keep
    share = share / share.sum().clamp_(min=torch.finfo(scores.dtype).tiny)
    per_positive = share / count.masked_fill(~keep, 1.0)
    if bounded:
        slope = scores.exp()
        total = slope.sum(dim)
        total.masked_fill_(total == 0, 1.0)
        lse = total.log()
        slope.mul_((share / total).unsqueeze(dim))
    else:
        lse = scores.logsumexp(dim)
        lse.masked_fill_(lse == -torch.inf, 0.0)
        slope = (scores - lse.unsqueeze(dim)).exp_().mul_(share.unsqueeze(dim))
    value = torch.dot(share, lse) - torch.dot(per_positive, positives.sum(attraction, dim))
    positives.subtract(slope, per_positive, dim)
    return value, slope


class _Mask:
    """Positives anywhere: a matrix of their weights."""

    def __init__(self, pairs: Pairs, dtype: torch.dtype) -> None:
        positive, self.ignored, weight = pairs.whole()
        assert positive is not None
        self.target = (positive if weight is None else weight).to(dtype)

    def of(self, scores: Tensor) -> Tensor:
        return scores * self.target

    def without_ignored(self, scores: Tensor) -> Tensor:
        return scores if self.ignored is None else scores.masked_fill_(self.ignored, -torch.inf)

    def count(self, attraction: Tensor, dim: int) -> Tensor:
        return self.target.sum(dim)

    def sum(self, attraction: Tensor, dim: int) -> Tensor:
        return attraction.sum(dim)

    def subtract(self, slope: Tensor, each: Tensor, dim: int) -> None:
        slope.addcmul_(self.target, each.unsqueeze(dim), value=-1)


class _Diagonals:
    """Views of a sample stand ``n`` rows apart: the positives are a few diagonals."""

    def __init__(self, pairs: Pairs) -> None:
        assert pairs.layout is not None
        self.itself, self.rows = pairs.itself, pairs.shape[0]
        step = self.rows // pairs.layout
        steps = range(-(pairs.layout - 1), pairs.layout)
        self.offsets = [step * k for k in steps if k or not pairs.itself]

    def of(self, scores: Tensor) -> Tensor:
        """Scores of the positives, one line a diagonal, 0 where a diagonal has left the matrix."""
        lines = scores.new_zeros(len(self.offsets), self.rows)
        for line, offset in zip(lines, self.offsets):
            line[max(-offset, 0) : self.rows - max(offset, 0)] = scores.diagonal(offset)
        return lines

    def without_ignored(self, scores: Tensor) -> Tensor:
        return scores.fill_diagonal_(-torch.inf) if self.itself else scores

    def count(self, attraction: Tensor, dim: int) -> Tensor:
        views = (len(self.offsets) + 1 + self.itself) // 2
        return attraction.new_full((self.rows,), views - self.itself)

    def sum(self, attraction: Tensor, dim: int) -> Tensor:
        return attraction.sum(
            0
        )  # both ways alike where rows are paired with themselves; one line where they are aligned

    def subtract(self, slope: Tensor, each: Tensor, dim: int) -> None:
        for offset in self.offsets:
            slope.diagonal(offset).sub_(each[max(-offset, 0) : self.rows - max(offset, 0)])
