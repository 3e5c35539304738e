"""Whether the nearest keys are the right ones: by labels, by pairs, or by lists of relevant keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation import ranking
from nearfar.evaluation.inputs import as_ids, as_ks, as_rows
from nearfar.evaluation.neighbours import ROWS, Metric, neighbour_blocks

COMPLETE = 4 * 10**8
"""Queries times keys up to which whole rankings are made, for MAP and MRR: some seconds, ten at the most."""
Relevant = Sequence[int] | Mapping[int, float]
"""Keys that are relevant to a query, or how much each is."""


@dataclass(frozen=True, eq=False)
class Retrieval:
    """How well queries find their keys. Means run over queries that have any relevant key."""

    scores: dict[str, float]
    """``recall@k``: queries with a relevant key among the first k (metric learning's and CLIP's meaning). ``found@k``: share of
    the relevant keys among the first k (information retrieval's recall). ``precision@r``, ``map@r``, ``map`` (whole
    rankings only), ``ndcg@k``, ``mrr``."""
    queries: int
    """How many the means run over."""
    left_out: int
    """Queries without a relevant key."""
    keys: int
    depth: int
    """Places looked at; ``mrr`` counts a first relevant key beyond as 0."""
    chance: dict[str, float]
    """What a random order would be expected to reach, for ``recall@k``, ``precision@r`` and ``found@k``."""
    per_query: dict[str, Float[Tensor, "q"]]
    """The values behind the means."""

    def __getitem__(self, name: str) -> float:
        return self.scores[name]


Gains = Callable[[slice, Tensor], Tensor]


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
) -> Retrieval:
    """Retrieval by labels: keys of the query's class are relevant.

    Args:
        embeddings: The queries ``(n, d)``; without a gallery also the keys, each left out for itself.
        labels: Their classes; negative: unknown, left out.
        gallery: The keys ``(m, d)``.
        gallery_labels: Their classes; keys without one are never relevant.
        ks: Cut-offs of recall and nDCG.
        metric: As in :func:`nearfar.evaluation.knn.nearest`, which also defines ties.
        complete: Rank all keys, which MAP needs and MRR may need. By default up to 4·10⁸ pairs.
        rows: Which rows query, where all would take too long; all of them are keys.

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
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels belong together: pass both, or neither")
    itself = torch.arange(len(labels), device=labels.device) if gallery is None else None
    keys = embeddings if gallery is None else as_rows("gallery", gallery)
    key_labels = (
        labels if gallery_labels is None else as_ids("gallery_labels", gallery_labels, len(keys)).to(keys.device)
    )
    if rows is not None:
        embeddings, labels, itself = embeddings[rows], labels[rows], None if itself is None else itself[rows]
    known, counts = key_labels[key_labels >= 0].unique(return_counts=True)
    place = torch.searchsorted(known, labels).clamp_max(max(len(known) - 1, 0))
    relevant = torch.zeros_like(labels)
    if len(known):
        relevant = torch.where((known[place] == labels) & (labels >= 0), counts[place] - int(itself is not None), 0)

    def gains(rows: slice, indices: Tensor) -> Tensor:
        return (key_labels[indices] == labels[rows, None]).float()

    def ideal(rows: slice, width: int) -> Tensor:
        return (torch.arange(width, device=labels.device) < relevant[rows, None]).float()

    return _measure(embeddings, keys, itself, relevant, gains, ideal, ks, metric, complete)


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
            rows that share an id in any of them; negative: none.
        ks: Cut-offs.
        metric: As in :func:`nearfar.evaluation.knn.nearest`.
        complete: As in :func:`retrieval`.

    Example:
        >>> there, back = pair_retrieval(torch.eye(3), torch.eye(3)[[0, 2, 1]], ks=(1,))
        >>> round(there["recall@1"], 3), round(back["mrr"], 3)
        (0.333, 0.556)
    """
    first, second = as_rows("first", first), as_rows("second", second)
    if first.shape != second.shape:
        raise ValueError(
            f"the sides are {tuple(first.shape)} and {tuple(second.shape)}: row i belongs to row i, so both alike"
        )
    ids = torch.arange(len(first), device=first.device) if ids is None else ids
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
    ids = ids.to(queries.device)

    def together(rows: slice, others: Int64[Tensor, "b m k"]) -> Tensor:
        mine = ids[rows, None]
        return ((mine == others) & (mine >= 0)).any(2)

    blocks = [slice(at, min(at + ROWS, len(ids))) for at in range(0, len(ids), ROWS)]
    relevant = torch.cat([together(block, ids[None]).sum(1) for block in blocks])

    def gains(rows: slice, indices: Tensor) -> Tensor:
        return together(rows, ids[indices]).float()

    def ideal(rows: slice, width: int) -> Tensor:
        return (torch.arange(width, device=ids.device) < relevant[rows, None]).float()

    return _measure(queries, keys, None, relevant, gains, ideal, ks, metric, complete)


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
    grades = [dict(given) if isinstance(given, Mapping) else dict.fromkeys(given, 1.0) for given in relevant]
    for query, given in enumerate(grades):
        for key, grade in given.items():
            if not (0 <= key < len(keys) and 0 <= grade < float("inf")):
                raise ValueError(
                    f"query {query}: key {key} with grade {grade}; rows 0 to {len(keys) - 1} and grades from 0 on"
                )
    grades = [{int(key): float(grade) for key, grade in given.items() if grade > 0} for given in grades]
    device = queries.device
    counts = torch.tensor([len(given) for given in grades], dtype=torch.int64, device=device)
    # (query, key) as one number, sorted, so that a look-up is a binary search
    flat = sorted(
        (query * len(keys) + key, grade) for query, given in enumerate(grades) for key, grade in given.items()
    )
    places = torch.tensor([place for place, _ in flat], dtype=torch.int64, device=device)
    values = torch.tensor([grade for _, grade in flat], dtype=torch.float32, device=device)

    def gains(rows: slice, indices: Tensor) -> Tensor:
        wanted = torch.arange(rows.start, rows.stop, device=device)[:, None] * len(keys) + indices
        at = torch.searchsorted(places, wanted).clamp_max(len(places) - 1)
        return torch.where(places[at] == wanted, values[at], 0.0)

    def ideal(rows: slice, width: int) -> Tensor:
        best = torch.zeros(rows.stop - rows.start, width, device=device)
        for at, given in enumerate(grades[rows]):
            top = sorted(given.values(), reverse=True)[:width]
            best[at, : len(top)] = torch.tensor(top, device=device)
        return best

    return _measure(queries, keys, None, counts, gains, ideal, ks, metric, complete)


def _measure(
    queries: Tensor, keys: Tensor, itself: Tensor | None, relevant: Tensor, gains: Gains, ideal: Callable[[slice, int], Tensor],
    ks: Sequence[int], metric: Metric, complete: bool | None,
) -> Retrieval:  # fmt: skip
    ks = as_ks("ks", ks)
    asked = relevant > 0
    if not bool(asked.any()):
        raise ValueError(f"none of {len(queries)} queries has a relevant key: nothing to retrieve")
    count = len(keys) - (itself is not None)
    complete = len(queries) * count <= COMPLETE if complete is None else complete
    depth = count if complete else min(count, max(*ks, int(relevant.max())))
    held: dict[str, list[Tensor]] = {}
    rows = max(16, min(ROWS, 2**22 // count)) if depth >= ROWS else ROWS
    for block, _, indices in neighbour_blocks(queries, keys, depth, metric, itself, rows):
        here = asked[block]
        if not bool(here.any()):
            continue
        got, best, many = gains(block, indices)[here], ideal(block, min(max(ks), count))[here], relevant[block][here]
        values = {f"recall@{k}": ranking.hit(got, k) for k in ks}
        values |= {f"found@{k}": ranking.found(got, many, k) for k in ks}
        values |= {"precision@r": ranking.precision_at_r(got, many)}
        values |= {"map@r": ranking.average_precision(got, many, at_r=True)}
        values |= {"map": ranking.average_precision(got, many)} if depth == count else {}
        values |= {f"ndcg@{k}": ranking.ndcg(got, best, k) for k in ks}
        values |= {"mrr": ranking.reciprocal_rank(got)}
        for name, value in values.items():
            held.setdefault(name, []).append(value.cpu())
    per_query = {name: torch.cat(parts) for name, parts in held.items()}
    return Retrieval(
        scores={name: float(values.mean()) for name, values in per_query.items()},
        queries=int(asked.sum()),
        left_out=len(queries) - int(asked.sum()),
        keys=count,
        depth=depth,
        chance=_chance(relevant[asked].double().cpu(), count, ks),
        per_query=per_query,
    )


def _chance(relevant: Float[Tensor, "q"], keys: int, ks: tuple[int, ...]) -> dict[str, float]:
    """Of a random order: none of R relevant among the first k of m has probability ``C(m − R, k) / C(m, k)``."""

    def log_choose(n: Tensor, k: Tensor) -> Tensor:
        return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)

    total = torch.tensor(float(keys), dtype=torch.float64)
    chance = {"precision@r": float((relevant / keys).mean())}
    for k in ks:
        first = torch.tensor(float(min(k, keys)), dtype=torch.float64)
        none = (log_choose((total - relevant).clamp_min(first), first) - log_choose(total, first)).exp()
        chance[f"recall@{k}"] = float((1 - torch.where(total - relevant >= first, none, 0.0)).mean())
        chance[f"found@{k}"] = float(first / keys)
    return chance
