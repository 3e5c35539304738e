"""Weighted sums over all pairs in O(n·d) memory and one visit: a tile's gradient is made while its scores are at hand.

Where the loss is a sum whose weights are known beforehand nothing has to be built twice: three products, and one and a half for
rows paired with themselves, where a stage of reductions (`tiled.py`) takes four and two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores.autograd import full_precision, made_in_forward
from nearfar.scores.reductions import Reduction, Tile
from nearfar.scores.tiled import Leaves, Plan, Rows, Way, looks


def total(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    plan: Plan,
    weights: Float[Tensor, " n"],
    parameters: Sequence[Float[Tensor, ""]],
) -> Float[Tensor, ""]:
    """``Σ_i w_i · Σ_k (sum k of query i)`` of a plan's sums, with constant weights.

    Args:
        x: Queries.
        y: Keys; ``x`` itself for rows paired with themselves.
        plan: Its stage has sums only; no statistics.
        weights: Of the queries.
        parameters: What its element functions read, in order.
    """
    return _Total.apply(x, None if plan.symmetric else y, plan, weights, torch.is_grad_enabled(), *parameters)  # pyright: ignore[reportReturnType]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, y: Tensor | None, plan: Plan, weights: Tensor, graded: bool, *parameters: Tensor
    ) -> Tensor:
        wanted = ctx.needs_input_grad if graded else (False,) * len(ctx.needs_input_grad)
        with full_precision(x):
            value, gradients = _visit(x, y, plan, weights, parameters, wanted)
        if any(wanted):
            ctx.save_for_backward(x, y, *parameters, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, dy, *rest = made_in_forward(ctx, gradients[0])
        return dx, dy, None, None, None, *rest


def _visit(
    x: Tensor,
    y: Tensor | None,
    plan: Plan,
    weights: Tensor,
    parameters: Sequence[Tensor],
    wanted: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    dx = torch.zeros_like(x) if wanted[0] else None
    dy = dx if y is None else torch.zeros_like(y) if wanted[1] else None
    slopes = [torch.zeros_like(p) if want else None for p, want in zip(parameters, wanted[5:])]
    value = x.new_zeros((), dtype=torch.float64)

    def judge(scores: Tensor, tile: Tile, ways: tuple[Way, ...]) -> Tensor | None:
        """Adds the sums of a tile up, and the gradients of the parameters; the gradient of its scores."""
        nonlocal value
        terms = [(reduction, _share(reduction, scores, tile, weights, ways)) for reduction in plan.stage.values()]
        terms = [(reduction, share) for reduction, share in terms if share is not None]
        if not terms:
            return None
        leaves = Leaves(scores, tile)
        tensors = [leaf.detach().requires_grad_(any(wanted)) for leaf in leaves.tensors]
        with torch.set_grad_enabled(any(wanted)):
            seen = leaves.tile(tensors)
            values = [reduction.values(tensors[0], seen) for reduction, _ in terms]
        for found, (_, share) in zip(values, terms):
            value = value + (found.detach() * share).sum(dtype=torch.float64)
        if not any(wanted):
            return None
        ds, *others = torch.autograd.grad(values, tensors, [share for _, share in terms], allow_unused=True)
        for slope, other in zip(slopes, others):
            if slope is not None and other is not None:
                slope += other
        return ds

    tiles = Rows(x, x if y is None else y, plan)
    for i, j in plan.tiles():
        if plan.skips(i, j):
            continue
        scores = tiles.scores(i, j)
        (look,) = looks(scores, plan, i, j, parameters)  # without statistics both sides see the same
        ds = judge(*look)
        if ds is not None:
            tiles.pull(ds, scores, i, j, dx, dy)
    return value.to(x.dtype), [dx, None if y is None else dy, *slopes]


def _share(reduction: Reduction, scores: Tensor, tile: Tile, weights: Tensor, ways: tuple[Way, ...]) -> Tensor | None:
    """What each pair of a tile counts in the sum; ``None``: none does."""
    mask = reduction.mask(scores, tile)
    if mask is None:
        return None
    sides = [weights[rows].unsqueeze(dim) for dim, rows in ways]
    share = (sides[0] if len(sides) == 1 else sides[0] + sides[1]).expand_as(scores)
    weight = reduction.weight(tile)
    share = share if weight is None else share * weight
    return share if mask is True else share.masked_fill(~mask, 0.0)
