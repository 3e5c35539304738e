"""In which floating-point type networks are built: float32, whatever ``torch.set_default_dtype`` was told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def building(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Parameters that are made meanwhile have this type; afterwards torch's default is what it was.

    Example:
        >>> with building(torch.float64):
        ...     layer = nn.Linear(2, 2)
        >>> layer.weight.dtype, nn.Linear(2, 2).weight.dtype
        (torch.float64, torch.float32)
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def dtype_of(module: nn.Module) -> torch.dtype:
    """The type of a network's parameters, which its inputs are to have; float32 where it has none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
