"""Samplers that give a batch what a contrastive loss needs: several items of each of several classes.

What they draw is a function of the seed and the epoch alone: call ``set_epoch`` before each epoch, or every epoch is the
same. Under ``torch.distributed`` each rank takes its own part of one plan, of the same length on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler

from nearfar.data.classes import Classes
from nearfar.data.drawing import ByClass, draw, generator_of, ranks
from nearfar.given import at_least

Labels = Classes


class _Epochs:
    """Seed, epoch and ranks. Ranks are asked for at use, since samplers may be built before the process group is."""

    def __init__(self, seed: int, rank: int | None, world_size: int | None) -> None:
        self.seed, self.epoch = at_least("seed", seed, 0), 0
        self._given = rank, world_size
        ranks(rank, world_size)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration that of this epoch."""
        self.epoch = at_least("epoch", epoch, 0)

    @property
    def ranks(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        return ranks(*self._given)

    def _padded(self, count: int) -> int:
        """The next multiple of the number of ranks."""
        world_size = self.ranks[1]
        return -(-count // world_size) * world_size


class PKSampler(_Epochs, Sampler[list[int]]):
    """Batches of ``p`` classes × ``k`` items that cover the whole set every epoch.

    Each class's rows are shuffled and cut into groups of ``k``; a batch takes one group of each of ``p`` different
    classes, drawn in proportion to the groups they have left, so that all of them end together. A group that
    its class cannot fill takes rows again, and so do classes that must accompany a larger one to the end; ``repeats``
    counts both.

    Pass it as ``DataLoader(dataset, batch_sampler=PKSampler(labels, p=8, k=4))`` (Lightning under DDP:
    ``use_distributed_sampler=False``, since it is distributed already).

    Args:
        labels: Class ids ``(n,)``, integers; rows with a negative one (unknown) are left out.
        p: Classes a batch.
        k: Items of each class; at least 2, or nothing belongs together.
        seed: Of all draws.
        rank: This process among ``world_size``; by default as ``torch.distributed`` says, once it is initialised.
        world_size: Number of processes. Each takes every ``world_size``-th batch of one plan.

    Raises:
        ValueError: If there are fewer than ``p`` classes, or a number is out of range.

    Reference: Hermans et al. 2017, arXiv:1703.07737, section 2 (PK batches).

    Example:
        >>> sampler = PKSampler([0, 0, 0, 1, 1, 2, 2, 2], p=2, k=2)
        >>> batches = list(sampler)
        >>> len(batches) == len(sampler), sorted(set(sum(batches, []))), sampler.repeats
        (True, [0, 1, 2, 3, 4, 5, 6, 7], 4)
    """

    def __init__(
        self,
        labels: Labels,
        p: int,
        k: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.p, self.k = at_least("p", p, 1), at_least("k", k, 2)
        self._by_class = ByClass(labels)
        if len(self._by_class) < self.p:
            have = len(self._by_class)
            raise ValueError(
                f"p={self.p} classes a batch were asked for, but the labels hold {have}: pass p={have} or fewer"
            )
        self._groups = -(-self._by_class.counts // self.k)

    @property
    def batches(self) -> int:
        """Batches an epoch, all ranks together."""
        return self._padded(max(-(-int(self._groups.sum()) // self.p), int(self._groups.max())))

    @property
    def repeats(self) -> int:
        """Rows an epoch that were there before, all ranks together."""
        return self.batches * self.p * self.k - len(self._by_class.rows)

    @property
    def short_classes(self) -> int:
        """Classes with fewer than ``k`` rows."""
        return int((self._by_class.counts < self.k).sum())

    def __len__(self) -> int:
        """Batches an epoch on this rank."""
        return self.batches // self.ranks[1]

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches; the rows of a class lie together."""
        rank, world_size = self.ranks
        generator = generator_of(self.seed, self.epoch)
        turns = self._turns(generator)
        counts = turns.flatten().bincount(minlength=len(self._groups)).tolist()
        groups = [self._cut(c, count, generator) for c, count in enumerate(counts)]
        for batch, classes in enumerate(turns.tolist()):
            rows = torch.cat([groups[c].pop() for c in classes])
            if batch % world_size == rank:
                yield rows.tolist()

    def _turns(self, generator: torch.Generator) -> Int64[Tensor, "batches p"]:
        """Which classes make each batch."""
        left, batches = self._groups.clone(), self.batches
        spare = batches * self.p - int(left.sum())
        while spare:  # give the slots that remain to the classes in turn; none may have more than one a batch
            free = (left < batches).nonzero().squeeze(1)
            chosen = draw(free, min(spare, len(free)), generator)
            left[chosen] += 1
            spare -= len(chosen)
        turns = torch.empty(batches, self.p, dtype=torch.int64)
        for batch in range(batches):
            # The largest p of u^(1/left) are a weighted draw without return (Efraimidis & Spirakis 2006). A class with
            # a group for each batch that is left must come now; at most p are so, because the slots left are p a batch.
            keys = torch.rand(len(left), generator=generator, dtype=torch.float64).log() / left  # −∞ where none is left
            keys[left == batches - batch] = 1.0
            turns[batch] = keys.topk(self.p).indices
            left[turns[batch]] -= 1
        return turns

    def _cut(self, c: int, count: int, generator: torch.Generator) -> list[Int64[Tensor, "k"]]:
        """``count`` groups of a class, which hold all its rows; rows come twice in a group only where they must."""
        rows = draw(self._by_class.of(c), int(self._by_class.counts[c]), generator)
        groups = list(rows.split(self.k))
        if missing := self.k - len(groups[-1]):
            others = rows[: len(rows) - len(groups[-1])]
            groups[-1] = torch.cat([groups[-1], draw(others if len(others) else rows, missing, generator)])
        groups += [draw(rows, self.k, generator) for _ in range(count - len(groups))]
        return [groups[i] for i in torch.randperm(count, generator=generator).tolist()]


class ClassBalancedSampler(_Epochs, Sampler[int]):
    """Rows such that every class comes equally often, to within one.

    An epoch has as many rows as the set (rounded up to the number of ranks): small classes come again, and large ones
    are not covered in one epoch. For coverage use ``PKSampler``.

    Args:
        labels: Class ids ``(n,)``, integers; rows with a negative one (unknown) are left out.
        seed: Of all draws.
        rank: See ``PKSampler``.
        world_size: See ``PKSampler``.

    Example:
        >>> rows = list(ClassBalancedSampler([0, 0, 0, 0, 0, 1]))
        >>> rows.count(5), len(rows)
        (3, 6)
    """

    def __init__(
        self, labels: Labels, *, seed: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        super().__init__(seed, rank, world_size)
        self._by_class = ByClass(labels)

    def __len__(self) -> int:
        """Rows an epoch on this rank."""
        return self._padded(len(self._by_class.rows)) // self.ranks[1]

    def __iter__(self) -> Iterator[int]:
        """This rank's rows."""
        rank, world_size = self.ranks
        generator, total = generator_of(self.seed, self.epoch), self._padded(len(self._by_class.rows))
        turns = draw(torch.arange(len(self._by_class)), total, generator)  # which class comes when
        streams = [
            iter(draw(self._by_class.of(c), int(count), generator).tolist())
            for c, count in enumerate(turns.bincount(minlength=len(self._by_class)))
        ]
        rows = [next(streams[c]) for c in turns.tolist()]
        return iter(rows[rank::world_size])


class EpisodeSampler(_Epochs, Sampler[list[int]]):
    """Few-shot episodes as batches: ``ways`` classes with ``shots`` support and ``queries`` query rows each.

    A batch holds the support rows first, class after class, and then the query rows in the same order of classes;
    ``split`` takes it apart. No row comes twice in an episode.

    Args:
        labels: Class ids ``(n,)``, integers; rows with a negative one (unknown) are left out.
        ways: Classes an episode (N-way).
        shots: Support rows a class (K-shot).
        queries: Query rows a class.
        episodes: Episodes an epoch, all ranks together, rounded up to the number of ranks.
        seed: Of all draws.
        rank: See ``PKSampler``.
        world_size: See ``PKSampler``.

    Raises:
        ValueError: If fewer than ``ways`` classes have ``shots + queries`` rows.

    Reference: Vinyals et al. 2016, arXiv:1606.04080, section 2.2.

    Example:
        >>> sampler = EpisodeSampler([0, 0, 0, 1, 1, 1, 2, 2, 2], ways=2, shots=1, queries=2, episodes=5)
        >>> len(sampler), len(next(iter(sampler)))
        (5, 6)
        >>> support, query = sampler.split(torch.tensor(next(iter(sampler))))
        >>> support.shape, query.shape
        (torch.Size([2, 1]), torch.Size([2, 2]))
    """

    def __init__(
        self,
        labels: Labels,
        ways: int,
        shots: int,
        queries: int,
        episodes: int,
        *,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(seed, rank, world_size)
        self.ways, self.shots = at_least("ways", ways, 2), at_least("shots", shots, 1)
        self.queries, self.episodes = at_least("queries", queries, 0), at_least("episodes", episodes, 1)
        self._by_class = ByClass(labels)
        rows = self.shots + self.queries
        self._classes = (self._by_class.counts >= rows).nonzero().squeeze(1)
        if len(self._classes) < self.ways:
            raise ValueError(
                f"{self.ways} ways with {self.shots} shots and {self.queries} queries were asked for, but {len(self._classes)} of "
                f"{len(self._by_class)} classes have {rows} rows: ask for fewer ways, shots or queries"
            )

    def __len__(self) -> int:
        """Episodes an epoch on this rank."""
        return self._padded(self.episodes) // self.ranks[1]

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's episodes; each depends on its own number, and not on those before."""
        rank, world_size = self.ranks
        for episode in range(rank, self._padded(self.episodes), world_size):
            generator = generator_of(self.seed, self.epoch, episode)
            classes = draw(self._classes, self.ways, generator).tolist()
            rows = torch.stack([draw(self._by_class.of(c), self.shots + self.queries, generator) for c in classes])
            yield [*rows[:, : self.shots].flatten().tolist(), *rows[:, self.shots :].flatten().tolist()]

    def split(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Support ``(ways, shots, ...)`` and query ``(ways, queries, ...)`` of a batch; row ``i`` is class ``i``."""
        support, query = batch.split([self.ways * self.shots, self.ways * self.queries])
        return support.unflatten(0, (self.ways, self.shots)), query.unflatten(0, (self.ways, self.queries))
