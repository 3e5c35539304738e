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
from nearfar.data.bad import check_name, refuse, shown
from nearfar.data.classes import class_notes, label_names, unknown_notes
from nearfar.data.columns import Chosen, Holds, choose_columns, unread_note, what_it_holds
from nearfar.data.config import DataConfig
from nearfar.data.copies import copies_told, same_cells
from nearfar.data.corpus import Corpus, Part, TensorPart
from nearfar.data.depth import Ranges
from nearfar.data.described import find_described
from nearfar.data.endings import completed
from nearfar.data.folders import held_part, other_parts, part_name, visible
from nearfar.data.form import Form, find_form, size_pair
from nearfar.data.labelled import first_rows
from nearfar.data.lists import negative_lists, spread, unspread
from nearfar.data.meanings import number_of, read_groups, read_labels, read_numbers, wrong_cells
from nearfar.data.parts import Field, TablePart, image_source, make_fields
from nearfar.data.pixels import BROKEN, SUFFIXES, image_header, unreadable
from nearfar.data.rows import from_records
from nearfar.data.same import Same, same_values
from nearfar.data.sheets import Sheet
from nearfar.data.similar import LIKENESS, Similar, find_similar
from nearfar.data.sources import SOURCES, Found, find_root
from nearfar.data.splits import Split, draw_split, own_split, refuse_classes
from nearfar.names import given, refuse_unused

# Headers of so many images are looked at when a data set is opened: all of most sets, in a second or two.
MOST_HEADERS = 20_000
# Cells that tell what a column holds.
SAMPLE = 256


