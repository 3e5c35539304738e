"""Images in a folder by class: ``folder/class/*.png``, or ``folder/train/class`` beside ``folder/test/class``."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from nearfar.data.bad import name_fault, printable
from nearfar.data.classes import class_name
from nearfar.data.labelled import TEST_FRACTION, LabelledData, class_ids, split_data
from nearfar.data.pixels import (
    BROKEN,
    SUFFIXES,
    common_size,
    decode_image,
    image_header,
    is_grey,
    size_pair,
    unreadable,
)  # fmt: skip

TEST_FOLDERS = ("test", "val", "valid", "validation")


def read_image_folder(
    folder: Path,
    *,
    size: int | tuple[int, int] | None = None,
    skip_bad: bool = False,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> LabelledData:
    """Reads the images of a folder; the name of a sub-folder is the name of its class.

    Greyscale images alone give one channel, otherwise all are read as RGB. Pixels are in [0, 1].

    Args:
        folder: Holds one sub-folder a class, or ``train`` and ``test`` (or ``val``) which do.
        size: Height and width, or one number for both, in pixels; by default the commonest size, scaled down
            until the longer side has 64.
        skip_bad: Leave out images that cannot be read, and list them in ``bad``.
        test_fraction: The part of each class to test on, where there is no test folder.
        seed: Of that split.

    Raises:
        ValueError: If an image cannot be read, or the folder is not laid out so.
    """
    train, test = split_folders(folder)
    listed = images_by_class(train)
    fit = len(listed)
    if test is not None:
        listed += images_by_class(test, known={name for _, name in listed})
    images, kept, bad = _read_images([path for path, _ in listed], size, skip_bad)
    labels, names = class_ids([listed[i][1] for i in kept])
    if len(names) < 2:
        raise ValueError(
            f"{folder} holds images of {len(names)} class(es): a class is a sub-folder, and two are needed"
        )
    if test is None:
        return split_data(images, labels, names, folder.name, bad=bad, test_fraction=test_fraction, seed=seed)
    cut = sum(i < fit for i in kept)
    return LabelledData(images[:cut], labels[:cut], images[cut:], labels[cut:], names, folder.name, tuple(bad))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def split_folders(folder: Path) -> tuple[Path, Path | None]:
    """The training folder and the test folder, if any. A class may be called "train": it then holds no folders."""
    if not ((train := folder / "train").is_dir() and subfolders(train)):
        return folder, None
    return train, next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)


def images_by_class(folder: Path, known: set[str] | None = None) -> list[tuple[Path, str]]:
    """Every image file below a class folder, with the class; ``known``: the only classes there may be."""
    listed = []
    for group in subfolders(folder):
        name = class_name(group.name)
        if known is not None and name not in known:
            raise ValueError(f"{group} is a class without training images: add some, or take it out of the test folder")
        files = sorted(path for path in group.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            raise ValueError(f"{group} holds no image: a class folder wants files ending in {', '.join(SUFFIXES)}")
        listed += [(path, name) for path in files]
    if not listed:
        raise ValueError(f"{folder} has no sub-folders: images are wanted as {folder.name}/<class>/<image>.png")
    return listed


def _read_images(
    paths: list[Path], size: int | tuple[int, int] | None, skip_bad: bool
) -> tuple[Float32[Tensor, "n c h w"], list[int], list[str]]:
    """The images at one size, the positions of the paths that could be read, and what is wrong with the others."""
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
    target = common_size([(h, w) for h, w, _ in headers.values()]) if size is None else size_pair(size)
    channels = 1 if all(is_grey(mode) for _, _, mode in headers.values()) else 3
    pixels, kept = [], []
    for i in headers:
        try:
            pixels.append(decode_image(paths[i], target, channels))
            kept.append(i)
        except BROKEN as error:
            bad.append(_bad(paths[i], error, skip_bad))
    if not pixels:
        raise ValueError(f"none of the {len(paths)} images could be read; the first: {bad[0]}")
    return torch.stack(pixels).float().div_(255), kept, bad


def _bad(path: Path, error: Exception, skip_bad: bool) -> str:
    """What is wrong with an image, to list; raised unless bad images are skipped."""
    message = unreadable(printable(path), error)
    if not skip_bad:
        raise ValueError(
            f"{message}: mend or remove it, or leave such files out with skip_bad=True (--skip-bad)"
        ) from error
    return message
