"""Images whose pixels are more than bytes: their numbers, and which of them are black and white."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from nearfar.data.pictures import Source, opened, upright

Depth = Literal["integer", "float"]
"""What pixels are that are no bytes: integers of 12 to 32 bits, or floats."""
Range = tuple[float, float]
"""The number that is black and the number that is white."""
Ranges = Mapping[str, Range]
"""A range for each depth. It is one for all images of a data set, so that a dark image stays darker than a bright one."""

FULL: dict[str, Range] = {"integer": (0.0, 65535.0)}
"""All sixteen bits: how models were trained whose folder does not say."""
# Tags of TIFF for the lowest and the highest value: SMinSampleValue and SMaxSampleValue, MinSampleValue and MaxSampleValue.
LIMITS = ((340, 341), (280, 281))
BITS, PHOTOMETRIC, SAMPLE_FORMAT, NO_DATA = 258, 262, 339, 42113
# Usual scales of floats, and the part of a scale that values are to span: below it, half of 256 shades would be lost.
FLOAT_SCALES, SPANNED = (1.0, 255.0, 65535.0), 1 / 2


def tag(image: Any, number: int) -> Any:
    """A tag of a TIFF file, the first value where there are several; None: there is none, or it is no TIFF."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def depth_of(image: Any) -> Depth | None:
    """What the pixels of a Pillow image are; None: bytes."""
    if image.mode == "F":
        return "float"
    signed = image.mode == "L" and tag(image, SAMPLE_FORMAT) == 2
    return "integer" if image.mode.startswith("I") or signed or is_wide(image) else None


def is_wide(image: Any) -> bool:
    """Whether colours have sixteen bits, of which Pillow keeps the upper byte."""
    return image.mode in ("RGB", "RGBA") and ";16" in _raw_mode(image)


def _raw_mode(image: Any) -> str:
    """How Pillow unpacks a file that it has opened and not decoded."""
    for tile in getattr(image, "tile", None) or ():
        return tile[3] if isinstance(tile[3], str) else str(tile[3][0]) if tile[3] else ""
    return ""


def stated_range(image: Any) -> Range | None:
    """The range that a file states; None: it says only how wide its numbers are.

    Args:
        image: Opened by Pillow, not decoded.
    """
    for pair in LIMITS:
        low, high = (tag(image, number) for number in pair)
        if isinstance(low, int | float) and isinstance(high, int | float) and -math.inf < low < high < math.inf:
            return float(low), float(high)
    bits = tag(image, BITS)
    if isinstance(bits, int) and 8 < bits < 16:
        return 0.0, 2.0**bits - 1
    tiles = image.format == "PPM" and image.tile
    # Pillow has brought these to sixteen bits by what the file says.
    return FULL["integer"] if image.format == "JPEG2000" or (tiles and tiles[0][0] == "ppm") else None


def usual_range(depth: str, low: float, high: float, bits: int = 0) -> Range:
    """The range of numbers by the lowest and the highest of them.

    Integers have as many bits as the highest needs, such as a camera's 12 of 16; floats a usual scale that holds them. Where
    they span less than half of that, or some are negative, the range goes from the lowest to the highest.

    Args:
        depth: What they are.
        low: The lowest.
        high: The highest.
        bits: How many of sixteen the file calls significant; 0: it does not say. They may be the lower ones, or have been
            brought to the upper end.

    Example:
        >>> usual_range("integer", 3.0, 4000.0), usual_range("integer", 30e3, 31e3), usual_range("float", 0.02, 0.97)
        ((0.0, 4095.0), (30000.0, 31000.0), (0.0, 1.0))
    """
    if bits and depth == "integer":
        return (0.0, 2.0**bits - 1) if high < 2**bits else FULL["integer"]
    scales = (2.0 ** max(1, int(high).bit_length()) - 1,) if depth == "integer" else FLOAT_SCALES
    scale = next((scale for scale in scales if low >= 0 and high <= scale), None)
    if scale is not None and (low == high or high - low >= SPANNED * scale):
        return 0.0, scale
    return float(low), float(high if low < high else low + 1)


def shares(values: Float64[np.ndarray, "h w c"], limits: Range) -> Float64[np.ndarray, "h w c"]:
    """Numbers as shares of a range, 0 for black and 1 for white: what lies beyond is cut off, and what is no number is black."""
    low, high = limits
    return np.nan_to_num((values - low) / (high - low), nan=0.0).clip(0, 1)


def samples(source: Source) -> tuple[Float64[np.ndarray, "h w c"], Float64[np.ndarray, "h w"] | None]:
    """The numbers of an image that are no bytes, upright: NaN where it says that there is none; and how opaque each pixel is.

    Raises:
        OSError, ValueError, SyntaxError: If it cannot be decoded.
    """
    with opened(source) as image:
        wide, clear = is_wide(image), image.info.get("transparency")
        image.load()
        held = np.asarray(upright(image))
        if image.mode == "L":
            values = held.view(np.int8).astype(np.float64)
        elif image.mode == "I" and (tag(image, BITS), tag(image, SAMPLE_FORMAT) or 1) == (32, 1):
            values = held.view(np.uint32).astype(np.float64)  # which Pillow takes for signed ones
        else:
            values = held.astype(np.float64)
        if tag(image, PHOTOMETRIC) == 0:  # white is zero
            values = (65535 if held.dtype.itemsize == 2 else 0) - values
        nothing = tag(image, NO_DATA)
    if wide:
        values = values * 256 + _lower_bytes(source)
    if isinstance(nothing, str):
        with suppress(ValueError, OverflowError):  # the tag holds no number, or none that a pixel could be
            values[values == float(np.asarray(float(nothing.strip("\0 ")), held.dtype))] = np.nan
    values[~np.isfinite(values)] = np.nan
    if values.ndim == 2:
        return values[..., None], (values != clear).astype(np.float64) if isinstance(clear, int) else None
    return (values[..., :3], values[..., 3] / 65535) if values.shape[2] == 4 else (values, None)


def _lower_bytes(source: Source) -> np.ndarray:
    """The lower bytes of colours of sixteen bits, of which Pillow keeps the upper ones: it is told that they lie the other way."""
    other = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    with opened(source) as image:
        mode = _raw_mode(image)
        two = mode.startswith("LA")  # two channels of two bytes, unpacked as four of one
        mode = "RGBA" if two else mode[:-1] + other[mode[-1]]
        given = [mode if isinstance(tile[3], str) else (mode, *tile[3][1:]) for tile in image.tile]
        image.tile = [
            (*tile[:3], new) if type(tile) is tuple else tile._replace(args=new) for tile, new in zip(image.tile, given)
        ]
        image.load()
        held = np.asarray(upright(image))
    return held[..., [1, 1, 1, 3]] if two else held
