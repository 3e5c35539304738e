"""All scores of a small batch, made once and kept: sums, log-sum-exps and maxima of them, with one way back to the rows.

At the sizes that most people train with, the matrix fits the cache, and time goes into the number of visits to it. So there are no
masks: a rule over most of the matrix leaves out a list of places (`edges.py`), and the positives are a list to begin with, taken
from the matrix once. Element functions run under autograd on the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from nearfar.scores.edges import Edges
from nearfar.scores.exponentials import NOTHING
from nearfar.scores.held_sums import edges_log_sum_exp, filled, log_sum_exp, row_sum
from nearfar.scores.hold import Given
from nearfar.scores.reductions import Reduction, Tile, Whole
from nearfar.types import Rule


class Held:
    """Scores that are made once, and what may be asked of them.

    Args:
        given: What they are made of.
        pairs: Who belongs with whom.
    """

    def __init__(self, given: Given, pairs: Pairs) -> None:
        self.pairs, self._given, self.edges = pairs, given, Edges.of(pairs, given.x.dtype)
        self.scores, near = given.hold(self.edges)
        assert near is not None
        self.near: Float[Tensor, "p 1"] = near

    def logsumexp(self, over: Rule, power: float = 1.0) -> Float[Tensor, " n"]:
        """``log Σ_j e^{power · s_ij}`` over a rule; −∞ where nothing counts."""
        if over == "positives":
            near = self.near if power == 1.0 else self.near * power
            return self._of_edges(Reduction("logsumexp", over), near, self._near({}, {}, {}))
        return log_sum_exp(self.scores, self.edges.left_out(over), power, self._given.within(power))

    def logsumexp_by_key(self, over: Rule) -> Float[Tensor, " m"]:
        """``log Σ_i e^{s_ij}`` over the candidates or the negatives of each key."""
        left, (n, m) = self.edges.left_out(over), self.edges.shape
        left = None if left is None else left % m * n + left.div(m, rounding_mode="floor")
        return log_sum_exp(self.scores.T, left, 1.0, self._given.within(1.0))

    def sum_by_key(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """The weighted sum of each key's positive scores, and the sum of their weights."""
        near, edges = self.near[:, 0], self.edges
        weight = torch.ones_like(near).detach() if edges.weight is None else edges.weight
        found = (_add_up(values, edges.column, edges.shape[1]) for values in (near * weight, weight))
        return next(found), next(found)

    def reduce(
        self,
        stage: Mapping[str, Reduction],
        parameters: Mapping[str, Tensor],
        statistics: Mapping[str, Float[Tensor, " n"]],
        key_statistics: Mapping[str, Float[Tensor, " m"]],
    ) -> dict[str, Float[Tensor, " n"]]:
        """Every reduction of a lowered stage, one number a query."""
        near = whole = None
        found = {}
        for name, reduction in stage.items():
            if reduction.over == "positives":
                near = near or self._near(parameters, statistics, key_statistics)
                found[name] = self._of_edges(reduction, self.near, near)
            else:
                whole = whole or Whole(self.pairs, parameters, statistics, key_statistics)
                found[name] = self._of_most(reduction, whole)
        return found

    def _near(
        self, parameters: Mapping[str, Tensor], statistics: Mapping[str, Tensor], key_statistics: Mapping[str, Tensor]
    ) -> Tile:
        """What element functions read beside the positives."""
        edges = self.edges
        rows = {name: value[:, None] for name, value in statistics.items()}
        rows = rows if edges.single else {name: value.index_select(0, edges.row) for name, value in rows.items()}
        columns = {name: value.index_select(0, edges.column)[:, None] for name, value in key_statistics.items()}
        positive = torch.ones(edges.row.shape[0], 1, dtype=torch.bool, device=edges.row.device)
        weight = None if edges.weight is None else edges.weight[:, None]
        return Tile(Relation(positive, None, weight), parameters, rows, columns)

    def _of_edges(self, reduction: Reduction, near: Tensor, tile: Tile) -> Tensor:
        edges, kept = self.edges, None if reduction.keep is None else reduction.keep(near.detach(), tile) > 0
        weight = reduction.weight(tile)
        if reduction.op in ("count", "weight"):
            values = torch.ones_like(near) if weight is None or reduction.op == "count" else weight
            values = values.detach() if kept is None else values.detach() * kept
        else:
            values = reduction.values(near, tile)
        if reduction.op == "logsumexp":
            values = values if weight is None else values + weight.log()
            values = values if kept is None else values.masked_fill(~kept, -torch.inf)
            if edges.single:
                return values[:, 0]
            return edges_log_sum_exp(values[:, 0], edges.row, edges.shape[0])
        if reduction.op == "sum":
            values = values if weight is None else values * weight
            values = values if kept is None else values.masked_fill(~kept, 0.0)
        return values[:, 0] if edges.single else _add_up(values[:, 0], edges.row, edges.shape[0])

    def _of_most(self, reduction: Reduction, tile: Tile) -> Tensor:
        """Over a rule that most pairs obey; there are no weights."""
        scores, over = self.scores, reduction.over
        left_out, dropped = self.edges.left_out(over), None
        if reduction.keep is not None:  # numbers in place of a mask, which costs as much as twenty of them
            dropped = reduction.keep(scores.detach(), tile).sign().sub_(1)
        if reduction.op in ("count", "weight"):
            if dropped is None:
                return self.pairs.count(over, scores.dtype)
            return filled(dropped.add_(1).relu_(), left_out, 0.0).sum(1)
        values = reduction.values(scores, tile)
        if reduction.op == "sum":
            return row_sum(values if dropped is None else values * dropped.add_(1).relu_(), left_out)
        if dropped is None:
            return log_sum_exp(values, left_out, 1.0)
        found = log_sum_exp(values.add(dropped, alpha=NOTHING), left_out, 1.0)
        return found.masked_fill(found < -NOTHING / 2, -torch.inf)

    def hardest(self, over: Rule, which: Literal["max", "min"]) -> tuple[Bool[Tensor, " n"], Int[Tensor, " n"]]:
        """Whether a query has any pair of the rule, and the key's row at the highest or lowest; ties go to the lowest row."""
        edges = self.edges
        (n, m), row = edges.shape, edges.row
        if over == "positives" and edges.single:
            return torch.ones(n, dtype=torch.bool, device=row.device), edges.column
        best, seen = self._best(over, which)
        if over == "positives":
            column = torch.where(seen == best[row], edges.column, m)
            index = row.new_full((n,), m).scatter_reduce_(0, row, column, "amin")
        else:  # a maximum with its place costs ten times one without: the lowest of equals counts most
            backward = torch.arange(m, 0, -1, dtype=seen.dtype, device=seen.device)
            index = m - torch.eq(seen, best[:, None], out=seen).mul_(backward).amax(1).long()
        return best != (-torch.inf if which == "max" else torch.inf), index.clamp_(max=m - 1)

    def extreme(self, over: Rule, which: Literal["max", "min"]) -> Float[Tensor, " n"]:
        """The highest or lowest score of each query over a rule, without gradient; −∞ or ∞ where there is none."""
        return self._best(over, which)[0]

    def _best(self, over: Rule, which: Literal["max", "min"]) -> tuple[Tensor, Tensor]:
        """What is extreme of each query, ±∞ where there is none; and where it was sought, in memory that may be used."""
        edges, op, none = self.edges, f"a{which}", -torch.inf if which == "max" else torch.inf
        if over == "positives":
            near = self.near.detach()[:, 0]
            if edges.single:
                return near, near
            return near.new_full((edges.shape[0],), none).scatter_reduce_(0, edges.row, near, op), near
        scores = filled(self.scores.detach().clone(), edges.left_out(over), none)
        return scores.amax(1) if which == "max" else scores.amin(1), scores


def _add_up(values: Float[Tensor, " p"], row: Int[Tensor, " p"], n: int) -> Float[Tensor, " n"]:
    return values.new_zeros(n).index_add(0, row, values)
