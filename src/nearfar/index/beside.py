"""Names for what is being written: beside its place, and swept away where a writer died."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

AGE = 600.0
"""Seconds that nothing was written for. A writer on another machine that shares the disk writes far more often."""


def beside(path: Path) -> Path:
    """Where this process writes what is to stand at a path.

    Example:
        >>> beside(Path("runs/a.parquet")).name == f".a.parquet.{os.getpid()}"
        True
    """
    return path.with_name(f".{path.name}.{os.getpid()}")


def sweep(path: Path) -> None:
    """Removes what writers of this path left behind that are no more."""
    for left in path.parent.glob(f".{glob_escape(path.name)}.*"):
        writer = left.name.removeprefix(f".{path.name}.").partition(".")[0]
        with contextlib.suppress(OSError):  # another swept it first
            if writer.isdigit() and not _alive(int(writer)) and time.time() - left.stat().st_mtime > AGE:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def glob_escape(name: str) -> str:
    """A name in which nothing stands for anything else."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
