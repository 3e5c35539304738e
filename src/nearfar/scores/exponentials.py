"""``e^v`` as ``2^(v·log₂e)``, which a CPU finds more than twice as fast, and ten times where it rounds to 0."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

LOG2E = 1 / math.log(2)
NOTHING = 1e30
"""``e^−NOTHING`` is 0, and no exponent comes near it."""


def exp_(values: Tensor) -> Tensor:
    """``e^v`` in place. Scaled last: differences of large scores are exact, those of their multiples are not."""
    return values.mul_(LOG2E).exp2_()


def softplus(values: Tensor) -> Tensor:
    """``log(1 + e^v)``. Left to itself torch takes ``v`` from 20 on, which is off by 2·10⁻⁹: float64 tells that."""
    return functional.softplus(values, threshold=40.0)
