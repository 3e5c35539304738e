"""Views beside what they are views of, as one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nearfar.data.config import DataConfig

# Pixels between two pictures, and the least side that a small one is enlarged to.
GAP, LEAST_SIDE = 4, 64


@dataclass(frozen=True)
class ViewsConfig(DataConfig):
    """Draws images beside random views of them, so that one sees what is contrasted."""

    data: str = field()
    """The images: a data set by name, a folder, a table, tar shards, or a data set on the Hugging Face Hub."""
    recipe: str = "simclr"
    """How views are drawn (see: nearfar list views)."""
    out: str = "views.png"
    """Where to write the picture."""
    rows: int = 8
    """How many images."""
    views: int = 6
    """How many views of each."""
    part: Literal["train", "test"] = "train"
    """Where the images are taken from."""
    seed: int = 0
    """Of the choice of images and of the views."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "views"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: wanted 1 or more")


def view_grid(images: Any, view: Any, views: int = 6, seed: int = 0) -> Any:
    """A picture of images with their views: originals in the first column.

    Args:
        images: ``uint8 (n, c, h, w)``.
        view: What makes a view: of ``make_view`` with means of 0 and standard deviations of 1, so that views are in [0, 1].
        views: How many views of each image.
        seed: Of the views.

    Returns:
        A ``PIL.Image``; small images are enlarged, pixel by pixel.
    """
    import torch

    from nearfar.data.drawing import generator_of
    from nearfar.data.labelled import require

    pil = require("PIL.Image", "drawing views")
    generator = generator_of(seed)
    columns = [images.float() / 255] + [view(images, generator=generator).cpu() for _ in range(views)]
    scale = max(1, -(-LEAST_SIDE // min(columns[1].shape[2:])))
    cells = [_cells(column, columns[1].shape[2:], scale) for column in columns]
    n, height, width = len(images), *cells[0].shape[1:3]
    page = torch.full((n * (height + GAP) + GAP, len(cells) * (width + GAP) + 3 * GAP, 3), 255, dtype=torch.uint8)
    for i in range(n):
        for j, column in enumerate(cells):
            top, left = GAP + i * (height + GAP), GAP + j * (width + GAP) + (2 * GAP if j else 0)
            page[top : top + height, left : left + width] = column[i]
    return pil.fromarray(page.numpy())


def _cells(images: Any, size: Sequence[int], scale: int) -> Any:
    """Floats ``(n, c, h, w)`` as bytes ``(n, height, width, 3)``, enlarged."""
    import torch

    if images.shape[2:] != torch.Size(size):
        images = torch.nn.functional.interpolate(images, tuple(size), mode="bilinear", antialias=True)
    pixels = images.clamp(0, 1).mul(255).round().to(torch.uint8).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return pixels.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def write_picture(path: Path, picture: Any) -> None:
    """Writes a picture so that a reader never meets half of it."""
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix or '.png'}")
    try:
        picture.save(beside, format=None if path.suffix else "PNG")
        beside.replace(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be written ({error}): pass a name that ends in .png") from error
    finally:
        beside.unlink(missing_ok=True)


def run(config: ViewsConfig) -> int:
    """Writes the picture of a data set's views."""
    import torch

    from nearfar.data.corpus import Part
    from nearfar.data.drawing import generator_of
    from nearfar.data.loading import Loader
    from nearfar.data.open import open_corpus
    from nearfar.data.views import make_view

    corpus = open_corpus(config)
    column = next((column for column in corpus.columns if column.kind == "image"), None)
    if column is None:
        kinds = " and ".join(sorted({column.kind for column in corpus.columns}))
        raise ValueError(f"{corpus.name} holds {kinds}: only views of images can be drawn")
    part = corpus.test if config.part == "test" else corpus.train
    if isinstance(part, Part):
        chosen = torch.randperm(len(part), generator=generator_of(config.seed))[: config.rows]
        batch = part.fetch(chosen.tolist())
    elif part is not None:
        batch = next(Loader(part, config.rows, seed=config.seed).batches())
    else:
        raise ValueError(f"{corpus.name} has no test part")
    channels = corpus.channels or 3
    view = make_view("image", config.recipe, corpus.size, channels, mean=[0.0] * channels, std=[1.0] * channels)
    out = Path(config.out).expanduser()
    write_picture(out, view_grid(batch.columns[column.name], view, config.views, config.seed))
    print(f"{out}: {len(batch)} images of {corpus.name} with {config.views} views each ({view.describe()})")
    return 0
