"""Time against rows of the softmax losses, one panel a loss, as SVG drawn by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from nearfar.report.picture import STYLE

PANELS = ("NT-Xent", "SupCon", "InfoNCE", "CLIP")
FEATURES = 128
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 300, 52, 12, 34, 40
LEGEND = 20
OURS = {"nearfar": "#d55e00", "nearfar bf16": "#e69f00", "nearfar, compiled": "#a33b00"}
OTHERS = {
    "dense": "#8a8a8a", "dense, compiled": "#56b4e9", "lightly": "#0072b2", "pytorch-metric-learning": "#cc79a7",
    "info-nce-pytorch": "#009e73", "open_clip": "#009e73", "sentence-transformers": "#6a51a3",
    "sentence-transformers, cached": "#9e9ac8", "linear_cross_entropy": "#3b3b3b", "linear_cross_entropy, chunked": "#b15928",
}  # fmt: skip
COLOURS = OURS | OTHERS
Curve = list[tuple[int, float]]


def curves(report: dict[str, Any], loss: str) -> dict[str, Curve]:
    """Milliseconds by rows, for each contender that was timed."""
    found: dict[str, Curve] = {}
    for row in report["rows"]:
        if row["loss"] == loss and row["d"] == FEATURES and "milliseconds" in row:
            found.setdefault(row["contender"], []).append((row["n"], row["milliseconds"]))
    return {name: sorted(points) for name, points in found.items()}


def picture(report: dict[str, Any]) -> str:
    """Both axes logarithmic: twice the rows is one step, and a straight line a power."""
    panels = [(loss, found) for loss in PANELS if (found := curves(report, loss))]
    shown = [name for name in COLOURS if any(name in found for _, found in panels)]
    down = (len(panels) + 1) // 2
    width, height = 2 * WIDTH, down * HEIGHT + LEGEND * math.ceil(len(shown) / 3) + 16
    points = [point for _, found in panels for curve in found.values() for point in curve]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Time of forward and backward against rows, d = {FEATURES}">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{width}" height="{height}"/>',
    ]
    for place, (loss, found) in enumerate(panels):
        parts.append(f'<g transform="translate({place % 2 * WIDTH} {place // 2 * HEIGHT})">')
        parts += [*_panel(loss, found, points), "</g>"]
    for place, name in enumerate(shown):
        x, y = 20 + place % 3 * (width - 40) / 3, down * HEIGHT + LEGEND * (place // 3) + 12
        parts.append(f'<rect x="{x:.0f}" y="{y - 10}" width="12" height="12" rx="2" fill="{COLOURS[name]}"/>')
        parts.append(_text(x + 18, y, name, "text soft"))
    return "\n".join([*parts, "</svg>\n"])


def _panel(loss: str, found: dict[str, Curve], points: Curve) -> list[str]:
    rows, times = [n for n, _ in points], [t for _, t in points]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    x = _scale(math.log2(min(rows)), math.log2(max(rows)), LEFT, WIDTH - RIGHT)
    y = _scale(low, max(high, low + 1), HEIGHT - BOTTOM, TOP)
    parts = [_text(LEFT, 22, f"{loss}, d = {FEATURES}", "text title")]
    for power in range(low, max(high, low + 1) + 1):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(power):.1f}" y2="{y(power):.1f}"/>')
        parts.append(_text(LEFT - 6, y(power) + 4, _duration(10**power), "text soft", "end"))
    parts += [
        _text(x(math.log2(n)), HEIGHT - BOTTOM + 16, f"{n:,}", "text soft", "middle") for n in sorted(set(rows))[::2]
    ]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "rows", "text soft", "middle"))
    for name, curve in sorted(found.items(), key=lambda item: item[0] in OURS):  # ours on top
        line = " ".join(f"{x(math.log2(n)):.1f},{y(math.log10(t)):.1f}" for n, t in curve)
        width = 3 if name in OURS else 1.6
        colour = COLOURS.get(name, "#8a8a8a")
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        n, t = curve[-1]
        parts.append(
            f'<circle cx="{x(math.log2(n)):.1f}" cy="{y(math.log10(t)):.1f}" r="{width:.1f}" fill="{colour}"/>'
        )
    return parts


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 else f"{milliseconds:g} ms"


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / ((high - low) or 1) * (stop - start)


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
