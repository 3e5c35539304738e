"""Tensors that several ranks hold a part of each (DTensors, as ``fully_shard`` makes them) beside ordinary ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether other ranks hold the rest of it; asked of the tensor, so that ``torch.distributed.tensor`` stays unloaded.

    Example:
        >>> is_sharded(torch.ones(2))
        False
    """
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def shard_of(tensor: Any) -> Tensor:
    """What this rank holds, in the same memory; an ordinary tensor is held whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor


@torch.no_grad()
def whole(tensor: Any) -> Tensor:
    """All ranks' parts together. All ranks must call this, in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def all_whole(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Each tensor gathered, one after another, and moved to the CPU: no device ever holds two of them whole.

    Args:
        tensors: By name, the same names on all ranks.
        keep: Whether this rank wants them; else it only gives its parts, and gets an empty dictionary.
    """
    gathered = ((name, whole(tensor)) for name, tensor in tensors.items())
    return {name: tensor.detach().cpu() for name, tensor in gathered if keep}


def sharded_like(tensor: Tensor, like: Any) -> Tensor:
    """This rank's part of a tensor that every rank holds whole, divided as another is; nothing is sent."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    held = DTensor.from_local(tensor.to(like.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return held.redistribute(mesh, like.placements).clone()  # a view would keep the whole in memory
