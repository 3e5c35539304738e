"""Random views of a batch on its device: the table ``VIEWS`` of recipes, and ``make_view``.

A view draws all its random numbers first, as one table with a row an item, and is then a plain function of the batch
and the table. So a rank that draws the table of the whole batch and keeps its own rows has the views that one
process would have, and the same seed gives the same views on every device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.data.colour import jitter, recolour
from nearfar.data.warps import TRIES, blurring, crop_boxes, resampling, warp
from nearfar.names import unknown
from nearfar.types import Kind

# Images of at most so many pixels a side are views of SimCLR's CIFAR-10 recipe: weaker colours, no blur.
SMALL = 32
# Columns of random numbers that one row of tokens takes; longer texts take another such block.
TOKENS = 512


class View(nn.Module):
    """A random view of every row of a batch: ``view(batch)``.

    ``generator=`` gives the random numbers; by default torch's own. ``rows=(start, total)`` says that the batch is a
    piece of a larger one, whose numbers are all drawn: the pieces then are the views of the whole.
    """

    def forward(
        self, batch: Any, *, generator: torch.Generator | None = None, rows: tuple[int, int] | None = None
    ) -> Any:
        """One view of each row."""
        raise NotImplementedError

    def describe(self) -> str:
        """What is done, in words."""
        raise NotImplementedError

    @staticmethod
    def draw(
        like: Tensor, columns: int, generator: torch.Generator | None, rows: tuple[int, int] | None
    ) -> Float[Tensor, "b columns"]:
        """Random numbers in [0, 1) for the rows of a batch, on its device; drawn on the generator's."""
        start, total = rows or (0, len(like))
        if not 0 <= start <= start + len(like) <= total:
            raise ValueError(f"rows={rows} for a batch of {len(like)}: wanted (start, total) that it fits into")
        device = generator.device if generator is not None else "cpu"
        table = torch.rand(total, columns, generator=generator, device=device)
        return table[start : start + len(like)].to(like.device, non_blocking=True)


class Plain(View):
    """No change but the standardising of images."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(
        self, batch: Any, *, generator: torch.Generator | None = None, rows: tuple[int, int] | None = None
    ) -> Any:
        """The batch; images as floats."""
        del generator, rows
        return batch if self.mean is None or self.std is None else (as_floats(batch) - self.mean) / self.std

    def describe(self) -> str:
        """What is done, in words."""
        return "as it is"


@dataclass(frozen=True)
class ImageRecipe:
    """How a view of an image is drawn."""

    scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest part of the area that is kept."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width by height of what is kept, before it is scaled to the size."""
    flip: float = 0.5
    """Probability of a mirror image."""
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    """Strength of brightness, contrast, saturation and hue."""
    jittered: float = 0.8
    """Probability that colours are changed."""
    grey: float = 0.2
    """Probability that colour is lost."""
    blur: float = 0.5
    """Probability of a blur, with a standard deviation of 0.1 to 2 pixels."""


class ImageView(View):
    """Crops, flips, recolours and blurs images ``(b, c, h, w)``, bytes or floats in [0, 1], each in its own way.

    Args:
        recipe: What is done.
        size: Height and width of the views, in pixels.
        mean: Of each channel, of images in [0, 1], to standardise the views with.
        std: The same for the standard deviation.
    """

    mean: Tensor
    std: Tensor

    # Columns of the table: the box, then flip, jittered, grey, blurred, sigma, and the four strengths.
    COLUMNS = 2 * TRIES + 2 + 9

    def __init__(self, recipe: ImageRecipe, size: tuple[int, int], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.recipe, self.size = recipe, size
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(
        self,
        batch: Tensor,
        *,
        generator: torch.Generator | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One view of each image."""
        images, recipe = as_floats(batch), self.recipe
        uniform = self.draw(images, self.COLUMNS, generator, rows)
        box, rest = uniform[:, : 2 * TRIES + 2], uniform[:, 2 * TRIES + 2 :]
        flip, jittered, grey, blurred = (
            rest[:, i] < p for i, p in enumerate((recipe.flip, recipe.jittered, recipe.grey, recipe.blur))
        )
        height, width = images.shape[2:]
        start, length = crop_boxes(box, recipe.scale, recipe.ratio, width / height)
        along = resampling(start[:, 0], length[:, 0], height, self.size[0])
        across = resampling(start[:, 1], length[:, 1], width, self.size[1], flip if recipe.flip else None)
        if recipe.blur:
            sigma = torch.where(blurred, 0.1 + 1.9 * rest[:, 4], 0.0)
            radius = max(1, max(self.size) // 20)  # SimCLR's kernel: a tenth of the image
            along, across = (blurring(sigma, len(m[0]), radius) @ m for m in (along, across))
        views = warp(images, along, across)
        if recipe.jittered or recipe.grey:
            views = recolour(views, *jitter(views.mean((2, 3)), rest[:, 5:], recipe.jitter, jittered, grey))
        return views.clamp_(0, 1).sub_(self.mean).div_(self.std)

    def describe(self) -> str:
        """What is done, in words."""
        r = self.recipe
        words = [f"a crop of {r.scale[0]:.0%} to {r.scale[1]:.0%} of the area"]
        words += [f"mirrored ({r.flip:.0%})"] if r.flip else []
        if r.jittered:
            names = ("brightness", "contrast", "saturation", "hue")[: 4 if len(self.mean.flatten()) > 1 else 2]
            words.append(f"{', '.join(f'{n} ±{s:g}' for n, s in zip(names, r.jitter) if s)} ({r.jittered:.0%})")
        words += [f"grey ({r.grey:.0%})"] if r.grey and len(self.mean.flatten()) > 1 else []
        words += [f"blurred ({r.blur:.0%})"] if r.blur else []
        return "; ".join(words)


class OwnView(View):
    """A module of the user's, such as a kornia container, which takes images in [0, 1] and draws from torch's generator."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, name: str, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(
        self, batch: Tensor, *, generator: torch.Generator | None = None, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """One view of each image. Pieces of a batch (``rows``) each draw their own numbers."""
        images = as_floats(batch)
        if generator is None:
            return (self.module(images) - self.mean) / self.std
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device)) + (rows or (0, 0))[0]
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(seed)
            return (self.module(images) - self.mean) / self.std

    def describe(self) -> str:
        """What is done, in words."""
        return self.name


