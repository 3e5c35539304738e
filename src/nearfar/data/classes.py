"""Classes as people give them: one spelling of a name, ids of names, and what stands for no class at all."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from nearfar.data.records import to_number
from nearfar.given import array_of, as_tensor

MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "nil", "-", "--", "?", "."})
"""What tables write where a number is missing; case does not matter. Among texts, these may be texts."""


@runtime_checkable
class Series(Protocol):
    """A column of a data frame, such as pandas'."""

    def to_numpy(self) -> np.ndarray:
        """Its values."""
        ...


Classes = Tensor | np.ndarray | Sequence[Any] | Series
"""Class ids or names, one a row."""


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, NaN, ``pandas.NA``, ``NaT``.

    Example:
        >>> is_missing(float("nan")), is_missing(None), is_missing(0), is_missing("nan")
        (True, True, False, False)
    """
    if value is None:
        return True
    try:
        return not bool(value == value)
    except (TypeError, ValueError):  # pandas.NA is neither equal to itself nor not; lists of several numbers
        return type(value).__name__ == "NAType"


def is_missing_word(value: Any) -> bool:
    """Whether a cell is missing, or a word says so. Only where numbers are wanted: elsewhere "None" may be a name."""
    return is_missing(value) or (isinstance(value, str) and value.strip().lower() in MISSING)


def class_name(value: Any) -> str:
    """The name of a class, the same however it is written: without blanks around it, accents composed, 1.0 as 1; empty: none.

    Example:
        >>> class_name(" Jose\u0301 ") == "José", class_name(2.0), class_name("2.0"), class_name(None)
        (True, '2', '2', '')
    """
    if not isinstance(value, str):
        if is_missing(value):
            return ""
        if isinstance(value, float | np.floating) and float(value).is_integer():
            value = int(value)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
    name = unicodedata.normalize("NFC", str(value)).strip()
    return str(int(name.partition(".")[0])) if re.fullmatch(r"-?(0|[1-9][0-9]*)\.0+", name) else name


def label_names(cells: Sequence[Any]) -> list[str]:
    """The class of each row by its cell; empty: none is known. Among numbers, a word such as NA says so too, and so does −1.

    Example:
        >>> label_names(["1", "NA", "2", None]), label_names(["cat", "NA", float("nan")])
        (['1', '', '2', ''], ['cat', 'NA', ''])
        >>> label_names([0, 1, -1]), label_names([-1, 1])
        (['0', '1', ''], ['-1', '1'])
    """
    names = [class_name(cell) for cell in cells]
    known = [name for name in names if name.lower() not in MISSING]
    if 2 * sum(to_number(name) is not None for name in known) <= len(known):
        return names
    unknown = unknown_number(known)
    return ["" if name == unknown or name.lower() in MISSING else name for name in names]


def unknown_number(names: Sequence[str]) -> str:
    """The negative number that stands for no class among whole numbers from 0 on; empty: none does.

    Example:
        >>> unknown_number(["0", "1", "-1"]), unknown_number(["-1", "1"]), unknown_number(["-2", "-1", "0", "1"])
        ('-1', '', '')
    """
    whole = {name for name in {*names} if re.fullmatch(r"-?[0-9]+", name)}
    below = {name for name in whole if name.startswith("-")}
    return below.pop() if len(below) == 1 and len(whole) > 2 else ""


def unknown_notes(cells: Sequence[Any], column: str) -> tuple[str, ...]:
    """How many rows have a negative number for their class, in words."""
    names = [class_name(cell) for cell in cells]
    unknown = unknown_number(names)
    if not unknown or unknown in label_names(cells):
        return ()
    return (f"column {column!r} holds {unknown} in {names.count(unknown):,} row(s): their class is unknown",)


def are_classes(names: Sequence[str]) -> bool:
    """Whether the names of rows, one a row, tell classes rather than rows: there are two, or most rows share theirs.

    Example:
        >>> are_classes(["a", "a", "b", "b", "c"]), are_classes(["a", "b", "c", "d", "d"])
        (True, False)
    """
    counts = Counter(names)
    shared = sum(count for count in counts.values() if count > 1)
    return len(counts) == 2 or (len(counts) > 2 and 2 * shared >= len(names))


def class_notes(names: Sequence[str]) -> tuple[str, ...]:
    """What is odd about the classes of rows, in words.

    Example:
        >>> class_notes(["a", "a", "b"])
        ("1 class has a single row ('b'): where rows are held out by class it stays to train on",)
    """
    counts = Counter(name for name in names if name)
    notes = []
    alone = [name for name, count in counts.items() if count == 1]
    if 0 < len(alone) < len(counts):
        some = ", ".join(map(repr, alone[:3])) + " …" * (len(alone) > 3)
        has, stays = ("class has", "it stays") if len(alone) == 1 else ("classes have", "they stay")
        notes.append(
            f"{len(alone):,} {has} a single row ({some}): where rows are held out by class {stays} to train on"
        )
    for name, count in counts.items():
        if name.lower() in MISSING:
            notes.append(
                f"{count:,} row(s) are of a class called {name!r}: if their class is unknown, leave the cell empty"
            )
    return tuple(notes)


def number_classes(*given: Any) -> list[Any]:
    """Classes that have names as ids, in the order of the names of all that is given; ids as they are; −1: missing.

    Args:
        given: Texts in a sequence, an array or a column of a data frame; integers in the same, or a tensor; None.

    Raises:
        ValueError: If names come together with ids, which would not be told apart.

    Example:
        >>> number_classes(["cat", "ant"], np.array(["bee", "cat"]), None)
        [tensor([2, 0]), tensor([1, 2]), None]
        >>> number_classes([3, None, 1])
        [tensor([ 3, -1,  1])]
    """
    sides = [_names_or_ids(one) for one in given]
    names = sorted({name for side in sides if isinstance(side, list) for name in side if name})
    if names and any(isinstance(side, Tensor) and bool((side >= 0).any()) for side in sides):
        raise ValueError("some labels are names and some are numbers: pass names for all, or ids for all")
    ids = {name: at for at, name in enumerate(names)} | {"": -1}
    return [
        torch.tensor([ids[name] for name in side], dtype=torch.int64) if isinstance(side, list) else side
        for side in sides
    ]


def known_rows(labels: Any) -> tuple[Any, list[int]]:
    """The labels that are known, in one spelling, and their rows; the labels as they are if all are, or they are no column of them.

    Example:
        >>> known_rows(["a", None, "Jose\u0301"])
        (['a', 'José'], [0, 2])
    """
    values = values_of(labels) or []
    if {*map(type, values)} & {str} and all(isinstance(value, str) or is_missing(value) for value in values):
        names = label_names(values)
        rows = [row for row, name in enumerate(names) if name]
        same = all(isinstance(value, str) and value == name for value, name in zip(values, names))
        return (labels, rows) if same and len(rows) == len(names) else ([names[row] for row in rows], rows)
    rows = [row for row, value in enumerate(values) if not is_missing(value)]
    if len(rows) == len(values):
        return labels, rows
    known = [values[row] for row in rows]  # whole numbers are floats only because others are missing
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in known], rows


def ids_with_unknown(labels: Any) -> Any:
    """Whole numbers of which some are missing as ids, −1 for those; any other labels as they are.

    Example:
        >>> ids_with_unknown([4, None]), ids_with_unknown([4, 2])
        (tensor([ 4, -1]), [4, 2])
    """
    if isinstance(labels, Tensor | np.ndarray) and "int" in str(labels.dtype) and not np.ma.isMaskedArray(labels):
        return labels
    known, _ = known_rows(labels)
    if known is labels or any(isinstance(value, str) for value in known):
        return labels
    return number_classes(labels)[0]


def known_ids(ids: Tensor) -> Tensor:
    """Ids as they are; whole numbers among NaN, as data frames hold integers of which some are missing, as integers.

    Example:
        >>> known_ids(torch.tensor([2.0, float("nan")]))
        tensor([ 2, -1])
    """
    if not ids.is_floating_point() or not bool(ids.isnan().any()):
        return ids
    known = ids[~ids.isnan()]
    exact = bool((known % 1 == 0).all()) and bool((known.abs() <= 1 / torch.finfo(ids.dtype).eps).all())
    return ids.nan_to_num(nan=-1.0).long() if exact else ids


def _names_or_ids(given: Any) -> Any:
    """Names in a list, numbers in a tensor; what is neither as it is, to be refused by its name."""
    if str(getattr(given, "dtype", "")).endswith("uint64"):  # of which torch cannot tell the upper half apart
        given = given.reshape(-1).tolist() if given.ndim == 2 and given.shape[1] == 1 else given.tolist()
    if isinstance(given, Tensor):
        return known_ids(given)
    array = array_of(given) if isinstance(given, Series) else given
    whole = isinstance(array, np.ndarray) and array.dtype.kind in "iu" and not isinstance(array, np.ma.MaskedArray)
    if whole or (array is given and isinstance(array, np.ndarray) and array.dtype.kind in "fb"):
        return known_ids(as_tensor("labels", array, "class ids or names"))
    values = values_of(given)
    if values is None:
        return given
    known = [value for value in values if not is_missing(value)]
    if any(isinstance(value, list | tuple) for value in known):
        return as_tensor("labels", given, "class ids or names")
    if not all(isinstance(value, int | float) and abs(value) < 2**63 for value in known):
        return label_names(values)
    if all(float(value).is_integer() for value in known) and len(known) < len(values):
        return torch.tensor([-1 if is_missing(value) else int(value) for value in values], dtype=torch.int64)
    return torch.tensor([math.nan if is_missing(value) else value for value in values])


def values_of(given: Any) -> list[Any] | None:
    """The values of a sequence, an array or a column one by one: integers stay integers beside missing ones."""
    if isinstance(given, list | tuple):
        return [value.item() if isinstance(value, np.generic | Tensor) else value for value in given]
    for name in ("tolist", "to_list", "to_pylist"):  # NumPy and pandas, Polars, Arrow
        if hasattr(given, name):
            found = getattr(given, name)()
            return found if isinstance(found, list) else None
    return None
