"""How sure a mean over queries or a share of rows is: 95% intervals."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

Z = 1.959963984540054  # the normal distribution's 97.5% quantile
RESAMPLES = 1000


def share_interval(hits: int | float, of: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927): sound near 0 and 1, where the plain one is not.

    Hits need not be whole: where scores tie, a row may be a hit in part.

    Example:
        >>> [round(end, 4) for end in share_interval(9, 10)]
        [0.5958, 0.9821]
    """
    if not 0 <= hits <= of or of < 1:
        raise ValueError(f"{hits} of {of}: a share of one row at least was wanted")
    p, n = hits / of, of
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(values: Float[Tensor, "n"], seed: int = 0) -> tuple[float, float]:
    """The 95% percentile interval of a mean (Efron & Tibshirani 1993, ch. 13), of 1,000 draws.

    Above 10,000 values the normal interval, which it then equals to three digits.

    Example:
        >>> low, high = bootstrap_interval(torch.tensor([0.0, 1.0]).repeat(50))
        >>> round(low, 1), round(high, 1)
        (0.4, 0.6)
    """
    values = values.double()
    if len(values) > 10_000:
        half = Z * float(values.std()) / math.sqrt(len(values))
        return float(values.mean()) - half, float(values.mean()) + half
    generator = torch.Generator().manual_seed(seed)
    means = [values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(RESAMPLES)]
    ends = torch.quantile(torch.stack(means), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(ends[0]), float(ends[1])
