"""Numeric features with a label column, from a CSV or a Parquet file."""

from __future__ import annotations

import difflib
import math
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from nearfar.data.labelled import TEST_FRACTION, LabelledData, class_ids, require, stratified_split
from nearfar.data.records import csv_header, csv_lines, no_name_twice, to_number

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
    features, labels, bad = read(path, label, skip_bad)
    if not labels:
        raise ValueError(f"{path} holds no row that can be read" + (f"; the first: {bad[0]}" if bad else ""))
    ids, names = class_ids(labels)
    if not 2 <= len(names) <= max(2, len(ids) // 2):
        raise ValueError(
            f"{path}: the label takes {len(names)} value(s) in {len(ids)} rows, so it does not name classes: "
            "pass label= (--label) the column that does"
        )
    train, test = stratified_split(ids, test_fraction, seed)
    if standardize:  # before rounding to float32, which would eat the spread of years or prices
        spread = features[train].std(0, correction=0)
        features = (features - features[train].mean(0)) / spread.where(spread > 0, 1.0)
    features = features.float()
    return LabelledData(features[train], ids[train], features[test], ids[test], names, path.stem, tuple(bad))


def _read_csv(path: Path, label: str | None, skip_bad: bool) -> tuple[Float64[Tensor, "n d"], list[str], list[str]]:
    """Features, label texts and what is wrong with the rows left out."""
    lines = csv_lines(path)
    header = csv_header(path, lines)
    at = _label_position(path, header, label)
    rows, labels, wrong, numeric = [], [], [], [False] * len(header)
    for line, cells in lines:
        numbers = [to_number(cell) for cell in cells]
        for i, number in enumerate(numbers if len(cells) == len(header) else []):
            numeric[i] |= number is not None
        problem = _problem(header, cells, numbers, at)
        if problem:
            wrong.append(f"{path}:{line}: {problem}")
        else:
            labels.append(cells[at].strip())
            rows.append(numbers[:at] + numbers[at + 1 :])
    text = [name for i, name in enumerate(header) if i != at and not numeric[i]]
    _check(path, text if any(numeric) else [], wrong, skip_bad)  # no number anywhere: the rows say why
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(header) - 1), labels, wrong


def _problem(header: list[str], cells: list[str], numbers: list[float | None], at: int) -> str:
    """What is wrong with a row; empty if nothing is."""
    if len(cells) != len(header):
        return f"has {len(cells)} cells where the first line names {len(header)} columns"
    if not cells[at].strip():
        return f"has no label in column {header[at]!r}"
    bad = next((i for i, number in enumerate(numbers) if number is None and i != at), None)
    return "" if bad is None else f"column {header[bad]!r} holds {cells[bad]!r}, wanted a finite number"


def _read_parquet(path: Path, label: str | None, skip_bad: bool) -> tuple[Float64[Tensor, "n d"], list[str], list[str]]:
    """Features, label texts and what is wrong with the rows left out."""
    arrow, parquet = require("pyarrow", "reading Parquet"), require("pyarrow.parquet", "reading Parquet")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    header = list(table.column_names)
    at = _label_position(path, header, label)
    kinds = arrow.types
    numeric = (kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_boolean)
    names = [name for i, name in enumerate(header) if i != at]
    text = [name for name in names if not any(is_kind(table.schema.field(name).type) for is_kind in numeric)]
    _check(path, text, [], skip_bad)
    columns = [torch.tensor(table[name].to_pandas().to_numpy("float64", na_value=math.nan)) for name in names]
    features = torch.stack(columns, 1) if columns else torch.empty(len(table), 0, dtype=torch.float64)
    labels = table[header[at]].to_pylist()
    finite, wrong, kept = features.isfinite().tolist(), [], []
    for row, (value, good) in enumerate(zip(labels, finite, strict=True)):
        if value is None or value != value or not str(value).strip():  # NaN is not equal to itself
            wrong.append(f"{path}: row {row + 1} has no label in column {header[at]!r}")
        elif not all(good):
            bad = good.index(False)
            wrong.append(
                f"{path}: row {row + 1}: column {names[bad]!r} holds {features[row, bad]:g}, wanted a finite number"
            )
        else:
            kept.append(row)
    _check(path, [], wrong, skip_bad)
    return features[kept], [str(labels[row]).strip() for row in kept], wrong


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


def _check(path: Path, text: list[str], wrong: list[str], skip_bad: bool) -> None:
    """Raises for columns of text, and for bad rows unless they are skipped."""
    if text:
        raise ValueError(
            f"{path}: column {text[0]!r} holds no numbers ({len(text)} such: {', '.join(text)}): "
            "features must be numeric, so encode it or take it out"
        )
    if wrong and not skip_bad:
        count = f" ({len(wrong)} bad rows in all)" if len(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]}{count}: mend it, or leave such rows out with skip_bad=True (--skip-bad)")
