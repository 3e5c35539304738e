"""Views of images: crop, mirror, colours and blur, each image in its own way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.data.colour import jitter, recolour
from nearfar.data.view import View
from nearfar.data.warps import TRIES, blurring, crop_boxes, resampling, warp


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
        images, recipe = batch.float(), self.recipe
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
        views = warp(images, along if batch.is_floating_point() else along / 255, across)
        if recipe.jittered or recipe.grey:
            views = recolour(views, *jitter(views.mean((2, 3)), rest[:, 5:], recipe.jitter, jittered, grey))
        return torch.addcmul(-self.mean / self.std, views.clamp_(0, 1), 1 / self.std)

    def describe(self) -> str:
        """What is done, in words."""
        r = self.recipe
        words = [f"a crop of {r.scale[0]:.0%} to {r.scale[1]:.0%} of the area"]
        words += [f"mirrored ({r.flip:.0%})"] if r.flip else []
        if r.jittered:
            names = ("brightness", "contrast", "saturation", "hue")[: 4 if self.mean.numel() == 3 else 2]
            words.append(f"{', '.join(f'{n} ±{s:g}' for n, s in zip(names, r.jitter) if s)} ({r.jittered:.0%})")
        words += [f"grey ({r.grey:.0%})"] if r.grey and self.mean.numel() == 3 else []
        words += [f"blurred ({r.blur:.0%})"] if r.blur else []
        return "; ".join(words)
