"""Rows of all ranks, differentiable, uneven counts included.

Every rank then computes the loss of the whole batch. A row's gradient is taken times the number of ranks, since
``DistributedDataParallel`` averages what should be summed: the parameters get exactly the gradient of one process that
holds all rows. Gradients of the loss's own parameters come out equal on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Ids


def gather_rows(
    views: tuple[Tensor, ...],
    labels: Tensor | None,
    pairs: Pairs | None = None,
    columns: Sequence[Tensor | None] = (),
    stacked: int = 1,
) -> tuple[tuple[Tensor, ...], Tensor | None, Pairs | None, Sequence[Tensor | None]]:
    """All ranks' rows of each view, labels, pairs by id, and columns with one entry a row, in order of rank.

    Args:
        views: Matrices of this rank's rows.
        labels: Once a row of the first view.
        pairs: By id.
        columns: Once a row: of a view, or of ``stacked`` views one behind the other.
        stacked: How many views' entries a column holds.

    Raises:
        RuntimeError: If no process group is there.
        ValueError: For pairs that are a matrix, which knows nothing of the other ranks' rows.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "gather=True was asked for, but there is no process group: call torch.distributed.init_process_group "
            "(torchrun, Fabric and Lightning do), or leave gather out"
        )
    if dist.get_world_size() == 1:
        return views, labels, pairs, columns
    if pairs is not None:
        part = pairs.parts[0]
        if len(pairs.parts) > 1 or not isinstance(part, Ids) or pairs.rows is not None:
            raise ValueError("gather=True takes pairs by id or label only: a matrix says nothing of other ranks' rows")
        pairs = _gather_pairs(pairs, part)

    def in_order(column: Tensor) -> Tensor:
        return gather(column.reshape(stacked, -1 if len(column) else 0).T).T.flatten()

    return (
        tuple(gather(view) for view in views),
        None if labels is None else gather(labels),
        pairs,
        [None if column is None else in_order(column) for column in columns],
    )


def _gather_pairs(pairs: Pairs, part: Ids) -> Pairs:
    """The relation by id among all ranks' rows; ids that count this rank's own rows are told apart from other ranks'."""
    sides = (part.query,) if part.own else (part.query, part.key)
    unknown = bool(gather(torch.tensor([part.unknown], dtype=torch.long, device=part.query.device)).any())
    before = rows_before(sum(map(len, sides)), part.query.device)
    if pairs.layout is not None:  # numbers of samples
        sides = tuple(ids + before for ids in sides)
    elif not unknown:  # below 0: numbers of rows that have no label
        sides = tuple(torch.where(ids < 0, ids - before, ids) for ids in sides)
    query, key = (gather(sides[0]),) * 2 if part.own else map(gather, sides)
    return Pairs((len(query), len(key)), (Ids(query, key, unknown),), own=pairs.own)


def shared(parameter: Tensor) -> Tensor:
    """A parameter of the loss that meets this rank's rows before they are gathered: its gradients are averaged over ranks."""
    return _Shared.apply(parameter) if dist.get_world_size() > 1 else parameter  # pyright: ignore[reportReturnType]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


def rows_before(n: int, device: torch.device) -> int:
    """How many rows the ranks before this one have, if each has its own ``n``."""
    counts = gather(torch.tensor([n], device=device))
    return int(counts[: dist.get_rank()].sum())


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in order of rank."""
    rows = rows.long() if rows.dtype == torch.int16 else rows  # gloo knows no such type
    return _Gather.apply(rows)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        world = dist.get_world_size()
        mine = torch.tensor([len(rows)], device=rows.device)
        counts = [torch.zeros_like(mine) for _ in range(world)]
        dist.all_gather(counts, mine)
        sizes = [int(count) for count in counts]
        longest = max(sizes)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.start, ctx.size, ctx.world = sum(sizes[: dist.get_rank()]), len(rows), world
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradients[0][ctx.start : ctx.start + ctx.size] * ctx.world
