"""Which tables tell of the images of a folder: ``metadata.csv`` in it, or in its ``train`` and ``test`` folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nearfar.data.bad import printable
from nearfar.data.folders import TEST_NAMES, by_part, held_part, is_hidden, is_image, part_name

# As Hugging Face's image folders have it.
METADATA_BELOW = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
METADATA = (*METADATA_BELOW, "metadata.tsv", "metadata.ndjson", "metadata.json", "metadata.pq")


@dataclass(frozen=True)
class Described:
    """The tables beside the images of a folder."""

    tables: Sequence[Path] = ()
    """Those that tell of the images; none: folders do."""
    parts: Sequence[str] = ()
    """The part that each is of, if there are a training part and a test part."""
    left: Sequence[Path] = ()
    """Those that tell of some of the images only, and are not read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over, in words."""
        if not self.left:
            return ()
        tables = "tables" if len(self.left) > 1 else "table"
        said = f"passed over {len(self.left):,} {tables} that tell{'s' * (len(self.left) == 1)} of some images only, such as "
        return (printable(f"{said}{self.left[0]}"),)


def find_described(folder: Path) -> Described:
    """The tables beside the images of a folder, those of the training part first.

    One in the folder itself counts alone. Otherwise there may be one in each folder below, such as ``train/metadata.csv``
    beside ``test/metadata.csv``, as long as they tell of all images of these parts. Those in some class folders only say
    nothing of the others, and are passed over.

    Raises:
        ValueError: If they tell of the training part and not of the test part, or the other way round.
    """
    here = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if here is not None:
        return Described([here])
    found, alone = _look(folder)
    parts = [_part(path.parent, folder) for path in found]
    there = {*parts, *alone}
    full = [name for name in ("train", *TEST_NAMES) if name in parts and not alone[name]]
    test = held_part(full) or held_part(there)
    if not found or test is None or "train" not in there:
        return Described(found) if not sum(alone.values()) else Described(left=found)
    if ("train" in full) != (test in full):
        told, untold = ("train", test) if "train" in full else (test, "train")
        table = next(path for path, part in zip(found, parts) if part == told).relative_to(folder)
        raise ValueError(
            f"{folder}: {table} tells of the images of one part, and no table tells of {alone[untold]:,} images in the "
            f"{untold} part: add a {table.name} there, or one above both; or take the table away, or pass the folder of one "
            "part as the data"
        )
    if test not in full:
        return Described(left=found)
    kept, of_part = by_part(found, [part if part in ("train", test) else "" for part in parts])
    return Described(kept, of_part, [path for path in found if path not in kept])


def _look(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All tables below a folder, and how many images of each part lie in no folder with a table nor below one."""
    found: list[Path] = []
    alone: Counter[str] = Counter()
    told: set[str] = set()
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not is_hidden(name))
        found += [Path(place, name) for name in METADATA_BELOW if name in names][:1]
        if os.path.dirname(place) in told or any(name in names for name in METADATA_BELOW):
            told.add(place)
        elif images := sum(map(is_image, names)):
            alone[_part(Path(place), folder)] += images
    return found, alone


def _part(place: Path, folder: Path) -> str:
    """The part that a folder below another is of, by the first word that says so."""
    return next(filter(None, map(part_name, place.relative_to(folder).parts)), "")


def not_named(paths: Iterable[Path], named: Collection[Path], folder: Path) -> tuple[str, ...]:
    """How many images of a folder its tables do not name, in words."""
    left = [path for path in paths if path not in named]
    if not left:
        return ()
    count = f"{len(left):,} images" if len(left) > 1 else "1 image"
    such = printable(left[0].relative_to(folder))
    return (f"passed over {count} that the table beside them does not name, such as {such}",)
