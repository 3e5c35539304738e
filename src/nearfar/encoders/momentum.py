"""A copy of a module that follows it slowly: MoCo's key encoder, BYOL's target, averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nearfar.shards import shard_of


class Average(nn.Module):
    """An exponential moving average of a module's parameters, ``θ' ← decay · θ' + (1 − decay) · θ`` at each update.

    He et al. 2020, arXiv:1911.05722, eq. 2. The copy is called like the module and has no gradients.

    Args:
        module: What is followed. It is not held: pass it to ``update``.
        decay: 0.999 is MoCo's for its key encoder, and usual for averaged weights.
        warmup: Count updates, and use no more than ``(1 + t) / (10 + t)`` at the t-th: a short run is then not averaged
            with its random start. Off for a key encoder, which must be slow from the first step.
        buffers: ``"copy"``: buffers, such as running statistics, are the module's. ``"keep"``: the copy's own, for a key
            encoder that sees batches itself.

    Raises:
        ValueError: If the decay is not in [0, 1).

    Example:
        >>> linear = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(linear.weight, 1.0)
        >>> average = Average(linear, decay=0.75)
        >>> _ = nn.init.constant_(linear.weight, 2.0)
        >>> average.update(linear)
        >>> average(torch.ones(1, 1))
        tensor([[1.2500]])
    """

    updates: Tensor

    def __init__(
        self,
        module: nn.Module,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        buffers: Literal["copy", "keep"] = "copy",
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}: wanted a number from 0 up to, not including, 1")
        if buffers not in ("copy", "keep"):
            raise ValueError(f"buffers={buffers!r} is not known: pass 'copy' or 'keep'")
        self.decay = decay
        self.warmup = warmup
        self.buffers_from = buffers
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy makes of the inputs, without gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, module: nn.Module, decay: float | None = None) -> None:
        """Moves the copy towards the module.

        Args:
            module: As it is after the optimiser's step.
            decay: For this once, as BYOL's schedule wants it; by default the one of the whole.
        """
        self.updates += 1
        decay = self.decay if decay is None else decay
        if self.warmup:
            steps = int(self.updates)
            decay = min(decay, (1 + steps) / (10 + steps))
        averaged, live = _pairs(self.module.parameters(), module.parameters())
        if averaged:
            torch._foreach_lerp_(averaged, live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        if self.buffers_from == "copy":
            for own, other in zip(self.module.buffers(), module.buffers(), strict=True):
                own.copy_(other)

    @contextmanager
    def swapped(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module with the averaged weights for a while: to evaluate or to save it. Afterwards it has its own again,
        bit for bit.

        Example:
            >>> linear = nn.Linear(2, 2)
            >>> average = Average(linear)
            >>> with average.swapped(linear):
            ...     pass  # evaluate linear
        """
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.module.state_dict())
        try:
            yield module
        finally:
            module.load_state_dict(own)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"decay={self.decay}"


def _pairs(averaged: Iterator[Tensor], live: Iterator[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """This rank's parameters of both, of one dtype each: a live module may be held in half precision."""
    parts = ((shard_of(own), shard_of(other)) for own, other in zip(averaged, live, strict=True))
    pairs = [(own, other.detach().to(own.dtype)) for own, other in parts]
    return [own for own, _ in pairs], [other for _, other in pairs]
