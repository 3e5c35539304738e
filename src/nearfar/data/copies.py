"""Images that hold the same bytes under several names: they are one image, and lie on one side of a split."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.data.labelled import require

# Bytes at the start of a file that are compared before all of them are.
HEAD = 4096


def same_files(paths: Sequence[Path | str]) -> Int64[Tensor, "n"] | None:
    """Which files hold the same bytes: a number each, that of the first with those bytes; None: no two files do.

    Only files of one size are read, and only those that begin alike are read to the end.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> paths = [folder / name for name in "abc"]
        >>> _ = [path.write_bytes(held) for path, held in zip(paths, (b"cat", b"dog", b"cat"))]
        >>> same_files(paths)
        tensor([0, 1, 0])
    """
    return _copies(paths, (_size, _head, _whole))


def same_cells(
    table: Any, rows: Sequence[int], column: str, base: Path | None
) -> tuple[list[str], Int64[Tensor, "n"] | None]:
    """What to call the image of each row; and numbers, equal where they hold the same bytes, as of ``same_files``.

    Args:
        table: A ``datasets.Dataset``.
        rows: Which rows; a row that comes more than once is no copy of itself.
        column: Of images: paths, or bytes. Only bytes of which others have as many are read.
        base: What paths are relative to.
    """
    if isinstance(table[rows[0]][column], str):
        cells = table[column][:]
        names = [str(cells[row]) for row in rows]
        copies = same_files([os.path.join(base or "", os.path.expanduser(name.strip())) for name in names])
    else:
        names, sizes = [f"the image of row {row}" for row in rows], _lengths(table, column)

        def digest(row: int) -> bytes | None:
            cell = table[row][column]
            held = cell.get("bytes") if isinstance(cell, dict) else cell
            return _digest(held) if isinstance(held, bytes) else None

        copies = _copies(rows, (sizes.__getitem__, digest))
    return names, copies


def _lengths(table: Any, column: str) -> list[int | None]:
    """How many bytes each row of a column holds, which are not read for that."""
    arrow, compute = require("pyarrow", "reading tables"), require("pyarrow.compute", "reading tables")
    lengths: list[int | None] = []
    for batch in table.select_columns([column]).with_format("arrow").iter(4096):
        held = batch[column]
        if arrow.types.is_struct(held.type):
            held = compute.struct_field(held, "bytes")
        binary = arrow.types.is_binary(held.type) or arrow.types.is_large_binary(held.type)
        lengths += compute.binary_length(held).to_pylist() if binary else [None] * len(held)
    return lengths


def _alike(items: Iterable[Hashable], keys: Sequence[Callable[[Any], Hashable | None]]) -> list[list[Any]]:
    """Groups of two and more items that agree in every key, each of which is asked only of items that agree so far."""
    groups = [[*items]]
    for key in keys:
        finer = []
        for group in groups:
            found = defaultdict(list)
            for item in group:
                if (value := key(item)) is not None:
                    found[value].append(item)
            finer += [alike for alike in found.values() if len(alike) > 1]
        groups = finer
    return groups


def _copies(items: Sequence[Hashable], keys: Sequence[Callable[[Any], Hashable | None]]) -> Int64[Tensor, "n"] | None:
    """For each item the place of the first that is like it in every key; None: no two items that differ are alike."""
    places = defaultdict(list)
    for place, item in enumerate(items):
        places[item].append(place)
    groups = _alike(places, keys)
    numbers = torch.arange(len(items))
    for group in groups:
        alike = [place for item in group for place in places[item]]
        numbers[alike] = min(alike)
    return numbers if groups else None


def _size(path: Path | str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # met again, and named, when it is read
        return None


def _head(path: Path | str) -> int | None:
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            return hash(os.read(file, HEAD))
        finally:
            os.close(file)
    except OSError:
        return None


def _whole(path: Path | str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return None


def _digest(held: bytes) -> bytes:
    return hashlib.blake2b(held, digest_size=16).digest()


def one_side(
    train: Int64[Tensor, "train"], test: Int64[Tensor, "test"], copies: Int64[Tensor, "n"] | None
) -> tuple[Int64[Tensor, "more"], Int64[Tensor, "fewer"]]:
    """A split that came with the data, with held-out rows moved to the training rows of which they are copies."""
    if copies is None:
        return train, test
    seen = torch.isin(copies[test], copies[train])
    return torch.cat([train, test[seen]]).sort().values, test[~seen]


def copies_told(copies: Int64[Tensor, "n"] | None, moved: int = 0) -> tuple[str, ...]:
    """How many images are copies of others, in words."""
    if copies is None:
        return ()
    count = len(copies) - len(copies.unique())
    are = "is a duplicate" if count == 1 else "are duplicates"
    said = [f"{count:,} of {len(copies):,} images {are} of others, byte for byte: copies stay on one side of the split"]
    if moved:
        are = "image to test on is a duplicate" if moved == 1 else "images to test on are duplicates"
        said.append(f"{moved:,} {are} of images to train on: counted as training images")
    return tuple(said)
