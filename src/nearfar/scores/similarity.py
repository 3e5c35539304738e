"""Scores of a tile of rows, and how a tile's gradient flows back to them. Plain functions, no state.

``dot`` is ⟨x, y⟩ (cosine similarity of normalised rows), ``euclidean`` the distance, ``sqeuclidean`` its square.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.lengths import measured, units_and_inverses
from nearfar.scores.autograd import batched, full_precision, in_transform
from nearfar.scores.matmul import add_mm, mm
from nearfar.types import Similarity

# Below this share of |x|² + |y|², the product form |x|² + |y|² − 2⟨x, y⟩ has lost too many digits.
CLOSE = 1e-2


def normalize(z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length one; a zero row stays zero and has zero gradient."""
    if torch.compiler.is_compiling() or in_transform():  # they see through plain operations only
        return units_and_inverses(z)[0]
    return _Normalize.apply(z)  # pyright: ignore[reportReturnType]


class _Normalize(torch.autograd.Function):
    """One node in place of six; its backward is ordinary torch, so that it has all further derivatives."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        unit, inverse = measured(z)
        ctx.save_for_backward(z, unit, inverse)
        return unit

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, unit, inverse = ctx.saved_tensors
        gradient = gradients[0]
        if torch.is_grad_enabled() or batched(gradient):  # to be differentiated again: everything from z
            unit, inverse = units_and_inverses(z)
            return (gradient - unit * (gradient * unit).sum(1, keepdim=True)) * inverse
        result = gradient * unit  # one matrix, used again
        torch.mul(unit, result.sum(1, keepdim=True), out=result)
        return torch.sub(gradient, result, out=result).mul_(inverse)


def rounded(rows: Float[Tensor, "n d"], dtype: torch.dtype) -> Float[Tensor, "n d"]:
    """Rows as a narrower type sees them; the gradient passes straight through."""
    if torch.compiler.is_compiling() or in_transform():
        return rows + (rows.detach().to(dtype).to(rows.dtype) - rows.detach())
    return _Rounded.apply(rows, dtype)  # pyright: ignore[reportReturnType]


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, dtype: torch.dtype) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return rows.to(dtype).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradients[0], None


def root(square: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0."""
    zero = square <= 0
    return square.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0)


def product(x: Float[Tensor, "*b n d"], y: Float[Tensor, "*b m d"]) -> Float[Tensor, "*b n m"]:
    """``x·yᵀ`` in the precision of its rows, forward and backward, whatever autocast says when either runs."""
    if torch.compiler.is_compiling() or in_transform():
        return x @ y.mT
    return _Product.apply(x, y)  # pyright: ignore[reportReturnType]


class _Product(torch.autograd.Function):
    """Its own derivative, so that it has all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x, y)
        with full_precision(x):
            return x @ y.mT

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, y), (g,) = ctx.saved_tensors, gradients
        dx = _laid_out_as(x, g, y) if ctx.needs_input_grad[0] else None
        return dx, _laid_out_as(y, g.mT, x) if ctx.needs_input_grad[1] else None


def _laid_out_as(like: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a·b``, in rows or in columns as its like: whatever it flows to then reads it in order."""
    return product(a, b.mT) if like.is_contiguous() else product(b.mT, a).mT


def all_scores(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], similarity: Similarity) -> Float[Tensor, "n m"]:
    """Every score by the definition, differentiable any number of times."""
    if similarity == "dot":
        return product(x, y)
    square = (x[:, None] - y[None]).square().sum(2)
    return square if similarity == "sqeuclidean" else root(square)


def some_scores(x: Float[Tensor, "... d"], y: Float[Tensor, "... d"], similarity: Similarity) -> Float[Tensor, "..."]:
    """Scores of rows with rows, by the definition."""
    if similarity == "dot":
        return (x * y).sum(-1)
    square = (x - y).square().sum(-1)
    return square if similarity == "sqeuclidean" else root(square)


def picked_scores(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], index: Int[Tensor, " n"], similarity: Similarity
) -> Float[Tensor, " n"]:
    """Score of each row of ``x`` with the row of ``y`` that its index names, by the definition."""
    if torch.compiler.is_compiling() or in_transform():
        return some_scores(x, y[index], similarity)
    return _Picked.apply(x, y, index, similarity)  # pyright: ignore[reportReturnType]


