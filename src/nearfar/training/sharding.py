"""Weights, gradients and the optimiser's state divided among the ranks: what ``strategy="fsdp"`` means."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.methods.base import Network
from nearfar.shards import is_sharded, whole

LEAST = 2**16
"""Parameters of a block that is gathered by itself: of fewer, the message costs more than the memory is worth."""


def shard(network: nn.Module, mesh: Any, least: int = LEAST) -> nn.Module:
    """Divides a network's parameters among the ranks of a mesh, in place, by ``torch.distributed.fsdp.fully_shard``.

    Blocks (see ``blocks``) are gathered one at a time, forward and backward; then the embedder, which looks call by
    itself; then the rest. All start from the first rank's weights. Numbers without dimensions stay whole: their
    gradients are the caller's to average.

    Args:
        network: Made whole by every rank.
        mesh: Of one dimension.
        least: Parameters of a block.

    Raises:
        ValueError: If parameters that learn are of several types.
    """
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    types = {p.dtype for p in network.parameters() if p.requires_grad}
    if len(types) > 1:
        names = ", ".join(sorted(str(kind) for kind in types))
        raise ValueError(f"the network's parameters are {names}, and strategy fsdp wants one type: use strategy ddp")
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.contiguous()  # fully_shard knows no other layout, such as channels last
        distributed.broadcast(tensor.data, 0)
    # also the root: what is read between two steps (averages, checkpoints) is then always the part, never the whole
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    single = {p for p in network.parameters() if not p.ndim}
    if single:
        options["ignored_params"] = single
    embedder = [network.embedder] if isinstance(network, Network) else []
    # it may end in a flattening; what takes its output, a head of ours, changes nothing in place
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPEmbedder\) returned a view")
    for unit in (*blocks(network, least), *embedder, network):
        fully_shard(unit, **options)
    return network


def blocks(network: nn.Module, least: int = LEAST) -> list[nn.Module]:
    """The parts of a network that run one after another, inner ones first: layers of a transformer, residual blocks.

    They are the members of ``nn.Sequential`` and ``nn.ModuleList`` with enough parameters that no inner block has. A
    block that shares a weight with what is outside stays in the rest, or the two would part.

    Args:
        network: Whose.
        least: Parameters.

    Example:
        >>> layers = [nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(2)]
        >>> found = blocks(nn.Sequential(nn.Linear(2, 9), *layers), least=100)
        >>> found == layers[::-1]
        True
    """
    uses = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))
    members = {
        id(member) for m in network.modules() if isinstance(m, nn.Sequential | nn.ModuleList) for member in m.children()
    }
    found: list[nn.Module] = []
    taken: set[int] = set()
    for module in reversed(list(network.modules())):
        inside = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
        rest = sum(p.numel() for p in module.parameters() if id(p) not in taken)
        if id(module) not in members or isinstance(module, nn.ModuleList | nn.ModuleDict) or rest < least:
            continue
        if all(uses[key] == count for key, count in inside.items()):
            found.append(module)
            taken |= inside.keys()
    return found


def share_buffers(network: nn.Module) -> None:
    """Gives all ranks the first one's running statistics, as ``DistributedDataParallel`` does before a forward pass."""
    for buffer in network.buffers():
        torch.distributed.broadcast(buffer, 0)


@torch.no_grad()
def clip_sharded(parameters: Iterable[Tensor], largest: float) -> None:
    """Scales gradients so that the norm of them all, over whole tensors, is no larger.

    Args:
        parameters: Some sharded, some not: torch's own functions take either, and no mixture.
        largest: The norm.
    """
    learned = [p for p in parameters if p.grad is not None]
    parts = [[p for p in learned if is_sharded(p) == kind] for kind in (True, False)]
    utils: Any = nn.utils
    norms = [whole(utils.get_total_norm([p.grad for p in part])) for part in parts if part]
    norm = torch.stack(norms).norm()
    for part in parts:
        utils.clip_grads_with_norm_(part, largest, norm)
