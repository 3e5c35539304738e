"""Rows of length one, however large or small their numbers are: squares of 1e20 overflow in float32, those of 1e-30 are 0."""

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
    scaled, _ = _in_range(rows)
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    zero = length == 0
    return scaled / length.masked_fill(zero, 1.0) * ~zero


def units_and_inverses(z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 1"]]:
    """Rows of length one, and one over each row's length; 0 for a row of zeros. With all further derivatives."""
    z, factor = _in_range(z)
    square = (z * z).sum(1, keepdim=True)
    zero = square == 0
    inverse = square.masked_fill(zero, 1.0).rsqrt().masked_fill(zero, 0.0)
    # of a length near the smallest of floats the inverse is no float: as large as can be
    return z * inverse, (inverse / factor).clamp(max=torch.finfo(z.dtype).max)


def measured(z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 1"]]:
    """The same without derivatives; on a CPU with one visit of the rows, where a look at their lengths shows that it is safe."""
    if z.device.type == "cpu" and z.numel():
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        shortest, longest = (float(end) for end in length.aminmax())
        low, _ = safe_range(z.dtype, z.shape[1])
        if (
            shortest > low * z.shape[1] ** 0.5 and longest < torch.finfo(z.dtype).max
        ):  # then some entry is above the least
            inverse = length.reciprocal_()
            return z * inverse, inverse
    return units_and_inverses(z.detach())


def safe_range(dtype: torch.dtype, d: int) -> tuple[float, float]:
    """The least and the greatest largest entry of a row of ``d`` numbers whose squared length keeps all its digits."""
    about = torch.finfo(dtype)
    return (about.tiny / about.eps) ** 0.5, (about.max / max(d, 1)) ** 0.5 / 2


def _in_range(rows: Float[Tensor, "*rows d"]) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows 1"]]:
    """Rows whose squares can be added up, and what each was divided by for that."""
    if not rows.shape[-1]:
        return rows, rows.new_ones(*rows.shape[:-1], 1)
    largest = rows.detach().abs().amax(-1, keepdim=True)
    low, high = safe_range(rows.dtype, rows.shape[-1])
    factor = torch.where((largest == 0) | ((largest >= low) & (largest <= high)), 1.0, largest)
    return rows / factor, factor
