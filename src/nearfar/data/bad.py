"""Rows that cannot be read: what is said of them, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_NAMED = 10
"""Bad rows that an error names; it counts the others."""
LONGEST = 60
"""Characters of a cell that are shown."""


def refuse(bad: Sequence[str], what: str = "rows", *, skippable: bool = True) -> None:
    """Raises ``ValueError`` if there are any: what is wrong with each, and the remedy.

    Example:
        >>> refuse(["a.csv:3: column 'x' holds 'NA'", "a.csv:7: is not UTF-8"])
        Traceback (most recent call last):
        ValueError: a.csv:3: column 'x' holds 'NA'; a.csv:7: is not UTF-8 (2 bad rows in all): mend them, or ...
    """
    if bad:
        them = "them" if len(bad) > 1 else "it"
        mend = f"get {them} anew" if what == "files" else f"mend {them}"
        more = " …" * (len(bad) > MOST_NAMED) + f" ({len(bad):,} bad {what} in all)" * (len(bad) > 1)
        skip = f", or leave such {what} out with skip_bad=True (--skip-bad)" * skippable
        raise ValueError(f"{'; '.join(bad[:MOST_NAMED])}{more}: {mend}{skip}")


def left_out(bad: Sequence[str]) -> list[str]:
    """What was left out, to print: the first rows, and how many there are.

    Example:
        >>> left_out(["a.csv:3: column 'x' holds 'NA'"])
        ["left out: a.csv:3: column 'x' holds 'NA'"]
    """
    more = [f"left out: … {len(bad):,} rows in all"] if len(bad) > MOST_NAMED else []
    return [*(f"left out: {line}" for line in bad[:MOST_NAMED]), *more]


def shown(cell: Any) -> str:
    """A cell as a message shows it.

    Example:
        >>> shown("NA"), shown(None)
        ("'NA'", 'nothing')
    """
    text = "nothing" if cell is None else repr(cell)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def name_fault(path: Path) -> str:
    """What is wrong with the name of a file, which reports and tables repeat; empty: nothing."""
    return "its name is not UTF-8 (rename it)" if any("\ud800" <= char <= "\udfff" for char in str(path)) else ""


def check_name(path: Path) -> None:
    """Raises ``ValueError`` for a name that is not UTF-8."""
    if fault := name_fault(path):
        raise ValueError(f"{printable(path)} cannot be read: {fault}")


def printable(path: Path | str) -> str:
    r"""The name of a file, its bytes that are no UTF-8 written out.

    Example:
        >>> printable(Path("caf\udce9.png"))  # as Python holds the bytes caf\xe9.png
        'caf\\xe9.png'
    """
    text = "".join(f"\\x{ord(char) & 0xFF:02x}" if "\udc80" <= char <= "\udcff" else char for char in str(path))
    return text.encode("utf-8", "backslashreplace").decode()
