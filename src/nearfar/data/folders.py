"""What lies in a folder: files that may be rows, and the folders to train on and to test on. What is hidden is no row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nearfar.data.bad import printable
from nearfar.data.pixels import SUFFIXES

T = TypeVar("T")
# Parts to test on, first to last, and other names of parts. Case does not matter.
TEST_NAMES = ("test", "eval", "evaluation", "val", "valid", "validation", "dev")
OTHERWISE = {"training": "train", "testing": "test"}
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


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in SUFFIXES


def has_images(folder: Path) -> bool:
    """Whether an image lies in a folder, or below it."""
    for _, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not is_hidden(name)]
        if any(map(is_image, names)):
            return True
    return False


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without what is hidden."""
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def part_name(word: object) -> str:
    """Which part of a data set a word says that something is, in one spelling; empty: it says none.

    Example:
        >>> [part_name(word) for word in ("Train", "training", "TEST", "val", "cats")]
        ['train', 'train', 'test', 'val', '']
    """
    name = str(word or "").strip().lower()
    name = OTHERWISE.get(name, name)
    return name if name == "train" or name in TEST_NAMES else ""


def held_part(parts: Collection[str]) -> str | None:
    """The part to test on, of those that there are."""
    return next((name for name in TEST_NAMES if name in parts), None)


def by_part(paths: list[T], parts: list[str]) -> tuple[list[T], list[str]]:
    """The files of the training part and then those of the test part, with their parts, if there are both.

    Without a test part those of the training part, and without one all; then no parts.
    """
    test = held_part(parts)
    if "train" not in parts:
        return paths, []
    kept = [(path, part) for name in ("train", test) for path, part in zip(paths, parts) if part == name]
    return [path for path, _ in kept], [part for _, part in kept] if test else []


def parts_of(paths: Sequence[Path | None], folder: Path) -> list[str] | None:
    """The part that each file is of by the folder that it lies in; None, unless there is one to train on and one to test on."""
    parts = [
        part_name(path.relative_to(folder).parts[0]) if path is not None and path.is_relative_to(folder) else ""
        for path in paths
    ]
    return parts if "train" in parts and held_part(parts) else None


def other_parts(count: int) -> str:
    """What is said of rows that are neither trained nor tested on."""
    rows = f"{count:,} rows are of other parts than" if count > 1 else "1 row is of another part than"
    return f"{rows} train and test: {'they are' if count > 1 else 'it is'} not read"


class Walk:
    """Lists folders, and counts what it passes over.

    Args:
        read: Files that are read otherwise, such as tables beside images.
    """

    def __init__(self, read: Sequence[Path] = ()) -> None:
        self._read = frozenset(map(str, read))
        self._hidden: dict[str, int] = {}  # files behind each path, which may be met twice
        self._others: dict[str, str] = {}  # the ending of each file
        self._empty: dict[Path, None] = {}
        self._loose = 0  # images in no class folder

    def folders(self, folder: Path) -> list[Path]:
        """The folders in a folder, by name."""
        self._look(folder, os.listdir(folder))
        return [path for path in visible(folder) if path.is_dir()]

    def image_folders(self, folder: Path) -> list[Path]:
        """Those of them in which an image lies, or below which."""
        found: list[Path] = []
        for path in self.folders(folder):
            if has_images(path):
                found.append(path)
            else:
                self._empty[path] = None
                self.files(path)  # which counts what lies there
        return found

    def files(self, folder: Path, *, below: bool = True) -> list[Path]:
        """The wanted files in a folder, and in the folders below it, by name."""
        found: list[Path] = []
        for place, inner, names in os.walk(folder):
            self._look(Path(place), inner + names)
            inner[:] = [name for name in inner if below and not is_hidden(name)]
            for name in names:
                if is_hidden(name):
                    continue
                if (suffix := os.path.splitext(name)[1].lower()) in SUFFIXES:
                    found.append(Path(place, name))
                elif (path := os.path.join(place, name)) not in self._read:
                    self._others[path] = suffix
        return sorted(found)

    def pass_over(self, images: Sequence[Path]) -> None:
        """Counts images that lie in no class folder."""
        self._loose += len(images)

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
        if self._loose:
            said.append(f"passed over {self._loose:,} {'images' if self._loose > 1 else 'image'} in no class folder")
        if self._empty:
            count, names = len(self._empty), ", ".join(path.name for path in [*self._empty][:3])
            told = f"{names} …" if count > 3 else names
            said.append(f"passed over {count:,} {'folders' if count > 1 else 'folder'} without images: {told}")
        return tuple(map(printable, said))


