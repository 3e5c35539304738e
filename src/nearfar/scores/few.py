"""All scores of the smallest batches, and who belongs with whom as numbers of the same shape.

Up to 256² scores, what an operation costs to start is all that it costs, and there the fewest operations win: no lists, which
larger batches are spared memory by (`held.py`), but matrices that leave a pair out by a sum or a product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation
from nearfar.scores.exponentials import NOTHING
from nearfar.scores.held_sums import log_sum_exp
from nearfar.scores.hold import Given
from nearfar.scores.reductions import Reduction, Whole
from nearfar.types import Rule

_SMALL = 4.0
"""``e^s`` of a larger score loses digits that a difference from the highest keeps; of a single positive, all that it has."""


class Few:
    """Scores as :class:`nearfar.scores.held.Held` has them, with the same questions.

    Args:
        given: What they are made of.
        pairs: Who belongs with whom.
    """

    def __init__(self, given: Given, pairs: Pairs) -> None:
        self.pairs, self._given = pairs, given
        self.scores, _ = given.hold(None)
        self._numbers = _Numbers(pairs, given.x.dtype)

    def logsumexp(self, over: Rule, power: float = 1.0) -> Float[Tensor, " n"]:
        """``log Σ_j e^{power · s_ij}`` over a rule; −∞ where nothing counts."""
        if over != "positives" and self._given.within(power, _SMALL):
            return log_sum_exp(self.scores, self._numbers.lowered(over), power, bounded=True)
        return self._log_sum_exp(self.scores, self._numbers.lowered(over), self.pairs.surely(over), power)

    def logsumexp_by_key(self, over: Rule) -> Float[Tensor, " m"]:
        """``log Σ_i e^{s_ij}`` over the candidates or the negatives of each key."""
        lowered = self._numbers.lowered(over)
        return self._log_sum_exp(self.scores.T, None if lowered is None else lowered.T, False)

    def sum_by_key(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """The weighted sum of each key's positive scores, and the sum of their weights."""
        weight = self._numbers.share("positives", weighted=True)
        assert weight is not None
        return (self.scores * weight).sum(0), weight.sum(0)

    def reduce(
        self,
        stage: Mapping[str, Reduction],
        parameters: Mapping[str, Tensor],
        statistics: Mapping[str, Float[Tensor, " n"]],
        key_statistics: Mapping[str, Float[Tensor, " m"]],
    ) -> dict[str, Float[Tensor, " n"]]:
        """Every reduction of a lowered stage, one number a query."""
        tile = Whole(self.pairs, parameters, statistics, key_statistics)
        return {name: self._reduce(reduction, tile) for name, reduction in stage.items()}

    def _reduce(self, reduction: Reduction, tile: Whole) -> Tensor:
        scores, over, dropped = self.scores, reduction.over, None
        if reduction.keep is not None:  # −1, or less, where a pair doesn't count
            dropped = reduction.keep(scores.detach(), tile).sign().sub_(1)
        if reduction.op == "logsumexp":
            lowered = self._numbers.lowered(over, reduction.weighted)
            values = reduction.values(scores, tile)
            values = values if dropped is None else values.add(dropped, alpha=NOTHING)
            return self._log_sum_exp(values, lowered, dropped is None and self.pairs.surely(over))
        share = self._numbers.share(over, reduction.weighted and reduction.op != "count")
        if dropped is not None:
            kept = dropped.add_(1).relu_()
            share = kept if share is None else share * kept
        if reduction.op == "sum":
            values = reduction.values(scores, tile)
            return values.sum(1) if share is None else (values * share).sum(1)
        return scores.new_full(scores.shape[:1], scores.shape[1]) if share is None else share.sum(1)

    @staticmethod
    def _log_sum_exp(values: Tensor, lowered: Tensor | None, surely: bool, power: float = 1.0) -> Tensor:
        found = log_sum_exp(values, lowered, power)
        return found if surely else found.masked_fill(found < -NOTHING / 2, -torch.inf)

    def hardest(self, over: Rule, which: Literal["max", "min"]) -> tuple[Bool[Tensor, " n"], Int[Tensor, " n"]]:
        """Whether a query has any pair of the rule, and the key's row at the highest or lowest; ties go to the lowest row."""
        best, index = self._moved(over, which).max(1) if which == "max" else self._moved(over, which).min(1)
        return ~(best.abs() >= NOTHING / 2), index  # NaN is somebody

    def extreme(self, over: Rule, which: Literal["max", "min"]) -> Float[Tensor, " n"]:
        """The highest or lowest score of each query over a rule, without gradient; −∞ or ∞ where there is none."""
        best = self._moved(over, which).amax(1) if which == "max" else self._moved(over, which).amin(1)
        if self.pairs.surely(over):
            return best
        return best.masked_fill_(best.abs() >= NOTHING / 2, -torch.inf if which == "max" else torch.inf)

    def _moved(self, over: Rule, which: Literal["max", "min"]) -> Tensor:
        """Scores, those that do not count out of the way."""
        lowered, scores = self._numbers.lowered(over, weighted=False), self.scores.detach()
        return scores if lowered is None else scores + lowered if which == "max" else scores - lowered


class _Numbers:
    """A relation as numbers, each matrix made when it is asked for."""

    def __init__(self, pairs: Pairs, dtype: torch.dtype) -> None:
        self._dtype = dtype
        if pairs.ids is not None:
            own = None
            if pairs.itself is not None and pairs.own is not None:
                own = torch.zeros(pairs.shape, dtype=torch.bool, device=pairs.device)
                own.diagonal(pairs.own).fill_(True)
            self._relation = Relation(pairs.same, own, None)
        else:
            self._relation = pairs.whole()
        self._made: dict[tuple[str, Rule, bool], Tensor | None] = {}

    def share(self, over: Rule, weighted: bool = True) -> Float[Tensor, "n m"] | None:
        """What a pair counts: 1, 0, or the weight of a positive; ``None``: 1 everywhere."""
        return self._once("share", over, weighted)

    def lowered(self, over: Rule, weighted: bool = True) -> Float[Tensor, "n m"] | None:
        """The logarithm of that, where −10³⁰ stands for −∞; ``None``: 0 everywhere."""
        return self._once("lowered", over, weighted)

    def _once(self, what: Literal["share", "lowered"], over: Rule, weighted: bool) -> Tensor | None:
        weighted = weighted and over == "positives" and self._relation.weight is not None
        key = what, over, weighted
        if key not in self._made:
            self._made[key] = self._make(what, over, weighted)
        return self._made[key]

    def _make(self, what: Literal["share", "lowered"], over: Rule, weighted: bool) -> Tensor | None:
        positive, ignored, weight = self._relation
        assert positive is not None
        if weighted:
            assert weight is not None
            share = weight.to(self._dtype)
            return share if what == "share" else share.log().clamp_(min=-NOTHING)
        if over == "positives":
            share = positive.to(self._dtype)
        else:
            if over == "candidates" and ignored is None:
                return None
            out = ignored if over == "candidates" else positive if ignored is None else positive | ignored
            assert out is not None
            share = 1 - out.to(self._dtype)
        return share if what == "share" else (share - 1).mul_(NOTHING)
