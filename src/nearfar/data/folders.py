"""What lies in a folder: files that may be rows, the part each belongs to, tables beside images. What is hidden is no row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from nearfar.data.bad import printable
from nearfar.data.pixels import SUFFIXES

T = TypeVar("T")
TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_NAMES = (*TEST_FOLDERS, "dev")
# A table beside images says what belongs to them, as Hugging Face's image folders have it.
METADATA_BELOW = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
METADATA = (*METADATA_BELOW, "metadata.tsv", "metadata.ndjson", "metadata.json", "metadata.pq")

# Names without a dot in front that systems give to files and folders of their own; case does not matter.
OWN_NAMES = frozenset(
    (
        "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "#snapshot", "$recycle.bin",
        "system volume information", "lost+found",
    )
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: it begins with a dot, or a system has put it there.

    Example:
        >>> [is_hidden(name) for name in ("._cat.jpg", "Thumbs.db", "__MACOSX", "cat.jpg")]
        [True, True, True, False]
    """
    return name.startswith((".", "~$")) or name.casefold() in OWN_NAMES


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what is hidden."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def metadata_tables(folder: Path) -> tuple[list[Path], list[str]]:
    """The tables beside images in a folder, and the part that each is of: none, where there is no training part.

    One in the folder itself counts alone. Otherwise there may be one in each folder below, such as ``train/metadata.csv``
    beside ``test/metadata.csv``; in some class folders only they say nothing of the others, and are passed over.
    """
    here = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if here is not None:
        return [here], []
    found: list[Path] = []
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not is_hidden(name))
        found += [Path(place, name) for name in METADATA_BELOW if name in names][:1]
    below = [path.relative_to(folder).parts for path in found]
    tables, parts = by_part(found, [next(filter(is_part, words), "") for words in below])
    everywhere = {words[0] for words in below} == {path.name for path in visible(folder) if path.is_dir()}
    return (tables, parts) if everywhere or any("train" in words for words in below) else ([], [])


def is_part(word: str) -> bool:
    """Whether a word says which part of a data set something is."""
    return word == "train" or word in TEST_NAMES


def by_part(paths: list[T], parts: list[str]) -> tuple[list[T], list[str]]:
    """The files of the training part and then those of the test part, with their parts, if there are both.

    Without a test part those of the training part, and without one all; then no parts.
    """
    test = next((name for name in TEST_NAMES if name in parts), None)
    if "train" not in parts:
        return paths, []
    kept = [(path, part) for name in ("train", test) for path, part in zip(paths, parts) if part == name]
    return [path for path, _ in kept], [part for _, part in kept] if test else []


def parts_of(paths: Sequence[Path | None], folder: Path) -> list[str] | None:
    """The part that each file is of by the folder that it lies in; None, unless there is one to train on and one to test on."""
    words = [
        path.relative_to(folder).parts[0] if path is not None and path.is_relative_to(folder) else "" for path in paths
    ]
    return words if by_part([*range(len(words))], [word if is_part(word) else "" for word in words])[1] else None


class Walk:
    """Lists folders, and counts what it passes over.

    Args:
        suffixes: How the files end that are wanted.
    """

    def __init__(self, suffixes: Sequence[str] = SUFFIXES) -> None:
        self._suffixes = frozenset(suffixes)
        self._hidden: dict[str, int] = {}  # files behind each path, which may be met twice
        self._others: dict[str, str] = {}  # the ending of each file

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, by name."""
        self._look(folder, os.listdir(folder))
        return [path for path in visible(folder) if path.is_dir()]

    def files(self, folder: Path, *, below: bool = True) -> list[Path]:
        """The wanted files in a folder, and in the folders below it, by name."""
        found: list[Path] = []
        for place, inner, names in os.walk(folder):
            self._look(Path(place), inner + names)
            inner[:] = [name for name in inner if below and not is_hidden(name)]
            for name in names:
                if is_hidden(name):
                    continue
                if (suffix := os.path.splitext(name)[1].lower()) in self._suffixes:
                    found.append(Path(place, name))
                elif name not in METADATA:
                    self._others[os.path.join(place, name)] = suffix
        return sorted(found)

    def _look(self, folder: Path, names: Sequence[str]) -> None:
        for name in names:
            if is_hidden(name) and (path := os.path.join(folder, name)) not in self._hidden:
                self._hidden[path] = sum(len(files) for *_, files in os.walk(path)) if os.path.isdir(path) else 1

    def notes(self) -> tuple[str, ...]:
        """What was passed over, in words that can be written and printed whatever the files are called."""
        said, hidden, others = [], sum(self._hidden.values()), len(self._others)
        if hidden:
            names = sorted({os.path.basename(path) for path in self._hidden})
            told = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            said.append(f"passed over {hidden:,} hidden {'files' if hidden > 1 else 'file'}: {told}")
        if others:
            endings = Counter(suffix or "without an ending" for suffix in self._others.values()).most_common(3)
            told = ", ".join(f"{count:,} {suffix}" for suffix, count in endings)
            said.append(
                f"passed over {others:,} {'files that are' if others > 1 else 'file that is'} no image by the ending: {told}"
            )
        return tuple(map(printable, said))
