"""Optimisers: one literal table; groups of parameters; learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from nearfar.shards import is_sharded
from nearfar.training.lars import LARS

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    # name (as in config.RATES, which has their default rates): what makes it, and its arguments
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "lars": (LARS, {"momentum": 0.9}),
}


def parameter_groups(
    modules: Iterable[nn.Module], weight_decay: float, paces: Mapping[int, float] | None = None
) -> list[dict[str, Any]]:
    """Parameters that learn, in groups: those that decay, and biases, norms and single numbers, which do not; of each pace.

    A norm's scale or a temperature that is pulled towards 0 is no regularisation of the function (Chen et al. 2020, SimCLR,
    section 2.2, leaves them out too). Those are what has fewer than two dimensions.

    Args:
        modules: Whose parameters; one that is shared counts once.
        weight_decay: Of those that decay.
        paces: How many times the learning rate a parameter has, by ``id``; by default 1.

    Example:
        >>> groups = parameter_groups([nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))], 0.1)
        >>> [(len(g["params"]), g["weight_decay"], g["plain"], g["pace"]) for g in groups]
        [(1, 0.1, False, 1.0), (3, 0.0, True, 1.0)]
    """
    parts: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                pace = 1.0 if paces is None else paces[id(parameter)]
                # one kernel steps a group: it takes sharded parameters or whole ones
                parts.setdefault((parameter.ndim < 2, pace, not is_sharded(parameter)), []).append(parameter)
    return [
        {"params": params, "weight_decay": 0.0 if plain else weight_decay, "plain": plain, "pace": pace}
        for (plain, pace, _), params in sorted(parts.items(), key=lambda part: part[0])
    ]


def make_optimizer(name: str, groups: list[dict[str, Any]], lr: float, device: str = "cpu") -> torch.optim.Optimizer:
    """A row of ``OPTIMIZERS`` over groups of parameters; fused where one kernel can step them all."""
    factory, arguments = OPTIMIZERS[name]
    if name == "sgd" and any(is_sharded(p) for group in groups for p in group["params"]):
        arguments = arguments | {"foreach": True}  # torch has no fused SGD of sharded parameters
    elif name != "lars" and device in ("cpu", "cuda", "mps"):
        arguments = arguments | {"fused": True}
    return factory(groups, lr=lr, **arguments)


Schedule = Literal["cosine", "linear", "constant"]


def rate_at(step: int, steps: int, schedule: Schedule, warmup: int = 0) -> float:
    """The learning rate of a step, as a part of the peak: a line up, then cosine or a line down to 0, or level.

    Args:
        step: From 1 to ``steps``.
        steps: Optimiser steps in all.
        schedule: What comes after the warm-up. Cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
        warmup: Steps of the warm-up; the last of them has the peak.

    Example:
        >>> [round(rate_at(step, 8, "cosine", warmup=2), 3) for step in (1, 2, 3, 5, 8)]
        [0.5, 1.0, 1.0, 0.75, 0.067]
        >>> rate_at(5, 8, "linear"), rate_at(5, 8, "constant")
        (0.5, 1.0)
    """
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    done = (step - 1 - warmup) / max(steps - warmup, 1)  # 0 at the first step after the warm-up; the last is not yet 0
    return 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
