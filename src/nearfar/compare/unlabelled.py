"""Rows whose class nobody knows: a comparison can neither train nor test on them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from nearfar.data.classes import known_rows, values_of


def labelled_rows(inputs: Float[Tensor, "n ..."], labels: Any, part: str = "") -> tuple[Tensor, Any, list[str]]:
    """Rows with their labels, without those whose label is missing (None, NaN, ``pandas.NA``), and what was left out.

    Args:
        inputs: The rows.
        labels: One a row.
        part: What to call them in words.

    Example:
        >>> import torch
        >>> labelled_rows(torch.eye(2), ["cat", None])
        (tensor([[1., 0.]]), ['cat'], ['row 1 has no label'])
    """
    values = values_of(labels)
    known, rows = known_rows(labels)
    if values is None or len(values) != len(inputs) or len(rows) == len(values):
        return inputs, known, []
    return (
        inputs[rows],
        known,
        [f"{part}row {row} has no label" for row in sorted({*range(len(values))}.difference(rows))],
    )
