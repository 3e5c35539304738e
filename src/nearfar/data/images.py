"""Images in a folder by class: ``folder/class/*.png``, or ``folder/train/class`` beside ``folder/test/class``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from nearfar.data.bad import name_fault, printable
from nearfar.data.classes import class_name, label_names
from nearfar.data.columns import USUAL
from nearfar.data.copies import copies_told, one_side, same_files
from nearfar.data.depth import Range
from nearfar.data.folders import TEST_FOLDERS, Walk, metadata_tables, parts_of
from nearfar.data.form import Form, find_form
from nearfar.data.labelled import TEST_FRACTION, LabelledData, class_ids, require, stratified_split
from nearfar.data.pixels import BROKEN, SUFFIXES, decode_image, image_header, unreadable
from nearfar.data.records import records
from nearfar.names import refuse_unused


def read_image_folder(
    folder: Path,
    *,
    size: int | tuple[int, int] | None = None,
    skip_bad: bool = False,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
    pixel_range: Range | None = None,
    label: str | None = None,
) -> LabelledData:
    """Reads the images of a folder; the name of a sub-folder is the name of its class, or a table beside the images says it.

    Greyscale images alone give one channel, otherwise all are read as RGB. Pixels are in [0, 1].

    Args:
        folder: Holds one sub-folder a class, or ``train`` and ``test`` (or ``val``) which do.
        size: Height and width, or one number for both, in pixels; by default the commonest size, scaled down
            until the longer side has 64.
        skip_bad: Leave out images that cannot be read, and list them in ``bad``.
        test_fraction: The part of each class to test on, where there is no test folder.
        seed: Of that split.
        pixel_range: Which numbers are black and white, of pixels that are no bytes; by default as the files say, else by
            all pixels.
        label: The column of classes in a table beside the images (``metadata.csv``); by default the one with a usual name.

    Raises:
        ValueError: If an image cannot be read, or the folder is not laid out so.
    """
    walk = Walk()
    listed, tested, bad = images_by_table(folder, label, skip_bad)
    if listed is not None:
        walk.files(folder)
    else:
        why = f"the sub-folders of {folder} are its classes"
        refuse_unused({"label": label}, why, "leave it out, or pass a table as data=")
        train, test = split_folders(folder, walk)
        listed = images_by_class(train, walk)
        tested = [] if test is None else images_by_class(test, walk, known={name for _, name in listed})
    fit = len(listed)
    listed = listed + tested
    images, form, kept, unread = _read_images([path for path, _ in listed], size, skip_bad, pixel_range)
    labels, names = class_ids([listed[i][1] for i in kept])
    if len(names) < 2:
        raise ValueError(
            f"{folder} holds images of {len(names)} class(es): a class is a sub-folder, and two are needed"
        )
    copies = same_files([listed[i][0] for i in kept])
    if fit == len(listed):
        fitted, held = stratified_split(labels, test_fraction, seed, copies)
        moved = 0
    else:
        own = torch.tensor(kept) < fit
        fitted, held = one_side(own.nonzero().squeeze(1), (~own).nonzero().squeeze(1), copies)
        moved = len(fitted) - int(own.sum())
    if not len(held):
        raise ValueError(
            f"{folder} leaves no image to test on: all of each class are duplicates of one another, byte for byte"
            + (", or of images to train on" if moved else "") + ". Add other images"
        )  # fmt: skip
    return LabelledData(
        images[fitted], labels[fitted], images[held], labels[held], names, folder.name, (*bad, *unread),
        (*walk.notes(), *form.notes, *copies_told(copies, moved)), None if copies is None else copies[fitted],
    )  # fmt: skip


def images_by_table(
    folder: Path, label: str | None, skip_bad: bool
) -> tuple[list[tuple[Path, str]] | None, list[tuple[Path, str]], list[str]]:
    """Images to train on and to test on, with their classes, as tables beside them say; and what is wrong with other rows.

    None in place of the first where no table says it.
    """
    found: list[tuple[str, str, Path | None, Any]] = []
    bad: list[str] = []
    image = column = None
    tables, names = metadata_tables(folder)
    for table, part in zip(tables, names or [""] * len(tables)):
        for where, row in _rows(table):
            if isinstance(row, str):
                bad.append(_bad(where, row, skip_bad))
                continue
            image, column = (_named(row, role) for role in ("image", "label"))
            column = label if label is not None else column
            if image is None or column is None or (label is not None and label not in row):
                return None, [], []
            cell = str(row[image] or "").strip()
            found.append((where, part, table.parent / Path(cell).expanduser() if cell else None, row[column]))
    listed: list[tuple[Path, str]] = []
    parts: list[str] = []
    for (where, part, path, _), name in zip(found, label_names([cell for *_, cell in found])):
        if not name:
            bad.append(_bad(where, f"has no label in column {column!r}", skip_bad))
        elif path is None:
            bad.append(_bad(where, f"has no image in column {image!r}", skip_bad))
        else:
            listed.append((path, name))
            parts.append(part)
    parts = parts if names else parts_of([path for path, _ in listed], folder) or ["train"] * len(parts)
    train, test = ([row for row, part in zip(listed, parts) if (part == "train") is wanted] for wanted in (True, False))
    return train or None, test, bad


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The rows of a table, or what is wrong with each, and where they are."""
    if table.suffix.lower() in (".parquet", ".pq"):
        read = require("pyarrow.parquet", "reading Parquet").read_table(table).to_pylist()
        yield from ((f"{table}: row {number}", row) for number, row in enumerate(read, 1))
    else:
        yield from ((f"{table}:{line}", record) for line, record in records(table))


