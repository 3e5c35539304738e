"""Crops, flips and blurs of a batch of images as two small matrices an image, one for its rows and one for its columns.

Resampling a box, mirroring it and blurring it are linear and separable, so that one product on each side does them all,
on any device and for any batch, each image in its own way.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

# Draws of a box until it lies inside the image, as torchvision has it; then it is cut to the image.
TRIES = 10


def crop_boxes(
    uniform: Float[Tensor, "b 22"], scale: tuple[float, float], ratio: tuple[float, float], aspect: float = 1.0
) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b 2"]]:
    """Random boxes: an area uniform in ``scale``, a ratio of sides log-uniform in ``ratio``, anywhere inside the image.

    Args:
        uniform: Random numbers in [0, 1): ten areas, ten ratios, the place along the height and along the width.
        scale: Least and greatest part of the image's area.
        ratio: Least and greatest width by height, in pixels.
        aspect: Width by height of the image.

    Returns:
        Where the boxes begin, and how long they are, along height and width, as parts of the image.

    Reference: "Inception" crops (Szegedy et al. 2015, arXiv:1409.4842, section 6), drawn as torchvision's
    ``RandomResizedCrop`` does, at places between pixels, too.

    Example:
        >>> start, length = crop_boxes(torch.full((1, 22), 0.5), scale=(0.25, 0.25), ratio=(1.0, 1.0))
        >>> start.tolist(), length.tolist()
        ([[0.25, 0.25]], [[0.5, 0.5]])
    """
    area = scale[0] + (scale[1] - scale[0]) * uniform[:, :TRIES]
    low, high = math.log(ratio[0] / aspect), math.log(ratio[1] / aspect)
    root = (0.5 * (low + (high - low) * uniform[:, TRIES : 2 * TRIES])).exp()
    width, height = area.sqrt() * root, area.sqrt() / root
    inside = (width <= 1) & (height <= 1)
    first = torch.where(inside.any(1), inside.float().argmax(1), TRIES - 1).unsqueeze(1)
    length = torch.cat([height.gather(1, first), width.gather(1, first)], 1).clamp(max=1)
    return uniform[:, 2 * TRIES :] * (1 - length), length


def resampling(
    start: Float[Tensor, "b"], length: Float[Tensor, "b"], given: int, wanted: int, flip: Tensor | None = None
) -> Float[Tensor, "b wanted given"]:
    """Matrices that read ``wanted`` samples along a part of an axis of ``given`` samples, bilinearly.

    Where the part holds more samples than are wanted, each is a weighted mean of those it covers (Pillow's and torchvision's
    antialiasing): nothing is left out.

    Args:
        start: Where the part begins, as a part of the axis.
        length: How long it is.
        given: Samples along the axis.
        wanted: Samples to make.
        flip: Which parts are read backwards ``(b,)``.

    Example:
        >>> resampling(torch.tensor([0.0]), torch.tensor([1.0]), 2, 2).tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    places = torch.arange(wanted, device=start.device, dtype=start.dtype).add(0.5).div(wanted)
    places = places.expand(len(start), -1)
    if flip is not None:
        places = torch.where(flip.unsqueeze(1), 1 - places, places)
    centres = (start.unsqueeze(1) + length.unsqueeze(1) * places) * given - 0.5
    reach = (length * given / wanted).clamp(min=1).view(-1, 1, 1)
    samples = torch.arange(given, device=start.device, dtype=start.dtype)
    weights = (1 - (samples - centres.unsqueeze(2)).abs() / reach).clamp(min=0)
    return weights / weights.sum(2, keepdim=True)


def blurring(sigma: Float[Tensor, "b"], size: int, radius: int) -> Float[Tensor, "b size size"]:
    """Matrices that blur along an axis by a Gaussian of ``sigma`` samples, cut at ``radius``; 0 does not blur.

    At the edges the weights that are left are scaled up to sum to one.
    """
    places = torch.arange(size, device=sigma.device)
    apart = (places.unsqueeze(1) - places).abs()
    steps = places[: radius + 1].to(sigma.dtype)
    weights = (-0.5 * (steps / sigma.clamp(min=1e-3).unsqueeze(1)).square()).exp()  # of so many samples away
    weights = torch.nn.functional.pad(weights, (0, 1))  # and of all farther ones
    matrices = weights[:, apart.clamp(max=weights.shape[1] - 1)]
    return matrices / matrices.sum(2, keepdim=True)


def warp(
    images: Float[Tensor, "b c h w"], rows: Float[Tensor, "b y h"], columns: Float[Tensor, "b x w"]
) -> Float[Tensor, "b c y x"]:
    """Applies an image's two matrices to each of its channels."""
    b, c, h, w = images.shape
    if c == 1:
        return torch.bmm(torch.bmm(rows, images.squeeze(1)), columns.mT).unsqueeze(1)
    # Channels side by side, so that each image is one product and not c.
    across = torch.bmm(images.reshape(b, c * h, w), columns.mT).view(b, c, h, -1)
    return torch.matmul(rows.unsqueeze(1), across)
