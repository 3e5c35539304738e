"""Matrix products of tiles, by the faster of the two libraries that torch brings.

torch gives float32 products to MKL, which on AMD processors leaves AVX-512 unused; oneDNN, which torch has for its compiler, uses
it: twice as fast on Zen 5, about as fast on Zen 4, which does such an instruction in two halves. Both sum in float32. Which one
serves is a fact of the processor, never of a timing, so that results repeat.
"""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

_LARGE = {25: 2**24, 26: 2**22}
"""Multiplications from which the other library's start is repaid, by the processor's family (25: Zen 4, 26: Zen 5)."""


@functools.cache
def _other_library() -> Callable[[Tensor, Tensor], Tensor] | None:
    """``a, b ↦ a·bᵀ`` by oneDNN where that is the faster one and torch offers it; else ``None``."""
    if _amd_family() is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        linear = torch.ops.mkldnn._linear_pointwise.default
        probe = torch.arange(12.0).view(3, 4)
        if torch.equal(linear(probe, probe, None, "none", [], ""), probe @ probe.T):
            return lambda a, b: linear(a, b, None, "none", [], "")
    except (AttributeError, RuntimeError):  # a torch built without it, or one that has changed it
        pass
    return None


@functools.cache
def _amd_family() -> int | None:
    """25: Zen 4, 26: Zen 5; ``None``: not AMD's."""
    try:
        facts = Path("/proc/cpuinfo").read_text()[:4096]
    except OSError:
        facts = platform.processor()
    if "AuthenticAMD" not in facts:
        return None
    family = re.search(r"(?:cpu family\s*:|Family) *(\d+)", facts)
    return int(family[1]) if family else 0


def _library(a: Tensor, b: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The other library, if it is to multiply these."""
    if a.dtype != torch.float32 or a.device.type != "cpu":
        return None
    if a.numel() * b.shape[1] < _LARGE.get(_amd_family() or 0, 2**24):
        return None
    # what lies in columns it must be given another way, which only the faster of its processors repay
    return None if _in_columns(a) and (_amd_family() or 0) <= 25 else _other_library()


def _in_columns(a: Tensor) -> bool:
    return a.stride(0) == 1 and a.stride(1) != 1


def mm(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], out: Tensor | None = None) -> Float[Tensor, "n m"]:
    """``a·b``; in ``out`` where the library can write there."""
    other = _library(a, b)
    return torch.mm(a, b, out=out) if other is None else _product(other, a, b)


def add_mm(total: Float[Tensor, "n m"], a: Float[Tensor, "n k"], b: Float[Tensor, "k m"], sign: int = 1) -> None:
    """Add ``a·b`` (``sign``: 1, or −1 to subtract) to a matrix in place."""
    other = _library(a, b)
    if other is None:
        total.addmm_(a, b, alpha=sign)
    else:
        total.add_(_product(other, a, b), alpha=sign)


def _product(other: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    # It copies a first operand that lies in columns, number by number; so the smaller one goes first: (bᵀ·aᵀ)ᵀ.
    return other(b.T, _packed(a)).T if _in_columns(a) else other(a, _packed(b.T))


def _packed(a: Tensor) -> Tensor:
    """In rows or in columns that stand one behind another: any other second operand it multiplies a thousand times as slowly."""
    if a.is_contiguous() or a.T.is_contiguous():
        return a
    return a.T.contiguous().T if _in_columns(a) else a.contiguous()
