"""What another program has to do to an image before an exported graph sees it, in words and as facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def image_reading(shape: Sequence[int]) -> dict[str, Any]:
    """How image files become the pixels that a tower of this shape takes, as ``data.pixels`` reads them.

    Args:
        shape: Channels, height and width.

    Example:
        >>> facts = image_reading((3, 64, 48))
        >>> facts["mode"], facts["height"], facts["width"], facts["resize"]["filter"], facts["resize"]["antialias"]
        ('RGB', 64, 48, 'bilinear', True)
    """
    channels, height, width = shape
    return {
        "mode": "L" if channels == 1 else "RGB",
        "height": height,
        "width": width,
        "resize": {
            "filter": "bilinear",
            "antialias": True,
            "keep_aspect_ratio": False,
            "as": f"Pillow: image.resize(({width}, {height}), Image.Resampling.BILINEAR)",
        },
        "orientation": "upright, by EXIF",
        "transparent": "white",
        "values": "bytes, 0 to 255",
        "order": "converted to the mode, then resized; a JPEG may be decoded at a half, quarter or eighth before that, if that is "
        "large enough",
    }


def image_words(shape: Sequence[int]) -> str:
    """The same in a sentence.

    Example:
        >>> image_words((1, 28, 28))[:66]
        'Images are read upright (EXIF), on white, as L, resized to 28×28 ('
    """
    facts = image_reading(shape)
    return (
        f"Images are read upright (EXIF), on white, as {facts['mode']}, resized to {facts['height']}×{facts['width']} "
        "(height×width) by a bilinear filter with antialiasing (Pillow)."
    )
