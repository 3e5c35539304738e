"""The pieces that every page is made of: the document, sections, controls, tables. Everything inside one file.

All text from the data passes through here, or through :func:`nearfar.report.plotted.spell`, and is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

Figures = dict[str, dict[str, Any]]
"""Id of a plot to its variants by key; the checked radio button named like the plot says which variant is drawn."""


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading."""

    key: str
    title: str
    body: str
    """HTML."""
    figures: Figures = field(default_factory=dict)

    def html(self) -> str:
        """The section as a landmark named by its heading."""
        return (
            f'<section id="{self.key}" aria-labelledby="h-{self.key}"><h2 id="h-{self.key}">{escape(self.title)}</h2>'
            f"{self.body}</section>"
        )


def document(
    title: str, body: str, figures: Figures, *, lead: str = "", items: Any = None, extras: Sequence[str] = ()
) -> str:
    """A whole page, with plotly inside if it has figures.

    Args:
        title: Of the window.
        body: HTML of the main part.
        figures: What is drawn, by the id of its place.
        lead: HTML before the main part, such as navigation.
        items: Data that the scripts of ``extras`` read.
        extras: Styles and scripts of this package besides the common ones.

    Raises:
        ImportError: If plotly is missing.
    """
    style = "".join(_own(name) for name in ("page.css", *extras) if name.endswith(".css"))
    scripts = theme = ""
    if figures:
        try:
            from plotly.offline import get_plotlyjs
        except ImportError as error:
            raise ImportError('the report needs plotly: pip install "nearfar[cli]"') from error
        script = "".join(_own(name) for name in ("page.js", *extras) if name.endswith(".js"))
        islands = island("figures", figures) + ("" if items is None else island("items", items))
        scripts = f"{islands}\n<script>{get_plotlyjs()}</script>\n<script>{script}</script>"
        theme = _theme()
    head = f"<header>{lead}{theme}</header>\n" if lead or theme else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n{head}<main>\n{body}\n</main>\n'
        f"{scripts}\n</body>\n</html>\n"
    )


def island(key: str, value: Any) -> str:
    r"""Data for the page's own scripts, which no text in it can close or leave.

    Example:
        >>> island("a", ["</script>"])
        '<script type="application/json" id="a">["\\u003c/script>"]</script>'
    """
    data = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{key}">{data}</script>'


def plot(key: str, words: str, *, note: str = "", inside: str = "") -> str:
    """A place that the page's script draws a figure into.

    Args:
        key: Its id, as in the figures.
        words: What a screen reader says in its place.
        note: HTML of the caption.
        inside: HTML beside the plot, such as a card that floats over it.
    """
    caption = f"<figcaption>{note}</figcaption>" if note else ""
    return (
        f'<figure><div class="stage"><div class="plot" id="{key}" role="img" aria-label="{escape(words)}"></div>{inside}</div>'
        f"{caption}</figure>"
    )


def radios(name: str, legend: str, options: Iterable[tuple[str, str]], chosen: str) -> str:
    """One of several, as radio buttons: value and words."""
    inputs = "".join(
        f'<label><input type="radio" name="{name}" value="{escape(value)}"{" checked" if value == chosen else ""}>'
        f"{escape(text)}</label>"
        for value, text in options
    )
    return f"<fieldset><legend>{escape(legend)}</legend>{inputs}</fieldset>"


def boxes(legend: str, options: Iterable[tuple[str, str, bool]], *, kind: str = "") -> str:
    """Any of several, as check boxes: attributes (HTML), words (HTML), whether checked."""
    inputs = "".join(
        f'<label><input type="checkbox" {attributes}{" checked" if checked else ""}>{words}</label>'
        for attributes, words, checked in options
    )
    return f"<fieldset{f' class={kind!r}' if kind else ''}><legend>{escape(legend)}</legend>{inputs}</fieldset>"


def folded(title: str, body: str) -> str:
    """Something to open."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", heed: Iterable[int] = ()
) -> str:
    """A table that scrolls by itself. A line break in a cell sets what follows small.

    Args:
        caption: What it shows.
        head: Names of the columns.
        rows: Cells as text; the first of each row names the row.
        kind: Class of the table.
        heed: Positions of rows to set off.
    """
    top, marked = "".join(f'<th scope="col">{_cell(cell)}</th>' for cell in head), set(heed)
    body = "".join(
        f'<tr{" class=heed" if k in marked else ""}><th scope="row">{_cell(row[0])}</th>'
        f"{''.join(f'<td>{_cell(cell)}</td>' for cell in row[1:])}</tr>"
        for k, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table{f' class={kind!r}' if kind else ''}><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def facts_table(facts: dict[Any, Any], title: str) -> str:
    """Names and values."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th><td>{escape(plain(value))}</td></tr>'
        for name, value in facts.items()
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table class="facts"><tbody>{rows}'
        "</tbody></table></div>"
    )


def plain(value: Any) -> str:
    """A value of a configuration, as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _cell(text: str) -> str:
    first, _, rest = text.partition("\n")
    return escape(first) + (f"<small>{escape(rest)}</small>" if rest else "")


def _theme() -> str:
    """Light or dark; shown by the script, since it does nothing without."""
    options = [("", "as the system"), ("light", "light"), ("dark", "dark")]
    return radios("theme", "Colours", options, "").replace("<fieldset>", '<fieldset class="theme" hidden>')


def _own(name: str) -> str:
    return (files("nearfar.report") / name).read_text(encoding="utf-8")
