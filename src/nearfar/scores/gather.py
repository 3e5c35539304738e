"""Rows of all ranks, differentiable, uneven counts included.

Every rank then computes the loss of the whole batch. A row's gradient is taken times the number of ranks, since
``DistributedDataParallel`` averages what should be summed: the parameters get exactly the gradient of one process that
holds all rows. Gradients of the loss's own parameters come out equal on every rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nearfar.pairs import Pairs, _Ids


def gather_rows(
    views: tuple[Tensor, ...],
    labels: Tensor | None,
    pairs: Pairs | None,
    weights: Tensor | None,
    offsets: Tensor | None,
) -> tuple[tuple[Tensor, ...], Tensor | None, Pairs | None, Tensor | None, Tensor | None]:
    """All ranks' rows of each view, labels, pairs by id, weights and offsets, in order of rank.

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
        return views, labels, pairs, weights, offsets
    if pairs is not None:
        part = pairs.parts[0]
        if len(pairs.parts) > 1 or not isinstance(part, _Ids) or pairs.rows is not None:
            raise ValueError("gather=True takes pairs by id or label only: a matrix says nothing of other ranks' rows")
        query = gather(part.query)
        pairs = Pairs.from_ids(query, query if part.own else gather(part.key))
        pairs = replace(pairs, itself=pairs.itself)
    return (
        tuple(gather(view) for view in views),
        None if labels is None else gather(labels),
        pairs,
        None if weights is None else gather(weights),
        None if offsets is None else gather(offsets),
    )


def rows_before(n: int, device: torch.device) -> int:
    """How many rows the ranks before this one have, if each has its own ``n``."""
    counts = gather(torch.tensor([n], device=device))
    return int(counts[: dist.get_rank()].sum())


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in order of rank."""
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
