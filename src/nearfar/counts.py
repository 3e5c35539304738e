"""How many pairs of each rule a relation has, found as cheaply as it can be."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearfar.rules import Ids, Matrix, Overlap, Relation, Sparing, tally
from nearfar.types import Rule

FEW = 256 * 256
"""Up to so many pairs, a matrix costs less than anything cleverer."""
WHOLE = 2048 * 2048
"""Up to so many, the relation of all is made once a call: 4 MB for a mask, 16 for weights."""


class Counts:
    """The part of :class:`nearfar.pairs.Pairs` that counts; the attributes are told there."""

    shape: tuple[int, int]
    parts: tuple[Ids | Sparing | Overlap | Matrix, ...]
    rows: tuple[Int[Tensor, " n"], Int[Tensor, " m"]] | None
    own: int | None
    missing: tuple[Bool[Tensor, " n"] | None, Bool[Tensor, " m"] | None] | None
    layout: int | None

    @property
    def ids(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]] | None:
        """The ids, if they alone define the relation and none is unknown."""
        part = self.parts[0]
        alone = len(self.parts) == 1 and self.rows is None and self.missing is None
        return (part.query, part.key) if alone and isinstance(part, Ids) and not part.unknown else None

    @property
    def device(self) -> torch.device:
        """Where the relation lies."""
        part = self.parts[0]
        return part.values.device if isinstance(part, Matrix) else part.query.device

    @property
    def itself(self) -> tuple[slice, slice] | None:
        """The queries whose own sample is among the keys, and these keys: runs of one length."""
        if self.own is None:
            return None
        first, last = max(0, -self.own), max(0, -self.own, min(self.shape[0], self.shape[1] - self.own))
        return slice(first, last), slice(first + self.own, last + self.own)

    def relation(self, i: slice, j: slice) -> Relation:
        """The tile of queries ``i`` and keys ``j``."""
        raise NotImplementedError

    def whole(self) -> Relation:
        """The relation of all queries with all keys; of small batches it is kept."""
        everything = slice(0, self.shape[0]), slice(0, self.shape[1])
        if self.shape[0] * self.shape[1] > WHOLE or torch.compiler.is_compiling():
            return self.relation(*everything)
        if "_whole" not in self.__dict__:
            enabled = torch.is_grad_enabled()  # what is made in inference mode could not be part of a graph later
            with torch.inference_mode(False), torch.set_grad_enabled(enabled):
                self.__dict__["_whole"] = self.relation(*everything)
        return self.__dict__["_whole"]

    def each(self, over: Rule) -> int | None:
        """How many pairs a rule has for a query, where all have the same number and the layout tells."""
        (n, m), own = self.shape, self.own is not None
        if self.ids is None or (own and (self.own != 0 or n != m)):
            return None
        if over == "candidates":
            return max(m - own, 0)
        if self.layout is None:
            return None
        return (self.layout - own if over == "positives" else m - self.layout) if m else 0

    @property
    def paired(self) -> bool:
        """Whether the layout tells that no query has two positives: the other view, or the key of the same row."""
        return self.layout is not None and self.layout - (self.own is not None) == 1

    def at_most_one(self) -> bool:
        """Whether no query has two positives: by the layout, or by a look at ids or at what is small."""
        n, m = self.shape
        if self.paired or self.ids is not None:
            return self.paired or not n or float(self.count("positives").amax()) <= 1
        positive = self.whole().positive if 0 < n * m <= WHOLE else None
        return positive is not None and float(tally(positive).amax()) <= 1

    def every(self, over: Rule) -> bool:
        """Whether every query has a pair of a rule: a look at the numbers, once."""
        if over not in self._every:
            each = self.each(over)
            self._every[over] = each > 0 if each is not None else bool((self.count(over) > 0).all())
        return self._every[over]

    def surely(self, over: Rule) -> bool:
        """The same where it is known without a look, or after one."""
        return (self.each(over) or 0) > 0 or self._every.get(over, False)

    def count(self, over: Rule, dtype: torch.dtype = torch.float32) -> Float[Tensor, " n"]:
        """How many pairs a rule has for each query (of positives in a weighted relation: their total weight)."""
        n, m = self.shape
        each = self.each(over)
        if each is not None:
            return torch.full((n,), each, dtype=dtype, device=self.device)
        if self.ids is None:
            if n * m <= WHOLE:
                return _count(self.whole(), over, dtype)
            size = n if torch.compiler.is_compiling() else max(1, 2**20 // max(m, 1))
            every = slice(0, m)
            strips = [
                _count(self.relation(slice(i, min(i + size, n)), every), over, dtype) for i in range(0, n, max(size, 1))
            ]
            return torch.cat(strips) if strips else torch.zeros(0, dtype=dtype, device=self.device)
        if over != "positives":
            candidates = torch.full((n,), m, dtype=dtype, device=self.device)
            if self.itself is not None:
                candidates[self.itself[0]] -= 1
            return candidates if over == "candidates" else candidates - self.count("positives", dtype)
        if dtype not in self._counted:
            self._counted[dtype] = self._count_ids(dtype)
        return self._counted[dtype]

    def _count_ids(self, dtype: torch.dtype) -> Float[Tensor, " n"]:
        assert self.ids is not None
        if self.few:
            return tally(self.same).to(dtype)
        query, key = self.ids
        ordered, _ = key.sort()
        positives = torch.searchsorted(ordered, query, right=True) - torch.searchsorted(ordered, query)
        if self.itself is not None:
            i, j = self.itself
            positives[i] -= (query[i] == key[j]).long()
        return positives.to(dtype)

    @property
    def few(self) -> bool:
        """Whether a mask of all pairs is made faster than a sort."""
        return self.shape[0] * self.shape[1] <= FEW and not torch.compiler.is_compiling()

    @property
    def listed(self) -> bool:
        """Whether positives are known without a look: the other views of a sample, the class of a row."""
        part = self.parts[0]
        return (self.layout or 1) > 1 or (len(self.parts) == 1 and isinstance(part, Ids) and part.numbered)

    @cached_property
    def _counted(self) -> dict[torch.dtype, Tensor]:
        return {}

    @cached_property
    def _every(self) -> dict[Rule, bool]:
        return {}

    @cached_property
    def same(self) -> Bool[Tensor, "n m"]:
        """Where ids that alone define the relation are equal, but for a query and its own sample."""
        assert self.ids is not None
        with torch.inference_mode(False):
            positive = self.ids[0][:, None] == self.ids[1]
            if self.itself is not None:
                assert self.own is not None
                positive.diagonal(self.own).fill_(False)
        return positive


def _count(relation: Relation, over: Rule, dtype: torch.dtype) -> Float[Tensor, " b"]:
    positive, ignored, weight = relation
    assert positive is not None
    if over == "positives":
        return tally(positive).to(dtype) if weight is None else weight.sum(1).to(dtype)
    taken = torch.zeros_like(positive) if ignored is None else ignored
    return tally(~(taken | positive) if over == "negatives" else ~taken).to(dtype)
