"""Rules that tell, a tile at a time, which pairs are positive, negative or ignored: what a :class:`nearfar.Pairs` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


class Relation(NamedTuple):
    """One tile of the relation. ``None`` spares the common cases a mask."""

    positive: Bool[Tensor, "b c"] | None
    """Where a pair is positive; ``None``: nowhere."""
    ignored: Bool[Tensor, "b c"] | None
    """Where a pair is ignored; ``None``: nowhere."""
    weight: Float[Tensor, "b c"] | None
    """Weights of the positives, 0 elsewhere; ``None``: every positive weighs 1."""

    @property
    def T(self) -> Relation:
        """Seen from the keys, in the same memory."""
        return Relation(*(part if part is None else part.T for part in self))


def tally(mask: Bool[Tensor, "b c"]) -> Int[Tensor, " b"]:
    """How many are true of each row: as bytes, a twentieth of what a sum of booleans takes."""
    return mask.view(torch.uint8).sum(1, dtype=torch.int32)


@dataclass(frozen=True, eq=False)
class Ids:
    """Positive where ids are equal; ignored where either id is negative, if negative means unknown."""

    query: Int[Tensor, " n"]
    key: Int[Tensor, " m"]
    unknown: bool  # whether any id is negative, and means unknown
    numbered: bool = False  # whether each key's id is its place, and each query's is one of them

    @property
    def own(self) -> bool:
        """Whether both sides are one set of rows."""
        return self.query is self.key

    def relation(self, i: slice, j: slice) -> Relation:
        """The tile of queries ``i`` and keys ``j``."""
        query, key = self.query[i, None], self.key[None, j]
        positive = query == key
        if not self.unknown:
            return Relation(positive, None, None)
        ignored = (query < 0) | (key < 0)
        return Relation(positive & ~ignored, ignored, None)

    def flip(self) -> Ids:
        """The rule seen from the keys."""
        return Ids(self.key, self.query, self.unknown)

    def take(self, queries: Tensor | slice, keys: Tensor | slice) -> Ids:
        """The rule among some of the rows."""
        return Ids(self.query[queries], self.key[keys], self.unknown)


@dataclass(frozen=True, eq=False)
class Sparing:
    """Positive where the first ids are equal; ignored where only another column's are. A negative id is nobody else's."""

    query: Int[Tensor, "n k"]
    key: Int[Tensor, "m k"]

    @property
    def own(self) -> bool:
        """Whether both sides are one set of rows."""
        return self.query is self.key

    def relation(self, i: slice, j: slice) -> Relation:
        """The tile of queries ``i`` and keys ``j``."""
        query, key = self.query[i], self.key[j]
        positive, *others = ((a[:, None] == b) & (a >= 0)[:, None] for a, b in zip(query.unbind(1), key.unbind(1)))
        spared = torch.zeros_like(positive)
        for shared in others:
            spared |= shared
        return Relation(positive, spared & ~positive, None)

    def flip(self) -> Sparing:
        """The rule seen from the keys."""
        return Sparing(self.key, self.query)

    def take(self, queries: Tensor | slice, keys: Tensor | slice) -> Sparing:
        """The rule among some of the rows."""
        return Sparing(self.query[queries], self.key[keys])


@dataclass(frozen=True, eq=False)
class Overlap:
    """Positive where two rows of label weights overlap; weighted by their inner product if they are soft."""

    query: Shaped[Tensor, "n c"]
    key: Shaped[Tensor, "m c"]
    soft: bool

    @property
    def own(self) -> bool:
        """Whether both sides are one set of rows."""
        return self.query is self.key

    def relation(self, i: slice, j: slice) -> Relation:
        """The tile of queries ``i`` and keys ``j``."""
        weight = self.query[i] @ self.key[j].T
        return Relation(weight > 0, None, weight if self.soft else None)

    def flip(self) -> Overlap:
        """The rule seen from the keys."""
        return Overlap(self.key, self.query, self.soft)

    def take(self, queries: Tensor | slice, keys: Tensor | slice) -> Overlap:
        """The rule among some of the rows."""
        return Overlap(self.query[queries], self.key[keys], self.soft)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Positive where the entry is above 0, ignored where it is NaN. Dense, or sparse with absent entries negative."""

    values: Tensor
    weighted: bool
    known: bool = False  # that no entry is NaN
    own = False  # a matrix may be lopsided

    def relation(self, i: slice, j: slice) -> Relation:
        """The tile of queries ``i`` and keys ``j``."""
        tile = self.values
        if tile.is_sparse:
            rows, columns = tile.indices()
            first, last = torch.searchsorted(rows, torch.tensor([i.start, i.stop], device=rows.device)).tolist()
            rows, columns, entries = (
                rows[first:last] - i.start,
                columns[first:last] - j.start,
                tile.values()[first:last],
            )
            inside = (columns >= 0) & (columns < j.stop - j.start)
            tile = entries.new_zeros(i.stop - i.start, j.stop - j.start)
            tile[rows[inside], columns[inside]] = entries[inside]
        else:
            tile = tile[i, j]
        if self.known:
            return Relation(tile > 0, None, tile if self.weighted else None)
        ignored = tile.isnan() if tile.is_floating_point() else None
        return Relation(tile > 0, ignored, tile.nan_to_num(0.0).clamp(min=0) if self.weighted else None)

    def flip(self) -> Matrix:
        """The rule seen from the keys."""
        return Matrix(self.values.T.coalesce() if self.values.is_sparse else self.values.T, self.weighted, self.known)

    def take(self, queries: Tensor | slice, keys: Tensor | slice) -> Matrix:
        """The rule among some of the rows."""
        if self.values.is_sparse:
            numbers = (torch.arange(size, device=self.values.device) for size in self.values.shape)
            queries, keys = (number[which] for number, which in zip(numbers, (queries, keys)))
            return Matrix(
                self.values.index_select(0, queries).index_select(1, keys).coalesce(), self.weighted, self.known
            )
        return Matrix(self.values[queries][:, keys], self.weighted, self.known)
