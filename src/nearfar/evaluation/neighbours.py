"""The search behind :func:`nearfar.evaluation.knn.nearest`: some queries at a time, rough candidates first, then exact."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation.among import rough_candidates, serves
from nearfar.evaluation.inputs import as_rows
from nearfar.evaluation.scoring import Keys, ranks, slack
from nearfar.evaluation.selection import Largest
from nearfar.given import at_least, whole
from nearfar.losses.arguments import choice
from nearfar.scores.autograd import full_precision

Metric = Literal["cosine", "euclidean", "dot"]
METRICS = ("cosine", "euclidean", "dot")
BACKENDS = ("torch", "faiss")
ROWS = 256  # queries at a time: with 16,384 keys a tile of 16 MB, where products run at their full rate
_COLUMNS = 16384
_SPARE = 8
"""Candidates beyond k: the rough scores' error then almost never reaches across them."""
_LEAST, _LARGEST = 1e-25, 1e37
"""Products beyond are left to float64: they would lose digits, or be infinite, in float32."""
_MANY = 1024
"""From so many neighbours on, the rough search would save nothing."""


def neighbour_blocks(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    k: int,
    metric: str = "cosine",
    itself: Int64[Tensor, "n"] | None = None,
    rows: int | None = None,
    backend: str = "torch",
) -> Iterator[tuple[slice, Float[Tensor, "b k"], Int64[Tensor, "b k"]]]:
    """:func:`nearest`, some queries at a time, for results that would not fit: their slice, scores and indices.

    ``itself`` is the key to leave out for each query: a row, or −1.
    """
    own = itself if keys is queries and rows is None else None
    queries, keys = as_rows("queries", queries), as_rows("keys", keys)
    choice("metric", metric, METRICS)
    choice("backend", backend, BACKENDS)
    if keys.shape[1] != queries.shape[1] or keys.device != queries.device:
        raise ValueError(
            f"queries are {tuple(queries.shape)} on {queries.device}, keys {tuple(keys.shape)} on {keys.device}: "
            "the same width and device were wanted"
        )
    least = len(keys) - (itself is not None)
    k = whole("k", k)
    if not 1 <= k <= least:
        beside = "" if itself is None else " beside itself"
        raise ValueError(f"k is {k}, but a query has {least} keys{beside}: pass k=1 to {least}")
    rows = None if rows is None else at_least("rows", rows, 1)
    with full_precision(queries), torch.no_grad():
        search = _Search(Keys(keys, metric), k, least, None if backend == "torch" else _faiss_index(keys, metric))
        if not math.isfinite(search.keys.longest**2):
            raise ValueError("keys are too large: the square of their length is infinite in float64")
        if own is not None and search.faiss is None and torch.equal(own, torch.arange(len(keys), device=own.device)):
            search.look_among()
    rows = rows or (ROWS if backend == "torch" else 16 * ROWS)
    blocks = [slice(start, min(start + rows, len(queries))) for start in range(0, len(queries), rows)]

    def found(block: slice) -> tuple[slice, Tensor, Tensor]:
        with full_precision(queries), torch.no_grad():
            return block, *search.block(block, queries[block], None if itself is None else itself[block])

    yield from _abreast(found, blocks) if queries.device.type == "cpu" and backend == "torch" else map(found, blocks)


