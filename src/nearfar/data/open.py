"""A data set of any kind, opened for training: ``open_corpus``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from nearfar.data import sheets
from nearfar.data.columns import Chosen, choose_columns, what_it_holds
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Corpus, Part, TensorPart
from nearfar.data.meanings import number_of, read_groups, read_labels, read_numbers
from nearfar.data.parts import Field, TablePart, image_source, make_fields
from nearfar.data.pixels import BROKEN, SUFFIXES, common_size, image_header, is_grey, size_pair, unreadable
from nearfar.data.same import Same, same_values
from nearfar.data.sheets import Sheet
from nearfar.data.similar import LIKENESS, find_similar
from nearfar.data.sources import SOURCES, Found
from nearfar.data.splits import Split, draw_split, own_split

# Headers of so many images are looked at when a data set is opened: all of most sets, in a second or two.
MOST_HEADERS = 20_000
# Cells that tell what a column holds.
SAMPLE = 256


def open_corpus(config: DataConfig) -> Corpus:
    """Opens a data set: finds its columns, its classes and its split, and what of it cannot be read.

    Args:
        config: Which data, and how to read them.

    Returns:
        Rows to train on and rows held out; images are decoded batch by batch.

    Raises:
        ValueError: If the data cannot be used; the message names the file and line, or the column, and the remedy.
        FileNotFoundError: If the files of a named set are not there; the message says how to get them.
        ImportError: If a package that reads them is missing; the message says how to install it.

    Example:
        >>> corpus = open_corpus(DataConfig("digits"))
        >>> corpus.columns[0].kind, len(corpus.train), len(corpus.test), corpus.size, corpus.channels
        ('image', 1198, 599, (8, 8), 1)
    """
    if config.data in SOURCES:
        found = SOURCES[config.data].rows(None if config.root is None else Path(config.root).expanduser())
        return _from_memory(found, config)
    if config.streaming:
        from nearfar.data.streams import open_stream

        return open_stream(config)
    return _from_sheet(open_sheet(config), config)


def open_sheet(config: DataConfig) -> Sheet:
    """The rows of a path or a Hub name, whatever it is.

    Raises:
        ValueError: If it is nothing that can be read.
    """
    given, path = config.data, Path(config.data).expanduser()
    if path.is_dir():
        return _open_folder(path, config)
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return sheets.from_shards(sheets.expand_shards(given), re.sub(r"\W*[{*].*", "", path.stem) or path.stem)
    if path.exists():
        if suffix in sheets.PARQUET_SUFFIXES:
            return sheets.from_parquet([path], path.stem)
        if suffix in sheets.TABLE_SUFFIXES:
            return sheets.from_records([path], path.stem, config.skip_bad)
        wanted = ", ".join((*sheets.TABLE_SUFFIXES, ".tar"))
        raise ValueError(f"{path} ends in {path.suffix!r}: wanted a folder, or a file ending in {wanted}")
    if is_hub_name(given):
        return sheets.from_hub(given)
    raise ValueError(unknown_data(given))


def is_hub_name(name: str) -> bool:
    """Whether a name that is no path here may be one on the Hub: ``owner/name``, and no folder is called as the owner."""
    owner, slash, rest = name.partition("/")
    known = Path(rest.partition(":")[0]).suffix.lower() in (*sheets.TABLE_SUFFIXES, *SUFFIXES, ".tar")
    return bool(slash and re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name)) and not known and not Path(owner).exists()


def unknown_data(name: str) -> str:
    """The message for data that nobody knows."""
    near = difflib.get_close_matches(name, SOURCES, 1)
    return (
        f"{name!r} is neither a data set nor a path" + (f"; did you mean {near[0]!r}?" if near else ";")
        + f" Data sets: {', '.join(SOURCES)}. Otherwise pass a folder of images, a file ending in "
        f"{', '.join(sheets.TABLE_SUFFIXES)}, tar shards, or owner/name of a data set on the Hugging Face Hub"
    )  # fmt: skip


def _open_folder(folder: Path, config: DataConfig) -> Sheet:
    """A folder with a metadata table, of images, of tables, of shards, or laid out as on the Hub."""
    inside = {path.name for path in folder.iterdir()}
    table = next((name for name in sheets.METADATA if name in inside), None)
    if table is not None:
        path = folder / table
        if path.suffix in sheets.PARQUET_SUFFIXES:
            return sheets.from_parquet([path], folder.name)
        return sheets.from_records([path], folder.name, config.skip_bad)
    suffixes = {Path(name).suffix.lower() for name in inside}
    if not suffixes & set(SUFFIXES):
        shards = sorted(folder.glob("*.tar"))
        if shards:
            return sheets.from_shards(shards, folder.name)
        paths, split = sheets.files_of(folder)
        if paths and all(path.suffix.lower() not in sheets.PARQUET_SUFFIXES for path in paths):
            return sheets.from_records(paths, folder.name, config.skip_bad, split)
        if paths and "README.md" not in inside:
            return sheets.from_parquet(paths, folder.name, split)
        if paths or any(folder.glob("data/*.parquet")) or any(folder.glob("*/*.parquet")):
            return sheets.from_hub(str(folder))
    return sheets.from_images(folder, folder.name)


def _from_memory(found: Found, config: DataConfig) -> Corpus:
    part = found.rows if config.size is None else resized(found.rows, size_pair(config.size))
    if found.test is None:
        pairs = len(found.columns) > 1
        split = draw_split(len(part), part.labels, part.groups, (), config, pairs=pairs)
    else:
        split = own_split((~found.test).nonzero().squeeze(1), found.test.nonzero().squeeze(1), config)
    texts = {name: held for name, held in part.data.items() if not isinstance(held, Tensor)}
    part = replace(part, same=same_values(texts))
    images = next((held for held in part.data.values() if isinstance(held, Tensor) and held.ndim == 4), None)
    return Corpus(
        name=found.name,
        columns=found.columns,
        train=take(part, split.train),
        test=take(part, split.test),
        class_names=found.class_names,
        size=None if images is None else (images.shape[2], images.shape[3]),
        channels=None if images is None else images.shape[1],
        held_out=split.by,
        notes=split.notes,
    )


def resized(part: TensorPart, size: tuple[int, int]) -> TensorPart:
    """The rows with their images at another size."""

    def scaled(images: Tensor) -> Tensor:
        small = torch.nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return small.round().clamp(0, 255).to(torch.uint8)

    data = {
        name: torch.cat([scaled(chunk) for chunk in held.split(1024)])
        if isinstance(held, Tensor) and held.ndim == 4
        else held
        for name, held in part.data.items()
    }
    return replace(part, data=data)


def take(part: TensorPart, rows: Int64[Tensor, "m"]) -> TensorPart:
    """Some rows of those in memory."""
    kept = part.fetch(rows.tolist())
    names = [part.name(row) for row in rows.tolist()] if len(part.names) else []
    return TensorPart(kept.columns, kept.labels, kept.groups, names, kept.similar, kept.same)


def _from_sheet(sheet: Sheet, config: DataConfig) -> Corpus:
    table, count = sheet.table, len(sheet.table)
    sample = table[:SAMPLE]
    shown = [name for name in sample if not name.startswith("__")]
    chosen = choose_columns({name: what_it_holds(sample[name]) for name in shown}, config, sheet.name)
    numbers, good = read_numbers(sheet, chosen.numbers)
    told = {name: sheet.cells(name) for name in (chosen.similar, chosen.label) if name is not None}
    judged = find_similar(chosen, told, sheet.class_names, config, sheet.name)
    similar = None if judged is None else judged.read(told[judged.column])
    if judged is not None and judged.column == chosen.label and config.label is None:
        chosen = replace(chosen, label=None)
    unjudged = "" if judged is None else f"column {judged.column!r} does not say how alike the sides are"
    bad, size, channels = _check(sheet, chosen, config, good, similar, unjudged)
    rows = good.nonzero().squeeze(1)
    if not len(rows):
        raise ValueError(f"{sheet.name}: none of {count} rows can be read; the first: {bad[0]}")
    labels, names = read_labels(sheet, chosen.label, rows, given=config.label is not None)
    groups = read_groups(sheet, chosen.id, rows, given=config.id is not None)
    similar = None if similar is None else similar[rows]
    alike = None if similar is None else (similar >= LIKENESS).long()
    inputs = () if chosen.numbers else chosen.inputs
    cells = {column.name: sheet.cells(column.name) for column in inputs if isinstance(sample[column.name][0], list)}
    fields = make_fields(inputs, cells, sheet.base, size, channels)
    same = _same(sheet, fields, rows)
    # a text that is a negative on both sides of the split gives nothing away
    values = [same[c.name] for c in (field.column for field in fields) if c.role != "negative" and c.name in same]
    split = _split(sheet, chosen, rows, labels if alike is None else alike, groups, values, config)

    def part(at: Int64[Tensor, "m"]) -> Part:
        own = [None if ids is None else ids[at] for ids in (labels, groups)]
        if numbers is None:
            there = None if similar is None else similar[at]
            values = {name: ids[at] for name, ids in same.items()}
            return TablePart(table, fields, rows[at], own[0], own[1], sheet.where, config.skip_bad, there, values)
        # As they are: the encoder scales by what it was trained on, and so embeds the rows of any other file alike.
        held = numbers[rows[at]].float()
        return TensorPart({"vector": held}, own[0], own[1], [sheet.where(row) for row in rows[at].tolist()])

    first = chosen.inputs[0]
    if first.kind in ("vector", "series"):
        channels = part(torch.arange(1)).fetch([0]).columns[first.name].shape[1]  # type: ignore[union-attr]
    columns = chosen.inputs if numbers is not None else tuple(field.column for field in fields)
    column = None if judged is None else judged.column
    return Corpus(
        sheet.name, columns, part(split.train), part(split.test), names, size, channels, (*sheet.bad, *bad), column,
        notes=split.notes, held_out=split.by,
    )  # fmt: skip


def _same(sheet: Sheet, fields: Sequence[Field], rows: Int64[Tensor, "m"]) -> Same:
    """Texts, and images that are paths; bytes are not read for this."""
    values = {}
    for field in fields:
        if field.column.kind == "text" or isinstance(sheet.table[0][field.source], str):
            cells, item = sheet.cells(field.source), field.item
            values[field.column.name] = [str(cells[row] if item is None else cells[row][item]) for row in rows.tolist()]
    return same_values(values)


def _check(
    sheet: Sheet,
    chosen: Chosen,
    config: DataConfig,
    good: Bool[Tensor, "n"],
    similar: Float32[Tensor, "n"] | None,
    unjudged: str,
) -> tuple[list[str], tuple[int, int] | None, int | None]:
    """What is wrong with rows, which ``good`` then leaves out; and the size and the channels of the images."""
    bad: list[str] = []

    def report(row: int, message: str) -> None:
        bad.append(message)
        good[row] = False
        if not config.skip_bad:
            raise ValueError(f"{message}: mend it, or leave such rows out with skip_bad=True (--skip-bad)")

    for row in (~good).nonzero().flatten().tolist():
        cells = sheet.table[row]
        wrong = next(name for name in chosen.numbers if not abs(number_of(cells[name])) < float("inf"))
        report(row, f"{sheet.where(row)}: column {wrong!r} holds {cells[wrong]!r}, wanted a finite number")
    for row in () if similar is None else (good & similar.isnan()).nonzero().flatten().tolist():
        report(row, f"{sheet.where(row)}: {unjudged}")
    headers = []
    for column in () if chosen.numbers else chosen.inputs:
        cells = sheet.cells(column.name) if column.kind != "image" else None
        for row, cell in enumerate(cells or ()):
            if (cell is None or (isinstance(cell, str) and not cell.strip())) and good[row]:
                report(row, f"{sheet.where(row)}: column {column.name!r} is empty")
        if column.kind == "image":
            step = max(1, len(good) // MOST_HEADERS)
            for row in range(0, len(good), step):
                try:
                    headers.append(image_header(image_source(sheet.table[row][column.name] or "", sheet.base)))
                except BROKEN as error:
                    where = sheet.where(row)
                    named = where if where in str(error) else f"{where}: column {column.name!r}"
                    if good[row]:
                        report(row, unreadable(named, error))
    if not headers:
        return bad, None, None
    size = common_size([(h, w) for h, w, _ in headers]) if config.size is None else size_pair(config.size)
    return bad, size, 1 if all(is_grey(mode) for _, _, mode in headers) else 3


def _split(
    sheet: Sheet,
    chosen: Chosen,
    rows: Int64[Tensor, "m"],
    labels: Int64[Tensor, "m"] | None,
    groups: Int64[Tensor, "m"] | None,
    values: Sequence[Int64[Tensor, "m"]],
    config: DataConfig,
) -> Split:
    """Positions in ``rows``: the data's own split if there is one; else as ``draw_split`` has it."""
    parts = sheet.split
    if parts is None and chosen.split is not None:
        parts = [str(part or "").strip().lower() for part in sheet.cells(chosen.split)]
        if "train" not in parts:
            parts = None
    if parts is None:
        pairs = any(column.role == "positive" for column in chosen.inputs)
        return draw_split(len(rows), labels, groups, values, config, pairs=pairs)
    held = next((name for name in sheets.TEST_NAMES if name in parts), None)
    own = [parts[row] for row in rows.tolist()]
    train, test = (
        torch.tensor([i for i, part in enumerate(own) if part == name], dtype=torch.int64) for name in ("train", held)
    )
    if not len(train) or not len(test):
        raise ValueError(
            f"{sheet.name}: the split it comes with leaves {len(train)} rows to train on and {len(test)} to test on"
        )
    return own_split(train, test, config)
