"""What can be read in order: text files, Parquet, tar shards, data sets of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nearfar.data import sheets
from nearfar.data.config import DataConfig
from nearfar.data.folders import held_part, part_name
from nearfar.data.lists import spread_row
from nearfar.data.records import records
from nearfar.data.whole import whole_files

# Cells that say where a record is, and what is wrong with it.
WHERE, BAD = "__where__", "__bad__"


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


def open_iterables(config: DataConfig) -> tuple[Any, Any, Path | None, str, tuple[str, ...]]:
    """The iterable to train on, that to test on, what paths are relative to, the name, and which files are left out."""
    from nearfar.data.open import is_hub_name, unknown_data

    path = Path(config.data).expanduser()
    if path.suffix.lower() == ".tar" or (path.is_dir() and sheets.shards_of(path)):
        shards = sheets.shards_of(path) if path.is_dir() else sheets.expand_shards(config.data)
        good, bad = whole_files(shards, config.skip_bad)
        found = sheets.load("webdataset", data_files={"train": [*map(str, good)]}, streaming=True)
        return found["train"], None, None, path.stem, bad
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
            found = sheets.load("parquet", data_files=named, streaming=True)
            return found["train"], found.get("test"), files[0].parent, path.stem, bad
        made = sheets.library().IterableDataset.from_generator
        both = [made(_records, gen_kwargs={"paths": parts[part]}) if parts[part] else None for part in (True, False)]
        return both[0], both[1], files[0].parent, path.stem, ()
    if not is_hub_name(config.data):
        raise ValueError(unknown_data(config.data))
    name, _, configuration = config.data.partition(":")
    found = sheets.load(name, *([configuration] if configuration else []), streaming=True)
    named = {part_name(part) or part: part for part in reversed([*found])}
    train = "train" if "train" in named else next(reversed(named))
    test = held_part(named.keys() - {train})
    return found[named[train]], found[named[test]] if test else None, None, config.data, ()


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
        except Exception as error:  # of many kinds, by what is below
            cause = error.__cause__ or error
            raise ValueError(
                f"{name} cannot be read further ({type(cause).__name__}: {cause}): mend or remove the file"
            ) from error
        yield from spread_row(sheets.flat(row), () if BAD in row else listed)
