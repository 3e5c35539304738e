"""What a file, a folder or a Hub data set holds, row by row: nothing is decoded, and no column has a meaning yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nearfar.data.archives import BAD, hidden_notes, load_shards
from nearfar.data.bad import name_fault, printable, refuse
from nearfar.data.described import Described
from nearfar.data.folders import Walk, by_part, find_layout, held_part, is_hidden, part_name, untrained_note, visible
from nearfar.data.labelled import require
from nearfar.data.pixels import SUFFIXES
from nearfar.data.records import CSV_SUFFIXES, JSON_SUFFIXES
from nearfar.data.whole import whole_files

PARQUET_SUFFIXES = (".parquet", ".pq")
TABLE_SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES)


@dataclass(frozen=True)
class Sheet:
    """Rows by column."""

    name: str
    table: Any
    """A ``datasets.Dataset``: ``table[rows]`` gives ``{column: cells}``; images are paths or ``{"bytes", "path"}``."""
    where: Callable[[int], str]
    """What to call a row in a message."""
    base: Path | None = None
    """What image paths are relative to."""
    split: Sequence[str] | None = None
    """The part that the data themselves put each row in."""
    bad: tuple[str, ...] = ()
    """Records that could not be read and were left out."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of columns that hold numbers of classes."""
    notes: tuple[str, ...] = ()
    """What was passed over or decided, in words."""

    def cells(self, column: str) -> list[Any]:
        """All cells of a column."""
        return self.table[column][:]


@dataclass(frozen=True)
class Cells:
    """Rows called by what some of their cells hold."""

    table: Any
    pattern: str

    def __call__(self, row: int) -> str:
        """Where a row is."""
        return self.pattern.format(**self.table[row], row=row + 1)


def library(why: str = "reading data to train on") -> Any:
    """Hugging Face ``datasets``, or an error that says how to install it."""
    return require("datasets", why, "train")


def from_parquet(paths: Sequence[Path], name: str, skip_bad: bool, split: Sequence[str] = ()) -> Sheet:
    """Reads Parquet files, which are kept in memory-mapped form in the cache of ``datasets``."""
    found, bad = _load_files("parquet", dict(zip(paths, split or ["train"] * len(paths))), skip_bad)
    return replace(_from_parts(found, name, paths[0].parent, bool(split)), bad=bad)


def from_shards(paths: Sequence[Path], name: str, skip_bad: bool) -> Sheet:
    """Reads WebDataset shards: tar files in which files of one name make a row, their endings its columns."""
    found, bad = _load_files("webdataset", dict.fromkeys(paths, "train"), skip_bad)
    sheet = _from_parts(found, name, None, False)
    wrong = sheet.table[BAD][:]
    table = sheet.table.select([row for row, what in enumerate(wrong) if not what])
    if not len(table):
        raise ValueError(f"{name} holds no row that can be read" + (f"; the first: {wrong[0]}" if wrong else ""))
    where = Cells(table.select_columns(["__url__", "__key__"]), "{__url__}: {__key__}")
    bad = (*bad, *filter(None, wrong))
    return replace(sheet, table=table, where=where, bad=bad, notes=hidden_notes(paths))


def _load_files(kind: str, part_of: Mapping[Path, str], skip_bad: bool) -> tuple[Any, tuple[str, ...]]:
    """What files hold, by part, and what is wrong with those that cannot be read."""
    good, bad = whole_files([*part_of], skip_bad)

    def loaded(files: Sequence[Path]) -> Any:
        parts: dict[str, list[str]] = {}
        for file in files:
            parts.setdefault(part_of[file], []).append(str(file))
        return load(kind, data_files=parts)

    try:
        return loaded(good), bad
    except ValueError:
        faults = {}
        for file in good if len(good) > 1 else ():  # which of them is it?
            try:
                loaded([file])
            except ValueError as error:
                faults[file] = str(error)
        if not faults:
            raise
        if not skip_bad:
            refuse([*faults.values()], "files")
        good = [file for file in good if file not in faults]
        if not good:
            raise
        return loaded(good), (*bad, *faults.values())


def from_hub(name: str) -> Sheet:
    """Reads a data set of the Hugging Face Hub, ``owner/name`` or ``owner/name:configuration``, or a folder laid out as one."""
    if Path(name).is_dir():
        return _from_parts(load(name), Path(name).name, None, True)
    path, _, configuration = name.partition(":")
    try:
        found = load(path, *([configuration] if configuration else []))
    except ValueError as error:
        raise ValueError(f"{name} is no path here, and the Hugging Face Hub did not give it: {error}") from error
    return _from_parts(found, name, None, True)


def load(*arguments: Any, **options: Any) -> Any:
    """``datasets.load_dataset``, quietly; what goes wrong there is a ``ValueError`` that says where."""
    datasets = library()
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        if arguments == ("webdataset",):
            return load_shards(datasets, **options)
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:  # of a dozen kinds, by what is below
        cause = error.__cause__ or error
        files = [file for part in options.get("data_files", {}).values() for file in part]
        why = " ".join(str(cause).split())
        what = files[0] if len(files) == 1 else f"one of {len(files)} files ({files[0]} …)" if files else arguments[0]
        raise ValueError(f"{what} cannot be read ({type(cause).__name__}: {why})") from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _from_parts(parts: Any, name: str, base: Path | None, own: bool) -> Sheet:
    """The training part and the test part of a ``DatasetDict``, one below the other."""
    named = {part_name(part) or part: part for part in reversed([*parts])}
    train = "train" if "train" in named else next(reversed(named))
    test = held_part(named.keys() - {train}) if own else None
    chosen = [named[part] for part in (train, test) if part]
    split = [part for part in (train, test) if part for _ in range(len(parts[named[part]]))] if test else None
    table = undecoded(library().concatenate_datasets([parts[part] for part in chosen]))
    return Sheet(name, table, Numbered(name), base, split, class_names=names_of_classes(table.features))


