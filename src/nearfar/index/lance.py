"""LanceDB, embedded: a folder of rows on disk, searched exactly or by an approximate index."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from nearfar.data.labelled import require
from nearfar.index.beside import beside, sweep
from nearfar.index.items import FACTS, Hit, Meta, item_schema
from nearfar.index.store import EFFORT, Approximate, Effort, check_queries, ranked
from nearfar.report.files import read_json, write_json

if TYPE_CHECKING:
    import pyarrow as pa

ENOUGH = 2_048
"""Rows from which an approximate index is made. Below, visiting all takes a millisecond, and there is too little to
train on."""
NOTE = "nearfar.json"
"""The file that says what a folder holds; written last, so that a folder without it is not finished."""


class LanceStore:
    """Rows of ``item_schema`` in a folder of their own.

    Args:
        path: The folder. A new one is built beside it and takes its place when whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = beside(path)
        self._building: tuple[Any, Meta] | None = None
        self._table: Any = None

    def create(self, meta: Meta) -> None:
        """Begins a new folder beside the old.

        Raises:
            ValueError: If the path is a file, or a folder that holds something else.
        """
        lancedb = _lancedb()
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: pass a folder, or a file that ends in .parquet")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / NOTE).exists():
            raise ValueError(f"{self.path} holds something else than an index of nearfar: pass another folder")
        self.close()
        self._beside.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        shutil.rmtree(self._beside, ignore_errors=True)
        table = lancedb.connect(str(self._beside)).create_table("items", schema=item_schema(meta))
        self._building = table, meta

    def add(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Streams rows to disk."""
        pa = require("pyarrow", "an index", "search")
        assert self._building is not None, "create comes first"
        table, meta = self._building
        failed: list[BaseException] = []

        def watched() -> Iterable[pa.RecordBatch]:
            try:
                yield from rows
            except BaseException as error:  # the engine would wrap it in one of its own
                failed.append(error)
                raise

        try:
            table.add(pa.RecordBatchReader.from_batches(item_schema(meta), watched()))
        except Exception:
            if failed:
                raise failed[0] from None
            raise

    def finish(self, approximate: Approximate | None = None) -> None:
        """Makes the index, if rows suffice, and puts the folder in its place."""
        assert self._building is not None, "create comes first"
        table, meta = self._building
        rows, made = table.count_rows(), None
        if approximate is not None and rows >= ENOUGH:
            table.create_index("vector", config=_config(approximate, rows, meta.dim))
            made = approximate.kind
        write_json(self._beside / NOTE, {"meta": meta.to_dict(), "rows": rows, "index": made})
        old = self._beside.with_name(f"{self._beside.name}.old")
        if self.path.exists():
            self.path.replace(old)
        self._beside.replace(self.path)
        shutil.rmtree(old, ignore_errors=True)
        self._building = self._table = None

    def search(
        self,
        queries: Float32[np.ndarray, "q d"],
        k: int,
        where: Mapping[str, str] | None = None,
        effort: Effort = EFFORT,
    ) -> list[list[Hit]]:
        """See ``Store.search``."""
        note = self.describe()
        queries = check_queries(queries, k, note["meta"])
        exact = effort.exact or note["index"] is None
        condition = _condition(where or {})

        def one(query: Float32[np.ndarray, "d"], limit: int) -> pa.Table:
            asked = self._items().search(query, vector_column_name="vector").distance_type("dot").limit(limit)
            if condition is not None:
                asked = asked.where(condition, prefilter=True)
            asked = asked.bypass_vector_index() if exact else asked.nprobes(effort.probes).refine_factor(effort.refine)
            return asked.select([*FACTS, "vector", "_distance"]).to_arrow()

        return ranked(queries, k, lambda some, limit: [one(query, limit) for query in some], exact=exact)

    def count(self) -> int:
        """How many rows there are."""
        return self._items().count_rows()

    def describe(self) -> dict[str, Any]:
        """See ``Store.describe``.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it holds something else, or is damaged.
        """
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist: make it with nearfar index")
        if not (self.path / NOTE).is_file():
            raise ValueError(f"{self.path} is no index of nearfar: make one with nearfar index")
        note = read_json(self.path / NOTE)
        try:
            meta, rows, index = note["meta"], int(note["rows"]), note["index"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path / NOTE} is damaged ({error!r}): make the index again") from error
        return {"meta": Meta.of(meta, str(self.path)), "rows": rows, "engine": "LanceDB", "index": index}

    def close(self) -> None:
        """Discards what was begun and not finished."""
        self._building = self._table = None
        shutil.rmtree(self._beside, ignore_errors=True)

    def _items(self) -> Any:
        if self._table is None:
            self.describe()
            try:
                self._table = _lancedb().connect(str(self.path)).open_table("items")
            except (OSError, ValueError, RuntimeError) as error:
                raise ValueError(f"{self.path} is damaged ({error}): make the index again") from error
        return self._table


def _condition(where: Mapping[str, str]) -> Any:
    """A typed expression: values never become SQL."""
    if not where:
        return None
    expr = require("lancedb.expr", "a filter", "search")
    terms = [expr.col(name) == expr.lit(value) for name, value in where.items()]
    joined = terms[0]
    for term in terms[1:]:
        joined = joined & term
    return joined


def _config(approximate: Approximate, rows: int, dim: int) -> Any:
    """The engine's own description of an index."""
    index = require("lancedb.index", "an approximate index", "search")
    if approximate.kind == "hnsw":
        return index.HnswSq(distance_type="dot", num_partitions=approximate.partitions or max(1, rows // 1_000_000))
    # Four numbers a sub-vector keep most of the order; the engine's sixteen suit rows of a thousand and more.
    parts = max(part for part in range(1, max(1, dim // 4) + 1) if dim % part == 0)
    return index.IvfPq(
        distance_type="dot", num_partitions=approximate.partitions or max(1, math.isqrt(rows)), num_sub_vectors=parts
    )


def _lancedb() -> Any:
    os.environ.setdefault("LANCEDB_LOG", "error")  # it warns of every data set that is new
    return require("lancedb", "an index in a folder", "search")
