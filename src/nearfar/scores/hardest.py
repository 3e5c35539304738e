"""Each query's highest or lowest score over a rule, and whose it is: by tiles, without gradient."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from nearfar.scores.reductions import Tile
from nearfar.scores.similarity import all_scores, tile_scores
from nearfar.scores.tiled import Plan
from nearfar.types import Rule, Similarity


def find(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    offsets: Float[Tensor, " m"] | None,
    pairs: Pairs,
    similarity: Similarity,
    over: Rule,
    which: Literal["max", "min"],
    plan: Plan | None,
) -> tuple[Bool[Tensor, " n"], Int[Tensor, " n"]]:
    """Whether a query has any pair of the rule, and the key's row; ties go to the lowest row.

    Args:
        x: Queries.
        y: Keys, at least one.
        offsets: Added to the scores of each key.
        pairs: Who belongs with whom.
        similarity: What a score is.
        over: The rule.
        which: The highest or the lowest score.
        plan: The tiles; ``None``: all scores at once, by their definition.
    """
    sign = 1.0 if which == "max" else -1.0
    if plan is None:
        scores = all_scores(x, y, similarity)
        best, index = _best(scores if offsets is None else scores + offsets, pairs.whole(), over, sign)
        return best != -torch.inf, index
    best = x.new_full((len(x),), -torch.inf)
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def see(scores: Tensor, i: slice, j: slice) -> None:
        value, where = _best(scores, plan.relation(i, j), over, sign)
        better = value > best[i]
        best[i] = torch.where(better, value, best[i])
        index[i] = torch.where(better, where + j.start, index[i])

    for i, j in plan.tiles():
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
