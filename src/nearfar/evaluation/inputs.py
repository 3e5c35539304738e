"""What evaluations take and refuse: finite rows and integer ids. Messages say what was given and what was wanted."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.data.classes import known_ids
from nearfar.losses.arguments import as_matrix, check_rows


def as_tensors(value: Any) -> Any:
    """An array of NumPy's as a tensor on the same memory, in a tuple too; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(as_tensors(one) for one in value)
    return torch.from_numpy(value) if type(value).__module__ == "numpy" and value.dtype.kind in "fiu" else value


def as_rows(name: str, rows: Any) -> Float[Tensor, "n d"]:
    """Embeddings, one row at least, without NaN or infinity.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it is no float matrix, is empty, or has NaN or infinity; the message names the first such row.
    """
    matrix = as_matrix(name, rows).detach()
    if not matrix.numel():
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}: at least one row and one feature were wanted")
    check_rows(name, matrix, True)
    return matrix


def as_ids(name: str, ids: Any, rows: int) -> Int64[Tensor, "n"]:
    """Class ids, one a row, as 64-bit integers: never as floats, which merge ids above 2²⁴. NaN among whole numbers: unknown.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If they are no integers, or not one a row.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} is a {type(ids).__name__}; a tensor of integer class ids (n,) was wanted")
    ids = known_ids(ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {ids.dtype}; integer class ids were wanted: pass {name}.long()")
    if ids.shape != (rows,):
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but there are {rows} rows; one id a row was wanted")
    return ids.detach().to(torch.int64)


def as_ks(name: str, ks: Any) -> tuple[int, ...]:
    """Cut-offs: whole numbers of 1 or more, ascending, each once."""
    ks = (ks,) if isinstance(ks, int) else tuple(ks)
    if not ks or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in ks):
        raise ValueError(f"{name} is {ks}; whole numbers of 1 or more were wanted")
    return tuple(sorted(set(ks)))
