"""Unknown names, answered with the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that nobody knows.

    Example:
        >>> unknown("arm", "jiont", ["task", "joint"])
        "there is no arm 'jiont'; did you mean 'joint'? Known: task, joint"
    """
    known = list(known)
    near = difflib.get_close_matches(given, known, n=1)
    question = f"; did you mean {near[0]!r}?" if near else "."
    return f"there is no {kind} {given!r}{question} Known: {', '.join(known)}"
