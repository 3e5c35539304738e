"""Cross-entropy of rows over classes, the own class's cosine changed first: value and gradient in one visit, some rows at a time.

Classes are many and rows few. So the table is read for its products and its norms, and for nothing else: no order, no copy of it,
no mask. The weights of the mean are known beforehand, so that gradients are made while the scores are at hand: three products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.lengths import measured
from nearfar.scores.autograd import full_precision, made_in_forward
from nearfar.scores.buffers import Buffer
from nearfar.scores.exponentials import LOG2E, softplus
from nearfar.scores.matmul import add_mm, mm

_SCORES = 2**22  # at a time: 16 MB
_NUMBERS = 2**18  # of a gradient at a time, that stay in the cache

Slope = float | Float[Tensor, " b"]
Change = Callable[[Float[Tensor, " b"], slice, float], tuple[Float[Tensor, " b"], Slope, Slope]]
"""What a margin makes of the own class's cosines of some rows, and its derivatives by the cosine and by the margin."""


class Ask(NamedTuple):
    """What is fixed about one mean."""

    change: Change
    """Of the own class's cosine."""
    own_counts: bool = True
    """Whether the own class is in the sum."""
    origin: float = 0.0
    """Added to the cosines with a class at the origin, as distances to it differ from those to classes of length one."""


Number = Float[Tensor, ""]
Gradients = tuple[Tensor | None, ...]
"""By rows, classes, weights, scale and margin."""


def mean_class_softmax(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "c d"],
    labels: Int[Tensor, " n"],
    weights: Float[Tensor, " n"],
    scale: Number,
    margin: Number,
    ask: Ask,
) -> Float[Tensor, ""]:
    """``Σ w_i · (log Σ_c e^{s·cos_ic} − s·cos_iy)``, ``cos_iy`` changed in both places; each of the numbers may be learned.

    Args:
        x: Rows, not empty, of any length; divided by it.
        y: One row a class, likewise.
        labels: The class of each row.
        weights: Of the rows; one of weight 0 may have any value.
        scale: Multiplies cosines, above 0.
        margin: What ``ask.change`` reads.
        ask: What is fixed.
    """
    return _MeanClassSoftmax.apply(x, y, weights, scale, margin, labels, ask, torch.is_grad_enabled())  # pyright: ignore[reportReturnType]


class _MeanClassSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        y: Tensor,
        weights: Tensor,
        scale: Tensor,
        margin: Tensor,
        labels: Tensor,
        ask: Ask,
        graded: bool,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:5] if graded else (False,) * 5
        with full_precision(x):
            value, gradients = _forward(x, y, labels, weights, float(scale), float(margin), ask, wanted)
        if any(wanted):
            ctx.save_for_backward(x, y, weights, scale, margin, *gradients)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *made_in_forward(ctx, gradients[0]), None, None, None


def _forward(
    x: Tensor,
    y: Tensor,
    labels: Tensor,
    weights: Tensor,
    scale: float,
    margin: float,
    ask: Ask,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Gradients]:
    (x, x_inverse), (y, y_inverse) = measured(x), measured(y)
    (n, c), power = (len(x), len(y)), scale * LOG2E  # exponents are powers of 2
    origin = (y_inverse.T == 0).to(x.dtype).mul_(ask.origin) if ask.origin else None
    origin = None if origin is None or not bool(origin.any()) else origin
    # e^s of a bounded score needs no maximum; of a single one, its logarithm would
    bounded = c > 1 and scale + abs(ask.origin) * scale + math.log(c) < 85
    dx = torch.empty_like(x) if wanted[0] else None
    dy = torch.zeros_like(y) if wanted[1] else None
    dw = torch.empty_like(weights) if wanted[2] else None
    total, by_scale, by_margin = (x.new_zeros((), dtype=torch.float64) for _ in range(3))
    size = max(1, min(n, _SCORES // c))
    memory = Buffer(x, size * c)
    for start in range(0, n, size):
        i = slice(start, min(start + size, n))
        rows, label, weight = x[i], labels[i, None], weights[i]
        scores = mm(rows * power, y.T, memory(len(rows), c))
        scores = scores if origin is None else scores.add_(origin, alpha=power)
        own, slope, leaning = ask.change(scores.gather(1, label)[:, 0] / power, i, margin)
        others = scores.scatter_(1, label, -torch.inf)
        high = None
        if not bounded:
            high = others.amax(1, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)
            others.sub_(high)
        found = others.exp2_().sum(1)
        logs = found.log() if high is None else found.log() + high[:, 0] / LOG2E
        gap = logs - own * scale
        values = softplus(gap) if ask.own_counts else gap
        total += (weight * values).masked_fill_(weight == 0, 0.0).sum(dtype=torch.float64)
        if dw is not None:
            dw[i] = values
        if not (wanted[0] or wanted[1] or wanted[3] or wanted[4]):
            continue
        wrong = weight * gap.sigmoid() if ask.own_counts else weight  # the probability of all other classes, by weight
        gradient = others.mul_((wrong * scale / found.clamp_(min=torch.finfo(x.dtype).tiny))[:, None])
        # taken off after the products, whose many small numbers it would cost digits
        near = (wrong * scale * slope)[:, None]
        if wanted[0] or wanted[3]:
            far = mm(gradient, y)
            if dx is not None:
                torch.addcmul(far, y.index_select(0, labels[i]), near, value=-1, out=dx[i])
            if wanted[3]:
                cosines = (far * rows).sum(1) if origin is None else (far * rows).sum(1) + (gradient * origin).sum(1)
                by_scale += (cosines / scale - wrong * own).sum(dtype=torch.float64)
        if wanted[4]:
            by_margin -= (wrong * scale * leaning).sum(dtype=torch.float64)
        if dy is not None:
            add_mm(dy, gradient.T, rows)
            dy.index_add_(0, labels[i], rows * near, alpha=-1)
    for part, side, inverse in ((dx, x, x_inverse), (dy, y, y_inverse)):
        if part is not None:
            _through_lengths(part, side, inverse)
    numbers = (by.to(x.dtype) if asked else None for by, asked in zip((by_scale, by_margin), wanted[3:]))
    return total.to(x.dtype), (dx, dy, dw, *numbers)


def _through_lengths(gradient: Tensor, rows: Tensor, inverse: Tensor) -> None:
    """The gradient of unit rows as that of the rows themselves, in place: what changes a row's length alone is lost."""
    size = max(1, _NUMBERS // rows.shape[1])
    for part, unit, share in zip(gradient.split(size), rows.split(size), inverse.split(size)):
        part.addcmul_(unit, (part * unit).sum(1, keepdim=True), value=-1).mul_(share)
