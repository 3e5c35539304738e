"""Whether facts of a run are what the page can show: checked once, at the border."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nearfar.report.run_schema import Item, RunFacts

# Pictures inside the page only: an address would be fetched, and SVG may hold more than a picture.
_PICTURE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


def check_runs(runs: Sequence[RunFacts]) -> None:
    """Looks at the facts of runs.

    Raises:
        ValueError: If there is no run, or one has facts that are unknown, missing, of different lengths or no pictures; the
            message names the run and the fact.

    Example:
        >>> check_runs([{"name": "a", "config": {}, "spectrum": {"values": [1.0]}}])
        >>> check_runs([{"name": "a"}])
        Traceback (most recent call last):
        ValueError: run 'a' has no config: a page needs it
    """
    if not runs:
        raise ValueError("no runs: a page needs one or more")
    for run in runs:
        _check(run)


def _check(run: RunFacts) -> None:
    facts: Mapping[str, Any] = run
    who = f"run {facts.get('name', 'without a name')!r}"
    for name in ("name", "config"):
        if name not in facts:
            raise ValueError(f"{who} has no {name}: a page needs it")
    known = RunFacts.__annotations__
    for name in facts:
        if name not in known:
            raise ValueError(f"{who} has {name!r}, which no section shows: known are {', '.join(known)}")
    for other in facts.get("others", ()):
        if "data" not in other:
            raise ValueError(f"{who}: others has figures without the name of their data: wanted data")
    classes = len(facts.get("class_names", ()))
    if found := facts.get("map"):
        _even(who, "map", {name: found[name] for name in ("x", "y", "items")})
        if found["method"] not in ("pca", "umap"):
            raise ValueError(f"{who}: map.method is {found['method']!r}: wanted 'pca' or 'umap'")
        for item in found["items"]:
            _item(who, "map", item, classes)
    for query in facts.get("gallery", ()):
        for item in (query["item"], *(near["item"] for near in query["neighbours"])):
            _item(who, "gallery", item, classes)
    if found := facts.get("roc"):
        _even(who, "roc", {name: found[name] for name in ("far", "tar", "thresholds")})
    if found := facts.get("histogram"):
        _even(
            who, "histogram", {"edges but one": found["edges"][1:], **{k: found[k] for k in ("positives", "negatives")}}
        )
    if found := facts.get("confusion"):
        matrix = found["matrix"]
        names = {"classes": found["classes"]} if "classes" in found else {}
        for row in matrix:
            _even(who, "confusion", {"matrix": matrix, "a row": row, **names})


def _even(who: str, what: str, columns: Mapping[str, Sequence[Any]]) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {len(column):,}" for name, column in columns.items())
        raise ValueError(f"{who}: {what} has columns of different lengths ({sizes}): wanted one entry each")


def _item(who: str, what: str, item: Item, classes: int) -> None:
    label, picture = item.get("label"), item.get("thumbnail")
    if label is not None and label >= classes > 0:
        raise ValueError(f"{who}: {what} has the class {label} ({item['name']}) of {classes:,} class_names")
    if picture is not None and not _PICTURE.fullmatch(picture):
        raise ValueError(
            f"{who}: {what} has a thumbnail of {item['name']} that starts with {picture[:40]!r}: wanted data:image/png;base64,… "
            "(or jpeg, webp, gif), since a page fetches nothing"
        )
