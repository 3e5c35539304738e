"""Where labelled data come from: known sets by name, and the user's own files by path."""

from __future__ import annotations

import difflib
import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from nearfar.data.bad import check_name
from nearfar.data.corpus import Column, TensorPart
from nearfar.data.images import read_image_folder
from nearfar.data.labelled import TEST_FRACTION, LabelledData, require, split_data
from nearfar.data.tables import read_table
from nearfar.data.words import (
    EMOJI_PLACES,
    WORDNET_CLASSES,
    WORDNET_FILES,
    WORDNET_PLACES,
    emoji_rows,
    find,
    wordnet_rows,
)  # fmt: skip
from nearfar.names import refuse_unused


@dataclass(frozen=True)
class Found:
    """A data set as it comes, in memory."""

    name: str
    rows: TensorPart
    """All of them, with labels and ids."""
    columns: tuple[Column, ...]
    class_names: tuple[str, ...] = ()
    test: Bool[Tensor, "n"] | None = None
    """Which rows its makers hold out; None if they leave that to us."""


@dataclass(frozen=True)
class Source:
    """A data set that is known by name: a row of ``SOURCES``."""

    title: str
    """What it holds, in words."""
    licence: str
    """Under which terms."""
    get: str
    """How to have it on this machine."""
    rows: Callable[[Path | None], Found]
    """Reads it; takes the folder to look in first, or None."""
    load: Callable[[Path | None], LabelledData] | None = None
    """Reads it as numbers with classes; None where it holds texts."""
    files: bool = True
    """Whether it is read from files, which may be elsewhere (``root``)."""


def load_data(
    name_or_path: str | Path,
    root: str | Path | None = None,
    label: str | None = None,
    skip_bad: bool = False,
    *,
    size: int | tuple[int, int] | None = None,
    pixel_range: tuple[float, float] | None = None,
    standardize: bool = True,
    test_fraction: float = TEST_FRACTION,
    seed: int = 0,
) -> LabelledData:
    """Loads a data set by its name in ``SOURCES``, or a folder of images or a table by its path.

    Args:
        name_or_path: A name in ``SOURCES``; a folder, ``folder/class/*.png`` or with ``train`` and ``test`` above the
            classes; or a ``.csv``, ``.tsv`` or ``.parquet`` file. A name wins over a path spelt the same.
        root: Where the files of a named set are, if not in the usual places.
        label: The label's column of a table; by default the one called label, target, class or y.
        skip_bad: Leave out images and rows that cannot be read, and list them in ``bad``.
        size: Height and width of a folder's images; by default the commonest, with a longer side of 64 at most.
        pixel_range: The numbers that are black and white, in images of more than 8 bits; by default what the files say, else
            found by all images together.
        standardize: Bring a table's features to mean 0 and standard deviation 1 over the training rows.
        test_fraction: The part of each class to test on, for a folder or a table without a split of its own.
        seed: Of that split.

    Returns:
        Training and test rows as tensors, with the names of their classes.

    Raises:
        ValueError: If the name is unknown or the data cannot be read; the message names the path and the line.
        FileNotFoundError: If the files of a named set are not there; the message says how to get them.
        ImportError: If a package that reads them is missing; the message says how to install it.

    Example:
        >>> data = load_data("digits")
        >>> len(data.train_labels), len(data.test_labels), data.class_names[3]
        (1198, 599, '3')
    """
    name = str(name_or_path)
    if name in SOURCES:
        load = SOURCES[name].load
        if load is None:
            raise ValueError(
                f"{name} holds texts, which are trained on as pairs (nf.train): a comparison wants numbers or images with classes"
            )
        own = {
            "size": size,
            "pixel_range": pixel_range,
            "test_fraction": None if test_fraction == TEST_FRACTION else test_fraction,
            "seed": seed or None,
        }
        refuse_unused({"label": label}, f"the classes of {name} are known", "leave it out, or pass a table as data=")
        refuse_unused(own, f"{name} comes with its size and its split")
        return load(find_root(name, root))
    check_name(Path(name))
    path, split = Path(name).expanduser(), {"test_fraction": test_fraction, "seed": seed}
    if path.exists():
        refuse_unused({"root": root}, f"{name} is a path, and not a data set by name")
    if path.is_dir():
        return read_image_folder(path, size=size, skip_bad=skip_bad, pixel_range=pixel_range, label=label, **split)
    if not path.exists():
        near = difflib.get_close_matches(name, SOURCES, 1)
        raise ValueError(
            f"{name!r} is neither a data set nor a path" + (f"; did you mean {near[0]!r}?" if near else ";")
            + f" Data sets: {', '.join(SOURCES)}. Otherwise pass a folder of images by class, a CSV or a Parquet file"
        )  # fmt: skip
    if path.suffix.lower() not in (".csv", ".tsv", ".parquet", ".pq"):
        raise ValueError(f"{path} ends in {path.suffix!r}: wanted a folder of images by class, .csv, .tsv or .parquet")
    refuse_unused({"size": size, "pixel_range": pixel_range}, f"{name} is a table, without images")
    return read_table(path, label=label, skip_bad=skip_bad, standardize=standardize, **split)


def find_root(name: str, root: str | Path | None) -> Path | None:
    """The folder to look for the files of a named set in; None: the usual places.

    Raises:
        ValueError: If a folder is given for a set that has no files.
    """
    if not SOURCES[name].files:
        refuse_unused({"root": root}, f"{name} is {SOURCES[name].get.partition(':')[0]}")
    return None if root is None else Path(root).expanduser()


def _digits_read(root: Path | None) -> tuple[Tensor, Tensor]:
    """Images ``(n, 1, 8, 8)`` from 0 to 16, and classes."""
    del root  # it comes inside scikit-learn
    digits = require("sklearn.datasets", "the data set digits").load_digits()
    return torch.from_numpy(digits.images).float().unsqueeze(1), torch.from_numpy(digits.target).long()


