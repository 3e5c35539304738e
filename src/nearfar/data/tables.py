"""Numeric features with a label column, from a CSV or a Parquet file."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from nearfar.data.bad import refuse, shown
from nearfar.data.classes import are_classes, class_notes, is_missing_word, label_names
from nearfar.data.columns import is_called_image
from nearfar.data.labelled import TEST_FRACTION, LabelledData, class_ids, require, stratified_split
from nearfar.data.meanings import number_of
from nearfar.data.records import no_name_twice, read_csv

LABEL_COLUMNS = ("label", "target", "class", "y")


def read_table(
    path: Path,
    *,
    label: str | None = None,
    skip_bad: bool = False,
    standardize: bool = True,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> LabelledData:
    """Reads a table: one column is the label, every other one a numeric feature.

    Args:
        path: A ``.csv`` or ``.tsv`` file (comma, semicolon or tab; a line of column names; UTF-8), or ``.parquet``.
        label: The label's column; by default the one called label, target, class or y.
        skip_bad: Leave out rows that cannot be read (a cell that is no finite number, a label that is missing, a
            line with too few or too many cells) and list them in ``bad``.
        standardize: Subtract each feature's mean and divide by its standard deviation, both of the training
            rows, because columns in different units do not train together. A constant feature becomes 0.
        test_fraction: The part of each class to test on.
        seed: Of that split.

    Raises:
        ValueError: If the file, a row or a column cannot be used; the message names the path and the line.
    """
    read = _read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_csv
    table = read(path, label)
    features, labels, bad = _rows(path, table, skip_bad)
    if not labels:
        raise ValueError(f"{path} holds no row that can be read" + (f"; the first: {bad[0]}" if bad else ""))
    if not are_classes(labels):
        raise ValueError(
            f"{path}: the label takes {len(set(labels))} value(s) in {len(labels)} rows, so it does not name classes: "
            "pass label= (--label) the column that does"
        )
    ids, names = class_ids(labels)
    train, test = stratified_split(ids, test_fraction, seed)
    if standardize:  # before rounding to float32, which would eat the spread of years or prices
        spread = features[train].std(0, correction=0)
        features = (features - features[train].mean(0)) / spread.where(spread > 0, 1.0)
    features = features.float()
    return LabelledData(
        features[train], ids[train], features[test], ids[test], names, path.stem, tuple(bad), class_notes(labels)
    )


@dataclass(frozen=True)
class _Table:
    """What a file holds."""

    names: list[str]
    """Names of the features."""
    features: Float64[Tensor, "n d"]
    odd: dict[tuple[int, int], Any]
    """The cells that are no finite numbers, by row and feature."""
    label: str
    labels: list[Any]
    where: Callable[[int], str]
    """What to call a row."""
    bad: list[str]
    """Records that could not be read at all."""

    @property
    def texts(self) -> list[str]:
        """The features that are no numbers in most rows; missing cells say nothing."""
        left, numbers = (Counter({i: len(self.labels) for i in range(len(self.names))}) for _ in range(2))
        for (_, at), cell in self.odd.items():
            numbers[at] -= 1
            left[at] -= is_missing_word(cell)
        return [name for i, name in enumerate(self.names) if self.labels and 2 * numbers[i] <= left[i]]


def _read_csv(path: Path, label: str | None) -> _Table:
    header, lines = read_csv(path)
    at = _label_position(path, header, label)
    rows: list[list[float]] = []
    odd: dict[tuple[int, int], Any] = {}
    labels, numbers, bad = [], [], []
    for line, cells in lines:
        if isinstance(cells, str):
            bad.append(f"{path}:{line}: {cells}")
            continue
        labels.append(cells.pop(at))
        row = [number_of(cell) for cell in cells]
        odd |= {(len(rows), i): cell for i, (cell, number) in enumerate(zip(cells, row)) if not math.isfinite(number)}
        rows.append(row)
        numbers.append(line)
    names = header[:at] + header[at + 1 :]
    features = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(names))
    return _Table(names, features, odd, header[at], labels, lambda row: f"{path}:{numbers[row]}:", bad)


def _read_parquet(path: Path, label: str | None) -> _Table:
    arrow, parquet = require("pyarrow", "reading Parquet"), require("pyarrow.parquet", "reading Parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    header = list(table.column_names)
    at = _label_position(path, header, label)
    names = [name for i, name in enumerate(header) if i != at]
    columns = [table.column(i).to_pylist() for i in range(len(header)) if i != at]
    features = torch.tensor([[number_of(cell) for cell in cells] for cells in columns], dtype=torch.float64)
    features = features.reshape(len(names), len(table)).T
    missing = [(row, i) for row, i in (~features.isfinite()).nonzero().tolist()]
    odd = {(row, i): math.nan if columns[i][row] is None else columns[i][row] for row, i in missing}
    labels = table.column(at).to_pylist()
    return _Table(names, features, odd, header[at], labels, lambda row: f"{path}: row {row + 1}", [])


def _rows(path: Path, table: _Table, skip_bad: bool) -> tuple[Float64[Tensor, "n d"], list[str], list[str]]:
    """Features and label texts of the good rows, and what is wrong with the others.

    Raises:
        ValueError: For columns that are no numbers, and for bad rows unless they are skipped.
    """
    if texts := table.texts:
        raise ValueError(
            f"{path}: column {texts[0]!r} holds no numbers ({len(texts)} such: {', '.join(texts)}): "
            "features must be numeric, so encode it or take it out"
        )
    if called := [name for name in table.names if is_called_image(name)]:
        raise ValueError(
            f"{path}: column {called[0]!r} is called as images are, which measure nothing: take it out, or rename it"
        )
    labels = label_names(table.labels)
    wrong = {
        row: f"{table.where(row)} has no label in column {table.label!r}"
        + ("" if is_missing_word(cell := table.labels[row]) else f" ({shown(cell)} is none)")
        for row, name in enumerate(labels)
        if not name
    }
    for (row, at), cell in table.odd.items():
        held = f"column {table.names[at]!r} holds {shown(cell)}, wanted a finite number"
        wrong.setdefault(row, f"{table.where(row).rstrip(':')}: {held}")
    bad = [*table.bad, *(wrong[row] for row in sorted(wrong))]
    if not skip_bad:
        refuse(bad)
    kept = [row for row in range(len(labels)) if row not in wrong]
    return table.features[kept], [labels[row] for row in kept], bad


def _label_position(path: Path, header: list[str], label: str | None) -> int:
    """Where the label's column is, by its name or by the usual names."""
    no_name_twice(path, header)
    if len(header) < 2:
        raise ValueError(f"{path} has one column, {header[0]!r}: a label and at least one feature are wanted")
    if label is None:
        found = [header.index(name) for wanted in LABEL_COLUMNS for name in header if name.lower() == wanted]
        if found:
            return found[0]
        raise ValueError(
            f"{path} has no column called {', '.join(LABEL_COLUMNS)}; it has {', '.join(header)}: "
            "pass label= (--label) the one that names the class"
        )
    if label not in header:
        near = difflib.get_close_matches(label, header, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path} has no column {label!r}{meant} It has: {', '.join(header)}")
    return header.index(label)
