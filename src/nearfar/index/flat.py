"""A Parquet file as a store: no database, no index, every search exact and streamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from nearfar.data.labelled import require
from nearfar.evaluation import knn
from nearfar.index.beside import beside, sweep
from nearfar.index.items import Hit, Meta, item_schema, meta_of, vectors_of
from nearfar.index.store import EFFORT, Approximate, Effort, check_queries, ranked

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 65_536
"""Rows read at a time: 33 MB of 128 numbers each."""
GROUP = 16_384
"""Rows written at a time."""


class ParquetStore:
    """Rows of ``item_schema`` in one file. Memory stays at a chunk of rows, whatever the file holds.

    Args:
        path: The file; it is written beside and renamed, so that it is whole or not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = beside(path)
        self._schema: pa.Schema | None = None
        self._writer: Any = None

    def create(self, meta: Meta) -> None:
        """Begins the file anew; the old one stays until ``finish``."""
        parquet = require("pyarrow.parquet", "a Parquet file")
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sweep(self.path)
        self._schema = item_schema(meta)
        self._writer = parquet.ParquetWriter(self._beside, self._schema, compression="zstd")

    def add(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Appends rows; small batches are gathered into groups."""
        pa = require("pyarrow", "a Parquet file")
        waiting: list[pa.RecordBatch] = []
        for batch in rows:
            waiting.append(batch)
            if sum(map(len, waiting)) >= GROUP:
                self._writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            self._writer.write_table(pa.Table.from_batches(waiting))

    def finish(self, approximate: Approximate | None = None) -> None:
        """Puts the file in its place.

        Raises:
            ValueError: If an index is asked for: a file has none.
        """
        if approximate is not None:
            self.close()
            raise ValueError(f"{self.path} is a plain file, searched exactly: pass a folder for an approximate index")
        self._writer.close()
        self._writer = None
        self._beside.replace(self.path)

    def search(
        self,
        queries: Float32[np.ndarray, "q d"],
        k: int,
        where: Mapping[str, str] | None = None,
        effort: Effort = EFFORT,
    ) -> list[list[Hit]]:
        """See ``Store.search``. Always exact."""
        queries = check_queries(queries, k, self._meta())
        return ranked(queries, k, lambda some, limit: self._fetch(some, limit, where or {}), exact=True)

    def count(self) -> int:
        """How many rows there are."""
        return self._open().metadata.num_rows

    def describe(self) -> dict[str, Any]:
        """See ``Store.describe``."""
        return {"meta": self._meta(), "rows": self.count(), "engine": "Parquet file", "index": None}

    def close(self) -> None:
        """Discards a file that was begun and not finished."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._beside.unlink(missing_ok=True)

    def batches(self, where: Mapping[str, str] | None = None) -> Iterable[pa.RecordBatch]:
        """The rows that meet every condition, a chunk at a time."""
        compute = require("pyarrow.compute", "a Parquet file")
        for batch in self._open().iter_batches(batch_size=ROWS):
            for name, value in (where or {}).items():
                batch = batch.filter(compute.equal(batch.column(name), value))
            if len(batch):
                yield batch

    def _fetch(self, queries: Float32[np.ndarray, "q d"], limit: int, where: Mapping[str, str]) -> list[pa.Table]:
        """Keeps the best so far of each query while the file goes by."""
        pa = require("pyarrow", "a Parquet file")
        schema = self._open().schema_arrow
        best = [schema.empty_table() for _ in queries]
        for batch in self.batches(where):
            table = pa.Table.from_batches([batch], schema=schema)
            for i, rows in enumerate(nearest(queries, vectors_of(batch), limit)):
                kept = pa.concat_tables([best[i], table.take(rows)])
                best[i] = kept.take(nearest(queries[i : i + 1], vectors_of(kept), limit)[0])
        return best

    def _open(self) -> Any:
        parquet = require("pyarrow.parquet", "a Parquet file")
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist: make it with nearfar embed")
        try:
            return parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise ValueError(f"{self.path} is no Parquet file, or a part of one ({error}): make it again") from error

    def _meta(self) -> Meta:
        return meta_of(self._open().schema_arrow, str(self.path))


def nearest(
    queries: Float32[np.ndarray, "q d"], vectors: Float32[np.ndarray, "n d"], limit: int
) -> Int64[np.ndarray, "q k"]:
    """Positions of the rows of largest dot product, at most ``limit`` of each query."""
    near = knn.nearest(
        torch.tensor(queries), torch.tensor(vectors), min(limit, len(vectors)), "dot", exclude_self=False
    )
    return near.indices.numpy()
