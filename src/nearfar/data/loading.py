"""Batches for ever, each a function of the seed and its number: a run that goes on at step k meets what it would have met.

Batches are read ahead by threads, not by processes: Pillow lets go of the interpreter's lock while it decodes and scales,
so threads do not wait for each other; nothing is pickled or copied between processes; there is nothing to fork or to
guard with ``if __name__ == "__main__"``; and no worker can die unseen.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import replace
from itertools import count, islice
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.data.corpus import Part, RawBatch, Stream, TensorPart
from nearfar.data.drawing import generator_of, ranks
from nearfar.data.parts import TablePart
from nearfar.data.samplers import PKSampler
from nearfar.given import at_least

# Seconds after which a batch that is still being read is an error: a dead network disk, not a slow one.
PATIENCE = 300.0
MOST_WORKERS = 8


class Loader:
    """Batches of a part of a corpus.

    The k-th batch is a function of ``(seed, k, rank, world)`` alone. The k-th batches of all ranks, one after another,
    are the k-th batch of one process with ``batch_size * world`` rows. Every epoch is shuffled anew; rows that do
    not fill a last batch are left out of that epoch.

    Args:
        part: Rows that are counted, or a stream.
        batch_size: Rows of a batch, per rank.
        seed: Of the order.
        rank: This process.
        world: Number of processes.
        classes_per_batch: If given, a batch (of all ranks together) holds so many classes, with equally many rows of each:
            see ``PKSampler``. It wants labels.
        workers: Batches that are read ahead, each by a thread. By default 0 for what is in memory, else one a core, up
            to 8, where more would only wait for the disk.
        pin: Put tensors into page-locked memory, from which a GPU copies while it computes. By default if there is one.
        prepare: Called with each ``RawBatch``, in the calling thread; what it returns is what comes.

    Raises:
        ValueError: If a batch cannot be filled, or classes are asked for where none are known.

    Example:
        >>> from nearfar.data.config import DataConfig
        >>> from nearfar.data.open import open_corpus
        >>> loader = Loader(open_corpus(DataConfig("digits")).train, 64, seed=0)
        >>> first, second = loader.batches(stop=2)
        >>> resumed = next(loader.batches(start=1))
        >>> first.columns["image"].shape, bool((resumed.rows == second.rows).all()), loader.steps_per_epoch
        (torch.Size([64, 1, 8, 8]), True, 18)
    """

    def __init__(
        self,
        part: Part | Stream,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        classes_per_batch: int | None = None,
        workers: int | None = None,
        pin: bool | None = None,
        prepare: Callable[[RawBatch], Any] | None = None,
    ) -> None:
        self.part, self.batch_size, self.seed = part, at_least("batch_size", batch_size, 1), at_least("seed", seed, 0)
        self.rank, self.world = ranks(rank, world)
        self.workers = default_workers(part) if workers is None else at_least("workers", workers, 0)
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.prepare = prepare
        self._cached: tuple[int, Int64[Tensor, "steps rows"]] | None = None
        self._sampler: PKSampler | None = None
        self._rows = self.batch_size * self.world
        if not isinstance(part, Part):
            if classes_per_batch is not None:
                raise ValueError("classes_per_batch wants rows that can be chosen: a stream gives them in order")
            self._steps = None
            return
        if classes_per_batch is not None:
            self._sampler = self._by_class(part, classes_per_batch)
            self._steps = len(self._sampler)
        else:
            self._steps = len(part) // self._rows
        if self._steps == 0:
            raise ValueError(
                f"a batch of {self.batch_size} rows on each of {self.world} rank(s) wants {self._rows}, and there are "
                f"{len(part)} to train on: pass batch_size={len(part) // self.world} or less"
            )

    @property
    def steps_per_epoch(self) -> int | None:
        """Batches after which every row has come (rounded down); None for a stream, which is not counted."""
        return self._steps

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """Batches ``start``, ``start + 1``, … up to ``stop``, which is left out; for ever without one.

        Raises:
            ValueError: If a row cannot be read; the message names it.
            RuntimeError: If reading a batch takes more than five minutes.
        """
        raw = islice(self._raw(at_least("start", start, 0)), None if stop is None else max(stop - start, 0))
        for batch in raw:
            if not len(batch):
                raise ValueError(
                    f"none of the {self.batch_size} rows of a batch could be read; the first: {batch.bad[0]}: mend them, or "
                    "pass a larger batch_size"
                )
            prepared = batch if self.prepare is None else self.prepare(batch)
            yield pinned(prepared) if self.pin else prepared

    def _raw(self, start: int) -> Iterator[RawBatch]:
        if not isinstance(self.part, Part):
            stream = self.part.batches(self.batch_size, seed=self.seed, rank=self.rank, world=self.world, start=start)
            # One thread at a time: a stream is read in order.
            yield from _ahead((lambda: next(stream) for _ in count()), min(self.workers, 1), self.pin)
            return
        part = self.part
        yield from _ahead((_fetching(part, self.rows(k)) for k in count(start)), self.workers, self.pin)

    def rows(self, step: int) -> list[int]:
        """Which rows this rank's batch of a step holds."""
        if self._steps is None:
            raise ValueError("the rows of a stream have no numbers")
        epoch, at = divmod(step, self._steps)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, self._plan(epoch)
        first = self.rank * self.batch_size
        return self._cached[1][at, first : first + self.batch_size].tolist()

    def _plan(self, epoch: int) -> Int64[Tensor, "steps rows"]:
        """Rows of each batch of an epoch, all ranks together."""
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)
            return torch.tensor(list(self._sampler))
        assert isinstance(self.part, Part)
        order = torch.randperm(len(self.part), generator=generator_of(self.seed, epoch))
        return order[: self._rows * (self._steps or 0)].view(-1, self._rows)

    def _by_class(self, part: Part, classes: int) -> PKSampler:
        if part.labels is None:
            raise ValueError("classes_per_batch wants labels, and the data have none: leave it out")
        each, rest = divmod(self._rows, classes)
        if rest or each < 2:
            raise ValueError(
                f"{classes} classes a batch do not divide {self._rows} rows into equal parts of two or more: pass a "
                "batch size that is a multiple of twice as many, or fewer classes"
            )
        return PKSampler(part.labels, p=classes, k=each, seed=self.seed, rank=0, world_size=1)


