"""What a user hands in to be embedded: which kind it is, and how it is read."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearfar.data.corpus import Raw
from nearfar.data.labelled import require
from nearfar.data.pixels import BROKEN, SUFFIXES, decode_image, unreadable
from nearfar.encoders.towers import ArrayTower, Tower
from nearfar.types import Kind


def as_items(items: Any) -> Tensor | list[Any]:
    """Whatever was handed in, as rows: a tensor, or a list.

    Example:
        >>> as_items("near"), as_items(text for text in ("near", "far"))
        (['near'], ['near', 'far'])
    """
    if isinstance(items, Tensor):
        return items
    if isinstance(items, str | Path) or hasattr(items, "convert"):
        return [items]
    if hasattr(items, "__array__") and getattr(items, "dtype", None) is not None and items.dtype.kind in "fiub":
        return torch.as_tensor(items)
    return list(items)


def kind_of(items: Any, kinds: Sequence[Kind]) -> Kind:
    """What the items are, of the kinds that there are towers for.

    Raises:
        ValueError: If that cannot be told.

    Example:
        >>> kind_of(["near", "far"], ("image", "text")), kind_of(torch.zeros(2, 5), ("vector",))
        ('text', 'vector')
    """
    if len(kinds) == 1:
        return kinds[0]
    found: Kind | None = None
    if isinstance(items, Tensor):
        by_axes: dict[int, Kind] = {4: "image", 3: "series", 2: "vector"}
        found = by_axes.get(items.ndim)
    elif len(items) and all(isinstance(item, str) for item in items):
        files = all(item.lower().endswith(SUFFIXES) and os.path.isfile(item) for item in items)
        found = "image" if files or "text" not in kinds else "text"
    elif len(items) and all(isinstance(item, Path) or hasattr(item, "convert") for item in items):
        found = "image"
    if found is None or found not in kinds:
        raise ValueError(f"cannot tell which of {', '.join(kinds)} the items are: pass kind=")
    return found


def read_items(items: Any, tower: Tower) -> Raw:
    """Items as the data would hold them.

    Raises:
        TypeError: If they are not what the tower reads.
        ValueError: If one cannot be read, or has another shape.
    """
    if tower.kind == "text":
        wrong = next((item for item in items if not isinstance(item, str)), None)
        if wrong is not None:
            raise TypeError(f"texts were wanted, and one is a {type(wrong).__name__}: pass strings")
        return list(items)
    assert isinstance(tower, ArrayTower)
    if tower.kind == "image":
        if not isinstance(items, Tensor):
            return torch.stack([read_image(item, tower.shape) for item in items])
        return items if items.dtype == torch.uint8 else _from_unit(items, tower)
    rows = items if isinstance(items, Tensor) else torch.stack([torch.as_tensor(item) for item in items])
    return rows.float()


def read_image(item: Any, shape: tuple[int, ...]) -> UInt8[Tensor, "c h w"]:
    """An image of the shape ``(c, h, w)`` that a tower reads.

    Args:
        item: A path, a Pillow image, or a ``uint8`` tensor ``(c, h, w)``, which is taken as it is.
        shape: Channels, one for grey and three for RGB, and height and width, to which it is scaled.

    Raises:
        ValueError: If it cannot be read; the message names the file.
    """
    if isinstance(item, Tensor):
        return item
    channels, height, width = shape
    if isinstance(item, str | Path):
        try:
            return decode_image(Path(item), (height, width), channels)
        except BROKEN as error:
            raise ValueError(unreadable(item, error)) from error
    if not hasattr(item, "convert"):
        raise TypeError(f"an image was wanted, not a {type(item).__name__}: pass a path, a Pillow image or a tensor")
    return decode_image(_as_file(item), (height, width), channels)


def _as_file(image: Any) -> bytes:
    """A Pillow image as the bytes of a file, so that it is read just as files are."""
    image = require("PIL.ImageOps", "reading images").exif_transpose(image)
    buffer = io.BytesIO()
    known = image.mode in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
    (image if known else image.convert("RGB")).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _from_unit(images: Tensor, tower: ArrayTower) -> Tensor:
    """Float images in [0, 1], standardised as bytes would be."""
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"float images are between {images.min():.3g} and {images.max():.3g}: wanted uint8, or floats in [0, 1]; "
            "images that are normalised already go to embedder(kind, images)"
        )
    return tower.standardise(images.float().to(tower.mean.device))
