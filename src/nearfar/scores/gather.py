"""What ranks tell each other: the keys of all, and sums over the queries of all.

Each rank asks with its own rows and is answered by everyone's. The loss's value is the same on every rank, and a rank's
gradients are those of its own rows times the number of ranks, since ``DistributedDataParallel`` (and FSDP) average what
should be summed: the encoder gets exactly the gradient of one process that holds all rows. Four verbs:

===========  ==================================  ================================================
verb         forward                             backward
===========  ==================================  ================================================
``gather``   all ranks' rows                     each rank's rows: the sum of all ranks' gradients
``scatter``  each rank's rows: summed over ranks  all ranks' gradients
``total``    the sum over ranks, on all of them   the sum of all ranks' gradients
``shared``   a parameter as it is                the mean of all ranks' gradients
===========  ==================================  ================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from nearfar.pairs import Pairs, Sides
from nearfar.rules import Ids, Matrix

T = TypeVar("T")
_gather_into: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_into: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks that share one batch: how many rows (of the keys) each has, and which one this is."""

    sizes: tuple[int, ...]
    rank: int = 0

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return len(self.sizes) == 1

    @property
    def rows(self) -> int:
        """Rows of all ranks together."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """This rank's rows among all."""
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])

    def gather(self, rows: Shaped[Tensor, "n *d"], sent: torch.dtype | None = None) -> Shaped[Tensor, "m *d"]:
        """The rows of all ranks, in order of rank; sent as another type where that holds them exactly."""
        return rows if self.alone else _Gather.apply(rows, self, sent)  # pyright: ignore[reportReturnType]

    def scatter(self, parts: Shaped[Tensor, "m *d"]) -> Shaped[Tensor, "n *d"]:
        """What all ranks have for this one's rows, added up."""
        return parts if self.alone else _Scatter.apply(parts, self)  # pyright: ignore[reportReturnType]

    def total(self, part: Shaped[Tensor, "*d"]) -> Shaped[Tensor, "*d"]:
        """The sum over ranks, on all of them."""
        return part if self.alone else _Total.apply(part)  # pyright: ignore[reportReturnType]

    def shared(self, parameter: T) -> T:
        """A parameter of the loss, the same on all ranks, before it meets this rank's rows."""
        if self.alone or not isinstance(parameter, Tensor) or not parameter.requires_grad:
            return parameter
        return _Shared.apply(parameter)  # pyright: ignore[reportReturnType]

    def highest(self, part: Float[Tensor, "*d"]) -> Float[Tensor, "*d"]:
        """The largest over ranks, on all of them, without gradient."""
        highest = part.detach().clone()
        if not self.alone:
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return highest

    def log_total(self, part: Float[Tensor, "*d"]) -> Float[Tensor, "*d"]:
        """``log Σ_ranks e^part``, on all of them."""
        return part if self.alone else self._logarithm(part, self.total, lambda highest: highest)

    def log_scatter(self, parts: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """``log Σ_ranks e^parts`` of this rank's rows."""
        return parts if self.alone else self._logarithm(parts, self.scatter, lambda highest: highest[self.own])

    def _logarithm(self, part: Tensor, add: Callable[[Tensor], Tensor], pick: Callable[[Tensor], Tensor]) -> Tensor:
        highest = self.highest(part)
        highest.masked_fill_(highest == -torch.inf, 0.0)
        found = add((part - highest).exp())
        none = found == 0
        return (found.masked_fill(none, 1.0).log() + pick(highest)).masked_fill(none, -torch.inf)


ALONE = Ranks((0,))
"""One process, of which nothing else is known."""


def meet(rows: int, together: bool | str | None, device: torch.device, *, ring: bool = False) -> Ranks:
    """The ranks, each of which brings some rows.

    Args:
        rows: This rank's.
        together: Whether to meet at all: the option ``gather``.
        device: Where the ranks talk.
        ring: Whether the keys may stay where they are.

    Raises:
        TypeError: For a ring where keys are needed at once.
        RuntimeError: If no process group is there.
    """
    if not together:
        return Ranks((rows,))
    if together == "ring" and not ring:
        raise TypeError(
            "gather='ring' is for softmax losses (InfoNCE, NT-Xent, SupCon, CLIP, N-pairs), whose sums can be merged: "
            "pass gather=True"
        )
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"gather={together!r} was asked for, but there is no process group: call "
            "torch.distributed.init_process_group (torchrun, Fabric and Lightning do), or leave gather out"
        )
    return Ranks(tuple(_numbers(device, rows)[0]), dist.get_rank())


