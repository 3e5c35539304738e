"""Lines of text files, whoever wrote them: any end of line, a byte order mark or none, and where a byte is no text."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BYTE_ORDER = (b"\xff\xfe", b"\xfe\xff")
"""What a file of UTF-16 begins with."""
LONG_ORDER = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
"""What a file of UTF-32 begins with."""
LOOKED_AT = 256
"""Bytes at the beginning that tell how a file is written."""
NO_TEXT = "\udc80"
"""What is read in place of what is no UTF-16: half a surrogate pair, which no text holds."""
READ_ON = "nearfar.read_on"
"""How that is asked of a codec."""


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

    A line that is no text comes with what is wrong with it, so that the others can be read.

    Raises:
        ValueError: If the file is UTF-16 without its mark, or UTF-32.
    """
    with path.open("rb") as raw:
        start = raw.read(LOOKED_AT)
    wide = start.startswith(BYTE_ORDER)
    if start.startswith(LONG_ORDER) or (not wide and _is_wide(start)):
        raise ValueError(f"{path} is UTF-32, or UTF-16 without its byte order mark: save it as UTF-8")
    at = 3 if start.startswith(codecs.BOM_UTF8) else 0
    encoding, errors = ("utf-16", READ_ON) if wide else ("utf-8-sig", "surrogateescape")
    with path.open(newline="", encoding=encoding, errors=errors) as file:
        for number, text in enumerate(file, 1):
            wrong = "holds a NUL character, so it is no text (save the file as UTF-8)" if "\0" in text else ""
            try:
                size = len(text) if text.isascii() else len(text.encode())
            except UnicodeEncodeError as error:  # a byte that is no UTF-8 was read as half a surrogate pair
                byte, value = at + len(text[: error.start].encode()), ord(text[error.start]) & 0xFF
                wrong = f"is not UTF-8: byte {byte} of the file is 0x{value:02x} (save it as UTF-8)"
                if wide:
                    wrong = f"is not UTF-16 at its character {error.start + 1} (get it anew, or save it as UTF-8)"
                size = len(text.encode(errors="surrogateescape"))
            yield Line(number, text, wrong)
            at += size


def _is_wide(start: bytes) -> bool:
    """Whether every other byte is zero, or most are: characters of two or four bytes."""
    return any(len(half) > 1 and 2 * half.count(0) > len(half) for half in (start[::2], start[1::2]))


def _read_on(error: UnicodeError) -> tuple[str, int]:
    """Reads on after what is no UTF-16."""
    assert isinstance(error, UnicodeDecodeError)
    return NO_TEXT, error.end


codecs.register_error(READ_ON, _read_on)
