"""What evaluations take and refuse: finite rows and integer ids. Messages say what was given and what was wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.given import as_tensor, at_least, ids_of
from nearfar.losses.arguments import as_matrix, check_rows


def as_tensors(value: Any) -> Any:
    """An array of NumPy's as a tensor, on the same memory where torch can share it, in a tuple too; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(as_tensors(one) for one in value)
    return (
        as_tensor("an array", value, "numbers")
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
        else value
    )


@runtime_checkable
class Series(Protocol):
    """A column of a data frame, such as pandas'."""

    def to_numpy(self) -> np.ndarray:
        """Its values."""
        ...


Classes = Tensor | np.ndarray | Sequence[str] | Sequence[int] | Series
"""Class ids or names, one a row."""


def number_classes(*given: Any) -> list[Any]:
    """Classes that have names as ids, in the order of the names of all that is given; ids as they are.

    Args:
        given: Texts in a sequence, an array or a column of a data frame; integers in the same, or a tensor; None.

    Raises:
        ValueError: If names come together with ids, which would not be told apart.

    Example:
        >>> number_classes(["cat", "ant"], np.array(["bee", "cat"]), None)
        [tensor([2, 0]), tensor([1, 2]), None]
    """
    sides = [one if one is None or isinstance(one, Tensor) else _array(one) for one in given]
    named = [isinstance(side, np.ndarray) and side.dtype.kind in "OUST" for side in sides]
    if not any(named):
        return [as_tensors(side) for side in sides]
    if any(side is not None and not name for side, name in zip(sides, named)):
        raise ValueError("some labels are names and some are numbers: pass names for all, or ids for all")
    lists = [
        None if side is None else [None if _missing(name) else str(name) for name in side.tolist()] for side in sides
    ]
    names = sorted({name for side in lists for name in side or () if name is not None})
    ids: dict[str | None, int] = {name: at for at, name in enumerate(names)} | {None: -1}
    return [None if side is None else torch.tensor([ids[name] for name in side], dtype=torch.int64) for side in lists]


def _array(given: Any) -> Any:
    """A sequence or a column of a data frame as an array; what is neither as it is, to be refused by its name."""
    if isinstance(given, Series):
        return np.array(given.to_numpy())  # a data frame's own cannot be written to, which torch warns of
    return np.asarray(given) if isinstance(given, list | tuple) else given


def _missing(name: Any) -> bool:
    return name is None or name != name  # NaN, as data frames have it


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
    """Class ids, one a row or in a column ``(n, 1)``, as 64-bit integers: never as floats, which merge ids above 2²⁴.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they are no integers, or not one a row.
    """
    ids = ids_of(name, ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {ids.dtype}; integer class ids were wanted: pass {name}.long()")
    if ids.shape != (rows,):
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but there are {rows} rows; one id a row was wanted")
    return ids.detach().to(torch.int64)


def as_ks(name: str, ks: Any) -> tuple[int, ...]:
    """Cut-offs: whole numbers of 1 or more, ascending, each once; one alone, or several in a list or an array."""
    several = isinstance(ks, Iterable) and not isinstance(ks, str) and getattr(ks, "ndim", 1)
    try:
        found = {at_least(name, k, 1) for k in (ks if several else (ks,))}
    except (TypeError, ValueError):
        found = set()
    if not found:
        raise ValueError(f"{name} is {ks!r}; whole numbers of 1 or more were wanted")
    return tuple(sorted(found))
