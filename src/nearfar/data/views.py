"""Random views of a batch on its device: the table ``VIEWS`` of recipes, and ``make_view``.

A view draws all its random numbers first, as one table with a row an item, and is then a plain function of the batch
and the table. So a rank that draws the table of the whole batch and keeps its own rows has the views that one
process would have, and the same seed gives the same views on every device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nearfar.data.image_views import ImageRecipe, ImageView
from nearfar.data.other_views import SeriesView, TokenView, VectorView
from nearfar.data.view import OwnView, Plain, View
from nearfar.names import unknown
from nearfar.types import Kind

__all__ = ["VIEWS", "Recipe", "View", "make_view"]

# Images of at most so many pixels a side are views of SimCLR's CIFAR-10 recipe: weaker colours, no blur.
SMALL = 32


@dataclass(frozen=True)
class Recipe:
    """A row of ``VIEWS``."""

    title: str
    """What it does, in words."""
    kinds: tuple[Kind, ...]
    """Inputs it can be used on."""
    build: Callable[[tuple[int, int], int, Tensor, Tensor], View]
    """Takes size, channels, mean and standard deviation."""


def _simclr(size: tuple[int, int], channels: int, mean: Tensor, std: Tensor) -> View:
    recipe = ImageRecipe()
    if max(size) <= SMALL or channels == 1:  # the paper's CIFAR-10 settings; grey has neither saturation nor hue
        recipe = replace(recipe, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))
    if max(size) <= SMALL:
        recipe = replace(recipe, blur=0.0)
    return ImageView(recipe, size, mean, std)


def _light(size: tuple[int, int], channels: int, mean: Tensor, std: Tensor) -> View:
    del channels
    recipe = ImageRecipe(scale=(0.6, 1.0), flip=0.0, jitter=(0.2, 0.2, 0.2, 0.0), grey=0.0, blur=0.0)
    return ImageView(recipe, size, mean, std)


VIEWS: dict[str, Recipe] = {
    "simclr": Recipe(
        "crop, mirror, colours, grey and blur, scaled to the size: SimCLR's recipe (arXiv:2002.05709)", ("image",), _simclr
    ),
    "light": Recipe("a large crop and slightly other colours: for digits, letters and faces", ("image",), _light),
    "crop": Recipe(
        "a stretched crop, another scale, noise", ("series",), lambda size, channels, mean, std: SeriesView(std)
    ),
    "mask": Recipe(
        "features hidden, and noise", ("vector",), lambda size, channels, mean, std: VectorView(mean, std)
    ),
    "tokens": Recipe("a tenth of the tokens hidden", ("text",), lambda size, channels, mean, std: TokenView()),
    "dropout": Recipe(
        "as it is: the encoder's own dropout makes the difference (SimCSE, arXiv:2104.08821)", ("text",),
        lambda size, channels, mean, std: Plain(),
    ),
    "none": Recipe("as it is", ("image", "text", "vector", "series"), lambda size, channels, mean, std: Plain()),
}  # fmt: skip


def make_view(
    kind: Kind,
    recipe: str,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    *,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
) -> View:
    """A module that draws a random view of every row of a batch on its device.

    Args:
        kind: What the rows are.
        recipe: A name in ``VIEWS``; or ``module:function`` that is called with size and channels and gives a module of
            one's own, such as a kornia container.
        size: Height and width of the views of images.
        channels: Of images and series; width of vectors.
        mean: Of each channel or feature, of images in [0, 1]: the encoder's, so that views and images as they are reach
            it on one scale. By default 0.5 for images, 0 for others.
        std: The same for the standard deviation; by default 0.25 for images, 1 for others.

    Raises:
        ValueError: If there is no such recipe, or it is for another kind of input.

    Example:
        >>> view = make_view("image", "simclr", (28, 28), 1)
        >>> images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
        >>> views = view(images, generator=torch.Generator().manual_seed(0))
        >>> views.shape, views.dtype
        (torch.Size([4, 1, 28, 28]), torch.float32)
        >>> view.describe()
        'a crop of 20% to 100% of the area; mirrored (50%); brightness ±0.4, contrast ±0.4 (80%)'
    """
    own, of_module, function = recipe.partition(":")
    if not of_module and recipe not in VIEWS:
        raise ValueError(unknown("view", recipe, VIEWS))
    if not of_module and kind not in VIEWS[recipe].kinds:
        fitting = [name for name, row in VIEWS.items() if kind in row.kinds]
        raise ValueError(
            f"view {recipe!r} is for {' and '.join(VIEWS[recipe].kinds)} inputs, these are {kind}: pass {', '.join(fitting)}"
        )
    if kind == "image" and size is None:
        raise ValueError("views of images want size=(height, width)")
    middle, spread = (0.5, 0.25) if kind == "image" else (0.0, 1.0)
    mean = _statistic(mean, middle, channels or 1)
    std = _statistic(std, spread, channels or 1)
    if kind == "image":
        mean, std = mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)
    if of_module:
        return OwnView(getattr(importlib.import_module(own), function)(size, channels), recipe, mean, std)
    if kind == "image" and recipe == "none":
        return Plain(mean, std)
    return VIEWS[recipe].build(size or (1, 1), channels or 1, mean, std)


def _statistic(given: Tensor | Sequence[float] | None, usual: float, channels: int) -> Tensor:
    if given is None:
        return torch.full((channels,), usual, dtype=torch.float32)
    return torch.as_tensor(given, dtype=torch.float32).detach().cpu().flatten()
