"""A temperature that can be learned: kept as the logarithm of its inverse, clamped after the optimiser's step."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nearfar.losses.arguments import check_range

_learned: weakref.WeakSet[Temperature] = weakref.WeakSet()
_hooked = False


class Temperature(nn.Module):
    """Holds ``τ``: a constant, a tensor of the user's, or a parameter.

    The learnable form keeps ``log_scale = log(1/τ)``. It is clamped to ``[log_scale of 100, log(max_scale)]`` after every
    optimiser step, never in the forward pass, where a clamp would cut the gradient at its bound.

    Args:
        temperature: The (initial) τ.
        learnable: Whether to learn it.
        max_scale: Largest 1/τ that learning may reach; 100 is CLIP's (Radford et al. 2021, sec. 2.5).
    """

    log_scale: nn.Parameter | None

    def __init__(self, temperature: float | Tensor, learnable: bool = False, max_scale: float = 100.0) -> None:
        super().__init__()
        check_range("temperature", temperature, 0.0)
        self.max_scale = max_scale
        self.fixed = None if learnable else temperature
        start = -math.log(float(temperature)) if learnable else 0.0
        self.log_scale = nn.Parameter(torch.tensor(start)) if learnable else None
        if learnable:
            _learned.add(self)
            _hook()

    def forward(self) -> float | Tensor:
        """τ, differentiable if it is learned."""
        if self.log_scale is None:
            assert self.fixed is not None
            return self.fixed
        return (-self.log_scale).exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring a learned scale back into its range."""
        if self.log_scale is not None:
            self.log_scale.clamp_(math.log(0.01), math.log(self.max_scale))

    def __setstate__(self, state: dict[str, Any]) -> None:  # copies and unpickled modules are clamped too
        super().__setstate__(state)
        if self.log_scale is not None:
            _learned.add(self)
            _hook()


def _hook() -> None:
    global _hooked
    if not _hooked:
        register_optimizer_step_post_hook(_clamp_all)
        _hooked = True


def _clamp_all(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for temperature in list(_learned):
        if id(temperature.log_scale) in owned:
            temperature.clamp()
