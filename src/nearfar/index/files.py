"""Files of embeddings: Parquet with all that is known, or the bare numbers as NumPy and safetensors have them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nearfar.index.beside import beside, sweep
from nearfar.index.flat import ParquetStore
from nearfar.index.items import Meta, utf8, vectors_of
from nearfar.index.store import Approximate

if TYPE_CHECKING:
    import pyarrow as pa


class ArrayFile:
    """Vectors in row order, as ``.npy`` or ``.safetensors``. Streamed: never all in memory.

    A safetensors file holds ``vectors`` and ``labels`` (int64, −1: unknown), the class names and where the vectors come
    from in its metadata.

    Args:
        path: The file; it is written beside and renamed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The number of rows stands at the front of either format, and is known at the end.
        self._rows = ParquetStore(beside(path).with_name(f"{beside(path).name}.parquet"))
        self._count = 0
        self._meta: Meta | None = None

    def create(self, meta: Meta) -> None:
        """Begins the file."""
        self._meta = meta
        sweep(self.path)
        self._rows.create(meta)

    def add(self, rows: Iterable[pa.RecordBatch]) -> None:
        """Appends rows."""
        self._rows.add(rows)

    def finish(self, approximate: Approximate | None = None) -> None:
        """Writes the file and puts it in its place."""
        self._rows.finish(approximate)
        self._count = self._rows.count()
        half = beside(self.path)
        try:
            with half.open("wb") as file:
                for piece in self._npy() if self.path.suffix.lower() == ".npy" else self._safetensors():
                    file.write(piece)
            half.replace(self.path)
        finally:
            half.unlink(missing_ok=True)
            self.close()

    def count(self) -> int:
        """How many rows were written."""
        return self._count

    def close(self) -> None:
        """Leaves nothing half done."""
        self._rows.close()
        self._rows.path.unlink(missing_ok=True)

    def _vectors(self) -> Iterable[bytes]:
        for batch in self._rows.batches():
            yield vectors_of(batch).astype("<f4").tobytes()

    def _npy(self) -> Iterable[bytes]:
        assert self._meta is not None
        from io import BytesIO

        head = BytesIO()
        shape = (self._count, self._meta.dim)
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        yield head.getvalue()
        yield from self._vectors()

    def _safetensors(self) -> Iterable[bytes]:
        assert self._meta is not None
        names: dict[str, int] = {}
        labels = np.empty(self._count, "<i8")
        at = 0
        for batch in self._rows.batches():
            texts = batch.column("label").to_pylist()
            labels[at : at + len(texts)] = [
                -1 if text is None else names.setdefault(text, len(names)) for text in texts
            ]
            at += len(texts)
        size = 4 * self._count * self._meta.dim
        head = {
            "__metadata__": {"format": "pt", "nearfar": json.dumps(self._meta.to_dict()), "classes": json.dumps(list(names))},
            "vectors": {"dtype": "F32", "shape": [self._count, self._meta.dim], "data_offsets": [0, size]},
            "labels": {"dtype": "I64", "shape": [self._count], "data_offsets": [size, size + labels.nbytes]},
        }  # fmt: skip
        text = utf8(json.dumps(head)).encode()
        text += b" " * (-len(text) % 8)
        yield struct.pack("<Q", len(text)) + text
        yield from self._vectors()
        yield labels.tobytes()


def open_file(path: Path) -> ParquetStore | ArrayFile:
    """What writes a file of embeddings, by how its name ends."""
    return ArrayFile(path) if path.suffix.lower() in (".npy", ".safetensors") else ParquetStore(path)
