"""Embeddings and classes from files, whoever wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.data.bad import refuse, shown
from nearfar.data.classes import label_names
from nearfar.data.labelled import require
from nearfar.data.lines import text_lines
from nearfar.data.records import to_number
from nearfar.names import unknown

VECTORS = ("vector", "vectors", "embedding", "embeddings")
LABELS = ("label", "labels", "class", "target", "y", "id")


def read_vectors(
    path: str | Path, label: str | None, names: dict[str, int]
) -> tuple[Float[Tensor, "n d"], Int64[Tensor, "n"] | None]:
    """Rows, and their classes where the file has them.

    Args:
        path: ``.parquet`` with a column of vectors, ``.safetensors`` with a matrix, or ``.npy``.
        label: The column of the classes; by default one with a usual name.
        names: Class names and their ids; new ones are added.

    Raises:
        ValueError: If it is no such file, or has no such column.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    readers = {".parquet": _parquet, ".pq": _parquet, ".safetensors": _safetensors, ".npy": _npy}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no file of embeddings: wanted one that ends in {', '.join(readers)}")
    vectors, classes = reader(path, label, names)
    vectors = torch.tensor(vectors)
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(f"{path} holds {vectors.dtype} {tuple(vectors.shape)}: floats (n, d) were wanted")
    return vectors, classes


def read_labels(path: str | Path, rows: int, names: dict[str, int]) -> Int64[Tensor, "n"]:
    """Classes of a file of their own: ``.npy`` (numbers or texts), or text with one a line; an empty one is unknown.

    Blanks around a class and lines without one at the end of the file do not matter.

    Raises:
        ValueError: If they are not one a row.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".npy":
        held = _array(path).tolist()
    else:
        lines = [*text_lines(path)]
        refuse([f"{path}:{line.number}: {line.wrong}" for line in lines if line.wrong], skippable=False)
        held = [line.text.strip() for line in lines]
        while len(held) > rows and not held[-1]:
            held.pop()
    if not isinstance(held, list) or len(held) != rows:
        count = len(held) if isinstance(held, list) else 1
        first = f" (the first is {shown(held[0])})" if isinstance(held, list) and held else ""
        raise ValueError(f"{path} holds {count} classes for {rows} rows{first}: one a row was wanted")
    return number(held, names)


def number(values: list[Any], names: dict[str, int]) -> Int64[Tensor, "n"]:
    """Ids of classes by name; none, empty, NaN or a negative number: unknown. Among numbers, a word such as NA says so too.

    Example:
        >>> number(["b", None, "a ", "b", -1], {"a": 0})
        tensor([ 1, -1,  0,  1, -1])
    """
    found = label_names([None if isinstance(value, int | float) and value < 0 else value for value in values])
    if all(to_number(name) is not None for name in found if name):
        found = [name if (to_number(name) or 0) >= 0 else "" for name in found]
    return torch.tensor([names.setdefault(name, len(names)) if name else -1 for name in found], dtype=torch.int64)


def _npy(path: Path, label: str | None, names: dict[str, int]) -> tuple[np.ndarray, None]:
    if label is not None:
        raise ValueError(
            f"labels is {label!r}: {path} has no columns, and there is no such file: pass one with a class a line"
        )
    return _array(path), None


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array of numbers ({error})") from error


def _safetensors(path: Path, label: str | None, names: dict[str, int]) -> tuple[np.ndarray, Tensor | None]:
    safe = require("safetensors", "reading .safetensors", "train")
    try:
        with safe.safe_open(path, framework="pt") as file:
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            classes = json.loads((file.metadata() or {}).get("classes", "null"))
    except safe.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error})") from error
    matrices = [name for name, tensor in held.items() if tensor.ndim == 2 and tensor.is_floating_point()]
    chosen = next((name for name in VECTORS if name in matrices), matrices[0] if len(matrices) == 1 else None)
    if chosen is None:
        raise ValueError(
            f"{path} holds {', '.join(held) or 'nothing'}: one matrix of floats, or one called vectors, was wanted"
        )
    column = label or next((name for name in LABELS if name in held), None)
    if column is not None and column not in held:
        raise ValueError(f"{path}: {unknown('tensor', column, held)}")
    ids = None
    if column is not None:
        values = held[column].tolist()
        ids = number([classes[v] if v >= 0 else None for v in values] if classes else values, names)
    return held[chosen].float().numpy(), ids


def _parquet(path: Path, label: str | None, names: dict[str, int]) -> tuple[np.ndarray, Tensor | None]:
    parquet = require("pyarrow.parquet", "reading .parquet")
    arrow = require("pyarrow", "reading .parquet")
    try:
        table = parquet.read_table(path)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file ({error})") from error
    lists = [f.name for f in table.schema if arrow.types.is_list(f.type) or arrow.types.is_fixed_size_list(f.type)]
    chosen = next((name for name in VECTORS if name in lists), lists[0] if len(lists) == 1 else None)
    if chosen is None:
        raise ValueError(
            f"{path} has no column of vectors: wanted one called vector, among {', '.join(table.column_names)}"
        )
    column = table.column(chosen).combine_chunks()
    widths = set(arrow.compute.list_value_length(column).to_pylist()) if len(column) else {0}
    if len(widths) != 1 or column.null_count:
        raise ValueError(f"{path}: the vectors in {chosen!r} have {len(widths)} different widths: one was wanted")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    flat = flat if flat.dtype in (np.float32, np.float64) else flat.astype(np.float32)
    given = label or next(
        (n for n in LABELS if n in table.column_names and table.column(n).null_count < len(table)), None
    )
    if given is not None and given not in table.column_names:
        raise ValueError(f"{path}: {unknown('column', given, table.column_names)}")
    ids = None if given is None else number(table.column(given).to_pylist(), names)
    return flat.reshape(len(column), -1), ids
