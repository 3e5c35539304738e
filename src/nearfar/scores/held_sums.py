"""Sums and log-sum-exps of a matrix that is at hand, some places of it left out, with their slopes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.scores.autograd import once
from nearfar.scores.exponentials import LOG2E, exp_


def filled(matrix: Tensor, places: Tensor | None, value: float) -> Tensor:
    """The same matrix, changed."""
    if places is not None:
        matrix.view(-1).index_fill_(0, places, value)
    return matrix


def log_sum_exp(
    values: Float[Tensor, "n m"], left_out: Tensor | None, power: float = 1.0, bounded: bool = False
) -> Float[Tensor, " n"]:
    """``log Σ_j e^{power · v_ij}`` but for the pairs left out; −∞ where nothing is left.

    Args:
        values: What is summed.
        left_out: Places in the matrix; or a matrix of numbers to be added, 0 or so low that nothing is left of a pair.
        power: Multiplies the values.
        bounded: Whether ``e^v`` cannot overflow.
    """
    return _LogSumExp.apply(values, left_out, power, bounded)  # pyright: ignore[reportReturnType]


def row_sum(values: Float[Tensor, "n m"], left_out: Tensor | None) -> Float[Tensor, " n"]:
    """``Σ_j v_ij`` but for the places left out."""
    return _Sum.apply(values, left_out)  # pyright: ignore[reportReturnType]


def edges_log_sum_exp(values: Float[Tensor, " p"], row: Int[Tensor, " p"], n: int) -> Float[Tensor, " n"]:
    """``log Σ e^v`` of the values of each of ``n`` queries, ``row`` saying whose each is; −∞ where a query has none."""
    return _EdgesLogSumExp.apply(values, row, n)  # pyright: ignore[reportReturnType]


class _LogSumExp(torch.autograd.Function):
    """``log Σ_j e^{power · v_ij}``, some places left out."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, left_out: Tensor | None, power: float, bounded: bool) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.power = power
        numbers = left_out if left_out is not None and left_out.is_floating_point() else None
        factor = power * LOG2E if bounded else power
        if numbers is not None and not bounded:
            e = torch.add(numbers, values, alpha=factor)
        else:
            e = values.clone(memory_format=torch.contiguous_format) if factor == 1.0 else values * factor
            e = e if numbers is None else e.add_(numbers, alpha=LOG2E)
        if bounded:
            e = e.exp2_().contiguous()
            e = filled(e, left_out, 0.0) if numbers is None else e
            total = e.sum(1, keepdim=True)
            ctx.save_for_backward(values, e, total)
            return total.log()[:, 0]
        e = filled(e.contiguous(), left_out, -torch.inf) if numbers is None else e
        high = e.amax(1, keepdim=True)
        high.clamp_(min=torch.finfo(high.dtype).min)  # of rows with nothing left
        total = exp_(e.sub_(high)).sum(1, keepdim=True)
        ctx.save_for_backward(values, e, total)
        return total.log().add_(high)[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, e, total = ctx.saved_tensors
        with torch.no_grad():
            share = gradients[0][:, None] / total.clamp(min=torch.finfo(total.dtype).tiny)
            slope = e * (share if ctx.power == 1.0 else share * ctx.power)
        return once(slope, values, gradients[0]), None, None, None


class _Sum(torch.autograd.Function):
    """``Σ_j v_ij``, some places left out."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, left_out: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.left_out, ctx.shape = left_out, values.shape
        if left_out is None:
            return values.sum(1)
        return filled(values.clone(memory_format=torch.contiguous_format), left_out, 0.0).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        slope = gradients[0][:, None].expand(ctx.shape).clone(memory_format=torch.contiguous_format)
        return filled(slope, ctx.left_out, 0.0), None


class _EdgesLogSumExp(torch.autograd.Function):
    """``log Σ e^v`` of the values of each query; −∞ where it has none."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, row: Tensor, n: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        high = values.new_full((n,), -torch.inf).scatter_reduce_(0, row, values, "amax")
        high.clamp_(min=torch.finfo(high.dtype).min)
        e = (values - high.index_select(0, row)).exp_()
        total = values.new_zeros(n).index_add_(0, row, e)
        ctx.save_for_backward(values, e, total, row)
        return total.log().add_(high)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, e, total, row = ctx.saved_tensors
        with torch.no_grad():
            slope = e * (gradients[0] / total.clamp(min=torch.finfo(total.dtype).tiny)).index_select(0, row)
        return once(slope, values, gradients[0]), None, None
