"""What a user hands in to be embedded: which kind it is, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from nearfar.data.corpus import Raw
from nearfar.data.images import SUFFIXES
from nearfar.data.labelled import require
from nearfar.encoders.towers import ArrayTower, Tower
from nearfar.types import Kind


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
    pil, numpy = require("PIL.Image", "reading images"), require("numpy", "reading images")
    if not isinstance(item, str | Path):
        if not hasattr(item, "convert"):
            raise TypeError(
                f"an image was wanted, not a {type(item).__name__}: pass a path, a Pillow image or a tensor"
            )
        return _pixels(item, shape, pil, numpy)
    try:
        with pil.open(item) as image:
            return _pixels(image, shape, pil, numpy)
    except (OSError, ValueError, SyntaxError, pil.DecompressionBombError) as error:
        reason = str(error).replace(f" {str(item)!r}", "")
        raise ValueError(f"{item}: cannot be read as an image ({reason})") from error


def _pixels(image: Any, shape: tuple[int, ...], pil: Any, numpy: Any) -> Tensor:
    channels, height, width = shape
    if image.mode.startswith("I"):  # sixteen bits: convert("L") alone would clip them to white
        image = image.convert("I").point(lambda value: value * (1 / 256))
    image = image.convert("L" if channels == 1 else "RGB").resize((width, height), pil.Resampling.BILINEAR)
    pixels = torch.from_numpy(numpy.asarray(image).copy())
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def _from_unit(images: Tensor, tower: ArrayTower) -> Tensor:
    """Float images in [0, 1], standardised as bytes would be."""
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"float images are between {images.min():.3g} and {images.max():.3g}: wanted uint8, or floats in [0, 1]; "
            "images that are normalised already go to embedder(kind, images)"
        )
    return tower.standardise(images.float().to(tower.mean.device))
