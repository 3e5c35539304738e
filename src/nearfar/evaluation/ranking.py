"""Measures of one ranking a row: what stood at each place, out of what could have. Pure arithmetic.

Keys of equal score have no order. A measure is then its mean over all their orders, exactly: McSherry & Najork 2008,
"Computing information retrieval performance measures efficiently in the presence of tied scores".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Places:
    """What is expected at each place of some rankings."""

    gain: Float64[Tensor, "b k"]
    """How relevant the key is."""
    relevant: Float64[Tensor, "b k"]
    """The probability that it is relevant at all."""
    precision: Float64[Tensor, "b k"]
    """The share of relevant keys up to here where this one is relevant, else 0: the terms of average precision."""
    none: Float64[Tensor, "b k"]
    """The probability that no key up to here is relevant."""

    @classmethod
    def certain(cls, gains: Float[Tensor, "b k"]) -> Places:
        """Places in rankings without ties.

        Example:
            >>> Places.certain(torch.tensor([[0.0, 2.0, 1.0]])).precision
            tensor([[0.0000, 0.5000, 0.6667]], dtype=torch.float64)
        """
        relevant = (gains > 0).double()
        count = relevant.cumsum(1)
        return cls(gains.double(), relevant, relevant * count / _places(gains), (count == 0).double())

    @classmethod
    def expected(
        cls,
        gains: Float[Tensor, "b k"],
        tied: Bool[Tensor, "b k"],
        beyond: Float64[Tensor, "three b"] | None = None,
    ) -> Places:
        """Places in rankings in which some keys have the same score: the mean over all their orders.

        Args:
            gains: In any order within such a group.
            tied: Whether a key has the score of the one before it.
            beyond: Of keys past the last place that have its score: how many, how many of them relevant, the sum of their gains.

        Example:
            >>> found = Places.expected(torch.tensor([[1.0, 0.0]]), torch.tensor([[False, True]]))
            >>> found.relevant, 1 - found.none
            (tensor([[0.5000, 0.5000]], dtype=torch.float64), tensor([[0.5000, 1.0000]], dtype=torch.float64))
        """
        is_relevant = (gains > 0).double()
        group = (~tied).cumsum(1) - 1
        sums = torch.zeros(3, *gains.shape, dtype=torch.float64, device=gains.device)  # size, relevant, gain of a group
        for total, part in zip(sums, (torch.ones_like(is_relevant), is_relevant, gains.double())):
            total.scatter_add_(1, group, part)
        if beyond is not None:
            sums.scatter_add_(2, group[None, :, -1:].expand(3, -1, 1), beyond[..., None])
        size, relevant, gain = (total.gather(1, group) for total in sums)
        place = _places(gains)
        start = torch.where(tied, 0.0, place - 1).cummax(1).values  # places before the group
        within = place - start  # 1 is the first of the group
        before = (is_relevant.cumsum(1) - is_relevant).gather(1, start.long())  # relevant keys before the group
        share = relevant / size
        others = (within - 1) * (relevant - 1) / (size - 1).clamp_min(1)  # relevant ones before this one, in the group
        hazard = (relevant / (size - within + 1)).clamp_max(1)  # that this one is relevant, if none of the group was
        return cls(gain / size, share, share * (before + others + 1) / place, (1 - hazard).cumprod(1))


def reciprocal_rank(places: Places) -> Float64[Tensor, "b"]:
    """``1/rank`` of the first relevant item, 0 if there is none among the ranked.

    Example:
        >>> reciprocal_rank(Places.certain(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])))
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    first = torch.cat([torch.ones_like(places.none[:, :1]), places.none[:, :-1]], 1) - places.none
    return (first / _places(first)).sum(1)


def hit(places: Places, k: int) -> Float64[Tensor, "b"]:
    """1 where any of the first ``k`` is relevant: Recall@k as metric learning and cross-modal retrieval have it."""
    return 1 - places.none[:, :k][:, -1]


def found(places: Places, relevant: Int64[Tensor, "b"], k: int) -> Float64[Tensor, "b"]:
    """The share of relevant items among the first ``k``: recall as information retrieval has it."""
    return places.relevant[:, :k].sum(1) / relevant


def precision_at_r(places: Places, relevant: Int64[Tensor, "b"]) -> Float64[Tensor, "b"]:
    """The share of relevant items among the first R, as many as there are: Musgrave et al. 2020, arXiv:2003.08505, sec. 3.2."""
    return (places.relevant * _within(places, relevant)).sum(1) / relevant


def average_precision(places: Places, relevant: Int64[Tensor, "b"], *, at_r: bool = False) -> Float64[Tensor, "b"]:
    """``1/R·Σ_i P(i)·[item i is relevant]``, P(i) the precision of the first i: over all places, or over the first R.

    The second is MAP@R's (Musgrave et al. 2020, arXiv:2003.08505, eq. 3–4). The first needs the whole ranking.

    Example:
        >>> places, relevant = Places.certain(torch.tensor([[1.0, 0.0, 1.0]])), torch.tensor([2])
        >>> average_precision(places, relevant), average_precision(places, relevant, at_r=True)
        (tensor([0.8333], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    terms = places.precision * _within(places, relevant) if at_r else places.precision
    return terms.sum(1) / relevant


def ndcg(places: Places, ideal: Float[Tensor, "b j"], k: int) -> Float64[Tensor, "b"]:
    """``DCG@k / ideal DCG@k``, ``DCG@k = Σ_{i≤k} gain_i / log₂(i + 1)`` (Järvelin & Kekäläinen 2002, with log₂ from the first
    place on, as scikit-learn and trec_eval have it).

    Args:
        places: Of the ranked items.
        ideal: The gains of all relevant items, descending, padded with 0.
        k: The cut-off.

    Example:
        >>> ndcg(Places.certain(torch.tensor([[0.0, 1.0]])), torch.tensor([[1.0, 0.0]]), 2).round(decimals=4)
        tensor([0.6309], dtype=torch.float64)
    """
    return _dcg(places.gain, k) / _dcg(ideal, k)


def _dcg(gains: Tensor, k: int) -> Tensor:
    gains = gains[:, :k].double()
    return (gains / (_places(gains) + 1).log2()).sum(1)


def _places(like: Tensor) -> Tensor:
    """1, 2, 3, …: a number a place."""
    return torch.arange(1, like.shape[1] + 1, dtype=torch.float64, device=like.device)


def _within(places: Places, relevant: Tensor) -> Tensor:
    return torch.arange(places.gain.shape[1], device=places.gain.device) < relevant[:, None]
