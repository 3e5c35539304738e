"""Tables beside the images that they speak of: ``metadata.csv`` in a folder, or in its ``train`` and ``test`` folders."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nearfar.data import sheets
from nearfar.data.columns import what_it_holds
from nearfar.data.endings import completed
from nearfar.data.folders import Walk, parts_of
from nearfar.data.labelled import require
from nearfar.data.rows import from_records
from nearfar.data.sheets import Sheet

# Cells that tell whether a column holds paths of images.
SAMPLE = 256


def from_metadata(folder: Path, tables: Sequence[Path], parts: Sequence[str], skip_bad: bool) -> Sheet:
    """Reads the tables of a folder of images; each names images by where they lie from its own folder.

    Args:
        folder: Of them all; image paths are made relative to it.
        tables: As ``metadata_tables`` found them.
        parts: The part that each is of, if they know.
        skip_bad: Leave out tables that cannot be read, and list them.

    Raises:
        ValueError: If a table cannot be read; the message names it.
    """
    if tables[0].suffix.lower() in sheets.PARQUET_SUFFIXES:
        sheet = sheets.from_parquet(tables, folder.name, skip_bad, parts)
        read = [path for path in tables if not any(line.startswith(f"{path} ") for line in sheet.bad)]
        lengths = [require("pyarrow.parquet", "reading tables").read_metadata(path).num_rows for path in read]
        owners = [path.parent for path, length in zip(read, lengths) for _ in range(length)]
    else:
        sheet = from_records(tables, folder.name, parts)
        owners = [Path(sheet.where(row).rpartition(":")[0]).parent for row in range(len(sheet.table))]
    sheet = replace(sheet, table=completed(sheet.table, owners))
    arrow = require("pyarrow", "reading tables", "train")
    held: Any = sheet.table.data.table
    named: set[Path] = set()
    for at, name in enumerate(held.column_names):
        cells = sheet.cells(name)
        if what_it_holds(cells[:SAMPLE]) != "image" or not all(isinstance(cell, str | None) for cell in cells):
            continue
        named_cells = zip(owners, (str(cell or "").strip() for cell in cells))
        paths = [owner / Path(cell).expanduser() if cell else None for owner, cell in named_cells]
        held = held.set_column(at, name, arrow.array([p if p is None else str(p) for p in paths], arrow.string()))
        named |= {path for path in paths if path is not None}
        if not parts and sheet.split is None:
            sheet = replace(sheet, split=parts_of(paths, folder))
    walk = Walk()
    files = [path for place in dict.fromkeys(table.parent for table in tables) for path in walk.files(place)]
    notes = not_named(files, named, folder) if named else ()
    return replace(sheet, table=sheets.library().Dataset(held), base=None, notes=(*notes, *walk.notes()))


def not_named(paths: Sequence[Path], named: Collection[Path], folder: Path) -> tuple[str, ...]:
    """How many images of a folder its tables do not name, in words."""
    left = [path for path in paths if path not in named]
    if not left:
        return ()
    count = f"{len(left):,} images" if len(left) > 1 else "1 image"
    return (f"passed over {count} that the table beside them does not name, such as {left[0].relative_to(folder)}",)
