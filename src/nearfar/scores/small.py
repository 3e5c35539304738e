"""Softmax losses of a batch that fits one tile: value and gradient at once, from raw rows to raw rows.

At the sizes that most people train with, time goes into the number of operations, not into arithmetic. This plan builds the
scores once, and what backward would need is a product away while they are still at hand; norms and temperature are part
of it, so that the graph has one node.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.scores.autograd import full_precision, made_in_forward, once, one_gradient
from nearfar.scores.exponentials import exp_, softplus
from nearfar.scores.matmul import mm
from nearfar.scores.sides import Less, Sides, Wanted
from nearfar.scores.softmax import in_range, within_range

_FEW = 256 * 256  # up to here a second matrix costs less than more operations do


_ALONE = 128
"""Rows up to which a positive's part of the gradient may be one entry of its row: among so few it takes no digits of the others."""


class Ask(NamedTuple):
    """What is fixed about one mean."""

    pairs: Pairs
    """Who belongs with whom."""
    unit: bool
    """Divide rows by their norm."""
    both_ways: bool
    """The mean of this and of the same with keys asking queries (offsets cancel there)."""
    less: float = 0.0
    """Taken from the mean before it is rounded, so that what is left of it has all its digits."""


def mean_softmax(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    scale: float | Float[Tensor, ""],
    offsets: Float[Tensor, " m"] | None,
    weights: Float[Tensor, " n"] | None,
    ask: Ask,
) -> Float[Tensor, ""]:
    """Weighted mean of ``LSE(candidates) − mean(positives)`` over the queries with a positive.

    Args:
        x: Queries, not empty.
        y: Keys, not empty; ``x`` itself for rows paired with themselves.
        scale: Multiplies the products of rows; one number.
        offsets: Added to the scores of each key.
        weights: Of the queries (and of the keys, both ways); constants.
        ask: What is fixed.
    """
    return _MeanSoftmax.apply(x, None if y is x else y, scale, offsets, weights, ask, torch.is_grad_enabled())  # pyright: ignore[reportReturnType]