def default_workers(part: Part | Stream) -> int:
    """How many batches to read ahead: none where reading is only indexing."""
    if isinstance(part, TensorPart):
        return 0
    if isinstance(part, TablePart) and not any(field.column.kind == "image" for field in part.fields):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def _fetching(part: Part, rows: list[int]) -> Callable[[], RawBatch]:
    return lambda: part.fetch(rows)


def _ahead(tasks: Iterator[Callable[[], RawBatch]], ahead: int, pin: bool) -> Iterator[RawBatch]:
    """The results of tasks in order, with so many of them under way in threads."""
    if ahead == 0:
        for task in tasks:
            yield task()
        return
    under_way = deque(_start(task, pin) for task in islice(tasks, ahead))
    while under_way:
        try:
            done = under_way.popleft().result(PATIENCE)
        except NotYet as error:
            raise RuntimeError(
                f"a batch was still being read after {PATIENCE:.0f} seconds: look at the disk or the network behind the data"
            ) from error
        except StopIteration:
            return
        under_way.extend(_start(task, pin) for task in islice(tasks, 1))
        yield done


def _start(task: Callable[[], RawBatch], pin: bool) -> Future[RawBatch]:
    """Runs a task in a thread of its own, which keeps no interpreter from ending."""
    future: Future[RawBatch] = Future()

    def run() -> None:
        torch.set_num_threads(1)  # of this thread alone: training wants the cores
        try:
            future.set_result(pinned(task()) if pin else task())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="nearfar-loader").start()
    return future


def pinned(value: Any) -> Any:
    """The same with its tensors in page-locked memory: a tensor, a batch, or mappings and sequences of them."""
    if isinstance(value, Tensor):
        return value if value.device.type != "cpu" or value.is_pinned() else value.pin_memory()
    if isinstance(value, RawBatch):
        ids = {name: pinned(getattr(value, name)) for name in ("rows", "labels", "groups", "similar", "same")}
        return replace(value, columns=pinned(value.columns), **ids)
    if isinstance(value, Mapping):
        return {key: pinned(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(inner, (Tensor, Mapping)) for inner in value):
        return type(value)(pinned(inner) for inner in value)
    return value
