"""Matrix products of tiles, by the faster of the two libraries that torch brings.

torch gives float32 products to MKL, which on AMD processors leaves AVX-512 unused; oneDNN, which torch has for its compiler, uses
it: twice as fast on Zen 5, about as fast on Zen 4, which does such an instruction in two halves. Both sum in float32. Which one
serves is a fact of the processor, never of a timing, so that results repeat.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

_LARGE = 2**22
"""Multiplications from which the other library's start is repaid."""


@functools.cache
def _other_library() -> Callable[[Tensor, Tensor], Tensor] | None:
    """``a, b ↦ a·bᵀ`` by oneDNN where that is the faster one and torch offers it; else ``None``."""
    try:
        vendor = Path("/proc/cpuinfo").read_text()[:4096]
    except OSError:
        vendor = platform.processor()
    if "AuthenticAMD" not in vendor or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        linear = torch.ops.mkldnn._linear_pointwise.default
        probe = torch.arange(12.0).view(3, 4)
        if torch.equal(linear(probe, probe, None, "none", [], ""), probe @ probe.T):
            return lambda a, b: linear(a, b, None, "none", [], "")
    except (AttributeError, RuntimeError):  # a torch built without it, or one that has changed it
        pass
    return None


def _large(a: Tensor, b: Tensor) -> bool:
    return a.dtype == torch.float32 and a.device.type == "cpu" and a.numel() * b.shape[1] >= _LARGE


def mm(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], out: Tensor | None = None) -> Float[Tensor, "n m"]:
    """``a·b``; in ``out`` where the library can write there."""
    other = _other_library() if _large(a, b) else None
    return torch.mm(a, b, out=out) if other is None else other(a, b.T)


def add_mm(total: Float[Tensor, "n m"], a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], sign: int = 1) -> None:
    """Add ``a·b`` (``sign``: 1, or −1 to subtract) to a matrix in place."""
    other = _other_library() if _large(a, b) else None
    if other is None:
        total.addmm_(a, b, alpha=sign)
    else:
        total.add_(other(a, b.T), alpha=sign)
