"""Whether files of many rows are whole: a download that was cut off is named before anything is read."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from nearfar.data.bad import refuse
from nearfar.data.labelled import require


def whole_files(paths: Sequence[Path], skip_bad: bool) -> tuple[list[Path], tuple[str, ...]]:
    """The tar shards or Parquet files that can be read, and what is wrong with the others.

    Of a shard that ends between two of its files, those that are there are read.

    Raises:
        ValueError: If one is damaged and such files are not skipped, or all are; the message names each.
    """
    good, bad = [], []
    for path in paths:
        fault, readable = (_tar_fault if path.suffix.lower() == ".tar" else _parquet_fault)(path)
        if fault:
            bad.append(f"{path} {fault}")
        if readable:
            good.append(path)
    if not skip_bad:
        refuse(bad, "files")
    if not good:
        raise ValueError(f"none of {len(paths)} file(s) can be read; the first: {bad[0]}")
    return good, tuple(bad)


def _tar_fault(path: Path) -> tuple[str, bool]:
    """Reads the headers alone: what lies between is skipped."""
    count = 0
    try:
        with tarfile.open(path) as tar:
            for _ in tar:
                count += 1
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            block = tar.fileobj.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        why = str(error).splitlines()[-1].removeprefix("- method tar: ")
        return f"cannot be read{f' beyond the first {count:,} files in it' if count else ''} ({why})", False
    # What is no header ends the loop above, as a block of zeros does, which is the end of an archive.
    whole = block == tarfile.NUL * tarfile.BLOCKSIZE
    return "" if whole else f"ends after {count:,} files without the mark that ends a tar file", True


def _parquet_fault(path: Path) -> tuple[str, bool]:
    """Reads the footer alone."""
    arrow, parquet = (require(name, "reading Parquet", "train") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        parquet.read_metadata(path)
    except (OSError, arrow.ArrowException) as error:
        return f"cannot be read as Parquet ({error})", False
    return "", True
