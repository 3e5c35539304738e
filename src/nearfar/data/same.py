"""Which values of a table come more than once: a text that stands in two rows is not its own negative."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from operator import eq
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


def different_rows(part: Part, columns: Sequence[Column], rows: Sequence[int]) -> list[int]:
    """The first row of each content: what its columns hold, and of a single column its class and its id as well.

    Args:
        part: Whose rows.
        columns: Those that are looked at. Where it is not known what one holds, no row repeats another.
        rows: Positions in the part.

    Example:
        >>> part = TensorPart({"text": ["a", "b", "A ", "a"]}, torch.tensor([0, 0, 0, 1]))
        >>> different_rows(part, [Column("text", "text")], [0, 1, 2, 3])
        [0, 1, 3]
    """
    keys = [_contents(part, column, rows) for column in columns]
    if None in keys or not rows:
        return list(rows)
    if len(columns) == 1:  # what is said to be another thing is none
        at = torch.as_tensor(rows)
        keys += [ids[at].tolist() for ids in (part.labels, part.groups) if ids is not None]
    seen: dict[tuple[Any, ...], int] = {}
    for row, key in zip(rows, zip(*(key for key in keys if key is not None))):
        seen.setdefault(key, row)
    return list(seen.values())


def _contents(part: Part, column: Column, rows: Sequence[int]) -> list[Any] | None:
    """What rows hold in a column, equal where it is the same; None: nothing comes twice, or it is not known."""
    numbers = getattr(part, "same", {}).get(column.name)
    if isinstance(numbers, Tensor):
        return numbers[torch.as_tensor(rows)].tolist()
    held = part.data.get(column.name) if isinstance(part, TensorPart) else None
    if isinstance(held, Tensor):
        return [held[row].numpy().tobytes() for row in rows]
    return None if held is None else [same_value(held[row]) for row in rows]


def sides_alike(part: Part, columns: Sequence[Column], rows: Sequence[int]) -> int:
    """Counts the pairs whose two sides are the same.

    Example:
        >>> pairs = TensorPart({"a": ["x", "y"], "b": ["X ", "z"]})
        >>> sides_alike(pairs, [Column("a", "text"), Column("b", "text", "positive")], [0, 1])
        1
    """
    first, second, *_ = (_contents(part, column, rows) for column in columns)
    kinds = {column.kind for column in columns[:2]}
    return 0 if first is None or second is None or len(kinds) > 1 else sum(map(eq, first, second))


def repeated_note(count: int, columns: Sequence[Column], where: str = "") -> str:
    """That rows repeat others, in words.

    Example:
        >>> repeated_note(1, [Column("text", "text")]), repeated_note(2, [Column("text", "text")], " that are looked at")
        ('1 row repeats another one, and is left out', '2 rows that are looked at repeat another one, and are left out')
    """
    what = "pair" if len(columns) > 1 else "row"
    does, are = ("repeats", "is") if count == 1 else ("repeat", "are")
    return f"{count:,} {what}{'s' * (count != 1)}{where} {does} another one, and {are} left out"