def relation_with_all(pairs: Pairs, ranks: Ranks) -> Pairs:
    """The relation of this rank's queries with the keys of all, which stand in order of rank.

    Raises:
        ValueError: For pairs that are a matrix or a union, which know nothing of the other ranks' rows.
    """
    part = pairs.parts[0]
    if len(pairs.parts) > 1 or isinstance(part, Matrix):
        raise ValueError("gather= takes pairs by id or label only: a matrix says nothing of other ranks' rows")
    unsure = isinstance(part, Ids) and part.unknown
    gone = [side is not None for side in pairs.missing or (None, None)]
    counts, unknown, *missing = _numbers(pairs.device, sum(pairs.shape), unsure, *gone)
    if isinstance(part, Ids):  # ids that count this rank's own rows are told apart from other ranks'
        before = sum(counts[: ranks.rank])

        def tell_apart(ids: Tensor) -> Tensor:
            if pairs.layout is not None:  # numbers of samples
                return ids + before
            return ids if any(unknown) else torch.where(ids < 0, ids - before, ids)  # below 0: rows without a label

        part = replace(part, query=tell_apart(part.query), key=tell_apart(part.key), unknown=any(unknown))
    rows = None if pairs.rows is None else (pairs.rows[0], ranks.gather(pairs.rows[1]))
    own = None if pairs.own is None else pairs.own + ranks.own.start
    part = replace(part, key=ranks.gather(part.key))
    return Pairs((pairs.shape[0], ranks.rows), (part,), rows, own, _missing_with_all(pairs, ranks, any(missing[1])))


def _missing_with_all(pairs: Pairs, ranks: Ranks, keys_of_some: bool) -> Sides | None:
    """Which of this rank's queries and of all ranks' keys are missing."""
    queries, keys = pairs.missing or (None, None)
    if keys_of_some:  # bytes travel where booleans may not
        mine = torch.zeros(pairs.shape[1], dtype=torch.bool, device=pairs.device) if keys is None else keys
        keys = ranks.gather(mine.byte()).bool()
    return None if queries is None and keys is None else (queries, keys)


def _numbers(device: torch.device, *mine: int) -> list[list[int]]:
    """A few numbers of every rank, by kind."""
    found = torch.empty(dist.get_world_size(), len(mine), dtype=torch.long, device=device)
    _gather_into(found, torch.tensor([mine], device=device))
    return found.T.tolist()


def _gather(rows: Tensor, ranks: Ranks) -> Tensor:
    world, longest = len(ranks.sizes), max(ranks.sizes)
    if longest == 0:
        return torch.empty_like(rows)
    found = rows.new_empty(world * longest, *rows.shape[1:])
    _gather_into(found, _padded(rows, longest))
    if ranks.rows == len(found):
        return found
    return torch.cat([part[:size] for part, size in zip(found.split(longest), ranks.sizes)])


def _scatter(parts: Tensor, ranks: Ranks) -> Tensor:
    world, longest, mine = len(ranks.sizes), max(ranks.sizes), ranks.sizes[ranks.rank]
    if longest == 0:
        return torch.empty_like(parts)
    if ranks.rows != world * longest:
        parts = torch.cat([_padded(part, longest) for part in parts.split(ranks.sizes)])
    found = parts.new_empty(longest, *parts.shape[1:])
    _scatter_into(found, parts.contiguous())
    return found[:mine]


def _padded(rows: Tensor, longest: int) -> Tensor:
    if len(rows) == longest:
        return rows.contiguous()
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, sent: torch.dtype | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.ranks = ranks
        return _gather(rows if sent is None else rows.to(sent), ranks).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Scatter.apply(gradients[0], ctx.ranks), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, ranks: Ranks) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.ranks = ranks
        return _scatter(parts, ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Gather.apply(gradients[0], ctx.ranks, None), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Total.apply(gradients[0])  # pyright: ignore[reportReturnType]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Total.apply(gradients[0]) / dist.get_world_size()  # pyright: ignore[reportOptionalOperand]
