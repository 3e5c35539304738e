"""Each query's highest or lowest score over a rule, and whose it is: by tiles, without gradient.

A maximum with its place costs ten times a maximum without. So the tiles are searched for values alone, each query remembers the
tile of its best, and the places are found at the end, in that one tile a query. Distances are compared as ``⟨x, y⟩ − ½|y|²``, which
orders the keys of a query as they do; queries whose best key is so close that this form has lost its digits are searched again by
the definition.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from nearfar.scores.buffers import Buffer
from nearfar.scores.matmul import mm
from nearfar.scores.reductions import Tile
from nearfar.scores.similarity import CLOSE, tile_scores
from nearfar.scores.tiled import Plan
from nearfar.types import Rule, Similarity

_NOTHING = -1e30  # stands for −∞ where a product with 0 would make it NaN
Found = tuple[Bool[Tensor, " n"], Int[Tensor, " n"]]


def find(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    pairs: Pairs,
    similarity: Similarity,
    over: Rule,
    which: Literal["max", "min"],
    plan: Plan,
) -> Found:
    """Whether a query has any pair of the rule, and the key's row; ties go to the lowest row.

    Args:
        x: Queries.
        y: Keys, at least one.
        offsets: Added to the scores of each key.
        pairs: Who belongs with whom.
        similarity: What a score is.
        over: The rule.
        which: The highest or the lowest score.
        plan: The tiles.
    """
    sign = 1.0 if which == "max" else -1.0
    nearest = (similarity == "dot") == (which == "max")
    classes = pairs.classes(x.dtype) if over == "negatives" and nearest and offsets is None else None
    if classes is None:
        return _search(x, y, offsets, similarity, over, sign, plan)
    return _Nearest(x, y, similarity, plan, classes).find()


def best(scores: Float[Tensor, "n m"], pairs: Pairs, over: Rule, which: Literal["max", "min"]) -> Found:
    """The same where all scores are at hand."""
    value, index = _best(scores, pairs.whole(), over, 1.0 if which == "max" else -1.0)
    return value != -torch.inf, index


def _search(
    x: Tensor, y: Tensor, offsets: Tensor | None, similarity: Similarity, over: Rule, sign: float, plan: Plan
) -> Found:
    """Any rule, value and place at once."""
    best = x.new_full((len(x),), -torch.inf)
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def see(scores: Tensor, i: slice, j: slice) -> None:
        value, where = _best(scores, plan.relation(i, j), over, sign)
        better = value > best[i]
        best[i] = torch.where(better, value, best[i])
        index[i] = torch.where(better, where + j.start, index[i])

    for i, j in plan.tiles():
        if over == "positives" and plan.apart(i, j):
            continue
        scores = tile_scores(x[i], y[j], similarity)
        scores = scores if offsets is None else scores.add_(offsets[j])
        see(scores, i, j)
        if plan.symmetric and i != j:
            see(scores.T, j, i)
    return best != -torch.inf, index


def _best(
    scores: Float[Tensor, "b c"], relation: Relation, over: Rule, sign: float
) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
    """Highest signed score of each row over a rule, and its column; −∞ where there is none."""
    mask = Tile(relation, {}, {}, {}).mask(over)
    scores = scores if sign > 0 else -scores
    if mask is None:
        mask = torch.zeros_like(scores, dtype=torch.bool)
    found = (scores if mask is True else scores.masked_fill(~mask, -torch.inf)).max(1)
    return found.values, found.indices


@dataclass(frozen=True, eq=False)
class _Nearest:
    """The nearest negative of each query, where classes alone say who is one."""

    x: Float[Tensor, "n d"]
    y: Float[Tensor, "m d"]
    similarity: Similarity
    plan: Plan
    classes: tuple[Float[Tensor, " n"], Float[Tensor, " m"]]

    def find(self) -> Found:
        best, home = self._values()
        exists = best > 0.5 * _NOTHING
        index = self._places(home)
        if self.similarity != "dot":
            x2, y2 = self._half_squares()
            # best is −½·distance²; the definition is asked twice as far out as tile_scores does
            close = (exists & (-best <= 2 * CLOSE * (x2 + y2[index]))).nonzero()[:, 0]
            if len(close):
                keys = torch.arange(len(self.y), device=close.device)
                plan = replace(self.plan, pairs=self.plan.pairs.take(close, keys), symmetric=False, extents=None)
                index[close] = _search(self.x[close], self.y, None, self.similarity, "negatives", -1.0, plan)[1]
        return exists, index

    def _half_squares(self) -> tuple[Tensor, Tensor]:
        x2 = self.x.square().sum(1).mul_(0.5)
        return x2, x2 if self.y is self.x else self.y.square().sum(1).mul_(0.5)

    def _values(self) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """The best value of each query, and the first column of its tile."""
        x, y, (query, key) = self.x, self.y, self.classes
        best = x.new_full((len(x),), _NOTHING)
        home = torch.zeros(len(x), dtype=torch.long, device=x.device)
        tiles, masks = Buffer(x, self.plan.rows * self.plan.columns), Buffer(x, self.plan.rows * self.plan.columns)
        x2, y2 = self._half_squares() if self.similarity != "dot" else (None, None)

        def see(values: Tensor, here: slice, there: slice) -> None:
            better = values > best[here]
            best[here] = torch.maximum(best[here], values)
            home[here] = home[here].masked_fill_(better, there.start)

        for i, j in self.plan.tiles():
            shape = i.stop - i.start, j.stop - j.start
            tile = mm(x[i], y[j].T, tiles(*shape))
            if x2 is not None and y2 is not None:
                tile.sub_(x2[i, None]).sub_(y2[j])
            tile.add_(torch.eq(query[i, None], key[j], out=masks(*shape)), alpha=2 * _NOTHING)
            see(tile.amax(1), i, j)
            if self.plan.symmetric and i != j:
                see(tile.amax(0), j, i)
        return best, home

    def _places(self, home: Tensor) -> Int[Tensor, " n"]:
        """The best key of each query within its tile; the lowest of equals."""
        x, y, (query, key) = self.x, self.y, self.classes
        index = torch.zeros_like(home)
        for start in range(0, len(y), self.plan.columns):
            j = slice(start, min(start + self.plan.columns, len(y)))
            for rows in (home == start).nonzero()[:, 0].split(self.plan.rows):
                scores = tile_scores(x[rows], y[j], self.similarity)
                scores = scores if self.similarity == "dot" else scores.neg_()
                scores.add_(torch.eq(query[rows, None], key[j]), alpha=2 * _NOTHING)
                index[rows] = scores.argmax(1) + start
        return index
