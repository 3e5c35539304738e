"""A residual network for time series."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def series_cnn(in_shape: tuple[int, ...], num_outputs: int | None = None, *, width: int = 64) -> nn.Module:
    """Residual 1-D convolutions with growing dilation, and the mean over time.

    Three blocks as in Wang et al. 2017 (arXiv:1611.06455), with dilations 1, 4 and 16 so that a feature sees some 200
    time steps. Any length goes in, so that crops of a series are views of it.

    Args:
        in_shape: ``(channels, time)``.
        num_outputs: Adds a linear layer of that many outputs; by default the ``2 · width`` pooled features come out.
        width: Channels of the first block; the others have twice as many.

    Raises:
        ValueError: If inputs are no series.

    Example:
        >>> network = series_cnn((1, 100))
        >>> network(torch.zeros(2, 1, 100)).shape, network(torch.zeros(2, 1, 60)).shape
        (torch.Size([2, 128]), torch.Size([2, 128]))
    """
    if len(in_shape) != 2:
        raise ValueError(f"inputs are {in_shape}: wanted (channels, time)")
    layers: list[nn.Module] = []
    channels = in_shape[0]
    for wider, dilation in ((width, 1), (2 * width, 4), (2 * width, 16)):
        layers.append(SeriesBlock(channels, wider, dilation))
        channels = wider
    layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    if num_outputs is not None:
        layers.append(nn.Linear(channels, num_outputs))
    return nn.Sequential(*layers)


class SeriesBlock(nn.Module):
    """Two convolutions over time, 7 and 5 steps wide, with BatchNorm beside a shortcut."""

    def __init__(self, channels: int, wider: int, dilation: int) -> None:
        super().__init__()
        options = {"dilation": dilation, "bias": False}
        self.first = nn.Conv1d(channels, wider, 7, padding=3 * dilation, **options)
        self.first_norm = nn.BatchNorm1d(wider)
        self.second = nn.Conv1d(wider, wider, 5, padding=2 * dilation, **options)
        self.second_norm = nn.BatchNorm1d(wider)
        self.shortcut: nn.Module = nn.Identity()
        if channels != wider:
            self.shortcut = nn.Sequential(nn.Conv1d(channels, wider, 1, bias=False), nn.BatchNorm1d(wider))

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n c2 t"]:
        """One block."""
        y = torch.relu_(self.first_norm(self.first(x)))
        return torch.relu_(self.second_norm(self.second(y)) + self.shortcut(x))
