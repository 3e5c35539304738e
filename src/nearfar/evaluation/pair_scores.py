"""Scores of pairs of rows of one identity, and of two: what verification is measured on.

Scores are those of float64, less the rounding of their sums: pairs that are equally alike have equal scores, and no cosine is
above 1. Of pairs that are drawn, those far from 1 have the digits of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_ids, as_rows, lost_digits
from nearfar.evaluation.neighbours import METRICS, Metric
from nearfar.evaluation.scoring import in_range, score_unit, settled, unit_of
from nearfar.given import as_tensor, at_least
from nearfar.lengths import unit_rows
from nearfar.losses.arguments import choice
from nearfar.scores.autograd import full_precision
from nearfar.scores.matmul import mm
from nearfar.scores.similarity import tile_scores

PAIRS = 20_000_000
"""Pairs of a kind that are all scored; of more, so many are drawn. FAR 10⁻⁵ then still rests on 200 impostors."""
_TILE = 2048
_NEAR = 1e-5
"""Cosines as near to 1 or −1 as that, of pairs that are drawn, are made again in float64."""


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
        (tensor([1.], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64))
    """
    embeddings = as_rows("embeddings", embeddings)
    labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
    choice("metric", metric, METRICS)
    rows, labels = embeddings[labels >= 0], labels[labels >= 0]
    counts = labels.unique(return_counts=True)[1]
    genuine = int((counts * (counts - 1) // 2).sum())
    impostor = len(labels) * (len(labels) - 1) // 2 - genuine
    if not genuine or not impostor:
        raise ValueError(
            f"{len(labels)} rows of {len(counts)} identities make {genuine} genuine and {impostor} impostor pairs: at least two "
            "identities, and two rows of one of them, were wanted"
        )
    limit, generator = at_least("limit", limit, 1), torch.Generator().manual_seed(at_least("seed", seed, 0))
    scorer = _Scorer(rows, metric)
    with full_precision(rows), torch.no_grad():
        if genuine + impostor <= limit:
            same, other = _every_pair(scorer, torch.arange(len(rows), device=rows.device), labels)
        else:
            same = _genuine(scorer, labels, limit if genuine > limit else None, generator)
            other = _drawn_impostors(scorer, labels, min(limit, impostor), generator)
    return PairScores(scorer.settled(same), scorer.settled(other), genuine, impostor)


class _Scorer:
    """Scores of pairs of rows: exact for tiles and for close ones, by products in float32 for many that are drawn."""

    def __init__(self, rows: Tensor, metric: str) -> None:
        self.unit = unit_of(rows) if metric != "cosine" else 1.0
        self.rows, self.metric = in_range(rows, self.unit), metric
        rows, parts = self.rows, self.rows.split(16384)
        self.centre = torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0) / len(rows)
        self.longest = max(float(torch.linalg.vector_norm(self.exact(part), dim=1).max()) for part in parts)

    def exact(self, rows: Tensor) -> Tensor:
        """Rows in float64, whose products or distances are the scores."""
        rows = rows.double()
        if self.metric == "euclidean":
            return rows - self.centre
        return unit_rows(rows) if self.metric == "cosine" else rows

    def settled(self, scores: Tensor) -> Tensor:
        """Scores without the rounding of sums."""
        scale = {"cosine": 1.0, "dot": self.longest**2, "euclidean": 2 * self.longest}[self.metric]
        return settled(scores, scale) * score_unit(self.unit, self.metric)

    def tile(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of exact rows with exact rows."""
        return -tile_scores(x, y, "euclidean") if self.metric == "euclidean" else mm(x, y.T)

    def aligned(self, x: Tensor, y: Tensor) -> Tensor:
        """Scores of row i with row i."""
        if self.metric == "euclidean":
            return -(x - y).square_().sum(1).double().sqrt_()
        return torch.bmm(x[:, None], y[:, :, None])[:, 0, 0].double()  # in one pass, each pair alone

    @cached_property
    def _fast(self) -> Tensor | None:
        """Rows in float32, where that has enough digits."""
        if self.rows.dtype == torch.float64 or lost_digits(self.rows, self.metric):
            return None
        return torch.cat([self.exact(part).float() for part in self.rows.split(16384)])

    def listed(self, i: Tensor, j: Tensor) -> Tensor:
        """Scores of some rows with some."""
        step = max(1, 2**22 // self.rows.shape[1])
        if self._fast is None:
            return self._exactly(i, j, step)
        fast = [self.aligned(self._fast[a], self._fast[b]) for a, b in zip(i.split(step), j.split(step))]
        scores = torch.cat(fast)
        if self.metric == "cosine":
            near = (scores.abs() > 1 - _NEAR).nonzero()[:, 0]
            scores[near] = self._exactly(i[near], j[near], step)
        return scores

    def _exactly(self, i: Tensor, j: Tensor, step: int) -> Tensor:
        parts = zip(i.split(step), j.split(step))
        return torch.cat([self.aligned(self.exact(self.rows[a]), self.exact(self.rows[b])) for a, b in parts])


def _every_pair(scorer: _Scorer, chosen: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of all pairs of some rows: those of one label, and those of two."""
    same, other, rows = [], [], scorer.exact(scorer.rows[chosen])
    for i in range(0, len(rows), _TILE):
        for j in range(i, len(rows), _TILE):
            scores = scorer.tile(rows[i : i + _TILE], rows[j : j + _TILE])
            alike = labels[i : i + _TILE, None] == labels[j : j + _TILE]
            once = torch.ones_like(alike).triu_(1) if i == j else torch.ones_like(alike)
            same.append(scores[alike & once])
            other.append(scores[~alike & once])
    return torch.cat(same), torch.cat(other)


def _genuine(scorer: _Scorer, labels: Tensor, drawn: int | None, generator: torch.Generator) -> Tensor:
    order = labels.argsort(stable=True)
    _, counts = labels[order].unique_consecutive(return_counts=True)
    if drawn is None:
        groups = order.split(counts.tolist())
        found = [_every_pair(scorer, group, torch.zeros_like(group))[0] for group in groups if len(group) > 1]
        return torch.cat(found)
    weights = (counts.double() * (counts - 1)).cpu()  # pairs of the class; a class with more gets more draws
    start = (counts.cumsum(0) - counts).cpu()
    of = torch.multinomial(weights, drawn, replacement=True, generator=generator)
    size = counts.cpu()[of].double()
    first = (torch.rand(drawn, generator=generator, dtype=torch.float64) * size).long()
    second = (torch.rand(drawn, generator=generator, dtype=torch.float64) * (size - 1)).long()
    second += second >= first
    return scorer.listed(*(order[(start[of] + chosen).to(order.device)] for chosen in (first, second)))


def _drawn_impostors(scorer: _Scorer, labels: Tensor, drawn: int, generator: torch.Generator) -> Tensor:
    found: list[Tensor] = []
    missing = drawn
    while missing > 0:
        i, j = torch.randint(len(labels), (2, min(2 * missing, 2**22)), generator=generator).to(labels.device)
        keep = labels[i] != labels[j]
        found.append(scorer.listed(i[keep][:missing], j[keep][:missing]))
        missing -= len(found[-1])
    return torch.cat(found)


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
        tensor([0.], dtype=torch.float64)
    """
    first, second = as_rows("first", first), as_rows("second", second)
    same = as_tensor("same", same, "one truth value a row", first.device)
    choice("metric", metric, METRICS)
    if first.shape != second.shape or same.shape != first.shape[:1] or same.dtype != torch.bool:
        raise ValueError(
            f"pairs are {tuple(first.shape)} and {tuple(second.shape)}, same is {same.dtype} {tuple(same.shape)}: "
            "two matrices alike and one truth value a row were wanted"
        )
    scorer = _Scorer(torch.cat([first.double(), second.double()]), metric)
    exact = (scorer.exact(side) for side in scorer.rows.chunk(2))
    scores = scorer.settled(scorer.aligned(*exact))
    return PairScores(scores[same], scores[~same], int(same.sum()), int((~same).sum()))
