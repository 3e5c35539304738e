"""Exact nearest neighbours of any number of rows, and the classifier that they make."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_ids, as_rows
from nearfar.evaluation.neighbours import ROWS, Metric, neighbour_blocks
from nearfar.given import at_least
from nearfar.losses.arguments import check_range, choice

VOTERS = 20
"""Neighbours that vote, where nobody says otherwise and classes are large enough."""
RARE = 0.1
"""Share of the rows: classes with fewer do not decide how many neighbours vote."""


class Neighbours(NamedTuple):
    """The nearest keys of each query, nearest first."""

    scores: Float[Tensor, "n k"]
    """Cosine similarity or product, descending; or distance, ascending."""
    indices: Int64[Tensor, "n k"]
    """Rows of the keys."""


def nearest(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None = None,
    k: int = 20,
    metric: Metric = "cosine",
    *,
    exclude_self: bool | None = None,
    rows: int | None = None,
    backend: str = "torch",
) -> Neighbours:
    """The ``k`` nearest keys of each query: exact, in O(n·k) memory beyond the rows.

    Candidates are found by float32 products tile by tile; theirs are then scored in float64, each pair alone, and where the
    error of the products could have hidden a nearer key, the row is searched again in float64. So the result depends
    neither on the tiles nor on the library that multiplies. **Ties** (values that agree to 36 bits of the largest possible)
    go to the lowest index. A zero row has cosine 0 with all.

    Args:
        queries: ``(n, d)``, any float type.
        keys: ``(m, d)``; without them the queries' own rows.
        k: How many; at most the keys there are. 20 is a common choice for a kNN classifier.
        metric: ``"cosine"``, ``"euclidean"`` or ``"dot"``.
        exclude_self: Leave out key i for query i. By default where keys are the queries themselves.
        rows: Queries at a time, by default 256 a thread; memory grows with them, the result does not change.
        backend: ``"faiss"`` looks for the candidates with faiss (``IndexFlat``), if it is installed.

    Returns:
        ``Neighbours(scores, indices)``, scores in float32 (float64 for float64 rows).

    Raises:
        ValueError: If rows are empty, not finite, or of different widths, if there are fewer than ``k`` keys, or a name is
            unknown.
        ImportError: If faiss is asked for and not installed.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> nearest(z, k=1)
        Neighbours(scores=tensor([[0.8000],
                [0.8000],
                [0.6000]]), indices=tensor([[1],
                [0],
                [1]]))
    """
    queries = as_rows("queries", queries)
    exclude_self = keys is None if exclude_self is None else exclude_self
    if exclude_self and keys is not None and len(keys) != len(queries):
        raise ValueError(
            f"exclude_self means that key i is query i, but there are {len(queries)} queries and {len(keys)} keys"
        )
    itself = torch.arange(len(queries), device=queries.device) if exclude_self else None
    keys = queries if keys is None else keys
    found = list(neighbour_blocks(queries, keys, k, metric, itself, rows, backend))
    return Neighbours(torch.cat([block.scores for block in found]), torch.cat([block.indices for block in found]))


def fitting_voters(k: int, labels: Int64[Tensor, "m"], *, itself: bool = False) -> int:
    """How many neighbours can vote without being outvoted by other classes: no more than a class has.

    Nine rows in ten have so many of their class to find; rare classes do not decide.

    Args:
        k: How many were asked for.
        labels: Classes of the rows that vote; negative: unknown.
        itself: Whether each of these rows is left out of its own vote.

    Example:
        >>> fitting_voters(20, torch.arange(12) % 4), fitting_voters(20, torch.arange(12) % 4, itself=True)
        (3, 2)
        >>> fitting_voters(20, torch.tensor([0] * 50 + [1] * 48 + [2, 2]))
        20
    """
    _, of_row, counts = labels[labels >= 0].unique(return_inverse=True, return_counts=True)
    offered = counts[of_row] - int(itself)
    offered = offered[offered > 0].sort().values
    return max(1, min(k, int(offered[int(RARE * len(offered))]))) if len(offered) else k


def knn_predict(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None,
    labels: Int64[Tensor, "m"],
    k: int = 20,
    *,
    exclude: Int64[Tensor, "n"] | None = None,
    weights: Literal["uniform", "exp"] = "exp",
    temperature: float = 0.07,
    metric: Metric = "cosine",
) -> Int64[Tensor, "n"]:
    """Classes by a vote of the ``k`` nearest keys.

    ``class = argmax_c Σ_{j ∈ kNN(i)} w_ij·[y_j = c]``; ``w_ij = 1``, or ``e^{s_ij/τ}``
    (Wu et al. 2018, arXiv:1805.01978, sec. 3.4). Equal votes go to the class of the nearest neighbour among them.

    Args:
        queries: ``(n, d)``.
        keys: ``(m, d)``; ``None``: the queries themselves, each left out of its own vote.
        labels: Of the keys; negative: unknown, they do not vote.
        k: How many vote; all of them, if there are fewer.
        exclude: The key that does not vote for each query, such as its own row; −1: none.
        weights: ``"exp"`` is the paper's; ``"uniform"`` the plain majority.
        temperature: τ of ``"exp"``; 0.07 is the paper's.
        metric: As in :func:`nearest`; distances vote by ``e^{−d/τ}``.

    Raises:
        ValueError: As :func:`nearest`; or if no key has a label.

    Example:
        >>> z, y = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]), torch.tensor([0, 0, 1, 1])
        >>> knn_predict(z, None, y, k=1)
        tensor([0, 0, 1, 1])
    """
    return knn_vote(queries, keys, labels, k, exclude, weights, temperature, metric)[0]


def knn_vote(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None,
    labels: Int64[Tensor, "m"],
    k: int = 20,
    exclude: Int64[Tensor, "n"] | None = None,
    weights: Literal["uniform", "exp"] = "exp",
    temperature: float = 0.07,
    metric: Metric = "cosine",
) -> tuple[Int64[Tensor, "n"], int]:
    """:func:`knn_predict`, and for how many queries more keys are as near as the last that votes: their rows decided."""
    choice("weights", weights, ("uniform", "exp"))
    check_range("temperature", temperature, 0.0)
    k = at_least("k", k, 1)
    queries = as_rows("queries", queries)
    if keys is None:
        keys, exclude = queries, torch.arange(len(queries), device=queries.device) if exclude is None else exclude
    keys = as_rows("keys", keys)
    labels = as_ids("labels", labels, len(keys)).to(keys.device)
    known = labels >= 0
    if int(known.sum()) < 1 + (exclude is not None):
        raise ValueError(f"{int(known.sum())} of {len(labels)} keys have a label (0 or more): nobody to vote")
    if exclude is not None:
        exclude = as_ids("exclude", exclude, len(queries)).to(keys.device)
        if len(exclude) and int(exclude.max()) >= len(labels):
            raise ValueError(f"exclude names key {int(exclude.max())}: there are keys 0 to {len(labels) - 1}")
        place = torch.where(known, known.cumsum(0) - 1, -1)  # among those that vote
        exclude = torch.where(exclude >= 0, place[exclude.clamp_min(0)], -1)
    keys, labels = keys[known], labels[known]
    least = len(keys) - (exclude is not None)
    k = min(k, least)
    predicted, tied = [], 0
    rows = max(1, min(ROWS, 2**22 // k**2))
    for block in neighbour_blocks(queries, keys, min(k + 1, least), metric, exclude):
        tied += int(block.tied[:, k:].sum())
        for s, voters in zip(block.scores[:, :k].split(rows), labels[block.indices[:, :k]].split(rows)):
            s = s if metric != "euclidean" else -s
            w = torch.ones_like(s) if weights == "uniform" else ((s - s[:, :1]) / temperature).exp()
            votes = torch.where(voters[:, :, None] == voters[:, None], w.double()[:, None], 0.0).sum(2)
            predicted.append(voters.gather(1, votes.argmax(1, keepdim=True))[:, 0])
    return torch.cat(predicted), tied


def knn_accuracy(
    embeddings: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    k: int = 20,
    *,
    train: tuple[Float[Tensor, "m d"], Int64[Tensor, "m"]] | None = None,
    weights: Literal["uniform", "exp"] = "exp",
    temperature: float = 0.07,
    metric: Metric = "cosine",
) -> float:
    """The share of rows whose class the kNN vote finds: leave-one-out, or with training rows as voters.

    Rows without a label (negative) are left out.

    Args:
        embeddings: ``(n, d)``, to be classified.
        labels: Their classes.
        k: How many vote.
        train: The rows that vote, and their classes; without them each row is classified by the others.
        weights: As in :func:`knn_predict`.
        temperature: As in :func:`knn_predict`.
        metric: As in :func:`nearest`.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> knn_accuracy(z, torch.tensor([0, 0, 1, 0]), k=1)
        0.5
    """
    embeddings = as_rows("embeddings", embeddings)
    labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
    known = labels >= 0
    rows, truth = embeddings[known], labels[known]
    voters, classes = (None, truth) if train is None else train
    if not len(rows):
        raise ValueError(f"none of {len(labels)} rows has a label (0 or more): nothing to classify")
    predicted = knn_predict(rows, voters, classes, k, weights=weights, temperature=temperature, metric=metric)
    return float((predicted == truth).double().mean())
