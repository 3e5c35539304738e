"""What a reader should know first, in whole sentences."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nearfar.report.html import Section, folded, table
from nearfar.report.run_schema import Evaluation, Metric, Value
from nearfar.report.sections.alike import alike, in_words, unlike
from nearfar.report.sections.shown import Shown, is_fraction, number, span


def findings(runs: Sequence[Shown]) -> Section:
    """The gist, then what is behind it, then every warning."""
    gist, *others = sentences(runs)
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in others)
    rows = [
        [one.name, str(warned.get("step", "")), warned["message"]]
        for one in runs
        for warned in one.run.get("events", {}).get("warnings", [])
    ]
    warnings = (
        folded("Every warning", table("What the runs warned of", ["run", "step", "warning"], rows, kind="words"))
        if rows
        else ""
    )
    return Section("findings", "Findings", f'<p class="gist">{escape(gist)}</p><ul>{lines}</ul>{warnings}')


def sentences(runs: Sequence[Shown]) -> list[str]:
    """The findings as text, the most important first.

    Example:
        >>> from nearfar.report.sections.shown import shown
        >>> measured = {"metrics": [{"name": "knn", "value": 0.9, "chance": 0.1}]}
        >>> sentences(shown([{"name": "a", "config": {}, "evaluation": measured}]))
        ['a: knn is 90.0%; chance is 10.0%.']
    """
    found = [f"{one.name}: {lost}." for one in runs if (lost := one.run.get("events", {}).get("lost"))]
    found += _headline(runs)
    for one in runs:
        found += [*_level(one), *_moved(one), *_loss(one), *_geometry(one), *_warned(one)]
    return found or ["These runs have not measured anything yet."]


def _headline(runs: Sequence[Shown]) -> list[str]:
    """Which of several runs is best by the figure that the first of them puts first."""
    if len(runs) < 2:
        return []
    name = next((one.metrics[0]["name"] for one in runs if one.metrics), None)
    told = [
        (one, one.run["evaluation"], metric)
        for one in runs
        for metric in one.metrics
        if "evaluation" in one.run and metric["name"] == name and metric["value"] is not None
    ]
    if len(told) < 2:
        return []
    ranked, reasons = alike(told), unlike(told)
    if not ranked:
        return [f"By {name}, the {len(told)} runs are not ranked: they differ in {in_words(reasons)}."]
    found = _ranked(str(name), [(one, metric) for one, _, metric in ranked])
    if not reasons:
        return [found]
    rest = [one.name for one, *_ in told if all(one is not other for other, *_ in ranked)]
    return [f"{found} Not ranked with them: {in_words(rest)}, which differs in {in_words(reasons)}."]


def _ranked(name: str, told: Sequence[tuple[Shown, Metric]]) -> str:
    """Which of several like figures is best, and whether that is more than luck."""
    sign = -1 if told[0][1].get("better") == "lower" else 1
    (best, top), (second, next_) = sorted(told, key=lambda pair: -sign * (pair[1]["value"] or 0))[:2]
    fraction = is_fraction(top)
    words = (
        f"By {name}, {best.name} is the best of {len(told)} runs: {number(top['value'], fraction=fraction)} against "
        f"{number(next_['value'], fraction=fraction)} of {second.name}"
    )
    if top["value"] == next_["value"]:
        return f"By {name}, {best.name} and {second.name} are equal: {number(top['value'], fraction=fraction)}."
    if not span(top) or not span(next_):
        return f"{words}; without intervals, nobody knows whether that is more than luck."
    ends = [metric.get(end) or 0 for metric in (top, next_) for end in ("low", "high")]
    apart = ends[0] > ends[3] or ends[1] < ends[2]
    return f"{words}; their 95% intervals {'do not overlap' if apart else 'overlap, so the difference may be luck'}."


def _level(one: Shown) -> list[str]:
    """The first figure on the run's own data, then on others."""
    own = [(one.run["evaluation"], "held-out rows")] if "evaluation" in one.run else []
    others = [(found, f"rows of {data}") for data, found in one.others]
    return [_said(one, found, where) for found, where in own + others if found["metrics"]]


