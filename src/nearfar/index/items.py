"""What is kept of an embedded item: one Arrow schema for files and stores, and what a search gives back."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from nearfar.data.labelled import require

if TYPE_CHECKING:
    import pyarrow as pa

KEY = b"nearfar"
FACTS = {
    "row": "position among the embedded rows; between equal scores the lower comes first",
    "name": "path of the file, or file and line",
    "column": "which input of the item, as the data call it",
    "modality": "image, text, vector or series",
    "label": "name of the class, or none",
    "id": "group: rows of one id are the same thing; or none",
    "split": "train or test",
    "text": "the text itself, where the item is one",
}
"""The columns beside ``vector``, and what they hold."""
FILTERS = ("name", "column", "modality", "label", "id", "split")
"""The columns that a search can be narrowed by."""


@dataclass(frozen=True)
class Meta:
    """Where vectors come from. Kept in the schema of a Parquet file, and beside the rows of a store."""

    dim: int
    """Numbers in a vector."""
    model: str
    """What the encoder is, in words."""
    run: str
    """The run or model folder, as it was given."""
    weights: str
    """A fingerprint of the encoder's weights: vectors of other weights cannot be compared with these."""
    data: str
    """What the data are called."""
    modalities: tuple[str, ...] = ()
    """The kinds of item that may be among the rows."""
    normalized: bool = True
    """Whether vectors have length 1, so that a dot product is a cosine."""
    nearfar: str = ""
    """The version that made them."""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self) | {"modalities": list(self.modalities)}

    @classmethod
    def of(cls, values: Any, where: str) -> Meta:
        """Reads ``to_dict``'s values again.

        Raises:
            ValueError: If a value is missing or of another type; the message says where it was read.
        """
        try:
            given = {field.name: values[field.name] for field in fields(cls)}
            meta = cls(**given | {"dim": int(given["dim"]), "modalities": tuple(map(str, given["modalities"]))})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{where} does not say which model its vectors are of ({error!r}): make it again"
            ) from error
        return meta


@dataclass(frozen=True)
class Hit:
    """An item that was found."""

    score: float
    """Cosine of the query and the item, in [-1, 1]."""
    row: int
    name: str
    column: str
    modality: str
    label: str | None = None
    id: str | None = None
    split: str | None = None
    text: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def item_schema(meta: Meta) -> pa.Schema:
    """The Arrow schema of embedded items; the vector is a fixed-size list of float32."""
    pa = require("pyarrow", "embeddings in files and stores")
    columns = [pa.field(name, pa.int64() if name == "row" else pa.string()) for name in FACTS]
    columns.append(pa.field("vector", pa.list_(pa.float32(), meta.dim)))
    return pa.schema(
        columns, metadata={KEY: json.dumps(meta.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace")}
    )


def item_batch(
    schema: pa.Schema, facts: Mapping[str, Sequence[Any]], vectors: Float32[np.ndarray, "n d"]
) -> pa.RecordBatch:
    """Rows of ``item_schema``; a fact that is not given is null.

    Raises:
        ValueError: If a vector holds a number that is not finite; the message names the item.
    """
    pa = require("pyarrow", "embeddings in files and stores")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        first = facts["name"][int(np.argmin(finite))]
        raise ValueError(
            f"the embedding of {shown(first)} is not finite ({int((~finite).sum())} of {len(vectors)} rows of its batch): "
            "the model has diverged, or the item holds NaN"
        )
    columns = []
    for field in schema:
        if field.name == "vector":
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            values = facts.get(field.name, [None] * len(vectors))
            columns.append(pa.array([utf8(v) if isinstance(v, str) else v for v in values], type=field.type))
    return pa.record_batch(columns, schema=schema)


def meta_of(schema: pa.Schema, where: str) -> Meta:
    """What ``item_schema`` wrote into a schema.

    Raises:
        ValueError: If it is none of ours; the message says where it was read.
    """
    try:
        values = json.loads((schema.metadata or {})[KEY])
        width = schema.field("vector").type.list_size
        missing = [name for name in FACTS if name not in schema.names]
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{where} holds no embeddings of nearfar: make them with nearfar embed") from error
    if missing:
        raise ValueError(f"{where} has no column {missing[0]!r}: make it again with nearfar embed")
    meta = Meta.of(values, where)
    if meta.dim != width:
        raise ValueError(f"{where} says that its vectors have {meta.dim} numbers, and they have {width}: make it again")
    return meta


def vectors_of(table: pa.Table | pa.RecordBatch) -> Float32[np.ndarray, "n d"]:
    """The vectors of rows as one array."""
    column = table.column("vector")
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), -1) for chunk in chunks if len(chunk)]
    width = column.type.list_size
    return np.concatenate(parts).astype(np.float32, copy=False) if parts else np.zeros((0, width), np.float32)


def read_filters(given: Sequence[str]) -> dict[str, str]:
    """Reads conditions such as ``label=cat``: every one must hold.

    Raises:
        ValueError: If one is not of that form, or names a column that there is not.

    Example:
        >>> read_filters(["label=it's = odd", "split=test"])
        {'label': "it's = odd", 'split': 'test'}
    """
    where: dict[str, str] = {}
    for condition in given:
        name, equals, value = condition.partition("=")
        if not equals or name not in FILTERS:
            raise ValueError(
                f"the filter is {shown(condition)!r}: wanted COLUMN=VALUE with a column of {', '.join(FILTERS)}"
            )
        if where.setdefault(name, value) != value:
            raise ValueError(
                f"{name} cannot be both {shown(where[name])!r} and {shown(value)!r}: filter by one of them"
            )
    return where


def shown(text: str) -> str:
    r"""Text that a terminal only prints: control, format and line-separating characters are written out.

    The joiners that emoji and scripts need stay; those that turn the direction of text, or erase, do not.

    Example:
        >>> shown("caf\u00e9 \x1b[2J\u202egnp.exe")
        'café \\x1b[2J\\u202egnp.exe'
    """
    return "".join(
        char
        if char in "\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else char.encode("ascii", "backslashreplace").decode() if ord(char) > 127 else f"\\x{ord(char):02x}"
        for char in text
    )  # fmt: skip


def utf8(text: str) -> str:
    """Text that can be written as UTF-8: bytes of file names that are none are written out."""
    return text.encode("utf-8", "backslashreplace").decode()
