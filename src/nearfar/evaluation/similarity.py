"""Whether cosines follow graded judgements of similarity (STS)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from nearfar.evaluation.inputs import as_rows, as_scores
from nearfar.evaluation.scoring import settled
from nearfar.lengths import unit_rows


def average_ranks(values: Float[Tensor, "n"]) -> Float64[Tensor, "n"]:
    """Ranks from 1; equal values share the mean of their ranks.

    Example:
        >>> average_ranks(torch.tensor([3.0, 1.0, 3.0]))
        tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    _, place, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1).double() / 2)[place]


def pearson(first: Float[Tensor, "n"], second: Float[Tensor, "n"]) -> float:
    """Pearson's correlation, in float64.

    Raises:
        ValueError: With fewer than two values, values that are not finite, or a side that does not vary.
    """
    first, second = as_scores("first", first), as_scores("second", second)
    if first.shape != second.shape or len(first) < 2:
        raise ValueError(
            f"the sides are {tuple(first.shape)} and {tuple(second.shape)}: two values or more of each were wanted"
        )
    if not bool(first.isfinite().all() & second.isfinite().all()):
        raise ValueError("a value is NaN or infinite: leave such pairs out")
    a, b = (side.double() - side.double().mean() for side in (first, second))
    size = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    if size == 0 or bool((first == first[0]).all()) or bool((second == second[0]).all()):
        raise ValueError("all values of a side are the same: a correlation is not defined")
    return round(max(-1.0, min(1.0, float(a @ b) / size)), 14)  # 1 is 1: rounding of sums stays out of sight


def spearman(first: Float[Tensor, "n"], second: Float[Tensor, "n"]) -> float:
    """Spearman's rank correlation: Pearson's of the ranks, ties by their average rank.

    Example:
        >>> spearman(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1.0, 2.0, 100.0]))
        1.0
    """
    first, second = as_scores("first", first), as_scores("second", second)
    if first.shape == second.shape and bool(first.isfinite().all() & second.isfinite().all()):
        return pearson(average_ranks(first), average_ranks(second))
    return pearson(first, second)  # says what is wrong


def sts(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], scores: Float[Tensor, "n"]) -> dict[str, float]:
    """Spearman's and Pearson's correlation of cosines with judgements; 0 where all cosines are the same.

    Args:
        first: ``(n, d)``.
        second: ``(n, d)``.
        scores: How alike row i of both is; any scale, more is more alike.

    Returns:
        ``spearman`` and ``pearson``.

    Example:
        >>> second = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> sts(torch.tensor([[1.0, 0.0]] * 3), second, torch.tensor([5.0, 3.0, 0.0]))["spearman"]
        1.0
    """
    first, second, scores = as_rows("first", first), as_rows("second", second), as_scores("scores", scores)
    if first.shape != second.shape or scores.shape != first.shape[:1]:
        raise ValueError(
            f"pairs are {tuple(first.shape)} and {tuple(second.shape)}, scores {tuple(scores.shape)}: one score a row was wanted"
        )
    cosines = settled((unit_rows(first.double()) * unit_rows(second.double())).sum(1))
    if bool((cosines == cosines[0]).all()) and len(scores.unique()) > 1:
        return {"spearman": 0.0, "pearson": 0.0}  # the mean over the orders of what ties
    return {"spearman": spearman(cosines, scores.double()), "pearson": pearson(cosines, scores.double())}


def correlation_interval(r: float, n: int) -> tuple[float, float]:
    """Fisher's 95% interval of a correlation (z-transform); open for fewer than four pairs.

    Example:
        >>> [round(end, 3) for end in correlation_interval(0.8, 100)]
        [0.716, 0.861]
    """
    if n < 4:
        return -1.0, 1.0
    if abs(r) == 1:
        return r, r
    middle, half = math.atanh(r), 1.959963984540054 / math.sqrt(n - 3)
    return math.tanh(middle - half), math.tanh(middle + half)
