"""Log-sum-exp of dot-product scores on a GPU: the questions of :mod:`nearfar.scores.softmax` by the kernels beside this file.

=====================  ================================================================  ==================
plan                   where a tile's scores live                                        matrix products
=====================  ================================================================  ==================
fused, own rows        registers; half of the pairs for the statistics, half rebuilt     2
fused, two sides       registers; rebuilt for the gradient                               4 (3 with one side frozen)
library                a tile in memory, one kernel over it                              as the plans of softmax.py
=====================  ================================================================  ==================

Fused: float16, bfloat16 and, where torch allows TF32, float32, for relations that kernels can work out. Backward, a tile
of scores becomes its gradient in registers and is stored once, in the precision of the rows; two library products bring it to
the rows, so that scores are rebuilt once, where a kernel for each side in the manner of flash attention (Dao 2023,
arXiv:2307.08691, algorithm 2) would rebuild them twice. Statistics are float32, merged in float64. Nothing is atomic, and nothing
waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores.autograd import full_precision, in_transform, made_in_forward, once, presigned
from nearfar.scores.cuda_tiles import How, Terms, Visit, choose, multiply, split, term
from nearfar.scores.softmax import SoftmaxPlan
from nearfar.types import Precision

_STRIP = 2**24  # scores of whole rows that are held at a time


def logsumexp(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    plan: SoftmaxPlan,
    precision: Precision | None = None,
    fused: bool | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " columns"]]:
    """Log-sum-exp by row and, if the plan wants it, by column (else empty); −∞ where nothing counts.

    Args:
        x: Queries, float32 or float64.
        y: Keys; ``x`` itself where the plan is symmetric.
        offsets: Added to the scores of each key.
        plan: Who counts, and the tile in which gradients are made.
        precision: Products of rows rounded so; statistics stay in float32.
        fused: Keep scores in registers or not; ``None`` chooses.
    """
    if in_transform():
        raise RuntimeError(
            "kernels cannot be transformed by torch.func: pass backend='tiled' or 'dense', or leave backend= out"
        )
    how = choose(x, plan, precision, fused)
    return _LogSumExp.apply(x, None if plan.symmetric else y, offsets, plan, how)[:2]  # pyright: ignore[reportReturnType, reportIndexIssue]


def mean_logsumexp(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    weights: Float[Tensor, " n"],
    plan: SoftmaxPlan,
    precision: Precision | None = None,
    fused: bool | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " n"]]:
    """``Σ w_i · LSE_i`` for constant weights, and the log-sum-exps (maybe without gradient).

    Through memory, whole rows of scores serve value and gradient at once; fused, building them again is cheaper.
    """
    how = choose(x, plan, precision, fused)
    if how.fused or plan.symmetric:
        rows, _ = logsumexp(x, y, offsets, plan, precision, fused)
        return (weights * torch.where(weights == 0, torch.zeros_like(rows), rows)).sum(), rows
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in (x, y, offsets))
    value, rows, *_ = _MeanLogSumExp.apply(x, y, offsets, weights.detach(), plan, how, wanted)  # pyright: ignore[reportGeneralTypeIssues]
    return value, rows


@presigned
class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor, y: Tensor | None, offsets: Tensor | None, plan: SoftmaxPlan, how: How
    ) -> tuple[Tensor, ...]:
        with full_precision(x):
            return _sums(Visit(x, y, offsets, plan, how))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, offsets, ctx.plan, ctx.how = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(x, y, offsets, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, offsets, rows, columns, *rest = ctx.saved_tensors
        with full_precision(x), torch.no_grad():
            visit = Visit(x, y, offsets, ctx.plan, ctx.how)
            found = _gradient(visit, (rows, rest[0]), (columns, rest[1]), gradients, ctx.needs_input_grad[:3])
        return *(once(gradient, x, y, offsets, *gradients[:2]) for gradient in found), None, None


@presigned
class _MeanLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor,
        y: Tensor,
        offsets: Tensor | None,
        weights: Tensor,
        plan: SoftmaxPlan,
        how: How,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        with full_precision(x):
            return _mean(Visit(x, y, offsets, plan, how), weights, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        _, rows, *gradients = output
        ctx.mark_non_differentiable(rows, *(g for g in gradients if g is not None))
        ctx.save_for_backward(*inputs[:3], *gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *made_in_forward(ctx, gradients[0]), None, None, None, None


# ---- loops over tiles --------------------------------------------------------------------------------------------------


def _tiles(plan: SoftmaxPlan, rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Tiles that hold every pair or, where one serves its transpose, every pair above the diagonal."""
    n, m = plan.pairs.shape
    for i in range(0, n, rows):
        for j in range(i if plan.symmetric else 0, m, columns):
            yield slice(i, min(i + rows, n)), slice(j, min(j + columns, m))


