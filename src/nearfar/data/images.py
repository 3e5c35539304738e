"""Images in a folder by class: ``folder/class/*.png``, or ``folder/train/class`` beside ``folder/test/class``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from nearfar.data.labelled import TEST_FRACTION, LabelledData, class_ids, require, split_data

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
# The longer side of images nobody gave a size for: small enough to hold some 80,000 in a gigabyte of float32 greys.
LONGEST_SIDE = 64
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
    train, test = _splits(folder)
    listed = _by_class(train)
    fit = len(listed)
    if test is not None:
        listed += _by_class(test, known={name for _, name in listed})
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


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _splits(folder: Path) -> tuple[Path, Path | None]:
    """The training folder and the test folder, if any. A class may be called "train": it then holds no folders."""
    if not ((train := folder / "train").is_dir() and _subfolders(train)):
        return folder, None
    return train, next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)


def _by_class(folder: Path, known: set[str] | None = None) -> list[tuple[Path, str]]:
    """Every image file below a class folder, with the class; ``known``: the only classes there may be."""
    listed = []
    for group in _subfolders(folder):
        if known is not None and group.name not in known:
            raise ValueError(f"{group} is a class without training images: add some, or take it out of the test folder")
        files = sorted(path for path in group.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not files:
            raise ValueError(f"{group} holds no image: a class folder wants files ending in {', '.join(SUFFIXES)}")
        listed += [(path, group.name) for path in files]
    if not listed:
        raise ValueError(f"{folder} has no sub-folders: images are wanted as {folder.name}/<class>/<image>.png")
    return listed


def _read_images(
    paths: list[Path], size: int | tuple[int, int] | None, skip_bad: bool
) -> tuple[Float32[Tensor, "n c h w"], list[int], list[str]]:
    """The images at one size, the positions of the paths that could be read, and what is wrong with the others."""
    pil, numpy = require("PIL.Image", "reading images"), require("numpy", "reading images")
    headers, bad = {}, []
    for i, path in enumerate(paths):  # headers alone tell the size and the mode; nothing is decoded yet
        try:
            with pil.open(path) as image:
                headers[i] = (image.height, image.width, image.mode)
        except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
            bad.append(_unreadable(path, error, skip_bad))
    if not headers:
        raise ValueError(f"none of the {len(paths)} images could be read; the first: {bad[0]}")
    height, width = _common_size([(h, w) for h, w, _ in headers.values()]) if size is None else _pair(size)
    grey = all(mode in ("L", "1") or mode.startswith("I") for _, _, mode in headers.values())
    pixels, kept = [], []
    for i in headers:
        try:
            with pil.open(paths[i]) as image:
                deep = image.mode.startswith("I")  # sixteen bits: convert("L") alone would clip them to white
                image = image.convert("I").point(lambda value: value * (1 / 256)) if deep else image
                image = image.convert("L" if grey else "RGB").resize((width, height), pil.Resampling.BILINEAR)
                pixels.append(torch.from_numpy(numpy.asarray(image).copy()))
            kept.append(i)
        except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
            bad.append(_unreadable(paths[i], error, skip_bad))
    if not pixels:
        raise ValueError(f"none of the {len(paths)} images could be read; the first: {bad[0]}")
    stacked = torch.stack(pixels)
    stacked = stacked.unsqueeze(1) if grey else stacked.permute(0, 3, 1, 2)
    return stacked.contiguous().float().div_(255), kept, bad


def _unreadable(path: Path, error: Exception, skip_bad: bool) -> str:
    """What is wrong with an image, to list; raised unless bad images are skipped."""
    reason = str(error).replace(f" {str(path)!r}", "")  # Pillow repeats the path
    message = f"{path}: cannot be read as an image ({reason})"
    if not skip_bad:
        raise ValueError(
            f"{message}: mend or remove it, or leave such files out with skip_bad=True (--skip-bad)"
        ) from error
    return message


def _common_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    height, width = Counter(sizes).most_common(1)[0][0]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}: pass a height and a width of at least one pixel")
    return height, width
