"""The run folder's diary: ``events.jsonl``, a line an event, on disk as soon as it is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from nearfar.report.files import write_text

LEFT_OUT = "left out: "
"""How a warning of a row that could not be read begins."""


def free_folder(kind: str, data: str) -> Path:
    """Makes the first free ``runs/KIND-DATA-N``."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in data).strip("-.") or "data"
    number = 1
    while True:
        path = Path("runs") / f"{kind}-{name}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:  # of an earlier run, or of one that starts at the same moment
            number += 1
        else:
            return path


class EventLog:
    """Appends events to a file.

    Args:
        path: Of the file; what a killed process left there is kept, but for a torn last line.
        until: Leave out the events of later steps: they will happen again.
    """

    def __init__(self, path: Path, until: int | None = None) -> None:
        if path.exists():
            _mend(path, until)
        self._file: TextIO = path.open("a", encoding="utf-8", errors="backslashreplace")

    def write(self, event: str, **facts: Any) -> None:
        """One event: a name and what is to be said of it. A NaN is an error of the caller's."""
        self._file.write(json.dumps({"event": event} | facts, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more events."""
        self._file.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file, in order; a torn last line is left out.

    Raises:
        ValueError: If a line is no JSON; the message names file and line.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return  # the process was killed while writing it
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number} cannot be read ({error}): delete the line, or start anew") from error


def _mend(path: Path, until: int | None) -> None:
    whole = path.read_text(encoding="utf-8", errors="replace")
    kept = whole[: whole.rfind("\n") + 1]  # or the next line would be glued to the torn one
    if until is not None:
        lines = kept.splitlines(keepends=True)
        kept = "".join(
            line for line in lines for e in [json.loads(line)] if e.get("step", 0) <= until and e["event"] != "end"
        )
    if kept != whole:
        write_text(path, kept)
