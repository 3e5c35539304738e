"""Measures of one ranking a row: what stood at each place, out of what could have. Pure arithmetic."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def reciprocal_rank(gains: Float[Tensor, "b k"]) -> Float[Tensor, "b"]:
    """``1/rank`` of the first relevant item, 0 if there is none among the ranked.

    Example:
        >>> reciprocal_rank(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    relevant = gains > 0
    first = relevant.to(torch.uint8).argmax(1) + 1
    return torch.where(relevant.any(1), first.double().reciprocal(), 0.0)


def hit(gains: Float[Tensor, "b k"], k: int) -> Float[Tensor, "b"]:
    """1 where any of the first ``k`` is relevant: Recall@k as metric learning and cross-modal retrieval have it."""
    return (gains[:, :k] > 0).any(1).double()


def found(gains: Float[Tensor, "b k"], relevant: Int64[Tensor, "b"], k: int) -> Float[Tensor, "b"]:
    """The share of relevant items among the first ``k``: recall as information retrieval has it."""
    return (gains[:, :k] > 0).sum(1).double() / relevant


def precision_at_r(gains: Float[Tensor, "b k"], relevant: Int64[Tensor, "b"]) -> Float[Tensor, "b"]:
    """The share of relevant items among the first R, as many as there are: Musgrave et al. 2020, arXiv:2003.08505, sec. 3.2."""
    return ((gains > 0) & _within(gains, relevant)).sum(1).double() / relevant


def average_precision(
    gains: Float[Tensor, "b k"], relevant: Int64[Tensor, "b"], *, at_r: bool = False
) -> Float[Tensor, "b"]:
    """``1/R·Σ_i P(i)·[item i is relevant]``, P(i) the precision of the first i: over all places, or over the first R.

    The second is MAP@R's (Musgrave et al. 2020, arXiv:2003.08505, eq. 3–4). The first needs the whole ranking.

    Example:
        >>> gains, relevant = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([2])
        >>> average_precision(gains, relevant), average_precision(gains, relevant, at_r=True)
        (tensor([0.8333], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    here = gains > 0
    precision = here.cumsum(1).double() / torch.arange(1, gains.shape[1] + 1, device=gains.device)
    if at_r:
        here = here & _within(gains, relevant)
    return (precision * here).sum(1) / relevant


def ndcg(gains: Float[Tensor, "b k"], ideal: Float[Tensor, "b j"], k: int) -> Float[Tensor, "b"]:
    """``DCG@k / ideal DCG@k``, ``DCG@k = Σ_{i≤k} gain_i / log₂(i + 1)`` (Järvelin & Kekäläinen 2002, with log₂ from the first
    place on, as scikit-learn and trec_eval have it).

    Args:
        gains: Of the ranked items, in order.
        ideal: The gains of all relevant items, descending, padded with 0.
        k: The cut-off.

    Example:
        >>> ndcg(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]), 2).round(decimals=4)
        tensor([0.6309], dtype=torch.float64)
    """
    return _dcg(gains, k) / _dcg(ideal, k)


def _dcg(gains: Tensor, k: int) -> Tensor:
    gains = gains[:, :k].double()
    return (gains / torch.arange(2, gains.shape[1] + 2, device=gains.device).double().log2()).sum(1)


def _within(gains: Tensor, relevant: Tensor) -> Tensor:
    return torch.arange(gains.shape[1], device=gains.device) < relevant[:, None]
