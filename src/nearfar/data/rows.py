"""Rows of text files: CSV, TSV and JSON lines."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.data.bad import MOST_NAMED, refuse, shown
from nearfar.data.kinds import columns_of
from nearfar.data.labelled import require
from nearfar.data.records import records
from nearfar.data.sheets import Sheet, library


@dataclass(frozen=True)
class Lines:
    """Rows called by file and line."""

    paths: Sequence[Path]
    """The file of each row."""
    lines: Sequence[int]

    def __call__(self, row: int) -> str:
        """Where a row is."""
        return f"{self.paths[row]}:{self.lines[row]}"


def from_records(paths: Sequence[Path], name: str, split: Sequence[str] = ()) -> Sheet:
    """Reads CSV, TSV and JSONL files.

    Args:
        paths: The files, of one kind of rows.
        name: What to call the data.
        split: The part that each file is.

    Returns:
        The rows, and what is wrong with the records that cannot be read.

    Raises:
        ValueError: If a file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    places: list[tuple[Path, int]] = []
    parts, bad = [], []
    for path, part in zip(paths, split or [""] * len(paths)):
        for line, record in records(path):
            if isinstance(record, str):
                bad.append(f"{path}:{line}: {record}")
            else:
                places.append((path, line))
                rows.append(record)
                parts.append(part)
    columns, odd = columns_of(rows)
    for row, what in odd.items():
        bad.append(f"{places[row][0]}:{places[row][1]}: {what}")
    kept = [row for row in range(len(rows)) if row not in odd]
    made: dict[str, Any] = {}
    while kept and len(made) < len(columns):
        name_of = next(column for column in columns if column not in made)
        found = _arrow_column([columns[name_of][row] for row in kept])
        if isinstance(found, int):  # of no other type than the rest, and yet unlike them within
            path, line = places[kept[found]]
            bad.append(
                f"{path}:{line}: column {name_of!r} holds {shown(columns[name_of][kept[found]])}, unlike the rows before"
            )
            del kept[found]
            made.clear()
            if len(bad) > MOST_NAMED:
                refuse(bad)
        else:
            made[name_of] = found
    if not kept:
        raise ValueError(f"{paths[0]} holds no row that can be read" + (f"; the first: {bad[0]}" if bad else ""))
    where = Lines([places[row][0] for row in kept], [places[row][1] for row in kept])
    table = library().Dataset(require("pyarrow", "reading tables", "train").table(made))
    return Sheet(name, table, where, paths[0].parent, [parts[row] for row in kept] if split else None, tuple(bad))


def _arrow_column(cells: list[Any]) -> Any:
    """An Arrow array; or the place of the first cell that does not fit those before it."""
    arrow = require("pyarrow", "reading tables", "train")

    def made(count: int) -> Any:
        try:
            return arrow.array(cells[:count])
        except (arrow.ArrowException, OverflowError):
            return None

    found = made(len(cells))
    return bisect_left(range(len(cells)), True, key=lambda row: made(row + 1) is None) if found is None else found
