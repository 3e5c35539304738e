"""Lines of text files, whoever wrote them: any end of line, a byte order mark or none, and where a byte is no text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BYTE_ORDER = (b"\xff\xfe", b"\xfe\xff")
"""What a file of UTF-16 begins with."""


class Line(NamedTuple):
    """A line of a text file."""

    number: int
    """From 1."""
    text: str
    """With its end."""
    wrong: str = ""
    """Why it is no text; empty: it is."""


def text_lines(path: Path) -> Iterator[Line]:
    """The lines of a file of UTF-8, or of UTF-16 with its byte order mark, ended by LF, CR or both.

    A line that is no UTF-8 comes with what is wrong with it, so that the others can be read.
    """
    with path.open("rb") as raw:
        start = raw.read(3)
    wide = start.startswith(BYTE_ORDER)
    at = 3 if start == b"\xef\xbb\xbf" else 0
    with path.open(newline="", encoding="utf-16" if wide else "utf-8-sig", errors="surrogateescape") as file:
        for number, text in enumerate(file, 1):
            wrong = ""
            try:
                size = len(text) if text.isascii() else len(text.encode())
            except UnicodeEncodeError as error:  # a byte that is no UTF-8 was read as half a surrogate pair
                byte, value = at + len(text[: error.start].encode()), ord(text[error.start]) & 0xFF
                wrong = f"is not UTF-8: byte {byte} of the file is 0x{value:02x} (save it as UTF-8)"
                size = len(text.encode(errors="surrogateescape"))
            yield Line(number, text, wrong)
            at += size
