"""Are these two the same? ROC and DET curves, the equal error rate and the calibrated threshold."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from html import escape
from typing import Any

from nearfar.report.format import percent
from nearfar.report.html import Section, folded, plot, radios, table
from nearfar.report.plotted import Figure, finites, framed, spell
from nearfar.report.run_schema import Roc
from nearfar.report.sections.shown import Shown, number
from nearfar.report.thin import ROC_POINTS, evenly

RATES = (0.1, 0.01, 0.001, 0.0001)
"""False acceptance rates of the table."""
KEY = "verification-plot"


def verification(runs: Sequence[Shown]) -> Section | None:
    """Two views of the same curve, runs overlaid."""
    found = [(one, one.run["roc"]) for one in runs if "roc" in one.run and one.run["roc"]["far"]]
    if not found:
        return None
    shown = [rate for rate in RATES if any(_least(told) <= rate for _, told in found)]
    rows = []
    for one, told in found:
        at = []
        for rate in shown:
            tar, threshold = _at(told, rate)
            at.append(f"{percent(tar)}\nfrom {number(threshold)} on" if tar is not None else "–")
        calibrated = number(told.get("threshold"))
        if told.get("threshold_far") is not None and told.get("threshold_tar") is not None:
            far, tar = (number(told.get(name), fraction=True) for name in ("threshold_far", "threshold_tar"))
            calibrated += f"\naccepts {tar} of the same, {far} of others"
        rows.append([one.name, number(told.get("eer"), fraction=True), calibrated, *at])
    head = [
        "run",
        "equal error rate",
        "calibrated threshold",
        *(f"same accepted at {100 * rate:g}% false" for rate in shown),
    ]
    notes = "".join(f"<p>{escape(one.name)}: {escape(told['about'])}</p>" for one, told in found if "about" in told)
    body = (
        radios(KEY, "Curve", [("roc", "ROC: accepted, true against false"), ("det", "DET: the two errors")], "roc")
        + plot(
            KEY,
            "Verification curves; the table below has the numbers",
            note="Two rows are taken for the same if their cosine similarity reaches a threshold. "
            "Cross: the equal error rate. Star: the calibrated threshold, at its rates on the rows that it was "
            "not chosen on. All other thresholds, and the equal error rate, are read off the curve of the rows that they are "
            "judged by: on new rows expect somewhat more errors.",
        )
        + notes
        + folded("The same as a table", table("Verification", head, rows))
    )
    return Section(
        "verification", "Verification", body, {KEY: {"roc": _figure(found, det=False), "det": _figure(found, det=True)}}
    )


def _figure(found: list[tuple[Shown, Roc]], *, det: bool) -> Figure:
    data: list[dict[str, Any]] = []
    for one, told in found:
        points = sorted(zip(told["far"], told["tar"], told["thresholds"]), key=lambda point: (point[0], point[1]))
        points = [point for point in points if point[0] > 0 and (not det or point[1] < 1)]
        points = [points[k] for k in evenly(len(points), ROC_POINTS)]
        words = "false %{x:.3~%}, " + ("missed" if det else "true") + " %{y:.3~%}, threshold %{customdata:.4~g}"
        shared = {"meta": {"box": one.key}, "hovertemplate": f"{words}<extra>{spell(one.name, 40)}</extra>"}
        data.append({
            "type": "scatter", "mode": "lines", "x": finites(far for far, *_ in points),
            "y": finites((1 - tar if det else tar) for _, tar, _ in points), "customdata": finites(at for *_, at in points),
            "line": {"color": one.style.colour, "dash": one.style.dash, "width": 2}, **shared,
        })  # fmt: skip
        sides = ("top right", "bottom left") if det else ("top left", "bottom right")
        for name, symbol, far, tar, side in (
            (f"EER {percent(told.get('eer') or 0)}", "x", told.get("eer"), None, sides[0]),
            (
                f"threshold {number(told.get('threshold'))}",
                "star",
                told.get("threshold_far"),
                told.get("threshold_tar"),
                sides[1],
            ),
        ):
            if not far or (symbol == "star" and tar is None):
                continue
            missed = far if tar is None else 1 - tar
            data.append({
                "type": "scatter", "mode": "markers+text", "x": [far], "y": [missed if det else 1 - missed], 
                "text": [name if len(found) == 1 else ""],
                "textposition": side, "marker": {"symbol": symbol, "size": 11, "color": one.style.colour},
                "cliponaxis": False, "meta": {"box": one.key},
                "hovertemplate": f"{name}: false %{{x:.3~%}}, {'missed' if det else 'true'} %{{y:.3~%}}"
                f"<extra>{spell(one.name, 40)}</extra>",
            })  # fmt: skip
    along = {"title": "different ones accepted (FAR)", "type": "log", "tickformat": "~%", "dtick": 1}
    if det:
        return framed(
            data,
            xaxis=along,
            yaxis={"title": "same ones missed (1 − TAR)", "type": "log", "tickformat": "~%", "dtick": 1},
        )
    return framed(data, xaxis=along, yaxis={"title": "same ones accepted (TAR)", "tickformat": ".0%"})


def _least(told: Roc) -> float:
    """The smallest rate that the pairs can tell."""
    return min((far for far in told["far"] if far > 0), default=1.0)


def _at(told: Roc, rate: float) -> tuple[float | None, Any]:
    """The most that is truly accepted where at most so many are falsely, and the threshold there."""
    points = sorted(zip(told["far"], told["tar"], told["thresholds"]), key=lambda point: (point[0], point[1]))
    k = bisect_right([far for far, *_ in points], rate)
    return (None, None) if not k or _least(told) > rate else points[k - 1][1:]