def _sums(visit: Visit) -> tuple[Tensor, ...]:
    """Log-sum-exps of rows and of columns, and what rounding took from them."""
    plan, symmetric = visit.plan, visit.plan.symmetric
    both = symmetric or plan.by_column
    n, m = plan.pairs.shape
    row_sum = visit.x.new_full((n,), -torch.inf, dtype=torch.float64)
    column_sum = row_sum if symmetric else row_sum.new_full((m if both else 0,), -torch.inf)
    size = (max(plan.rows // 2, 1), 16 * plan.columns) if visit.how.fused else (plan.rows, plan.columns)
    for i, j in _tiles(plan, *size):
        rows, columns = visit.parts(i, j, visit.scores(i, j), both, symmetric)
        row_sum[i] = torch.logaddexp(row_sum[i], rows)
        if both:
            column_sum[j] = torch.logaddexp(column_sum[j], columns)
    (rows, rest), (columns, others) = (
        split(total, visit.wide) for total in (row_sum, column_sum[:0] if symmetric else column_sum)
    )
    return rows, columns, rest, others


def _gradient(
    visit: Visit,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    gradients: tuple[Any, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    plan, x, y = visit.plan, visit.x, visit.y
    by_row, by_column = gradients[:2]
    dx = torch.zeros_like(x, dtype=visit.wide) if needs[0] else None
    dy = dx if plan.symmetric else torch.zeros_like(y, dtype=visit.wide) if needs[1] else None
    do = None if visit.offsets is None or not needs[2] else torch.zeros_like(visit.offsets)
    size = None
    if visit.how.fused and visit.how.dtype.itemsize == 2:  # slopes near 1 lose least in half precision
        size = torch.cat([by_row, by_column]).abs().amax().clamp(min=torch.finfo(visit.wide).tiny)
        size = size / (2.0**14 if visit.how.dtype is torch.float16 else 1.0)
        by_row, by_column = by_row / size, by_column / size
    by_rows, by_columns = term(*rows, by_row), term(*columns, by_column)
    terms = Terms(by_rows, by_rows if plan.symmetric else by_columns, plan.symmetric or plan.by_column)
    for i, j in plan.tiles():
        slope = visit.slopes(i, j, visit.scores(i, j), terms)
        if dx is not None:
            dx[i] += multiply(slope, y[j], visit.wide)
        if dy is not None and not (plan.symmetric and i == j):
            dy[j] += multiply(slope.T, x[i], visit.wide)
        if do is not None:
            do[j] += slope.sum(0, dtype=visit.wide)
    found = (dx, None if plan.symmetric else dy, do)
    return found if size is None else tuple(None if g is None else g.mul_(size) for g in found)  # pyright: ignore[reportReturnType]


def _mean(visit: Visit, weights: Tensor, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Value and gradient from one visit: whole rows of scores at a time."""
    x, y, wide = visit.x, visit.y, visit.wide
    n, m = visit.plan.pairs.shape
    lse, rest = x.new_full((n,), -torch.inf, dtype=wide), x.new_zeros(n, dtype=wide)
    dx = torch.zeros_like(x, dtype=wide) if wanted[0] else None
    dy = torch.zeros_like(y, dtype=wide) if wanted[1] else None
    do = None if visit.offsets is None or not wanted[2] else torch.zeros_like(visit.offsets)
    rows = min(visit.plan.rows, max(16, _STRIP // max(m, 1)))
    everything = slice(0, m)
    for i, _ in _tiles(replace(visit.plan, symmetric=False), rows, max(m, 1)):
        tile = visit.scores(i, everything)
        lse[i], rest[i] = split(visit.parts(i, everything, tile, False, False)[0], wide)
        if not any(wanted):
            continue
        by_row = term(lse, rest, weights)
        slope = visit.slopes(i, everything, tile, Terms(by_row, by_row, False))
        if dx is not None:
            dx[i] = multiply(slope, y, wide)
        if dy is not None:
            dy += multiply(slope.T, x[i], wide)
        if do is not None:
            do += slope.sum(0, dtype=wide)
    return (weights * lse.masked_fill(weights == 0, 0.0)).sum(), lse, dx, dy, do
