"""Which figures of several runs may be ranked: those of the same rows, measured the same way, with the same chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nearfar.report.run_schema import Evaluation, Metric
from nearfar.report.sections.shown import Shown

Told = tuple[Shown, Evaluation, Metric]
"""A figure of a run."""
SPEAKS_OF: dict[str, tuple[str, ...]] = {
    "number of neighbours": ("knn",), "rows to learn from": ("knn", "probe"), "sentences about classes": ("zero-shot",),
    "cut-offs": (),
}  # fmt: skip
"""Facts of a protocol on which some figures alone depend, by their first word; a cut-off stands in the figure's name."""
WITHOUT: dict[str, tuple[str, ...]] = {
    "metric": ("probe", "zero-shot", "similarity"), "chance": ("clustering",),
}  # fmt: skip
"""Figures that do not depend on a fact. The chance of clusters is estimated by them, and is never quite the same."""


def unlike(told: Sequence[Told]) -> list[str]:
    """In what figures differ, so that none of them is better or worse than another; nothing, if they can be ranked.

    What a run does not say is taken to be the same.

    Example:
        >>> from nearfar.report.sections.shown import shown
        >>> [one] = shown([{"name": "a", "config": {}}])
        >>> half, tenth = ({"name": "knn", "value": 0.9, "chance": chance} for chance in (0.5, 0.1))
        >>> unlike([(one, {"metrics": [half], "rows": 10}, half), (one, {"metrics": [tenth], "rows": 10}, tenth)])
        ['chance']
    """
    protocols = [evaluation.get("protocol", {}) for _, evaluation, _ in told]
    figures = {metric["name"].partition(" ")[0] for *_, metric in told}
    known = dict.fromkeys(name for protocol in protocols for name in protocol)
    names = [name for name in known if any(_depends(figure, name) for figure in figures)]
    found = [name for name in names if _several(protocol.get(name) for protocol in protocols)]
    if "rows measured" not in found and _several(evaluation.get("rows") for _, evaluation, _ in told):
        found.append("number of rows")
    if any(_depends(figure, "chance") for figure in figures) and _several(
        _rounded(metric.get("chance")) for *_, metric in told
    ):
        found.append("chance")
    return found


def alike(told: Sequence[Told]) -> list[Told]:
    """The most figures of one name that can be ranked, the first such group; one alone is not ranked. Both the findings and the
    tables go by it.
    """
    groups: list[list[Told]] = []
    for one in told:
        if one[-1]["value"] is None:
            continue
        group = next((group for group in groups if not unlike([*group, one])), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    best = max(groups, key=len, default=[])
    return best if len(best) > 1 else []


def _depends(figure: str, fact: str) -> bool:
    return figure in SPEAKS_OF.get(fact, (figure,)) and figure not in WITHOUT.get(fact, ())


def in_words(names: Sequence[str]) -> str:
    """A list in a sentence.

    Example:
        >>> in_words(["chance"]), in_words(["metric", "cut-offs", "chance"])
        ('chance', 'metric, cut-offs and chance')
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _several(values: Any) -> bool:
    return len({value for value in values if value is not None}) > 1


def _rounded(chance: Any) -> Any:
    return None if chance is None else round(chance, 9)
