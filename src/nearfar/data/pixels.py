"""One image: from a file or bytes to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearfar.data.depth import (
    FULL,
    Depth,
    Range,
    Ranges,
    depth_of,
    is_wide,
    samples,
    shares,
    stated_range,
    usual_range,
)  # fmt: skip
from nearfar.data.labelled import require
from nearfar.data.pictures import Source, opened, orientation, png_says, upright

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", ".jfif", ".mpo", ".avif",
    ".jp2", ".heic", ".heif",
)  # fmt: skip
# Images of more than bytes that are decoded to find their range: a second or a few.
MOST_MEASURED = 256
# Of red, green and blue in brightness: ITU-R BT.601, as Pillow has it.
LUMA = (0.299, 0.587, 0.114)
# What Pillow raises at what is no image, or is cut short.
BROKEN = (OSError, ValueError, SyntaxError, EOFError)


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded."""

    height: int
    """Upright."""
    width: int
    grey: bool
    """Whether it has one channel, of brightness."""
    depth: Depth | None = None
    """What its pixels are, if they are no bytes."""
    stated: Range | None = None
    """Which of their numbers are black and white, if the file says so."""
    bits: int | None = None
    """How many bits a PNG file calls significant."""


def image_header(source: Source) -> Header:
    """Size, channels and depth of an image, without decoding it.

    Raises:
        OSError, ValueError, SyntaxError: If it is no image.
    """
    with opened(source) as image:
        bits = None
        if image.format == "PNG" and getattr(image, "fp", None) is not None:
            late, bits = png_says(image.fp)
            if late:
                image.load()
        turned = image.format != "TIFF" and orientation(image) >= 5  # lies on its side; TIFF's size is upright already
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        depth = depth_of(image)
        return Header(height, width, is_grey(image.mode), depth, stated_range(image) if depth else None, bits)


def is_grey(mode: str) -> bool:
    """Whether a mode of Pillow's has one channel of brightness."""
    return mode in ("L", "1", "F") or mode.startswith("I")


def decode_image(
    source: Source, size: tuple[int, int], channels: int, ranges: Ranges | None = None
) -> UInt8[Tensor, "c h w"]:
    """Decodes an image, upright, scaled to a size; what is transparent becomes white.

    Args:
        source: A file, its bytes, or a Pillow image.
        size: Height and width in pixels. A JPEG is decoded at a half, quarter or eighth where that is still enough.
        channels: 1 (brightness) or 3 (red, green, blue).
        ranges: Which numbers are black and white, of pixels that are no bytes; by default as the file says, else by its
            own pixels.

    Raises:
        OSError, ValueError, SyntaxError: If it cannot be decoded.
    """
    pil, numpy = require("PIL.Image", "reading images"), require("numpy", "reading images")
    height, width = size
    with opened(source) as image:
        depth = depth_of(image)
        limits = (ranges or {}).get(depth or "")
        if depth is not None and not (
            is_wide(image) and limits == FULL["integer"]
        ):  # of which the upper bytes are enough
            return _decode_deep(source, size, channels, limits or find_ranges([source], [image_header(source)])[depth])
        if image.format in ("JPEG", "MPO") and image is not source:
            image.draft(None, (max(size),) * 2 if orientation(image) > 1 else (width, height))
        image.load()
        picture = upright(image)
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            picture = picture.convert({"RGBa": "RGBA", "La": "LA"}.get(picture.mode, picture.mode)).convert("RGBA")
            picture = pil.alpha_composite(pil.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            picture = picture.resize((width, height), pil.Resampling.BILINEAR)
        pixels = torch.from_numpy(numpy.array(picture))
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def _decode_deep(source: Source, size: tuple[int, int], channels: int, limits: Range) -> UInt8[Tensor, "c h w"]:
    """The same for pixels that are no bytes: numbers are scaled before they are rounded to bytes."""
    pil, numpy = require("PIL.Image", "reading images"), require("numpy", "reading images")
    values, opaque = samples(source)
    seen = shares(values, limits) * 255
    if opaque is not None:
        seen = seen * opaque[..., None] + 255 * (1 - opaque[..., None])
    if seen.shape[2] > 1 and channels == 1:
        seen = seen @ numpy.array(LUMA)[:, None]
    planes = [pil.fromarray(seen[..., k].astype("float32")) for k in range(seen.shape[2])]
    scaled = [numpy.asarray(plane.resize((size[1], size[0]), pil.Resampling.BILINEAR)) for plane in planes]
    pixels = torch.from_numpy(numpy.stack(scaled)).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(channels, -1, -1).contiguous()


def find_ranges(sources: Sequence[Source], headers: Sequence[Header], known: Ranges | None = None) -> dict[str, Range]:
    """Which numbers are black and white, for each depth that some images have: as their files say, else by their pixels.

    Args:
        sources: The images.
        headers: Of each.
        known: Ranges that are known already; they are kept.

    Returns:
        The range of each depth, one for all images. Where there are many of a depth, a sample of them is decoded to find it.
    """
    found = dict(known or {})
    for depth in ("integer", "float"):
        own = [] if depth in found else [at for at, header in enumerate(headers) if header.depth == depth]
        limits = [stated for at in own if (stated := headers[at].stated) is not None]
        silent = [at for at in own if headers[at].stated is None]
        low, high = float("inf"), float("-inf")
        for at in silent[:: max(1, len(silent) // MOST_MEASURED)]:
            with suppress(*BROKEN):  # met again, and named, when it is read
                finite = (values := samples(sources[at])[0])[values == values]
                if finite.size:
                    low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if low <= high:
            limits.append(usual_range(depth, low, high, max((headers[at].bits or 0 for at in silent), default=0)))
        if own:
            lows, highs = zip(*limits) if limits else ([0.0], [1.0])
            found[depth] = min(lows), max(highs)
    return found


def unreadable(where: Path | str, error: Exception) -> str:
    """What is wrong with an image, to list or to raise."""
    if isinstance(error, FileNotFoundError):
        return f"{where}: cannot be read as an image (there is no file {error.filename})"
    if isinstance(error, IsADirectoryError):
        return f"{where}: cannot be read as an image ({error.filename} is a folder)"
    reason = str(error).replace(f" {str(where)!r}", "")  # Pillow repeats the path
    if str(where).lower().endswith((".heic", ".heif")):
        reason = "Pillow reads HEIC only after pillow_heif.register_heif_opener(): save it as JPEG or PNG"
    return f"{where}: cannot be read as an image ({reason})"
