"""Images that a table names without their endings: ``00001`` for ``00001.jpg``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nearfar.data.columns import is_called_image, what_it_holds
from nearfar.data.folders import visible
from nearfar.data.pixels import SUFFIXES

# Cells that tell whether a column holds paths of images.
SAMPLE = 256


def completed(table: Any, folders: Sequence[Path]) -> Any:
    """The table with the endings of images in the columns that are called as images are, where most of those images are there.

    Args:
        table: A ``datasets.Dataset``.
        folders: What the paths of each row are relative to.
    """
    names = list(table.column_names)
    for name in filter(is_called_image, names):
        cells = table[name][:]
        if what_it_holds(cells[:SAMPLE]) not in ("text", "number"):
            continue
        found = _with_endings(cells, folders)
        if found is not None:
            table = table.remove_columns(name).add_column(name, found).select_columns(names)
    return table


def _with_endings(cells: Sequence[Any], folders: Sequence[Path]) -> list[str | None] | None:
    """The cells as paths of files that are there; None: most are of none, or of several."""
    there: dict[Path, dict[str, list[str]]] = {}
    found: list[str | None] = []
    known = 0
    for cell, folder in zip(cells, folders):
        text = "" if cell is None else str(int(cell) if isinstance(cell, float) and cell.is_integer() else cell).strip()
        path = folder / text
        if path.parent not in there:
            there[path.parent] = _images(path.parent)
        matches = there[path.parent].get(path.name, []) if text else []
        known += len(matches) == 1
        found.append(f"{text}{matches[0]}" if len(matches) == 1 else text or None)
    return found if 2 * known > sum(cell is not None for cell in found) else None


def _images(folder: Path) -> dict[str, list[str]]:
    """The endings of the images of a folder, by their names without."""
    endings: dict[str, list[str]] = {}
    for path in visible(folder) if folder.is_dir() else ():
        if path.suffix.lower() in SUFFIXES:
            endings.setdefault(path.stem, []).append(path.suffix)
    return endings
