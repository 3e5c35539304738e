"""What cells mean: class ids, ids of identities, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from nearfar.data.labelled import class_ids
from nearfar.data.sheets import Sheet


def read_numbers(sheet: Sheet, names: Sequence[str]) -> tuple[Float64[Tensor, "n d"] | None, Bool[Tensor, "n"]]:
    """The numeric columns, and which rows hold finite numbers in all of them."""
    if not names:
        return None, torch.ones(len(sheet.table), dtype=torch.bool)
    columns = [torch.tensor([number_of(cell) for cell in sheet.cells(name)], dtype=torch.float64) for name in names]
    numbers = torch.stack(columns, 1)
    return numbers, numbers.isfinite().all(1)


def number_of(cell: Any) -> float:
    """A cell as a number; NaN if it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


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
    texts = ["" if value is None or value != value else str(value).strip() for value in values]
    known = [i for i, text in enumerate(texts) if text]
    ids, names = class_ids([texts[i] for i in known])
    if not given and (len(names) < 2 or len(names) > max(2, len(known) // 2) or _fractions(names)):
        return None, ()
    labels = torch.full((len(rows),), -1)
    labels[known] = ids
    return labels, names


def _fractions(names: Sequence[str]) -> bool:
    """Whether these are measurements rather than names."""
    return any(
        not name.lstrip("+-").isdigit() and not torch.tensor(number_of(name)).isnan() and number_of(name) % 1 != 0
        for name in names
    )


def read_groups(
    sheet: Sheet, column: str | None, rows: Int64[Tensor, "m"], *, given: bool
) -> Int64[Tensor, "m"] | None:
    """Ids as numbers; none where no two rows share one and nobody asked for them."""
    if column is None:
        return None
    numbers: dict[Any, int] = {}
    cells = sheet.cells(column)
    ids = []
    for row in rows.tolist():
        key = str(cells[row]).strip() if cells[row] is not None else ("", row)  # without an id: a row of its own
        ids.append(numbers.setdefault(key, len(numbers)))
    return torch.tensor(ids) if given or len(numbers) < len(ids) else None
