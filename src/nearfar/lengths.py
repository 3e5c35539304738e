"""Rows of length one, however large or small their numbers are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def unit_rows(rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Divides rows by their length; a row of zeros stays, with zero gradient.

    The square of a large or a small number leaves the range of its type. So such rows are first divided by their largest
    entry; all others give exactly ``row / |row|``.

    Args:
        rows: Any number of rows, of any float type.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [3e30, 4e30], [3e-40, 4e-40], [0.0, 0.0]])).round(decimals=4)
        tensor([[0.6000, 0.8000],
                [0.6000, 0.8000],
                [0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    largest = rows.detach().abs().amax(-1, keepdim=True)
    low, high = safe_range(rows.dtype, rows.shape[-1])
    scaled = rows / torch.where((largest == 0) | ((largest >= low) & (largest <= high)), 1.0, largest)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    zero = length == 0
    return scaled / length.masked_fill(zero, 1.0) * ~zero


def safe_range(dtype: torch.dtype, d: int) -> tuple[float, float]:
    """The least and the greatest largest entry of a row of ``d`` numbers whose squared length keeps all its digits."""
    about = torch.finfo(dtype)
    return (about.tiny / about.eps) ** 0.5, (about.max / d) ** 0.5 / 2
