"""All triplets of a batch in O(n·d) memory and without n³ work.

A few anchors at a time see their whole row of distances. Their positives are few and are sorted; each negative ``v`` finds
its place among the sorted ``u_p = d_ap + margin`` by bisection. That place says at once how many hinges ``[u_p − v]₊`` are
active, their sum (suffix sums of ``u``), and, counted by place, how many negatives lie below each positive. The nearest
negative beyond each positive (semi-hard) is a running minimum over the same places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import tally
from nearfar.scores import hinge_tiles
from nearfar.scores.autograd import full_precision, made_in_forward, presigned
from nearfar.scores.buffers import Buffer
from nearfar.scores.exponentials import softplus
from nearfar.scores.hinges import Classmates, FewPositives
from nearfar.scores.similarity import all_scores, pull_back, tile_scores
from nearfar.types import Similarity


@dataclass(frozen=True, eq=False)
class TripletPlan:
    """What is fixed about one visit of the triplets."""

    pairs: Pairs
    similarity: Similarity
    sign: float  # −1: distances are 1 − score
    mining: Literal["all", "semihard"]
    soft: bool
    farthest: bool  # semi-hard: take the farthest negative where none lies beyond the positive
    rows: int  # anchors at a time


def triplets(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], margin: Float[Tensor, ""], plan: TripletPlan, dense: bool = False
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of the chosen triplets' values, how many of them count in the mean, and how many (anchor, positive) have none.

    Args:
        x: Anchors.
        y: Positives and negatives; ``x`` itself where a batch is paired with itself.
        margin: A scalar tensor.
        plan: What to choose.
        dense: Every triplet by plain torch, ``(n, m, m)``, differentiable any number of times.
    """
    if dense:
        return _dense(x, y, margin, plan)
    wanted = tuple(torch.is_grad_enabled() and t.requires_grad for t in (x, y, margin))
    total, active, dropped, *_ = _Triplets.apply(x, y, margin, plan, wanted)  # pyright: ignore[reportGeneralTypeIssues]
    return total, active, dropped


