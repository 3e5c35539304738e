"""The way of a run through alignment and uniformity (Wang & Isola 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from nearfar.report.html import Section, folded, plot, table
from nearfar.report.plotted import finite, framed, spell
from nearfar.report.sections.shown import Shown, number
from nearfar.report.thin import evenly

# Marks of a path: more arrows than that are a smear.
MARKS = 40
KEY = "path-plot"
Point = tuple[int, float, float]
"""Step, uniformity, alignment."""


def path(runs: Sequence[Shown]) -> Section | None:
    """Both axes, an arrow a look, runs overlaid."""
    found = [(one, points) for one in runs if (points := _points(one))]
    if not found:
        return None
    data, marks = [], []
    for one, points in found:
        words = [f"step {step:,}" if step else "before training" for step, *_ in points]
        shared = {
            "type": "scatter", "meta": {"box": one.key}, "cliponaxis": False, "customdata": words,
            "hovertemplate": f"%{{customdata}}<br>uniformity %{{x:.3f}}, alignment %{{y:.3f}}<extra>{spell(one.name, 40)}</extra>",
        }  # fmt: skip
        xs, ys = [x for _, x, _ in points], [y for *_, y in points]
        data.append({
            **shared, "mode": "lines+markers+text", "x": xs, "y": ys, "textposition": "bottom center",
            "line": {"color": one.style.colour, "dash": one.style.dash, "width": 2},
            "marker": {
                "symbol": "arrow", "angleref": "previous", "size": 11, "color": one.style.colour,
                "opacity": [0, *[1] * (len(points) - 1)],
            },
            "text": [*[""] * (len(points) - 1), words[-1] if len(points) > 1 else ""],
        })  # fmt: skip
        data.append({
            **shared, "mode": "markers+text", "x": xs[:1], "y": ys[:1], "text": words[:1], "textposition": "top center",
            "marker": {"symbol": "circle-open", "size": 11, "color": one.style.colour, "line": {"width": 2}},
        })  # fmt: skip
    for words, at in (("← spread more evenly", {"x": 0, "y": 1.06, "xanchor": "left"}),
                      ("pairs nearer ↓", {"x": 1, "y": 1.06, "xanchor": "right"})):  # fmt: skip
        marks.append({"text": words, "xref": "paper", "yref": "paper", "showarrow": False, "font": {"size": 12}, **at})
    figure = framed(
        data, annotations=marks, xaxis={"title": "uniformity (lower: spread more evenly)"},
        yaxis={"title": "alignment (lower: pairs nearer)"},
    )  # fmt: skip
    tables = "".join(
        table(
            f"Alignment and uniformity: {one.name}", ["step", "alignment", "uniformity"],
            [[f"{step:,}", number(y), number(x)] for step, x, y in (points[k] for k in evenly(len(points), 12))],
        )
        for one, points in found
    )  # fmt: skip
    body = plot(
        KEY, "Alignment against uniformity, step by step; the table below has the numbers",
        note="Alignment is the mean squared distance of what belongs together, uniformity the logarithm of the mean Gaussian "
        "potential of all pairs. Training should lead down and to the left; down alone is a collapse, left alone forgets what "
        "belongs together. Open circle: the first look; arrows point the way.",
    ) + folded("The same as a table", tables)  # fmt: skip
    return Section("path", "Alignment and uniformity", body, {KEY: {"": figure}})


def _points(one: Shown) -> list[Point]:
    points = []
    for look in one.looks:
        geometry = look.get("geometry", {})
        x, y = finite(geometry.get("uniformity"), 5), finite(geometry.get("alignment"), 5)
        if x is not None and y is not None:
            points.append((look["step"], x, y))
    return [points[k] for k in evenly(len(points), MARKS)]
