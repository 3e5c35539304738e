"""A picture as Pillow opens it: from a file, its bytes or Pillow's own image; how it lies, and turned upright."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nearfar.data.labelled import require

Source = Path | bytes | Any
"""A file, its bytes, or a Pillow image."""
# How many bits Pillow reads of TIFF's integers, signed integers and floats: then something else is wrong with a file.
READ = {1: (1, 2, 4, 8, 12, 16, 32), 2: (8, 16, 32), 3: (32,)}


@contextmanager
def opened(source: Source) -> Iterator[Any]:
    """An image as Pillow opens it; one that it has opened and not yet decoded is read from its file, as a path is.

    Raises:
        OSError, ValueError, SyntaxError: If it is no image.
    """
    pil = require("PIL.Image", "reading images")
    if hasattr(source, "convert"):
        if (held := _undecoded(source)) is None:
            yield source
            return
        source = held
    try:
        image = pil.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except pil.DecompressionBombError as error:  # of no common kind with the others
        raise ValueError(str(error)) from error
    except pil.UnidentifiedImageError as error:
        if fault := _tiff_fault(source):
            raise ValueError(fault) from error
        raise pil.UnidentifiedImageError(
            str(error).partition(" <")[0]
        ) from error  # Pillow names bytes by their address
    with image:
        yield image


def _tiff_fault(source: Source) -> str:
    """What kind of TIFF file it is that Pillow does not read; empty: it is none, or broken."""
    tiff = require("PIL.TiffImagePlugin", "reading images")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            tags = tiff.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
            bits, kind = tags[258][0], tags.get(339, (1,))[0]
    except Exception:  # of a dozen kinds, by what is broken; Pillow's own message is told
        return ""
    if bits in READ.get(kind, ()):
        return ""
    numbers = {1: "integers", 2: "signed integers", 3: "floats"}.get(kind, "complex numbers")
    return f"a TIFF file of {numbers} of {bits} bits, which Pillow does not read: save it with floats of 32 or integers of 16 bits"


def _undecoded(image: Any) -> bytes | None:
    """The file of a Pillow image that is its first frame and was not decoded; None: its pixels are in memory."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.tell():
        return None
    at = file.tell()
    file.seek(0)
    held = file.read()
    file.seek(at)
    return held


def png_says(file: Any) -> tuple[bool, int | None]:
    """Whether a PNG file says after its pixels how it lies, and how many bits it calls significant, if fewer than it has."""
    at = file.tell()
    late, bits, depth, pixels = False, None, 8, False
    file.seek(8)
    while len(head := file.read(8)) == 8 and not late:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        start = file.tell()
        if kind == b"IHDR":
            depth = file.read(9)[8]
        elif kind == b"sBIT":
            bits = max(file.read(min(length, 4)), default=0)
        elif kind == b"IDAT":
            pixels = True
        elif pixels:
            late = kind == b"eXIf" or file.read(25).startswith((b"XML:com.adobe.xmp", b"Raw profile type "))
        file.seek(start + length + 4)
    file.seek(at)
    return late, bits if bits is not None and 0 < bits < depth and depth == 16 else None


def orientation(image: Any) -> int:
    """How an image lies by its EXIF or XMP: 1 upright, 5 and more on its side. What cannot be read says nothing."""
    exif = require("PIL.Image", "reading images").Image.getexif  # of the class that decodes nothing for it
    try:
        value = exif(image).get(0x0112, 1)
    except Exception:  # of a dozen kinds, by what is broken; the pixels are none the worse
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(image: Any) -> Any:
    """A decoded image, turned as a viewer turns it."""
    turn = require("PIL.Image", "reading images").Transpose
    turns = (
        None, None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_270,
        turn.TRANSVERSE, turn.ROTATE_90,
    )  # fmt: skip
    how = turns[orientation(image)]
    return image if how is None else image.transpose(how)
