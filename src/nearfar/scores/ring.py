"""Scores with keys that stay where they are: each rank's chunk of keys goes round, and every rank looks at it as it comes by.

Gathering keys takes O(n·d) memory on every rank, for all ``n`` rows of all ranks. Here a rank holds its own rows, the chunk
it looks at and the one that arrives meanwhile: O(n_local·d), and a few numbers a key. Log-sum-exps of chunks are merged as
they are found (Milakov & Gimelshein 2018, arXiv:1805.02867); for gradients the chunks go round once more, each with the
gradient of its keys behind it, which has come home when all ranks have added their part (as Ring Attention does, Liu et
al. 2023, arXiv:2310.01889). The answers are those of :class:`nearfar.scores.engine.Scores` with all keys at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from nearfar.scores import softmax
from nearfar.scores.autograd import full_precision, once
from nearfar.scores.engine import Scores, weighted_sum
from nearfar.scores.exponentials import softplus
from nearfar.scores.gather import ALONE, Ranks
from nearfar.scores.planned import Plan
from nearfar.types import Rule


@dataclass(frozen=True, eq=False)
class RingScores(Scores):
    """Scores of this rank's queries with the keys of all ranks, of which ``key_rows`` holds this rank's.

    Attributes:
        ranks: How many keys each rank has.
    """

    ranks: Ranks = ALONE
    _seen: dict[tuple[bool, bool, Rule], tuple[Tensor, ...]] = field(init=False, repr=False, default_factory=dict)

    @property
    @override
    def plan(self) -> Plan:
        return "tiled"

    @property
    @override
    def single(self) -> bool:
        return False  # by a look at this rank's rows alone, where all must go round for the same

    def _visit(self, over: Rule, both_ways: bool = False) -> tuple[Tensor, ...]:
        """One round of the keys: log-sum-exps by row and by column, sums of positives by row and by column."""
        kind = torch.is_grad_enabled(), both_ways, over
        if kind not in self._seen:
            tiles = replace(self._softmax_plan(over), by_column=both_ways)
            plan = RingPlan(tiles, self.ranks)
            self._seen[kind] = _Visit.apply(self.queries, self.keys, self.offsets, plan)  # pyright: ignore[reportArgumentType]
        return self._seen[kind]

    @override
    def logsumexp(self, over: Rule = "candidates") -> Float[Tensor, " n"]:
        if over == "positives":
            raise TypeError("gather='ring' sums over candidates and negatives only (form='out'): pass gather=True")
        return self._visit(over)[0]

    @override
    def logsumexp_both_ways(self, over: Rule = "candidates") -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
        rows, columns, *_ = self._visit(over, both_ways=True)
        return rows, columns if self.offsets is None else columns - self.offsets

    @override
    def mean_logsumexp(self, weights: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        return weighted_sum(self.logsumexp(), weights)

    @override
    def mean_against(self, weights: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        return weighted_sum(softplus(self.logsumexp("negatives") - self.mean_positive()), weights)

    @override
    def mean_positive(self) -> Float[Tensor, " n"]:
        return _mean(self._positives(both_ways=False)[0], self.count("positives"))

    @override
    def mean_positive_both_ways(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
        near, far = self._positives(both_ways=True)
        return _mean(near, self.count("positives")), _mean(far, self.pairs.T.count("positives", far.dtype))

    def _positives(self, both_ways: bool) -> tuple[Tensor, ...]:
        """Sums of positives, which every round brings along: of the one that was made, if there was one."""
        grad = torch.is_grad_enabled()
        made = next((found for kind, found in self._seen.items() if kind[:2] == (grad, both_ways)), None)
        return (self._visit("candidates", both_ways) if made is None else made)[2:]

    @override
    def hardest(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("gather='ring' knows log-sum-exps and positives only: pass gather=True")

    @override
    def reduce(self, *args: Any, **kwargs: Any) -> NoReturn:
        self.hardest()


@dataclass(frozen=True, eq=False)
class RingPlan:
    """What is fixed about one round."""

    tiles: softmax.SoftmaxPlan
    ranks: Ranks

    def chunk(self, place: slice) -> softmax.SoftmaxPlan:
        """The tiles of one rank's keys."""
        return replace(self.tiles, pairs=self.tiles.pairs.among(place))


