"""Curves of training: loss and its terms, held-out metrics, geometry, learning rate and temperature, runs overlaid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from nearfar.report.html import Section, boxes, folded, plot, radios, table
from nearfar.report.plotted import Figure, finite, finites, framed, shorten, spell
from nearfar.report.sections.shown import Shown, number
from nearfar.report.thin import CURVE_POINTS, evenly, peaks, running_mean

ALONG = {"steps": "optimiser steps", "seconds": "seconds of training", "epochs": "epochs"}
_FIELDS = {"steps": "step", "seconds": "seconds", "epochs": "epoch"}
# Rows of the table beside the curves: enough to follow them, few enough to listen to.
TABLE_ROWS = 12
# Alignment and uniformity have a plot of their own.
_ELSEWHERE = ("alignment", "uniformity")


@dataclass(frozen=True)
class Series:
    """One quantity of one run."""

    group: str
    name: str
    along: dict[str, list[float | None]]
    """Steps, seconds, epochs, as far as the run has them."""
    values: list[float | None]


def series(one: Shown) -> Iterator[Series]:
    """Everything of a run that can be drawn against its steps."""
    steps: list[Any] = list(one.steps)
    looks: list[Any] = list(one.looks)
    along, seen = _along(steps), _along(looks, steps)
    if steps:
        yield Series("Loss", "loss", along, [finite(step["loss"]) for step in steps])
    terms = list(dict.fromkeys(name for step in steps for name in step.get("terms", {})))
    for name in terms if len(terms) > 1 else ():
        yield Series("Loss", name, along, [finite(step.get("terms", {}).get(name)) for step in steps])
    for group, field in (("Held-out metrics", "metrics"), ("Geometry of the embeddings", "geometry")):
        for name in dict.fromkeys(name for look in looks for name in look.get(field, {}) if name not in _ELSEWHERE):
            called = one.look_name(name)
            yield Series(group, called, seen, [finite(look.get(field, {}).get(name)) for look in looks])
    for field, name in (("rate", "learning rate"), ("temperature", "temperature")):
        values = [finite(step.get(field)) for step in steps]
        if len(set(values) - {None}) > 1:
            yield Series("Schedule", name, along, values)


def curves(runs: Sequence[Shown]) -> Section | None:
    """A small plot for each quantity, all against the same axis."""
    found = [(one, line) for one in runs for line in series(one)]
    if not found:
        return None
    quantities: dict[tuple[str, str], list[tuple[Shown, Series]]] = {}
    for one, line in found:
        quantities.setdefault((line.group, line.name), []).append((one, line))
    groups = list(dict.fromkeys(group for group, _ in quantities))
    keys = {quantity: f"curve{k}" for k, quantity in enumerate(quantities)}
    figures = {keys[quantity]: {"": _panel(lines)} for quantity, lines in quantities.items()}
    axes = [(axis, words) for axis, words in ALONG.items() if any(axis in line.along for _, line in found)]
    losses = " ".join(key for (group, _), key in keys.items() if group == "Loss")
    controls = radios("along", "Against", axes, "steps").replace("<input ", "<input data-x ")
    if losses:
        controls += boxes("Losses", [(f'data-for="{losses}" data-log="y"', "on a logarithmic scale", False)])
    body = f'<div class="controls">{controls}</div>'
    for group in groups:
        lines = {name: told for (of, name), told in quantities.items() if of == group}
        panels = "".join(
            f'<div class="panel"><h4>{escape(shorten(name.replace("_", " "), 60))}</h4>'
            + plot(keys[group, name], f"{name} of {_count(told)}; the table below has the numbers")
            + "</div>"
            for name, told in lines.items()
        )
        body += f'<h3>{escape(group)}</h3><div class="panels">{panels}</div>' + _tables(group, lines)
    return Section("curves", "Curves", body + f'<p class="soft">{escape(_note(runs, found))}</p>', figures)


def _along(rows: list[Any], clock: list[Any] | None = None) -> dict[str, list[float | None]]:
    """Where rows lie on each axis; what they lack themselves is read off the steps of the run."""
    found = {}
    for axis, field in _FIELDS.items():
        values = [row.get(field) for row in rows]
        if clock and None in values:
            known = {0: 0.0} | {row["step"]: row.get(field) for row in clock}  # a look before the first step
            values = [known.get(row["step"]) if value is None else value for row, value in zip(rows, values)]
        if any(value is not None for value in values):
            found[axis] = finites(values)
    return found


def _panel(lines: list[tuple[Shown, Series]]) -> Figure:
    """One quantity, a line a run; long noisy ones faint, with their running mean over them."""
    data = []
    for one, line in lines:
        width = _smoothing(line)
        drawn = [(line.values, 1.0 if width == 1 else 0.3)]
        if width > 1:
            drawn.append((running_mean(line.values, width), 1.0))
        for values, opacity in drawn:
            kept = peaks(values)
            few = len(kept) <= 40
            data.append({
                "type": "scatter", "mode": "lines+markers" if few else "lines", "opacity": opacity,
                "y": finites((values[k] for k in kept), 5),
                "meta": {"box": one.key, "x": {axis: finites((at[k] for k in kept), 7) for axis, at in line.along.items()}},
                "line": {"color": one.style.colour, "dash": one.style.dash if opacity == 1 else "solid",
                         "width": 2 if opacity == 1 else 1},
                "marker": {"symbol": one.style.symbol, "size": 6},
                "hovertemplate": f"%{{y:.4~g}} at %{{x:,.6~g}}<extra>{spell(one.name, 40)}</extra>",
                **({"hoverinfo": "skip", "hovertemplate": None} if opacity < 1 else {}),
            })  # fmt: skip
    known = [value for _, line in lines for value in line.values if value is not None]
    share = lines[0][1].group == "Held-out metrics" and known and min(known) >= 0 and max(known) <= 1
    return framed(
        data, 250, margin={"l": 42, "r": 12, "t": 8, "b": 42}, meta={"x": ALONG}, font={"size": 11},
        xaxis={"nticks": 5}, yaxis={"nticks": 6, **(_percent(min(known), max(known)) if share else {})},
    )  # fmt: skip


def _percent(low: float, high: float) -> dict[str, Any]:
    """An axis in percent; of a level line not beyond what a share can be, where the axis would find its own ends."""
    level = {"range": [max(low - 0.1, 0.0), min(high + 0.1, 1.005)]} if low == high else {}
    return {"tickformat": ".0%"} | level


def _smoothing(line: Series) -> int:
    """Width of the running mean; 1 for none."""
    return max(len(line.values) // 50, 1) if line.group == "Loss" and len(line.values) >= 150 else 1


def _tables(group: str, lines: dict[str, list[tuple[Shown, Series]]]) -> str:
    tables = []
    for one in dict.fromkeys(one.key for told in lines.values() for one, _ in told):
        mine = {name: line for name, told in lines.items() for who, line in told if who.key == one}
        run = next(who for told in lines.values() for who, _ in told if who.key == one)
        first = next(iter(mine.values()))
        rows = [
            [f"{step:,.0f}" if (step := first.along["steps"][k]) is not None else "",
             *(number(first.along[axis][k]) for axis in ("seconds", "epochs") if axis in first.along),
             *(number(line.values[k]) for line in mine.values())]
            for k in evenly(len(first.values), TABLE_ROWS)
        ]  # fmt: skip
        axes = [axis for axis in ("seconds", "epochs") if axis in first.along]
        tables.append(table(f"{group}: {run.name}", ["step", *axes, *mine], rows))
    return folded("The same as a table" if len(tables) == 1 else "The same as tables", "".join(tables))


def _note(runs: Sequence[Shown], found: list[tuple[Shown, Series]]) -> str:
    """What was done to the curves."""
    longest = max(len(line.values) for _, line in found)
    words = [
        f"{one.name}: {name} {number(values.pop())} throughout."
        for one in runs
        for field, name in (("rate", "learning rate"), ("temperature", "temperature"))
        if len(values := {step.get(field) for step in one.steps} - {None}) == 1
    ]
    if any(_smoothing(line) > 1 for _, line in found):
        words.append("Losses: the strong line is a running mean over a fiftieth of the run, the faint one every value.")
    if longest > CURVE_POINTS:
        words.append(
            f"{longest:,} values of a curve are thinned to at most {CURVE_POINTS:,} points; the lowest and highest of "
            "every stretch are kept."
        )
    return " ".join(words)


def _count(told: list[Any]) -> str:
    return "one run" if len(told) == 1 else f"{len(told)} runs"
