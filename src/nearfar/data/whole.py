"""Whether files of many rows are whole: a download that was cut off is named before anything is read."""

from __future__ import annotations

import tarfile
import zlib
from collections import Counter
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
    odd = _other_columns(paths)
    for path in paths:
        fault, readable = (_tar_fault if path.suffix.lower() == ".tar" else _parquet_fault)(path)
        fault, readable = (odd[path], False) if path in odd else (fault, readable)
        if fault:
            bad.append(f"{path} {fault}")
        if readable:
            good.append(path)
    if not skip_bad:
        refuse(bad, "files")
    if not good:
        raise ValueError(f"none of {len(paths)} file(s) can be read; the first: {bad[0]}")
    return good, tuple(bad)


def _other_columns(paths: Sequence[Path]) -> dict[Path, str]:
    """What is wrong with Parquet files that have other columns than most."""
    parquet = require("pyarrow.parquet", "reading Parquet", "train")
    names: dict[Path, tuple[str, ...]] = {}
    for path in paths if len(paths) > 1 else ():
        if path.suffix.lower() != ".tar" and not _parquet_fault(path)[0]:
            names[path] = tuple(sorted(parquet.read_schema(path).names))
    most = Counter(names.values()).most_common(1)[0][0] if names else ()
    wanted = f", where {'most others have' if len(paths) > 2 else f'{paths[0].name} has'} {', '.join(most)}"
    return {path: f"has the columns {', '.join(held)}{wanted}" for path, held in names.items() if held != most}


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
