"""``nearfar index``: embeddings into a store, and what an approximate search of it misses."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from nearfar.index.config import IndexConfig
from nearfar.index.embed import open_source, progress, tell_bad
from nearfar.index.flat import ParquetStore
from nearfar.index.items import Meta, item_schema, shown, vectors_of
from nearfar.index.run import open_run
from nearfar.index.store import Approximate, Effort, Store, open_store, recall, unit

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE = 100
"""Rows that recall is measured with: it is then known to about one point at 10 neighbours each."""


class Sample:
    """Some rows of many that go by once, each as likely as any other (reservoir sampling; Vitter 1985).

    Args:
        size: How many to keep.
        seed: Of the draw.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self._seen = size, 0
        self._generator = np.random.default_rng(seed)
        self.rows: list[int] = []
        self._vectors: list[Float32[np.ndarray, "d"]] = []

    def watch(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Passes batches on."""
        for batch in batches:
            vectors, rows = vectors_of(batch), batch.column("row").to_pylist()
            places = self._generator.integers(0, np.arange(self._seen + 1, self._seen + len(rows) + 1))
            for i, place in enumerate(places.tolist()):
                if len(self.rows) < self.size:
                    self.rows.append(rows[i])
                    self._vectors.append(vectors[i].copy())
                elif place < self.size:
                    self.rows[place], self._vectors[place] = rows[i], vectors[i].copy()
            self._seen += len(rows)
            yield batch

    @property
    def vectors(self) -> Float32[np.ndarray, "n d"]:
        """The vectors that were kept."""
        return np.stack(self._vectors)


def build(
    store: Store, meta: Meta, batches: Iterable[pa.RecordBatch], approximate: Approximate | None = None
) -> Sample:
    """Fills a store anew; if that fails, the old rows stay and nothing else does.

    Returns:
        Some of the rows, to measure with.
    """
    sample = Sample(SAMPLE)
    try:
        store.create(meta)
        store.add(sample.watch(batches))
        store.finish(approximate)
    except BaseException:
        store.close()
        raise
    return sample


def run(config: IndexConfig) -> int:
    """Indexes a file of embeddings, or the data of a run."""
    if config.of_file:
        file = ParquetStore(Path(config.source).expanduser())
        meta, batches, source = file.describe()["meta"], _unit(file), None
        place = config.store or str(file.path.with_suffix(".index"))
        if Path(place) == file.path:
            raise ValueError(f"{place} is the file itself, which can be searched as it is: pass another --store")
    else:
        run_ = open_run(config.source, config.device, allow_code=config.allow_code)
        source = open_source(run_, config)
        meta, batches = source.meta, progress(source)
        place = config.store or str(run_.path / "index")
    approximate = Approximate(config.method, config.partitions) if config.approximate else None
    store = open_store(place, config.collection)
    try:
        sample = build(store, meta, batches, approximate)
        if source is not None:
            tell_bad(source)
        facts = store.describe()
        how = f", {facts['index']}" if facts["index"] else ", every search exact"
        print(f"{facts['rows']} rows of {meta.dim} numbers: {shown(place)} ({facts['engine']}{how})")
        if config.approximate:
            print(_measured(store, facts["index"], facts["rows"], sample, Effort(False, config.probes, config.refine)))
    finally:
        store.close()
    return 0


def _measured(store: Store, index: str | None, rows: int, sample: Sample, effort: Effort, k: int = 10) -> str:
    """What the approximate search misses and what it saves, in a sentence."""
    if index is None:
        return f"{rows} rows need no approximate index, and none was made: visiting all is as quick and misses nothing."
    vectors = sample.vectors
    found = recall(store, vectors, k, effort, sample.rows)
    times = []
    for how in (effort, Effort(exact=True)):
        begun = time.perf_counter()
        store.search(vectors, k, effort=how)
        times.append((time.perf_counter() - begun) / len(vectors) * 1e3)
    return (
        f"Recall@{k} of the approximate search: {found:.3f} over {len(vectors)} of the rows "
        f"({times[0]:.1f} ms a query; visiting every row: {times[1]:.1f} ms). Higher: --probes, --refine; 1: --exact."
    )


def _unit(file: ParquetStore) -> Iterator[pa.RecordBatch]:
    """The rows of a file, at length 1."""
    import pyarrow as pa

    meta = file.describe()["meta"]
    schema = item_schema(meta)
    for batch in file.batches():
        if meta.normalized:
            yield batch.cast(schema)
        else:
            flat = pa.array(unit(vectors_of(batch)).ravel())
            columns = {name: batch.column(name) for name in schema.names}
            columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, meta.dim)
            yield pa.record_batch([columns[name] for name in schema.names], schema=schema)
