"""``nearfar views``: a picture of a data set's views. Loads no torch before it is run."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from nearfar.data.config import DataConfig
from nearfar.marks import arg


@dataclass(frozen=True)
class ViewsConfig(DataConfig):
    """Draws images beside random views of them, so that one sees what is contrasted."""

    data: Annotated[str, arg(metavar="DATA")] = field()
    """The images: a data set by name, a folder, a table, tar shards, or a data set on the Hugging Face Hub."""
    recipe: str = "simclr"
    """How views are drawn (see: nearfar list views)."""
    out: Annotated[str, arg(aliases=("-o",))] = "views.png"
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


def run(config: ViewsConfig) -> int:
    """Writes the picture of a data set's views."""
    import torch
    from torch import Tensor

    from nearfar.data.corpus import Part
    from nearfar.data.drawing import generator_of
    from nearfar.data.gallery import view_grid, write_picture
    from nearfar.data.loading import Loader
    from nearfar.data.open import open_corpus
    from nearfar.data.views import make_view

    corpus = open_corpus(config)
    for line in corpus.notes:
        print(f"note: {line}", file=sys.stderr)
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
    if not len(batch):
        raise ValueError(f"none of {len(batch.bad)} images could be read; the first: {batch.bad[0]}")
    channels = corpus.channels or 3
    view = make_view("image", config.recipe, corpus.size, channels, mean=[0.0] * channels, std=[1.0] * channels)
    images = batch.columns[column.name]
    assert isinstance(images, Tensor)
    out = Path(config.out).expanduser()
    write_picture(out, view_grid(images, view, config.views, config.seed))
    print(f"{out}: {len(batch)} images of {corpus.name} with {config.views} views each ({view.describe()})")
    return 0
