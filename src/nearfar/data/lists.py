"""Cells that hold lists of texts: all positives of a query on one line, as FlagEmbedding writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nearfar.data.columns import Chosen
from nearfar.data.sheets import Sheet


@dataclass(frozen=True)
class Spread:
    """A table with a row for each text of a column of lists.

    Example:
        >>> import datasets
        >>> table = datasets.Dataset.from_dict({"query": ["a", "b"], "pos": [["c", "d"], ["e"]]})
        >>> Spread(table, "pos", [0, 0, 1], [0, 1, 0])[[1, 2]]
        {'query': ['a', 'b'], 'pos': ['d', 'e']}
    """

    table: Any
    column: str
    rows: Sequence[int]
    """Which row of the table each row is."""
    items: Sequence[int]
    """Which item of its list."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        """Rows as a ``datasets.Dataset`` gives them: of a name a column, of a number a row, else columns of some rows."""
        if isinstance(key, int):
            return {name: cells[0] for name, cells in self[[key]].items()}
        if isinstance(key, str):
            cells = self.table[key][:]
            if key == self.column:
                return [_item(cells[row], item) for row, item in zip(self.rows, self.items)]
            return [cells[row] for row in self.rows]
        at = range(len(self))[key] if isinstance(key, slice) else key
        found = dict(self.table[[self.rows[row] for row in at]])
        found[self.column] = [_item(cell, self.items[row]) for cell, row in zip(found[self.column], at)]
        return found


def unspread(table: Any, rows: Sequence[int]) -> tuple[Any, Sequence[int]]:
    """The table that lists were taken apart of, and which of its rows some rows are."""
    while isinstance(table, Spread):
        rows, table = [table.rows[row] for row in rows], table.table
    return table, rows


@dataclass(frozen=True)
class Origin:
    """Rows called as those that they were made of."""

    where: Callable[[int], str]
    rows: Sequence[int]

    def __call__(self, row: int) -> str:
        """Where a row is."""
        return self.where(self.rows[row])


def spread(sheet: Sheet, column: str) -> Sheet:
    """The rows of a sheet with one for each text of a column of lists; a row without a text stays, to be named."""
    counts = [len(_texts(cell)) for cell in sheet.cells(column)]
    rows = [row for row, count in enumerate(counts) for _ in range(max(1, count))]
    items = [item for count in counts for item in range(max(1, count))]
    return replace(
        sheet,
        table=Spread(sheet.table, column, rows, items),
        where=Origin(sheet.where, rows),
        split=None if sheet.split is None else [sheet.split[row] for row in rows],
        notes=(*sheet.notes, f"{spread_note(column)}: {len(rows):,} rows of {len(counts):,}"),
    )


def spread_note(column: str) -> str:
    """What to say of a column whose lists are taken apart."""
    return f"column {column!r} holds lists of texts, each of which makes a row"


def spread_row(row: dict[str, Any], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows that one row with lists of texts makes."""
    if not columns:
        yield row
        return
    cell = row.get(columns[0])
    for item in range(max(1, len(_texts(cell)))):
        yield from spread_row({**row, columns[0]: _item(cell, item)}, columns[1:])


def negative_lists(
    chosen: Chosen, cells: Mapping[str, list[Any]]
) -> tuple[Chosen, dict[str, list[Any]], tuple[str, ...]]:
    """The columns of lists of negatives, of which every row gives as many as the shortest list has; and what to say of them.

    A column of negatives that is empty in most rows is taken out.

    Args:
        chosen: Which column is what.
        cells: Of the columns of negatives that are texts.
    """
    lists: dict[str, list[Any]] = {}
    notes = []
    for name, held in cells.items():
        counts = [len(_texts(cell)) for cell in held]
        some = [count for count in counts if count]
        if 2 * len(some) <= len(counts):
            kept = tuple(column for column in chosen.inputs if column.name != name)
            chosen = replace(chosen, inputs=kept, unread=(*chosen.unread, name))
            notes.append(f"column {name!r} holds texts in {len(some):,} of {len(counts):,} rows only")
        elif any(isinstance(cell, list) for cell in held):
            lists[name] = held
            if max(some) > min(some):
                notes.append(
                    f"column {name!r} holds {min(some)} to {max(some)} texts: the first {min(some)} of each row are read"
                )
    return chosen, lists, tuple(notes)


def _texts(cell: Any) -> Sequence[Any]:
    return cell if isinstance(cell, (list, tuple)) else [cell] if cell is not None and cell != "" else []


def _item(cell: Any, item: int) -> Any:
    texts = _texts(cell)
    return texts[item] if item < len(texts) else None
