"""Text files of records, read record by record, each with the line it starts on."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# A cell of a CSV file may hold a long text.
csv.field_size_limit(1 << 27)


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line each record starts on, and its cells; empty lines are passed over.

    Args:
        path: UTF-8, separated by commas, semicolons, tabs or bars, whichever its first line has most of outside quotation marks.

    Raises:
        ValueError: If it is not UTF-8, or a quotation mark is not closed.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        line = 1
        try:
            first = re.sub(r'"[^"]*"', "", file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t|", key=first.count), strict=True)
            for cells in reader:
                if cells:
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}:{line}: cannot be read as CSV ({error}): close its quotation marks") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text (byte {error.start}: {error.reason}): save it so") from error


def csv_header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> list[str]:
    """The names of the columns, from the first of the lines.

    Raises:
        ValueError: If there is no line, or it holds numbers only.
    """
    _, header = next(lines, (0, []))
    header = [name.strip() for name in header]
    if not header:
        raise ValueError(f"{path} is empty: a line of column names and rows below it are wanted")
    if all(to_number(name) is not None for name in header):
        raise ValueError(f"{path}:1: the first line holds numbers only: put a line of column names above it")
    return header


def no_name_twice(path: Path, header: Sequence[str]) -> None:
    """Raises ``ValueError`` if two columns have one name."""
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path} has two columns called {twice!r}: rename one")


def to_number(cell: str) -> float | None:
    """A cell as a finite number; None if it is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The records of a CSV, TSV or JSONL file: the line, and the cells by column, or what is wrong with the record.

    An empty cell of a CSV file is None, the others are texts.

    Raises:
        ValueError: If the file as a whole cannot be read.
    """
    if path.suffix.lower() in JSON_SUFFIXES:
        yield from _json_records(path)
        return
    lines = csv_lines(path)
    header = csv_header(path, lines)
    no_name_twice(path, header)
    for line, cells in lines:
        if len(cells) == len(header):
            yield line, {name: cell if cell.strip() else None for name, cell in zip(header, cells)}
        else:
            yield line, f"has {len(cells)} cells where the first line names {len(header)} columns"


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            if line == 1 and raw.lstrip().startswith(b"["):
                raise ValueError(f"{path} is one JSON array: wanted one object a line (jq -c '.[]' writes it so)")
            try:
                value = json.loads(raw.decode("utf-8-sig"))
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                yield line, f"is not JSON ({error})"
                continue
            yield line, value if isinstance(value, dict) else f"holds a {type(value).__name__}, wanted an object {{…}}"


CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
