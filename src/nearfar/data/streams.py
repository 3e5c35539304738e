"""Data that are read in order and never counted: larger than the memory, the disk, or a patience with downloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.data import sheets
from nearfar.data.columns import choose_columns, what_it_holds
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column, Corpus, RawBatch
from nearfar.data.depth import Ranges
from nearfar.data.folders import TEST_NAMES
from nearfar.data.form import Form, find_form
from nearfar.data.labelled import class_ids
from nearfar.data.parts import Field, TablePart, decode, image_source, make_fields
from nearfar.data.pixels import BROKEN, image_header
from nearfar.data.records import records
from nearfar.data.same import hashed, same_value, same_values
from nearfar.data.similar import Similar, find_similar
from nearfar.data.splits import MOST_TEST_ROWS
from nearfar.names import given, refuse_unused

# Rows among which the next is drawn. Images wait in it as they are stored.
SHUFFLED = 2_000
# First rows, which tell the columns, the classes and the size of images.
SAMPLE = 1_000
# Cells that say where a record is, and what is wrong with it.
WHERE, BAD = "__where__", "__bad__"


@dataclass(frozen=True)
class RowStream:
    """Rows of an iterable data set, shuffled in a window, decoded batch by batch: see ``Stream``.

    A rank reads what all ranks read and decodes its own part, so that the ranks' batches together are one process's.

    Args:
        table: A ``datasets.IterableDataset``.
        fields: The inputs, and how each is read.
        name: What to call the data in messages.
        label: The column of classes.
        id: The column of identities.
        classes: Class id by name; other names are unknown (−1).
        skip_bad: Leave out what cannot be decoded, and list it in ``RawBatch.bad``.
        similar: How the column is read that says how alike the two sides of a row are.
        same: Inputs with values that come more than once: column name to the column of the table.
    """

    table: Any
    fields: tuple[Field, ...]
    name: str
    label: str | None = None
    id: str | None = None
    classes: dict[Any, int] = field(default_factory=dict)
    skip_bad: bool = False
    similar: Similar | None = None
    same: Mapping[str, str] = field(default_factory=dict)

    def batches(
        self, batch_size: int, *, seed: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[RawBatch]:
        """Batches for ever from number ``start``; those before it are read and passed over."""
        rows, whole = self._rows(seed), batch_size * world
        for step in count():
            batch: list[dict[str, Any]] = []
            bad: list[str] = []
            while len(batch) < whole:
                row = next(rows)
                if BAD in row:
                    bad.append(row[BAD])
                elif wrong := self._unjudged(row):
                    if not self.skip_bad:
                        raise ValueError(f"{wrong}: mend it, or leave it out with skip_bad=True (--skip-bad)")
                    bad.append(wrong)
                else:
                    batch.append(row)
            if step >= start:
                first = rank * batch_size
                decoded = self._decoded(batch[first : first + batch_size], step * whole + first)
                yield replace(decoded, bad=(*bad, *decoded.bad)) if rank == 0 else decoded  # once, not by every rank

    def _rows(self, seed: int) -> Iterator[dict[str, Any]]:
        """Rows for ever, each epoch in another order. A batch may begin in one epoch and end in the next."""
        shuffled = self.table.shuffle(seed=seed, buffer_size=SHUFFLED)
        for epoch in count():
            shuffled.set_epoch(epoch)
            empty = True
            for row in shuffled:
                empty = empty and BAD in row
                yield sheets.flat(row)
            if empty:
                raise ValueError(f"{self.name} holds no row that can be read")

    def _unjudged(self, row: dict[str, Any]) -> str:
        """What is wrong with a row of which nobody says how alike its sides are."""
        if self.similar is None or not bool(self.similar.read([row.get(self.similar.column)]).isnan()):
            return ""
        return f"{where(row, self.name)}: column {self.similar.column!r} does not say how alike the sides are"

    def _decoded(self, rows: list[dict[str, Any]], first: int) -> RawBatch:
        def name(at: int) -> str:
            return where(rows[at - first], f"{self.name}: row {at} of the stream")

        cells = {field.source: [row.get(field.source) for row in rows] for field in self.fields}
        at = torch.arange(first, first + len(rows))
        columns, kept, bad = decode(self.fields, cells, at.tolist(), name, self.skip_bad)
        labels = groups = None
        if self.label is not None:
            labels = torch.tensor([class_of(rows[i].get(self.label), self.classes) for i in kept], dtype=torch.int64)
        if self.id is not None:
            ids = [-1 if rows[i].get(self.id) is None else hashed(rows[i][self.id]) for i in kept]
            groups = torch.tensor(ids, dtype=torch.int64)
        similar = None if self.similar is None else self.similar.read([rows[i].get(self.similar.column) for i in kept])
        same = {
            name: torch.tensor([same_value(rows[i].get(source)) for i in kept], dtype=torch.int64)
            for name, source in self.same.items()
        }
        return RawBatch(at[kept], columns, labels, groups, similar, same, bad)


def class_of(cell: Any, classes: dict[Any, int]) -> int:
    """The class id of a cell; −1 if its name is not known."""
    return classes.get("" if cell is None else str(cell).strip(), -1)


def where(row: dict[str, Any], otherwise: str) -> str:
    """What to call a row in a message."""
    if WHERE in row:
        return row[WHERE]
    return f"{row['__url__']}: {row['__key__']}" if "__url__" in row else otherwise


def _records(paths: list[str], skip_bad: bool) -> Iterator[dict[str, Any]]:
    for path in paths:
        for line, record in records(Path(path)):
            if not isinstance(record, str):
                yield {**record, WHERE: f"{path}:{line}"}
            elif skip_bad:
                yield {BAD: f"{path}:{line}: {record}"}
            else:
                raise ValueError(f"{path}:{line}: {record}: mend it, or leave it out with skip_bad=True (--skip-bad)")


def _open(config: DataConfig) -> tuple[Any, Any, Path | None, str]:
    """The iterable to train on, that to test on, what paths are relative to, and the name."""
    from nearfar.data.open import is_hub_name, unknown_data

    path = Path(config.data).expanduser()
    if path.suffix.lower() == ".tar" or (path.is_dir() and sheets.shards_of(path)):
        shards = sheets.shards_of(path) if path.is_dir() else sheets.expand_shards(config.data)
        files = [str(shard) for shard in shards]
        return sheets.load("webdataset", data_files={"train": files}, streaming=True)["train"], None, None, path.stem
    if path.exists():
        files, split = sheets.files_of(path) if path.is_dir() else ([path], [])
        if not files or any(file.suffix.lower() not in sheets.TABLE_SUFFIXES for file in files):
            raise ValueError(f"{path} cannot be streamed: wanted tables, tar shards or a Hub name; leave streaming out")
        parts = {
            part: [str(f) for f, p in zip(files, split or ["train"] * len(files)) if (p == "train") is part]
            for part in (True, False)
        }
        if files[0].suffix.lower() in sheets.PARQUET_SUFFIXES:
            named = {name: parts[part] for name, part in (("train", True), ("test", False)) if parts[part]}
            found = sheets.load("parquet", data_files=named, streaming=True)
            return found["train"], found.get("test"), files[0].parent, path.stem
        made = sheets.library().IterableDataset.from_generator
        both = [
            made(_records, gen_kwargs={"paths": parts[part], "skip_bad": config.skip_bad}) if parts[part] else None
            for part in (True, False)
        ]
        return both[0], both[1], files[0].parent, path.stem
    if not is_hub_name(config.data):
        raise ValueError(unknown_data(config.data))
    name, _, configuration = config.data.partition(":")
    found = sheets.load(name, *([configuration] if configuration else []), streaming=True)
    train = "train" if "train" in found else next(iter(found))
    test = next((part for part in TEST_NAMES if part in found and part != train), None)
    return found[train], found[test] if test else None, None, config.data


def open_stream(config: DataConfig, ranges: Ranges | None = None) -> Corpus:
    """Opens data that are read in order: see ``open_corpus``.

    The first thousand rows tell what the columns are, how large and how deep images are, and which classes there are; a class that
    does not come among them is unknown. Rows are held out only if the data have a test part, and 5,000 of it at most.

    Raises:
        ValueError: If the data cannot be used; the message says what of them, and the remedy.
    """
    train, test, base, name = _open(config)
    train, test = sheets.undecoded(train), None if test is None else sheets.undecoded(test)
    sample, bad = _good(train, SAMPLE)
    if not sample:
        raise ValueError(f"{name} holds no row that can be read" + (f"; the first: {bad[0]}" if bad else ""))
    names = [column for column in sample[0] if not column.startswith("__")]
    chosen = choose_columns({n: what_it_holds([row.get(n) for row in sample]) for n in names}, config, name)
    if chosen.numbers:
        raise ValueError(
            f"{name}: numeric columns are scaled by means over all rows, which a stream does not know: leave streaming out"
        )
    form = _look(sample, chosen.inputs, config, base, ranges)
    lists = {name: [row.get(name) for row in sample] for name in names if isinstance(sample[0][name], list)}
    fields = make_fields(chosen.inputs, lists, base, form)
    columns = tuple(field.column for field in fields)
    told = {n: [row.get(n) for row in sample] for n in (chosen.similar, chosen.label) if n is not None}
    judged = find_similar(chosen, told, sheets.names_of_classes(train.features), config, name)
    if judged is not None and judged.column == chosen.label and config.label is None:
        chosen = replace(chosen, label=None)
    same = _same(sample, fields)
    classes, class_names = _classes(train, sample, chosen.label)
    held = None
    if test is not None:
        rows, lost = _good(test, MOST_TEST_ROWS)
        bad += lost
        if judged is not None:
            known = (~judged.read([row.get(judged.column) for row in rows]).isnan()).tolist()
            rows = [row for row, keep in zip(rows, known) if keep]
        table = sheets.library().Dataset.from_list(rows)
        labels = torch.tensor([class_of(row.get(chosen.label), classes) for row in rows]) if chosen.label else None
        groups = _groups(rows, chosen.id)
        held = TablePart(
            table, fields, torch.arange(len(rows)), labels, groups, sheets.Numbered(f"{name} (test)"), config.skip_bad,
            None if judged is None else judged.read([row.get(judged.column) for row in rows]),
            same_values({n: [str(row.get(source)) for row in rows] for n, source in same.items()}),
        )  # fmt: skip
    stream = RowStream(train, fields, name, chosen.label, chosen.id, classes, config.skip_bad, judged, same)
    column = None if judged is None else judged.column
    return Corpus(
        name, columns, stream, held, class_names, form.size, form.channels, tuple(bad), column, form.notes, form.ranges
    )


def _same(sample: Sequence[dict[str, Any]], fields: Sequence[Field]) -> dict[str, str]:
    """The inputs in which the first rows hold a text or a path that is there twice, and their columns."""
    single = [f for f in fields if f.item is None]
    plain = [f for f in single if f.column.kind == "text" or isinstance(sample[0].get(f.source), str)]
    found = same_values({f.column.name: [str(row.get(f.source)) for row in sample] for f in plain})
    return {f.column.name: f.source for f in plain if f.column.name in found}


def _good(table: Any, most: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The first rows, and what is wrong with those among them that cannot be read."""
    first = [sheets.flat(row) for row in islice(table, most)]
    return [row for row in first if BAD not in row], [row[BAD] for row in first if BAD in row]


