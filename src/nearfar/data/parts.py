"""Rows of a table, decoded when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from nearfar.data.bad import shown
from nearfar.data.classes import is_missing
from nearfar.data.corpus import Column, Raw, RawBatch
from nearfar.data.depth import Range
from nearfar.data.form import Form
from nearfar.data.pixels import BROKEN, decode_image, reason_of

REMEDY = "mend or remove it, or leave such rows out with skip_bad=True (--skip-bad)"


@dataclass(frozen=True)
class Field:
    """How a column is read."""

    column: Column
    source: str
    """The column of the table."""
    base: Path | None = None
    """What image paths are relative to."""
    size: tuple[int, int] = (1, 1)
    """Height and width that images are scaled to."""
    channels: int = 3
    """1 or 3, of images."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Which numbers are black and white, in images of more than bytes."""
    item: int | None = None
    """Which item of a cell that holds a list."""

    def read(self, cell: Any) -> Tensor | str:
        """Decodes a cell.

        Raises:
            OSError, ValueError, SyntaxError: If it cannot be.
        """
        if self.item is not None:
            if cell is None or len(cell) <= self.item:
                raise ValueError(f"holds {len(cell or ())} items, wanted {self.item + 1} or more")
            cell = cell[self.item]
        if is_missing(cell) or cell == "":
            raise ValueError("is empty")
        if self.column.kind == "image":
            return decode_image(image_source(cell, self.base), self.size, self.channels, self.ranges)
        if self.column.kind == "text":
            if isinstance(cell, list | dict):
                raise ValueError(f"holds {shown(cell)}, wanted a text")
            return str(cell)
        try:
            numbers = torch.tensor(cell, dtype=torch.float32)
        except TypeError as error:
            raise ValueError(f"holds {shown(cell)}, wanted numbers") from error
        if not bool(numbers.isfinite().all()):
            raise ValueError("holds NaN or infinity, wanted finite numbers")
        return numbers.unsqueeze(0) if self.column.kind == "series" and numbers.ndim == 1 else numbers


def make_fields(
    columns: Sequence[Column],
    lists: Mapping[str, Sequence[Any]],
    base: Path | None,
    images: Form,
) -> tuple[Field, ...]:
    """How columns are read. A column of lists of texts becomes as many columns as its shortest list has
    items, empty ones left aside.
    """
    fields = []
    form: dict[str, Any] = {
        "base": base, "size": images.size or (1, 1), "channels": images.channels or 3, "ranges": images.ranges,
    }  # fmt: skip
    for column in columns:
        if column.kind == "text" and column.name in lists:
            for item in range(min((len(cell) for cell in lists[column.name] if cell), default=0)):
                single = replace(column, name=f"{column.name} {item + 1}")
                fields.append(Field(single, column.name, item=item, **form))
        else:
            fields.append(Field(column, column.name, **form))
    return tuple(fields)


def image_source(cell: Any, base: Path | None) -> Path | bytes:
    """Where the image of a cell is: its bytes, or a path relative to ``base``."""
    if isinstance(cell, bytes):
        return cell
    if isinstance(cell, dict):
        if cell.get("bytes") is not None:
            return cell["bytes"]
        cell = cell.get("path")
    if cell is None or not str(cell).strip():
        raise ValueError("is empty")
    path = Path(os.path.expanduser(str(cell).strip()))
    return path if base is None or path.is_absolute() else base / path


@dataclass(frozen=True)
class TablePart:
    """Some rows of a table; cells are decoded by ``fetch``.

    Args:
        table: Something that gives ``{column: cells}`` for a list of row numbers, such as a ``datasets.Dataset``.
        fields: The inputs, and how each is read.
        rows: Which rows of the table, in order.
        labels: Class ids of those rows.
        groups: Ids of those rows.
        where: What to call a row of the table.
        skip_bad: Leave out what cannot be decoded, and list it in ``RawBatch.bad``.
        similar: How alike the two sides of those rows are.
        same: Numbers of values that come more than once, by column.
    """

    table: Any
    fields: tuple[Field, ...]
    rows: Int64[Tensor, "n"]
    labels: Int64[Tensor, "n"] | None
    groups: Int64[Tensor, "n"] | None
    where: Callable[[int], str]
    skip_bad: bool = False
    similar: Float32[Tensor, "n"] | None = None
    same: Mapping[str, Int64[Tensor, "n"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, row: int) -> str:
        """Its path, or file and line."""
        return self.where(int(self.rows[row]))

    def fetch(self, rows: Sequence[int]) -> RawBatch:
        """Reads and decodes rows: see ``Part``."""
        at = torch.as_tensor(rows, dtype=torch.int64)
        cells = self.table[self.rows[at].tolist()]
        columns, kept, bad = decode(self.fields, cells, [*map(int, at)], self.name, self.skip_bad)
        at = at[kept]
        labels, groups, similar = (None if ids is None else ids[at] for ids in (self.labels, self.groups, self.similar))
        same = {name: ids[at] for name, ids in self.same.items()}
        return RawBatch(at, columns, labels, groups, similar, same, bad)


def decode(
    fields: Sequence[Field],
    cells: dict[str, Any],
    rows: Sequence[int],
    name: Callable[[int], str],
    skip_bad: bool,
) -> tuple[dict[str, Raw], list[int], tuple[str, ...]]:
    """Decodes the cells of some rows.

    Returns:
        The columns, the positions of the rows that could be decoded, and what is wrong with the others.

    Raises:
        ValueError: If one cannot be and bad rows are not skipped.
    """
    kept: list[int] = []
    bad: list[str] = []
    read: list[list[Any]] = [[] for _ in fields]
    for position, row in enumerate(rows):
        field = fields[0]
        try:
            values = []
            for field in fields:
                values.append(field.read(cells[field.source][position]))
        except BROKEN as error:
            where = name(row)
            reason = reason_of(where, error)
            what = "cannot be read as an image" if field.column.kind == "image" else "cannot be read"
            message = f"{where}: column {field.source!r} {what} ({reason})"
            if not skip_bad:
                raise ValueError(f"{message}: {REMEDY}") from error
            bad.append(message)
            continue
        kept.append(position)
        for column, value in zip(read, values):
            column.append(value)
    columns: dict[str, Raw] = {}
    for field, values in zip(fields, read):
        if field.column.kind != "text" and len({value.shape for value in values}) > 1:
            shapes = sorted({tuple(value.shape) for value in values})
            raise ValueError(f"column {field.source!r} holds {shapes[0]} and {shapes[1]}: wanted one shape in all rows")
        columns[field.column.name] = (
            values if field.column.kind == "text" else torch.stack(values) if kept else torch.empty(0)
        )  # of a short piece of a part all may be bad
    return columns, kept, tuple(bad)
