"""Which values of a table come more than once: a text that stands in two rows is not its own negative."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.data.corpus import Column, Part, TensorPart

Same = Mapping[str, Int64[Tensor, "n"]]
"""Column name to a number a row: equal where the values are, also across columns. Columns that share no value are left out."""


def hashed(cell: Any) -> int:
    """A number for an id, the same in every process: 60 bits of its hash, of which a batch can take the threefold."""
    return int.from_bytes(hashlib.blake2b(str(cell).encode(), digest_size=8).digest(), "big") >> 4


def same_value(cell: Any) -> int:
    """The number of a value. Texts are equal but for case, white space and how accents are written; a path stands for its image.

    Example:
        >>> same_value("Just  so.") == same_value(" just so."), same_value("Just so") == same_value("just so.")
        (True, False)
    """
    return hashed(" ".join(unicodedata.normalize("NFC", str(cell)).split()).casefold())


def same_values(columns: Mapping[str, Sequence[Any]]) -> dict[str, Int64[Tensor, "n"]]:
    """Numbers of the values, of the columns in which one comes that is also elsewhere in the table.

    Args:
        columns: Texts or paths, by column; what is neither is looked at in no column.

    Example:
        >>> list(same_values({"question": ["a", "b", "c"], "answer": ["Yes", "no", "yes"]}))
        ['answer']
        >>> list(same_values({"first": ["a", "b"], "second": ["b", "c"]}))
        ['first', 'second']
    """
    numbers = {
        name: torch.tensor([same_value(cell) for cell in cells], dtype=torch.int64)
        for name, cells in columns.items()
        if all(isinstance(cell, str) for cell in cells)
    }
    if not numbers:
        return {}
    values, counts = torch.cat([*numbers.values()]).unique(return_counts=True)
    often = values[counts > 1]
    return {name: ids for name, ids in numbers.items() if bool(torch.isin(ids, often).any())}


def the_same(part: Part, column: Column) -> bool:
    """Whether all rows hold the same in a column of texts, or of images by their paths.

    Example:
        >>> the_same(TensorPart({"text": ["a", "A "]}), Column("text", "text"))
        True
    """
    numbers = getattr(part, "same", {}).get(column.name)
    if isinstance(numbers, Tensor):
        return bool((numbers == numbers[0]).all())
    held = part.data.get(column.name) if isinstance(part, TensorPart) else None
    return isinstance(held, list) and len({same_value(cell) for cell in held}) == 1


def different_rows(rows: Sequence[int], values: Sequence[Int64[Tensor, "n"] | None]) -> list[int]:
    """The first row of each combination of values; all rows where some column has no value twice.

    Example:
        >>> different_rows([0, 1, 2], [torch.tensor([7, 7, 7]), torch.tensor([1, 2, 1])])
        [0, 1]
    """
    known = [ids for ids in values if ids is not None]
    if not known or len(known) < len(values):
        return list(rows)
    seen: dict[tuple[int, ...], int] = {}
    for row, key in zip(rows, torch.stack(known, 1)[torch.tensor(rows)].tolist()):
        seen.setdefault(tuple(key), row)
    return list(seen.values())