def _groups(rows: Sequence[dict[str, Any]], column: str | None) -> Int64[Tensor, "n"] | None:
    return (
        None
        if column is None
        else torch.tensor([-1 if row.get(column) is None else hashed(row[column]) for row in rows])
    )


def _classes(table: Any, sample: list[dict[str, Any]], column: str | None) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Class id by the text of a cell, and the names."""
    if column is None:
        return {}, ()
    known = sheets.names_of_classes(table.features).get(column)
    if known is not None:
        return {str(i): i for i in range(len(known))}, known
    texts = [str(row[column]).strip() for row in sample if row.get(column) is not None]
    names = class_ids(texts)[1] if texts else ()
    return {name: i for i, name in enumerate(names)}, names


def _look(
    sample: list[dict[str, Any]],
    columns: Sequence[Column],
    config: DataConfig,
    base: Path | None,
    ranges: Ranges | None,
) -> Form:
    """How images are read."""
    headers, sources = [], []
    for column in columns:
        for row in sample if column.kind == "image" else ():
            try:
                source = image_source(row.get(column.name) or "", base)
                headers.append(image_header(source))
                sources.append(source)
            except BROKEN:
                continue  # met again, and named, when it is decoded
    if all(column.kind != "image" for column in columns):
        refuse_unused(given(config, "size"), f"{config.data} holds no images")
    return find_form(sources, headers, config.size, config.pixel_range, ranges)
