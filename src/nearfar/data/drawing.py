"""What samplers and pair datasets share: class ids in order, rows by class, draws that depend on seed and epoch alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from nearfar.data.classes import Classes, ids_with_unknown
from nearfar.given import at_least, ids_of, is_integer


def generator_of(*entropy: int) -> torch.Generator:
    """A generator that any of the numbers, such as seed and epoch, sets on a course of its own.

    Raises:
        ValueError: If a number is negative.
    """
    if min(entropy) < 0:
        raise ValueError(f"seed and epoch are {entropy}: wanted 0 or more")
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def class_ids_of(labels: Classes) -> Int64[Tensor, "n"]:
    """Labels as integers ``(n,)``; a column ``(n, 1)`` will do. A missing one, as data frames have it, is −1: unknown.

    Raises:
        TypeError: If they are not integers.
        ValueError: If they are not one a row, or there are none.
    """
    ids = ids_of("labels", ids_with_unknown(labels), torch.device("cpu"))
    if not is_integer(ids):
        raise TypeError(f"labels are {ids.dtype}: wanted integer class ids, labels.long() if they hold whole numbers")
    if ids.ndim != 1 or not len(ids):
        raise ValueError(f"labels have shape {tuple(ids.shape)}: wanted one class id a row, (n,)")
    return ids.long()


class ByClass:
    """Rows sorted by class; rows with a negative label (unknown) are left out.

    Args:
        labels: Class ids ``(n,)``, any integers.

    Raises:
        TypeError: If they are not integers.
        ValueError: If none is known.

    Attributes:
        rows: All known rows, class after class.
        counts: How many rows each class has.
        starts: Where each class begins in ``rows``.
        unknown: How many rows were left out.
    """

    def __init__(self, labels: Classes) -> None:
        ids = class_ids_of(labels)
        self.unknown = int((ids < 0).sum())
        if self.unknown == len(ids):
            raise ValueError(f"all {len(ids)} labels are negative, which means unknown: wanted class ids from 0 on")
        self.rows = torch.argsort(ids, stable=True)[self.unknown :]
        self.classes, self.counts = torch.unique_consecutive(ids[self.rows], return_counts=True)
        self.starts = self.counts.cumsum(0) - self.counts

        self._class = torch.repeat_interleave(torch.arange(len(self)), self.counts)  # of each place in rows

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def paired(self) -> Bool[Tensor, "known"]:
        """Which rows have another of their class."""
        return self.counts[self._class] > 1

    def mates(self, generator: torch.Generator) -> Int64[Tensor, "known"]:
        """For each row the place, in ``rows``, of another of its class; its own where there is none."""
        start, count = self.starts[self._class], self.counts[self._class]
        drawn = start + _below(count - 1, generator)
        return drawn + (drawn >= torch.arange(len(drawn))) * (count > 1)

    def strangers(self, generator: torch.Generator) -> Int64[Tensor, "known"]:
        """For each row the place, in ``rows``, of one of another class; meaningless where there is one class only."""
        start, count = self.starts[self._class], self.counts[self._class]
        drawn = _below(len(self.rows) - count, generator)
        return (drawn + (drawn >= start) * count).clamp(max=len(self.rows) - 1)

    def of(self, c: int) -> Int64[Tensor, "count"]:
        """The rows of the ``c``-th class."""
        start = int(self.starts[c])
        return self.rows[start : start + int(self.counts[c])]


def _below(bounds: Int64[Tensor, "n"], generator: torch.Generator) -> Int64[Tensor, "n"]:
    """A number from 0 to each bound, the bound excluded; 0 for a bound of 0."""
    return (torch.rand(len(bounds), generator=generator, dtype=torch.float64) * bounds).long()


def draw(rows: Int64[Tensor, "n"], count: int, generator: torch.Generator) -> Int64[Tensor, "count"]:
    """``count`` of the rows: each once before any comes twice."""
    rounds = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-count // len(rows)))]
    return torch.cat([rows[:0], *rounds])[:count]


def ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """The rank and the number of ranks: those given, else those of ``torch.distributed``, else one alone.

    Raises:
        ValueError: If only one of the two is given, or the rank is not below the number of ranks.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank is {rank} and world_size {world_size}: pass both, or neither")
    if rank is None or world_size is None:
        distributed: Any = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    rank, world_size = at_least("rank", rank, 0), at_least("world_size", world_size, 1)
    if rank >= world_size:
        raise ValueError(f"rank is {rank} of {world_size}: wanted 0 to {world_size - 1}")
    return rank, world_size
