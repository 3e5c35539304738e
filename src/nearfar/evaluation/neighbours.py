"""The search behind :func:`nearfar.evaluation.knn.nearest`: some queries at a time, rough candidates first, then exact."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nearfar.evaluation.among import rough_candidates, serves
from nearfar.evaluation.inputs import as_rows
from nearfar.evaluation.scoring import Keys, columns_of, descending, in_range, levels, ranks, score_unit, slack, unit_of
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


class Block(NamedTuple):
    """What some queries found."""

    place: slice
    """Which queries."""
    scores: Float[Tensor, "b k"]
    indices: Int64[Tensor, "b k"]
    tied: Bool[Tensor, "b k"]
    """Whether a key is as near as the one before it: then nothing but its row decided which of them came first."""


def neighbour_blocks(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    k: int,
    metric: str = "cosine",
    itself: Int64[Tensor, "n"] | None = None,
    rows: int | None = None,
    backend: str = "torch",
) -> Iterator[Block]:
    """:func:`nearest`, some queries at a time, for results that would not fit.

    ``itself`` is the key to leave out for each query: a row, or −1.
    """
    return Search(queries, keys, k, metric, itself, rows, backend).blocks()


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


class Search:
    """The ``k`` nearest keys of all queries, and which other keys are as near. Arguments are those of :func:`nearest`."""

    def __init__(
        self,
        queries: Float[Tensor, "n d"],
        keys: Float[Tensor, "m d"],
        k: int,
        metric: str = "cosine",
        itself: Int64[Tensor, "n"] | None = None,
        rows: int | None = None,
        backend: str = "torch",
    ) -> None:
        among = keys is queries
        queries = as_rows("queries", queries)
        keys = queries if among else as_rows("keys", keys)
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
        unit = None if metric == "cosine" else unit_of(queries, keys)
        wide = queries.dtype == torch.float64 or unit not in (None, 1.0)  # else float32 holds the scores
        self._dtype = torch.float64 if wide else torch.float32
        self._unit = score_unit(unit or 1.0, metric)
        queries = in_range(queries, unit)
        keys = queries if among else in_range(keys, unit)
        self.queries, self.itself, self.k = queries, itself, k
        self.rows = rows or (ROWS if backend == "torch" else 16 * ROWS)
        self.candidates = min(k + max(_SPARE, k // 4), least)
        self._among: tuple[Tensor, Tensor] | None = None
        with full_precision(queries), torch.no_grad():
            self.keys = Keys(keys, metric)
            self.faiss: Any = None if backend == "torch" else _faiss_index(keys, metric)
            self.keys.prepare()
            if among and rows is None and self.faiss is None and itself is not None:
                self._look_among(itself)

    def blocks(self) -> Iterator[Block]:
        """The neighbours, some queries at a time, in order."""
        starts = range(0, len(self.queries), self.rows)
        blocks = [slice(start, min(start + self.rows, len(self.queries))) for start in starts]
        abreast = self.queries.device.type == "cpu" and self.faiss is None
        yield from _abreast(self._found, blocks) if abreast else map(self._found, blocks)

    def as_near(
        self, queries: Int64[Tensor, " q"], columns: Int64[Tensor, " q"]
    ) -> Iterator[tuple[slice, Bool[Tensor, "b m"]]]:
        """For some queries, and a key of each: which of all keys are as near as that one, itself among them.

        Some queries at a time: their slice, and a truth value a key.
        """
        for start in range(0, len(queries), ROWS // 4):
            place = slice(start, min(start + ROWS // 4, len(queries)))
            some, chosen = queries[place], columns[place, None]
            with full_precision(self.queries), torch.no_grad():
                x = self.queries[some]
                norms = self.keys.lengths(x)
                scale = self.keys.scale(norms)
                keys = len(self.keys.rows)
                wanted = levels(ranks(self.keys.exact(x, norms, chosen)[0], chosen, scale, keys), keys)
                prepared = self.keys.queries(x, norms, torch.float64)
                values = torch.cat([self.keys.tile(prepared, j) for j in self._tiles()], 1)
                equal = levels(ranks(values, torch.arange(keys, device=x.device), scale, keys), keys) == wanted
                if self.itself is not None:
                    _leave_out(equal, self.itself[some], slice(0, keys), False)
            yield place, equal

    def _look_among(self, itself: Tensor) -> None:
        """Where the queries are the keys, each left out for itself: looks for everybody's candidates at once."""
        if not torch.equal(itself, torch.arange(len(self.keys.rows), device=itself.device)):
            return
        if serves(self.keys, self.candidates) and float(self.keys.scale(self.keys.norms).max()) <= _LARGEST:
            self._among = rough_candidates(self.keys, self.candidates, _abreast)

    def _found(self, place: slice) -> Block:
        x, itself = self.queries[place], None if self.itself is None else self.itself[place]
        with full_precision(x), torch.no_grad():
            norms = self.keys.lengths(x)
            scale = self.keys.scale(norms)
            if self.candidates >= _MANY or float(scale.max()) > _LARGEST:
                order, scores, indices = self._exactly(x, norms, scale, itself)
            else:
                order, scores, indices, unsure = self._roughly(place, x, norms, scale, itself)
                for some in unsure.nonzero()[:, 0].split(ROWS // 4) if bool(unsure.any()) else ():
                    order[some], scores[some], indices[some] = self._exactly(
                        x[some], norms[some], scale[some], None if itself is None else itself[some]
                    )
            tied = torch.zeros_like(indices, dtype=torch.bool)
            level = levels(order, len(self.keys.rows))
            torch.eq(level[:, 1:], level[:, :-1], out=tied[:, 1:])
        scores = scores if self._unit == 1 else scores * self._unit
        return Block(place, scores.to(self._dtype), indices, tied)

    def _roughly(
        self, place: slice, x: Tensor, norms: Tensor, scale: Tensor, itself: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ranks, scores and columns by float32 products, and which rows they cannot decide."""
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
        order = ranks(values, columns, scale, len(self.keys.rows))
        first = order.argsort(1, descending=True)[:, : self.k]
        margin = (slack(x.shape[1], torch.float32) + 2.0**-35) * scale
        unsure = (values.gather(1, first[:, -1:]) <= worst.double()[:, None] + margin)[:, 0]
        unsure |= scale[:, 0] < _LEAST
        keys = len(self.keys.rows) - (0 if itself is None else (itself >= 0).long())
        unsure = unsure & (self.candidates < keys)  # else nothing was left out
        return order.gather(1, first), scores.gather(1, first), columns.gather(1, first), unsure

    def _exactly(self, x: Tensor, norms: Tensor, scale: Tensor, itself: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
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
            order = descending(order)[:, : self.k]
            indices = columns_of(order, len(self.keys.rows))
            return order, self._scores(values.gather(1, indices), norms), indices
        order = descending(found.values)
        indices = columns_of(order, len(self.keys.rows))
        return order, self.keys.exact(x, norms, indices)[1], indices

    def _scores(self, values: Tensor, norms: Tensor) -> Tensor:
        if self.keys.metric != "euclidean":
            return values.clamp(-1.0, 1.0) if self.keys.metric == "cosine" else values
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
