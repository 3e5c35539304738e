"""What callers may give where labels, ids, arrays or whole numbers are wanted: read in one place, or refused with the remedy.

Labels are integers ``(n,)`` to the end. A column ``(n, 1)`` of integers is the same labels; a matrix of booleans or of 0 and 1 is
a set of classes a row; a matrix of floats is soft labels. Any other matrix of integers is refused: it might mean several things.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch holds and hardly reckons with."""
UNKNOWN = "−1 stands for one that is not known, column.fillna(-1).astype(int) in a data frame"


def as_tensor(what: str, values: Any, wanted: str, device: torch.device | None = None) -> Tensor:
    """Numbers as a tensor: from a tensor, an array (a reversed or a read-only one too), a data frame's column, or a list.

    Args:
        what: Their name in messages.
        values: What was given.
        wanted: What was wanted, for messages.
        device: Where they are to lie; None: where they are.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If they are integers of 2⁶³ or more, which torch cannot tell apart.

    Example:
        >>> as_tensor("ids", np.arange(3)[::-1], "integers")
        tensor([2, 1, 0])
    """
    if isinstance(values, Tensor):
        if values.is_nested or values.device.type == "meta":
            kind = "a nested tensor" if values.is_nested else "on the meta device, which holds no numbers"
            raise TypeError(f"{what} are {kind}: wanted {wanted}")
        values = _signed(what, values) if values.dtype in UNSIGNED else values
        return values if device is None else values.to(device)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise TypeError(f"{what} are an array with masked entries, which torch does not know: fill them, .filled(…)")
    try:
        array = array_of(values)
        if array.dtype.kind == "O":  # whole numbers in a column of objects
            array = np.asarray(array.tolist())
        if not array.size and isinstance(values, list | tuple):
            array = array.astype(np.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what} is a {type(values).__name__} that makes no array of numbers: wanted {wanted}"
        ) from error
    if array.dtype.kind not in "biufc":
        raise TypeError(_no_numbers(what, values, array, wanted))
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size == 8 and array.size and int(array.max()) >= 2**63:
        raise _too_large(what, int(array.max()))
    if (kind in "iu" and size > 1) or (kind == "f" and size > 8):  # torch knows not all of NumPy's
        array = array.astype(np.int64 if kind in "iu" else np.float64, copy=False)
    if not array.dtype.isnative or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="))  # a copy: torch cannot share such memory
    return torch.as_tensor(array, device=device)


def array_of(values: Any) -> np.ndarray:
    """Values as an array, also from a column of a data frame or of Arrow's, where nulls become NaN or None."""
    if hasattr(values, "to_pylist"):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    return np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)


def _signed(what: str, values: Tensor) -> Tensor:
    """Unsigned integers as signed ones of 64 bits, which torch reckons with."""
    if values.dtype == torch.uint64 and not torch.compiler.is_compiling():
        wrapped = values.view(torch.int64)
        if bool((wrapped < 0).any()):
            raise _too_large(what, 2**64 + int(wrapped[wrapped < 0].max()))
    return values.to(torch.int64)


def _too_large(what: str, value: int) -> ValueError:
    return ValueError(
        f"{what} hold {value}, and integers of 2**63 or more cannot be told apart here: number them once for the whole data set, "
        "np.unique(ids, return_inverse=True)[1]"
    )


def _no_numbers(what: str, values: Any, array: np.ndarray, wanted: str) -> str:
    if not array.ndim:
        shown = repr(values) if isinstance(values, str) else f"a {type(values).__name__}"
        return f"{what} is {shown}: wanted {wanted}"
    entries = array.reshape(-1).tolist()
    odd = next((entry for entry in entries if not isinstance(entry, int | float)), entries[0])
    odd = next((entry for entry in entries if isinstance(entry, str)), odd)
    remedy = ""
    if isinstance(odd, str):
        remedy = "; number names once for the whole data set, np.unique(names, return_inverse=True)[1]"
    elif odd is None or type(odd).__name__ == "NAType":
        ids = "integer" in wanted or "class ids" in wanted
        remedy = f"; {UNKNOWN}" if ids else "; leave out the rows that have none"
    return f"{what} are {array.dtype}, such as {odd!r}: wanted {wanted}{remedy}"


