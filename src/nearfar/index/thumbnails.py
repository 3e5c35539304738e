"""Small pictures of rows, inside the page: PNG as data URIs."""

from __future__ import annotations

import base64
import io

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from nearfar.data.labelled import require
from nearfar.report.run_schema import Item

LETTERS = 240
"""Of a text that are shown."""


def thumbnail(image: UInt8[Tensor, "c h w"] | Float[Tensor, "c h w"], side: int = 32) -> str:
    """A picture as a data URI, its longer side at most ``side`` pixels; smaller ones stay as they are.

    Args:
        image: Bytes, or floats in [0, 1]; grey, or red, green and blue.
        side: Of the picture: 32 pixels are some 3 kB, so that a thousand of them make 3 MB.

    Example:
        >>> thumbnail(torch.zeros(1, 64, 32, dtype=torch.uint8)).partition(",")[0]
        'data:image/png;base64'
    """
    pil = require("PIL.Image", "pictures in a report")
    pixels = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels if pixels.shape[0] in (1, 3) else pixels[:1]
    picture = pil.fromarray(pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((side, side))
    held = io.BytesIO()
    picture.save(held, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def make_item(name: str, raw: Tensor | str, label: int | None, kind: str, side: int = 32) -> Item:
    """A row as a reader may recognise it."""
    item: Item = {"name": name}
    if label is not None and label >= 0:
        item["label"] = label
    if kind == "image" and isinstance(raw, Tensor):
        item["thumbnail"] = thumbnail(raw, side)
    elif isinstance(raw, str):
        item["text"] = raw if len(raw) <= LETTERS else raw[: LETTERS - 1] + "…"
    return item
