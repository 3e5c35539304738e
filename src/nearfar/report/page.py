"""One HTML page of a comparison: everything inside it, nothing fetched, read by eye, keyboard or screen reader."""

from __future__ import annotations

from html import escape
from typing import Any

from nearfar.report.format import bounded, count, interval, percent, seconds
from nearfar.report.html import boxes, document, facts_table, folded, plot, radios, table
from nearfar.report.palette import colours, shown_first
from nearfar.report.picture import render_picture
from nearfar.report.plots import curves, forest
from nearfar.report.thin import evenly

# Rows of the table beside the curves: enough to follow them, few enough to listen to.
CURVE_ROWS = 12


def render_page(result: dict[str, Any]) -> str:
    """The page of a result, as HTML.

    Args:
        result: As in ``result.json``: ``Comparison.to_dict()``.

    Raises:
        ImportError: If plotly is missing.
    """
    gist, *others = result["verdict"]
    name = result["data"]["name"]
    body = [
        f"<h1>How much sooner does contrast converge on {escape(name)}?</h1>",
        f'<p class="gist">{escape(gist)}</p>',
        "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in others) + "</ul>",
    ]
    figures: dict[str, Any] = {}
    if result["arms"]:
        figures = {
            "curves": {axis: curves(result, axis) for axis in ("steps", "seconds", "rows")},
            "forest": {str(k): forest(result, k) for k in range(len(result["targets"]))},
        }
        body += [_curves_section(result), _reach_section(result), _forest_section(result)]
    body += [_facts_section(result)]
    return document(f"nearfar compare: {name}", "\n".join(body), figures)


def _curves_section(result: dict[str, Any]) -> str:
    shades, first = colours(result["arms"]), shown_first(result)
    arms = [
        (
            f'data-for="curves" data-trace="{escape(arm["name"])}"',
            f'<span class="swatch {escape(arm["kind"])}" style="border-color:{shades[arm["name"]]}" aria-hidden="true"></span>'
            + escape(arm["name"]),
            arm["name"] in first,
        )
        for arm in result["arms"]
    ]
    steps = result["arms"][0]["curve"]["steps"]
    rows = evenly(len(steps), CURVE_ROWS)
    numbers = table(
        f"Mean test accuracy of {result['arms'][0]['seeds']} seeds",
        ["steps", *(arm["name"] for arm in result["arms"])],
        [[count(steps[i]), *(percent(arm["curve"]["mean"][i]) for arm in result["arms"])] for i in rows],
    )
    axes = [("steps", "steps"), ("seconds", "seconds of training"), ("rows", "rows")]
    return (
        '<section aria-labelledby="h-curves"><h2 id="h-curves">Learning curves</h2>'
        + radios("curves", "Against", axes, "steps")
        + boxes("Scale", [('data-for="curves" data-log="x"', "logarithmic: equal distances are equal ratios", True)])
        + boxes("Arms", arms)
        + plot(
            "curves",
            "Learning curves; the table below has the numbers",
            note="Mean test accuracy over seeds; the bands are 95% intervals of the mean (Student's t), "
            "from 5 seeds on. Dashed: the targets. Dotted curves: controls without contrast.",
            inside=f"<noscript>{render_picture(result)}</noscript>",
        )
        + folded("The same as a table", numbers)
        + "</section>"
    )


def _reach_section(result: dict[str, Any]) -> str:
    config = result["config"]
    head = ["arm", "rate", *(_target(target) for target in result["targets"]), "after the last step", "a step"]
    rows = []
    for arm in result["arms"]:
        cells = [
            f"{bounded(*reach['steps'], show=count)}\n{bounded(*reach['seconds'], show=seconds)}, {reach['reached']}/{arm['seeds']}"
            for reach in arm["reach"]
        ]
        choice, final = arm["choice"], arm["final"]
        rate = f"{choice['rate']:g}" + ("" if choice["weight"] == 1 else f"\nweight {choice['weight']:g}")
        rows.append([
            f"{arm['name']}\n{arm['title']}", rate, *cells,
            f"{percent(final['lower'])}\n{interval(final['low'], final['high'], percent)}",
            f"{seconds(arm['seconds_per_step'])}\n{count(arm['rows_per_step'])} rows",
        ])  # fmt: skip
    caption = (
        f"Median steps, and seconds of training, until a test accuracy is held for {config['hold']} evaluations, "
        f"{config['eval_every']} steps apart; n/m: seeds that arrived. One that does not counts as later than its last step (≥)."
    )
    return (
        '<section aria-labelledby="h-reach"><h2 id="h-reach">Steps and seconds to a target</h2>'
        f"{table(caption, head, rows)}</section>"
    )


def _forest_section(result: dict[str, Any]) -> str:
    options = [(str(k), _target(target)) for k, target in enumerate(result["targets"])]
    tables = []
    for k, target in enumerate(result["targets"]):
        rows = []
        for arm in result["arms"]:
            reach = arm["reach"][k]
            gains = [reach[name] for name in ("gain_steps", "gain_seconds", "own_steps", "own_seconds")]
            if any(gains):
                rows.append([arm["name"], *(_gain(gain) for gain in gains)])
        head = ["arm", "in steps", "in seconds", "the contrast's own, in steps", "in seconds"]
        tables.append(table(
            f"To {_target(target)}; the contrast's own is against {result['rivals'][k]}, the best arm without contrast",
            head, rows,
        ))  # fmt: skip
    return (
        '<section aria-labelledby="h-forest"><h2 id="h-forest">How many times sooner</h2>'
        + radios("forest", "To a test accuracy of", options, str(result["headline"]))
        + plot(
            "forest",
            "Speed-ups; the tables below have the numbers",
            note="Ratio of the medians, the baseline's over the arm's (open marks: that of the best arm without contrast), with "
            "95% bootstrap intervals over paired seeds. An interval that includes 1 shows no gain.",
        )
        + folded("The same as tables", "".join(tables))
        + "</section>"
    )


def _facts_section(result: dict[str, Any]) -> str:
    data = dict(result["data"]) | {"left_out": len(result["data"]["left_out"])}
    sweeps = table(
        "Every trial of the sweep, in order; the score is the mean validation accuracy over the evaluations",
        ["arm", "trials: rate (weight), score"],
        [
            [
                arm["name"],
                "; ".join(f"{rate:g} ({weight:g}) {percent(score)}" for rate, weight, score in arm["choice"]["trials"]),
            ]
            for arm in result["arms"]
        ],
    )
    tables = "".join(
        folded(title, facts_table(facts, title))
        for title, facts in (
            ("Configuration", result["config"]), ("Data", data), ("Network and losses", result["model"] | result["losses"]),
            ("Machine", result["environment"]),
        )
    )  # fmt: skip
    bad = result["data"]["left_out"]
    listed = folded("Rows left out", facts_table(dict(enumerate(bad, 1)), "Rows left out")) if bad else ""
    return (
        '<section aria-labelledby="h-facts"><h2 id="h-facts">What was compared</h2>'
        f"{tables}{listed}{folded('Sweep', sweeps)}</section>"
    )


def _target(target: dict[str, Any]) -> str:
    accuracy = percent(target["accuracy"])
    return accuracy if target["name"] == accuracy else f"{accuracy}, {target['name']}"


def _gain(gain: dict[str, Any] | None) -> str:
    if gain is None:
        return ""
    return f"{bounded(gain['lower'], gain['upper'])}\n{interval(gain['low'], gain['high'])}"
