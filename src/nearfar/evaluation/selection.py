"""The largest values of each row of a matrix that is seen tile by tile.

A full ``topk`` of every tile would cost several times the matrix product that made it. So a tile is first reduced to the
maxima of groups of its columns, one cheap pass; only groups whose maximum beats a row's worst kept value can hold one of
its best, and there are few of them after the first tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 16  # columns a group: the pass over the maxima is then small beside the pass over the tile


class Largest:
    """Keeps the ``k`` largest values of each row and their columns, in no order."""

    def __init__(self, rows: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.lowest = -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min
        self.values = torch.full((rows, k), self.lowest, dtype=dtype, device=device)
        self.columns = torch.zeros(rows, k, dtype=torch.int64, device=device)
        self._tiles = 0

    def see(self, tile: Tensor, start: int) -> None:
        """Takes in columns ``start`` to ``start + width``."""
        k, (rows, width) = self.values.shape[1], tile.shape
        groups = width // GROUP
        if groups <= k or tile.device.type != "cpu":
            self._merge(tile, torch.arange(start, start + width, device=tile.device).expand(rows, width))
            return
        grouped = tile[:, : groups * GROUP].view(rows, GROUP, groups)  # group g: columns g, g + groups, …
        highest = grouped.amax(1)
        # as many groups of each row as the row with the most needs; all k best lie in at most k groups
        wanted = k
        if self._tiles:
            wanted = min(k, int((highest > self.values.amin(1, keepdim=True)).sum(1).max()))
        self._tiles += 1
        if wanted:
            chosen = highest.topk(wanted, 1, sorted=False).indices
            columns = (chosen[:, None] + groups * torch.arange(GROUP)[:, None]).flatten(1)
            self._merge(tile.gather(1, columns), columns + start)
        if groups * GROUP < width:
            self.see(tile[:, groups * GROUP :], start + groups * GROUP)

    def _merge(self, values: Tensor, columns: Tensor) -> None:
        both = torch.cat([self.values, values], 1)
        self.values, kept = both.topk(self.values.shape[1], 1, sorted=False)
        self.columns = torch.cat([self.columns, columns], 1).gather(1, kept)
