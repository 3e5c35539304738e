"""Tables beside the images that they speak of: ``metadata.csv`` in a folder, or in its ``train`` and ``test`` folders."""

from __future__ import annotations

from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

from nearfar.data import sheets
from nearfar.data.bad import check_name, name_fault, printable
from nearfar.data.columns import what_it_holds
from nearfar.data.described import Described, not_named
from nearfar.data.endings import completed
from nearfar.data.folders import Walk, parts_of
from nearfar.data.labelled import require
from nearfar.data.rows import from_records
from nearfar.data.sheets import Sheet

# Cells that tell whether a column holds paths of images.
SAMPLE = 256


def from_metadata(folder: Path, described: Described, skip_bad: bool) -> Sheet:
    """Reads the tables of a folder of images; each names images by where they lie from its own folder.

    Args:
        folder: Of them all; image paths are made relative to it.
        described: The tables, as ``find_described`` found them.
        skip_bad: Leave out tables that cannot be read, and list them.

    Raises:
        ValueError: If a table cannot be read; the message names it.
    """
    named_well = [not name_fault(path) for path in described.tables]
    if not skip_bad or not any(named_well):
        for path in described.tables:
            check_name(path)
    tables = [*compress(described.tables, named_well)]
    parts = [*compress(described.parts, named_well)]
    misnamed = tuple(f"{printable(p)}: {name_fault(p)}" for p in described.tables if p not in tables)
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
    walk = Walk([*tables, *described.left])
    files = walk.files(folder)
    notes = not_named(files, named, folder) if named else ()
    notes = (*described.notes, *notes, *walk.notes())
    return replace(sheet, table=sheets.library().Dataset(held), base=None, notes=notes, bad=(*sheet.bad, *misnamed))
