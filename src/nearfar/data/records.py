"""Text files of records, read record by record, each with the line it starts on."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nearfar.data.lines import Line, text_lines

# A cell of a CSV file may hold a long text.
csv.field_size_limit(1 << 27)


Cells = list[str] | str
"""The cells of a record; or, as one text, what is wrong with it."""


def read_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, Cells]]]:
    """The names of the columns, and the records: the line each starts on, and its cells; empty lines are passed over.

    Where the first line has blanks before its quotation marks, they are passed over in all lines.

    Quotation marks are those of RFC 4180. Where tabs separate cells, many programs write none: there a mark that does not
    enclose a cell is a character like others, and a cell in marks may hold a tab or a line break, not both.

    Args:
        path: Separated by commas, semicolons, tabs or bars, whichever its first line has most of outside quotation marks; see
            ``text_lines``.

    Raises:
        ValueError: If its first line names no columns.
    """
    feed = _Feed(text_lines(path))
    first = re.sub(r'"[^"]*"', "", feed.lines[0].text if feed.more() else "")
    tabs = path.suffix.lower() == ".tsv"
    mark = "\t" if tabs and "\t" in first else max("\t,;|" if tabs else ",;\t|", key=first.count)
    blanks = re.search(rf'{re.escape(mark)} +"', feed.lines[0].text if feed.lines else "") is not None
    reader = csv.reader(feed, delimiter=mark, strict=True, skipinitialspace=blanks)
    line, header = 1, []
    while feed.more() and not header:
        line, header = _record(feed, reader)
    if isinstance(header, str):
        raise ValueError(f"{path}:{line}: {header}")
    header = [name.strip() for name in header]
    if not header:
        raise ValueError(f"{path} is empty: a line of column names and rows below it are wanted")
    if all(to_number(name) is not None for name in header):
        raise ValueError(f"{path}:{line}: the first line holds numbers only: put a line of column names above it")
    no_name_twice(path, header)
    return header, _records(feed, reader, header, tabs=mark == "\t")


def _records(feed: _Feed, reader: Iterator[list[str]], header: list[str], tabs: bool) -> Iterator[tuple[int, Cells]]:
    while feed.more():
        line, cells = _tabbed(feed, reader, len(header)) if tabs else _record(feed, reader)
        if isinstance(cells, list) and cells and len(cells) != len(header):
            last = feed.taken[-1].number
            span = f"; its quotation marks reach to line {last}" if last > line else ""
            cells = f"has {len(cells)} cells where the first line names {len(header)} columns{span}"
        if cells:
            yield line, cells


class _Feed(Iterator[str]):
    """Lines for a reader of CSV, which may give back those that it should not have taken."""

    def __init__(self, source: Iterator[Line]) -> None:
        self.lines: deque[Line] = deque()
        self.taken: list[Line] = []
        self._source = source

    def more(self) -> bool:
        """Whether there is another line; what was taken before is settled."""
        self.taken.clear()
        if not self.lines:
            self.lines.extend(islice(self._source, 1))
        return bool(self.lines)

    def __next__(self) -> str:
        self.taken.append(self.lines.popleft() if self.lines else next(self._source))
        return self.taken[-1].text

    def keep(self, count: int) -> None:
        """Gives back all but the first so many of the lines taken."""
        self.lines.extendleft(reversed(self.taken[count:]))
        del self.taken[count:]


def _record(feed: _Feed, reader: Iterator[list[str]]) -> tuple[int, Cells]:
    """One record. Where its quotation marks are broken, its first line alone is bad, and the next begins another."""
    line = feed.lines[0].number
    try:
        cells = next(reader)
    except csv.Error as error:
        feed.keep(1)
        return line, f"cannot be read as CSV ({error}): close its quotation marks"
    return line, next((taken.wrong for taken in feed.taken if taken.wrong), "") or cells


ENCLOSED = re.compile(r'"(?:[^"]|"")*"')


def _tabbed(feed: _Feed, reader: Iterator[list[str]], columns: int) -> tuple[int, Cells]:
    """One record of cells that tabs separate."""
    number, text, wrong = feed.lines[0]
    cells = text.rstrip("\r\n").split("\t")
    if '"' in text and not wrong:
        stray = any(cell.startswith('"') and not ENCLOSED.fullmatch(cell) for cell in cells)
        if stray or len(cells) != columns:
            found = _record(feed, reader)[1]
            whole = isinstance(found, list) and len(found) == columns
            if whole and not any("\t" in cell and ("\n" in cell or "\r" in cell) for cell in found):
                return number, found
            feed.keep(0)
        cells = [cell[1:-1].replace('""', '"') if ENCLOSED.fullmatch(cell) else cell for cell in cells]
    next(feed)
    return number, wrong or ([] if cells == [""] else cells)


def no_name_twice(path: Path, header: Sequence[str]) -> None:
    """Raises ``ValueError`` if two columns have one name."""
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path} has two columns called {twice!r}: rename one")


FLAGS = {"true": 1.0, "false": 0.0}


def to_number(cell: str) -> float | None:
    """A cell as a finite number, true and false as 1 and 0; None if it is none."""
    try:
        value = float(cell)
    except ValueError:
        return FLAGS.get(cell.strip().lower())
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
    header, lines = read_csv(path)
    for line, cells in lines:
        if isinstance(cells, str):
            yield line, cells
        else:
            yield line, {name: cell if cell.strip() else None for name, cell in zip(header, cells)}


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, text, wrong in text_lines(path):
        if not text.strip():
            continue
        if line == 1 and text.lstrip().startswith("["):
            raise ValueError(f"{path} is one JSON array: wanted one object a line (jq -c '.[]' writes it so)")
        try:
            value = wrong or json.loads(text)
            if "\\ud" in text.lower():
                json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            wrong = value = f"is not JSON ({error})"
        except UnicodeEncodeError:
            wrong = value = "holds half a surrogate pair, which is no text"
        if not wrong and not isinstance(value, dict):
            value = f"holds a {type(value).__name__}, wanted an object {{…}}"
        yield line, {name.strip(): cell for name, cell in value.items()} if isinstance(value, dict) else value


CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
