"""Colours of arms: fixed by name, told apart by the colour-blind, readable on light and on dark (Okabe & Ito 2008)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CONTROLS = ("#0072b2", "#56b4e9", "#009e73")
CONTRASTS = ("#d55e00", "#e69f00", "#cc79a7")
BASELINE = "#8a8a8a"
DASHES = {"baseline": "solid", "control": "dot", "contrast": "solid"}


def colours(arms: list[dict[str, Any]]) -> dict[str, str]:
    """A colour for each arm by its name: cool for controls, warm for contrast, grey for the baseline.

    Example:
        >>> colours([{"name": "task", "kind": "baseline"}, {"name": "joint", "kind": "contrast"}])
        {'task': '#8a8a8a', 'joint': '#d55e00'}
    """
    counts = {"baseline": 0, "control": 0, "contrast": 0}
    found = {}
    for arm in arms:
        shades = {"baseline": (BASELINE,), "control": CONTROLS, "contrast": CONTRASTS}[arm["kind"]]
        found[arm["name"]] = shades[counts[arm["kind"]] % len(shades)]
        counts[arm["kind"]] += 1
    return found


def shown_first(result: dict[str, Any]) -> list[str]:
    """The arms that the verdict speaks of: the baseline, the best without contrast, and the one with contrast."""
    rival = result["rivals"][result["headline"]] if result["rivals"] else None
    names = [arm["name"] for arm in result["arms"] if arm["kind"] == "baseline"]
    return list(dict.fromkeys([*names, *filter(None, (rival, result["contrast"]))]))


@dataclass(frozen=True)
class Style:
    """How a run or a class is told from the others: never by its colour alone."""

    colour: str
    symbol: str
    """Plotly's name of a marker."""
    dash: str = "solid"


_LINES = (
    ("#0072b2", "circle", "solid"), ("#d55e00", "square", "dash"), ("#009e73", "diamond", "dot"),
    ("#cc79a7", "triangle-up", "dashdot"), ("#e69f00", "x", "longdash"), ("#56b4e9", "cross", "longdashdot"),
    ("#8a8a8a", "star", "solid"),
)  # fmt: skip
_HUES = (*(colour for colour, *_ in _LINES), "#9467bd", "#8c564b", "#b0a000")
GLYPHS = {
    "circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "triangle-down": "▼", "cross": "✚", "x": "✖",
    "star": "★", "pentagon": "⬟", "hexagon": "⬢",
}  # fmt: skip
"""Plotly's markers, as signs."""
_STROKES = {
    "solid": "none",
    "dash": "9 5",
    "dot": "2 4",
    "dashdot": "9 4 2 4",
    "longdash": "13 5",
    "longdashdot": "13 4 2 4",
}


def run_style(k: int) -> Style:
    """Of the k-th run: colour, marker and dash differ.

    Example:
        >>> run_style(0), run_style(7) == run_style(0)
        (Style(colour='#0072b2', symbol='circle', dash='solid'), True)
    """
    return Style(*_LINES[k % len(_LINES)])


def class_style(k: int) -> Style:
    """Of the k-th class: a hundred differ by colour and marker together.

    Example:
        >>> len({class_style(k) for k in range(100)})
        100
    """
    symbols = tuple(GLYPHS)
    return Style(_HUES[k % len(_HUES)], symbols[(k + k // len(_HUES)) % len(symbols)])


def swatch(style: Style) -> str:
    """A run's line and marker, as HTML that screen readers leave out."""
    return (
        f'<svg class="key" width="34" height="12" aria-hidden="true"><line x1="1" x2="33" y1="6" y2="6" stroke="{style.colour}" '
        f'stroke-width="2.5" stroke-dasharray="{_STROKES[style.dash]}"/></svg>{glyph(style)}'
    )


def glyph(style: Style) -> str:
    """A marker, as HTML that screen readers leave out."""
    return f'<span class="glyph" style="color:{style.colour}" aria-hidden="true">{GLYPHS[style.symbol]}</span>'
