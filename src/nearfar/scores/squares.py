"""Squares of scores; and the sum of all by second moments: ``Σ_ij ⟨x_i, y_j⟩² = ⟨XᵀX, YᵀY⟩``, O(n·d²), no score computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.scores.autograd import full_precision, in_transform, once, one_gradient
from nearfar.scores.edges import Edges
from nearfar.scores.matmul import mm
from nearfar.scores.planned import Planned
from nearfar.scores.similarity import some_scores

_NUMBERS = 2**18
"""Numbers of the rows that are read at a time: 1 MB stays in the cache."""


def square(values: Tensor) -> Tensor:
    """``v²`` of each."""
    return values * values if _seen_through() else _Square.apply(values)  # pyright: ignore[reportReturnType]


def hinge(margin: Float[Tensor, ""], values: Tensor) -> Tensor:
    """``[margin − v]₊²`` of each."""
    return (margin - values).relu().square() if _seen_through() else _Hinge.apply(margin, values)  # pyright: ignore[reportReturnType]


def _seen_through() -> bool:
    """Whether only plain operations are seen through, though they visit the values more often."""
    return torch.compiler.is_compiling() or in_transform()


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(values)
        return values * values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (gradients[0] * ctx.saved_tensors[0]).mul_(2)


class _Hinge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, margin: Tensor, values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        below = (margin - values).relu_()
        ctx.save_for_backward(margin, values, below)
        return below * below

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        margin, values, below = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            below = (margin - values).relu()
        slope = (gradients[0] * below).mul_(2)
        return slope.sum() if ctx.needs_input_grad[0] else None, slope.neg_()


def pay(scores: Planned) -> bool:
    """Whether moments, of four products over the features, cost less than scores, of three over the rows."""
    (n, m), d = scores.pairs.shape, scores.query_rows.shape[1]
    usual = scores.backend is None and scores.offsets is None and not scores.traced
    return usual and scores.similarity == "dot" and 2 * (n + m) * d <= 3 * n * m


def related(scores: Planned) -> tuple[Float[Tensor, " p"], Float[Tensor, " i"] | None] | None:
    """Scores of the positives and of the pairs that are ignored, computed one by one; ``None``: they are too many.

    Without weights: those of a relation that has any are too many.
    """
    pairs, x, y = scores.pairs, scores.queries, scores.keys
    n, m = pairs.shape
    most = min(4 * (n + m), n * m // 4)  # the rest is a difference, whose digits go where it is small
    if pairs.row_by_row:
        return (some_scores(x, y, "dot"), None) if n <= most else None
    if pairs.ids is None or x.device.type != "cpu":
        return None
    if float((m - pairs.count("negatives", torch.float64)).sum()) > most:  # before there is a list of them
        return None
    edges = Edges.of(pairs, x.dtype)
    places = [edges.place, *([] if edges.ignored is None else [edges.ignored])]
    near, *ignored = (listed_products(x, y, place // len(y), place % len(y)) for place in places)
    return near, ignored[0] if ignored else None


def listed_products(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], row: Int[Tensor, " p"], column: Int[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """``⟨x_i, y_j⟩`` of a list of pairs, some at a time: there may be more pairs than rows, and their rows are never held."""
    return _Listed.apply(x, y, row, column)  # pyright: ignore[reportReturnType]


def _some(row: Tensor, column: Tensor, d: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    size = max(1, _NUMBERS // max(d, 1))
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        yield part, row[part], column[part]


@one_gradient
class _Listed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, row: Tensor, column: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, y, row, column)
        found = x.new_empty(len(row))
        for part, i, j in _some(row, column, x.shape[1]):
            torch.linalg.vecdot(x.index_select(0, i), y.index_select(0, j), out=found[part])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, row, column = ctx.saved_tensors
        with torch.no_grad():
            dx, dy = torch.zeros_like(x), torch.zeros_like(y)
            for part, i, j in _some(row, column, x.shape[1]):
                weight = gradients[0][part, None]
                dx.index_add_(0, i, y.index_select(0, j).mul_(weight))
                dy.index_add_(0, j, x.index_select(0, i).mul_(weight))
        return *(once(gradient, x, y, gradients[0]) for gradient in (dx, dy)), None, None


def sum_of_squares(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Over all pairs, in float64, for others will be taken from it."""
    return _SumOfSquares.apply(x, None if y is x else y)  # pyright: ignore[reportReturnType]


@one_gradient
class _SumOfSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        with full_precision(x):
            of_x = mm(x.T, x)
            of_y = of_x if y is None else mm(y.T, y)
        ctx.save_for_backward(x, y, of_x, of_y)
        return (of_x * of_y).sum(dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, of_x, of_y = ctx.saved_tensors
        with torch.no_grad(), full_precision(x):
            slope = 2 * gradients[0].to(x.dtype)
            if y is None:
                found = mm(x, of_x).mul_(2 * slope), None
            else:
                sides = zip((x, y), (of_y, of_x), ctx.needs_input_grad)
                found = [mm(rows, moment).mul_(slope) if want else None for rows, moment, want in sides]
        return tuple(once(gradient, x, y, gradients[0]) for gradient in found)
