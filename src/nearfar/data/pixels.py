"""One image: from a file or bytes to pixels."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearfar.data.labelled import require

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
# The longer side of images nobody gave a size for: small enough to train on without a GPU.
LONGEST_SIDE = 64
# What Pillow raises at what is no image, or is cut short.
BROKEN = (OSError, ValueError, SyntaxError, EOFError)


def _open(source: Path | bytes) -> Any:
    pil = require("PIL.Image", "reading images")
    try:
        return pil.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except pil.DecompressionBombError as error:  # of no common kind with the others
        raise ValueError(str(error)) from error


def image_header(source: Path | bytes) -> tuple[int, int, str]:
    """Height, width and Pillow's mode, without decoding.

    Raises:
        OSError, ValueError, SyntaxError: If it is no image.
    """
    with _open(source) as image:
        turned = image.format == "JPEG" and image.getexif().get(0x0112, 1) >= 5  # lies on its side
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        return height, width, image.mode


def is_grey(mode: str) -> bool:
    """Whether a mode of Pillow's has one channel of brightness."""
    return mode in ("L", "1") or mode.startswith("I")


def decode_image(source: Path | bytes, size: tuple[int, int], channels: int) -> UInt8[Tensor, "c h w"]:
    """Decodes an image, upright, scaled to a size; what is transparent becomes white.

    Args:
        source: A file, or its bytes.
        size: Height and width in pixels. A JPEG is decoded at a half, quarter or eighth where that is still enough.
        channels: 1 (brightness) or 3 (red, green, blue).

    Raises:
        OSError, ValueError, SyntaxError: If it cannot be decoded.
    """
    pil, numpy = require("PIL.Image", "reading images"), require("numpy", "reading images")
    height, width = size
    with _open(source) as opened:
        image = opened
        if image.format == "JPEG":
            turned = image.getexif().get(0x0112, 1) != 1
            image.draft(None, (max(size),) * 2 if turned else (width, height))
            image = require("PIL.ImageOps", "reading images").exif_transpose(image) if turned else image
        if image.mode.startswith("I"):  # sixteen bits: convert("L") alone would clip them to white
            image = image.convert("I").point(lambda value: value * (1 / 256))
        elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), pil.Resampling.BILINEAR)
        pixels = torch.from_numpy(numpy.array(image))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def common_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size to read images of these sizes at: the commonest, scaled down until the longer side has 64 pixels; a square
    where there is no size that half of them have.

    Example:
        >>> common_size([(28, 28), (28, 28), (30, 28)]), common_size([(480, 640)]), common_size([(30, 40), (50, 40), (60, 70)])
        ((28, 28), (48, 64), (40, 40))
    """
    (height, width), count = Counter(sizes).most_common(1)[0]
    if 2 * count < len(sizes):
        height = width = sorted(min(size) for size in sizes)[len(sizes) // 2]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def size_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size that may be one number for both.

    Raises:
        ValueError: If one is below 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size}: pass a height and a width of at least one pixel")
    return height, width


def unreadable(where: Path | str, error: Exception) -> str:
    """What is wrong with an image, to list or to raise."""
    if isinstance(error, FileNotFoundError):
        return f"{where}: cannot be read as an image (there is no file {error.filename})"
    reason = str(error).replace(f" {str(where)!r}", "")  # Pillow repeats the path
    return f"{where}: cannot be read as an image ({reason})"