def ids_of(what: str, ids: Any, device: torch.device | None = None) -> Shaped[Tensor, "*n"]:
    """Class ids, or other integers one a row, as a tensor: a column ``(n, 1)`` of integers as ``(n,)``. The caller checks the rest.

    Example:
        >>> ids_of("labels", [[3], [1]])
        tensor([3, 1])
    """
    ids = as_tensor(what, ids, "integer class ids", device)
    if ids.layout != torch.strided:
        raise TypeError(f"{what} are {ids.layout}: wanted a dense tensor, {what}.to_dense()")
    return flat(ids)


def as_labels(labels: Any, device: torch.device | None = None) -> Shaped[Tensor, "n *classes"]:
    """Labels of a relation: class ids ``(n,)``, or label sets or soft labels ``(n, classes)``.

    Args:
        labels: In a tensor, an array, a data frame's column or a list. Ids are integers, or booleans, which are two classes; a
            column ``(n, 1)`` of integers comes back as ids ``(n,)``.
        device: Where they are to lie; None: where they are.

    Raises:
        TypeError: For names, and for floats ``(n,)``, which collide above 2²⁴.
        ValueError: For other shapes, integers other than 0 and 1 in a matrix, and soft labels with NaN or entries below 0.
    """
    labels = ids_of("labels", labels, device)
    if labels.ndim == 1:
        if labels.is_floating_point() and bool(labels.isnan().any()):
            raise TypeError(
                f"labels hold NaN, or nothing, in {int(labels.isnan().sum())} rows: wanted integers; {UNKNOWN}"
            )
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels are {labels.dtype}, integers were wanted: pass labels.long()")
        return labels
    if labels.ndim != 2 or labels.is_complex():
        raise ValueError(f"labels have shape {tuple(labels.shape)}; (n,) ids or (n, classes) weights were wanted")
    if labels.is_floating_point() and labels.shape[1] == 1:
        raise ValueError(
            f"labels are a column {tuple(labels.shape)} of {labels.dtype}, neither class ids nor weights of several classes: "
            "pass labels.long() if they are ids, labels > 0 if they mark the rows of one class"
        )
    if torch.compiler.is_compiling() or labels.dtype == torch.bool:
        return labels
    if labels.is_floating_point():
        if not bool((labels >= 0).all()):
            raise ValueError("soft labels have an entry that is NaN or below 0: 0 says not this class")
    elif not are_sets(labels):
        raise ValueError(
            f"labels are integers of shape {tuple(labels.shape)} from {int(labels.min())} to {int(labels.max())}, some below 0 or "
            "above 1: a matrix of integers marks the classes of each row by 0 and 1. Pass class ids as (n,); several ids a row "
            "as torch.nn.functional.one_hot(labels).amax(1); counts as labels > 0, or as weights, labels.float(); the "
            "labels of tokens or places as labels.flatten() beside rows that are flattened alike"
        )
    return labels


def flat(column: Shaped[Tensor, "*given"]) -> Shaped[Tensor, "*ids"]:
    """A column ``(n, 1)`` of integers as ``(n,)``; anything else as it is."""
    return column[:, 0] if column.ndim == 2 and column.shape[1] == 1 and is_integer(column) else column


def is_integer(values: Tensor) -> bool:
    """Whether the type is one of whole numbers, which booleans are not."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def are_sets(labels: Shaped[Tensor, "n classes"]) -> bool:
    """Whether each row is a set of classes, by 0s and 1s."""
    return labels.dtype == torch.bool or bool(((labels == 0) | (labels == 1)).all())


def at_least(what: str, value: Any, least: int, wanted: str | None = None) -> int:
    """The value, if it is a whole number of at least ``least``: an ``int``, NumPy's, or a tensor of one integer.

    Raises:
        ValueError: If it is not.

    Example:
        >>> at_least("k", np.int64(3), 1)
        3
    """
    wanted = wanted or f"a whole number of at least {least}"
    number = whole(what, value, wanted)
    if number < least:
        raise ValueError(f"{what} is {number}: wanted {wanted}")
    return number


def whole(what: str, value: Any, wanted: str = "a whole number") -> int:
    """The same of any size."""
    if type(value) is int:  # the commonest
        return value
    try:
        if type(value) is not bool and getattr(value, "dtype", None) != torch.bool:  # NumPy's own have no index
            return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    shown = repr(value) if isinstance(value, str) else value
    raise ValueError(f"{what} is {shown}: wanted {wanted}")
