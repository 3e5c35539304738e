"""What lies nearest to some held-out rows, with right and wrong marked by sign, word, line and colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nearfar.report.html import Section, boxes
from nearfar.report.plotted import shorten
from nearfar.report.run_schema import Item, Neighbour, Query
from nearfar.report.sections.shown import Shown, of_run, pick
from nearfar.report.thin import QUERIES, evenly

# What is said of a neighbour: class, sign, words.
MARKS = {True: ("right", "✓", "right"), False: ("wrong", "✗", "wrong"), None: ("open", "?", "not known")}
NONE_LEFT = ("open", "–", "none left")
"""A neighbour that is not right, where all that belong to the query stand before it."""


def gallery(runs: Sequence[Shown]) -> Section | None:
    """A row for each query: the query, then its neighbours, nearest first."""
    found = [(one, queries) for one in runs if (queries := one.run.get("gallery"))]
    if not found:
        return None
    wrong = any(_wrong(query) for _, queries in found for query in queries)
    body = pick("gallery-run", [one for one, _ in found])
    if wrong:
        body += boxes(
            "Queries", [("data-only-wrong", "only those with a wrong neighbour where a right one could be", False)]
        )
    for one, queries in found:
        kept = [queries[k] for k in evenly(len(queries), QUERIES)]
        rows = "".join(_query(one, query) for query in kept)
        body += of_run("gallery-run", one, f'<p class="soft">{_gist(one, queries, len(kept))}</p>{_box(one, rows)}')
    return Section("gallery", "Nearest neighbours", body)


def _box(one: Shown, rows: str) -> str:
    return (
        f'<div class="box" tabindex="0" role="region" aria-label="{escape(f"Queries of {one.name}")}"><ul class="queries">{rows}'
        "</ul></div>"
    )


def item_html(one: Shown, item: Item, role: str) -> str:
    """A row of the data: its picture or text, its name, its class."""
    label = item.get("label")
    name, said = item["name"], one.class_name(label)
    of_class = f'<span class="class">{escape(shorten(said, 60))}</span>' if label is not None else ""
    if "thumbnail" in item:
        words = f"{role}: {name}" + (f", {said}" if label is not None else "")
        seen = f'<img src="{escape(item["thumbnail"])}" alt="{escape(words)}" loading="lazy">'
    else:
        seen = f"<blockquote>{escape(shorten(item.get('text', name), 300))}</blockquote>"
    return f'{seen}{of_class}<span class="name" title="{escape(name)}">{escape(_tail(name))}</span>'


def _query(one: Shown, query: Query) -> str:
    marks = zip(query["neighbours"], _marks(query))
    neighbours = "".join(_neighbour(one, k, near, mark) for k, (near, mark) in enumerate(marks, 1))
    kind = " data-wrong" if _wrong(query) else ""
    return (
        f'<li{kind}><div class="item query">{item_html(one, query["item"], "query")}<span class="mark">query</span></div>'
        f"<ol>{neighbours}</ol></li>"
    )


def _tail(name: str, longest: int = 13) -> str:
    """The end of a path: what tells it from its neighbours."""
    name = " ".join(name.split())
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _marks(query: Query) -> list[tuple[str, str, str]]:
    """What is said of each neighbour."""
    left, found = query.get("possible", len(query["neighbours"])), []
    for near in query["neighbours"]:
        found.append(NONE_LEFT if near.get("right") is False and not left else MARKS[near.get("right")])
        left -= near.get("right") is True
    return found


def _neighbour(one: Shown, rank: int, near: Neighbour, mark: tuple[str, str, str]) -> str:
    kind, sign, words = mark
    return (
        f'<li class="item {kind}">{item_html(one, near["item"], f"neighbour {rank}")}<span class="mark">'
        f'<span aria-hidden="true">{sign}</span> {words}</span> <span class="score">{_score(near)}</span></li>'
    )


def _wrong(query: Query) -> bool:
    """Whether a neighbour is wrong where a right one could be."""
    return MARKS[False] in _marks(query)


def _gist(one: Shown, queries: Sequence[Query], kept: int) -> str:
    marks = [[mark for near in query["neighbours"] if (mark := near.get("right")) is not None] for query in queries]
    known, right = sum(map(len, marks)), sum(map(sum, marks))
    can_be = sum(query.get("possible", len(told)) for query, told in zip(queries, marks))
    words = f"{kept:,} of {len(queries):,} queries" if kept < len(queries) else f"{len(queries):,} queries"
    words += " from the held-out rows, the nearest others from left to right, with their cosine similarities"
    if known and not can_be:
        words += "; none of them can be right: no other row here belongs to any query"
    elif known and can_be < known:
        words += f"; {right:,} of the {can_be:,} neighbours that can be right are"
    elif known:
        words += f"; {right:,} of {known:,} neighbours are right"
    return escape(f"{one.name}: {words}.")


def _score(near: Neighbour) -> str:
    return "–" if near["score"] is None else f"{near['score']:.3f}".replace("-", "−")
