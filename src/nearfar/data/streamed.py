"""What can be read in order: text files, Parquet, tar shards, data sets of the Hugging Face Hub."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nearfar.data import sheets
from nearfar.data.archives import BAD
from nearfar.data.config import DataConfig
from nearfar.data.folders import held_part, part_name
from nearfar.data.lists import spread_row
from nearfar.data.records import records
from nearfar.data.whole import whole_files

# The cell that says where a record is.
WHERE = "__where__"


def _records(paths: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        try:
            for line, record in records(Path(path)):
                if isinstance(record, str):
                    yield {BAD: f"{path}:{line}: {record}"}
                else:
                    yield {**record, WHERE: f"{path}:{line}"}
        except ValueError as error:  # of the file as a whole
            yield {BAD: str(error)}


@dataclass(frozen=True)
class Iterables:
    """What is read in order."""

    train: Any
    """A ``datasets.IterableDataset``."""
    test: Any
    name: str
    base: Path | None = None
    """What image paths are relative to."""
    bad: tuple[str, ...] = ()
    """Which files are left out."""
    lost: list[str] = field(default_factory=list)
    """What is wrong with files, added to when it is met while reading."""


class BrokenFileError(ValueError):
    """A file that cannot be read to its end; the message names it."""


def open_iterables(config: DataConfig) -> Iterables:
    """Opens what can be read in order.

    Raises:
        ValueError: If it is nothing that can.
    """
    from nearfar.data.open import is_hub_name, unknown_data

    path = Path(config.data).expanduser()
    if path.suffix.lower() == ".tar" or (path.is_dir() and sheets.shards_of(path)):
        shards = sheets.shards_of(path) if path.is_dir() else sheets.expand_shards(config.data)
        good, bad = whole_files(shards, config.skip_bad)
        found = sheets.load("webdataset", data_files={"train": [*map(str, good)]}, streaming=True)
        return Iterables(found["train"], None, path.stem, bad=bad)
    if path.exists():
        files, split = sheets.files_of(path) if path.is_dir() else ([path], [])
        if not files or any(file.suffix.lower() not in sheets.TABLE_SUFFIXES for file in files):
            raise ValueError(f"{path} cannot be streamed: wanted tables, tar shards or a Hub name; leave streaming out")
        parquet = files[0].suffix.lower() in sheets.PARQUET_SUFFIXES
        good, bad = whole_files(files, config.skip_bad) if parquet else (files, ())
        parts = {
            part: [
                str(f) for f, p in zip(files, split or ["train"] * len(files)) if (p == "train") is part and f in good
            ]
            for part in (True, False)
        }
        if parquet:
            named = {name: parts[part] for name, part in (("train", True), ("test", False)) if parts[part]}
            found, lost = _parquet(named, config.skip_bad)
            return Iterables(found["train"], found.get("test"), path.stem, files[0].parent, bad, lost)
        made = sheets.library().IterableDataset.from_generator
        both = [made(_records, gen_kwargs={"paths": parts[part]}) if parts[part] else None for part in (True, False)]
        return Iterables(both[0], both[1], path.stem, files[0].parent)
    if not is_hub_name(config.data):
        raise ValueError(unknown_data(config.data))
    name, _, configuration = config.data.partition(":")
    found = sheets.load(name, *([configuration] if configuration else []), streaming=True)
    named = {part_name(part) or part: part for part in reversed([*found])}
    train = "train" if "train" in named else next(reversed(named))
    test = held_part(named.keys() - {train})
    return Iterables(found[named[train]], found[named[test]] if test else None, config.data)


def _parquet(data_files: dict[str, list[str]], skip_bad: bool) -> tuple[Any, list[str]]:
    """Parquet files that are read in order, and a list that what is wrong with them is added to when it is met.

    Args:
        data_files: Paths, by part.
        skip_bad: Read on after a file that is broken within; otherwise that is an error that names it.
    """
    builder = sheets.library().load_dataset_builder("parquet", data_files=data_files)
    tables, lost = builder._generate_tables, []
    if [*inspect.signature(tables).parameters] != [
        "files",
        "row_groups_list",
    ]:  # another version, whose errors stay its own
        return builder.as_streaming_dataset(), lost

    def each(files: Sequence[str], row_groups_list: Sequence[Any]) -> Iterator[Any]:
        for at, (file, groups) in enumerate(zip(files, row_groups_list)):
            try:
                for key, rows in tables([file], [groups]):
                    yield replace(key, original_shard_id=at), rows
            except Exception as error:  # of many kinds, by what is below
                told = f"{file} cannot be read further ({type(error).__name__}: {' '.join(str(error).split())})"
                if not skip_bad:
                    mend = "get it anew, or leave such files out with skip_bad=True (--skip-bad)"
                    raise BrokenFileError(f"{told}: {mend}") from error
                lost.append(told)

    builder._generate_tables = each
    return builder.as_streaming_dataset(), lost


def flat_rows(table: Any, name: str, listed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of an iterable, whose nested cells and lists are taken apart.

    Raises:
        ValueError: If the library that reads them fails on one.
    """
    rows = iter(table)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except BrokenFileError:
            raise
        except Exception as error:  # of many kinds, by what is below
            cause = error.__cause__ or error
            raise ValueError(
                f"{name} cannot be read further ({type(cause).__name__}: {cause}): mend or remove the file"
            ) from error
        if not row.get(BAD, True):
            del row[BAD]
        yield from spread_row(sheets.flat(row), () if BAD in row else listed)
