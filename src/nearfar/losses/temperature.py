"""A temperature that can be learned: kept as the logarithm of its inverse, clamped after the optimiser's step."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

from nearfar.losses.arguments import flag
from nearfar.losses.numbers import PER_BATCH, Number

LEAST = 0.01
"""Smallest 1/τ that learning may reach: at τ = 100 a softmax of cosines is even to two digits."""
_learned: weakref.WeakSet[Temperature] = weakref.WeakSet()
_hooked = False


class Temperature(nn.Module):
    """Holds ``τ``: a constant, a tensor of the user's, or a parameter.

    The learnable form keeps ``log_scale = log(1/τ)``. It is clamped to ``[log(1/100), log(max_scale)]`` after every optimiser
    step, never in the forward pass, where a clamp would cut the gradient at its bound. A start beyond the default range widens it:
    τ stays where it was put until its gradient moves it.

    Args:
        temperature: The (initial) τ.
        learnable: Whether to learn it.
        max_scale: Largest 1/τ that learning may reach; by default ``most``, or the start's where that is larger.
        most: 100 is CLIP's (Radford et al. 2021, sec. 2.5).

    Raises:
        TypeError: If τ is no number.
        ValueError: If it is several numbers, not above 0, or beyond a ``max_scale`` that was given.
    """

    log_scale: nn.Parameter | None

    def __init__(
        self, temperature: float | Tensor, learnable: bool = False, max_scale: float | None = None, most: float = 100.0
    ) -> None:
        super().__init__()
        tau, learnable = PER_BATCH("temperature", temperature), flag("learnable", learnable)
        start = -math.log(float(tau)) if learnable else 0.0
        max_scale = None if max_scale is None else Number(LEAST, constant=True)("max_scale", max_scale)
        highest = math.log(most if max_scale is None else max_scale)
        if max_scale is not None and start > highest:
            raise ValueError(
                f"temperature={float(tau):g} is a scale of {1 / float(tau):g}, above max_scale={max_scale:g}, to which "
                "the first step would bring it back: pass a higher max_scale, or a higher temperature to start with"
            )
        self.range = min(math.log(LEAST), start), max(highest, start)
        self.bounded = max_scale is not None
        self.fixed = None if learnable else temperature
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

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """A scale that was learned beyond this module's default range widens it, as a start does; an explicit one stands."""
        super()._load_from_state_dict(*args, **kwargs)
        if self.log_scale is not None and not self.log_scale.is_meta:
            loaded, (low, high) = float(self.log_scale.detach()), self.range
            self.range = min(low, loaded), high if self.bounded else max(high, loaded)

    @torch.no_grad()
    def clamp(self) -> None:
        """Bring a learned scale back into its range."""
        if self.log_scale is not None:
            self.log_scale.clamp_(*self.range)

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
