"""What a forward pass leaves behind or depends on besides its inputs, kept so that it can be run again as it was."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn


class RandomState:
    """Where the default generators stand: torch's on the CPU and on some devices, Python's and NumPy's.

    Args:
        devices: Accelerators whose generators matter.

    Example:
        >>> state = RandomState()
        >>> first = torch.rand(3)
        >>> state.restore()
        >>> bool((torch.rand(3) == first).all())
        True
    """

    def __init__(self, devices: Iterable[torch.device] = ()) -> None:
        self._cpu = torch.get_rng_state()
        self._devices = [(d, torch.get_device_module(d).get_rng_state(*_which(d))) for d in devices]
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 (what models draw from)

    def restore(self) -> None:
        """Puts the generators back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._devices:
            torch.get_device_module(device).set_rng_state(state, *_which(device))
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is but one


class BufferState:
    """Buffers of some modules (running statistics, power iterations, counters), and whether they are due for a broadcast.

    Args:
        modules: Whose.

    Raises:
        ValueError: If a buffer has no shape yet.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(modules)
        self._buffers: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]] = []
        for owner in (m for module in self._modules for m in module.modules()):
            for name, buffer in owner.named_buffers(recurse=False):
                if nn.parameter.is_lazy(buffer):
                    kind = type(owner).__name__
                    raise ValueError(f"buffer {name!r} of a {kind} has no shape yet: run the model once before")
                self._buffers.append((owner, name, buffer, buffer.detach().clone()))
        # DistributedDataParallel sends rank 0's buffers around in the first forward pass after a backward pass
        self._due: list[Any] = [getattr(module, "require_forward_param_sync", None) for module in self._modules]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the buffers back, in place."""
        for owner, name, buffer, value in self._buffers:
            buffer.copy_(value)
            if getattr(owner, name) is not buffer:
                setattr(owner, name, buffer)
        for module, due in zip(self._modules, self._due):
            if due is not None:
                module.require_forward_param_sync = due
