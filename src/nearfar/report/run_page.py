"""One HTML page of training runs: everything inside it, nothing fetched, read by eye, keyboard or screen reader."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nearfar.report.html import Figures, boxes, document
from nearfar.report.palette import swatch
from nearfar.report.run_check import check_runs
from nearfar.report.run_schema import RunFacts
from nearfar.report.sections.configuration import configuration
from nearfar.report.sections.confusion import confusion
from nearfar.report.sections.curves import curves
from nearfar.report.sections.findings import findings
from nearfar.report.sections.gallery import gallery
from nearfar.report.sections.map import embedding_map
from nearfar.report.sections.measures import measures
from nearfar.report.sections.path import path
from nearfar.report.sections.shown import Shown, shown
from nearfar.report.sections.similarity import similarity
from nearfar.report.sections.spectrum import spectrum
from nearfar.report.sections.verification import verification


def render_runs(runs: Sequence[RunFacts]) -> str:
    """The page of one or several training runs, as HTML.

    Sections appear as far as a run has their facts. Text from the data is shown as text wherever it appears.

    Args:
        runs: Facts of each run, in the order of the page.

    Returns:
        A whole file: about 5 MB of it are plotly, the rest grows with the thumbnails.

    Raises:
        ValueError: If there is no run, or its facts do not fit together.
        ImportError: If plotly is missing.

    Example:
        >>> html = render_runs([{"name": "<b>mine</b>", "config": {"rate": 0.1}}])
        >>> "<h1>Training run &lt;b&gt;mine&lt;/b&gt;</h1>" in html, "<b>" in html
        (True, False)
    """
    check_runs(runs)
    ones = shown(runs)
    mapped = embedding_map(ones)
    found = [
        findings(ones), measures(ones), curves(ones), path(ones), spectrum(ones), similarity(ones),
        mapped[0] if mapped else None, gallery(ones), confusion(ones), verification(ones), configuration(ones),
    ]  # fmt: skip
    sections = [section for section in found if section is not None]
    figures: Figures = {key: variants for section in sections for key, variants in section.figures.items()}
    names = ", ".join(one.name for one in ones)
    title = f"Training run {names}" if len(ones) == 1 else f"{len(ones)} training runs"
    links = "".join(f'<li><a href="#{section.key}">{escape(section.title)}</a></li>' for section in sections)
    body = [f"<h1>{escape(title)}</h1>", _runs(ones) if figures else "", *(section.html() for section in sections)]
    return document(
        f"nearfar report: {names}",
        "\n".join(body),
        figures,
        lead=f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        items=mapped[1] if mapped else None,
        extras=("run_page.css", "run_page.js"),
    )


def _runs(ones: Sequence[Shown]) -> str:
    """A box a run, which shows and hides it in every plot that holds several."""
    if len(ones) == 1:
        return ""
    options = [(f'data-trace="{one.key}"', f"{swatch(one.style)}{escape(one.name)}", True) for one in ones]
    return '<noscript><p class="soft">The plots need scripts; the tables have every number.</p></noscript>' + boxes(
        "Runs in the plots", options, kind="runs"
    )
