"""Memory that a loop over tiles takes once."""

from __future__ import annotations

import torch
from torch import Tensor


class Buffer:
    """One tile's worth of memory, used again for every tile."""

    def __init__(self, like: Tensor, size: int, dtype: torch.dtype | None = None) -> None:
        self._memory = like.new_empty(size, dtype=dtype or like.dtype)

    def __call__(self, b: int, c: int) -> Tensor:
        """The first ``b·c`` numbers of it, as a matrix."""
        return self._memory[: b * c].view(b, c)
