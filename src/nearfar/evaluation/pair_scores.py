"""Scores of pairs of rows of one identity, and of two: what verification is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_ids, as_rows
from nearfar.evaluation.neighbours import METRICS, Metric
from nearfar.losses.arguments import choice
from nearfar.scores.autograd import full_precision
from nearfar.scores.matmul import mm
from nearfar.scores.similarity import tile_scores

PAIRS = 20_000_000
"""Pairs of a kind that are all scored; of more, so many are drawn. FAR 10⁻⁵ then still rests on 200 impostors."""
_TILE = 2048


@dataclass(frozen=True, eq=False)
class PairScores:
    """Scores of pairs of one identity (genuine) and of two (impostor)."""

    genuine: Float[Tensor, "g"]
    impostor: Float[Tensor, "i"]
    genuine_pairs: int
    """How many there are; more than scores, if those were drawn."""
    impostor_pairs: int

    @property
    def drawn(self) -> bool:
        """Whether some pairs were left out."""
        return len(self.genuine) < self.genuine_pairs or len(self.impostor) < self.impostor_pairs


def pair_scores(
    embeddings: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    *,
    metric: Metric = "cosine",
    limit: int = PAIRS,
    seed: int = 0,
) -> PairScores:
    """Scores of all unordered pairs of rows, by identity; above a limit, of pairs drawn with replacement.

    Args:
        embeddings: ``(n, d)``.
        labels: Identities; rows with a negative one are left out.
        metric: ``"cosine"``, ``"dot"``, or ``"euclidean"`` (scores are minus the distance).
        limit: Pairs of a kind that are scored at most.
        seed: Of the draw.

    Raises:
        ValueError: If there is no pair of a kind.

    Example:
        >>> found = pair_scores(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([7, 7, 8]))
        >>> found.genuine, found.impostor
        (tensor([1.]), tensor([0., 0.]))
    """
    embeddings = as_rows("embeddings", embeddings)
    labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
    choice("metric", metric, METRICS)
    rows, labels = _prepared(embeddings[labels >= 0], metric), labels[labels >= 0]
    counts = labels.unique(return_counts=True)[1]
    genuine = int((counts * (counts - 1) // 2).sum())
    impostor = len(labels) * (len(labels) - 1) // 2 - genuine
    if not genuine or not impostor:
        raise ValueError(
            f"{len(labels)} rows of {len(counts)} identities make {genuine} genuine and {impostor} impostor pairs: at least two "
            "identities, and two rows of one of them, were wanted"
        )
    generator = torch.Generator().manual_seed(seed)
    with full_precision(rows), torch.no_grad():
        if genuine + impostor <= limit:
            same, other = _every_pair(rows, labels, metric)
        else:
            same = _genuine(rows, labels, metric, limit if genuine > limit else None, generator)
            other = _drawn_impostors(rows, labels, metric, min(limit, impostor), generator)
    return PairScores(same, other, genuine, impostor)


def _prepared(rows: Tensor, metric: str) -> Tensor:
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return torch.nn.functional.normalize(rows, dim=1, eps=1e-30) if metric == "cosine" else rows


def _every_pair(rows: Tensor, labels: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    same, other = [], []
    for i in range(0, len(rows), _TILE):
        for j in range(i, len(rows), _TILE):
            x, y = rows[i : i + _TILE], rows[j : j + _TILE]
            scores = -tile_scores(x, y, "euclidean") if metric == "euclidean" else mm(x, y.T)
            alike = labels[i : i + _TILE, None] == labels[j : j + _TILE]
            once = torch.ones_like(alike).triu_(1) if i == j else torch.ones_like(alike)
            same.append(scores[alike & once])
            other.append(scores[~alike & once])
    return torch.cat(same), torch.cat(other)


def _genuine(rows: Tensor, labels: Tensor, metric: str, drawn: int | None, generator: torch.Generator) -> Tensor:
    order = labels.argsort(stable=True)
    _, counts = labels[order].unique_consecutive(return_counts=True)
    groups = order.split(counts.tolist())
    if drawn is None:
        found = [_every_pair(rows[group], torch.zeros_like(group), metric)[0] for group in groups if len(group) > 1]
        return torch.cat(found)
    weights = (counts.double() * (counts - 1)).cpu()  # pairs of the class; a class with more gets more draws
    start = (counts.cumsum(0) - counts).cpu()
    of = torch.multinomial(weights, drawn, replacement=True, generator=generator)
    size = counts.cpu()[of].double()
    first = (torch.rand(drawn, generator=generator, dtype=torch.float64) * size).long()
    second = (torch.rand(drawn, generator=generator, dtype=torch.float64) * (size - 1)).long()
    second += second >= first
    return _scores_of(
        rows, order[(start[of] + first).to(order.device)], order[(start[of] + second).to(order.device)], metric
    )


def _drawn_impostors(rows: Tensor, labels: Tensor, metric: str, drawn: int, generator: torch.Generator) -> Tensor:
    found: list[Tensor] = []
    missing = drawn
    while missing > 0:
        i, j = torch.randint(len(rows), (2, min(2 * missing, 2**22)), generator=generator).to(rows.device)
        keep = labels[i] != labels[j]
        found.append(_scores_of(rows, i[keep][:missing], j[keep][:missing], metric))
        missing -= len(found[-1])
    return torch.cat(found)


def _scores_of(rows: Tensor, i: Tensor, j: Tensor, metric: str) -> Tensor:
    step = max(1, 2**22 // rows.shape[1])
    return torch.cat([_aligned(rows[a], rows[b], metric) for a, b in zip(i.split(step), j.split(step))])


def _aligned(x: Tensor, y: Tensor, metric: str) -> Tensor:
    return -(x - y).square().sum(1).sqrt() if metric == "euclidean" else (x * y).sum(1)


def listed_scores(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    same: Bool[Tensor, "n"],
    *,
    metric: Metric = "cosine",
) -> PairScores:
    """Scores of the pairs of a protocol: row i with row i.

    Args:
        first: ``(n, d)``.
        second: ``(n, d)``.
        same: Whether they are of one identity.
        metric: As in :func:`pair_scores`.

    Example:
        >>> listed_scores(torch.eye(2), torch.eye(2).flip(0), torch.tensor([True, False])).impostor
        tensor([0.])
    """
    first, second = as_rows("first", first), as_rows("second", second)
    choice("metric", metric, METRICS)
    if first.shape != second.shape or same.shape != first.shape[:1] or same.dtype != torch.bool:
        raise ValueError(
            f"pairs are {tuple(first.shape)} and {tuple(second.shape)}, same is {same.dtype} {tuple(same.shape)}: "
            "two matrices alike and one truth value a row were wanted"
        )
    scores = _aligned(_prepared(first, metric), _prepared(second, metric), metric)
    return PairScores(scores[same], scores[~same], int(same.sum()), int((~same).sum()))
