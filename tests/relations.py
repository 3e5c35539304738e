"""From a call to a relation: who is positive, negative or ignored, entry by entry, for the oracles of `oracles.py`.

A relation is a nested list of floats, one row a query and one column a key: a positive weight, 0 for a negative,
NaN for an ignored pair. Comparisons with NaN are false, so `> 0` and `== 0` read it without a special case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Relation = list[list[float]]
IGNORED = math.nan


def by_label(queries: Sequence[int], keys: Sequence[int]) -> Relation:
    """Same label positive, other label negative, unknown (negative) label ignored."""
    return [[IGNORED if a < 0 or b < 0 else float(a == b) for b in keys] for a in queries]


def without_self(relation: Relation) -> Relation:
    """The same relation, a row never its own partner."""
    return [[IGNORED if i == j else r for j, r in enumerate(row)] for i, row in enumerate(relation)]


def transposed(relation: Relation, keys: int) -> Relation:
    """Queries and keys changed over; `keys` says how many there are when there is no query."""
    return [[row[j] for row in relation] for j in range(keys)]


def positives(row: list[float]) -> list[int]:
    return [j for j, r in enumerate(row) if r > 0]


def negatives(row: list[float]) -> list[int]:
    return [j for j, r in enumerate(row) if r == 0]


def resolve(
    kind: str, views: Sequence[Tensor], labels: Tensor | None = None, pairs: Tensor | None = None
) -> tuple[Tensor, Tensor, Relation]:
    """Queries, keys and their relation, as the table of call forms in `docs/losses.md` says.

    Args:
        kind: "self" concatenates its views; every other kind lets the first view score the second.
        views: The positional tensors of the call.
        labels: One integer a sample.
        pairs: A dense relation matrix, queries by keys.
    """
    if len(views) == 1 and views[0].ndim == 3:
        views = [views[0][:, v] for v in range(views[0].shape[1])]
    if pairs is not None:
        given = [[float(r) for r in row] for row in pairs]
        return (views[0], views[0], without_self(given)) if len(views) == 1 else (views[0], views[1], given)
    ids = [int(y) for y in labels] if labels is not None else list(range(len(views[0])))
    if len(views) == 1 or kind == "self":
        rows = torch.cat(list(views))
        return rows, rows, without_self(by_label(ids * len(views), ids * len(views)))
    return views[0], views[1], by_label(ids, ids)


def with_negatives(
    queries: Tensor, keys: Tensor, extra: Tensor, in_batch: bool = False
) -> tuple[Tensor, Tensor, Relation]:
    """Each query meets its own key and the negatives, shared `(m, d)` or its own `(n, j, d)`."""
    n = len(queries)
    other = 0.0 if in_batch else IGNORED
    relation = [[1.0 if i == j else other for j in range(n)] for i in range(n)]
    if extra.ndim == 2:
        return queries, torch.cat([keys, extra]), [row + [0.0] * len(extra) for row in relation]
    j = extra.shape[1]
    own = [[0.0 if i == owner else IGNORED for owner in range(n) for _ in range(j)] for i in range(n)]
    return queries, torch.cat([keys, extra.flatten(0, 1)]), [a + b for a, b in zip(relation, own)]


def unit(row: Tensor) -> Tensor:
    """The row divided by its Euclidean norm; a zero row stays zero, without a gradient."""
    length = row.square().sum()
    return row / length.sqrt() if length > 0 else row * 0.0


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean; two equal rows are at 0, without a gradient."""
    squared = (x - y).square().sum()
    return squared.sqrt() if squared > 0 else squared * 0.0


def scores(queries: Tensor, keys: Tensor, similarity: str, normalize: bool) -> list[list[Tensor]]:
    """Every pair's dot product, Euclidean or squared Euclidean distance, or cosine distance `1 − s`."""
    rows = [unit(x) if normalize or similarity == "cosine" else x for x in queries]
    columns = [unit(y) if normalize or similarity == "cosine" else y for y in keys]
    measure = {
        "dot": lambda x, y: (x * y).sum(),
        "euclidean": distance,
        "sqeuclidean": lambda x, y: (x - y).square().sum(),
        "cosine": lambda x, y: 1.0 - (x * y).sum(),
    }[similarity]
    return [[measure(x, y) for y in columns] for x in rows]


def total(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum() if len(values) else torch.zeros((), dtype=torch.float64)


def average(values: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """`Σ w·v / Σ w`; nothing to average gives 0."""
    weights = [1.0] * len(values) if weights is None else weights
    return total([w * v for v, w in zip(values, weights)]) / sum(weights) if sum(weights) > 0 else total([])


def lse(values: Sequence[Tensor]) -> Tensor:
    return torch.logsumexp(torch.stack(list(values)), 0)


def log1p_sum_exp(values: Sequence[Tensor]) -> Tensor:
    return lse([torch.zeros((), dtype=torch.float64), *values])
