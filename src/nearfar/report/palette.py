"""Colours of arms: fixed by name, told apart by the colour-blind, readable on light and on dark (Okabe & Ito 2008)."""

from __future__ import annotations

from typing import Any

CONTROLS = ("#0072b2", "#56b4e9", "#009e73")
CONTRASTS = ("#d55e00", "#e69f00", "#cc79a7")
BASELINE = "#8a8a8a"
DASHES = {"baseline": "solid", "control": "dot", "contrast": "solid"}


def colours(arms: list[dict[str, Any]]) -> dict[str, str]:
    """A colour for each arm by its name: cool for controls, warm for contrast, grey for the baseline.

    Example:
        >>> colours([{"name": "task", "kind": "baseline"}, {"name": "joint", "kind": "contrast"}])
        {'task': '#8a8a8a', 'joint': '#d55e00'}
    """
    counts = {"baseline": 0, "control": 0, "contrast": 0}
    found = {}
    for arm in arms:
        shades = {"baseline": (BASELINE,), "control": CONTROLS, "contrast": CONTRASTS}[arm["kind"]]
        found[arm["name"]] = shades[counts[arm["kind"]] % len(shades)]
        counts[arm["kind"]] += 1
    return found


def shown_first(result: dict[str, Any]) -> list[str]:
    """The arms that the verdict speaks of: the baseline, the best without contrast, and the one with contrast."""
    rival = result["rivals"][result["headline"]] if result["rivals"] else None
    names = [arm["name"] for arm in result["arms"] if arm["kind"] == "baseline"]
    return list(dict.fromkeys([*names, *filter(None, (rival, result["contrast"]))]))
