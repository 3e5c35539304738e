"""What a loss may ask of the scores: reductions of each query's row over a rule.

A reduction takes a row of scores, keeps the pairs of its rule, maps each score by an element function and reduces.
Element functions are ordinary differentiable torch code on a tile; they may read parameters, statistics of earlier
reductions (of the tile's queries and of its keys) and where the positives lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from nearfar.types import Rule


@dataclass(frozen=True)
class Tile:
    """What an element function may read beside the scores of its tile."""

    relation: Relation
    parameters: Mapping[str, Tensor]
    rows: Mapping[str, Float[Tensor, "b 1"]]
    """Statistics of the tile's queries."""
    columns: Mapping[str, Float[Tensor, "#b c"]]
    """Statistics of its keys; one a row, where the tile is a list of pairs."""

    def mask(self, over: Rule) -> Bool[Tensor, "b c"] | Literal[True] | None:
        """Where a rule holds in the tile: a mask, ``True`` for everywhere, ``None`` for nowhere."""
        positive, ignored, _ = self.relation
        if over == "positives":
            return positive
        if over == "candidates":
            return True if ignored is None else ~ignored
        if positive is None:
            return True if ignored is None else ~ignored
        return ~positive if ignored is None else ~(positive | ignored)

    @property
    def positive(self) -> Bool[Tensor, "b c"] | Literal[False]:
        """Where the positives are, for element functions that treat them apart."""
        return False if self.relation.positive is None else self.relation.positive


class Whole(Tile):
    """The whole matrix as one tile, whose relation is made when an element function asks for it."""

    def __init__(
        self,
        pairs: Pairs,
        parameters: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor],
        key_statistics: Mapping[str, Tensor],
    ) -> None:
        found = {
            "pairs": pairs,
            "parameters": parameters,
            "rows": {name: value[:, None] for name, value in statistics.items()},
            "columns": {name: value[None, :] for name, value in key_statistics.items()},
        }
        self.__dict__.update(found)

    @cached_property
    def relation(self) -> Relation:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Who belongs with whom."""
        return self.__dict__["pairs"].whole()


ElementFunction = Callable[[Float[Tensor, "b c"], Tile], Float[Tensor, "b c"]]
Keep = Callable[[Float[Tensor, "b c"], Tile], Float[Tensor, "b c"]]


@dataclass(frozen=True)
class Reduction:
    """One number a query.

    Attributes:
        op: ``logsumexp`` (−∞ where nothing is left), ``sum`` and ``mean`` (0 there), ``count``, and ``weight``, the sum
            of the relation's weights. All reductions of positives but ``count`` are weighted so.
        over: The rule.
        of: Element function; the score itself by default.
        keep: A further condition, without gradient, as multi-similarity's mining: a number above 0 where a pair counts.
        weighted: Whether the relation's weights count.
    """

    op: Literal["logsumexp", "sum", "mean", "count", "weight"]
    over: Rule
    of: ElementFunction | None = None
    keep: Keep | None = None
    weighted: bool = True

    def mask(self, scores: Tensor, tile: Tile) -> Bool[Tensor, "b c"] | Literal[True] | None:
        """Where this reduction looks in a tile."""
        mask = tile.mask(self.over)
        if self.keep is None or mask is None:
            return mask
        kept = self.keep(scores.detach(), tile) > 0
        return kept if mask is True else kept & mask

    def values(self, scores: Tensor, tile: Tile) -> Tensor:
        """Mapped scores of a tile."""
        return scores if self.of is None else self.of(scores, tile)

    def weight(self, tile: Tile) -> Tensor | None:
        """Weights of the pairs, if there are any."""
        return tile.relation.weight if self.over == "positives" and self.weighted else None


Stage = Mapping[str, Reduction]


def logsumexp_over(over: Rule, of: ElementFunction | None = None, keep: Keep | None = None) -> Reduction:
    """``log Σ exp of(s)``."""
    return Reduction("logsumexp", over, of, keep)


def sum_over(over: Rule, of: ElementFunction | None = None, keep: Keep | None = None) -> Reduction:
    """``Σ of(s)``."""
    return Reduction("sum", over, of, keep)


def mean_over(over: Rule, of: ElementFunction | None = None, keep: Keep | None = None) -> Reduction:
    """``Σ of(s) / count``, weighted where the relation has weights."""
    return Reduction("mean", over, of, keep)


def count_over(over: Rule, keep: Keep | None = None) -> Reduction:
    """How many pairs."""
    return Reduction("count", over, None, keep)


def lower(stage: Stage) -> dict[str, Reduction]:
    """A stage without means: each becomes its sum and, as ``name/weight``, what to divide it by."""
    lowered: dict[str, Reduction] = {}
    for name, reduction in stage.items():
        if reduction.op == "mean":
            lowered[name] = replace(reduction, op="sum")
            lowered[f"{name}/weight"] = replace(reduction, op="weight", of=None)
        else:
            lowered[name] = reduction
    return lowered


def raise_means(stage: Stage, lowered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The results of a stage from those of its lowered form."""

    def result(name: str) -> Tensor:
        if stage[name].op != "mean":
            return lowered[name]
        weight = lowered[f"{name}/weight"]
        return lowered[name] / weight.masked_fill(weight == 0, 1.0)

    return {name: result(name) for name in stage}