@dataclass(frozen=True)
class Numbered:
    """Rows called by their number."""

    name: str

    def __call__(self, row: int) -> str:
        """Where a row is."""
        return f"{self.name}: row {row + 1}"


def names_of_classes(features: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """The names behind columns of class numbers."""
    return {name: tuple(f.names) for name, f in (features or {}).items() if isinstance(f, library().ClassLabel)}


def undecoded(table: Any) -> Any:
    """The same with images as they are stored, and the members of a nested column as columns."""
    datasets = library()
    features = dict(table.features or {})
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    nested = [name for name, f in features.items() if isinstance(f, dict)]
    if nested and isinstance(table, datasets.Dataset):
        members = table.select_columns(nested).flatten()
        table = datasets.concatenate_datasets([table.remove_columns(nested), members], axis=1)
    return table


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the members of nested cells as cells of their own, as in ``undecoded``; images stay whole."""
    found: dict[str, Any] = {}
    for name, cell in row.items():
        if isinstance(cell, dict) and not cell.keys() & {"bytes", "path"}:
            found |= {f"{name}.{inner}": value for inner, value in cell.items()}
        else:
            found[name] = cell
    return found


def from_images(folder: Path, name: str, described: Described) -> Sheet:
    """Lists the images of a folder: ``folder/class/*.png``, with ``train`` and ``test`` above the classes or not, or flat."""
    walk = Walk(described.left)
    layout = find_layout(folder, walk)
    test = layout.test
    paths, labels, split, bad = [], [], [], []
    for part, place in (("train", layout.train), ("test", test)):
        for path, label in _listed(place, walk) if place else ():
            if fault := name_fault(path):
                bad.append(f"{printable(path)}: {fault}")
                continue
            paths.append(str(path))
            labels.append(label)
            split.append(part)
    if bad and not paths:
        raise ValueError(f"none of {len(bad)} images can be read; the first: {bad[0]}")
    if not paths:
        raise ValueError(
            f"{folder} holds no image: files ending in {', '.join(SUFFIXES)} are wanted in it, or in a sub-folder a class"
        )
    columns: dict[str, list[Any]] = {"image": paths}
    if any(label is not None for label in labels):
        columns["label"] = labels
    table = library().Dataset.from_dict(columns)
    of_part = {
        part: {label for label, own in zip(labels, split) if label and own == part} for part in ("train", "test")
    }
    untrained = untrained_note(of_part["test"] - of_part["train"])
    where, notes = (
        Cells(table.select_columns(["image"]), "{image}"),
        (*described.notes, *layout.notes, *walk.notes(), *untrained),
    )
    return Sheet(name, table, where, None, split if test else None, tuple(bad), notes=notes)


def _listed(folder: Path, walk: Walk) -> Iterator[tuple[Path, str | None]]:
    """Image files with the sub-folder they are in; None for those in no sub-folder."""
    for path in walk.files(folder, below=False):
        yield path, None
    for below in walk.image_folders(folder):
        for path in walk.files(below):
            yield path, below.name


def expand_shards(pattern: str) -> list[Path]:
    """The tar files of a pattern: a path, a glob, or numbers in braces such as ``shards-{000..003}.tar``.

    Raises:
        ValueError: If one of the numbered shards is missing, or there is none.

    Example:
        >>> expand_shards("none-{0..1}.tar")
        Traceback (most recent call last):
        ValueError: none-0.tar is missing: none-{0..1}.tar names 2 shards
    """
    names = [pattern]
    while match := re.search(r"\{(\d+)\.\.(\d+)\}", names[0]):
        first, last = match.groups()
        span = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
        names = [re.sub(r"\{\d+\.\.\d+\}", number, name, count=1) for name in names for number in span]
    found = [Path(name).expanduser() for name in names]
    if len(found) == 1 and not found[0].exists():
        anchor = Path(found[0].anchor) if found[0].is_absolute() else Path()
        given = found[0]
        found = sorted(path for path in anchor.glob(str(given.relative_to(anchor))) if not is_hidden(path.name))
        if not found:
            raise ValueError(f"no file is called {pattern}: wanted tar shards")
    for path in found:
        if not path.exists():
            raise ValueError(f"{path} is missing: {pattern} names {len(found)} shards")
    return found


def files_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The tables in a folder, and the part that each is by its name: ``train.csv``, ``test-00000-of-00001.parquet``."""
    paths = [path for path in visible(folder) if path.suffix.lower() in TABLE_SUFFIXES]
    return by_part(paths, [part_name(re.split(r"[^a-z]", path.stem.lower())[0]) for path in paths])


def shards_of(folder: Path) -> list[Path]:
    """The tar files in a folder, by name."""
    return [path for path in visible(folder) if path.suffix == ".tar"]
