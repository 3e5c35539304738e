"""Embedded rows that outlive their process: kept in a folder beside the output, where the next one goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.data.labelled import require
from nearfar.index.beside import beside
from nearfar.index.items import item_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from nearfar.index.config import EmbedConfig
    from nearfar.index.embed import Source

ROWS = 4096
"""Rows a part: what a process that dies has done in vain, at most."""
KEY = b"nearfar.part"


class Parts:
    """The rows of one job, in Parquet files of :data:`ROWS`.

    Args:
        out: The file that is being made; the folder stands beside it.
        job: What the rows depend on. Parts of another job are removed.
    """

    def __init__(self, out: Path, job: str) -> None:
        self.folder, self._job = out.with_name(f".{out.name}.parts"), job
        self._parts = self._found()

    @property
    def rows(self) -> int:
        """How many rows are there already."""
        return sum(part["rows"] for _, part in self._parts)

    def through(self, source: Source) -> Iterator[pa.RecordBatch]:
        """All rows of a source: those that are there, then the others, which are kept as they come."""
        pa, parquet = _arrow()
        schema, start = item_schema(source.meta), 0
        for path, part in self._parts:
            start, source.bad = part["next"], list(part["bad"])
            try:
                batches = parquet.read_table(path).to_batches()
            except (OSError, pa.ArrowInvalid) as error:
                raise ValueError(f"{path} is damaged or gone ({error}): remove {self.folder} to begin anew") from error
            for batch in batches:
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        waiting: list[pa.RecordBatch] = []
        for chunk, batches in source.chunks(start):
            waiting += batches
            if sum(map(len, waiting)) >= ROWS:
                self._keep(waiting, start, chunk + 1, source.bad)
                waiting, start = [], chunk + 1
            yield from batches

    def remove(self) -> None:
        """When the output stands in its place."""
        gone = beside(self.folder)  # at once, so that what is left is never a part of the parts
        with contextlib.suppress(OSError):
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _keep(self, batches: list[pa.RecordBatch], start: int, following: int, bad: list[str]) -> None:
        pa, parquet = _arrow()
        table = pa.Table.from_batches(batches)
        facts = {"job": self._job, "rows": len(table), "start": start, "next": following, "bad": bad}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(facts).encode()})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{following:09}.parquet"
        parquet.write_table(table, beside(path), compression="zstd")
        beside(path).replace(path)

    def _found(self) -> list[tuple[Path, dict[str, Any]]]:
        """The parts of this job, in order, as far as none is missing."""
        parts: list[tuple[Path, dict[str, Any]]] = []
        for path in sorted(self.folder.glob("*.parquet")):
            part = self._read(path)
            if part is None:
                self.remove()
                return []
            if part["start"] != (parts[-1][1]["next"] if parts else 0):
                break
            parts.append((path, part))
        return parts

    def _read(self, path: Path) -> dict[str, Any] | None:
        """What a part says of itself; ``None`` if it is of another job."""
        pa, parquet = _arrow()
        try:
            part = json.loads((parquet.read_schema(path).metadata or {})[KEY])
        except (KeyError, ValueError, OSError, pa.ArrowInvalid):
            return None
        return part if part.get("job") == self._job else None


def _arrow() -> tuple[Any, Any]:
    return require("pyarrow", "embeddings in files"), require("pyarrow.parquet", "embeddings in files")


def job_of(source: Source, config: EmbedConfig) -> str:
    """A digest of what a source's rows depend on: the model, the settings, the rows' names and classes, and a table's date.

    What images hold is not read for it.
    """
    digest = hashlib.sha256(json.dumps(source.meta.to_dict(), sort_keys=True).encode())
    digest.update(repr([(column.name, column.kind) for column in source.columns]).encode())
    digest.update(repr((source.batch_size, source.corpus.class_names, config.skip_bad)).encode())
    table = Path(config.data).expanduser()
    if table.is_file():  # whose rows are named by their lines
        digest.update(repr((table.stat().st_size, table.stat().st_mtime_ns)).encode())
    for split, part in source.parts:
        digest.update(repr((split, len(part))).encode())
        for ids in (part.labels, part.groups):
            digest.update(b"-" if ids is None else ids.numpy().tobytes())
        for row in range(len(part)):
            digest.update(part.name(row).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()[:16]