class _MeanSoftmax(torch.autograd.Function):
    # ``forward`` takes the context itself: a separate ``setup_context`` costs 70 µs a call

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        scale: float | Tensor,
        offsets: Tensor | None,
        weights: Tensor | None,
        ask: Ask,
        differentiable: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:4] if differentiable else (False, False, False, False)
        with full_precision(x):
            value, gradients = _forward(x, y, scale, offsets, weights, ask, wanted)
        if any(wanted):
            ctx.save_for_backward(x, y, scale if isinstance(scale, Tensor) else None, offsets, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *made_in_forward(ctx, gradients[0]), None, None, None


def _forward(
    x: Tensor,
    y: Tensor | None,
    scale: float | Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    ask: Ask,
    wanted: Wanted,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    sides, number = Sides.of(x, y, ask.unit), float(scale)
    scaled = sides.queries if number == 1.0 else sides.queries * number
    scores = mm(scaled, sides.keys.T)
    if offsets is not None:
        scores += offsets
    large = scores.numel() > _FEW
    large = large and (in_range(number, offsets) if ask.unit else within_range(scaled, sides.keys, offsets))
    value, slope, less = _mean(scores, weights, ask, large, y is None)
    value = (value - ask.less if ask.less else value).to(scores.dtype)
    if not any(wanted):
        return value, ()
    dx, dy, dscale, doffsets = sides.pull(slope, wanted, number, less=less)
    dscale = dscale.view(scale.shape) if isinstance(scale, Tensor) and dscale is not None else None
    return value, (dx, dy, dscale, doffsets)


def _mean(
    scores: Tensor, weights: Tensor | None, ask: Ask, large: bool, own: bool
) -> tuple[Tensor, Tensor, Less | None]:
    """The mean, its gradient by the scores, which it uses up, and what that gradient leaves out."""
    positives = _Diagonals(ask.pairs) if _Diagonals.suit(ask.pairs) else _Mask(ask.pairs, scores.dtype)
    dims = (1, 0) if ask.both_ways else (1,)
    shares = [positives.share(weights, dim, len(dims)) for dim in dims]
    if all(positives.single(dim) for dim in dims):
        value, slope, pulls = _against_others(scores, positives, shares, dims, large)
    else:
        pulls = [positives.each(share, dim) for share, dim in zip(shares, dims)]
        kind = _by_exponentials if large else _by_logarithms
        value, slope = kind(scores, positives, list(zip(shares, pulls)), dims)
    return value, slope, positives.subtract(slope, list(zip(pulls, dims)), own)


def _against_others(
    scores: Tensor, positives: _Mask | _Diagonals, shares: list[Share], dims: tuple[int, ...], large: bool
) -> tuple[Tensor, Tensor, list[Share]]:
    """Where a query has one positive: ``log(1 + Σ_others e^{s − s⁺})``, and what pulls each query to it.

    Nothing is subtracted from 1, in the value or in the gradient: as the others die away both keep all their digits.
    """
    values, pulls, factors, slope = [], [], [], None
    positives.counted_as_one()
    if large:  # exponentiated as they are, in no second matrix
        near = [positives.near(scores, dim) for dim in dims]
        others = positives.others(exp_(scores))
        for share, dim, own in zip(shares, dims, near):
            total = others.sum(dim)
            gap = total.log().sub_(own)
            values.append(_weighted(share, softplus(gap)))
            pulls.append(gap.sigmoid_().mul_(share))
            factors.append((pulls[-1] / total.masked_fill_(total == 0, 1.0)).unsqueeze(dim))
        slope = others.mul_(factors[0] if len(factors) == 1 else factors[0] + factors[1])
    else:
        scores = positives.without_ignored(scores, torch.finfo(scores.dtype).min / 2)
        for share, dim in zip(shares, dims):
            logs = scores.log_softmax(dim)
            near = positives.near(logs, dim)
            part = positives.others(exp_(logs))
            wrong = part.sum(
                dim
            )  # what is left for the positive is 1 less that, which is known best where this is small
            losses = torch.where(wrong < 0.5, torch.log1p(-wrong), near).neg_()
            values.append(_weighted(share, losses))
            pulls.append(wrong.mul_(share))
            part.mul_(share.unsqueeze(dim) if isinstance(share, Tensor) else share)
            slope = part if slope is None else slope.add_(part)
    assert slope is not None
    value = values[0] if len(values) == 1 else values[0] + values[1]
    return value, slope, [positives.spread(pull, dim) for pull, dim in zip(pulls, dims)]


def _by_logarithms(
    scores: Tensor,
    positives: _Mask | _Diagonals,
    shares: list[tuple[Share, Share]],
    dims: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Σ of the positives' log-probabilities: the fewest operations, and safe for scores of any size."""
    scores = positives.without_ignored(scores, torch.finfo(scores.dtype).min / 2)
    value = slope = None
    for (share, each), dim in zip(shares, dims):
        logs = scores.log_softmax(dim)
        part = positives.total(logs, each, dim)
        value = part if value is None else value + part
        part = exp_(logs).mul_(share.unsqueeze(dim) if isinstance(share, Tensor) else share)
        slope = part if slope is None else slope.add_(part)
    assert value is not None
    assert slope is not None
    return value.neg_().add_(0.0), slope  # no −0


def _by_exponentials(
    scores: Tensor,
    positives: _Mask | _Diagonals,
    shares: list[tuple[Share, Share]],
    dims: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Without a second matrix, for scores that can be exponentiated as they are."""
    value = -torch.stack([positives.total(scores, each, dim) for (_, each), dim in zip(shares, dims)]).sum()
    slope = positives.without_ignored(exp_(scores), 0.0)
    factors = []
    for (share, _), dim in zip(shares, dims):
        total = slope.sum(dim)
        if positives.may_be_empty:
            total.masked_fill_(total == 0, 1.0)
        value = value + _weighted(share, total.log())
        factors.append((share / total).unsqueeze(dim))
    return value, slope.mul_(factors[0] if len(factors) == 1 else factors[0] + factors[1])


Share = float | Tensor
"""What each query, or each positive, counts in the mean: a number where all count the same."""


def _weighted(share: Share, values: Tensor) -> Tensor:
    """Σ of values by their share, in float64 where that costs nothing."""
    return torch.dot(share, values) if isinstance(share, Tensor) else values.sum(dtype=torch.float64).mul_(share)


class _Mask:
    """Positives anywhere: a matrix of their weights."""

    may_be_empty = True  # a query may have no candidate at all

    def __init__(self, pairs: Pairs, dtype: torch.dtype) -> None:
        ids, weights = pairs.ids, pairs.matrix
        self.own = pairs.own if ids is not None or weights is not None else None
        self._unweighted, self._count = weights is None, {}
        if ids is not None:  # the commonest relation, in as few operations as can be
            self.target = (ids[0][:, None] == ids[1]).to(dtype)
            self.ignored = None
            if self.own is not None:
                self.target.diagonal(self.own).fill_(0.0)
            return
        if weights is not None:
            self.ignored = None
            self.target = weights.to(dtype, copy=self.own is not None).contiguous()
            if self.own is not None:
                self.target.diagonal(self.own).fill_(0.0)
            return
        positive, self.ignored, weight = pairs.whole()
        assert positive is not None
        self._unweighted = weight is None
        self.target = (positive if weight is None else weight).to(dtype).contiguous()  # it may have come transposed

    def share(self, weights: Tensor | None, dim: int, sides: int) -> Share:
        """What each query counts."""
        self._count[dim] = count = self.target.sum(dim)
        share = (count > 0).to(count.dtype)
        if weights is not None:
            share *= weights
        return share.div_(share.sum().clamp_(min=torch.finfo(share.dtype).tiny) * sides)

    def each(self, share: Share, dim: int) -> Share:
        """What each pair counts, of what its query does."""
        return self.spread(share / self._count[dim].clamp(min=torch.finfo(self.target.dtype).tiny), dim)

    def single(self, dim: int) -> bool:
        """Whether no query has more positives than one: a look, where it waits for no device."""
        if self.target.device.type != "cpu":
            return False
        if self._unweighted:
            return float(self._count[dim].amax()) <= 1
        likely = bool((self.target.amax(dim) == self._count[dim]).all())  # or a second one is lost in rounding
        return likely and int((self.target > 0).sum(dim).amax()) <= 1

    def counted_as_one(self) -> None:
        """Whatever a single positive's weight, it is all of its query's."""
        if not self._unweighted:
            self.target = (self.target > 0).to(self.target.dtype)

    def near(self, scores: Tensor, dim: int) -> Tensor:
        """The score of each query's one positive; 0 where it has none."""
        return (self.target * scores).sum(dim)

    def others(self, exponentials: Tensor) -> Tensor:
        """The same, 0 where neither positives nor what is ignored counts."""
        return self.without_ignored(exponentials.mul_(1 - self.target), 0.0)

    def spread(self, pull: Share, dim: int) -> Share:
        """What each query has for a positive, at the places of its positives."""
        assert isinstance(pull, Tensor)
        return self.target * pull.unsqueeze(dim)

    def total(self, values: Tensor, each: Share, dim: int) -> Tensor:
        """Σ over the positives of their share times their value."""
        assert isinstance(each, Tensor)
        return torch.dot(each.view(-1), values.view(-1))

    def without_ignored(self, scores: Tensor, value: float) -> Tensor:
        if self.own is not None:
            scores.diagonal(self.own).fill_(value)
        return scores if self.ignored is None else scores.masked_fill_(self.ignored, value)

    def subtract(self, slope: Tensor, each: list[tuple[Share, int]], own: bool) -> Less | None:
        """The positives' part of the gradient."""
        for share, _ in each:
            slope.sub_(share)
        return None


class _Diagonals:
    """Views of a sample stand ``n`` rows apart: the positives are a few diagonals."""

    may_be_empty = False

    def __init__(self, pairs: Pairs) -> None:
        assert pairs.layout is not None
        self.itself, self.rows = pairs.own is not None, pairs.shape[0]
        self.count = pairs.layout - self.itself
        step = self.rows // pairs.layout
        self.offsets = [step * k for k in range(-(pairs.layout - 1), pairs.layout) if k or not self.itself]

    @staticmethod
    def suit(pairs: Pairs) -> bool:
        """Whether each query has a positive, and all of them lie on diagonals."""
        return pairs.ids is not None and pairs.layout is not None and (pairs.layout > 1) == (pairs.own is not None)

    def share(self, weights: Tensor | None, dim: int, sides: int) -> Share:
        """What each query counts."""
        if weights is None:
            return 1 / (sides * self.rows)
        return weights / (weights.sum().clamp_(min=torch.finfo(weights.dtype).tiny) * sides)

    def each(self, share: Share, dim: int) -> Share:
        """What each of its positives counts."""
        return share / self.count

    def single(self, dim: int) -> bool:
        """Whether no query has more positives than one."""
        return self.count == 1

    def counted_as_one(self) -> None:
        """It does."""

    def near(self, scores: Tensor, dim: int) -> Tensor:
        """The score of each query's one positive."""
        lines = [scores.diagonal(offset) for offset in (self.offsets if dim == 0 else self.offsets[::-1])]
        return lines[0].clone() if len(lines) == 1 else torch.cat(lines)

    def others(self, exponentials: Tensor) -> Tensor:
        """The same, 0 where neither positives nor what is ignored counts."""
        for offset in self.offsets:
            exponentials.diagonal(offset).fill_(0.0)
        return self.without_ignored(exponentials, 0.0)

    def spread(self, pull: Share, dim: int) -> Share:
        """What each query has for a positive."""
        return pull

    def total(self, values: Tensor, each: Share, dim: int) -> Tensor:
        """Σ over the positives of their share times their value."""
        lines = [_weighted(self._along(each, offset, dim), values.diagonal(offset)) for offset in self.offsets]
        return lines[0] if len(lines) == 1 else torch.stack(lines).sum()

    def without_ignored(self, scores: Tensor, value: float) -> Tensor:
        return scores.fill_diagonal_(value) if self.itself else scores

    def subtract(self, slope: Tensor, each: list[tuple[Share, int]], own: bool) -> Less | None:
        """The positives' part of the gradient, apart: summed with many small numbers, one large one takes their digits."""
        if self.rows <= _ALONE:
            for share, dim in each:
                for offset in self.offsets:
                    slope.diagonal(offset).sub_(self._along(share, offset, dim))
            return None

        def shares(offset: int) -> Share:
            parts = [self._along(share, offset, dim) for share, dim in each]
            return sum(parts[1:], parts[0])

        def less(part: Tensor, rows: Tensor, side: Literal["queries", "keys", "offsets"]) -> None:
            for offset in self.offsets:
                queries, keys, share = self._met(offset, 1), self._met(offset, 0), shares(offset)
                if own and side != "offsets":  # rows on both sides meet a pair from either
                    share = share + shares(-offset)
                there, here = (queries, keys) if side == "queries" else (keys, queries)
                if isinstance(share, Tensor):
                    part[there].addcmul_(rows[here], share[:, None], value=-1)
                else:
                    part[there].sub_(rows[here], alpha=share)

        return less

    def _along(self, each: Share, offset: int, dim: int) -> Share:
        """The share of the queries that a diagonal meets, in rows (1) or in columns (0)."""
        return each[self._met(offset, dim)] if isinstance(each, Tensor) else each

    def _met(self, offset: int, dim: int) -> slice:
        """The rows (1) or columns (0) that a diagonal meets."""
        skipped = max(-offset, 0) if dim else max(offset, 0)
        return slice(skipped, skipped + self.rows - abs(offset))


# ---- all pairs in one sum ---------------------------------------------------------------------------------------------


def pooled_logsumexp(x: Float[Tensor, "n d"], scale: float) -> Float[Tensor, ""]:
    """``log Σ_{i≠j} e^{scale·⟨x_i, x_j⟩}`` over all pairs of rows, two at least, in float64."""
    return _Pooled.apply(x, scale)  # pyright: ignore[reportReturnType]


@one_gradient
class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        scores = mm(x * scale, x.T).fill_diagonal_(-torch.inf)
        high = scores.amax()
        total = exp_(scores.sub_(high)).sum(1).sum(dtype=torch.float64)
        ctx.scale = scale
        ctx.save_for_backward(x, scores, total)
        return total.log().add_(high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, exponentials, total = ctx.saved_tensors
        with torch.no_grad(), full_precision(x):  # the exponentials are their own transpose
            slope = mm(exponentials, x).mul_(gradients[0] * (2 * ctx.scale) / total)
        return once(slope, x, gradients[0]), None