@dataclass(frozen=True)
class Layout:
    """Where the images of a folder lie: in class folders or without, with folders of parts above them or not."""

    train: Path
    """The folder of the images to train on, or of all."""
    test: Path | None = None
    """The folder of the images to test on."""
    notes: tuple[str, ...] = ()
    """What lies beside them and is not read, in words."""


def find_layout(folder: Path, walk: Walk) -> Layout:
    """The training folder and the test folder, if there are such.

    They are called so, in any case, and hold class folders; or they hold the images themselves, and all images of the folder
    lie in such parts. So a class may be called "train": it holds no folders, and other classes are beside it.

    Raises:
        ValueError: If there are two folders of one part, or parts to test on alone.
    """
    inside = walk.image_folders(folder)
    named = [(part_name(path.name), path) for path in inside]
    parts = {part: path for part, path in named if part}
    others = [path.name for part, path in named if not part]
    test, train = held_part(parts), parts.get("train")
    if not parts or (others and not (train is not None and any(map(has_images, walk.folders(train))))):
        words = " and ".join(path.name for path in parts.values())
        note = f"{words} {'are' if len(parts) > 1 else 'is'} read as classes, beside {', '.join(others[:3])}"
        return Layout(folder, notes=(note,) if "train" in parts and test else ())
    if len(parts) == 1 and train is None and test is not None:
        return Layout(parts[test], notes=_unread(folder, [parts[test]], walk))
    if train is None:
        names = ", ".join(path.name for path in inside)
        raise ValueError(
            f"{folder} holds {names}, and no folder to train on: add train, or pass one of them as the data"
        )
    twice = [path.name for part, path in named if part and path != parts[part]]
    if twice:
        both = " and ".join(path.name for part, path in named if part == part_name(twice[0]))
        raise ValueError(f"{folder} holds {both}, which are both called as one part of the data: join or rename them")
    tested = None if test is None else parts[test]
    left = [path.name for path in parts.values() if path not in (train, tested)]
    note = f"passed over {', '.join(left)}: beside {train.name}, {test and parts[test].name} is read"
    return Layout(train, tested, (*((note,) if left else ()), *_unread(folder, [*parts.values()], walk)))


def _unread(folder: Path, parts: Sequence[Path], walk: Walk) -> tuple[str, ...]:
    """How many images of a folder lie in none of its parts, in words."""
    left = walk.files(folder, below=False)
    left += [path for place in walk.folders(folder) if place not in parts for path in walk.files(place)]
    if not left:
        return ()
    count = f"{len(left):,} images that lie" if len(left) > 1 else "1 image that lies"
    words = " and ".join(part.name for part in parts)
    return (printable(f"passed over {count} beside {words}, such as {left[0].relative_to(folder)}"),)


def untrained_note(classes: Collection[str]) -> tuple[str, ...]:
    """Which classes have images to test on and none to train on, in words."""
    if not classes:
        return ()
    names = ", ".join(map(repr, sorted(classes)[:3])) + " …" * (len(classes) > 3)
    has = "class has" if len(classes) == 1 else "classes have"
    return (printable(f"{len(classes):,} {has} images to test on and none to train on: {names}"),)
