"""Whether the nearest keys are the right ones: by labels, by pairs, or by lists of relevant keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_grades, as_ids, as_rows
from nearfar.evaluation.neighbours import ROWS, Metric
from nearfar.evaluation.retrieved import Retrieval, Task
from nearfar.given import ids_of, is_integer
from nearfar.losses.arguments import choice

__all__ = ["Relevant", "Retrieval", "Unknown", "pair_retrieval", "relevance_retrieval", "retrieval"]

Relevant = Sequence[int] | Mapping[int, float]
"""Keys that are relevant to a query, or how much each is."""
Unknown = Literal["ignore", "negative"]
"""What becomes of rows without a label: left out, or keys that are never right (distractors)."""


def retrieval(
    embeddings: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    gallery: Float[Tensor, "m d"] | None = None,
    gallery_labels: Int64[Tensor, "m"] | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    metric: Metric = "cosine",
    complete: bool | None = None,
    rows: Int64[Tensor, "q"] | None = None,
    unknown: Unknown = "ignore",
) -> Retrieval:
    """Retrieval by labels: keys of the query's class are relevant.

    Args:
        embeddings: The queries ``(n, d)``; without a gallery also the keys, each left out for itself.
        labels: Their classes; negative: unknown.
        gallery: The keys ``(m, d)``.
        gallery_labels: Their classes; negative: unknown.
        ks: Cut-offs of recall and nDCG.
        metric: As in :func:`nearfar.evaluation.knn.nearest`, which also says which scores are equal.
        complete: Rank all keys, which MAP needs and MRR may need. By default up to 4·10⁸ pairs.
        rows: Which rows query, where all would take too long; all of them are keys.
        unknown: ``"ignore"`` leaves rows without a label out, of the queries and of the keys; ``"negative"`` keeps them as
            keys that are relevant to nobody (distractors). They never query.

    Raises:
        ValueError: If no query has a relevant key, or as :func:`nearfar.evaluation.knn.nearest`.

    Example:
        >>> z, y = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]]), torch.tensor([0, 1, 0, 1])
        >>> found = retrieval(z, y, ks=(1, 2))
        >>> found["recall@1"], found["recall@2"], found["map@r"]
        (0.0, 0.75, 0.0)
    """
    embeddings = as_rows("embeddings", embeddings)
    labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
    choice("unknown", unknown, ("ignore", "negative"))
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels belong together: pass both, or neither")
    keys = embeddings if gallery is None else as_rows("gallery", gallery)
    key_labels = (
        labels if gallery_labels is None else as_ids("gallery_labels", gallery_labels, len(keys)).to(keys.device)
    )
    kept = key_labels >= 0 if unknown == "ignore" else torch.ones_like(key_labels, dtype=torch.bool)
    every = torch.arange(len(labels), device=labels.device) if rows is None else ids_of("rows", rows, labels.device)
    asked = every[labels[every] >= 0]
    nameless = int((key_labels < 0).sum())
    notes = []
    if nameless and unknown == "ignore":
        notes.append(f"{nameless:,} {'rows' if gallery is None else 'keys'} without a label were left out")
    elif nameless:
        notes.append(f"{nameless:,} keys without a label are relevant to nobody")
    keys, key_labels = (keys, key_labels) if bool(kept.all()) else (keys[kept], key_labels[kept])
    itself = (kept.cumsum(0) - 1)[asked] if gallery is None else None
    whole = gallery is None and len(asked) == len(keys)
    queries, labels = keys if whole else embeddings[asked], labels[asked]
    known, counts = key_labels[key_labels >= 0].unique(return_counts=True)
    relevant = torch.zeros_like(labels)
    if len(known):
        place = torch.searchsorted(known, labels).clamp_max(len(known) - 1)
        relevant = torch.where(known[place] == labels, counts[place] - int(itself is not None), 0)

    def gains(rows: Tensor, indices: Tensor) -> Tensor:
        return (key_labels[indices] == labels[rows, None]).float()

    def ideal(rows: Tensor, width: int) -> Tensor:
        return (torch.arange(width, device=labels.device) < relevant[rows, None]).float()

    task = Task(queries, keys, itself, relevant, gains, ideal)
    return task.measure(ks, metric, complete, len(every), notes)


def pair_retrieval(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    ids: Int64[Tensor, "n"] | Int64[Tensor, "n k"] | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    metric: Metric = "cosine",
    complete: bool | None = None,
) -> tuple[Retrieval, Retrieval]:
    """Retrieval of partners, both ways: row i of one belongs to row i of the other (image to text, text to image).

    Args:
        first: ``(n, d)``.
        second: ``(n, d)``.
        ids: Rows of one id all belong together (five captions of one image, each beside a copy of it). With several columns,
            rows that share an id in any of them. Negative: none, so that a row has its own partner alone.
        ks: Cut-offs.
        metric: As in :func:`nearfar.evaluation.knn.nearest`.
        complete: As in :func:`retrieval`.

    Example:
        >>> there, back = pair_retrieval(torch.eye(3), torch.eye(3)[[0, 2, 1]], ks=(1,))
        >>> round(there["recall@1"], 3), round(back["mrr"], 3)
        (0.333, 0.611)
    """
    first, second = as_rows("first", first), as_rows("second", second)
    if first.shape != second.shape:
        raise ValueError(
            f"the sides are {tuple(first.shape)} and {tuple(second.shape)}: row i belongs to row i, so both alike"
        )
    own = torch.arange(len(first), device=first.device)
    ids = own if ids is None else ids_of("ids", ids, first.device)
    if ids.ndim not in (1, 2) or len(ids) != len(first) or not is_integer(ids):
        wanted = f"integers ({len(first)},), one a row, or ({len(first)}, k), some a row"
        raise ValueError(f"ids are {ids.dtype} {tuple(ids.shape)}: {wanted}, were wanted")
    if ids.ndim == 1:
        ids = torch.where(ids < 0, ids.max().clamp_min(-1) + 1 + own, ids)
    elif bool((ids < 0).all(1).any()):
        ids = torch.cat([own[:, None], ids], 1)
    if ids.ndim == 2:
        return (
            _by_any(first, second, ids, ks=ks, metric=metric, complete=complete),
            _by_any(second, first, ids, ks=ks, metric=metric, complete=complete),
        )
    there = retrieval(first, ids, second, ids, ks=ks, metric=metric, complete=complete)
    return there, retrieval(second, ids, first, ids, ks=ks, metric=metric, complete=complete)


def _by_any(
    queries: Tensor,
    keys: Tensor,
    ids: Int64[Tensor, "n k"],
    *,
    ks: Sequence[int],
    metric: Metric,
    complete: bool | None,
) -> Retrieval:
    """Keys that share one of a query's ids are relevant."""

    def together(rows: Tensor, others: Int64[Tensor, "b m k"]) -> Tensor:
        mine = ids[rows, None]
        return ((mine == others) & (mine >= 0)).any(2)

    everyone = torch.arange(len(ids), device=ids.device)
    relevant = torch.cat([together(some, ids[None]).sum(1) for some in everyone.split(ROWS)])

    def gains(rows: Tensor, indices: Tensor) -> Tensor:
        return together(rows, ids[indices]).float()

    def ideal(rows: Tensor, width: int) -> Tensor:
        return (torch.arange(width, device=ids.device) < relevant[rows, None]).float()

    return Task(queries, keys, None, relevant, gains, ideal).measure(ks, metric, complete)


