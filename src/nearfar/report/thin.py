"""Fewer points than there are, where a page would only grow: what is left out is never a peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CURVE_POINTS = 800
"""Points of a curve: about one a pixel of its plot."""
MAP_POINTS = 3000
"""Points of a map: more hide each other."""
ROC_POINTS = 400
"""Points of a ROC curve."""
QUERIES = 40
"""Queries of a gallery: more than anyone looks through."""


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` positions, the first and the last among them.

    Example:
        >>> evenly(10, 4), evenly(3, 4), evenly(0, 4)
        ([0, 3, 6, 9], [0, 1, 2], [])
    """
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]


def peaks(values: Sequence[float | None], most: int = CURVE_POINTS) -> list[int]:
    """Positions to draw a long curve by: its ends, and the lowest and highest value of every stretch.

    A stretch that has gaps (None) keeps its first gap, so that a loss that became NaN is seen to.

    Example:
        >>> peaks([0.0, 9.0, 1.0, 1.0, 1.0, -5.0, 1.0, 1.0], 6)
        [0, 1, 4, 5, 7]
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    kept = {0, count - 1}
    stretches = max((most - 2) // 2, 1)
    for k in range(stretches):
        places = range(k * count // stretches, (k + 1) * count // stretches)
        known = [i for i in places if values[i] is not None]
        if known:
            by: Any = values.__getitem__
            kept |= {min(known, key=by), max(known, key=by)}
        if len(known) < len(places):
            kept.add(next(i for i in places if values[i] is None))
    return sorted(kept)


def running_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    """The mean over a window around each position, gaps left out; a gap stays a gap.

    Example:
        >>> running_mean([1.0, 2.0, 6.0, None], 3)
        [1.5, 3.0, 4.0, None]
    """
    sums, counts = [0.0], [0]
    for value in values:
        sums.append(sums[-1] + (value or 0.0))
        counts.append(counts[-1] + (value is not None))
    half, means = width // 2, []
    for k, value in enumerate(values):
        low, high = max(k - half, 0), min(k + half + 1, len(values))
        means.append(None if value is None else (sums[high] - sums[low]) / (counts[high] - counts[low]))
    return means
