"""What is printed never ends a program: a terminal shows what it can, a reader may go before the end, a disk may be full."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

SPELLED = str.maketrans(
    {"→": "->", "←": "<-", "≥": ">=", "≤": "<=", "−": "-", "–": "-", "…": "...", "·": "|", "×": "x", "±": "+-"}
)
"""How signs are written for a terminal that lacks one of them; what else it lacks is written by its number, such as ``\\u732b``."""


class Steady:
    """A stream that takes any text, and goes on when nobody reads it any more, or it cannot be written to.

    Attributes:
        failed: Why it could not be written to; None: it could, or its reader has gone, who has what was wanted.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failed: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes what the stream's encoding can show."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with self._reader():
            try:
                text.encode(encoding)
            except UnicodeEncodeError:
                self._stream.write(text.translate(SPELLED).encode(encoding, "backslashreplace").decode(encoding))
            else:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        with self._reader():
            self._stream.flush()

    @contextlib.contextmanager
    def _reader(self) -> Iterator[None]:
        """Where the other end of a pipe is closed (``| head``), or no space is left, the rest goes nowhere."""
        try:
            yield
        except OSError as error:
            self.failed = None if isinstance(error, BrokenPipeError) else error
            with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream without a file
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def steady() -> Iterator[list[Steady]]:
    """While it lasts, no print to stdout or stderr raises: neither for a sign that cannot be shown, nor for a closed pipe or a
    full disk. Gives the streams, which say at the end whether all could be written.

    Example:
        >>> with steady():
        ...     print("caption → image")
        caption → image
    """
    streams: list[Steady] = []
    with contextlib.ExitStack() as held:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            stream = getattr(sys, name)
            if stream is not None:  # closed before the start
                made: Any = Steady(stream)
                held.enter_context(redirect(made))
                held.callback(made.flush)
                streams.append(made)
        yield streams
