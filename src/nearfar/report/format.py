"""Numbers as a reader meets them: rounded to what is known, and open where the data leave an end open."""

from __future__ import annotations

import math
from collections.abc import Callable

Real = float | int
Number = Real | None
"""None stands for infinite, as in files."""


def percent(value: Real) -> str:
    """A part of one, in percent.

    Example:
        >>> percent(0.9315)
        '93.2%'
    """
    return f"{100 * value:.1f}%"


def times(value: Real) -> str:
    """A ratio.

    Example:
        >>> times(1.456), times(23.4)
        ('1.46×', '23.4×')
    """
    return f"{value:.3g}×" if value >= 10 else f"{value:.2f}×"


def points(value: Real) -> str:
    """A difference of accuracies, in percentage points.

    Example:
        >>> points(0.012), points(-0.0004)
        ('+1.2 points', '−0.0 points')
    """
    return f"{'−' if value < 0 else '+'}{abs(100 * value):.1f} points"


def count(value: Real) -> str:
    """Steps or rows.

    Example:
        >>> count(45000.0), count(34.5)
        ('45,000', '34.5')
    """
    return f"{value:,.1f}".removesuffix(".0")


def seconds(value: Real) -> str:
    """A time.

    Example:
        >>> seconds(0.0342), seconds(75.2)
        ('34 ms', '75.2 s')
    """
    if value >= 1:
        return f"{value:.1f} s"
    return f"{1000 * value:.0f} ms" if value >= 0.01 else f"{1000 * value:.1f} ms"


def bounded(lower: Number, upper: Number, show: Callable[[Real], str] = times) -> str:
    """A number that lies between two, which are equal if it is known.

    Example:
        >>> bounded(2.0, 2.0), bounded(2.0, None), bounded(0.0, 2.0), bounded(1.0, 2.0), bounded(0.0, None)
        ('2.00×', '≥ 2.00×', '≤ 2.00×', '1.00×–2.00×', 'open')
    """
    below, above = _open(lower) or not lower, _open(upper)
    if below and above:
        return "open"
    if above:
        assert lower is not None
        return f"≥ {show(lower)}"
    assert upper is not None
    if below and upper:
        return f"≤ {show(upper)}"
    assert lower is not None
    return show(lower) if lower == upper else f"{show(lower)}–{show(upper)}"


def interval(low: Number, high: Number, show: Callable[[Real], str] = times) -> str:
    """An interval, open where it has no end; a ratio of 0 is one.

    Example:
        >>> interval(1.5, 2.25), interval(1.5, None), interval(0.0, None), interval(0.0, 0.01, points)
        ('1.50× to 2.25×', '1.50× or more', 'open', '+0.0 points to +1.0 points')
    """
    below, above = _open(low) or (low == 0 and show is times), _open(high)
    if below and above:
        return "open"
    if above:
        assert low is not None
        return f"{show(low)} or more"
    assert high is not None
    if below:
        return f"{show(high)} or less"
    assert low is not None
    return f"{show(low)} to {show(high)}"


def _open(value: Number) -> bool:
    return value is None or math.isinf(value)
