"""What a user hands in to be embedded: which kind it is, and how it is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from nearfar.data.corpus import Raw
from nearfar.data.depth import Ranges
from nearfar.data.pixels import BROKEN, LUMA, SUFFIXES, decode_image, find_ranges, image_header, unreadable
from nearfar.encoders.towers import ArrayTower, Tower
from nearfar.given import as_tensor
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
    if getattr(getattr(items, "dtype", None), "kind", "O") in "fiubc" and hasattr(items, "__array__"):
        return _numbers("items", items)
    return items.to_pylist() if hasattr(items, "to_pylist") else list(items)


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


def read_items(items: Any, tower: Tower, ranges: Ranges | None = None) -> Raw:
    """Items as the data would hold them.

    Args:
        items: Some of those that were handed in.
        tower: What they are for.
        ranges: Which numbers are black and white, in images of more than bytes.

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
    if tower.kind != "image":
        rows = items if isinstance(items, Tensor) else _stacked(items)
        return _real(rows).float()
    if isinstance(items, Tensor):
        return _from_array(items, tower)
    images = [
        _from_array(_numbers("an image", item)[None], tower)
        if is_array(item)
        else read_image(item, tower.shape, ranges)[None]
        for item in items
    ]
    if len({image.dtype for image in images}) > 1:
        images = [tower.normalise(image.to(tower.mean.device)) for image in images]
    return torch.cat(images)


def _numbers(what: str, items: Any) -> Tensor:
    """An array as a tensor, of the type that it has: messages name it."""
    if getattr(items, "dtype", None) in (np.uint16, np.uint32):
        return torch.as_tensor(np.ascontiguousarray(items))
    return as_tensor(what, items, "numbers")


def _stacked(items: Sequence[Any]) -> Tensor:
    rows = [_numbers("an item", item) for item in items]
    if shapes := {tuple(row.shape) for row in rows[1:]} - {tuple(row.shape) for row in rows[:1]}:
        raise ValueError(f"items have shapes {tuple(rows[0].shape)} and {shapes.pop()}: wanted one shape for all")
    return torch.stack(rows) if rows else torch.empty(0)


def is_array(item: Any) -> bool:
    """Whether an item is a tensor or an array, and no picture of Pillow's."""
    return isinstance(item, Tensor) or (
        hasattr(item, "__array__") and not (isinstance(item, str) or hasattr(item, "convert"))
    )


def ranges_of(items: Sequence[Any], tower: Tower) -> Ranges:
    """Which numbers are black and white in image files of more than bytes: as in training, else found by all of the items."""
    known = tower.ranges if isinstance(tower, ArrayTower) else {}
    sources, headers = [], []
    for item in items if tower.kind == "image" else ():
        with suppress(*BROKEN):  # met again, and named, when it is read
            source = Path(item) if isinstance(item, str) else item
            if isinstance(source, Path) or hasattr(source, "convert"):
                headers.append(image_header(source))
                sources.append(source)
    return find_ranges(sources, headers, known)


def read_image(item: Any, shape: tuple[int, ...], ranges: Ranges | None = None) -> UInt8[Tensor, "c h w"]:
    """An image of the shape ``(c, h, w)`` that a tower reads.

    Args:
        item: A path, or a Pillow image.
        shape: Channels, one for grey and three for RGB, and height and width, to which it is scaled.
        ranges: Which numbers are black and white, in images of more than bytes.

    Raises:
        TypeError: If it is neither.
        ValueError: If it cannot be read; the message names the file.
    """
    channels, height, width = shape
    if not isinstance(item, str | Path) and not hasattr(item, "convert"):
        raise TypeError(f"an image was wanted, not a {type(item).__name__}: pass a path, a Pillow image or a tensor")
    if channels not in (1, 3):
        raise ValueError(
            f"image files are read as grey or as RGB, and the model reads {channels} channels: pass tensors"
        )
    try:
        return decode_image(Path(item) if isinstance(item, str) else item, (height, width), channels, ranges)
    except BROKEN as error:
        where = item if isinstance(item, str | Path) else getattr(item, "filename", "") or "a Pillow image"
        raise ValueError(unreadable(where, error)) from error


def _from_array(images: Tensor, tower: ArrayTower) -> Tensor:
    """Images as the tower reads them: bytes, or floats in [0, 1] standardised as bytes would be."""
    if len(_real(images)) and not images.numel():
        raise ValueError(
            f"images of shape {tuple(images.shape)} hold no pixel: wanted a height and a width of one at least"
        )
    if images.dtype == torch.uint8:
        return fit_images(images, tower.shape)
    given, images = str(images.dtype).removeprefix("torch."), images.float()
    if len(images) and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"{'float' if 'float' in given else given} images are between {images.min():.3g} and {images.max():.3g}: wanted uint8, "
            "or floats in [0, 1]; images that are normalised already go to embedder(kind, images)"
        )
    return tower.standardise(fit_images(images, tower.shape).to(tower.mean.device))


def _real(items: Tensor) -> Tensor:
    """The same, unless they are complex numbers."""
    if items.is_complex():
        raise TypeError(f"items are {items.dtype}: wanted real numbers")
    return items


def fit_images(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images as arrays at the channels and the size that a tower reads, as files are read; as they are where they fit.

    Channels may come last, ``(n, h, w, c)``. Grey is the luma of ITU-R BT.601, as Pillow's; an alpha channel is laid over white.

    Args:
        images: Bytes, or numbers in [0, 1].
        shape: Channels, height and width that the tower reads.

    Raises:
        ValueError: If they are no images, or nobody knows how to make so many channels of theirs.
    """
    if tuple(images.shape[1:]) == tuple(shape):
        return images
    channels, height, width = shape
    known = (channels, 4 - channels, 2, 4) if channels in (1, 3) else (channels,)
    axis = next((at for count in known for at in (1, 3) if images.ndim == 4 and images.shape[at] == count), None)
    if axis is None:
        raise ValueError(
            f"the image tower was given {tuple(images.shape)}: wanted (n, {channels}, {height}, {width}), where height and width "
            "may be others and channels may come last. One image is images[None]; grey ones without channels are images[:, None]"
        )
    pixels, white = images.movedim(axis, 1), 255.0 if images.dtype == torch.uint8 else 1.0
    if channels in (1, 3) and pixels.shape[1] in (2, 4):
        colour, opaque = pixels[:, :-1].float(), pixels[:, -1:].float() / white
        pixels = _as_given(white + (colour - white) * opaque, images)
    if pixels.shape[1] == 3 and channels == 1:
        luma = torch.tensor(LUMA, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        pixels = _as_given((pixels.float() * luma).sum(1, keepdim=True), images)
    pixels = pixels.expand(-1, channels, -1, -1)
    if pixels.shape[2:] == (height, width):
        return pixels
    exact = (
        pixels.dtype == torch.uint8 and pixels.device.type == "cpu"
    )  # there bytes are scaled by Pillow's own arithmetic
    scaled = interpolate(pixels if exact else pixels.float(), (height, width), mode="bilinear", antialias=True)
    return _as_given(scaled, images)


def _as_given(values: Tensor, images: Tensor) -> Tensor:
    """Numbers as images of the given type: bytes are rounded."""
    return values.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else values