@presigned
class _Triplets(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor, y: Tensor, margin: Tensor, plan: TripletPlan, wanted: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        with full_precision(x):
            return _forward(x, y, margin, plan, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        _, active, dropped, *gradients = output
        ctx.mark_non_differentiable(active, dropped, *(g for g in gradients if g is not None))
        ctx.save_for_backward(*inputs[:3], *gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *made_in_forward(ctx, gradients[0]), None, None


def _forward(
    x: Tensor, y: Tensor, margin: Tensor, plan: TripletPlan, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    dx, dy, dmargin = (torch.zeros_like(t) if want else None for t, want in zip((x, y, margin), wanted))
    total = x.new_zeros((), dtype=torch.float64)
    active, dropped = (torch.zeros((), dtype=torch.long, device=x.device) for _ in range(2))
    n, m = plan.pairs.shape
    loops = (plan.mining == "all" and plan.soft) or plan.farthest
    mates = None if loops else Classmates.of(plan.pairs, x.dtype)
    if mates is not None:
        return _few(x, y, margin, plan, mates, (dx, dy, dmargin))
    for start in range(0, n, plan.rows):
        i = slice(start, min(start + plan.rows, n))
        scores = tile_scores(x[i], y, plan.similarity)
        distances = 1 - scores if plan.sign < 0 else scores
        positive, ignored, _ = plan.pairs.relation(i, slice(0, m))
        if positive is None:
            continue
        negative = ~positive if ignored is None else ~(positive | ignored)
        strip = _Strip(distances, positive, negative)
        if plan.mining == "all":
            found = _all_soft(strip) if plan.soft else _all_hinge(strip, margin)
        else:
            found = _semihard(strip, margin, plan)
        total += found.total
        active += found.active
        dropped += found.dropped
        if dmargin is not None:
            dmargin += found.margin
        if dx is not None or dy is not None:
            gradient = found.gradient if plan.sign > 0 else found.gradient.neg_()
            pull_back(gradient, scores, x[i], y, plan.similarity, None if dx is None else dx[i], dy)
    return total.to(x.dtype), active.to(x.dtype), dropped.to(x.dtype), dx, dy, dmargin


def _few(
    x: Tensor,
    y: Tensor,
    margin: Tensor,
    plan: TripletPlan,
    mates: Classmates,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The same visit where each anchor has few positives, without masks, sorting or new memory."""
    dx, dy, dmargin = gradients
    n, m = plan.pairs.shape
    if plan.mining == "all" and n * m > hinge_tiles.LARGE:
        total, active = hinge_tiles.HingeTiles(x, y, margin, mates, plan.similarity).visit(dx, dy)
        if dmargin is not None:
            dmargin += active
        return total.to(x.dtype), active.to(x.dtype), active.new_zeros((), dtype=x.dtype), dx, dy, dmargin
    rows = max(8, min(512, 2**20 // m))
    memory, few = Buffer(x, rows * m), FewPositives(mates, margin, x, rows * m)
    y2, y_weight = y.square().sum(1), y.new_zeros(m)
    total = active = x.new_zeros((), dtype=torch.float64)
    dropped = 0
    for start in range(0, n, rows):
        i = slice(start, min(start + rows, n))
        scores = tile_scores(x[i], y, plan.similarity, memory(i.stop - i.start, m), y2, itself=y is x and rows >= n)
        distances = scores.neg_().add_(1) if plan.sign < 0 else scores
        found = few.all(distances, i) if plan.mining == "all" else few.semihard(distances, i, plan.soft)
        total, active, dropped = total + found.total, active + found.active, dropped + found.dropped
        if dmargin is not None:
            dmargin += found.margin
        if dx is not None or dy is not None:
            gradient = found.distances if plan.sign > 0 else found.distances.neg_()
            pull_back(gradient, scores, x[i], y, plan.similarity, None if dx is None else dx[i], dy, y_weight)
    if dy is not None:
        dy.addcmul_(y_weight[:, None], y)
    return total.to(x.dtype), active.to(x.dtype), active.new_zeros(()).add(dropped).to(x.dtype), dx, dy, dmargin


class _Strip:
    """Distances of some anchors, and their positives as a padded table."""

    def __init__(
        self, distances: Float[Tensor, "b m"], positive: Bool[Tensor, "b m"], negative: Bool[Tensor, "b m"]
    ) -> None:
        self.distances, self.negative = distances, negative
        row, column = positive.nonzero(as_tuple=True)
        count = tally(positive)
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        width = int(count.max()) if len(count) else 0
        self.index: Int[Tensor, "b p"] = torch.zeros(len(count), width, dtype=torch.long, device=row.device)
        self.index[row, place] = column
        self.valid: Bool[Tensor, "b p"] = torch.arange(width, device=row.device) < count[:, None]
        self.positives: Float[Tensor, "b p"] = distances.gather(1, self.index)
        self.negatives = tally(negative)


@dataclass(frozen=True, eq=False)
class _Found:
    total: Tensor  # float64 scalar
    active: Tensor
    dropped: Tensor | int
    margin: Tensor | int  # ∂total/∂margin
    gradient: Float[Tensor, "b m"]  # ∂total/∂distances


def _all_hinge(strip: _Strip, margin: Tensor) -> _Found:
    d, width = strip.distances, strip.index.shape[1]
    u, order = (strip.positives + margin).masked_fill(~strip.valid, -torch.inf).sort(1)
    place = torch.searchsorted(u.contiguous(), d.contiguous(), right=True)  # how many u ≤ v: those hinges are closed
    place.masked_fill_(~strip.negative, width)
    open_count = width - place
    suffix = torch.zeros(len(d), width + 1, dtype=d.dtype, device=d.device)
    suffix[:, :width] = u.masked_fill(u == -torch.inf, 0.0).flip(1).cumsum(1).flip(1)
    value = suffix.gather(1, place).addcmul_(open_count.to(d.dtype), d, value=-1)
    value.masked_fill_(open_count == 0, 0.0)
    below = torch.zeros(len(d), width + 1, dtype=torch.long, device=d.device)
    below.scatter_add_(1, place, strip.negative.long())
    below = below[:, :width].cumsum(1).masked_fill_(u == -torch.inf, 0)  # negatives under each sorted u
    gradient = open_count.to(d.dtype).neg_()
    gradient.scatter_add_(1, strip.index.gather(1, order), below.to(d.dtype))
    active = open_count.sum()
    return _Found(value.sum(dtype=torch.float64), active, 0, active, gradient)


def _all_soft(strip: _Strip) -> _Found:
    d = strip.distances
    gradient = torch.zeros_like(d)
    total = d.new_zeros((), dtype=torch.float64)
    for p in range(strip.index.shape[1]):  # softplus does not factor: one positive of every anchor at a time
        gap = strip.positives[:, p, None] - d
        counts = strip.negative & strip.valid[:, p, None]
        total += softplus(gap).masked_fill_(~counts, 0.0).sum(dtype=torch.float64)
        slope = gap.sigmoid_().masked_fill_(~counts, 0.0)
        gradient -= slope
        gradient.scatter_add_(1, strip.index[:, p, None], slope.sum(1, keepdim=True))
    return _Found(total, (strip.valid.sum(1) * strip.negatives).sum(), 0, 0, gradient)


def _semihard(strip: _Strip, margin: Tensor, plan: TripletPlan) -> _Found:
    d, width = strip.distances, strip.index.shape[1]
    u, order = strip.positives.masked_fill(~strip.valid, torch.inf).sort(1)
    index = strip.index.gather(1, order)
    v = d.masked_fill(~strip.negative, torch.inf)
    place = torch.searchsorted(u.contiguous(), v.contiguous())  # how many u < v
    lowest = torch.full((len(d), width + 1), torch.inf, dtype=d.dtype, device=d.device)
    lowest.scatter_reduce_(1, place, v, "amin")
    columns = torch.arange(d.shape[1], device=d.device).expand_as(d)
    first = torch.full((len(d), width + 1), d.shape[1], dtype=torch.long, device=d.device)
    hit = v == lowest.gather(1, place)  # ties: the lowest column of its place
    first.scatter_reduce_(1, place, torch.where(hit, columns, d.shape[1]), "amin")
    # the nearest negative beyond positive t is the least over places after t
    nearest, where = lowest[:, 1:].flip(1).cummin(1)
    nearest, where = nearest.flip(1), width - where.flip(1)
    chosen = first.gather(1, where).clamp_(max=d.shape[1] - 1)
    known = u < torch.inf
    if plan.farthest:
        far, column = d.masked_fill(~strip.negative, -torch.inf).max(1, keepdim=True)
        none = nearest == torch.inf
        nearest, chosen = torch.where(none, far, nearest), torch.where(none, column, chosen)
        picked = known & (strip.negatives > 0)[:, None]
    else:
        picked = known & ~(nearest >= u + margin)  # NaN is not passed over
    gap = (u - nearest).masked_fill_(~picked, 0.0)
    value = softplus(gap) if plan.soft else (gap + margin).clamp_(min=0)
    slope = (gap.sigmoid() if plan.soft else (value > 0).to(d.dtype)).masked_fill_(~picked, 0.0)
    gradient = torch.zeros_like(d).scatter_add_(1, index, slope).scatter_add_(1, chosen, -slope)
    total = value.masked_fill_(~picked, 0.0).sum(dtype=torch.float64)
    return _Found(total, picked.sum(), (known & ~picked).sum(), 0 if plan.soft else slope.sum(), gradient)


def _dense(x: Tensor, y: Tensor, margin: Tensor, plan: TripletPlan) -> tuple[Tensor, Tensor, Tensor]:
    scores = all_scores(x, y, plan.similarity)
    d = 1 - scores if plan.sign < 0 else scores
    positive, ignored, _ = plan.pairs.whole()
    assert positive is not None
    negative = ~positive if ignored is None else ~(positive | ignored)
    none, far = torch.zeros((), dtype=d.dtype), torch.finfo(d.dtype).max / 4
    # what is no positive lies at −far and what is no negative at far, so that the cubes need no masks
    near, away = d.masked_fill(~positive, -far), d.masked_fill(~negative, far)
    if plan.mining == "all" and plan.soft:
        cube = softplus(near[:, :, None] - away[:, None, :])  # (anchor, positive, negative)
        return cube.sum(), (positive.sum(1) * negative.sum(1)).sum().to(d.dtype), none
    if plan.mining == "all":
        with torch.no_grad():
            opened = ((near + margin)[:, :, None] > away[:, None, :]).to(d.dtype)
            below, above = (
                opened.sum(2),
                opened.sum(1),
            )  # how many negatives open each positive's hinge, and the reverse
            middle = (below * d).sum(1, keepdim=True) / below.sum(1, keepdim=True).clamp(
                min=1
            )  # else the sums would cancel
        return (below * (d + margin - middle) - above * (d - middle)).sum(), below.sum(), none
    if not len(y):
        return d.sum(), none, none
    with torch.no_grad():
        nearest, index = torch.where(away[:, None, :] > near[:, :, None], away[:, None, :], far).min(2)
        has = positive & (nearest < (far if plan.farthest else d + margin))
        if plan.farthest:
            index = torch.where(has, index, d.masked_fill(~negative, -far).argmax(1, keepdim=True))
            has = positive & negative.any(1, keepdim=True)
    gap = d - d.gather(1, index)
    value = softplus(gap) if plan.soft else (gap + margin).clamp(min=0)
    total = value.masked_fill(~has, 0.0).sum()
    return total, has.sum().to(d.dtype), (positive & ~has).sum().to(d.dtype)
