"""How a pass visits the scores: ranges of tiles, and which of them need no look at the relation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Relation

T = TypeVar("T", bound="Tiles")
Extents = list[tuple[int, int]]
"""The smallest and the largest id of each run of rows."""


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of one pass.

    Attributes:
        pairs: Who belongs with whom.
        symmetric: Whether a tile serves its transpose too: the keys are the queries, and the relation is its own transpose.
        rows: Of a tile.
        columns: Of a tile; as many as rows, where it serves its transpose.
        extents: Of queries' and of keys' ids, where rows are in order of them.
    """

    pairs: Pairs
    symmetric: bool
    rows: int
    columns: int
    extents: tuple[Extents, Extents] | None = field(default=None, kw_only=True)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Row and column ranges of the tiles; only those on or above the diagonal if one serves its transpose."""
        n, m = self.pairs.shape
        for i in range(0, n, self.rows):
            for j in range(i if self.symmetric else 0, m, self.columns):
                yield slice(i, min(i + self.rows, n)), slice(j, min(j + self.columns, m))

    def relation(self, i: slice, j: slice) -> Relation:
        """The relation of a tile, without masks where the ids' extents show that there are no positives."""
        return Relation(None, None, None) if self.apart(i, j) else self.pairs.relation(i, j)

    def ordered(self: T) -> T:
        """The same, knowing which ids its tiles hold, for rows in order of their ids."""
        ids = self.pairs.ids
        if ids is None:
            return self
        return replace(self, extents=(_extents(ids[0], self.rows), _extents(ids[1], self.columns)))

    def apart(self, i: slice, j: slice) -> bool:
        """Whether the ids' extents show that a tile has no positive, and no sample with itself."""
        if self.extents is None or self.pairs.diagonal(i, j) is not None:
            return False
        (low, high), (first, last) = self.extents[0][i.start // self.rows], self.extents[1][j.start // self.columns]
        return high < first or last < low


def _extents(ids: Tensor, size: int) -> Extents:
    parts = ids.split(size)
    return [(int(part.min()), int(part.max())) for part in parts]
