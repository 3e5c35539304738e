"""Images in a folder by class: ``folder/class/*.png``, or ``folder/train/class`` beside ``folder/test/class``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
from nearfar.data.described import Described, find_described, not_named
from nearfar.data.folders import TEST_NAMES, Walk, by_part, find_layout, other_parts, part_name, parts_of
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
    described = find_described(folder)
    found = images_by_table(folder, described, label, skip_bad)
    if found is None:
        why = f"the sub-folders of {folder} are its classes"
        refuse_unused({"label": label}, why, "leave it out, or pass a table as data=")
        found = images_by_folder(folder, described)
    listed = [*found.train, *found.test]
    fit = len(found.train)
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
        images[fitted], labels[fitted], images[held], labels[held], names, folder.name, (*found.bad, *unread),
        (*found.notes, *form.notes, *copies_told(copies, moved)), None if copies is None else copies[fitted],
    )  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """Images with the names of their classes."""

    train: list[tuple[Path, str]]
    """To train on, or all."""
    test: list[tuple[Path, str]]
    """To test on, where the data say so."""
    notes: tuple[str, ...] = ()
    """What was passed over, in words."""
    bad: list[str] = field(default_factory=list)
    """What is wrong with other rows of a table."""


def images_by_table(folder: Path, described: Described, label: str | None, skip_bad: bool) -> Listed | None:
    """Images as tables beside them say; None, where no table says it."""
    found: list[tuple[str, str, Path | None, Any]] = []
    bad: list[str] = []
    image = column = own = None
    for table, part in zip(described.tables, described.parts or [""] * len(described.tables)):
        for where, row in _rows(table):
            if isinstance(row, str):
                bad.append(_bad(where, row, skip_bad))
                continue
            image, column, own = (_named(row, role) for role in ("image", "label", "split"))
            column = label if label is not None else column
            if image is None or column is None or (label is not None and label not in row):
                return None
            cell = str(row[image] or "").strip()
            part = part if described.parts or own is None else part_name(row[own])
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
    if not listed:
        return None
    if not described.parts:
        parts = parts_of([path for path, _ in listed], folder) or parts
    kept, of_part = by_part(listed, parts)
    if own is not None and not described.parts and "train" in parts and not of_part:
        raise ValueError(f"{folder}: column {own!r} puts no row in a test part, such as {', '.join(TEST_NAMES[:2])}")
    train, test = (
        [row for row, part in zip(kept, of_part or ["train"] * len(kept)) if (part == "train") is wanted]
        for wanted in (True, False)
    )
    walk = Walk([*described.tables, *described.left])
    notes = (
        *described.notes,
        *not_named(walk.files(folder), {path for _, _, path, _ in found if path}, folder),
        *walk.notes(),
    )
    if rest := len(listed) - len(kept):
        notes = (*notes, other_parts(rest))
    return Listed(train, test, notes, bad)


def images_by_folder(folder: Path, described: Described) -> Listed:
    """Images with the class folders that they lie in.

    Raises:
        ValueError: If there are no such folders.
    """
    walk = Walk([*described.tables, *described.left])
    layout = find_layout(folder, walk)
    train = images_by_class(layout.train, walk)
    known = {name for _, name in train}
    for group in [] if layout.test is None else walk.folders(layout.test):
        if class_name(group.name) not in known:
            raise ValueError(f"{group} is a class without training images: add some, or take it out of the test folder")
    test = [] if layout.test is None else images_by_class(layout.test, walk)
    return Listed(train, test, (*described.notes, *layout.notes, *walk.notes()))


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


def images_by_class(folder: Path, walk: Walk) -> list[tuple[Path, str]]:
    """Every image file below a class folder, with the class."""
    groups, beside = walk.image_folders(folder), walk.files(folder, below=False)
    if not groups and (empty := walk.folders(folder)):
        raise ValueError(f"{empty[0]} holds no image: a class folder wants files ending in {', '.join(SUFFIXES)}")
    if not groups:
        here = f"; {len(beside):,} images lie in {folder.name} itself, and nothing says their classes" if beside else ""
        raise ValueError(
            f"{folder} has no sub-folders: images are wanted as {folder.name}/<class>/<image>.png, or with a table beside them "
            f"that has a column of labels (metadata.csv){here}"
        )
    walk.pass_over(beside)
    return [(path, class_name(group.name)) for group in groups for path in walk.files(group)]


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