class _Visit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, offsets: Tensor | None, plan: RingPlan) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, near = x.new_full((len(x),), -torch.inf, dtype=torch.float64), x.new_zeros(len(x))  # merged often
        far = x.new_zeros(plan.ranks.rows if plan.tiles.by_column else 0)
        columns = torch.zeros_like(far, dtype=torch.float64)
        with full_precision(x):
            for place, keys in _round(y, plan.ranks):
                shift, tiles = None if offsets is None else offsets[place], plan.chunk(place)
                by_row, by_column = softmax._sums(x, keys, shift, tiles)
                rows = torch.logaddexp(rows, by_row)
                positives = _positives(x, keys, shift, tiles)
                near += positives[0]
                if tiles.by_column:
                    columns[place], far[place] = by_column, positives[1]
        ctx.plan = plan
        ctx.save_for_backward(x, y, offsets, rows, columns)
        return rows.to(x.dtype), columns.to(x.dtype), near, far

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y, offsets, rows, columns = ctx.saved_tensors
        needs, plan, both = ctx.needs_input_grad, ctx.plan, ctx.plan.tiles.by_column
        dx = torch.zeros_like(x)
        do = torch.zeros_like(offsets) if offsets is not None else None
        by_row, by_column, *by_positive = gradients

        def part(place: slice, keys: Tensor) -> Tensor:
            """This rank's part of the gradient of a chunk of keys."""
            shift, tiles = None if offsets is None else offsets[place], plan.chunk(place)
            lse = rows, columns[place] if both else columns
            slopes = by_row, by_column[place] if both else by_column
            row, column, shifts = softmax._cross_gradient(x, keys, shift, lse, slopes, tiles, (True, True, needs[2]))
            slopes = (by_positive[0], by_positive[1][place]) if both else (by_positive[0],)
            more = _positive_gradient(x, keys, shift, tiles, slopes)
            for total, found in (
                (dx, row),
                (dx, more[0]),
                (None if do is None else do[place], shifts if needs[2] else None),
            ):
                if total is not None and found is not None:
                    total += found
            if do is not None and needs[2]:
                do[place] += more[2]
            assert column is not None
            return column + more[1]

        with full_precision(x), torch.no_grad():
            dy = _round_and_home(y, plan.ranks, part)
        found = (gradient if need else None for gradient, need in zip((dx, dy, do), needs))
        return *(once(gradient, x, y, offsets, *gradients) for gradient in found), None


def _positives(x: Tensor, y: Tensor, offsets: Tensor | None, tiles: softmax.SoftmaxPlan) -> tuple[Tensor, ...]:
    """Sums of positive scores by row, and by column (there without offsets) where that is wanted."""
    scores = Scores(x, y, tiles.pairs, offsets=offsets)
    sides = (scores, scores.T) if tiles.by_column else (scores,)
    return tuple(side.mean_positive() * side.count("positives") for side in sides)


def _positive_gradient(
    x: Tensor, y: Tensor, offsets: Tensor | None, tiles: softmax.SoftmaxPlan, slopes: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in (x, y, offsets)]
        found = _positives(leaves[0], leaves[1], leaves[2], tiles)  # pyright: ignore[reportArgumentType]
        inputs = [leaf for leaf in leaves if leaf is not None]
        return torch.autograd.grad(found, inputs, slopes, materialize_grads=True)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.masked_fill(count == 0, 1.0)


# ---- the ring -------------------------------------------------------------------------------------------------------


def _round(rows: Tensor, ranks: Ranks) -> Iterator[tuple[slice, Tensor]]:
    """Every rank's rows, this one's first, and where they stand among all; the next arrive while these are looked at."""
    world = len(ranks.sizes)
    for step in range(world):
        owner = (ranks.rank - step) % world
        arriving = _pass_on(rows, (owner - 1) % world, ranks) if step < world - 1 else None
        yield replace(ranks, rank=owner).own, rows
        rows = arriving() if arriving is not None else rows


def _round_and_home(rows: Tensor, ranks: Ranks, part: Callable[[slice, Tensor], Tensor]) -> Tensor:
    """The sum over ranks of a function of this rank's rows: it follows the rows, one step behind, and home."""
    world = len(ranks.sizes)
    total, arriving = None, None
    for step, (place, chunk) in enumerate(_round(rows, ranks)):
        total = part(place, chunk)
        if arriving is not None:
            total += arriving()
        arriving = _pass_on(total, (ranks.rank - step - 1) % world, ranks)
    assert arriving is not None
    return arriving()


def _pass_on(rows: Tensor, owner: int, ranks: Ranks) -> Callable[[], Tensor]:
    """Send rows to the next rank while the previous one sends ``owner``'s; call the result to wait for these."""
    world = len(ranks.sizes)
    rows = rows.contiguous()
    found = rows.new_empty(ranks.sizes[owner], *rows.shape[1:])
    sides = ((dist.isend, rows, ranks.rank + 1), (dist.irecv, found, ranks.rank - 1))
    ends = [dist.P2POp(way, tensor, peer % world) for way, tensor, peer in sides if tensor.numel()]
    works = dist.batch_isend_irecv(ends) if ends else []

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return found

    return wait
