"""Where vectors are kept and searched: one small protocol, and the order in which every store answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64

from nearfar.evaluation.scoring import settled
from nearfar.index.items import FACTS, Hit, Meta, vectors_of

if TYPE_CHECKING:
    import pyarrow as pa

SPARE = 16
"""Rows fetched beyond those asked for, so that rounding in an engine seldom costs a second look."""


@dataclass(frozen=True)
class Approximate:
    """An index that finds most of the nearest rows without visiting all."""

    kind: Literal["hnsw", "ivf-pq"] = "hnsw"
    """A graph over rows in 8 bits a number: high recall. Or lists of compressed rows: small, coarser, for tens of
    millions."""
    partitions: int | None = None
    """Lists that rows are sorted into; by default the square root of the rows for IVF, one graph for HNSW."""


@dataclass(frozen=True)
class Effort:
    """How hard an approximate search tries. More is slower and misses less."""

    exact: bool = False
    """Visit every row."""
    probes: int = 20
    """Lists visited."""
    refine: int = 10
    """Times k: how many candidates are compared again by their full vectors."""


EFFORT = Effort()


@runtime_checkable
class Store(Protocol):
    """Rows of ``item_schema``, and a search over them.

    ``create``, ``add`` and ``finish`` build a new one beside the old; nobody sees it before ``finish``, and ``close``
    without it leaves no trace.
    """

    def create(self, meta: Meta) -> None:
        """Begins a new set of rows."""
        ...

    def add(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Adds rows, a batch at a time, as they come."""
        ...

    def finish(self, approximate: Approximate | None = None) -> None:
        """Makes the index, if one is asked for and rows suffice, and puts the new rows in the place of the old."""
        ...

    def search(
        self,
        queries: Float32[np.ndarray, "q d"],
        k: int,
        where: Mapping[str, str] | None = None,
        effort: Effort = EFFORT,
    ) -> list[list[Hit]]:
        """The ``k`` rows of largest cosine to each query, of those that meet every condition.

        An exact search gives the same order in every store: by score in float64, and between equal scores by row.
        """
        ...

    def count(self) -> int:
        """How many rows there are."""
        ...

    def describe(self) -> dict[str, Any]:
        """``meta`` (where the vectors come from), ``rows``, ``engine`` and ``index`` (None: every search is exact)."""
        ...

    def close(self) -> None:
        """Lets go of files and connections."""
        ...


Fetch = Callable[[Float32[np.ndarray, "q d"], int], "list[pa.Table]"]
"""An engine's own search: the rows, vectors with them, that it takes for the ``limit`` nearest of each query."""


def ranked(
    queries: Float32[np.ndarray, "q d"], k: int, fetch: Fetch, *, exact: bool, spare: int = SPARE
) -> list[list[Hit]]:
    """Puts an engine's finds in the one order that all stores share.

    Engines round scores in ways of their own, and break ties as it falls out. So a few more rows than ``k`` are
    fetched and scored again in float64; while a row that was left behind could still belong among the first ``k``,
    more are fetched. A thousand copies of one vector are thus ordered by row as two are.

    Args:
        queries: Of length 1, or zero.
        k: How many hits of each.
        fetch: The engine's search.
        exact: Whether the engine's finds are the nearest but for rounding; if not, it is asked once.
        spare: Rows to fetch beyond ``k``.
    """
    found: list[list[Hit]] = [[] for _ in queries]
    open_, limit = list(range(len(queries))), k + spare
    slack = 4 * queries.shape[1] * float(np.finfo(np.float32).eps)  # of a float32 dot product of unit vectors, twice
    while open_:
        left = []
        for at, table in zip(open_, fetch(queries[open_], limit), strict=True):
            scores = rescore(queries[at], vectors_of(table))
            rows = table.column("row").to_numpy()
            order = np.lexsort((rows, -scores))
            whole = not exact or len(order) < limit
            if not whole and scores[order[-1]] + slack >= scores[order[k - 1]]:
                left.append(at)
            else:
                found[at] = _hits(table.take(order[:k]), scores[order[:k]])
        open_, limit = left, 4 * limit
    return found


