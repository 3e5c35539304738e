"""What cells mean: class ids, ids of identities, numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from nearfar.data.classes import are_classes, is_missing, label_names
from nearfar.data.labelled import class_ids
from nearfar.data.records import to_number
from nearfar.data.sheets import Sheet
from nearfar.types import Kind


def read_numbers(sheet: Sheet, names: Sequence[str]) -> tuple[Float64[Tensor, "n d"] | None, Bool[Tensor, "n"]]:
    """The numeric columns, and which rows hold finite numbers in all of them."""
    if not names:
        return None, torch.ones(len(sheet.table), dtype=torch.bool)
    columns = [torch.tensor([number_of(cell) for cell in sheet.cells(name)], dtype=torch.float64) for name in names]
    numbers = torch.stack(columns, 1)
    return numbers, numbers.isfinite().all(1)


def number_of(cell: Any) -> float:
    """A cell as a number; NaN if it is none."""
    if isinstance(cell, str):
        number = to_number(cell)
        return float("nan") if number is None else number
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def wrong_cells(cells: Sequence[Any], kind: Kind) -> Iterator[tuple[int, str]]:
    """Cells of an input that hold nothing, or of vectors and series other numbers of numbers than most; and what is wrong."""
    shapes = [_shape(cell) if kind in ("vector", "series") else () for cell in cells]
    most = Counter(shapes).most_common(1)[0][0] if shapes else ()
    for row, (cell, shape) in enumerate(zip(cells, shapes)):
        held = cell.strip() if isinstance(cell, str) else cell
        if is_missing(held) or held in ("", []):
            yield row, "is empty"
        elif shape != most:
            held, wanted = (" × ".join(map(str, each)) or "one" for each in (shape, most))
            yield row, f"holds {held} numbers, where most rows hold {wanted}"


def _shape(cell: Any) -> tuple[int, ...]:
    """How many numbers a cell holds, along each side."""
    return (len(cell), *_shape(cell[0])) if isinstance(cell, list) and cell else ()


def read_labels(
    sheet: Sheet, column: str | None, rows: Int64[Tensor, "m"], *, given: bool
) -> tuple[Int64[Tensor, "m"] | None, tuple[str, ...]]:
    """Class ids and names; none where the column does not name classes and nobody said that it does."""
    if column is None:
        return None, ()
    cells = sheet.cells(column)
    values = [cells[row] for row in rows.tolist()]
    if column in sheet.class_names:
        return torch.tensor([-1 if value is None else value for value in values]), sheet.class_names[column]
    texts = label_names(values)
    known = [i for i, text in enumerate(texts) if text]
    ids, names = class_ids([texts[i] for i in known])
    if not given and (not are_classes([texts[i] for i in known]) or _fractions(names)):
        return None, ()
    labels = torch.full((len(rows),), -1)
    labels[known] = ids
    return labels, names


def _fractions(names: Sequence[str]) -> bool:
    """Whether most of these are measurements rather than names."""
    numbers = [number_of(name) for name in names]
    return 2 * sum(number == number and number % 1 != 0 for number in numbers) > len(names)


def read_groups(
    sheet: Sheet, column: str | None, rows: Int64[Tensor, "m"], *, given: bool
) -> Int64[Tensor, "m"] | None:
    """Ids as numbers; none where no two rows share one and nobody asked for them."""
    if column is None:
        return None
    numbers: dict[Any, int] = {}
    names = label_names(sheet.cells(column))
    ids = []
    for row in rows.tolist():
        key = names[row] or ("", row)  # without an id: a row of its own
        ids.append(numbers.setdefault(key, len(numbers)))
    return torch.tensor(ids) if given or len(numbers) < len(ids) else None
