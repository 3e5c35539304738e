"""Cosine similarities of pairs that belong together beside those of pairs that do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nearfar.report.format import percent
from nearfar.report.html import Section, folded, plot, table
from nearfar.report.plotted import Figure, framed
from nearfar.report.run_schema import Histogram, Real
from nearfar.report.sections.shown import Shown, number, of_run, pick

KINDS = (
    ("negatives", "do not belong together", "#d55e00", "dash", "rgba(213,94,0,0.22)"),
    ("positives", "belong together", "#0072b2", "solid", "rgba(0,114,178,0.28)"),
)


def similarity(runs: Sequence[Shown]) -> Section | None:
    """Two histograms in one plot, one run at a time."""
    found = [(one, one.run["histogram"]) for one in runs if "histogram" in one.run]
    if not found:
        return None
    ones = [one for one, _ in found]
    words = "".join(
        of_run("similarity-plot", one, f"<p>{_overlap(told)} {_tau(told)}</p>{_table(one, told)}")
        for one, told in found
    )
    body = (
        pick("similarity-plot", ones)
        + plot(
            "similarity-plot",
            "Similarities of pairs that belong together and of pairs that do not; the table below has the numbers",
            note="Part of all pairs of each kind, by cosine similarity. Solid: those that belong together; dashed: those that "
            "do not.",
        )
        + words
    )
    return Section(
        "similarity", "Similarities", body, {"similarity-plot": {one.key: _figure(told) for one, told in found}}
    )


def _figure(told: Histogram) -> Figure:
    edges = told["edges"]
    data = []
    for kind, words, colour, dash, fill in KINDS:
        parts = _parts(told[kind])
        data.append({
            "type": "scatter", "mode": "lines", "name": words, "fill": "tozeroy", "fillcolor": fill,
            "x": [edges[0], *edges], "y": [0, *parts, 0], "line": {"shape": "hv", "color": colour, "dash": dash, "width": 2},
            "hovertemplate": f"%{{y:.2%}} of the pairs that {words}<br>have a similarity from %{{x:.3f}} on<extra></extra>",
        })  # fmt: skip
    return framed(
        data, 380, showlegend=True, xaxis={"title": "cosine similarity", "range": [edges[0], edges[-1]]},
        yaxis={"title": "part of the pairs", "tickformat": ".1~%", "rangemode": "tozero"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False},
    )  # fmt: skip


def _parts(counts: Sequence[Real]) -> list[float]:
    total = sum(counts)
    return [round(count / total, 7) if total else 0.0 for count in counts]


def _overlap(told: Histogram) -> str:
    """How many of the one lie above the middle of the other."""
    positives, negatives = _parts(told["positives"]), _parts(told["negatives"])
    if not any(positives) or not any(negatives):
        return ""
    below, k = 0.0, 0
    while below + positives[k] < 0.5:
        below += positives[k]
        k += 1
    above = sum(negatives[k:])
    middle = (told["edges"][k] + told["edges"][k + 1]) / 2
    return (
        f"The middle pair that belongs together has a similarity of about {number(round(middle, 3))}; {_few(above)} of "
        "the pairs that do not are as similar."
    )


def _few(part: float) -> str:
    return "fewer than 0.1%" if part < 0.001 else f"about {percent(part)}"


def _tau(told: Histogram) -> str:
    tau = told.get("temperature")
    if not tau:
        return ""
    return (
        f"At the temperature τ = {number(tau)}, a negative weighs e ≈ 2.7 times less in the gradient for every {number(tau)} of "
        f"similarity it lies below another: those more than {number(3 * tau)} below the nearest one hardly count "
        f"({percent(math.exp(-3))} of its weight)."
    )


def _table(one: Shown, told: Histogram) -> str:
    """A row for each tenth of the range or so: bins joined."""
    edges, bins = told["edges"], len(told["edges"]) - 1
    step = max(math.ceil(bins / 20), 1)
    parts = {kind: _parts(told[kind]) for kind, *_ in KINDS}
    rows = [
        [f"{number(round(edges[k], 9) + 0.0)} to {number(round(edges[min(k + step, bins)], 9) + 0.0)}",
         *(percent(sum(parts[kind][k : k + step])) for kind in ("positives", "negatives"))]
        for k in range(0, bins, step)
    ]  # fmt: skip
    return folded(
        "The same as a table",
        table(f"Part of the pairs by similarity: {one.name}", ["similarity", "belong together", "do not"], rows),
    )
