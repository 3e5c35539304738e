"""How many directions the embeddings use: singular values, largest first, and the effective rank."""

from __future__ import annotations

from collections.abc import Sequence

from nearfar.report.format import percent
from nearfar.report.html import Section, folded, plot, table
from nearfar.report.plotted import finites, framed, spell
from nearfar.report.sections.shown import Shown, number

# Below this part of the largest value there is rounding only.
FLOOR = 1e-8


def spectrum(runs: Sequence[Shown]) -> Section | None:
    """Singular values relative to the largest, on a logarithmic scale, runs overlaid."""
    found = [(one, one.run["spectrum"]) for one in runs if "spectrum" in one.run and one.run["spectrum"]["values"]]
    if not found:
        return None
    data, rows = [], []
    longest = max(len(told["values"]) for _, told in found)
    ranks = [k for k in (2**power for power in range(20)) if k < longest] + [longest]
    for one, told in found:
        values = [abs(value) for value in told["values"]]
        top = max(values) or 1.0
        shares = [value / top if value / top > FLOOR else None for value in values]
        data.append({
            "type": "scatter", "mode": "lines+markers" if len(values) <= 64 else "lines", "meta": {"box": one.key},
            "x": list(range(1, len(values) + 1)), "y": finites(shares, 5),
            "line": {"color": one.style.colour, "dash": one.style.dash, "width": 2},
            "marker": {"symbol": one.style.symbol, "size": 6},
            "hovertemplate": f"direction %{{x}}: %{{y:.3~g}} of the largest<extra>{spell(one.name, 40)}</extra>",
        })  # fmt: skip
        rank = told.get("effective_rank")
        if rank is not None:
            data.append({
                "type": "scatter", "mode": "lines+text", "meta": {"box": one.key}, "x": [rank] * 3,
                "y": [1.0, 10 ** (-0.1 - 0.14 * (len(rows) % 5)), FLOOR],  # labels of runs one below the other
                "line": {"color": one.style.colour, "dash": "dot", "width": 1.5},
                "text": ["", f" effective rank {number(rank)}", ""], "textposition": "middle right",
                "hovertemplate": f"effective rank {number(rank)}<extra>{spell(one.name, 40)}</extra>",
            })  # fmt: skip
        energy = sum(value**2 for value in values) or 1.0
        rows.append([
            one.name, number(rank), f"{len(values):,}",
            *(f"{number(values[k - 1] / top)}\n{percent(sum(v**2 for v in values[:k]) / energy)}" if k <= len(values) else ""
              for k in ranks),
        ])  # fmt: skip
    lowest = min(value for trace in data for value in trace["y"] if value is not None and value > FLOOR)
    for trace in data:  # the line of a rank ends at the lowest value drawn
        trace["y"] = [lowest if value == FLOOR else value for value in trace["y"]]
    figure = framed(
        data, 380, xaxis={"title": "direction, strongest first"},
        yaxis={
            "title": "singular value, relative to the largest", "type": "log", "tickformat": "~g",
            "dtick": 1 if lowest < 0.01 else "D2",
        },
    )  # fmt: skip
    body = plot(
        "spectrum-plot",
        "Singular values of the embeddings; the table below has the numbers",
        note="Singular values of the centred embeddings. A line that falls off a cliff is a dimensional collapse: the directions "
        "beyond it are unused. The effective rank is the exponential of the entropy of the values (Roy & Vetterli 2007).",
    ) + folded(
        "The same as a table",
        table(
            "Singular value relative to the largest, and below it the part of the variance up to that direction",
            ["run", "effective rank", "directions", *(f"no. {k:,}" for k in ranks)],
            rows,
        ),
    )
    return Section("spectrum", "Spectrum", body, {"spectrum-plot": {"": figure}})
