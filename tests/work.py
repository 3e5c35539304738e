"""What a process multiplies, sends and holds, counted operation by operation."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Work(TorchDispatchMode):
    """Counts what a rank multiplies, sends (as the usual rings do) and holds."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.sent = self.largest = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func._schema.name
        flat = [x for x in tree_leaves((args, found)) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *(float(x.numel()) for x in flat)])
        if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = args[-2:]
            self.products += 2 * left.numel() * right.shape[1]
        elif name == "mkldnn::_linear_pointwise":  # a·bᵀ by the other library
            self.products += 2 * args[0].numel() * args[1].shape[0]
        elif name.startswith("c10d::"):
            world = dist.get_world_size()
            size = max((x.numel() * x.element_size() for x in flat), default=0)
            passes = {
                "c10d::allreduce_": 2.0,
                "c10d::send": world / (world - 1) if world > 1 else 0.0,
                "c10d::recv_": 0.0,
            }
            self.sent += size * passes.get(name, 1.0) * (world - 1) / world
        return found
