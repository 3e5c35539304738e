"""The two matrix products of a tile: its scores, and its gradient brought to the rows. In full precision, or in bfloat16.

bfloat16 holds the rows, the scores as the product leaves them and the gradient of the scores, each rounded to 8 bits. All between
is float32: exponentials, sums, gradients of the rows. On processors with bfloat16 instructions (AMX, AVX-512) such products are
four to seven times as fast.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.scores.buffers import Buffer
from nearfar.scores.matmul import add_mm, mm

_BLOCK = 2048
"""Keys whose gradient is added at a time: what a strip of whole rows would write and read again stays in the cache."""


class Products:
    """Products of tiles of rows ``x`` and ``y``.

    Args:
        x: ``(n, d)``.
        y: ``(m, d)``; may be ``x``.
        size: Scores of the largest tile.
        narrow: In bfloat16.
    """

    def __init__(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], size: int, narrow: bool) -> None:
        self.x, self.y, self.narrow = x, y, narrow
        self._tile = Buffer(x, size)
        self._strip, self._start, self._factor = x, -1, 0.0
        if narrow:
            self.x = x.bfloat16()
            self.y = self.x if y is x else y.bfloat16()
            self._half = Buffer(x, size, torch.bfloat16)

    def scores(self, i: slice, j: slice, factor: float = 1.0) -> Float[Tensor, "b c"]:
        """``factor · ⟨x_i, y_j⟩``, in memory that the next tile takes again."""
        shape = i.stop - i.start, j.stop - j.start
        out = self._tile(*shape)
        if self.narrow:
            torch.mm(self.x[i], self.y[j].T, out=self._half(*shape))
            out.copy_(self._half(*shape))
            return out if factor == 1.0 else out.mul_(factor)
        if factor != 1.0 and (i.start != self._start or factor != self._factor):
            self._strip, self._start, self._factor = self.x[i] * factor, i.start, factor
        return mm(self.x[i] if factor == 1.0 else self._strip, self.y[j].T, out)

    def pull(self, tile: Tensor, i: slice, j: slice, dx: Tensor | None, dy: Tensor | None) -> None:
        """Add ``tile · y_j`` to ``dx`` and ``tileᵀ · x_i`` to ``dy`` (their rows ``i`` and ``j``; ``None``: not wanted)."""
        tile = self._half(*tile.shape).copy_(tile) if self.narrow else tile
        if dx is not None:
            self._add(dx, tile, self.y[j])
        if dy is not None:
            for part, columns in zip(dy.split(_BLOCK), tile.split(_BLOCK, 1)):
                self._add(part, columns.T, self.x[i])

    def _add(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        if self.narrow:
            total.add_(torch.mm(a, b))
        else:
            add_mm(total, a, b)