def _abreast(work: Callable[[Any], Any], parts: list[Any]) -> Iterator[Any]:
    """Parts side by side, each on one thread, given back in order.

    Threads within an operation wait for the slowest at the end of each: of thousands of small ones, on a machine that does
    other things as well, that took ten times as long.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) < 2 * threads:
        yield from map(work, parts)
        return

    def alone(part: Any) -> Any:
        torch.set_num_threads(1)  # of this thread
        return work(part)

    try:
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[Any]] = deque()
            for part in parts:
                waiting.append(pool.submit(alone, part))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # what threads that are made later begin with


class _Search:
    """Neighbours of some queries."""

    def __init__(self, keys: Keys, k: int, least: int, faiss: Any) -> None:
        self.keys, self.k, self.least, self.faiss = keys, k, least, faiss
        keys.prepare()
        self.candidates = min(k + max(_SPARE, k // 4), least)
        self._among: tuple[Tensor, Tensor] | None = None

    def look_among(self) -> None:
        """Where the queries are the keys, each left out for itself: looks for everybody's candidates at once."""
        if serves(self.keys, self.candidates) and float(self.keys.scale(self.keys.norms).max()) <= _LARGEST:
            self._among = rough_candidates(self.keys, self.candidates, _abreast)

    def block(self, place: slice, x: Tensor, itself: Tensor | None) -> tuple[Tensor, Tensor]:
        norms = self.keys.lengths(x)
        scale = self.keys.scale(norms)
        everything = self.candidates >= _MANY or float(scale.max()) > _LARGEST
        if everything:
            scores, indices = self._exactly(x, norms, scale, itself)
        else:
            scores, indices, unsure = self._roughly(place, x, norms, scale, itself)
            for some in unsure.nonzero()[:, 0].split(ROWS // 4) if bool(unsure.any()) else ():
                scores[some], indices[some] = self._exactly(
                    x[some], norms[some], scale[some], None if itself is None else itself[some]
                )
        return scores.to(torch.float64 if x.dtype == torch.float64 else torch.float32), indices

    def _roughly(
        self, place: slice, x: Tensor, norms: Tensor, scale: Tensor, itself: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """By float32 products, and which rows they cannot decide."""
        if self._among is not None:
            worst, columns = (part[place] for part in self._among)
        elif self.faiss is not None:
            worst, columns = self._by_faiss(x, norms, itself)
        else:
            found = Largest(len(x), self.candidates, torch.float32, x.device)
            queries = self.keys.queries(x, norms, torch.float32)
            for j in self._tiles():
                tile = self.keys.tile(queries, j)
                _leave_out(tile, itself, j, -torch.inf)
                found.see(tile, j.start)
            found.settle()
            worst, columns = found.worst, found.columns
        values, scores = self.keys.exact(x, norms, columns)
        order = ranks(values, columns, scale, len(self.keys.rows)).argsort(1, descending=True)[:, : self.k]
        last = values.gather(1, order[:, -1:])
        margin = (slack(x.shape[1], torch.float32) + 2.0**-35) * scale
        unsure = (last <= worst.double()[:, None] + margin)[:, 0]
        unsure |= scale[:, 0] < _LEAST
        keys = len(self.keys.rows) - (0 if itself is None else (itself >= 0).long())
        unsure = unsure & (self.candidates < keys)  # else nothing was left out
        return scores.gather(1, order), columns.gather(1, order), unsure

    def _exactly(self, x: Tensor, norms: Tensor, scale: Tensor, itself: Tensor | None) -> tuple[Tensor, Tensor]:
        """By float64 products, equal values told from unequal ones."""
        found = Largest(len(x), self.k, torch.int64, x.device)
        queries = self.keys.queries(x, norms, torch.float64)
        many = self.k >= _MANY
        kept = []
        for j in self._tiles():
            tile = self.keys.tile(queries, j)
            columns = torch.arange(j.start, j.stop, device=x.device)
            order = ranks(tile, columns, scale, len(self.keys.rows))
            _leave_out(order, itself, j, torch.iinfo(torch.int64).min)
            if many:
                kept.append((tile, order))
            else:
                found.see(order, j.start)
        found.settle()
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

    def _by_faiss(self, x: Tensor, norms: Tensor, itself: Tensor | None) -> tuple[Tensor, Tensor]:
        queries = self.keys.queries(x, norms, torch.float32).cpu().contiguous().numpy()
        some = self.candidates + (itself is not None)
        near, columns = (torch.from_numpy(part).to(x.device) for part in self.faiss.search(queries, some))
        values = near if self.keys.metric != "euclidean" else (norms[:, None].square().to(near.dtype) - near) / 2
        if itself is None:
            return values.amin(1), columns
        other = columns != itself[:, None]
        other[:, -1] &= ~other.all(1)  # itself is not among them: one too many
        return values.masked_fill(~other, torch.inf).amin(1), columns[other].view(len(x), self.candidates)


def _leave_out(tile: Tensor, itself: Tensor | None, j: slice, lowest: float | int) -> None:
    if itself is not None:
        here = ((itself >= j.start) & (itself < j.stop)).nonzero()[:, 0]
        tile[here, itself[here] - j.start] = lowest


def _faiss_index(keys: Tensor, metric: str) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('backend="faiss" needs faiss: pip install "nearfar[faiss]"; or leave backend= out') from error
    whole = Keys(keys, metric)
    index = (faiss.IndexFlatL2 if metric == "euclidean" else faiss.IndexFlatIP)(keys.shape[1])
    for part in keys.split(65536):
        index.add(whole.queries(part, whole.lengths(part), torch.float32).cpu().contiguous().numpy())
    return index
