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
from nearfar.data.archives import BAD
from nearfar.data.bad import refuse, shown
from nearfar.data.classes import class_name, label_names
from nearfar.data.columns import Holds, choose_columns, may_be_several, unread_note, what_it_holds
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column, Corpus, RawBatch
from nearfar.data.depth import Ranges
from nearfar.data.form import Form, find_form
from nearfar.data.labelled import class_ids
from nearfar.data.lists import negative_lists, spread_note, spread_row
from nearfar.data.parts import Field, TablePart, decode, image_source, make_fields
from nearfar.data.pixels import BROKEN, image_header
from nearfar.data.same import hashed, same_value, same_values
from nearfar.data.similar import Similar, find_similar
from nearfar.data.splits import MOST_TEST_ROWS
from nearfar.data.streamed import WHERE, flat_rows, open_iterables
from nearfar.names import given, refuse_unused

# Rows among which the next is drawn. Images wait in it as they are stored.
SHUFFLED = 2_000
# First rows, which tell the columns, the classes and the size of images.
SAMPLE = 1_000


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
        listed: Columns of lists of texts, each of which makes a row.
        lost: What is wrong with files, added to by the table when it meets them.
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
    listed: tuple[str, ...] = ()
    lost: list[str] = field(default_factory=list)

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
                    if not self.skip_bad:
                        refuse(bad)
                elif wrong := self.fault(row):
                    bad.append(wrong)
                else:
                    batch.append(row)
            bad += self.lost
            self.lost.clear()
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
            for row in flat_rows(shuffled, self.name, self.listed):
                empty = empty and BAD in row
                yield row
            if empty:
                raise ValueError(f"{self.name} holds no row that can be read")

    def fault(self, row: dict[str, Any]) -> str:
        """What is wrong with a row by its class, or because nobody says how alike its sides are; empty: nothing.

        Raises:
            ValueError: If that is a fault, and bad rows are not skipped.
        """
        label = None if self.label is None else row.get(self.label)
        if isinstance(label, list | dict):
            wrong = f"{where(row, self.name)}: column {self.label!r} holds {shown(label)}, wanted a class"
            if not self.skip_bad:
                refuse([wrong])
            return wrong
        if self.similar is None or not bool(self.similar.read([row.get(self.similar.column)]).isnan()):
            return ""
        cell = row.get(self.similar.column)
        wrong = f"{where(row, self.name)}: {self.similar.unjudged(cell)}"
        if not self.similar.is_unknown(cell) and not self.skip_bad:
            refuse([wrong])
        return wrong

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
            groups = _groups([rows[i] for i in kept], self.id)
        similar = None
        if self.similar is not None and not self.similar.all_alike:
            similar = self.similar.read([rows[i].get(self.similar.column) for i in kept])
        same = {
            name: torch.tensor([same_value(rows[i].get(source)) for i in kept], dtype=torch.int64)
            for name, source in self.same.items()
        }
        return RawBatch(at[kept], columns, labels, groups, similar, same, bad)


def class_of(cell: Any, classes: dict[Any, int]) -> int:
    """The class id of a cell; −1 if its name is not known."""
    return classes.get(class_name(cell), -1)


def where(row: dict[str, Any], otherwise: str) -> str:
    """What to call a row in a message."""
    if WHERE in row:
        return row[WHERE]
    return f"{row['__url__']}: {row['__key__']}" if "__url__" in row else otherwise


