"""What plots of all pages share: text made safe for plotly, numbers made safe for JSON, the plain layout."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Figure = dict[str, Any]
"""Plotly's plain data: ``{"data": [...], "layout": {...}}``."""

# Plotly reads tags and %{…} in labels and hover texts, and turns entities back into signs when it writes them.
_SPELLED = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "%": "&#37;", "{": "&#123;", "}": "&#125;", "$": "&#36;"}
)


def spell(text: str, longest: int = 80) -> str:
    """Text from the data for a label or a hover text of plotly: shown as it is, never read as markup or as a template.

    Args:
        text: Any.
        longest: Signs; more are cut, so that a label cannot fill the plot.

    Example:
        >>> spell("a <b>bold</b> %{x} &amp;"), spell("x" * 9, 4)
        ('a &lt;b&gt;bold&lt;/b&gt; &#37;&#123;x&#125; &amp;amp;', 'xxx…')
    """
    return shorten(text, longest).translate(_SPELLED)


def shorten(text: str, longest: int) -> str:
    """Text on one line, cut to a length."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def finite(value: Any, digits: int = 6) -> float | None:
    """A number to so many digits; None where it is none, which plotly draws as a gap.

    Example:
        >>> finite(0.12345678), finite(float("nan")), finite(None)
        (0.123457, None, None)
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def finites(values: Iterable[Any], digits: int = 6) -> list[float | None]:
    """Each as :func:`finite`."""
    return [finite(value, digits) for value in values]


def framed(data: list[dict[str, Any]], height: int = 420, **layout: Any) -> Figure:
    """A figure in the frame that all have; the page's script adds its colours."""
    for axis in ("xaxis", "yaxis"):
        if isinstance(layout.get(axis, {}).get("title"), str):
            layout[axis]["title"] = {"text": layout[axis]["title"]}
    common = {
        "margin": {"l": 60, "r": 20, "t": 30, "b": 55},
        "height": height,
        "hovermode": "closest",
        "showlegend": False,
    }
    return {"data": data, "layout": common | layout}