def _named(row: Mapping[str, Any], role: str) -> str | None:
    """The column that is taken for a role by its name."""
    known = {name.lower(): name for name in reversed([*row])}
    return next((known[name] for name in USUAL[role] if name in known), None)


def split_folders(folder: Path, walk: Walk) -> tuple[Path, Path | None]:
    """The training folder and the test folder, if any. A class may be called "train": it then holds no folders."""
    if not ((train := folder / "train").is_dir() and walk.folders(train)):
        return folder, None
    return train, next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)


def images_by_class(folder: Path, walk: Walk, known: set[str] | None = None) -> list[tuple[Path, str]]:
    """Every image file below a class folder, with the class; ``known``: the only classes there may be."""
    listed = []
    for group in walk.folders(folder):
        name = class_name(group.name)
        if known is not None and name not in known:
            raise ValueError(f"{group} is a class without training images: add some, or take it out of the test folder")
        files = walk.files(group)
        if not files:
            raise ValueError(f"{group} holds no image: a class folder wants files ending in {', '.join(SUFFIXES)}")
        listed += [(path, name) for path in files]
    if not listed:
        raise ValueError(f"{folder} has no sub-folders: images are wanted as {folder.name}/<class>/<image>.png")
    return listed


def _read_images(
    paths: list[Path], size: int | tuple[int, int] | None, skip_bad: bool, pixel_range: Range | None
) -> tuple[Float32[Tensor, "n c h w"], Form, list[int], list[str]]:
    """The images at one size, how they were read, the positions of those that could be, and what is wrong with the others."""
    headers, bad = {}, []
    for i, path in enumerate(paths):  # headers alone tell the size and the mode; nothing is decoded yet
        try:
            if fault := name_fault(path):
                raise ValueError(fault)
            headers[i] = image_header(path)
        except BROKEN as error:
            bad.append(_bad(path, error, skip_bad))
    if not headers:
        raise ValueError(f"none of the {len(paths)} images could be read; the first: {bad[0]}")
    form = find_form([paths[i] for i in headers], [*headers.values()], size, pixel_range)
    assert form.size is not None
    assert form.channels is not None
    pixels, kept = [], []
    for i in headers:
        try:
            pixels.append(decode_image(paths[i], form.size, form.channels, form.ranges))
            kept.append(i)
        except BROKEN as error:
            bad.append(_bad(paths[i], error, skip_bad))
    if not pixels:
        raise ValueError(f"none of the {len(paths)} images could be read; the first: {bad[0]}")
    return torch.stack(pixels).float().div_(255), form, kept, bad


def _bad(where: Path | str, error: Exception | str, skip_bad: bool) -> str:
    """What is wrong with an image or a row, to list; raised unless such are skipped."""
    place = printable(Path(where))
    message = f"{place}: {error}" if isinstance(error, str) else unreadable(place, error)
    if not skip_bad:
        raise ValueError(f"{message}: mend or remove it, or leave such out with skip_bad=True (--skip-bad)")
    return message
