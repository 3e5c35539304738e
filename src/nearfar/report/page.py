"""One HTML page of a comparison: everything inside it, nothing fetched, read by eye, keyboard or screen reader."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

from nearfar.report.format import bounded, count, interval, percent, seconds
from nearfar.report.palette import colours, shown_first
from nearfar.report.picture import render_picture
from nearfar.report.plots import curves, forest

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
    return _document(f"nearfar compare: {name}", "\n".join(body), figures)


def _document(title: str, body: str, figures: dict[str, Any]) -> str:
    here = files("nearfar.report")
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    scripts = ""
    if figures:
        try:
            from plotly.offline import get_plotlyjs
        except ImportError as error:
            raise ImportError('the report needs plotly: pip install "nearfar[cli]"') from error
        data = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")  # so that no text can close the element
        scripts = (
            f'<script type="application/json" id="figures">{data}</script>\n<script>{get_plotlyjs()}</script>\n'
            f"<script>{script}</script>"
        )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n{scripts}\n'
        "</body>\n</html>\n"
    )


def _curves_section(result: dict[str, Any]) -> str:
    shades, first = colours(result["arms"]), shown_first(result)
    boxes = "".join(
        f'<label><input type="checkbox" data-for="curves" data-arm="{escape(arm["name"])}"'
        f'{" checked" if arm["name"] in first else ""}><span class="swatch {escape(arm["kind"])}" '
        f'style="border-color:{shades[arm["name"]]}" aria-hidden="true"></span>{escape(arm["name"])}</label>'
        for arm in result["arms"]
    )
    steps = result["arms"][0]["curve"]["steps"]
    rows = [round(i * (len(steps) - 1) / (CURVE_ROWS - 1)) for i in range(CURVE_ROWS)] if len(steps) > 1 else [0]
    table = _table(
        f"Mean test accuracy of {result['arms'][0]['seeds']} seeds",
        ["steps", *(arm["name"] for arm in result["arms"])],
        [[count(steps[i]), *(percent(arm["curve"]["mean"][i]) for arm in result["arms"])] for i in dict.fromkeys(rows)],
    )
    return (
        '<section aria-labelledby="h-curves"><h2 id="h-curves">Learning curves</h2>'
        + _radios(
            "curves", "Against", [("steps", "steps"), ("seconds", "seconds of training"), ("rows", "rows")], "steps"
        )
        + '<fieldset><legend>Scale</legend><label><input type="checkbox" data-for="curves" data-log checked>logarithmic: '
        "equal distances are equal ratios</label></fieldset>" + f"<fieldset><legend>Arms</legend>{boxes}</fieldset>"
        '<figure><div class="plot" id="curves" role="img" aria-label="Learning curves; the table below has the numbers">'
        f"</div><noscript>{render_picture(result)}</noscript><figcaption>Mean test accuracy over seeds; the bands are 95% "
        "intervals of the mean (Student's t). Dashed: the targets. Dotted curves: controls without contrast."
        f"</figcaption></figure><details><summary>The same as a table</summary>{table}</details></section>"
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
        f"{_table(caption, head, rows)}</section>"
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
        tables.append(_table(
            f"To {_target(target)}; the contrast's own is against {result['rivals'][k]}, the best arm without contrast",
            head, rows,
        ))  # fmt: skip
    return (
        '<section aria-labelledby="h-forest"><h2 id="h-forest">How many times sooner</h2>'
        + _radios("forest", "To a test accuracy of", options, str(result["headline"]))
        + '<figure><div class="plot" id="forest" role="img" aria-label="Speed-ups; the tables below have the numbers">'
        "</div><figcaption>Ratio of the medians, the baseline's over the arm's (open marks: that of the best arm without "
        "contrast), with 95% bootstrap intervals over paired seeds. An interval that includes 1 shows no gain."
        "</figcaption></figure>"
        f"<details><summary>The same as tables</summary>{''.join(tables)}</details></section>"
    )


def _facts_section(result: dict[str, Any]) -> str:
    data = dict(result["data"]) | {"left_out": len(result["data"]["left_out"])}
    sweeps = _table(
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
        f"<details><summary>{escape(title)}</summary>{_facts(facts)}</details>"
        for title, facts in (
            ("Configuration", result["config"]), ("Data", data), ("Network and losses", result["model"] | result["losses"]),
            ("Machine", result["environment"]),
        )
    )  # fmt: skip
    bad = result["data"]["left_out"]
    listed = f"<details><summary>Rows left out</summary>{_facts(dict(enumerate(bad, 1)))}</details>" if bad else ""
    return (
        '<section aria-labelledby="h-facts"><h2 id="h-facts">What was compared</h2>'
        f"{tables}{listed}<details><summary>Sweep</summary>{sweeps}</details></section>"
    )


def _target(target: dict[str, Any]) -> str:
    accuracy = percent(target["accuracy"])
    return accuracy if target["name"] == accuracy else f"{accuracy}, {target['name']}"


def _gain(gain: dict[str, Any] | None) -> str:
    if gain is None:
        return ""
    return f"{bounded(gain['lower'], gain['upper'])}\n{interval(gain['low'], gain['high'])}"


def _radios(name: str, legend: str, options: list[tuple[str, str]], chosen: str) -> str:
    inputs = "".join(
        f'<label><input type="radio" name="{name}" value="{escape(value)}"{" checked" if value == chosen else ""}>'
        f"{escape(text)}</label>"
        for value, text in options
    )
    return f"<fieldset><legend>{escape(legend)}</legend>{inputs}</fieldset>"


def _cell(text: str) -> str:
    first, _, rest = text.partition("\n")
    return escape(first) + (f"<small>{escape(rest)}</small>" if rest else "")


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _facts(facts: dict[Any, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th><td>{escape(_plain(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<div class="scroll" tabindex="0"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
