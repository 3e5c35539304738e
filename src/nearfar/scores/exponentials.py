"""``e^v`` as ``2^(v·log₂e)``, which a CPU finds more than twice as fast, and ten times where it rounds to 0."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

LOG2E = 1 / math.log(2)
NOTHING = 1e30
"""``e^−NOTHING`` is 0, and no exponent comes near it."""


def exp_(values: Tensor) -> Tensor:
    """``e^v`` in place. Scaled last: differences of large scores are exact, those of their multiples are not."""
    return values.mul_(LOG2E).exp2_()


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """``log(e^a + e^b)``, with all derivatives: torch's has NaN for a second one where ``a`` and ``b`` lie 89 apart in float32."""
    high = torch.maximum(a, b).detach()
    return high + ((a - high).exp() + (b - high).exp()).log()


def softplus(values: Tensor) -> Tensor:
    """``log(1 + e^v)``. Left to itself torch takes ``v`` from 20 on, which is off by 2·10⁻⁹: float64 tells that."""
    return functional.softplus(values, threshold=40.0)
