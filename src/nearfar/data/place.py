"""Where data are and what they hold: the same data are known again in another place, and others under the same name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from nearfar.data.folders import is_hidden
from nearfar.data.pixels import SUFFIXES
from nearfar.data.sheets import TABLE_SUFFIXES, expand_shards
from nearfar.data.sources import SOURCES

# Of a larger file, as many blocks of a mebibyte are read, evenly spaced.
WHOLE = 64
BLOCK = 2**20
# Of more files than these, the others count by name and size.
MOST_FILES = 1_000


def whole_path(data: str) -> str:
    """The place of data as seen from anywhere: the whole path of what is here, else the name.

    Example:
        >>> whole_path("digits"), whole_path("owner/name"), whole_path(".") == os.path.realpath(".")
        ('digits', 'owner/name', True)
    """
    path = Path(data).expanduser()
    here = data not in SOURCES and (path.exists() or path.suffix.lower() == ".tar")
    return str(path.resolve()) if here else data


def is_there(data: str) -> bool:
    """Whether data can be looked for where they are said to be: shards are, which say themselves what is missing."""
    path = Path(data).expanduser()
    return path.exists() or path.suffix.lower() == ".tar"


def contents_of(data: str) -> str | None:
    """A short name for what the files of data hold, wherever they are; None: they are no files here.

    Files up to 64 MiB are read whole, 64 blocks of larger ones; of folders of more than 1,000 files, as many of them.

    Example:
        >>> import tempfile
        >>> one, two = (Path(tempfile.mkdtemp()) / "d.csv" for _ in range(2))
        >>> _ = one.write_text("text,label"), two.write_text("text,label")
        >>> contents_of(str(one)) == contents_of(str(two)), contents_of("digits")
        (True, None)
    """
    path = Path(data).expanduser()
    if data in SOURCES or not is_there(data):
        return None
    try:
        if path.is_dir():
            files = [(file.relative_to(path).as_posix(), file) for file in sorted(_files(path))]
        else:
            files = [("", path)] if path.exists() else [(file.name, file) for file in expand_shards(data)]
        read = {round(k * (len(files) - 1) / (MOST_FILES - 1)) for k in range(MOST_FILES)}
        digest = hashlib.blake2b(digest_size=8)
        for number, (name, file) in enumerate(files):
            digest.update(os.fsencode(name) + b"\0" + str(file.stat().st_size).encode() + b"\0")
            if len(files) <= MOST_FILES or number in read:
                for block in _blocks(file):
                    digest.update(block)
    except (OSError, ValueError):  # what cannot be read is named when the data are opened
        return None
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Files of a folder that may be data."""
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not is_hidden(name)]
        for name in names:
            if not is_hidden(name) and name.lower().endswith((*SUFFIXES, *TABLE_SUFFIXES, ".tar")):
                yield Path(place, name)


def _blocks(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    count = -(-size // BLOCK)
    starts = range(count) if count <= WHOLE else [round(k * (size - BLOCK) / (WHOLE - 1)) for k in range(WHOLE)]
    with path.open("rb") as file:
        for start in starts:
            file.seek(start * BLOCK if count <= WHOLE else start)
            yield file.read(BLOCK)
