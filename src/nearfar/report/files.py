"""Files that are whole or not there: written beside and renamed."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, never meets half of it.

    What UTF-8 does not know, such as a byte of a file's name, is written out, as JSON writes it: no result is lost for it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")
        beside.replace(path)
    except OSError as error:  # named by the file that was asked for
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be, it is not
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes standard JSON: a NaN or an infinity in it is an error of the caller, not a file that few can read."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: If it is none; the message names the file and the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not JSON ({error.msg})") from error
