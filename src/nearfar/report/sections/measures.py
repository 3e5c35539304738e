"""Every figure of the finished models, run beside run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nearfar.report.html import Section, table
from nearfar.report.run_schema import Metric
from nearfar.report.sections.shown import Shown, is_fraction, number, span


def measures(runs: Sequence[Shown]) -> Section | None:
    """A row a metric: for one run with its interval and what it means, for several a column each, the best marked."""
    told = [one for one in runs if one.metrics]
    if not told:
        return None
    if len(told) == 1:
        head = ["metric", told[0].name, "95% interval", "chance"]
        rows = [[m["name"], _value(m), span(m), _chance(m)] for m in told[0].metrics]
        if any("about" in m for m in told[0].metrics):
            head.append("what it is")
            rows = [[*row, m.get("about", "")] for row, m in zip(rows, told[0].metrics)]
    else:
        names = dict.fromkeys(metric["name"] for one in told for metric in one.metrics)
        head, rows = ["metric", *(one.name for one in told), "chance"], [_row(name, told) for name in names]
    abouts = {one.name: about for one in told if (about := one.run.get("evaluation", {"metrics": []}).get("about"))}
    if len(set(abouts.values())) == 1:
        abouts = {"": next(iter(abouts.values()))}
    notes = "".join(
        f'<p class="soft">{escape(f"{name}: {about}" if name else about)}</p>' for name, about in abouts.items()
    )
    star = "★ marks the best of a row, whether or not the difference is more than luck."
    note = f'<p class="soft">{star}</p>' if len(told) > 1 else ""
    return Section("measures", "Evaluation", table("Figures on held-out rows", head, rows, kind="words") + note + notes)


def _row(name: str, told: Sequence[Shown]) -> list[str]:
    found = [next((metric for metric in one.metrics if metric["name"] == name), None) for one in told]
    known = [metric["value"] for metric in found if metric is not None and metric["value"] is not None]
    first = next(metric for metric in found if metric is not None)
    lower = first.get("better") == "lower"
    best = (min if lower else max)(known) if len(known) > 1 else None
    cells = []
    for metric in found:
        if metric is None:
            cells.append("–")
            continue
        star = "★ " if best is not None and metric["value"] == best else ""
        cells.append(f"{star}{_value(metric)}" + (f"\n{span(metric)}" if span(metric) else ""))
    note = first.get("about", "") or ("lower is better" if lower else "")
    return [f"{name}\n{note}" if note else name, *cells, _chance(first)]


def _value(metric: Metric) -> str:
    return number(metric["value"], fraction=is_fraction(metric))


def _chance(metric: Metric) -> str:
    chance = metric.get("chance")
    return "" if chance is None else number(chance, fraction=is_fraction(metric))
