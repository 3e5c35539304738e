"""Log-sum-exp of dot-product scores, the heart of the softmax losses, with as little work as is known.

``s_ij = ⟨x_i, y_j⟩ + o_j`` over the candidates or the negatives of each query:

====================  =============================================================  ==================
plan                  what it does                                                   matrix products
====================  =============================================================  ==================
rows with themselves  half of the tiles, each serving its transpose; built twice     2
rows and columns      every tile, built twice (the columns' sums need all rows)      4
mean over rows        whole rows at a time, gradient in the forward pass             3
====================  =============================================================  ==================

Where every score is known to lie in ±60 (Cauchy–Schwarz), exponentials are summed as they are; else a running maximum is
kept. Rows and columns are weighted by scaling the rows of ``x`` and ``y``, never the tile, wherever one side suffices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearfar.scores.autograd import full_precision, made_in_forward, once, one_gradient, presigned
from nearfar.scores.buffers import Buffer
from nearfar.scores.exponentials import LOG2E, exp_, softplus
from nearfar.scores.products import Products
from nearfar.scores.tiles import Tiles
from nearfar.types import Rule

RANGE = 60.0  # e^±60 times a million rows stays inside float32


@dataclass(frozen=True, eq=False)
class SoftmaxPlan(Tiles):
    """What is fixed about one log-sum-exp."""

    over: Rule
    by_column: bool = False  # whether the columns' log-sum-exp is wanted too
    narrow: bool = False  # products in bfloat16

    def products(self, x: Tensor, y: Tensor) -> Products:
        """The products of its tiles."""
        return Products(x, y, self.rows * max(self.rows, self.columns), self.narrow)

    def drop(self, tile: Tensor, i: slice, j: slice, value: float) -> None:
        """Put ``value`` where a tile's pairs don't count."""
        lines = self.pairs.lines(i, j, self.over)
        if lines is not None:
            for line in lines:
                tile.diagonal(line).fill_(value)
            return
        mask = self.dropped(i, j)
        if mask is not None:
            tile.masked_fill_(mask, value)

    def dropped(self, i: slice, j: slice) -> Bool[Tensor, "b c"] | None:
        """Where a tile's pairs don't count."""
        positive, ignored, _ = self.relation(i, j)
        if self.over == "candidates":
            return ignored
        return positive if ignored is None else ignored if positive is None else positive | ignored


def logsumexp(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], offsets: Float[Tensor, " m"] | None, plan: SoftmaxPlan
) -> tuple[Float[Tensor, " n"], Float[Tensor, " columns"]]:
    """Log-sum-exp by row and, if the plan wants it, by column (else empty); −∞ where nothing counts."""
    return _LogSumExp.apply(x, None if plan.symmetric else y, offsets, plan)  # pyright: ignore[reportReturnType]


def mean_logsumexp(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    weights: Float[Tensor, " n"],
    plan: SoftmaxPlan,
    near: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """``Σ w_i · LSE_i`` for constant weights; or, against the score of a positive, ``Σ w_i · log(1 + e^{LSE_i − near_i})``."""
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, y, offsets, near))
    value, *_ = _MeanLogSumExp.apply(x, y, offsets, near, weights.detach(), plan, wanted)  # pyright: ignore[reportGeneralTypeIssues]
    return value


def not_asked(rows: Float[Tensor, " n"], weights: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Log-sum-exps that a mean leaves out: of weight 0; but one that is learned may be 0 just now."""
    return rows == -torch.inf if weights.requires_grad else weights == 0


def within_range(x: Tensor, y: Tensor, offsets: Tensor | None) -> bool:
    """Whether no score can overflow when it is exponentiated as it is."""
    return not len(x) or not len(y) or in_range(longest_product(x, y), offsets)


def in_range(bound: float, offsets: Tensor | None) -> bool:
    """The same where the products are known to be bounded."""
    return bound + largest(offsets) <= RANGE


def longest_product(x: Tensor, y: Tensor) -> float:
    """No product of two rows is further from 0 (Cauchy–Schwarz)."""
    longest = torch.linalg.vector_norm(x, dim=1).amax()
    return float(longest * (longest if y is x else torch.linalg.vector_norm(y, dim=1).amax()))


def largest(offsets: Tensor | None) -> float:
    """No offset is further from 0."""
    return 0.0 if offsets is None else float(offsets.abs().amax())


