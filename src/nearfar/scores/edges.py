"""The positives of a small batch as a list of places in the matrix of scores.

Positives are few, and so are the pairs that are left out. A list of their places serves where a mask would: on a CPU, one mask of a
512² matrix costs as much as six additions of such matrices, a list of 4,096 places as much as a quarter of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Ids
from nearfar.types import Rule


@dataclass(frozen=True, eq=False)
class Edges:
    """Who belongs with whom, as places ``row · m + column``.

    Attributes:
        shape: ``(n, m)``.
        row: Queries of the positives, in order.
        column: Their keys.
        single: Whether each query has one positive, so that a list of them is in order of the queries.
        weight: Their weights, if there are any.
        ignored: Places of the pairs that are neither positive nor negative; ``None``: there are none.
    """

    shape: tuple[int, int]
    row: Int[Tensor, " p"]
    column: Int[Tensor, " p"]
    single: bool
    weight: Float[Tensor, " p"] | None
    ignored: Int[Tensor, " i"] | None

    @classmethod
    def of(cls, pairs: Pairs, dtype: torch.dtype) -> Edges:
        """The list of a relation."""
        (n, _), ids = pairs.shape, pairs.ids
        if ids is None:
            return cls._of_masks(pairs, dtype)
        if pairs.layout is not None and pairs.own in (None, 0):
            return _of_views(n, pairs.layout, pairs.own is not None, pairs.device)
        ignored = _own(pairs)
        if pairs.own is None and _are_places(pairs):  # rows asking classes
            return cls(pairs.shape, torch.arange(n, device=pairs.device), ids[0], True, None, ignored)
        row, column = _of_ids(pairs)
        return cls(pairs.shape, row, column, _one_each(row, n), None, ignored)

    @classmethod
    def _of_masks(cls, pairs: Pairs, dtype: torch.dtype) -> Edges:
        positive, ignored, weight = pairs.whole()
        assert positive is not None
        row, column = positive.nonzero(as_tuple=True)
        left = None if ignored is None else ignored.reshape(-1).nonzero()[:, 0]
        weight = None if weight is None else weight[row, column].to(dtype)
        return cls(pairs.shape, row, column, _one_each(row, pairs.shape[0]), weight, left)

    @cached_property
    def place(self) -> Int[Tensor, " p"]:
        """Of the positives."""
        return self.row * self.shape[1] + self.column

    @cached_property
    def _related(self) -> Int[Tensor, " r"]:
        return self.place if self.ignored is None else torch.cat([self.place, self.ignored])

    def left_out(self, over: Rule) -> Int[Tensor, " r"] | None:
        """Places that a rule over most of the matrix leaves out."""
        return self._related if over == "negatives" else self.ignored


def _own(pairs: Pairs) -> Int[Tensor, " i"] | None:
    """Where queries meet their own samples."""
    if pairs.itself is None:
        return None
    (queries, keys), m = pairs.itself, pairs.shape[1]
    first, many = queries.start * m + keys.start, queries.stop - queries.start
    return torch.arange(first, first + many * (m + 1), m + 1, device=pairs.device)


@lru_cache(maxsize=16)
def _of_views(rows: int, views: int, own: bool, device: torch.device) -> Edges:
    """The other views of a sample stand whole batches away; the next one first. Kept, for all batches of a size are alike."""
    with torch.inference_mode(False):  # what is made within could not be part of a graph later
        row = torch.arange(rows, device=device)
        apart = [view * (rows // views) for view in range(own, views)]
        column = torch.stack([row.roll(-distance) for distance in apart], 1).view(-1) if apart else row[:0]
        ignored = row * (rows + 1) if own else None
        row = row.repeat_interleave(len(apart)) if len(apart) != 1 else row
        edges = Edges((rows, rows), row, column, len(apart) == 1, None, ignored)
        edges.left_out("negatives")  # finds their places, too
        return edges


def _one_each(row: Tensor, n: int) -> bool:
    return row.shape[0] == n and torch.equal(row, torch.arange(n, device=row.device))


def _are_places(pairs: Pairs) -> bool:
    """Whether a query's id is the place of its one positive."""
    part = pairs.parts[0]
    assert isinstance(part, Ids)
    if part.numbered:
        return True
    query, key = part.query, part.key
    numbered = torch.equal(key, torch.arange(len(key), device=key.device))
    return numbered and int(query.min()) >= 0 and int(query.max()) < len(key)


def _of_ids(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Each class is a run of the sorted keys."""
    assert pairs.ids is not None
    query, key = pairs.ids
    ordered, order = key.sort(stable=True)
    first = torch.searchsorted(ordered, query)
    count = torch.searchsorted(ordered, query, right=True).sub_(first)
    row = torch.repeat_interleave(count)
    shift = first.add_(count).sub_(count.cumsum(0))
    column = order[shift[row].add_(torch.arange(len(row), device=row.device))]
    if pairs.own is not None:
        others = (column - row != pairs.own).nonzero()[:, 0]
        row, column = row[others], column[others]
    return row, column