def rescore(query: Float32[np.ndarray, "d"], vectors: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, "n"]:
    """Cosines in float64, less the rounding of sums: copies have equal scores wherever they lie, and none is above 1."""
    wide, other = vectors.astype(np.float64), query.astype(np.float64)
    lengths = np.sqrt((wide**2).sum(axis=1) * (other**2).sum())
    cosines = (wide * other).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return settled(torch.from_numpy(cosines)).numpy()


def unit(vectors: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Rows at length 1; a zero row stays."""
    length = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def check_queries(queries: Float32[np.ndarray, "q d"], k: int, meta: Meta) -> Float32[np.ndarray, "q d"]:
    """Queries at length 1, after a look at their shape.

    Raises:
        ValueError: If they are of another width than the rows, or not finite, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}: wanted 1 or more")
    if queries.ndim != 2 or queries.shape[1] != meta.dim:
        raise ValueError(f"queries are {tuple(queries.shape)}: wanted (n, {meta.dim}), as wide as the vectors stored")
    if not np.isfinite(queries).all():
        raise ValueError("a query's vector is not finite: the model has diverged, or the query holds NaN")
    return unit(np.asarray(queries, dtype=np.float32))


def recall(
    store: Store,
    queries: Float32[np.ndarray, "q d"],
    k: int = 10,
    effort: Effort = EFFORT,
    own: Sequence[int] | None = None,
) -> float:
    """The part of the exactly nearest ``k`` that the approximate search finds, over all queries.

    Args:
        store: What is searched.
        queries: Vectors.
        k: How many each.
        effort: Of the approximate search.
        own: The row that each query is in the store; it would always be found, and does not count.
    """
    extra, left_out = (0, [-1] * len(queries)) if own is None else (1, own)
    exact = store.search(queries, k + extra, effort=Effort(exact=True))
    near = store.search(queries, k + extra, effort=effort)
    wanted = both = 0
    for mine, true, found in zip(left_out, exact, near, strict=True):
        rows = [hit.row for hit in true if hit.row != mine][:k]
        wanted += len(rows)
        both += len({*rows} & {hit.row for hit in found})
    return both / max(wanted, 1)


def open_store(where: str | Path, collection: str | None = None) -> Store:
    """The store at a place.

    Args:
        where: A ``.parquet`` file (no database; every search is exact); ``http://`` or ``https://`` of a Qdrant
            server, ``qdrant:FOLDER`` or ``qdrant::memory:`` for its local mode; any other path is a LanceDB folder.
        collection: The name in a Qdrant server; by default ``nearfar``.

    Raises:
        ImportError: If the package it needs is missing; the message says how to install it.
    """
    text = str(where)
    if text.startswith(("http://", "https://", "qdrant:")):
        from nearfar.index.qdrant import QdrantStore

        return QdrantStore(text, collection or "nearfar")
    if collection is not None:
        raise ValueError(f"collection is {collection!r}, and {text!r} is no Qdrant server: leave it out")
    if "://" in text:
        raise ValueError(
            f"the store is {text!r}: wanted a folder, a .parquet file, or the http(s) URL of a Qdrant server"
        )
    if Path(text).suffix.lower() in (".parquet", ".pq"):
        from nearfar.index.flat import ParquetStore

        return ParquetStore(Path(text).expanduser())
    from nearfar.index.lance import LanceStore

    return LanceStore(Path(text).expanduser())


def _hits(table: pa.Table, scores: Float64[np.ndarray, "k"]) -> list[Hit]:
    columns: dict[str, Sequence[Any]] = {name: table.column(name).to_pylist() for name in FACTS}
    return [
        Hit(score=min(1.0, max(-1.0, float(score))), **{name: column[i] for name, column in columns.items()})
        for i, score in enumerate(scores)
    ]
