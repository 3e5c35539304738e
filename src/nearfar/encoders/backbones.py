"""Networks by name, chosen by the kind and the shape of the data: one literal table, ``ENCODERS``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from nearfar.encoders.resnet import resnet_small
from nearfar.encoders.series import series_cnn
from nearfar.encoders.transformer import text_small
from nearfar.types import Kind


def small_cnn(in_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """3×3 convolutions of stride 2 with ReLU until 4×4 pixels are left, two at least, and a linear layer.

    Widths 32, 64 and 128 from then on. 8×8 digits take two, 28×28 clothes three; a batch of 64 digits trains in a
    few milliseconds on one CPU thread.

    Args:
        in_shape: ``(channels, height, width)``.
        num_classes: Width of the output.

    Raises:
        ValueError: If inputs are no images.

    Example:
        >>> import torch
        >>> small_cnn((1, 8, 8), 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if len(in_shape) != 3:
        raise ValueError(f"inputs are {in_shape}: wanted (channels, height, width)")
    width, height, across = in_shape
    layers: list[nn.Module] = []
    while len(layers) < 4 or max(height, across) > 4:
        wider = 32 * 2 ** min(len(layers) // 2, 2)
        layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.ReLU()]
        width, height, across = wider, math.ceil(height / 2), math.ceil(across / 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * across, num_classes))


def mlp(in_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Two hidden layers of 256 with ReLU, and a linear layer; inputs of any shape are flattened.

    Args:
        in_shape: The shape of one input.
        num_classes: Width of the output.

    Example:
        >>> import torch
        >>> mlp((7,), 3)(torch.zeros(2, 7)).shape
        torch.Size([2, 3])
    """
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(in_shape), 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, num_classes),
    )  # fmt: skip


@dataclass(frozen=True)
class Encoder:
    """A network that can be had by name: a row of ``ENCODERS``."""

    title: str
    """What it is, in a line."""
    kinds: tuple[Kind, ...]
    """What it reads."""
    build: Callable[..., nn.Module]
    """Called with the shape of one input and the number of outputs; its options have defaults."""
    width: int | None = None
    """Outputs as a tower, where nobody asks for a number; None: the features that it pools."""


ENCODERS: dict[str, Encoder] = {
    "small-cnn": Encoder("3×3 convolutions of stride 2 and a linear layer, for 8 to 32 px", ("image",), small_cnn, 128),
    "resnet-small": Encoder("residual network with a 3×3 stem, for 28 to 96 px", ("image",), resnet_small),
    "mlp": Encoder("two hidden layers of 256", ("vector", "image", "series"), mlp, 128),
    "series-cnn": Encoder("residual 1-D convolutions", ("series",), series_cnn),
    "text-small": Encoder("small transformer and a tokenizer, from scratch", ("text",), text_small),
}


def default_encoder(in_shape: tuple[int, ...]) -> str:
    """The name of the classifier for inputs of this shape: convolutions for images, a perceptron for all else.

    Example:
        >>> default_encoder((1, 28, 28)), default_encoder((13,))
        ('small-cnn', 'mlp')
    """
    return "small-cnn" if len(in_shape) == 3 else "mlp"
