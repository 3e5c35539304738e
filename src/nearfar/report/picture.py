"""The learning curves as one SVG picture, drawn by hand: for a README, and for readers without scripts."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from nearfar.report.format import Real, bounded, count, percent
from nearfar.report.palette import colours, shown_first

Scale = Callable[[Real], float]

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 52, 46

STYLE = """
.text { fill: #1d1d1f; font: 13px system-ui, sans-serif; } .soft { fill: #5c5f66; font-size: 12px; }
.title { font-size: 15px; font-weight: 600; } .grid { stroke: #d5d7db; } .back { fill: #ffffff; }
.target { stroke: #8a8a8a; stroke-dasharray: 5 4; }
@media (prefers-color-scheme: dark) { .text { fill: #eceef2; } .soft { fill: #a5a9b3; } .grid { stroke: #3b3f48; }
.back { fill: #15171b; } }
"""


def render_picture(result: dict[str, Any]) -> str:
    """Test accuracy against steps of the arms that the verdict speaks of, with bands and the target, as SVG.

    Steps are on a logarithmic scale: how many times sooner is then a distance.

    Args:
        result: As in ``result.json``.

    Returns:
        The text of the picture; light or dark as its reader prefers.
    """
    if not result["arms"]:
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"></svg>'
    arms = [arm for arm in result["arms"] if arm["name"] in shown_first(result)]
    target, steps = result["targets"][result["headline"]], arms[0]["curve"]["steps"]
    low = math.floor(10 * max(min(arm["curve"]["mean"][0] for arm in arms) - 0.05, 0)) / 10
    first = steps[0] if len(steps) > 1 else steps[0] / 2
    along = _scale(math.log(first), math.log(steps[-1]), LEFT, WIDTH - RIGHT)
    x: Scale = lambda step: along(math.log(step))  # noqa: E731
    y = _scale(low, 1, HEIGHT - BOTTOM, TOP)
    shades = colours(result["arms"])
    title = f"Test accuracy on {result['data']['name']}, mean of {arms[0]['seeds']} seeds"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif" '
        f'aria-label="{escape(result["verdict"][0])}">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        _text(16, 26, title, "text title"),
        *(_across(y(tick), "grid") + _text(LEFT - 8, y(tick) + 4, f"{100 * tick:.0f}%", "text soft", "end")
          for tick in _ticks(low, 1.0)),
        *(_text(x(tick), HEIGHT - BOTTOM + 18, count(tick), "text soft", "middle") for tick in _doubling(first, steps[-1])),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "optimiser steps, logarithmic", "text soft", "middle"),
        _across(y(target["accuracy"]), "target"),
        *(_curve(arm["curve"], shades[arm["name"]], x, y, low, dotted=arm["kind"] == "control") for arm in arms),
        *(_label(row, arm, shades[arm["name"]], arm["reach"][result["headline"]], target, x, y)
          for row, arm in enumerate(arms)),
        "</svg>\n",
    ])  # fmt: skip


def _curve(curve: dict[str, list[float]], colour: str, x: Scale, y: Scale, low: float, *, dotted: bool) -> str:
    """The mean with its band."""
    points = {
        name: [f"{x(step):.1f},{y(max(value, low)):.1f}" for step, value in zip(curve["steps"], curve[name])]
        for name in ("high", "low", "mean")
    }
    return (
        f'<polygon points="{" ".join([*points["high"], *points["low"][::-1]])}" fill="{colour}" opacity="0.15"/>'
        f'<polyline points="{" ".join(points["mean"])}" fill="none" stroke="{colour}" stroke-width="2.2"'
        + (' stroke-dasharray="2 4"/>' if dotted else "/>")
    )


def _label(
    row: int, arm: dict[str, Any], colour: str, reach: dict[str, Any], target: dict[str, Any], x: Scale, y: Scale
) -> str:
    """An arm's name and its steps to the target, beside the plot; a dot in it where it arrives."""
    top, left = TOP + 24 + 46 * row, WIDTH - RIGHT + 16
    words = f"{bounded(*reach['steps'], show=count)} steps to {percent(target['accuracy'])}"
    dot = ""
    if reach["steps"][1] is not None:
        dot = f'<circle cx="{x(reach["steps"][0]):.1f}" cy="{y(target["accuracy"]):.1f}" r="4.5" fill="{colour}"/>'
    return (
        f'{dot}<rect x="{left}" y="{top - 11}" width="12" height="12" rx="2" fill="{colour}"/>'
        + _text(left + 18, top, arm["name"], "text")
        + _text(left + 18, top + 17, words, "text soft")
    )


def _across(height: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'


def _scale(low: Real, high: Real, start: Real, stop: Real) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _ticks(low: float, high: float) -> list[float]:
    """Five or so round numbers from low to high."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    return [round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _doubling(low: Real, high: Real) -> list[float]:
    """Numbers from low to high, each twice the one before: on a logarithmic scale, equal distances."""
    return [low * 2**k for k in range(math.floor(math.log2(high / low) + 1e-9) + 1)]


def _text(x: Real, y: Real, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
