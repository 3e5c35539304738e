"""Which classes are taken for which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from nearfar.report.format import percent
from nearfar.report.html import Section, folded, plot, table
from nearfar.report.plotted import Figure, framed, shorten, spell
from nearfar.report.run_schema import Confusion
from nearfar.report.sections.shown import Shown, of_run, pick

CLASSES = 60
"""Classes that a plot shows: of more, those with the most mistakes."""
NUMBERS = 12
"""Classes up to which the counts are written into the cells."""
TABLE_CLASSES = 20
"""Classes up to which the whole matrix is a table too; the worst mistakes always are."""
WORST = 15


def confusion(runs: Sequence[Shown]) -> Section | None:
    """A matrix, its worst cells as a table, one run at a time."""
    found = [(one, one.run["confusion"]) for one in runs if "confusion" in one.run and one.run["confusion"]["matrix"]]
    if not found:
        return None
    key = "confusion-plot"
    words = "".join(of_run(key, one, _words(one, told)) for one, told in found)
    body = (
        pick(key, [one for one, _ in found])
        + plot(
            key,
            "Confusion matrix; the tables below have the numbers",
            note="Rows: what it is; columns: what it was taken for. The shade grows with the square root of the part of the row, "
            "so that rare mistakes are seen.",
        )
        + words
    )
    return Section("confusion", "Confusion", body, {key: {one.key: _figure(one, told) for one, told in found}})


def _figure(one: Shown, told: Confusion) -> Figure:
    matrix, names = told["matrix"], _names(one, told)
    wrong = [sum(row) - row[k] + sum(other[k] for other in matrix) - row[k] for k, row in enumerate(matrix)]
    kept = sorted(sorted(range(len(matrix)), key=lambda k: -wrong[k])[:CLASSES])
    totals = [sum(row) or 1 for row in matrix]
    hover = [
        [f"{spell(names[i], 40)} {'taken for itself' if i == j else f'taken for {spell(names[j], 40)}'}:<br>"
         f"{matrix[i][j]:,} of {sum(matrix[i]):,} ({percent(matrix[i][j] / totals[i])})" for j in kept]
        for i in kept
    ]  # fmt: skip
    few = len(kept) <= NUMBERS
    ticks = [spell(names[k], 16) for k in kept] if len(kept) <= 30 else None
    axis = {"tickvals": list(range(len(kept))), "ticktext": ticks} if ticks else {"showticklabels": False}
    heat = {
        "type": "heatmap", "z": [[round(math.sqrt(matrix[i][j] / totals[i]), 4) for j in kept] for i in kept],
        "zmin": 0, "zmax": 1, "showscale": False, "xgap": 1, "ygap": 1, "meta": {"shade": True}, "customdata": hover,
        "hovertemplate": "%{customdata}<extra></extra>", "text": [[str(matrix[i][j] or "") for j in kept] for i in kept],
        **({"texttemplate": "%{text}"} if few else {}),
    }  # fmt: skip
    return framed(
        [heat], min(max(300, 160 + 34 * len(kept)), 640),
        xaxis={"title": "taken for", **axis}, yaxis={"title": "is", "autorange": "reversed", **axis},
    )  # fmt: skip


def _names(one: Shown, told: Confusion) -> Sequence[str]:
    given = told.get("classes")
    return given if given is not None else [one.class_name(k) for k in range(len(told["matrix"]))]


def _words(one: Shown, told: Confusion) -> str:
    matrix, names = told["matrix"], _names(one, told)
    total, right = sum(map(sum, matrix)), sum(row[k] for k, row in enumerate(matrix))
    mistakes = sorted(
        ((cell, i, j) for i, row in enumerate(matrix) for j, cell in enumerate(row) if cell and i != j), reverse=True
    )
    by = f" by {told['by']}" if "by" in told else ""
    words = f"{one.name}: {right:,} of {total:,} right ({percent(right / total) if total else 'none'}){by}."
    if len(matrix) > CLASSES:
        words += f" The plot shows the {CLASSES} of {len(matrix):,} classes with the most mistakes."
    worst = table(
        f"The most frequent mistakes: {one.name}",
        ["is", "taken for", "times", "part of its class"],
        [
            [names[i], names[j], f"{cell:,}", percent(cell / (sum(matrix[i]) or 1))]
            for cell, i, j in mistakes[:WORST]
        ],
        kind="words",
    )  # fmt: skip
    body = f"<p>{escape(words)}</p>" + (folded("The most frequent mistakes", worst) if mistakes else "")
    if len(matrix) <= TABLE_CLASSES:
        rows = [[shorten(name, 40), *(f"{cell:,}" for cell in row)] for name, row in zip(names, matrix)]
        head = ["is \\ taken for", *(shorten(name, 40) for name in names)]
        body += folded("The whole matrix", table(f"Confusion matrix: {one.name}", head, rows))
    return body
