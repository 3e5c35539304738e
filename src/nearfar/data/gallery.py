"""Views beside what they are views of, as one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from nearfar.data.drawing import generator_of
from nearfar.data.labelled import require

# Pixels between two pictures, and the least side that a small one is enlarged to.
GAP, LEAST_SIDE = 4, 64


def view_grid(images: UInt8[Tensor, "n c h w"], view: nn.Module, views: int = 6, seed: int = 0) -> Any:
    """A picture of images with their views: originals in the first column.

    Args:
        images: ``uint8 (n, c, h, w)``.
        view: What makes a view: of ``make_view`` with means of 0 and standard deviations of 1, so that views are in [0, 1].
        views: How many views of each image.
        seed: Of the views.

    Returns:
        A ``PIL.Image``; small images are enlarged, pixel by pixel.
    """
    pil = require("PIL.Image", "drawing views")
    generator = generator_of(seed)
    columns = [images.float() / 255] + [view(images, generator=generator).cpu() for _ in range(views)]
    scale = max(1, -(-LEAST_SIDE // min(columns[1].shape[2:])))
    cells = [_cells(column, columns[1].shape[2:], scale) for column in columns]
    n, height, width = len(images), *cells[0].shape[1:3]
    page = torch.full((n * (height + GAP) + GAP, len(cells) * (width + GAP) + 3 * GAP, 3), 255, dtype=torch.uint8)
    for i in range(n):
        for j, column in enumerate(cells):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP) + (2 * GAP if j else 0)
            page[top : top + height, left : left + width] = column[i]
    return pil.fromarray(page.numpy())


def _cells(images: Float[Tensor, "n c h w"], size: Sequence[int], scale: int) -> UInt8[Tensor, "n y x 3"]:
    """Floats ``(n, c, h, w)`` as bytes ``(n, height, width, 3)``, enlarged."""
    if images.shape[2:] != torch.Size(size):
        images = torch.nn.functional.interpolate(images, tuple(size), mode="bilinear", antialias=True)
    pixels = images.clamp(0, 1).mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def write_picture(path: Path, picture: Any) -> None:
    """Writes a picture so that a reader never meets half of it."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix or '.png'}")
    try:
        picture.save(beside, format=None if path.suffix else "PNG")
        beside.replace(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be written ({error}): pass a name that ends in .png") from error
    finally:
        beside.unlink(missing_ok=True)
