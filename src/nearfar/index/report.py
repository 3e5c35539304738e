"""``nearfar report`` of training runs: facts into a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nearfar.index.facts import run_facts
from nearfar.report.files import write_text
from nearfar.report.run_page import render_runs

if TYPE_CHECKING:
    from nearfar.index.config import ReportConfig


def report(config: ReportConfig) -> int:
    """Writes the page of one or several training runs.

    Raises:
        ValueError: If a folder holds no training run, or a picture is asked for, which comparisons have.
    """
    if config.picture is not None:
        raise ValueError(
            f"picture is {config.picture!r}: only the curves of a comparison are drawn as one, so leave it out"
        )
    facts = [
        run_facts(
            run, rows=config.rows, map="umap" if config.umap else "pca", device=config.device, allow_code=config.allow_code
        )
        for run in config.runs
    ]  # fmt: skip
    names = [one["name"] for one in facts]
    for one, run in zip(facts, config.runs, strict=True):
        if names.count(one["name"]) > 1:
            one["name"] = run  # folders of one name in different places
    only = len(config.runs) == 1
    out = Path(config.out or (Path(config.runs[0]) / "report.html" if only else "report.html")).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render_runs(facts))
    print(out)
    return 0
