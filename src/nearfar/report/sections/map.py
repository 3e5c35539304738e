"""The embeddings on a plane: by class, with the picture or the text of a point under the pointer or in a list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from nearfar.report.format import percent
from nearfar.report.html import Section, boxes, folded, plot, table
from nearfar.report.palette import class_style, glyph
from nearfar.report.plotted import Figure, finite, framed, shorten
from nearfar.report.run_schema import EmbeddingMap
from nearfar.report.sections.shown import Shown, number, of_run, pick
from nearfar.report.thin import MAP_POINTS, evenly

KEY = "map-plot"
CLASSES = 20
"""Classes with a colour and a box of their own: the most frequent; the others share one."""
TEXT = 300
"""Signs of a text that are shown."""
METHODS = {"pca": "principal components (PCA)", "umap": "UMAP"}
_AXES = {"pca": ("first principal component", "second principal component"), "umap": ("", "")}


def embedding_map(runs: Sequence[Shown]) -> tuple[Section, dict[str, Any]] | None:
    """The section, and what its script shows of each point: ``{"pictures": [...], "maps": {run: [[name, class, picture, text]]}}``,
    where a picture that many points share is held once.
    """
    found = [(one, _thinned(one.run["map"])) for one in runs if "map" in one.run and one.run["map"]["items"]]
    if not found:
        return None
    pictures: dict[str, int] = {}
    maps: dict[str, Any] = {}
    for one, told in found:
        maps[one.key] = [
            [
                item["name"], one.class_name(label) if (label := item.get("label")) is not None else "",
                pictures.setdefault(item["thumbnail"], len(pictures)) if "thumbnail" in item else -1,
                shorten(item.get("text", ""), TEXT),
            ]
            for item in told["items"]
        ]  # fmt: skip
    parts = "".join(of_run(KEY, one, _controls(one, told)) for one, told in found)
    after = "".join(of_run(KEY, one, _after(one, told)) for one, told in found)
    body = (
        pick(KEY, [one for one, _ in found])
        + parts
        + plot(
            KEY,
            "Map of the embeddings; the list and the table below have its points and classes",
            note="Point at a mark to see what it is, or choose from the list below. Escape puts the card away.",
            inside='<div class="card" id="map-card" role="status" hidden></div>',
        )
        + after
    )
    section = Section("map", "Map of the embeddings", body, {KEY: {one.key: _figure(one, told) for one, told in found}})
    return section, {"pictures": list(pictures), "maps": maps}


def groups(told: EmbeddingMap) -> list[tuple[int | None, list[int]]]:
    """Points by class: the most frequent in order of their ids, then the rest together under None."""
    labels = [label if (label := item.get("label")) is not None and label >= 0 else None for item in told["items"]]
    known = Counter(label for label in labels if label is not None)
    own = sorted(label for label, _ in known.most_common(CLASSES))
    members: dict[int | None, list[int]] = {label: [] for label in own}
    for k, label in enumerate(labels):
        members.setdefault(label if label in members else None, []).append(k)
    return list(members.items())


def _thinned(told: EmbeddingMap) -> EmbeddingMap:
    kept = evenly(len(told["items"]), MAP_POINTS)
    if len(kept) == len(told["items"]):
        return told
    x, y, items = [told["x"][k] for k in kept], [told["y"][k] for k in kept], [told["items"][k] for k in kept]
    return {**told, "x": x, "y": y, "items": items, "total": told.get("total", len(told["items"]))}


def _controls(one: Shown, told: EmbeddingMap) -> str:
    """A box for each class, and what kind of map it is."""
    options = []
    for place, (label, members) in enumerate(groups(told)):
        name = "all" if _unlabelled(told) else _group_name(one, told, label)
        words = f"{glyph(_style(place, label))}{escape(shorten(name, 40))} <small>{len(members):,}</small>"
        options.append((f'data-trace="{one.key}-c{place}"', words, True))
    every = "" if len(options) < 3 else (
        f'<p class="buttons"><button type="button" data-all="{one.key}-c">show all</button> '
        f'<button type="button" data-none="{one.key}-c">hide all</button></p>'
    )  # fmt: skip
    count = len(told["items"])
    words = f"{one.name}: {count:,} points by {METHODS[told['method']]}"
    if (total := told.get("total", count)) > count:
        words += f", drawn evenly from {total:,} rows"
    if told.get("kept") is not None:
        words += f"; the plane keeps {percent(told.get('kept') or 0)} of the variance"
    words += ". " + ("Distances between far clusters mean little." if told["method"] == "umap" else "")
    return f"<p>{escape(words.strip())}</p>" + (
        boxes("Classes", options, kind="many") + every if len(options) > 1 else ""
    )


def _after(one: Shown, told: EmbeddingMap) -> str:
    """The list of the points, filled by the script, and the classes as a table."""
    chooser = (
        f'<label class="wide" for="points-{one.key}">Points shown: arrow keys go through them</label>'
        f'<select id="points-{one.key}" size="8" data-points="{one.key}"></select>'
    )
    body = folded("The same as a list", chooser)
    return body if _unlabelled(told) else body + folded("The classes as a table", _class_table(one, told))


def _class_table(one: Shown, told: EmbeddingMap) -> str:
    centres, rows = {}, []
    for label, members in groups(told):
        xs, ys = ([told[axis][k] for k in members] for axis in ("x", "y"))
        x, y = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = math.sqrt(sum((a - x) ** 2 + (b - y) ** 2 for a, b in zip(xs, ys)) / len(xs))
        centres[_group_name(one, told, label)] = (x, y, spread, len(members))
    for name, (x, y, spread, size) in centres.items():
        others = {other: math.dist((x, y), place[:2]) for other, place in centres.items() if other != name}
        near = min(others, key=others.__getitem__) if others else ""
        rows.append([
            name, f"{size:,}", number(x), number(y), number(spread), f"{near}\nat {number(others[near])}" if near else "",
        ])  # fmt: skip
    return table(
        f"Where the classes lie on the map: {one.name}",
        ["class", "points", "centre, across", "centre, up", "spread", "nearest centre"], rows,
    )  # fmt: skip


def _figure(one: Shown, told: EmbeddingMap) -> Figure:
    count = len(told["items"])
    size = 8 if count <= 500 else 6 if count <= 1500 else 5
    data = []
    for place, (label, members) in enumerate(groups(told)):
        style = _style(place, label)
        data.append({
            "type": "scatter", "mode": "markers", "hoverinfo": "none", "customdata": members,
            "meta": {"box": f"{one.key}-c{place}"},
            "x": [finite(told["x"][k], 5) for k in members], "y": [finite(told["y"][k], 5) for k in members],
            "marker": {"color": style.colour, "symbol": style.symbol, "size": size, "opacity": 0.8},
        })  # fmt: skip
    data.append({
        "type": "scatter", "mode": "markers", "hoverinfo": "skip", "x": [None], "y": [None], "meta": {"here": one.key},
        "marker": {"symbol": "circle-open", "size": 18, "line": {"width": 3}, "color": "#8a8a8a"},
    })  # fmt: skip
    across, up = _AXES[told["method"]]
    ticks = told["method"] == "pca"
    plain = {"zeroline": False, "showticklabels": ticks}
    return framed(
        data, 520, margin={"l": 50 if ticks else 15, "r": 15, "t": 15, "b": 45 if ticks else 15},
        xaxis={"title": across, **plain}, yaxis={"title": up, "scaleanchor": "x", **plain},
    )  # fmt: skip


def _style(place: int, label: int | None) -> Any:
    return class_style(place if label is not None else CLASSES)


def _unlabelled(told: EmbeddingMap) -> bool:
    return all(item.get("label") is None for item in told["items"])


def _group_name(one: Shown, told: EmbeddingMap, label: int | None) -> str:
    if label is not None:
        return one.class_name(label)
    unknown = all((held := item.get("label")) is None or held < 0 or held < CLASSES for item in told["items"])
    return "unknown" if unknown else "other classes"