def relevance_retrieval(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    relevant: Sequence[Relevant],
    *,
    ks: Sequence[int] = (1, 5, 10),
    metric: Metric = "cosine",
    complete: bool | None = None,
) -> Retrieval:
    """Retrieval by lists: for each query the rows of its relevant keys, or how relevant each is (a grade above 0).

    Grades matter to nDCG alone, as they are (linear gain).

    Args:
        queries: ``(n, d)``.
        keys: ``(m, d)``.
        relevant: For each query, rows of keys, or row to grade; may be empty.
        ks: Cut-offs.
        metric: As in :func:`nearfar.evaluation.knn.nearest`.
        complete: As in :func:`retrieval`.

    Raises:
        ValueError: If a row is no row of the keys, or a grade is below 0.

    Example:
        >>> found = relevance_retrieval(torch.eye(2), torch.eye(2), [{0: 3.0, 1: 1.0}, []], ks=(2,))
        >>> found["ndcg@2"], found.left_out
        (1.0, 1)
    """
    queries, keys = as_rows("queries", queries), as_rows("keys", keys)
    if len(relevant) != len(queries):
        raise ValueError(f"{len(relevant)} lists of relevant keys for {len(queries)} queries: one a query was wanted")
    grades = [as_grades(query, given) for query, given in enumerate(relevant)]
    for query, given in enumerate(grades):
        for key, grade in given.items():
            if not (0 <= key < len(keys) and 0 <= grade < float("inf")):
                raise ValueError(
                    f"query {query}: key {key} with grade {grade}; rows 0 to {len(keys) - 1} and grades from 0 on"
                )
    grades = [{key: grade for key, grade in given.items() if grade > 0} for given in grades]
    device = queries.device
    counts = torch.tensor([len(given) for given in grades], dtype=torch.int64, device=device)
    # (query, key) as one number, sorted, so that a look-up is a binary search
    flat = sorted(
        (query * len(keys) + key, grade) for query, given in enumerate(grades) for key, grade in given.items()
    )
    places = torch.tensor([place for place, _ in flat], dtype=torch.int64, device=device)
    values = torch.tensor([grade for _, grade in flat], dtype=torch.float32, device=device)

    def gains(rows: Tensor, indices: Tensor) -> Tensor:
        wanted = rows[:, None] * len(keys) + indices
        at = torch.searchsorted(places, wanted).clamp_max(len(places) - 1)
        return torch.where(places[at] == wanted, values[at], 0.0)

    def ideal(rows: Tensor, width: int) -> Tensor:
        best = torch.zeros(len(rows), width, device=device)
        for at, row in enumerate(rows.tolist()):
            top = sorted(grades[row].values(), reverse=True)[:width]
            best[at, : len(top)] = torch.tensor(top, device=device)
        return best

    return Task(queries, keys, None, counts, gains, ideal).measure(ks, metric, complete)