@presigned
@one_gradient
class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor, y: Tensor | None, offsets: Tensor | None, plan: SoftmaxPlan
    ) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            rows, columns = _sums(x, x if y is None else y, offsets, plan)
        return rows.to(x.dtype), columns.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, offsets, ctx.plan = inputs
        ctx.save_for_backward(x, y, offsets, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, offsets, rows, columns = ctx.saved_tensors
        with full_precision(x), torch.no_grad():
            if y is None:
                dx, dy, do = _symmetric_gradient(x, rows, gradients[0], ctx.plan), None, None
            else:
                dx, dy, do = _cross_gradient(x, y, offsets, (rows, columns), gradients, ctx.plan, ctx.needs_input_grad)
        return *(once(found, x, y, offsets, *gradients) for found in (dx, dy, do)), None


def _sums(x: Tensor, y: Tensor, offsets: Tensor | None, plan: SoftmaxPlan) -> tuple[Tensor, Tensor]:
    both = plan.symmetric or plan.by_column
    row_sum = x.new_zeros(len(x))
    column_sum = row_sum if plan.symmetric else x.new_zeros(len(y) if plan.by_column else 0)
    products = plan.products(x, y)
    if within_range(x, y, offsets):
        for i, j, tile in _exponentials(products, offsets, plan):
            row_sum[i] += tile.sum(1)
            if both and not (plan.symmetric and i == j):
                column_sum[j] += tile.sum(0)
        return row_sum.double().log_(), x.new_zeros(0) if plan.symmetric else column_sum.double().log_()
    row_max = torch.full_like(row_sum, -torch.inf)
    column_max = row_max if plan.symmetric else torch.full_like(column_sum, -torch.inf)

    def merge(total: Tensor, highest: Tensor, values: Tensor, where: slice) -> None:
        before = highest[where]
        now = torch.maximum(before, values.amax(1))
        shift = now.masked_fill(now == -torch.inf, 0.0)
        total[where] = total[where] * (before - shift).exp_() + exp_(values - shift[:, None]).sum(1)
        highest[where] = now

    for i, j, tile in _scores(products, offsets, plan):
        plan.drop(tile, i, j, -torch.inf)
        merge(row_sum, row_max, tile, i)
        if both and not (plan.symmetric and i == j):
            merge(column_sum, column_max, tile.T, j)
    rows = _joined(row_sum, row_max)
    return rows, x.new_zeros(0) if plan.symmetric else _joined(column_sum, column_max)


def _joined(total: Tensor, highest: Tensor) -> Tensor:
    """``log(total · e^highest)``, −∞ where nothing counts."""
    return total.double().log_().add_(highest.masked_fill_(highest == -torch.inf, 0.0))


def _scores(
    products: Products, offsets: Tensor | None, plan: SoftmaxPlan, factor: float = 1.0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of scores, times a factor."""
    for i, j in plan.tiles():
        tile = products.scores(i, j, factor)
        yield i, j, tile if offsets is None else tile.add_(offsets[j], alpha=factor)


def _exponentials(
    products: Products, offsets: Tensor | None, plan: SoftmaxPlan
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of ``e^s``, 0 where a pair doesn't count."""
    for i, j, tile in _scores(products, offsets, plan, LOG2E):
        tile.exp2_()
        plan.drop(tile, i, j, 0.0)
        yield i, j, tile


def _share(gradient: Tensor, lse: Tensor) -> Tensor:
    """``g·e^{−lse}``, 0 for a row where nothing counts."""
    return (gradient * (-lse).exp_()).masked_fill_(lse == -torch.inf, 0.0).to(gradient.dtype)


def _symmetric_gradient(x: Tensor, lse: Tensor, gradient: Tensor, plan: SoftmaxPlan) -> Tensor:
    """``dz_i = Σ_j (g_i e^{s_ij − lse_i} + g_j e^{s_ij − lse_j}) z_j``."""
    dx = torch.zeros_like(x)
    products, other = plan.products(x, x), Buffer(x, plan.rows * max(plan.rows, plan.columns))

    def pull(tile: Tensor, i: slice, j: slice) -> None:
        products.pull(tile, i, j, dx[i], None if i == j else dx[j])

    if within_range(x, x, None):
        share = _share(gradient, lse)
        for i, j, tile in _exponentials(products, None, plan):
            pull(tile.mul_(torch.add(share[i, None], share[None, j], out=other(*tile.shape))), i, j)
        return dx
    safe = lse.masked_fill(lse == -torch.inf, torch.inf)  # an empty row: e^{s − ∞} = 0
    for i, j, tile in _scores(products, None, plan):
        by_column = exp_(torch.sub(tile, safe[None, j], out=other(*tile.shape))).mul_(gradient[None, j])
        exp_(tile.sub_(safe[i, None])).mul_(gradient[i, None]).add_(by_column)
        plan.drop(tile, i, j, 0.0)
        pull(tile, i, j)
    return dx


def _cross_gradient(
    x: Tensor,
    y: Tensor,
    offsets: Tensor | None,
    lse: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, ...],
    plan: SoftmaxPlan,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dx = torch.zeros_like(x) if needs[0] else None
    dy = torch.zeros_like(y) if needs[1] else None
    do = torch.zeros_like(offsets) if offsets is not None and needs[2] else None
    products, other = plan.products(x, y), Buffer(x, plan.rows * plan.columns)
    (by_row, by_column), (rows, columns) = gradients, lse

    def pull(tile: Tensor, i: slice, j: slice) -> None:
        products.pull(tile, i, j, None if dx is None else dx[i], None if dy is None else dy[j])
        if do is not None:
            do[j] += tile.sum(0)

    if within_range(x, y, offsets):
        row_share, column_share = _share(by_row, rows), _share(by_column, columns)
        for i, j, tile in _exponentials(products, offsets, plan):
            share = row_share[i, None]
            if plan.by_column:
                share = torch.add(share, column_share[None, j], out=other(*tile.shape))
            pull(tile.mul_(share), i, j)
        return dx, dy, do
    rows, columns = (side.masked_fill(side == -torch.inf, torch.inf) for side in lse)
    for i, j, tile in _scores(products, offsets, plan):
        right = None
        if plan.by_column:
            right = exp_(torch.sub(tile, columns[None, j], out=other(*tile.shape))).mul_(by_column[None, j])
        exp_(tile.sub_(rows[i, None])).mul_(by_row[i, None])
        tile = tile if right is None else tile.add_(right)
        plan.drop(tile, i, j, 0.0)
        pull(tile, i, j)
    return dx, dy, do


@presigned
class _MeanLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor,
        y: Tensor,
        offsets: Tensor | None,
        near: Tensor | None,
        weights: Tensor,
        plan: SoftmaxPlan,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        with full_precision(x):
            return _mean_forward(x, y, offsets, near, weights, plan, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        _, *gradients = output
        ctx.mark_non_differentiable(*(g for g in gradients if g is not None))
        ctx.save_for_backward(*inputs[:4], *gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *made_in_forward(ctx, gradients[0]), None, None, None


def _mean_forward(
    x: Tensor,
    y: Tensor,
    offsets: Tensor | None,
    near: Tensor | None,
    weights: Tensor,
    plan: SoftmaxPlan,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    value = x.new_zeros((), dtype=torch.float64)
    dn = torch.zeros_like(near) if near is not None and wanted[3] else None
    dx = torch.zeros_like(x) if wanted[0] else None
    dy = torch.zeros_like(y) if wanted[1] else None
    do = torch.zeros_like(offsets) if offsets is not None and wanted[2] else None
    bounded = within_range(x, y, offsets)
    base = LOG2E if bounded else 1.0
    m = len(y)
    products = Products(x, y, plan.rows * m, plan.narrow)
    everything = slice(0, m)
    for start in range(0, len(x), plan.rows):
        i = slice(start, min(start + plan.rows, len(x)))
        tile = products.scores(i, everything, base)
        if offsets is not None:
            tile.add_(offsets, alpha=base)
        shift = None
        if not bounded:
            plan.drop(tile, i, everything, -torch.inf)
            highest = tile.amax(1) if m else x.new_full((len(tile),), -torch.inf)
            shift = highest.masked_fill_(highest == -torch.inf, 0.0)
            exp_(tile.sub_(shift[:, None]))
        else:
            plan.drop(tile.exp2_(), i, everything, 0.0)
        total = tile.sum(1)
        weight, rows = weights[i], total.log() if shift is None else total.log().add_(shift)
        share = weight
        if near is not None:  # the share that is not the positive's, without subtracting it from 1
            rows = rows - near[i]
            share = weight * rows.sigmoid()
            rows = softplus(rows)
            if dn is not None:
                dn[i] = -share
        value += (weight * rows.masked_fill(weight == 0, 0.0)).sum(dtype=torch.float64)
        if not any(wanted[:3]):
            continue
        tile.mul_((share / total).masked_fill_(total == 0, 0.0)[:, None])
        products.pull(tile, i, everything, None if dx is None else dx[i], dy)
        if do is not None:
            do += tile.sum(0)
    return value.to(x.dtype), dx, dy, do, dn
