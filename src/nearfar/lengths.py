"""Rows of length one, however long or short they came: squares of 1e20 overflow in float32, those of 1e-30 are 0."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def unit_rows(z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 1"]]:
    """Rows divided by their length, and one over that length; 0 for a row of zeros. All derivatives are those of the rows.

    Each row is divided by its largest entry first, so that no square leaves the range of floats.
    """
    if not z.shape[1]:
        return z, z.sum(1, keepdim=True)
    largest = z.detach().abs().amax(1, keepdim=True)
    zero = largest == 0
    largest = largest.masked_fill(zero, 1.0)
    z = z / largest
    inverse = (z * z).sum(1, keepdim=True).masked_fill(zero, 1.0).rsqrt()
    # of a length near the smallest of floats the inverse is no float: as large as can be
    return z * inverse, (inverse / largest).clamp(max=torch.finfo(z.dtype).max).masked_fill(zero, 0.0)


def measured(z: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n 1"]]:
    """The same without derivatives; on a CPU with one visit of the rows, where a look at their lengths shows that it is safe."""
    if z.device.type == "cpu" and z.numel():
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        shortest, longest = (float(end) for end in length.aminmax())
        kind = torch.finfo(z.dtype)
        if shortest > 1e4 * kind.tiny**0.5 and longest < kind.max:  # then squares too small to be held do not matter
            inverse = length.reciprocal_()
            return z * inverse, inverse
    return unit_rows(z.detach())
