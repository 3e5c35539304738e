"""Any stage of reductions in O(n·d) memory: tiles of scores, seen once forward and rebuilt once backward.

Forward, each tile's scores are reduced into one number a query and dropped. Backward, the tile is built again, the
gradients of the numbers become a gradient of its scores (element functions by autograd, on that tile alone), and that
flows into the rows by two matrix products. Rows paired with themselves visit half of the tiles: each serves its
transpose as well. The statistics of one stage are ordinary differentiable tensors, so that a later stage may read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.rules import Relation
from nearfar.scores.autograd import full_precision, in_transform, once, one_gradient, presigned
from nearfar.scores.exponentials import NOTHING, exp_
from nearfar.scores.products import Products
from nearfar.scores.reductions import Reduction, Tile
from nearfar.scores.similarity import pull_back, tile_scores
from nearfar.scores.tiles import Tiles
from nearfar.types import Similarity


@dataclass(frozen=True, eq=False)
class Plan(Tiles):
    """What is fixed about one pass over the scores: everything but the differentiable tensors."""

    stage: dict[str, Reduction]
    similarity: Similarity
    parameters: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    key_statistics: tuple[str, ...] = ()
    narrow: bool = False  # products in bfloat16

    def skips(self, i: slice, j: slice) -> bool:
        """Whether no reduction looks at a tile: they ask for positives, and it has none."""
        return all(r.over == "positives" for r in self.stage.values()) and self.apart(i, j)


class Rows:
    """The rows of one pass: their scores a tile at a time, and the way back to them."""

    def __init__(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], plan: Plan) -> None:
        self._x, self._y, self._plan = x, y, plan
        self._narrow = Products(x, y, plan.rows * plan.columns, narrow=True) if plan.narrow else None

    def scores(self, i: slice, j: slice) -> Float[Tensor, "b c"]:
        """Of queries ``i`` with keys ``j``; good until the next are asked for."""
        if self._narrow is not None:
            return self._narrow.scores(i, j)
        return tile_scores(self._x[i], self._y[j], self._plan.similarity, itself=self._plan.symmetric and i == j)

    def pull(self, slope: Tensor, scores: Tensor, i: slice, j: slice, dx: Tensor | None, dy: Tensor | None) -> None:
        """Add the gradient of a tile's scores to its rows' (``None``: not wanted)."""
        dx, dy = None if dx is None else dx[i], None if dy is None else dy[j]
        if self._narrow is not None:
            self._narrow.pull(slope, i, j, dx, dy)
            return
        kind = self._plan.similarity
        slope = slope if kind == "dot" else slope.clone()  # used up, and it may be an expanded view
        pull_back(slope, scores, self._x[i], self._y[j], kind, dx, dy)


def reduce(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    plan: Plan,
    tensors: Sequence[Tensor],
) -> dict[str, Float[Tensor, " n"]]:
    """Every reduction of a plan's lowered stage; ``tensors``: its parameters, statistics and key statistics."""
    values = _Reduce.apply(x, None if plan.symmetric else y, offsets, plan, *tensors)
    return dict(zip(plan.stage, values))  # pyright: ignore[reportArgumentType]


