"""Exact nearest neighbours of any number of rows, and the classifier that they make."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_ids, as_rows
from nearfar.evaluation.scoring import Keys, ranks, slack
from nearfar.evaluation.selection import Largest
from nearfar.losses.arguments import check_range, choice
from nearfar.scores.autograd import full_precision

Metric = Literal["cosine", "euclidean", "dot"]
METRICS = ("cosine", "euclidean", "dot")
BACKENDS = ("torch", "faiss")
ROWS = 512  # queries at a time: with 8,192 keys a tile of 16 MB, where products run at their full rate
_COLUMNS = 8192
_SPARE = 8
"""Candidates beyond k: the rough scores' error then almost never reaches across them."""
_MANY = 1024
"""From so many neighbours on, the rough search would save nothing."""


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
    rows: int = ROWS,
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
        rows: Queries at a time; memory grows with them, the result does not change.
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
    found = [blocks[1:] for blocks in neighbour_blocks(queries, keys, k, metric, exclude_self, rows, backend)]
    return Neighbours(torch.cat([scores for scores, _ in found]), torch.cat([indices for _, indices in found]))


def neighbour_blocks(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None = None,
    k: int = 20,
    metric: str = "cosine",
    exclude_self: bool | None = None,
    rows: int = ROWS,
    backend: str = "torch",
) -> Iterator[tuple[slice, Float[Tensor, "b k"], Int64[Tensor, "b k"]]]:
    """:func:`nearest`, some queries at a time, for results that would not fit: their slice, scores and indices."""
    queries = as_rows("queries", queries)
    exclude_self = keys is None if exclude_self is None else exclude_self
    keys = queries if keys is None else as_rows("keys", keys)
    choice("metric", metric, METRICS)
    choice("backend", backend, BACKENDS)
    if keys.shape[1] != queries.shape[1] or keys.device != queries.device:
        raise ValueError(
            f"queries are {tuple(queries.shape)} on {queries.device}, keys {tuple(keys.shape)} on {keys.device}: "
            "the same width and device were wanted"
        )
    if exclude_self and len(keys) != len(queries):
        raise ValueError(
            f"exclude_self means that key i is query i, but there are {len(queries)} queries and {len(keys)} keys"
        )
    least = len(keys) - exclude_self
    if not 1 <= k <= least:
        raise ValueError(
            f"k is {k}, but a query has {least} keys{' beside itself' if exclude_self else ''}: pass k=1 to {least}"
        )
    if rows < 1:
        raise ValueError(f"rows is {rows}: one query at a time is the least")
    with full_precision(queries), torch.no_grad():
        search = _Search(
            Keys(keys, metric), k, exclude_self, None if backend == "torch" else _faiss_index(keys, metric)
        )
        if not math.isfinite(search.keys.longest**2):
            raise ValueError("keys are too large: the square of their length is infinite in float64")
        for start in range(0, len(queries), rows):
            block = slice(start, min(start + rows, len(queries)))
            yield block, *search.block(queries[block], torch.arange(block.start, block.stop, device=queries.device))


