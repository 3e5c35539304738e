"""What the runs were told, and where they ran; what differs between runs is set off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nearfar.report.html import Section, boxes, folded, table
from nearfar.report.plotted import shorten
from nearfar.report.sections.shown import Shown

LONGEST = 400
"""Signs of a value; more are cut."""


def configuration(runs: Sequence[Shown]) -> Section:
    """Tables of configuration, data and environment, a column a run."""
    body = ""
    if len(runs) > 1:
        body += boxes("Rows", [("data-only-heed", "only what differs between the runs", False)])
    body += _table("Configuration", runs, [one.run["config"] for one in runs])
    for title, field in (("Data", "data"), ("Environment", "environment")):
        told = [dict(one.run.get(field, {})) for one in runs]
        if any(told):
            body += folded(title, _table(title, runs, told))
    return Section("configuration", "Configuration and environment", body)


def flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Names and values, nested names joined by dots.

    Example:
        >>> list(flat({"loss": {"temperature": 0.1, "name": None}, "views": (2, 3), "ema": True}))
        [('loss.temperature', '0.1'), ('loss.name', 'none'), ('views', '2, 3'), ('ema', 'yes')]
    """
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", _words(value)


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        text = ", ".join(
            _words(part) if not isinstance(part, (dict, list)) else json.dumps(part, default=str) for part in value
        )
        return text or "none"
    return str(value)


def _table(title: str, runs: Sequence[Shown], facts: Sequence[Mapping[str, Any]]) -> str:
    told = [dict(flat(one)) for one in facts]
    names = list(dict.fromkeys(name for one in told for name in one))
    rows, heed = [], []
    for k, name in enumerate(names):
        values = [one.get(name, "–") for one in told]
        differs = len(set(values)) > 1
        if differs:
            heed.append(k)
        rows.append([f"{name}\n≠ differs" if differs else name, *(shorten(value, LONGEST) for value in values)])
    return table(title, ["name", *(one.name for one in runs)], rows, kind="facts", heed=heed)
