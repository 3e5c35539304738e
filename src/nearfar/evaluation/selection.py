"""The largest values of each row of a matrix that is seen tile by tile.

A full ``topk`` of every tile would cost several times the matrix product that made it. So a tile is first reduced to the
maxima of groups of its columns, one cheap pass; only groups whose maximum beats a row's worst kept value can hold one of
its best, and after the first tiles they are so few that a list of them is shorter than any table.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

GROUP = 16  # columns a group: the pass over the maxima is then small beside the pass over the tile
STRIP = 256  # rows of a tile that are looked at together: 2 MB of 2,048 columns stay in the cache
_LISTED = 3  # one group in so many: up to there a list of groups is the quicker
_WAITING = 4  # values a row that wait


class Largest:
    """Keeps the ``k`` largest values of each row and their columns, in no order; :meth:`settle` before they are read.

    What a tile adds waits in a list until that is worth the table that it becomes: a worst value that is a little old lets
    a few more in. Threads may add at the same time.
    """

    def __init__(self, rows: int, k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.lowest = -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min
        self.values = torch.full((rows, k), self.lowest, dtype=dtype, device=device)
        self.columns = torch.zeros(rows, k, dtype=torch.int64, device=device)
        self.worst = self.values.amin(1)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, values, columns
        self._lock = RLock()

    def see(self, tile: Shaped[Tensor, "rows width"], start: int) -> None:
        """Takes in columns ``start`` to ``start + width``."""
        k, (rows, width) = self.values.shape[1], tile.shape
        groups = width // GROUP
        if groups <= k or tile.device.type != "cpu":
            self._merge(slice(None), tile, torch.arange(start, start + width, device=tile.device).expand(rows, width))
            return
        grouped, highest = _maxima(tile)
        row, group = (highest > self.worst[:, None]).nonzero(as_tuple=True)
        if len(row) * _LISTED > highest.numel():
            self._see_best_groups(grouped, highest, start)
        elif len(row):
            values = grouped[row, :, group]
            hit, member = (values > self.worst[row, None]).nonzero(as_tuple=True)
            self.add(row[hit], values[hit, member], group[hit] + groups * member + start)
        if groups * GROUP < width:
            self.see(tile[:, groups * GROUP :], start + groups * GROUP)

    def _see_best_groups(self, grouped: Tensor, highest: Tensor, start: int) -> None:
        """All k best of a row lie in at most k groups."""
        rows, _, groups = grouped.shape
        chosen = highest.topk(self.values.shape[1], 1, sorted=False).indices
        values = grouped.gather(2, chosen[:, None].expand(rows, GROUP, -1))
        columns = chosen[:, None] + groups * torch.arange(GROUP)[:, None]
        self._merge(slice(None), values.flatten(1), columns.flatten(1) + start)

    def add(self, row: Int64[Tensor, " h"], values: Shaped[Tensor, " h"], columns: Int64[Tensor, " h"]) -> None:
        """Takes in single values."""
        with self._lock:
            self._waiting.append((row, values, columns))
            if sum(len(values) for _, values, _ in self._waiting) > _WAITING * len(self.values):
                self.settle()

    def settle(self) -> None:
        """Takes in what waits."""
        with self._lock:
            if not self._waiting:
                return
            row, values, columns = (torch.cat(parts) for parts in zip(*self._waiting))
            self._waiting.clear()
            row, order = row.sort()
            count = row.bincount(minlength=len(self.values))
            some = count.nonzero()[:, 0]
            place = torch.arange(len(row)) - (count.cumsum(0) - count)[row]  # within its row's
            line = ((count > 0).cumsum(0) - 1)[row]
            shape = len(some), int(count.max())
            table = values.new_full(shape, self.lowest).index_put_((line, place), values[order])
            self._merge(some, table, columns.new_zeros(shape).index_put_((line, place), columns[order]))

    def _merge(self, rows: slice | Tensor, values: Tensor, columns: Tensor) -> None:
        with self._lock:
            both = torch.cat([self.values[rows], values], 1)
            best, kept = both.topk(self.values.shape[1], 1, sorted=False)
            self.columns[rows] = torch.cat([self.columns[rows], columns], 1).gather(1, kept)
            self.values[rows], self.worst[rows] = best, best.amin(1)


def see_from_both_sides(
    rows: Largest, columns: Largest, strip: Callable[[slice], Shaped[Tensor, "_ width"]], row: int, column: int
) -> None:
    """A tile for its rows and, in the same pass, for its columns, on a CPU.

    Args:
        rows: Of the tile's rows.
        columns: Of its columns.
        strip: The values of some of its rows; used at once, while the cache holds them.
        row: The first row.
        column: The first column.
    """
    height, width, k = len(rows.values), len(columns.values), rows.values.shape[1]
    groups = width // GROUP
    if groups * GROUP == width and groups > k:
        mine, theirs = rows.worst, columns.worst
        weakest = theirs.view(GROUP, groups).amin(0)
        found = []
        for start in range(0, height, STRIP):
            here = slice(start, min(start + STRIP, height))
            grouped, highest = _maxima(strip(here))
            i, group = (highest > torch.minimum(mine[here, None], weakest)).nonzero(as_tuple=True)
            if not start and len(i) * _LISTED > highest.numel():
                break  # little was seen yet
            found.append((i + start, group, grouped[i, :, group]))
        else:
            i, group, values = (torch.cat(parts) for parts in zip(*found))
            j = group[:, None] + groups * torch.arange(GROUP)
            hit, member = (values > mine[i, None]).nonzero(as_tuple=True)
            rows.add(i[hit], values[hit, member], j[hit, member] + column)
            hit, member = (values > theirs[j]).nonzero(as_tuple=True)
            columns.add(j[hit, member], values[hit, member], i[hit] + row)
            return
    tile = strip(slice(0, height))
    rows.see(tile, column)
    columns.see(tile.T.contiguous(), row)


def _maxima(tile: Tensor) -> tuple[Tensor, Tensor]:
    """A tile's columns by group ``(rows, members, groups)``, g having columns g, g + groups, …; and the groups' maxima."""
    groups = tile.shape[1] // GROUP
    grouped = tile[:, : groups * GROUP].unflatten(1, (GROUP, groups))
    return grouped, grouped.amax(1)
