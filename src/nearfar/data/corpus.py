"""What a training run reads: rows of a data set by column, decoded batch by batch, never all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from nearfar.data.depth import Range
from nearfar.types import Kind

Raw = Tensor | list[str]
"""A column of a batch as read: images ``uint8 (b, c, h, w)``, vectors ``float32 (b, d)``, series ``float32 (b, c, t)``, or
texts."""


@dataclass(frozen=True)
class Column:
    """An input of every item, and its part in a pair."""

    name: str
    """As the data call it."""
    kind: Kind
    """How it is read, and which tower of the encoder takes it."""
    role: Literal["anchor", "positive", "negative"] = "anchor"
    """The first column is the anchor; the columns of a pair or a triplet are its positive and its negatives."""


@dataclass(frozen=True)
class RawBatch:
    """Some rows as they were read."""

    rows: Int64[Tensor, "b"]
    """Which: positions in the part. Rows that could not be read are left out, if that was asked for."""
    columns: dict[str, Raw]
    """Column name to what it holds."""
    labels: Int64[Tensor, "b"] | None = None
    """Class ids; negative: unknown."""
    groups: Int64[Tensor, "b"] | None = None
    """Ids: rows of one id are the same thing, and never each other's negatives."""
    similar: Float32[Tensor, "b"] | None = None
    """How alike the two sides of a row are, 0 to 1; None: every row's belong together."""
    same: Mapping[str, Int64[Tensor, "b"]] = field(default_factory=dict)
    """Numbers of values, by column: equal where the values are, also across columns. Only of columns with such values."""
    bad: tuple[str, ...] = ()
    """What was left out: path or line, and why."""

    def __len__(self) -> int:
        return len(self.rows)


def similar_of(part: Part | Stream) -> Float32[Tensor, "n"] | None:
    """How alike the two sides of its rows are, 0 to 1; None: every row's belong together, or it does not say beforehand."""
    similar = getattr(part, "similar", None)
    return similar if isinstance(similar, Tensor) else None


def joined(batches: Sequence[RawBatch]) -> RawBatch:
    """What is known of the rows of some batches of one part, one below the other; without their columns."""

    def below(name: str) -> Tensor | None:
        ids = [getattr(batch, name) for batch in batches]
        return None if ids[0] is None else torch.cat(ids)

    same = {name: torch.cat([batch.same[name] for batch in batches]) for name in batches[0].same}
    rows = torch.cat([batch.rows for batch in batches])
    bad = tuple(line for batch in batches for line in batch.bad)
    return RawBatch(rows, {}, below("labels"), below("groups"), below("similar"), same, bad)


def same_things(
    groups: Int64[Tensor, "n"] | None, same: Mapping[str, Int64[Tensor, "n"]], columns: Sequence[Column]
) -> Int64[Tensor, "n k"] | None:
    """Ids of rows that are the same thing, a column a reason: an id, or a value that a column holds twice. Negative: none.

    None: no two rows are. It is what ``nf.evaluate`` takes as ``ids=``.
    """
    found = [ids for ids in (groups, *(same.get(column.name) for column in columns)) if ids is not None]
    if not found:
        return None
    return torch.stack([torch.arange(len(found[0])), *found], 1)  # a row without an id is itself


@runtime_checkable
class Part(Protocol):
    """Rows to train on, or to test on."""

    @property
    def labels(self) -> Int64[Tensor, "n"] | None:
        """Class ids; negative: unknown. None without classes."""
        ...

    @property
    def groups(self) -> Int64[Tensor, "n"] | None:
        """Ids of what is the same thing."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, rows: Sequence[int]) -> RawBatch:
        """Reads and decodes rows. Raises ``ValueError`` naming the file or line of the first that cannot be read, unless
        bad rows are skipped.
        """
        ...

    def name(self, row: int) -> str:
        """What to call a row in a gallery or a message: its path, or file and line."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Rows that come in order and are not counted beforehand."""

    def batches(
        self, batch_size: int, *, seed: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[RawBatch]:
        """Batches for ever from number ``start``; the k-th is a function of the seed, k, the rank and the world alone."""
        ...


@dataclass(frozen=True)
class Corpus:
    """A data set, ready to be trained on."""

    name: str
    columns: tuple[Column, ...]
    """The inputs of an item, the anchor first."""
    train: Part | Stream
    test: Part | None
    """Rows held out: whole groups where there is an id column, so that nothing known is tested."""
    class_names: tuple[str, ...] = ()
    """The name of each class id; empty without labels."""
    size: tuple[int, int] | None = None
    """Height and width that images are read at."""
    channels: int | None = None
    """Of images, series: 1 or 3; width of vectors."""
    bad: tuple[str, ...] = ()
    """What was found unreadable while opening, and left out."""
    similar: str | None = None
    """The column that says how alike the two sides of a row are."""
    notes: tuple[str, ...] = ()
    """What was passed over or decided while opening, in words."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Which numbers are black and white, in images of more than bytes."""
    held_out: Literal["rows", "classes"] | None = None
    """What the test part is made of, where it was drawn by class."""

    def column(self, kind: Kind) -> Column:
        """The first column of a kind."""
        return next(column for column in self.columns if column.kind == kind)


@dataclass(frozen=True)
class TensorPart:
    """Rows that are in memory already.

    Example:
        >>> part = TensorPart({"text": ["a", "b", "c"]}, labels=torch.tensor([0, 1, 0]))
        >>> part.fetch([2, 0]).columns, part.fetch([2, 0]).labels
        ({'text': ['c', 'a']}, tensor([0, 0]))
    """

    data: dict[str, Raw]
    labels: Int64[Tensor, "n"] | None = None
    groups: Int64[Tensor, "n"] | None = None
    names: Sequence[str] = field(default=())
    similar: Float32[Tensor, "n"] | None = None
    same: Mapping[str, Int64[Tensor, "n"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def fetch(self, rows: Sequence[int]) -> RawBatch:
        """The rows, copied."""
        at = torch.as_tensor(rows, dtype=torch.int64)
        columns: dict[str, Raw] = {
            name: held[at] if isinstance(held, Tensor) else [held[row] for row in at.tolist()]
            for name, held in self.data.items()
        }
        labels, groups, similar = (None if ids is None else ids[at] for ids in (self.labels, self.groups, self.similar))
        return RawBatch(at, columns, labels, groups, similar, {name: ids[at] for name, ids in self.same.items()})

    def name(self, row: int) -> str:
        """Its name, or its number."""
        return self.names[row] if len(self.names) else f"row {row + 1}"
