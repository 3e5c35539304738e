"""Folders of small pictures, and what systems leave in them."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def photos(root: Path, classes: str = "ab", count: int = 9, seed: int = 0) -> Path:
    for k, name in enumerate(classes):
        for i in range(count):
            noise(root / name / f"{i}.png", seed + 100 * k + i)
    return root


def litter(root: Path, place: str = "a") -> int:
    """What systems leave in folders; how many files it is."""
    inside = root / place
    pictures = (
        root / ".ipynb_checkpoints" / "0-checkpoint.png", inside / ".ipynb_checkpoints" / "1.png", inside / "._0.png",
        root / "__MACOSX" / "a" / "0.png", inside / "@eaDir" / "0.png", inside / ".hidden.png", inside / "~$0.png",
    )  # fmt: skip
    for number, path in enumerate(pictures):
        noise(path, 1000 + number)
    for path in (root / "Thumbs.db", inside / "desktop.ini", root / ".DS_Store"):
        path.write_bytes(b"x")
    return 10


def names(corpus) -> set[str]:
    return {part.name(row) for part in (corpus.train, corpus.test) for row in range(len(part))}


def contents(part) -> set[bytes]:
    return {Path(part.name(row)).read_bytes() for row in range(len(part))}
