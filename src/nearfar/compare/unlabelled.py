"""Rows whose class nobody knows: a comparison can neither train nor test on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from nearfar.data.classes import known_rows, values_of


def labelled_rows(data: Any) -> tuple[Any, tuple[str, ...]]:
    """Arrays of inputs and labels without the rows whose label is missing (None, NaN, ``pandas.NA``), and what was left out.

    Args:
        data: ``(inputs, labels)``, or training and test rows in four; anything else stays as it is.
    """
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 4) or isinstance(data[1], Dataset):
        return data, ()
    kept, told = [*data], []
    for at, part in zip(range(0, len(data), 2), ("training ", "test ") if len(data) == 4 else ("",)):
        values = values_of(data[at + 1])
        known, rows = known_rows(data[at + 1])
        if values is not None and len(rows) < len(values):
            kept[at], kept[at + 1] = torch.as_tensor(np.asarray(data[at]))[rows], known
            told += [f"{part}row {row} has no label" for row in sorted({*range(len(values))}.difference(rows))]
    return tuple(kept), tuple(told)