def open_stream(config: DataConfig, ranges: Ranges | None = None) -> Corpus:
    """Opens data that are read in order: see ``open_corpus``.

    The first thousand rows tell what the columns are, how large and how deep images are, and which classes there are; a class that
    does not come among them is unknown. Rows are held out only if the data have a test part, and 5,000 of it at most.

    Raises:
        ValueError: If the data cannot be used; the message says what of them, and the remedy.
    """
    opened = open_iterables(config)
    name, base, train, test = opened.name, opened.base, opened.train, opened.test
    train, test = sheets.undecoded(train), None if test is None else sheets.undecoded(test)
    sample, bad = _good(flat_rows(train, name, ()), SAMPLE, config.skip_bad)
    bad += opened.lost
    opened.lost.clear()
    if not sample:
        raise ValueError(f"{name} holds no row that can be read" + (f"; the first: {bad[0]}" if bad else ""))
    names = [n for n in dict.fromkeys(n for row in sample for n in row) if not n.startswith("__")]
    holds: dict[str, Holds] = {n: what_it_holds([row.get(n) for row in sample]) for n in names}
    for several in (n for n in names if may_be_several(n) and holds[n] == "text"):
        if any(isinstance(row.get(several), list) for row in sample):  # as of a table
            holds[several] = "texts"
    chosen = choose_columns(holds, config, name)
    sample = [part for row in sample for part in spread_row(row, chosen.listed)]
    if chosen.numbers:
        raise ValueError(
            f"{name}: numeric columns are scaled by means over all rows, which a stream does not know: leave streaming out"
        )
    form = _look(sample, chosen.inputs, config, base, ranges)
    negatives = {n: [row.get(n) for row in sample] for n in chosen.negatives if holds[n] != "image"}
    chosen, lists, shortest = negative_lists(chosen, negatives)
    fields = make_fields(chosen.inputs, lists, base, form)
    columns = tuple(field.column for field in fields)
    told = {n: [row.get(n) for row in sample] for n in (chosen.similar, chosen.label) if n is not None}
    judged, notes = find_similar(chosen, told, sheets.names_of_classes(train.features), config, name)
    if judged is not None and judged.column == chosen.label and config.label is None:
        chosen = replace(chosen, label=None)
    same = _same(sample, fields)
    classes, class_names = _classes(train, sample, chosen.label)
    stream = RowStream(
        train,
        fields,
        name,
        chosen.label,
        chosen.id,
        classes,
        config.skip_bad,
        judged,
        same,
        chosen.listed,
        opened.lost,
    )
    judged = None if judged is None or judged.all_alike else judged
    held = None
    if test is not None:
        rows, lost = _good(flat_rows(test, name, chosen.listed), MOST_TEST_ROWS, config.skip_bad)
        wrong = [stream.fault(row) for row in rows]
        bad += lost + [line for line in wrong if line]
        rows = [row for row, line in zip(rows, wrong) if not line]
        table = sheets.library().Dataset.from_list(rows)
        labels = torch.tensor([class_of(row.get(chosen.label), classes) for row in rows]) if chosen.label else None
        groups = _groups(rows, chosen.id)
        held = TablePart(
            table, fields, torch.arange(len(rows)), labels, groups, sheets.Numbered(f"{name} (test)"), config.skip_bad,
            None if judged is None else judged.read([row.get(judged.column) for row in rows]),
            same_values({n: [str(row.get(source)) for row in rows] for n, source in same.items()}),
        )  # fmt: skip
    column = None if judged is None else judged.column
    notes = (*form.notes, *map(spread_note, chosen.listed), *shortest, *notes, *unread_note(chosen, holds))
    return Corpus(
        name,
        columns,
        stream,
        held,
        class_names,
        form.size,
        form.channels,
        (*opened.bad, *bad),
        column,
        notes,
        form.ranges,
    )


def _same(sample: Sequence[dict[str, Any]], fields: Sequence[Field]) -> dict[str, str]:
    """The inputs in which the first rows hold a text or a path that is there twice, and their columns."""
    single = [f for f in fields if f.item is None]
    plain = [f for f in single if f.column.kind == "text" or isinstance(sample[0].get(f.source), str)]
    found = same_values({f.column.name: [str(row.get(f.source)) for row in sample] for f in plain})
    return {f.column.name: f.source for f in plain if f.column.name in found}


def _good(rows: Iterator[dict[str, Any]], most: int, skip_bad: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """The first rows, and what is wrong with those among them that cannot be read, if they are skipped."""
    first = [*islice(rows, most)]
    bad = [row[BAD] for row in first if BAD in row]
    if not skip_bad:
        refuse(bad)
    return [row for row in first if BAD not in row], bad


def _groups(rows: Sequence[dict[str, Any]], column: str | None) -> Int64[Tensor, "n"] | None:
    """A number for the id of each row; negative: it has none."""
    if column is None:
        return None
    names = [class_name(row.get(column)) for row in rows]
    return torch.tensor([hashed(name) if name else -1 for name in names], dtype=torch.int64)


def _classes(table: Any, sample: list[dict[str, Any]], column: str | None) -> tuple[dict[Any, int], tuple[str, ...]]:
    """Class id by the text of a cell, and the names."""
    if column is None:
        return {}, ()
    known = sheets.names_of_classes(table.features).get(column)
    if known is not None:
        return {str(i): i for i in range(len(known))}, known
    texts = [name for name in label_names([row.get(column) for row in sample]) if name]
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
                source = image_source(row.get(column.name), base)
                headers.append(image_header(source))
                sources.append(source)
            except BROKEN:
                continue  # met again, and named, when it is decoded
    if all(column.kind != "image" for column in columns):
        refuse_unused(given(config, "size", "pixel_range"), f"{config.data} holds no images")
    return find_form(sources, headers, config.size, config.pixel_range, ranges)