@presigned
@one_gradient
class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor, y: Tensor | None, offsets: Tensor | None, plan: Plan, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        with full_precision(x):
            return _forward(x, x if y is None else y, offsets, plan, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, offsets, plan, *tensors = inputs
        counts = [value for value, reduction in zip(output, plan.stage.values()) if reduction.op in ("count", "weight")]
        ctx.mark_non_differentiable(*counts)
        ctx.plan = plan
        ctx.save_for_backward(x, y, offsets, *tensors, *output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, offsets, *rest = ctx.saved_tensors
        tensors, output = rest[: -len(ctx.plan.stage)], rest[-len(ctx.plan.stage) :]
        with full_precision(x), torch.no_grad():
            dx, dy, doffsets, dtensors = _backward(
                x, y, offsets, ctx.plan, tensors, output, gradients, ctx.needs_input_grad
            )
        inputs = (x, y, offsets, *tensors)
        dx, dy, doffsets, *dtensors = (
            once(gradient, *inputs, *gradients) for gradient in (dx, dy, doffsets, *dtensors)
        )
        return dx, dy, doffsets, None, *dtensors


Way = tuple[int, slice]
"""What a tile is summed over (1: its columns, 0: its rows), and whose numbers that gives."""


def looks(
    scores: Tensor, plan: Plan, i: slice, j: slice, tensors: Sequence[Tensor]
) -> list[tuple[Tensor, Tile, tuple[Way, ...]]]:
    """A tile as element functions see it: from the queries, and from the keys too where it serves its transpose.

    Where they read no statistics of either, both sides see the same, once. Else the transpose is a view: operations then
    find scores and masks in one order of memory.
    """
    rest = iter(tensors)
    parameters = {name: next(rest) for name in plan.parameters}
    statistics, key_statistics = (
        {name: next(rest) for name in names} for names in (plan.statistics, plan.key_statistics)
    )

    def tile(relation: Relation, i: slice, j: slice) -> Tile:
        rows = {name: value[i, None] for name, value in statistics.items()}
        return Tile(relation, parameters, rows, {name: value[None, j] for name, value in key_statistics.items()})

    relation = plan.relation(i, j)
    here = scores, tile(relation, i, j)
    if not plan.symmetric or i == j:
        return [(*here, ((1, i),))]
    if not statistics and not key_statistics:
        return [(*here, ((1, i), (0, j)))]
    return [(*here, ((1, i),)), (scores.T, tile(relation.T, j, i), ((1, j),))]


def _forward(x: Tensor, y: Tensor, offsets: Tensor | None, plan: Plan, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    zeros = {name: x.new_zeros(len(x)) for name in plan.stage}
    highest = {name: x.new_full((len(x),), -NOTHING) for name, r in plan.stage.items() if r.op == "logsumexp"}

    def accumulate(scores: Tensor, tile: Tile, ways: tuple[Way, ...]) -> None:
        for name, reduction in plan.stage.items():
            values = _values(reduction, scores, tile)
            if values is None:
                continue
            for dim, rows in ways:
                total = zeros[name]
                if isinstance(values, bool):
                    total[rows] += scores.shape[dim]
                elif reduction.op == "logsumexp":
                    before = highest[name][rows]
                    now = torch.maximum(before, values.amax(dim))
                    part = exp_(values - _shift(now).unsqueeze(dim)).sum(dim)
                    total[rows] = total[rows] * (before - _shift(now)).exp() + part
                    highest[name][rows] = now
                else:
                    total[rows] += values.sum(dim)

    tiles = Rows(x, y, plan)
    for i, j in plan.tiles():
        if plan.skips(i, j):
            continue
        scores = tiles.scores(i, j)
        scores = scores if offsets is None else scores.add_(offsets[j])
        for look in looks(scores, plan, i, j, tensors):
            accumulate(*look)
    for name, high in highest.items():
        zeros[name] = zeros[name].log_().add_(_shift(high))
    return tuple(zeros.values())


def _shift(highest: Tensor) -> Tensor:
    """What to take from the exponents of a row; nothing, where none counts."""
    return highest.masked_fill(highest < -NOTHING / 2, 0.0)


def _values(reduction: Reduction, scores: Tensor, tile: Tile) -> Tensor | Literal[True] | None:
    """What a reduction adds up of a tile (of a log-sum-exp: exponents); ``True``: ones, ``None``: nothing."""
    if reduction.op == "logsumexp":
        outside = _outside(reduction, scores, tile)
        if outside is None:
            return None
        weight = reduction.weight(tile)
        values = reduction.values(scores, tile)
        return _exponents(values if weight is None else values + weight.log(), outside)
    mask = reduction.mask(scores, tile)
    if mask is None or reduction.op == "count":
        return mask
    weight = reduction.weight(tile)
    if reduction.op == "weight":
        return mask if weight is None else weight if mask is True else weight * mask
    values = reduction.values(scores, tile)
    values = values if weight is None else values * weight
    return values if mask is True else values.masked_fill(~mask, 0.0)


def _outside(reduction: Reduction, scores: Tensor, tile: Tile) -> Tensor | Literal[True] | None:
    """Below 0 where a pair doesn't count, else 0; ``True``: all count, ``None``: none does.

    Numbers, for to fill by a mask costs as much as twenty additions.
    """
    mask = tile.mask(reduction.over)
    if mask is None:
        return None
    outside = mask if mask is True else mask.to(scores.dtype).sub_(1)
    if reduction.keep is None:
        return outside
    dropped = reduction.keep(scores.detach(), tile).sign().sub_(1)
    return dropped if outside is True else torch.minimum(dropped, outside)


def _exponents(values: Tensor, outside: Tensor | Literal[True]) -> Tensor:
    return values if outside is True else values.add(outside, alpha=NOTHING)


def _backward(
    x: Tensor,
    y: Tensor | None,
    offsets: Tensor | None,
    plan: Plan,
    tensors: Sequence[Tensor],
    output: Sequence[Tensor],
    gradients: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    dx = torch.zeros_like(x) if needs[0] else None
    dy = dx if y is None else torch.zeros_like(y) if needs[1] else None
    doffsets = torch.zeros_like(offsets) if offsets is not None and needs[2] else None
    dtensors = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs[4:])]
    active = [
        (reduction, value, gradient)
        for reduction, value, gradient in zip(plan.stage.values(), output, gradients)
        if reduction.op in ("logsumexp", "sum") and gradient is not None
    ]
    for k, (reduction, value, gradient) in enumerate(active):
        if reduction.op == "logsumexp":
            none = value == -torch.inf  # e^{v − ∞} = 0
            active[k] = reduction, value.masked_fill(none, torch.inf), gradient.masked_fill(none, 0.0)

    def gradient_of(scores: Tensor, tile: Tile, ways: tuple[Way, ...], i: slice, j: slice) -> Tensor | None:
        """Gradient of the tile's scores; those of parameters and statistics are added up on the way."""
        terms = []
        for reduction, value, gradient in active:
            look = _outside if reduction.op == "logsumexp" else Reduction.mask
            counts = look(reduction, scores, tile)
            if counts is not None:
                terms.append((reduction, value, gradient, counts))
        if not terms:
            return None
        leaves = Leaves(scores, tile)

        def mapped(*tensors: Tensor) -> tuple[Tensor, ...]:
            seen = leaves.tile(tensors)
            return tuple(reduction.values(tensors[0], seen) for reduction, *_ in terms)

        def slopes(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
            """∂loss/∂(mapped scores) of each reduction."""
            found = []
            for (reduction, value, gradient, counts), mapped_scores in zip(terms, values):
                shares = [gradient[rows].unsqueeze(dim) for dim, rows in ways]
                if reduction.op == "logsumexp":
                    exponents = _exponents(mapped_scores.detach(), counts)
                    shares = [
                        exp_(exponents - value[rows].unsqueeze(dim)).mul_(share)
                        for share, (dim, rows) in zip(shares, ways)
                    ]
                slope = (shares[0] if len(shares) == 1 else shares[0] + shares[1]).expand_as(scores)
                weight = reduction.weight(tile)
                slope = slope if weight is None else slope * weight
                if reduction.op == "sum" and isinstance(counts, Tensor):
                    slope = slope.masked_fill(~counts, 0.0)
                found.append(slope)
            return tuple(found)

        ds, *others = _vjp(mapped, leaves.tensors, slopes)
        rows = len(plan.parameters), len(plan.parameters) + len(plan.statistics)
        for k, (total, gradient) in enumerate(zip(dtensors, others)):
            if total is None or gradient is None:
                continue
            if k < rows[0]:
                total += gradient
            elif k < rows[1]:
                total[i] += gradient[:, 0]
            else:
                total[j] += gradient[0]
        return ds

    tiles = Rows(x, x if y is None else y, plan)
    for i, j in plan.tiles():
        if plan.skips(i, j):
            continue
        scores = tiles.scores(i, j)
        shifted = scores if offsets is None else scores + offsets[j]
        here, *turned = looks(shifted, plan, i, j, tensors)
        ds = gradient_of(*here, i, j)
        for look in turned:
            there = gradient_of(*look, j, i)
            ds = ds if there is None else there.T if ds is None else ds + there.T
        if ds is None:
            continue
        if doffsets is not None:
            doffsets[j] += ds.sum(0)
        tiles.pull(ds, scores, i, j, dx, dy)
    return dx, None if y is None else dy, doffsets, dtensors


class Leaves:
    """The differentiable tensors of a tile as a flat list, and the tile put together again from such a list."""

    def __init__(self, scores: Tensor, tile: Tile) -> None:
        self._tile = tile
        self._groups = (tile.parameters, tile.rows, tile.columns)
        self.tensors = [scores, *(tensor for group in self._groups for tensor in group.values())]

    def tile(self, tensors: Sequence[Tensor]) -> Tile:
        """The tile that reads these in place of its own."""
        rest = iter(tensors[1:])
        parameters, rows, columns = ({name: next(rest) for name in group} for group in self._groups)
        return Tile(self._tile.relation, parameters, rows, columns)


def _vjp(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    slopes: Callable[[Sequence[Tensor]], tuple[Tensor, ...]],
) -> tuple[Tensor | None, ...]:
    """Gradients of a function of a tile, given slopes of its values that depend on the values."""
    if in_transform():  # requires_grad_ is refused inside one
        values, pull = torch.func.vjp(function, *inputs)[:2]
        return pull(slopes(values))
    leaves = [leaf.detach().requires_grad_() for leaf in inputs]
    with torch.enable_grad():
        values = function(*leaves)
    return torch.autograd.grad(values, leaves, slopes(values), allow_unused=True)
