"""What evaluations take and refuse: finite rows and integer ids. Messages say what was given and what was wanted."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.data.classes import known_ids
from nearfar.given import as_tensor, at_least, ids_of
from nearfar.lengths import unit_rows
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
    """Class ids, one a row or in a column ``(n, 1)``, as 64-bit integers: never as floats, which merge ids above 2²⁴. NaN among
    whole numbers is unknown.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they are no integers, or not one a row.
    """
    ids = known_ids(ids_of(name, ids))
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {ids.dtype}; integer class ids were wanted: pass {name}.long()")
    if ids.shape != (rows,):
        raise ValueError(f"{name} has shape {tuple(ids.shape)}, but there are {rows} rows; one id a row was wanted")
    return ids.detach().to(torch.int64)


def as_scores(name: str, scores: Any) -> Float[Tensor, "n"]:
    """Numbers, one a row, such as scores of pairs.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If they are not one a row.
    """
    scores = as_tensor(name, scores, "numbers, one a row")
    if scores.is_complex():
        raise TypeError(f"{name} are {scores.dtype}: wanted real numbers, one a row")
    if scores.ndim != 1:
        raise ValueError(f"{name} have shape {tuple(scores.shape)}: one number a row was wanted, (n,)")
    return scores if scores.is_floating_point() else scores.double()


def as_grades(query: int, given: Any) -> dict[int, float]:
    """Relevant keys of a query and how relevant each is, 1 where that is not said.

    Raises:
        ValueError: If a key is no row's number, or a grade no number of 0 or more.
    """
    try:
        pairs = given.items() if isinstance(given, Mapping) else ((key, 1.0) for key in given)
        grades = {operator.index(key): float(grade) for key, grade in pairs}
    except (TypeError, ValueError):
        raise ValueError(f"query {query}: relevant is {given!r}; rows of keys, or row to grade, were wanted") from None
    return grades


def as_ks(name: str, ks: Any) -> tuple[int, ...]:
    """Cut-offs: whole numbers of 1 or more, ascending, each once; one alone, or several in a list or an array."""
    several = isinstance(ks, Iterable) and not isinstance(ks, str | bytes) and getattr(ks, "ndim", 1)
    try:
        found = {at_least(name, k, 1) for k in (ks if several else (ks,))}
    except (TypeError, ValueError):
        found = set()
    if not found:
        raise ValueError(f"{name} is {ks!r}; whole numbers of 1 or more were wanted")
    return tuple(sorted(found))


def lost_digits(rows: Float[Tensor, "n d"], metric: str) -> tuple[str, ...]:
    """A note where rows differ by so little that their type keeps few digits of it; else nothing.

    Rows that are apart by less than the root of the type's precision all have cosine 1 in it.

    Example:
        >>> lost_digits(torch.tensor([[1.0, 1.0], [1.0, 1.0004]]), "cosine")[0][:67]
        'rows differ by 0.0001 of their length: float32 keeps about 3 digits'
        >>> lost_digits(torch.eye(3), "cosine")
        ()
    """
    total, square, length = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device), 0.0, 0.0
    first = None
    for part in rows.split(16384):
        wide = part.double() if metric == "euclidean" else unit_rows(part.double())
        first = wide[0] if first is None else first  # sums of what is near 0 lose no digits
        total += (wide - first).sum(0)
        square += float((wide - first).square().sum())
        length += float(wide.square().sum())
    spread = (max(square - float(total.square().sum()) / len(rows), 0.0) / length) ** 0.5 if length else 0.0
    about = torch.finfo(rows.dtype)
    if not 16 * torch.finfo(torch.float64).eps < spread < 4 * about.eps**0.5:
        return ()
    digits = max(0, round(math.log10(spread / (about.eps / 2))))
    kind = str(rows.dtype).removeprefix("torch.")
    return (
        f"rows differ by {spread:.1g} of their length: {kind} keeps about {digits} digits of such differences, and the order of "
        "near neighbours rests on the last of them. Embed in float64, or see whether the embeddings have collapsed",
    )