DIGIT_CLASSES = tuple(map(str, range(10)))


def _digits(root: Path | None) -> LabelledData:
    images, labels = _digits_read(root)
    return split_data(images.div(16), labels, DIGIT_CLASSES, "digits")


def _digits_rows(root: Path | None) -> Found:
    images, labels = _digits_read(root)
    pixels = images.mul(255 / 16).round().to(torch.uint8)
    return Found("digits", TensorPart({"image": pixels}, labels), (Column("image", "image"),), DIGIT_CLASSES)


FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# Debian's package, then where people unpack the files, then torchvision's own layout.
FASHION_PLACES = (
    "/usr/share/datasets/fashion-mnist", "~/.cache/nearfar/fashion-mnist", "~/.cache/fashion-mnist",
    "data/fashion-mnist", "data/FashionMNIST/raw", "~/data/fashion-mnist", "~/data/FashionMNIST/raw",
)  # fmt: skip


def _fashion_mnist(root: Path | None) -> LabelledData:
    (train, train_labels), (test, test_labels) = (
        (images.float().div_(255), labels) for images, labels in _fashion_read(root)
    )
    return LabelledData(train, train_labels, test, test_labels, FASHION_CLASSES, "fashion-mnist")


def _fashion_rows(root: Path | None) -> Found:
    (train, train_labels), (test, test_labels) = _fashion_read(root)
    rows = TensorPart({"image": torch.cat([train, test])}, torch.cat([train_labels, test_labels]))
    held = torch.arange(len(rows)) >= len(train)
    return Found("fashion-mnist", rows, (Column("image", "image"),), FASHION_CLASSES, held)


def _fashion_read(root: Path | None) -> list[tuple[UInt8[Tensor, "n 1 h w"], Int64[Tensor, "n"]]]:
    """Images and classes of the training rows, and of the test rows."""
    below = ("", "raw", "FashionMNIST/raw", "fashion-mnist")
    places = [root / part for part in below] if root else [Path(place).expanduser() for place in FASHION_PLACES]
    for place in places:
        found = [next((p for p in (place / name, place / f"{name}.gz") if p.exists()), None) for name in FASHION_FILES]
        paths = [path for path in found if path]
        if len(paths) == len(FASHION_FILES):
            break
    else:
        raise FileNotFoundError(
            f"fashion-mnist is not in {', '.join(map(str, places))}. To get it: {SOURCES['fashion-mnist'].get}"
        )
    parts = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_idx(images_path), read_idx(labels_path)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{images_path} holds {tuple(images.shape)} and {labels_path} {tuple(labels.shape)}: "
                "wanted (n, height, width) and (n,); get the four files anew"
            )
        parts.append((images.unsqueeze(1), labels.long()))
    return parts


def read_idx(path: Path) -> UInt8[Tensor, "..."]:
    """Reads an IDX file of bytes, gzipped or not: two zero bytes, a type (8: bytes), the rank, the sizes, the data.

    Raises:
        ValueError: If it is not such a file, or is cut short.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): get it anew") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} starts with {raw[:4].hex() or 'nothing'}: wanted 000008, an IDX file of bytes")
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    data = bytearray(raw[4 + 4 * rank :])  # a copy that may be written to, which from_buffer wants
    if len(data) != math.prod(shape):
        raise ValueError(f"{path} holds {len(data)} bytes where its header says {shape}: it was cut short, get it anew")
    return torch.frombuffer(data, dtype=torch.uint8).reshape(shape)


def _wordnet(root: Path | None) -> Found:
    places = (str(root), str(root / "dict")) if root else WORDNET_PLACES
    folder = find("wordnet", places, WORDNET_FILES, SOURCES["wordnet"].get)
    return Found("wordnet", *wordnet_rows(folder), WORDNET_CLASSES)


def _emoji(root: Path | None) -> Found:
    places = (str(root), str(root / "NotoColorEmoji.ttf")) if root else EMOJI_PLACES
    return Found("emoji", *emoji_rows(find("emoji", places, (), SOURCES["emoji"].get)))


SOURCES: dict[str, Source] = {
    "digits": Source(
        title="1,797 handwritten digits, 8×8 grey pixels, 10 classes",
        licence="CC BY 4.0 (UCI, Alpaydin & Kaynak 1998)",
        get='inside scikit-learn: pip install "nearfar[cli]"',
        rows=_digits_rows,
        load=_digits,
        files=False,
    ),
    "fashion-mnist": Source(
        title="70,000 pictures of clothes, 28×28 grey pixels, 10 classes",
        licence="MIT (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747)",
        get="apt-get install dataset-fashion-mnist (Debian, Ubuntu), or put "
        + ", ".join(f"{name}.gz" for name in FASHION_FILES) + " in a folder and pass it as root= (--root)",
        rows=_fashion_rows,
        load=_fashion_mnist,
    ),
    "wordnet": Source(
        title="117,659 glosses of English words with the word, in 45 classes: text pairs",
        licence="WordNet 3.0 licence (Princeton University 2006)",
        get="apt-get install wordnet-base (Debian, Ubuntu), or pass the folder of data.noun as root= (--root)",
        rows=_wordnet,
    ),
    "emoji": Source(
        title="some 1,400 emoji, 64×64 colour pixels, with their names: image–text pairs",
        licence="SIL Open Font Licence 1.1 (Noto Color Emoji, Google)",
        get="apt-get install fonts-noto-color-emoji (Debian, Ubuntu), or pass NotoColorEmoji.ttf as root= (--root)",
        rows=_emoji,
    ),
}  # fmt: skip
