"""Every figure of the finished models, run beside run, a table a data set."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nearfar.report.html import Section, table
from nearfar.report.run_schema import Evaluation, Metric
from nearfar.report.sections.alike import Told, alike, in_words, unlike
from nearfar.report.sections.shown import Shown, is_fraction, number, span

Measured = Sequence[tuple[Shown, Evaluation]]


def measures(runs: Sequence[Shown]) -> Section | None:
    """The runs' own data first, then others, each under its name.

    A row a metric: for one run with its interval and what it means, for several a column each, the best marked.
    """
    own = [(one, one.run["evaluation"]) for one in runs if one.metrics and "evaluation" in one.run]
    others: dict[str, list[tuple[Shown, Evaluation]]] = {}
    for one in runs:
        for data, evaluation in one.others:
            others.setdefault(data, []).append((one, evaluation))
    body = _figures(own, "Figures on held-out rows") if own else ""
    for data, told in sorted(others.items()):
        body += f"<h3>On {escape(data)}</h3>" + _figures(told, f"Figures on {data}")
    return Section("measures", "Evaluation", body) if body else None


def _figures(told: Measured, caption: str) -> str:
    why = ""
    if len(told) == 1:
        (one, evaluation), *_ = told
        head, metrics = ["metric", one.name, "95% interval", "chance"], evaluation["metrics"]
        rows = [[m["name"], _value(m), span(m), _chance(m)] for m in metrics]
        if any("about" in m for m in metrics):
            head.append("what it is")
            rows = [[*row, m.get("about", "")] for row, m in zip(rows, metrics)]
    else:
        names = dict.fromkeys(metric["name"] for _, evaluation in told for metric in evaluation["metrics"])
        head, rows = ["metric", *(one.name for one, _ in told), "chance"], [_row(name, told) for name in names]
        there = {name: [figure for figure in _found(name, told) if figure is not None] for name in names}
        apart = dict.fromkeys(reason for figures in there.values() for reason in unlike(figures))
        why = "★ marks the best of a row, whether or not the difference is more than luck."
        if apart:
            which = " in some rows," if any(alike(figures) for figures in there.values()) else ""
            why += f" No ★:{which} not ranked, since the runs differ in {in_words(list(apart))}."
    abouts = {one.name: about for one, evaluation in told if (about := evaluation.get("about"))}
    if len(set(abouts.values())) == 1:
        abouts = {"": next(iter(abouts.values()))}
    notes = [why, *(f"{name}: {about}" if name else about for name, about in abouts.items())]
    return table(caption, head, rows, kind="words") + "".join(
        f'<p class="soft">{escape(note)}</p>' for note in notes if note
    )


def _found(name: str, told: Measured) -> list[Told | None]:
    """The figure of each run."""
    return [
        next(((one, evaluation, metric) for metric in evaluation["metrics"] if metric["name"] == name), None)
        for one, evaluation in told
    ]


def _row(name: str, told: Measured) -> list[str]:
    found = _found(name, told)
    there = [figure for figure in found if figure is not None]
    metrics = [metric for *_, metric in there]
    lower, apart, ranked = metrics[0].get("better") == "lower", unlike(there), alike(there)
    best = (min if lower else max)((metric["value"] or 0 for *_, metric in ranked), default=None)
    cells = []
    for figure in found:
        if figure is None:
            cells.append("–")
            continue
        metric = figure[-1]
        small = [span(metric), f"chance {_chance(metric)}" if "chance" in apart and _chance(metric) else ""]
        star = "★ " if metric["value"] == best and any(one is figure[0] for one, *_ in ranked) else ""
        cells.append("\n".join(filter(None, [f"{star}{_value(metric)}", "; ".join(filter(None, small))])))
    note = metrics[0].get("about", "") or ("lower is better" if lower else "")
    return [f"{name}\n{note}" if note else name, *cells, "" if "chance" in apart else _chance(metrics[0])]


def _value(metric: Metric) -> str:
    return number(metric["value"], fraction=is_fraction(metric))


def _chance(metric: Metric) -> str:
    chance = metric.get("chance")
    return "" if chance is None else number(chance, fraction=is_fraction(metric))