class SeriesView(View):
    """A crop of a series ``(b, c, t)`` stretched to its length, scaled, with noise.

    Args:
        std: Standard deviation of each channel: what noise and scale are parts of.
        least: Shortest part that is kept.
        noise: Noise, in standard deviations.
        scale: Factors are uniform in ``[1 − scale, 1 + scale]``.
    """

    std: Tensor

    def __init__(self, std: Tensor, least: float = 0.5, noise: float = 0.05, scale: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("std", std.view(-1, 1), persistent=False)
        self.least, self.noise, self.scale = least, noise, scale

    def forward(
        self,
        batch: Float[Tensor, "b c t"],
        *,
        generator: torch.Generator | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b c t"]:
        """One view of each series."""
        channels, steps = batch.shape[1:]
        uniform = self.draw(batch, 2 + channels + channels * steps, generator, rows).to(batch.dtype)
        length = self.least + (1 - self.least) * uniform[:, 0]
        part = resampling(uniform[:, 1] * (1 - length), length, steps, steps)
        factor = 1 + self.scale * (2 * uniform[:, 2 : 2 + channels, None] - 1)
        return torch.bmm(batch, part.mT) * factor + self.noise * self.std * normal(uniform[:, 2 + channels :]).view_as(
            batch
        )

    def describe(self) -> str:
        """What is done, in words."""
        return f"a stretched crop of {self.least:.0%} or more; scale ±{self.scale:g}; noise of {self.noise:g} standard deviations"


class VectorView(View):
    """Some features of a vector ``(b, d)`` hidden, the others with noise.

    Args:
        mean: Of each feature: what a hidden one becomes.
        std: Standard deviation of each feature.
        hidden: Probability that a feature is hidden.
        noise: Noise, in standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, hidden: float = 0.2, noise: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("mean", mean.flatten(), persistent=False)
        self.register_buffer("std", std.flatten(), persistent=False)
        self.hidden, self.noise = hidden, noise

    def forward(
        self,
        batch: Float[Tensor, "b d"],
        *,
        generator: torch.Generator | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b d"]:
        """One view of each vector."""
        hide, noise = self.draw(batch, 2 * batch.shape[1], generator, rows).to(batch.dtype).chunk(2, 1)
        return torch.where(
            hide < self.hidden, self.mean.expand_as(batch), batch + self.noise * self.std * normal(noise)
        )

    def describe(self) -> str:
        """What is done, in words."""
        return f"features hidden ({self.hidden:.0%}); noise of {self.noise:g} standard deviations"


class TokenView(View):
    """Some tokens of a text hidden from attention: ``{"ids", "mask"}`` or a tokenizer's ``{"input_ids", "attention_mask"}``.

    The first token, which may stand for the whole, and at least it, is always seen.
    """

    def __init__(self, hidden: float = 0.1) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(
        self,
        batch: dict[str, Tensor],
        *,
        generator: torch.Generator | None = None,
        rows: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """One view of each text; the ids are left as they are."""
        name = next(name for name in ("mask", "attention_mask") if name in batch)
        mask = batch[name]
        # As many numbers whatever the longest text of this rank is: the others must draw the same.
        blocks = [self.draw(mask, TOKENS, generator, rows) for _ in range(0, mask.shape[1], TOKENS)]
        seen = torch.cat(blocks, 1)[:, : mask.shape[1]] >= self.hidden
        seen[:, 0] = True
        return {**batch, name: mask * seen.to(mask.dtype)}

    def describe(self) -> str:
        """What is done, in words."""
        return f"tokens hidden ({self.hidden:.0%})"


def as_floats(images: Tensor) -> Float[Tensor, "b c h w"]:
    """Bytes as numbers in [0, 1]; floats as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def normal(uniform: Tensor) -> Tensor:
    """Normally distributed numbers of uniform ones."""
    return torch.erfinv((2 * uniform - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5


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
        return torch.full((channels,), usual)
    return torch.as_tensor(given, dtype=torch.float32).detach().cpu().flatten()