def open_corpus(config: DataConfig, ranges: Ranges | None = None) -> Corpus:
    """Opens a data set: finds its columns, its classes and its split, and what of it cannot be read.

    Args:
        config: Which data, and how to read them.
        ranges: Which numbers are black and white, in images of more than bytes, for a model that was trained so; by default
            what the files say, else found by the images.

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
        asked = given(config, "image", "text", "positive", "negative", "similar", "scale", "label", "id")
        refuse_unused(asked, f"the columns of {config.data} are known", "leave it out, or pass a table as data=")
        refuse_unused(given(config, "streaming"), f"{config.data} is held in memory")
        refuse_unused(given(config, "pixel_range"), f"the pixels of {config.data} are known")
        return _from_memory(SOURCES[config.data].rows(find_root(config.data, config.root)), config)
    refuse_unused(given(config, "root"), f"{config.data} is no data set by name, whose files would be there")
    check_name(Path(config.data))
    if config.streaming:
        own = "of a stream, only a test part of its own is held out"
        refuse_unused(given(config, "test_fraction", "split_seed"), own)
        refuse_classes(config, own)
        from nearfar.data.streams import open_stream

        return open_stream(config, ranges)
    return _from_sheet(open_sheet(config), config, ranges)


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
        return sheets.from_shards(
            sheets.expand_shards(given), re.sub(r"\W*[{*].*", "", path.stem) or path.stem, config.skip_bad
        )
    if path.exists():
        if suffix in sheets.PARQUET_SUFFIXES:
            return sheets.from_parquet([path], path.stem, config.skip_bad)
        if suffix in sheets.TABLE_SUFFIXES:
            return from_records([path], path.stem)
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
    from nearfar.data.metadata import from_metadata

    described = find_described(folder)
    if described.tables:
        return from_metadata(folder, described, config.skip_bad)
    inside = {path.name for path in visible(folder)}
    suffixes = {Path(name).suffix.lower() for name in inside}
    if not suffixes & set(SUFFIXES):
        shards = sheets.shards_of(folder)
        if shards:
            return sheets.from_shards(shards, folder.name, config.skip_bad)
        paths, split = sheets.files_of(folder)
        if paths and all(path.suffix.lower() not in sheets.PARQUET_SUFFIXES for path in paths):
            return from_records(paths, folder.name, split)
        if paths and "README.md" not in inside:
            return sheets.from_parquet(paths, folder.name, config.skip_bad, split)
        if paths or any(folder.glob("data/*.parquet")) or any(folder.glob("*/*.parquet")):
            return sheets.from_hub(str(folder))
    return sheets.from_images(folder, folder.name, described)


def _from_memory(found: Found, config: DataConfig) -> Corpus:
    if not any(column.kind == "image" for column in found.columns):
        refuse_unused(given(config, "size"), f"{found.name} holds no images")
    part = found.rows if config.size is None else resized(found.rows, size_pair(config.size))
    if found.test is not None:
        refuse_unused(given(config, "test_fraction", "split_seed"), f"{found.name} comes with its split")
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


def _from_sheet(sheet: Sheet, config: DataConfig, ranges: Ranges | None) -> Corpus:
    if sheet.base is not None:
        sheet = replace(sheet, table=completed(sheet.table, [sheet.base] * len(sheet.table)))
    sample = sheet.table[:: max(1, len(sheet.table) // SAMPLE)]
    holds: dict[str, Holds] = {
        name: what_it_holds(cells) for name, cells in sample.items() if not name.startswith("__")
    }
    chosen = choose_columns(holds, config, sheet.name)
    for name in chosen.listed:
        sheet = spread(sheet, name)
    table, count = sheet.table, len(sheet.table)
    numbers, good = read_numbers(sheet, chosen.numbers)
    told = {name: sheet.cells(name) for name in (chosen.similar, chosen.label) if name is not None}
    judged, notes = find_similar(chosen, told, sheet.class_names, config, sheet.name)
    similar = None if judged is None else judged.read(told[judged.column])
    if judged is not None and judged.column == chosen.label and config.label is None:
        chosen = replace(chosen, label=None)
    negatives = {name: sheet.cells(name) for name in chosen.negatives if holds[name] != "image"}
    chosen, lists, shortest = negative_lists(chosen, negatives)
    bad, form = _check(sheet, chosen, config, good, similar, judged, ranges)
    judged = None if judged is None or judged.all_alike else judged
    rows = good.nonzero().squeeze(1)
    if not len(rows):
        raise ValueError(f"{sheet.name}: none of {count} rows can be read; the first: {bad[0]}")
    labels, names = read_labels(sheet, chosen.label, rows, given=config.label is not None)
    groups = read_groups(sheet, chosen.id, rows, given=config.id is not None)
    similar = None if similar is None or judged is None else similar[rows]
    alike = None if similar is None else (similar >= LIKENESS).long()
    fields = make_fields(() if chosen.numbers else chosen.inputs, lists, sheet.base, form)
    same, ties, copies = _same(sheet, fields, rows)
    # a text that is a negative on both sides of the split gives nothing away
    values = [ties[c.name] for c in (field.column for field in fields) if c.role != "negative" and c.name in ties]
    split = _split(sheet, chosen, rows, labels if alike is None else alike, groups, values, copies, config)

    def part(at: Int64[Tensor, "m"]) -> Part:
        own = [None if ids is None else ids[at] for ids in (labels, groups)]
        if numbers is None:
            there = None if similar is None else similar[at]
            values = {name: ids[at] for name, ids in same.items()}
            return TablePart(table, fields, rows[at], own[0], own[1], sheet.where, config.skip_bad, there, values)
        # As they are: the encoder scales by what it was trained on, and so embeds the rows of any other file alike.
        held = numbers[rows[at]].float()
        return TensorPart({"vector": held}, own[0], own[1], [sheet.where(row) for row in rows[at].tolist()])

    first, channels = chosen.inputs[0], form.channels
    if first.kind in ("vector", "series"):
        channels = part(torch.arange(1)).fetch([0]).columns[first.name].shape[1]  # type: ignore[union-attr]
    columns = chosen.inputs if numbers is not None else tuple(field.column for field in fields)
    column = None if judged is None else judged.column
    classes = () if labels is None else class_notes([names[i] if i >= 0 else "" for i in labels.tolist()])
    if chosen.label is not None:
        cells = [told[chosen.label][row] for row in rows.tolist()]
        several = len({*label_names(cells)} - {""})
        unnamed = (
            f"column {chosen.label!r} does not name classes ({several:,} values in {len(rows):,} rows): it is not read"
        )
        classes = (unnamed,) if labels is None else (*classes, *unknown_notes(cells, chosen.label))
    if rest := len(rows) - len(split.train) - len(split.test):
        classes = (*classes, other_parts(rest))
    once = first_rows(torch.tensor(unspread(table, rows.tolist())[1]))[0]  # an image with several texts is one
    of_images = (*form.notes, *copies_told(None if copies is None else copies[once], split.moved))
    notes = (*sheet.notes, *split.notes, *of_images, *shortest, *notes, *classes, *unread_note(chosen, holds))
    return Corpus(
        sheet.name, columns, part(split.train), part(split.test), names, form.size, channels, bad, column, notes, form.ranges,
        split.by,
    )  # fmt: skip


def _same(
    sheet: Sheet, fields: Sequence[Field], rows: Int64[Tensor, "m"]
) -> tuple[Same, Same, Int64[Tensor, "m"] | None]:
    """Which values come more than once, by column; which of them tie rows, and which rows have copies of one image for their
    first. A split follows copies by themselves: they are no ties.
    """
    values: dict[str, Sequence[str]] = {}
    named: dict[str, Sequence[str]] = {}  # the first images, copies by their own names
    pictures: list[Int64[Tensor, "m"] | None] = []
    for field in fields:
        name, item = field.column.name, field.item
        if field.column.kind == "text":
            cells = sheet.cells(field.source)
            values[name] = [str(cells[row] if item is None else cells[row][item]) for row in rows.tolist()]
        elif field.column.kind == "image":
            names, copies = same_cells(*unspread(sheet.table, rows.tolist()), field.source, field.base)
            values[name] = names if copies is None else [names[first] for first in copies.tolist()]
            if not pictures and copies is not None:
                named[name] = names
            pictures.append(copies)
    same = same_values(values)
    return same, same_values({**values, **named}) if named else same, next(iter(pictures), None)


def _check(
    sheet: Sheet,
    chosen: Chosen,
    config: DataConfig,
    good: Bool[Tensor, "n"],
    similar: Float32[Tensor, "n"] | None,
    judged: Similar | None,
    ranges: Ranges | None,
) -> tuple[tuple[str, ...], Form]:
    """What is wrong with rows, which ``good`` then leaves out; and how images are read.

    Raises:
        ValueError: If bad rows are not skipped; the message names them.
    """
    bad: list[str] = [*sheet.bad]
    unknown: list[str] = []

    def report(row: int, message: str) -> None:
        bad.append(message)
        good[row] = False

    for row in (~good).nonzero().flatten().tolist():
        cells = sheet.table[row]
        wrong = next(name for name in chosen.numbers if not abs(number_of(cells[name])) < float("inf"))
        report(row, f"{sheet.where(row)}: column {wrong!r} holds {shown(cells[wrong])}, wanted a finite number")
    if judged is not None and similar is not None:
        cells, rows = sheet.cells(judged.column), (good & similar.isnan()).nonzero().flatten().tolist()
        for row in rows:
            fault = f"{sheet.where(row)}: {judged.unjudged(cells[row])}"
            (unknown if judged.is_unknown(cells[row]) else bad).append(fault)
        good[rows] = False
    headers, sources = [], []
    for column in () if chosen.numbers else chosen.inputs:
        for row, wrong in wrong_cells(sheet.cells(column.name), column.kind) if column.kind != "image" else ():
            if good[row]:
                report(row, f"{sheet.where(row)}: column {column.name!r} {wrong}")
        if column.kind == "image":
            step = max(1, len(good) // MOST_HEADERS)
            for row in range(0, len(good), step):
                try:
                    source = image_source(sheet.table[row][column.name], sheet.base)
                    headers.append(image_header(source))
                    sources.append(source)
                except BROKEN as error:
                    where = sheet.where(row)
                    named = where if where in str(error) else f"{where}: column {column.name!r}"
                    if good[row]:
                        report(row, unreadable(named, error))
    bad, unknown = [*dict.fromkeys(bad)], [*dict.fromkeys(unknown)]  # of a line with several positives once
    if not config.skip_bad:
        refuse(bad)
    if all(column.kind != "image" for column in chosen.inputs):
        refuse_unused(given(config, "size", "pixel_range"), f"{sheet.name} holds no images")
    return (*bad, *unknown), find_form(sources, headers, config.size, config.pixel_range, ranges)


def _split(
    sheet: Sheet,
    chosen: Chosen,
    rows: Int64[Tensor, "m"],
    labels: Int64[Tensor, "m"] | None,
    groups: Int64[Tensor, "m"] | None,
    values: Sequence[Int64[Tensor, "m"]],
    copies: Int64[Tensor, "m"] | None,
    config: DataConfig,
) -> Split:
    """Positions in ``rows``: the data's own split if there is one; else as ``draw_split`` has it."""
    parts = sheet.split
    if parts is None and chosen.split is not None:
        parts = [part_name(part) for part in sheet.cells(chosen.split)]
        if "train" not in parts:
            parts = None
    if parts is None:
        pairs = any(column.role == "positive" for column in chosen.inputs)
        return draw_split(len(rows), labels, groups, values, config, pairs=pairs, copies=copies)
    refuse_unused(given(config, "test_fraction", "split_seed"), f"{sheet.name} comes with its split")
    held = held_part(parts)
    own = [parts[row] for row in rows.tolist()]
    train, test = (
        torch.tensor([i for i, part in enumerate(own) if part == name], dtype=torch.int64) for name in ("train", held)
    )
    if not len(train) or not len(test):
        raise ValueError(
            f"{sheet.name}: the split it comes with leaves {len(train)} rows to train on and {len(test)} to test on"
        )
    return own_split(train, test, config, copies)
