"""Records as columns, each with cells of one type: records need not agree about that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from nearfar.data.bad import shown
from nearfar.data.columns import may_be_several

Shape = Literal[
    "a text or a number", "an object", "a list of texts", "a list of numbers", "a list of lists", "a list of objects",
    "a list of several kinds",
]  # fmt: skip
LISTS: dict[type, Shape] = {str: "a list of texts", list: "a list of lists", dict: "a list of objects"}
LARGEST = 2**63
"""Integers from here on fit no column of numbers."""


def columns_of(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, list[Any]], dict[int, str]]:
    """Columns whose cells are of one type, and the rows that have a cell of another than most.

    Numbers among texts become texts, so that what a column holds is asked of all alike. A text among lists of texts is a list of
    one; a list among texts is a bad cell, except in columns that are called as positives or negatives are, which may have
    several.

    Example:
        >>> columns_of([{"x": 1, "y": "a"}, {"x": "NA", "y": [2]}, {"y": "b"}])
        ({'x': ['1', 'NA', None], 'y': ['a', [2], 'b']}, {1: "column 'y' holds [2], where most rows hold a text or a number"})
    """
    columns: dict[str, list[Any]] = {}
    odd: dict[int, str] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = columns[name] = [row.get(name) for row in rows]
        if {*map(type, cells)} <= {str, type(None)}:  # as in all tables of text
            continue
        shapes = [None if cell is None else _shape(cell) for cell in cells]
        counts = Counter(shape for shape in shapes if shape is not None)
        several = counts["a list of texts"] > counts["a text or a number"] or may_be_several(name)
        if several and "a list of texts" in counts and "a text or a number" in counts:
            cells = [[cell] if isinstance(cell, str) else cell for cell in cells]
            shapes = [None if cell is None else _shape(cell) for cell in cells]
            counts = Counter(shape for shape in shapes if shape is not None)
        most = counts.most_common(1)[0][0] if counts else None
        for row, (cell, shape) in enumerate(zip(cells, shapes)):
            fits = shape == most or cell is None or (shape is None and (most is None or most.startswith("a list")))
            if not fits:
                odd.setdefault(row, f"column {name!r} holds {shown(cell)}, where most rows hold {most}")
        columns[name] = _alike(cells) if most == "a text or a number" else cells
    return columns, odd


def _shape(cell: Any) -> Shape | None:
    """What a cell is; None: an empty list, which may be any."""
    if not isinstance(cell, list):
        return "an object" if isinstance(cell, dict) else "a text or a number"
    found: set[Shape] = {LISTS.get(type(item), "a list of numbers") for item in cell if item is not None}
    return "a list of several kinds" if len(found) > 1 else found.pop() if found else None


def _alike(cells: list[Any]) -> list[Any]:
    """Cells of one type: all as texts where there are several types that are not all numbers."""
    types = {type(cell) for cell in cells if cell is not None}
    plain = len(types) <= 1 or types == {int, float}
    if plain and not any(isinstance(cell, int) and abs(cell) >= LARGEST for cell in cells):
        return cells
    whole = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]  # NaN is no text
    return [cell if cell is None or isinstance(cell, list | dict) else str(cell) for cell in whole]
