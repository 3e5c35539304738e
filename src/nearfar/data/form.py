"""How all images of a data set are read: at one size, with one number of channels, from one black to one white."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nearfar.data.depth import Range, Ranges
from nearfar.data.pictures import Source
from nearfar.data.pixels import Header, find_ranges
from nearfar.names import refuse_unused

# The longer side of images nobody gave a size for: small enough to train on without a GPU.
LONGEST_SIDE = 64


@dataclass(frozen=True)
class Form:
    """How images are read."""

    size: tuple[int, int] | None = None
    """Height and width; None: there are no images."""
    channels: int | None = None
    """1 (brightness) or 3 (red, green, blue)."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Which numbers are black and white, for each depth of more than bytes."""
    notes: tuple[str, ...] = ()
    """What was decided, in words."""


def find_form(
    sources: Sequence[Source],
    headers: Sequence[Header],
    size: int | tuple[int, int] | None = None,
    given: Range | None = None,
    known: Ranges | None = None,
) -> Form:
    """How some images are read.

    Args:
        sources: The images.
        headers: Of each.
        size: The size that was asked for; by default ``common_size``.
        given: The range that was asked for.
        known: Ranges that are known of the model; they are kept.

    Raises:
        ValueError: If a range was asked for, and no image has more than 8 bits.
    """
    if not headers:
        return Form(ranges=dict(known or {}))
    depths = dict.fromkeys(header.depth for header in headers if header.depth is not None)
    refuse_unused({} if depths else {"pixel_range": given}, "all images have 8 bits, of which 0 is black and 255 white")
    asked = {} if given is None else dict.fromkeys(("integer", "float"), given)
    ranges = find_ranges(sources, headers, {**(known or {}), **asked})
    told = [
        f"pixels are {depth}s: {ranges[depth][0]:.10g} is black and {ranges[depth][1]:.10g} white"
        + (" (as in training)" if given is None and depth in (known or {}) else "")
        for depth in depths
    ]
    sides = [(header.height, header.width) for header in headers]
    target = common_size(sides) if size is None else size_pair(size)
    return Form(target, 1 if all(header.grey for header in headers) else 3, ranges, tuple(told))


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
