"""Where the channels of images are, first or last, by the sizes of an array's axes."""

from __future__ import annotations

FEW = 4
"""Channels of nearly all images: grey, with alpha, red, green and blue, with alpha."""


def channels_last(shape: tuple[int, int, int]) -> bool | None:
    """Whether the channels of an image come last; None: it could be either.

    They come first, as documented, where the other two axes are equal or the first has few; last where the last alone has few,
    or where the first two are equal and larger.

    Args:
        shape: Of one image, three sizes.

    Example:
        >>> [channels_last(shape) for shape in ((3, 32, 32), (48, 64, 3), (64, 64, 13), (3, 64, 4))]
        [False, True, True, None]
    """
    first, middle, last = shape
    if middle == last:
        return False
    if first <= FEW or last <= FEW:
        return None if first <= FEW and last <= FEW else last <= FEW
    if first == middle:
        return True if last < first else None
    return None if last < min(first, middle) else False


def image_layout(
    shape: tuple[int, ...], what: str, *, exact: bool = False, known: tuple[int, int, int] | None = None
) -> tuple[tuple[int, int, int], bool]:
    """Channels, height and width of images, and whether the channels come last.

    Args:
        shape: Of one image, as it was given.
        what: What it is, for errors.
        exact: Take a shape that could be either as documented: channels first.
        known: The shape that is wanted: of two readings the one that gives it.

    Raises:
        ValueError: If it is no shape of images, or could be read in two ways.
    """
    if len(shape) not in (2, 3):
        raise ValueError(f"{what} {shape}: (height, width) or (channels, height, width) was wanted")
    if len(shape) == 2:
        return (1, shape[0], shape[1]), False
    first, last = (shape[0], shape[1], shape[2]), (shape[2], shape[0], shape[1])
    if known in (first, last):
        return known, known != first
    ends = False if known is not None else channels_last(first)
    if ends is None and not exact:
        raise ValueError(
            f"{what} {shape}, which could be (channels, height, width) or (height, width, channels): say which by "
            f"image_shape={first} or image_shape={last} (channels, height, width)"
        )
    return last if ends else first, bool(ends)
