"""The two plots of the page: learning curves with intervals, and speed-ups with theirs. As plotly's plain data."""

from __future__ import annotations

import json
import math
from typing import Any

from nearfar.report.format import Number, bounded, interval, percent
from nearfar.report.palette import DASHES, colours, shown_first
from nearfar.report.plotted import Figure, spell


def curves(result: dict[str, Any], axis: str) -> Figure:
    """Mean test accuracy against ``"steps"``, ``"seconds"`` or ``"rows"``, with the 95% interval of the mean.

    Args:
        result: As in ``result.json``.
        axis: Of the three.
    """
    import plotly.graph_objects as go

    titles = {"steps": "optimiser steps", "seconds": "seconds of training", "rows": "rows through the network"}
    figure, first = go.Figure(), shown_first(result)
    for arm in result["arms"]:
        colour, curve = colours(result["arms"])[arm["name"]], arm["curve"]
        shared = {
            "legendgroup": arm["name"], "visible": arm["name"] in first, "showlegend": False,
            "meta": {"box": arm["name"]},
        }  # fmt: skip
        x = curve[axis]
        band = go.Scatter(
            x=[*x, *x[::-1]], y=[*curve["high"], *curve["low"][::-1]], fill="toself", fillcolor=_faint(colour),
            line={"width": 0}, hoverinfo="skip", **shared,
        )  # fmt: skip
        line = go.Scatter(
            x=x, y=curve["mean"], mode="lines", name=spell(arm["title"]), line={"color": colour, "dash": DASHES[arm["kind"]]},
            hovertemplate="%{y:.1%} after %{x:,.4~g}<extra>" + spell(arm["name"]) + "</extra>", **shared,
        )  # fmt: skip
        figure.add_traces([band, line])
    for k, target in enumerate(result["targets"]):
        headline = k == result["headline"]
        figure.add_hline(
            y=target["accuracy"], line={"width": 1, "dash": "dash", "color": "#888"}, opacity=1 if headline else 0.4,
            annotation={"text": percent(target["accuracy"]), "font": {"size": 11}} if headline else None,
        )  # fmt: skip
    lowest = min((arm["curve"]["mean"][0] for arm in result["arms"]), default=0)
    figure.update_layout(
        xaxis={"title": titles[axis], "rangemode": "tozero"},
        yaxis={"title": "test accuracy", "tickformat": ".0%", "range": [max(lowest - 0.05, 0), 1.005]},
        hovermode="closest",
    )
    return _plain(figure)


# What is drawn for each arm: the field of a reach, its words, colour, symbol, and how far above the arm's line it stands.
GAINS = (
    ("gain_steps", "in steps", "#d55e00", "circle", 0.27),
    ("gain_seconds", "in seconds", "#0072b2", "diamond", 0.09),
    ("own_steps", "the contrast's own, in steps", "#d55e00", "circle-open", -0.09),
    ("own_seconds", "the contrast's own, in seconds", "#0072b2", "diamond-open", -0.27),
)


def forest(result: dict[str, Any], k: int) -> Figure:
    """How many times sooner each arm came to a target, with intervals: than the baseline, and the contrast's own part.

    Args:
        result: As in ``result.json``.
        k: Which target.
    """
    import plotly.graph_objects as go

    arms = [arm for arm in result["arms"] if arm["kind"] != "baseline"][::-1]
    known = [(field, arm["reach"][k][field]) for arm in arms for field, *_ in GAINS if arm["reach"][k][field]]
    ends = [gain[end] for _, gain in known for end in ("low", "high", "lower", "upper") if gain[end]]
    left, right = min([0.5, *ends]) / 1.15, max([2.0, *ends]) * 1.15  # an open end runs to the rim of the plot
    figure = go.Figure()
    for field, words, colour, symbol, shift in GAINS:
        rows = [(i + shift, arm["reach"][k][field]) for i, arm in enumerate(arms) if arm["reach"][k][field]]
        middle = [_between(gain["lower"], gain["upper"], left, right) for _, gain in rows]
        figure.add_scatter(
            x=middle, y=[place for place, _ in rows], mode="markers", name=words,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={
                "type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 3,
                "array": [(gain["high"] or right) - x for (_, gain), x in zip(rows, middle)],
                "arrayminus": [x - (gain["low"] or left) for (_, gain), x in zip(rows, middle)],
            },
            text=[f"{bounded(gain['lower'], gain['upper'])} ({interval(gain['low'], gain['high'])})" for _, gain in rows],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.add_vline(x=1, line={"width": 1, "color": "#888"})
    figure.update_layout(
        xaxis={
            "type": "log", "title": "times sooner (right of 1: sooner)", "range": [math.log10(left), math.log10(right)],
            "tickvals": [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50], "ticksuffix": "×",
        },
        yaxis={
            "tickvals": list(range(len(arms))), "ticktext": [spell(arm["name"]) for arm in arms],
            "range": [-0.6, len(arms) - 0.4],
        },
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )  # fmt: skip
    return _plain(figure, 150 + 60 * len(arms))


def _between(lower: Number, upper: Number, left: float, right: float) -> float:
    """Where to put the dot of a ratio that may be known from one side only: at the side that is known."""
    if not lower:
        return upper or math.sqrt(left * right)
    return lower if upper is None else math.sqrt(lower * upper)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"


def _plain(figure: Any, height: int = 420) -> Figure:
    figure.update_layout(margin={"l": 60, "r": 20, "t": 30, "b": 55}, template=None, height=height)
    plain = json.loads(figure.to_json())
    return {"data": plain["data"], "layout": plain["layout"]}
