"""Any stage of reductions in O(n·d) memory: tiles of scores, seen once forward and rebuilt once backward.

Forward, each tile's scores are reduced into one number a query and dropped. Backward, the tile is built again, the
gradients of the numbers become a gradient of its scores (element functions by autograd, on that tile alone), and that
flows into the rows by two matrix products. Rows paired with themselves visit half of the tiles: each serves its
transpose as well. The statistics of one stage are ordinary differentiable tensors, so that a later stage may read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from nearfar.scores.autograd import full_precision, in_transform, once, presigned
from nearfar.scores.reductions import Reduction, Tile
from nearfar.scores.similarity import pull_back, tile_scores
from nearfar.types import Similarity


@dataclass(frozen=True, eq=False)
class Plan:
    """What is fixed about one pass over the scores: everything but the differentiable tensors."""

    stage: dict[str, Reduction]
    similarity: Similarity
    pairs: Pairs
    symmetric: bool  # the keys are the queries, and the relation is its own transpose
    rows: int  # of a tile
    columns: int
    parameters: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    key_statistics: tuple[str, ...] = ()
    extents: tuple[list[tuple[int, int]], list[tuple[int, int]]] | None = None

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Row and column ranges of the tiles; only those on or above the diagonal if one serves its transpose."""
        n, m = self.pairs.shape
        for i in range(0, n, self.rows):
            for j in range(i if self.symmetric else 0, m, self.columns):
                yield slice(i, min(i + self.rows, n)), slice(j, min(j + self.columns, m))

    def relation(self, i: slice, j: slice) -> Relation:
        """The relation of a tile, without masks where the ids' extents show that there are no positives."""
        return Relation(None, None, None) if self.apart(i, j) else self.pairs.relation(i, j)

    def ordered(self) -> Plan:
        """The plan that knows which ids its tiles hold, for rows in order of their ids."""
        ids = self.pairs.ids
        if ids is None or self.pairs.rows is not None:
            return self
        return replace(self, extents=(_extents(ids[0], self.rows), _extents(ids[1], self.columns)))

    def skips(self, i: slice, j: slice) -> bool:
        """Whether no reduction looks at a tile: they ask for positives, and it has none."""
        return all(r.over == "positives" for r in self.stage.values()) and self.apart(i, j)

    def apart(self, i: slice, j: slice) -> bool:
        """Whether the ids' extents show that a tile has no positive."""
        if self.extents is None or self.pairs.diagonal(i, j) is not None:
            return False
        (low, high), (first, last) = self.extents[0][i.start // self.rows], self.extents[1][j.start // self.columns]
        return high < first or last < low


def _extents(ids: Tensor, size: int) -> list[tuple[int, int]]:
    """Smallest and largest id of each run of ``size`` rows."""
    low = torch.stack([part.min() for part in ids.split(size)])
    high = torch.stack([part.max() for part in ids.split(size)])
    return list(zip(low.tolist(), high.tolist()))


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
        dx, dy, doffsets, *dtensors = (once(gradient, *inputs) for gradient in (dx, dy, doffsets, *dtensors))
        return dx, dy, doffsets, None, *dtensors


def _tile(plan: Plan, i: slice, j: slice, tensors: Sequence[Tensor]) -> Tile:
    rest = iter(tensors)
    parameters = {name: next(rest) for name in plan.parameters}
    rows = {name: next(rest)[i, None] for name in plan.statistics}
    return Tile(plan.relation(i, j), parameters, rows, {name: next(rest)[None, j] for name in plan.key_statistics})


def _forward(x: Tensor, y: Tensor, offsets: Tensor | None, plan: Plan, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    zeros = {name: x.new_zeros(len(x)) for name in plan.stage}
    highest = {name: x.new_full((len(x),), -torch.inf) for name, r in plan.stage.items() if r.op == "logsumexp"}

    def accumulate(scores: Tensor, i: slice, j: slice) -> None:
        tile = _tile(plan, i, j, tensors)
        for name, reduction in plan.stage.items():
            mask = reduction.mask(scores, tile)
            if mask is None:
                continue
            total = zeros[name]
            weight = reduction.weight(tile)
            if reduction.op == "count" or (reduction.op == "weight" and weight is None):
                total[i] += scores.shape[1] if mask is True else mask.sum(1)
            elif reduction.op == "weight":
                assert weight is not None
                total[i] += (weight if mask is True else weight * mask).sum(1)
            elif reduction.op == "sum":
                values = reduction.values(scores, tile)
                values = values if weight is None else values * weight
                total[i] += (values if mask is True else values.masked_fill(~mask, 0.0)).sum(1)
            else:
                values = reduction.values(scores, tile)
                values = values if weight is None else values + weight.log()
                values = values if mask is True else values.masked_fill(~mask, -torch.inf)
                before = highest[name][i]
                now = torch.maximum(before, values.amax(1))
                shift = now.masked_fill(now == -torch.inf, 0.0)
                total[i] = total[i] * (before - shift).exp() + (values - shift[:, None]).exp_().sum(1)
                highest[name][i] = now

    for i, j in plan.tiles():
        if plan.skips(i, j):
            continue
        scores = tile_scores(x[i], y[j], plan.similarity)
        scores = scores if offsets is None else scores.add_(offsets[j])
        accumulate(scores, i, j)
        if plan.symmetric and i != j:
            accumulate(scores.T, j, i)
    for name, high in highest.items():
        zeros[name] = zeros[name].log_().add_(high.masked_fill(high == -torch.inf, 0.0))
    return tuple(zeros.values())


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
    keys = x if y is None else y
    dx = torch.zeros_like(x) if needs[0] else None
    dy = dx if y is None else torch.zeros_like(y) if needs[1] else None
    doffsets = torch.zeros_like(offsets) if offsets is not None and needs[2] else None
    dtensors = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needs[4:])]
    active = [
        (reduction, value, gradient)
        for reduction, value, gradient in zip(plan.stage.values(), output, gradients)
        if reduction.op in ("logsumexp", "sum") and gradient is not None
    ]

    def gradient_of(scores: Tensor, i: slice, j: slice) -> Tensor | None:
        """Gradient of the tile's scores; those of parameters and statistics are added up on the way."""
        tile = _tile(plan, i, j, tensors)
        terms = [
            (reduction, value[i, None], gradient[i, None], mask)
            for reduction, value, gradient in active
            if (mask := reduction.mask(scores, tile)) is not None
        ]
        if not terms:
            return None
        leaves = _Leaves(scores, tile)

        def mapped(*tensors: Tensor) -> tuple[Tensor, ...]:
            seen = leaves.tile(tensors)
            return tuple(reduction.values(tensors[0], seen) for reduction, *_ in terms)

        def slopes(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
            """∂loss/∂(mapped scores) of each reduction."""
            found = []
            for (reduction, value, gradient, mask), mapped_scores in zip(terms, values):
                weight = reduction.weight(tile)
                if reduction.op == "logsumexp":
                    slope = (mapped_scores.detach() - value).exp_().mul_(gradient)
                    slope = slope if weight is None else slope.mul_(weight)
                else:
                    slope = gradient.expand_as(scores) if weight is None else gradient * weight
                found.append(slope if isinstance(mask, bool) else slope.masked_fill(~mask, 0.0))
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

    for i, j in plan.tiles():
        if plan.skips(i, j):
            continue
        scores = tile_scores(x[i], keys[j], plan.similarity)
        shifted = scores if offsets is None else scores + offsets[j]
        ds = gradient_of(shifted, i, j)
        if plan.symmetric and i != j:
            turned = gradient_of(shifted.T, j, i)
            ds = ds if turned is None else turned.T if ds is None else ds + turned.T
        if ds is None:
            continue
        if doffsets is not None:
            doffsets[j] += ds.sum(0)
        pull_back(
            ds if plan.similarity == "dot" else ds.clone(),  # used up, and it may be an expanded view
            scores,
            x[i],
            keys[j],
            plan.similarity,
            None if dx is None else dx[i],
            None if dy is None else dy[j],
        )
    return dx, None if y is None else dy, doffsets, dtensors


class _Leaves:
    """The differentiable tensors of a tile as a flat list, and the tile put together again from such a list."""

    def __init__(self, scores: Tensor, tile: Tile) -> None:
        self._tile = tile
        self._groups = (tile.parameters, tile.rows, tile.columns)
        self.tensors = [scores, *(tensor for group in self._groups for tensor in group.values())]

    def tile(self, tensors: Sequence[Tensor]) -> Tile:
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