def _said(one: Shown, found: Evaluation, where: str) -> str:
    first, rows = found["metrics"][0], found.get("rows")
    words = f"{one.name}: {first['name']} is {number(first['value'], fraction=is_fraction(first))}"
    if span(first):
        words += f" (95% interval {span(first)})"
    if rows:
        words += f" on {rows:,} {where}"
    if (about := first.get("about", "")).startswith("by "):
        words += f", {about}"
    if first.get("chance") is not None:
        words += f"; chance is {number(first.get('chance'), fraction=is_fraction(first))}"
    return f"{words}."


def _moved(one: Shown) -> list[str]:
    """How the leading figure went while training."""
    names = list(dict.fromkeys(name for look in one.looks for name in look.get("metrics", {})))
    lead = next((metric["name"] for metric in one.metrics if metric["name"] in names), names[0] if names else None)
    told = [
        (look["step"], value) for look in one.looks if (value := look.get("metrics", {}).get(lead or "")) is not None
    ]
    if len(told) < 2:
        return []
    known = next((metric for metric in one.metrics if metric["name"] == lead), None)
    metric: Metric = known or {"name": str(lead), "value": told[-1][1]}
    lead = one.look_name(str(lead))
    fraction = is_fraction(metric)
    lower = metric.get("better") == "lower"
    (start, first), (stop, last) = told[0], told[-1]
    at, best = (min if lower else max)(told, key=lambda pair: pair[1])
    begun = f"{number(first, fraction=fraction)} {'before training' if start == 0 else f'at step {start:,}'}"
    kept = one.run.get("events", {}).get("kept")
    after = dict(told).get(kept) if start == 0 and kept is not None else None
    if after is not None:
        words = (
            f"{one.name}: {lead} went from {begun} to {number(after, fraction=fraction)} in the weights that are kept"
        )
        return [f"{words} (step {kept:,} of {stop:,})."]
    words = (
        f"{one.name}: while training, {lead} went from {begun} to {number(last, fraction=fraction)} at step {stop:,}"
    )
    if at != stop and best != last:
        words += f"; its best, {number(best, fraction=fraction)}, was at step {at:,}"
    return [f"{words}."]


def _loss(one: Shown) -> list[str]:
    losses = [(step["step"], step["loss"]) for step in one.steps]
    if not losses:
        return []
    broken = next((step for step, loss in losses if loss is None or loss != loss or abs(loss) == float("inf")), None)
    if broken is not None:
        return [
            f"{one.name}: the loss was no number from step {broken:,} on, or for a while; what follows it is not to be trusted."
        ]
    few = max(len(losses) // 20, 1)
    first, last = (sum(loss or 0 for _, loss in part) / few for part in (losses[:few], losses[-few:]))
    words = f"{one.name}: the loss went from {number(first)} to {number(last)} in {losses[-1][0]:,} steps"
    if few > 1:
        words += f" (means of the first and the last {few:,} lines)"
    end = one.run.get("events", {}).get("end")
    return [f"{words}; {f'training ended: {end}' if end else 'training has not ended'}."]


def _geometry(one: Shown) -> list[str]:
    spectrum = one.run.get("spectrum")
    rank: Value = spectrum.get("effective_rank") if spectrum else None
    if spectrum is None or rank is None:
        return []
    return [
        f"{one.name}: the embeddings use {number(rank)} of {len(spectrum['values']):,} directions (effective rank); 1 would be a "
        "collapse onto a line."
    ]


def _warned(one: Shown) -> list[str]:
    events = one.run.get("events")
    if events is None:
        return []
    warnings = events.get("warnings", [])
    if not warnings:
        return [] if "lost" in events else [f"{one.name}: the run warned of nothing."]
    more = f" ({len(warnings)} warnings in all, below)" if len(warnings) > 1 else ""
    step = f" at step {warnings[0].get('step', 0):,}" if "step" in warnings[0] else ""
    return [f"{one.name}: the run warned{step}: {warnings[0]['message'].rstrip('.')}{more}."]
