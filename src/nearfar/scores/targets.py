"""Mean softmax against any relation in one visit: soft labels, shared classes, matrices.

Where ids say who belongs with whom the positives' mean is linear in the rows (`positives.py`). Any other relation has to be looked
at a tile at a time; so its look is taken while the tile's softmax is at hand, and loss and gradient come out together: three
products, where log-sum-exp and mean apart take seven.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.scores.autograd import full_precision, made_in_forward
from nearfar.scores.buffers import Buffer
from nearfar.scores.exponentials import LOG2E, exp_, softplus
from nearfar.scores.products import Products
from nearfar.scores.softmax import SoftmaxPlan, within_range


def mean_softmax(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    weights: Float[Tensor, " n"] | None,
    plan: SoftmaxPlan,
) -> Float[Tensor, ""]:
    """``Σ_i w_i (LSE_i − Σ_j t_ij s_ij) / Σ_i w_i`` over queries with a positive, ``t`` being a row of the relation over its sum.

    Args:
        x: Queries.
        y: Keys; ``x`` itself for rows paired with themselves.
        offsets: Added to the scores of each key.
        weights: Of the queries, constant; 1 by default.
        plan: Over the candidates; strips of whole rows.
    """
    return _MeanSoftmax.apply(x, None if y is x else y, offsets, weights, plan, torch.is_grad_enabled())  # pyright: ignore[reportReturnType]


class _MeanSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        offsets: Tensor | None,
        weights: Tensor | None,
        plan: SoftmaxPlan,
        graded: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3] if graded else (False,) * 3
        with full_precision(x):
            value, *gradients = _visit(x, y, offsets, weights, plan, wanted)
        if any(wanted):
            ctx.save_for_backward(x, y, offsets, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *made_in_forward(ctx, gradients[0]), None, None, None


def _visit(
    x: Tensor,
    y: Tensor | None,
    offsets: Tensor | None,
    weights: Tensor | None,
    plan: SoftmaxPlan,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    keys = x if y is None else y
    dx = torch.zeros_like(x) if wanted[0] else None
    dy = dx if y is None else torch.zeros_like(y) if wanted[1] else None
    do = torch.zeros_like(offsets) if offsets is not None and wanted[2] else None
    weights = torch.ones_like(x[:, 0]) if weights is None else weights
    bounded = within_range(x, keys, offsets)
    base = LOG2E if bounded else 1.0
    every = slice(0, len(keys))
    size = min(plan.rows, len(x)) * len(keys)
    products, memory = Products(x, keys, size, plan.narrow), Buffer(x, size)
    relation_of = replace(plan.pairs, own=None).relation  # a sample with itself lies on a diagonal, and needs no mask
    value, total = (x.new_zeros((), dtype=torch.float64) for _ in range(2))
    for start in range(0, len(x), plan.rows):
        i = slice(start, min(start + plan.rows, len(x)))
        tile, target = products.scores(i, every, base), memory(i.stop - i.start, len(keys))
        if offsets is not None:
            tile.add_(offsets, alpha=base)
        positive, ignored, weight = relation_of(i, every)
        assert positive is not None
        target.copy_(positive if weight is None else weight)
        itself = plan.pairs.diagonal(i, every)
        if itself is not None:
            target.diagonal(itself).fill_(0.0)
        many = target.sum(1)
        share = weights[i].masked_fill(many == 0, 0.0)
        total += share.sum(dtype=torch.float64)
        place = _places(target, many, weight is not None)
        if place is None:
            target.mul_((share / many).masked_fill_(many == 0, 0.0)[:, None])
            near = torch.linalg.vecdot(target, tile).div_(base)
        else:
            near = tile.gather(1, place)[:, 0].div_(base)
        shift = torch.zeros_like(near)
        if bounded:
            _drop(tile.exp2_(), ignored, itself, place, 0.0)
        else:
            _drop(tile, ignored, itself, place, -torch.inf)
            shift = tile.amax(1)
            shift.masked_fill_(shift == -torch.inf, 0.0)
            exp_(tile.sub_(shift[:, None]))
        counted = tile.sum(1)  # candidates, or all but the positive
        none = counted == 0
        logs = counted.log().add_(shift)
        if place is None:
            values = share * logs.masked_fill_(none, 0.0) - near
        else:  # the share that is not the positive's, without subtracting it from 1
            gap = logs.sub_(near)
            values, share = share * softplus(gap), share * gap.sigmoid()
        value += values.sum(dtype=torch.float64)
        if not any(wanted):
            continue
        slope = tile.mul_((share / counted).masked_fill_(none, 0.0)[:, None])
        slope = slope.sub_(target) if place is None else slope.scatter_(1, place, -share[:, None])
        products.pull(slope, i, every, None if dx is None else dx[i], dy)
        if do is not None:
            do += slope.sum(0)
    total.clamp_(min=torch.finfo(x.dtype).tiny)
    dx, dy, do = (None if part is None else part.div_(total) for part in (dx, None if y is None else dy, do))
    return (value / total).to(x.dtype), dx, dy, do


def _places(target: Tensor, many: Tensor, weighted: bool) -> Int[Tensor, "b 1"] | None:
    """Where each query's positive is, if none has two: by a product with the numbers of the keys, which is exact."""
    m = target.shape[1]
    if target.device.type != "cpu" or m >= 2**24 or not bool((target.amax(1) == many).all()):
        return None  # a sum is above its largest part, but for what rounding hides
    if weighted and int((target > 0).sum(1).amax()) > 1:
        return None
    if weighted:
        target.sign_()
    numbers = torch.arange(m, dtype=target.dtype)
    return torch.linalg.vecdot(target, numbers).long()[:, None]  # where there is none, any


def _drop(tile: Tensor, ignored: Tensor | None, itself: int | None, place: Tensor | None, value: float) -> None:
    if ignored is not None:
        tile.masked_fill_(ignored, value)
    if itself is not None:
        tile.diagonal(itself).fill_(value)
    if place is not None:
        tile.scatter_(1, place, value)
