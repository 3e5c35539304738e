"""The scores of queries with keys, as something to ask questions of: lazy data, and the choice of a plan.

Nobody is handed the matrix. A loss asks for a log-sum-exp, for the mean score of the positives, for the hardest pair, or
for a stage of reductions of its own, and gets one number a query, differentiable in the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.scores import cuda, dense, hardest, positives, small, softmax, targets, tiled, totals
from nearfar.scores.autograd import full_precision
from nearfar.scores.cuda_tiles import by_rule
from nearfar.scores.exponentials import NOTHING, softplus
from nearfar.scores.planned import TILE, Planned
from nearfar.scores.reductions import ElementFunction, Reduction, Stage, logsumexp_over, lower, mean_over, raise_means
from nearfar.scores.similarity import picked_scores
from nearfar.types import Rule

BACKENDS: dict[str, str] = {
    "dense": "the whole matrix: O(n·m) memory, any number of derivatives",
    "strip": "whole rows at a time: O(m) memory a row",
    "tiled": "tiles: O(n·d) memory",
    "cuda": "tiles on a GPU, by kernels for the softmax losses: O(n·d) memory",
}
"""What ``backend=`` may be; ``None`` lets the planner choose."""


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """``Σ w_i · v_i``; those of weight 0 may have any value."""
    return (weights * values.masked_fill(softmax.not_asked(values, weights), 0.0)).sum()


def _multiplied(power: float) -> ElementFunction:
    return lambda scores, _: scores * power


@dataclass(frozen=True, eq=False)
class Scores(Planned):
    """Scores ``s_ij`` of ``n`` queries with ``m`` keys, not computed yet, and what may be asked of them."""

    def logsumexp(self, over: Rule = "candidates") -> Float[Tensor, " n"]:
        """``log Σ_j e^{s_ij}`` over a rule; −∞ where nothing counts."""
        if self._held_for_sums or (self.holds and over == "positives"):
            scores, power = self.power_of or (self, 1.0)
            with full_precision(self.query_rows):
                return scores._held.logsumexp(over, power)
        if self.plan == "cuda" and self.similarity == "dot" and (over != "positives" or by_rule(self.pairs, over)):
            return self._on_cuda(over)[0]
        if self.plan == "dense" or self.similarity != "dot" or over == "positives":
            return self.reduce({"value": logsumexp_over(over)})["value"]
        sorted_ = over == "negatives" and self.pairs.layout is None  # else positives are known to lie on diagonals
        scores, order, _ = self._by_class() if sorted_ else (self, None, None)
        plan = scores._softmax_plan(over)
        plan = plan if order is None else plan.ordered()
        values, _ = softmax.logsumexp(scores.queries, scores.keys, scores.offsets, plan)
        return values if order is None else values[order.argsort()]

    def logsumexps(self, powers: Sequence[float], over: Rule) -> list[Float[Tensor, " n"]]:
        """``log Σ_j e^{power · s_ij}`` of several powers; by tiles, in one visit."""
        if self.holds or self.plan in ("dense", "cuda") or len(powers) == 1:
            return [self.powered(power).logsumexp(over) for power in powers]
        stage: Stage = {f"{power}": logsumexp_over(over, _multiplied(power)) for power in powers}
        return list(self.reduce(stage).values())

    def logsumexp_both_ways(self, over: Rule = "candidates") -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
        """``log Σ_j e^{s_ij}`` and, without offsets, ``log Σ_i e^{s_ij}``: a rule from both sides, in one pass."""
        if self._held_for_sums:
            with full_precision(self.query_rows):
                rows, columns = self._held.logsumexp(over), self._held.logsumexp_by_key(over)
            return rows, columns if self.offsets is None else columns - self.offsets
        if self.plan == "dense" or self.similarity != "dot":
            return self.logsumexp(over), self.T.logsumexp(over)
        if self.plan == "cuda":
            rows, columns = self._on_cuda(over, symmetric=False, by_column=True)
        else:
            plan = replace(self._softmax_plan(over), symmetric=False, by_column=True)
            rows, columns = softmax.logsumexp(self.queries, self.keys, self.offsets, plan)
        return rows, columns if self.offsets is None else columns - self.offsets

    def mean_logsumexp(self, weights: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """``Σ_i w_i · log Σ_j e^{s_ij}`` over the candidates."""
        if self._by_row(weights):
            return weighted_sum(self.logsumexp(), weights)
        if self.plan == "cuda":
            pairs, offsets = self._lowered()
            plan = self._cuda_plan(pairs, "candidates")
            return cuda.mean_logsumexp(self.queries, self.keys, offsets, weights, plan, self.precision)[0]
        plan = replace(self._softmax_plan("candidates"), rows=self._strips)
        return softmax.mean_logsumexp(self.queries, self.keys, self.offsets, weights, plan)

    def mean_against(self, weights: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """``Σ_i w_i · log(1 + Σ_negatives e^{s_ij − s⁺_i})``, each query having one positive at the most (see :attr:`single`)."""
        near = self.mean_positive()
        if self._by_row(weights) or self.plan == "cuda":
            return weighted_sum(softplus(self.logsumexp("negatives") - near), weights)
        plan = replace(self._softmax_plan("negatives"), rows=self._strips)
        return softmax.mean_logsumexp(self.queries, self.keys, self.offsets, weights, plan, near)

    def _by_row(self, weights: Tensor) -> bool:
        """Whether log-sum-exps are made first and averaged then, their weights being learned or another plan being theirs."""
        known = self.plan == "dense" or self._held_for_sums or self.symmetric or weights.requires_grad
        return known or self.similarity != "dot"

    def mean_softmax(
        self, weights: Float[Tensor, " n"] | None, both_ways: bool = False, less: float = 0.0
    ) -> Float[Tensor, ""]:
        """Mean of ``LSE(candidates) − mean(positives)`` over queries with a positive: in one tile, or in one visit."""
        if not self.at_once(both_ways):
            found = []
            for side in (self, self.T) if both_ways else (self,):
                plan = replace(side._softmax_plan("candidates"), symmetric=False, rows=side._strips)
                found.append(targets.mean_softmax(side.queries, side.keys, side.offsets, weights, plan))
            return functools.reduce(torch.add, found) / len(found) - less
        x, y, scale, offsets, _, unit = self._given()
        return small.mean_softmax(x, y, scale, offsets, weights, small.Ask(self.pairs, unit, both_ways, less))

    @property
    def in_one_visit(self) -> bool:
        """Whether a relation that is no rule of ids is better looked at while the tiles of a mean softmax are at hand."""
        usual = self.plan in ("tiled", "strip") and self.similarity == "dot" and not self.traced
        return usual and not positives.can_be_summed(self.pairs) and 0 not in self.pairs.shape

    @property
    def _strips(self) -> int:
        """Rows of a strip: each adds to the gradient of every key; the more numbers that is, the fewer strips."""
        many = self.narrow is not None or self.key_rows.numel() > 2**21
        return TILE.get() or max(16, min(1024, (2**22 if many else 2**21) // max(self.pairs.shape[1], 1)))

    def _softmax_plan(self, over: Rule) -> softmax.SoftmaxPlan:
        size = 512 if max(self.pairs.shape) <= 4096 else 768 if self.query_rows.shape[1] < 256 else 1024
        symmetric = self.symmetric and self.plan != "strip"
        return softmax.SoftmaxPlan(self.pairs, symmetric, *self._tile(size), over, narrow=self.narrow == "bf16")

    def _on_cuda(self, over: Rule, **changes: bool) -> tuple[Tensor, Tensor]:
        pairs, offsets = self._lowered()
        plan = replace(self._cuda_plan(pairs, over), **changes)
        return cuda.logsumexp(self.queries, self.keys, offsets, plan, self.precision)

    def _cuda_plan(self, pairs: Pairs, over: Rule) -> softmax.SoftmaxPlan:
        rows = TILE.get() or (4096 if self.precision is None else 8192)  # gradients of so many² scores: 64 or 128 MB
        return softmax.SoftmaxPlan(pairs, self.symmetric, rows, rows, over)

    def _lowered(self) -> tuple[Pairs, Tensor | None]:
        """Keys that are missing as keys of the lowest offset: kernels know no masks, and sums of exponentials need none."""
        missing = self.pairs.missing
        if missing is None or missing[0] is not None or missing[1] is None or self.offsets is None:
            return self.pairs, self.offsets
        return replace(self.pairs, missing=None), self.offsets.masked_fill(missing[1], -NOTHING)

    def mean_positive(self) -> Float[Tensor, " n"]:
        """Mean score of each query's positives, weighted where the relation has weights; 0 for a query without any."""
        if self.at_hand or self.similarity != "dot" or not positives.can_be_summed(self.pairs):
            return self.reduce({"value": mean_over("positives")})["value"]
        total = positives.sum_of_positives(self.queries, self.keys, self.offsets, self.pairs)
        count = self.count("positives")
        return total / count.masked_fill(count == 0, 1.0)

    def mean_positive_both_ways(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " m"]]:
        """Mean score of each query's positives and, without offsets, of each key's."""
        if (
            self.at_hand
        ):  # one gradient of the scores, before it is brought to the rows: less is lost where parts cancel
            total, weight = self._held.sum_by_key()
            mean = total / weight.masked_fill(weight == 0, 1.0)
            return self.mean_positive(), mean if self.offsets is None else mean - self.offsets.masked_fill(
                weight == 0, 0.0
            )
        return self.mean_positive(), self.T.mean_positive()

    def count(self, over: Rule) -> Float[Tensor, " n"]:
        """How many pairs a rule has for each query (for positives of a weighted relation: their total weight)."""
        return self.pairs.count(over, self.query_rows.dtype)

    def hardest(
        self, over: Rule, which: Literal["max", "min"]
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"], Int[Tensor, " n"]]:
        """The highest or lowest score of each query over a rule, whether there is any, and the key's row.

        Ties go to the lowest row. The value is 0 where there is none; its gradient reaches the two rows alone.
        """
        if not self.pairs.shape[1]:
            none = torch.zeros(self.pairs.shape[0], dtype=torch.long, device=self.query_rows.device)
            return self.queries.sum(1) * 0.0, none > 0, none
        with full_precision(self.query_rows):
            exists, index = self._hardest(over, which)
        value = picked_scores(self.queries, self.keys, index, self.similarity)
        value = value if self.offsets is None else value + self.offsets[index]
        if self.holds and bool(exists.all()):
            return value, exists, index
        return value.masked_fill(~exists, 0.0), exists, index

    def extreme(self, over: Rule, which: Literal["max", "min"]) -> Float[Tensor, " n"]:
        """The value of :meth:`hardest` without its gradient; −∞ for a highest and ∞ for a lowest score where there is none."""
        if self.holds:
            return self._held.extreme(over, which)
        value, exists, _ = self.hardest(over, which)
        return value.detach().masked_fill(~exists, -torch.inf if which == "max" else torch.inf)

    def _hardest(self, over: Rule, which: Literal["max", "min"]) -> tuple[Tensor, Tensor]:
        if self.holds:
            return self._held.hardest(over, which)
        if self.plan == "dense":
            with torch.no_grad():  # what a graph of all scores would keep is not asked for
                return hardest.best(self.matrix, self.pairs, over, which)
        scores, order, key_order = self._by_class() if over == "positives" else (self, None, None)
        plan = scores._reduce_plan({}, size=768 if order is None else 256)
        plan = plan if order is None else plan.ordered()
        with torch.no_grad():
            exists, index = hardest.find(
                scores.queries, scores.keys, scores.offsets, scores.pairs, scores.similarity, over, which, plan
            )
        if order is None or key_order is None:
            return exists, index
        back = order.argsort()
        return exists[back], key_order[index][back]

    def _reduce_plan(
        self,
        stage: Mapping[str, Reduction],
        parameters: tuple[str, ...] = (),
        statistics: tuple[str, ...] = (),
        key_statistics: tuple[str, ...] = (),
        size: int = 512,
    ) -> tiled.Plan:
        rows, columns = self._tile(size)
        symmetric = self.symmetric and rows == columns  # whole rows leave no transpose to serve
        named = parameters, statistics, key_statistics
        narrow = self.narrow == "bf16" and self.plan != "cuda" and not self.traced
        return tiled.Plan(self.pairs, symmetric, rows, columns, dict(stage), self.similarity, *named, narrow)

    def reduce(
        self,
        stage: Stage,
        parameters: Mapping[str, Tensor] | None = None,
        statistics: Mapping[str, Float[Tensor, " n"]] | None = None,
        key_statistics: Mapping[str, Float[Tensor, " m"]] | None = None,
    ) -> dict[str, Float[Tensor, " n"]]:
        """Every reduction of a stage, one number a query, differentiable in rows, offsets, parameters and statistics.

        Args:
            stage: Named reductions.
            parameters: Tensors that element functions read as ``tile.parameters[name]``.
            statistics: Numbers a query from earlier stages: ``tile.rows[name]``.
            key_statistics: Numbers a key: ``tile.columns[name]``.
        """
        parameters, statistics, key_statistics = parameters or {}, statistics or {}, key_statistics or {}
        lowered = lower(stage)
        if self.holds:
            with full_precision(self.query_rows):
                return raise_means(stage, self._held.reduce(lowered, parameters, statistics, key_statistics))
        n, m = self.pairs.shape
        if self.plan == "dense" or not n or not m:
            found = dense.reduce(self.matrix, self.pairs, lowered, parameters, statistics, key_statistics)
            return raise_means(stage, found)
        scores, order, key_order = self, None, None
        if any(reduction.over != "candidates" for reduction in lowered.values()):
            scores, order, key_order = self._by_class()
        plan = scores._reduce_plan(lowered, tuple(parameters), tuple(statistics), tuple(key_statistics))
        plan = plan if order is None else plan.ordered()
        rows = [value if order is None else value[order] for value in statistics.values()]
        columns = [value if key_order is None else value[key_order] for value in key_statistics.values()]
        tensors = [*parameters.values(), *rows, *columns]
        found = tiled.reduce(scores.queries, scores.keys, scores.offsets, plan, tensors)
        if order is not None:
            back = order.argsort()
            found = {name: value[back] for name, value in found.items()}
        return raise_means(stage, found)

    def total(
        self, stage: Stage, parameters: Mapping[str, Tensor], weights: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, ""]:
        """``Σ_i w_i · Σ_k (sum k of query i)`` of a stage of sums: in one visit, if scores are not kept and weights are constant.

        Args:
            stage: Named sums.
            parameters: As in :meth:`reduce`.
            weights: Of the queries; 1 by default.
        """
        learned = weights is not None and weights.requires_grad
        if (
            self.holds
            or self.plan == "dense"
            or self.traced
            or learned
            or self.offsets is not None
            or 0 in self.pairs.shape
        ):
            found = functools.reduce(torch.add, self.reduce(stage, parameters).values())
            return found.sum() if weights is None else (found * weights).sum()
        weights = torch.ones_like(self.query_rows[:, 0]) if weights is None else weights
        scores, order, _ = self._by_class()
        plan = scores._reduce_plan(stage, tuple(parameters))
        plan, weights = (plan, weights) if order is None else (plan.ordered(), weights[order])
        return totals.total(scores.queries, scores.keys, plan, weights, list(parameters.values()))