class _Picked(torch.autograd.Function):
    """One node in place of eight, and no row of zeros for each row that is not picked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, index: Tensor, similarity: Similarity) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        picked = y.index_select(0, index)
        scores = (x * picked if similarity == "dot" else (x - picked).square_()).sum(1)
        scores = scores.sqrt_() if similarity == "euclidean" else scores
        ctx.similarity = similarity
        ctx.save_for_backward(x, y, index, scores)
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, index, scores = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled() or batched(gradients[0]):  # to be differentiated again: plain operations on the rows
            return *_picked_gradient(x, y, index, gradients[0], ctx.similarity, needs), None, None
        weight, picked = gradients[0][:, None], y.index_select(0, index)
        if ctx.similarity == "dot":
            dx, dpicked = picked * weight if needs[0] else None, x * weight if needs[1] else None
        else:
            far = scores[:, None]
            weight = 2 * weight if ctx.similarity == "sqeuclidean" else (weight / far).masked_fill_(far == 0, 0.0)
            dx = (x - picked).mul_(weight)
            dpicked = dx.neg() if needs[1] else None
        return dx, None if dpicked is None else torch.zeros_like(y).index_add_(0, index, dpicked), None, None


def _picked_gradient(
    x: Tensor, y: Tensor, index: Tensor, gradient: Tensor, similarity: Similarity, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """What ``_Picked`` owes each side. By the formula, not by autograd: where ``x`` is ``y`` that would give the sum to both."""
    picked = y.index_select(0, index)
    if similarity == "dot":
        pull, push = picked, x
    else:
        pull = x - picked
        push = -pull
        if similarity == "sqeuclidean":
            gradient = 2 * gradient
        else:
            far = root(pull.square().sum(1))
            gradient = (gradient / far.masked_fill(far == 0, 1.0)).masked_fill(far == 0, 0.0)
    dx = pull * gradient[:, None] if needs[0] else None
    return dx, torch.zeros_like(y).index_add(0, index, push * gradient[:, None]) if needs[1] else None


def tile_scores(
    x: Float[Tensor, "b d"],
    y: Float[Tensor, "c d"],
    similarity: Similarity,
    out: Tensor | None = None,
    y2: Float[Tensor, " c"] | None = None,
    itself: bool = False,
) -> Float[Tensor, "b c"]:
    """Scores of a tile by one matrix product, without gradient; close rows of a distance are done again directly.

    ``out`` is memory that may be used; ``y2``, the keys' squared lengths if they are known; ``itself``: whether the rows are
    paired with themselves, so that the diagonal is 0.
    """
    if similarity == "dot":
        return mm(x, y.T, out)
    square, _ = tile_squares(x, y, out, y2, itself)
    return square if similarity == "sqeuclidean" else square.sqrt_()


def tile_squares(
    x: Float[Tensor, "b d"],
    y: Float[Tensor, "c d"],
    out: Tensor | None = None,
    y2: Float[Tensor, " c"] | None = None,
    itself: bool = False,
) -> tuple[Float[Tensor, "b c"], bool]:
    """Squared distances of a tile, and whether any rows may be so close that they were done again directly."""
    x2 = x.square().sum(1, keepdim=True)
    y2 = x2[:, 0] if itself else y.square().sum(1) if y2 is None else y2
    square = mm(x * -2, y.T, out).add_(x2).add_(y2)
    if itself:
        square.fill_diagonal_(torch.inf)  # far, for now
    close = not _all_far(square, x2, y2, itself)
    if close:
        i, j = _close(square, x2, y2)
        if len(i) > square.numel() // 16:
            square.copy_(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_())
        elif len(i):
            square[i, j] = (x[i] - y[j]).square_().sum(1)
    if itself:
        square.fill_diagonal_(0.0)
    return square, close or itself


def _all_far(square: Tensor, x2: Tensor, y2: Tensor, own: bool) -> bool:
    """Whether one look at the lowest shows that no rows are close."""
    if square.device.type != "cpu" or in_transform() or not square.numel():
        return False
    longest = float(x2.amax())
    return float(square.amin()) > CLOSE * (longest + (longest if own else float(y2.amax())))


def _close(square: Tensor, x2: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    """Where squared distances are below a share of ``|x|² + |y|²``: floats, columns first, since most have none."""
    close = square - CLOSE * y2
    torch.le(close, CLOSE * x2, out=close)
    columns = (close.amax(0) if len(close) else close.sum(0)).nonzero()[:, 0]
    if not len(columns):
        return columns, columns
    i, j = close[:, columns].nonzero(as_tuple=True)
    return i, columns[j]


def pull_back(
    gradient: Float[Tensor, "b c"],
    scores: Float[Tensor, "b c"],
    x: Float[Tensor, "b d"],
    y: Float[Tensor, "c d"],
    similarity: Similarity,
    dx: Float[Tensor, "b d"] | None,
    dy: Float[Tensor, "c d"] | None,
    y_weight: Float[Tensor, " c"] | None = None,
) -> None:
    """Add a tile's gradient to the gradients of its rows (``None``: not wanted). Uses ``gradient`` up.

    What a distance's gradient owes to ``y`` itself is a weight a key; given ``y_weight``, it is added up there for the caller.
    """
    if similarity == "dot":
        if dx is not None:
            add_mm(dx, gradient, y)
        if dy is not None:
            add_mm(dy, gradient.T, x)
        return
    weight = weights_of(gradient, scores, similarity)  # of a graph Laplacian
    if dx is not None:
        add_mm(dx.addcmul_(weight.sum(1, keepdim=True), x), weight, y, -1)
    if dy is not None:
        if y_weight is None:
            dy.addcmul_(weight.sum(0)[:, None], y)
        else:
            y_weight += weight.sum(0)
        add_mm(dy, weight.T, x, -1)


def weights_of(gradient: Float[Tensor, "b c"], scores: Tensor | None, similarity: Similarity) -> Float[Tensor, "b c"]:
    """What multiplies ``x − y`` in a distance's gradient: ``∂d/∂x = (x − y)/d`` and ``∂d²/∂x = 2(x − y)``. In place."""
    if similarity == "sqeuclidean":
        return gradient.mul_(2)
    assert scores is not None
    return over(gradient, scores)


def over(gradient: Tensor, scores: Tensor) -> Tensor:
    """``gradient / scores`` in place, 0 where the score is 0: by arithmetic, for a mask costs more than a division."""
    zero = torch.empty_like(scores)
    gradient.mul_(torch.gt(scores, 0, out=zero))
    return gradient.div_(torch.sub(1, zero, out=zero).add_(scores))