class _Search:
    """Neighbours of some queries."""

    def __init__(self, keys: Keys, k: int, exclude_self: bool, faiss: object | None) -> None:
        self.keys, self.k, self.exclude_self, self.faiss = keys, k, exclude_self, faiss
        self.candidates = min(k + max(_SPARE, k // 4), len(keys.rows) - exclude_self)

    def block(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        norms = self.keys.lengths(x)
        scale = self.keys.scale(norms)
        everything = self.candidates >= _MANY or float(scale.max()) > 1e37
        if everything:
            scores, indices = self._exactly(x, norms, scale, row)
        else:
            scores, indices, unsure = self._roughly(x, norms, scale, row)
            for some in unsure.nonzero()[:, 0].split(ROWS // 4) if bool(unsure.any()) else ():
                scores[some], indices[some] = self._exactly(x[some], norms[some], scale[some], row[some])
        return scores.to(torch.float64 if x.dtype == torch.float64 else torch.float32), indices

    def _roughly(self, x: Tensor, norms: Tensor, scale: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By float32 products, and which rows they cannot decide."""
        if self.faiss is not None:
            worst, columns = self._by_faiss(x, norms, row)
        else:
            found = Largest(len(x), self.candidates, torch.float32, x.device)
            queries = self.keys.queries(x, norms, torch.float32)
            for j in self._tiles():
                tile = self.keys.tile(queries, j)
                self._leave_out_self(tile, row, j, -torch.inf)
                found.see(tile, j.start)
            worst, columns = found.values.amin(1), found.columns
        values, scores = self.keys.exact(x, norms, columns)
        order = ranks(values, columns, scale, len(self.keys.rows)).argsort(1, descending=True)[:, : self.k]
        last = values.gather(1, order[:, -1:])
        margin = (slack(x.shape[1], torch.float32) + 2.0**-35) * scale
        unsure = (last <= worst.double()[:, None] + margin)[:, 0]
        if self.candidates == len(self.keys.rows) - self.exclude_self:
            unsure = torch.zeros_like(unsure)
        return scores.gather(1, order), columns.gather(1, order), unsure

    def _exactly(self, x: Tensor, norms: Tensor, scale: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """By float64 products, equal values told from unequal ones."""
        found = Largest(len(x), self.k, torch.int64, x.device)
        queries = self.keys.queries(x, norms, torch.float64)
        many = self.k >= _MANY
        kept = []
        for j in self._tiles():
            tile = self.keys.tile(queries, j)
            columns = torch.arange(j.start, j.stop, device=x.device)
            order = ranks(tile, columns, scale, len(self.keys.rows))
            self._leave_out_self(order, row, j, torch.iinfo(torch.int64).min)
            if many:
                kept.append((tile, order))
            else:
                found.see(order, j.start)
        if many:  # a whole strip is smaller than what would be kept of it
            values, order = (torch.cat(parts, 1) for parts in zip(*kept))
            indices = (
                order.topk(self.k, 1).indices if self.k < order.shape[1] // 2 else order.argsort(1, True)[:, : self.k]
            )
            return self._scores(values.gather(1, indices), norms), indices
        indices = found.columns.gather(1, found.values.argsort(1, descending=True))
        return self.keys.exact(x, norms, indices)[1], indices

    def _scores(self, values: Tensor, norms: Tensor) -> Tensor:
        if self.keys.metric != "euclidean":
            return values
        return (norms[:, None].square() - 2 * values).clamp_min_(0.0).sqrt_()

    def _tiles(self) -> Iterator[slice]:
        for start in range(0, len(self.keys.rows), _COLUMNS):
            yield slice(start, min(start + _COLUMNS, len(self.keys.rows)))

    def _leave_out_self(self, tile: Tensor, row: Tensor, j: slice, lowest: float) -> None:
        if self.exclude_self:
            here = ((row >= j.start) & (row < j.stop)).nonzero()[:, 0]
            tile[here, row[here] - j.start] = lowest

    def _by_faiss(self, x: Tensor, norms: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        queries = self.keys.queries(x, norms, torch.float32).cpu().contiguous().numpy()
        some = self.candidates + self.exclude_self
        near, columns = (torch.from_numpy(part).to(x.device) for part in self.faiss.search(queries, some))  # pyright: ignore
        values = near if self.keys.metric != "euclidean" else (norms[:, None].square().to(near.dtype) - near) / 2
        if not self.exclude_self:
            return values.amin(1), columns
        other = columns != row[:, None]
        other[:, -1] &= ~other.all(1)  # itself is not among them: one too many
        return values.masked_fill(~other, torch.inf).amin(1), columns[other].view(len(x), self.candidates)


def _faiss_index(keys: Tensor, metric: str) -> object:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('backend="faiss" needs faiss: pip install faiss-cpu; or leave backend= out') from error
    whole = Keys(keys, metric)
    index = (faiss.IndexFlatL2 if metric == "euclidean" else faiss.IndexFlatIP)(keys.shape[1])
    for part in keys.split(65536):
        index.add(whole.queries(part, whole.lengths(part), torch.float32).cpu().contiguous().numpy())
    return index


# ---- the classifier --------------------------------------------------------------------------------------------------


def knn_predict(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"] | None,
    labels: Int64[Tensor, "m"],
    k: int = 20,
    *,
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
    choice("weights", weights, ("uniform", "exp"))
    check_range("temperature", temperature, 0.0)
    queries = as_rows("queries", queries)
    alone = keys is None
    keys = queries if alone else as_rows("keys", keys)
    labels = as_ids("labels", labels, len(keys)).to(keys.device)
    known = labels >= 0
    if alone and not bool(known.all()) and int(known.sum()) > 1:
        predicted = torch.full((len(queries),), -1, dtype=torch.int64, device=keys.device)
        voters = (k, weights, temperature, metric)
        predicted[known] = _vote(keys[known], keys[known], labels[known], *voters, exclude_self=True)
        predicted[~known] = _vote(keys[~known], keys[known], labels[known], *voters, exclude_self=False)
        return predicted
    if int(known.sum()) < 1 + alone:
        raise ValueError(f"{int(known.sum())} of {len(labels)} keys have a label (0 or more): nobody to vote")
    return _vote(queries, keys[known], labels[known], k, weights, temperature, metric, exclude_self=alone)


def _vote(
    queries: Tensor, keys: Tensor, labels: Tensor, k: int, weights: str, temperature: float, metric: str, *,
    exclude_self: bool,
) -> Tensor:  # fmt: skip
    k = min(k, len(keys) - exclude_self)
    predicted = []
    rows = max(1, min(ROWS, 2**22 // k**2))
    for _, scores, indices in neighbour_blocks(queries, keys, k, metric, exclude_self, ROWS):
        for s, voters in zip(scores.split(rows), labels[indices].split(rows)):
            s = s if metric != "euclidean" else -s
            w = torch.ones_like(s) if weights == "uniform" else ((s - s[:, :1]) / temperature).exp()
            votes = torch.where(voters[:, :, None] == voters[:, None], w.double()[:, None], 0.0).sum(2)
            predicted.append(voters.gather(1, votes.argmax(1, keepdim=True))[:, 0])
    return torch.cat(predicted)


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
