"""How a weight moves while training: a function of the number of training calls made so far."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from numbers import Real

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Schedule(ABC):
    """A weight as a function of the step. Steps are counted on the device, so that nothing waits for it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "steps" and value < 1:
                raise ValueError(f"{type(self).__name__} takes {value} steps: wanted at least 1")
            if not math.isfinite(value):
                raise ValueError(f"{type(self).__name__} has {field.name}={value}: wanted a finite number")

    @abstractmethod
    def __call__(self, step: Int[Tensor, ""]) -> float | Float[Tensor, ""]:
        """The weight at a step; the first training call is step 0."""

    @property
    @abstractmethod
    def ends(self) -> tuple[float, float]:
        """The weights between which it moves."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same weight at every step.

    Example:
        >>> Constant(0.5)(torch.tensor(7))
        0.5
    """

    value: float
    """The weight."""

    def __call__(self, step: Int[Tensor, ""]) -> float:
        """The weight at a step, not rounded to any tensor's dtype."""
        return self.value

    @property
    def ends(self) -> tuple[float, float]:
        """The weight, twice."""
        return self.value, self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in a straight line over ``steps``, and ``end`` from then on.

    Example:
        >>> fade = Linear(1.0, 0.0, steps=100, begin=50)
        >>> [round(fade(torch.tensor(step)).item(), 2) for step in (0, 50, 100, 150, 200)]
        [1.0, 1.0, 0.5, 0.0, 0.0]
    """

    start: float
    """The weight at first."""
    end: float
    """The weight at last."""
    steps: int
    """How many training calls the way takes."""
    begin: int = 0
    """The call at which it sets out."""

    def __call__(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        """The weight at a step."""
        return self.start + (self.end - self.start) * self.shape(((step - self.begin) / self.steps).clamp(0, 1))

    def shape(self, way: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """How much of the change is done when a fraction of the steps is."""
        return way

    @property
    def ends(self) -> tuple[float, float]:
        """``start`` and ``end``."""
        return self.start, self.end


@dataclass(frozen=True)
class Cosine(Linear):
    """From ``start`` to ``end`` along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, one period).

    Example:
        >>> fade = Cosine(1.0, 0.0, steps=100)
        >>> [round(fade(torch.tensor(step)).item(), 2) for step in (0, 25, 50, 100, 200)]
        [1.0, 0.85, 0.5, 0.0, 0.0]
    """

    def shape(self, way: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """How much of the change is done when a fraction of the steps is."""
        return (1 - torch.cos(torch.pi * way)) / 2


@dataclass(frozen=True)
class Warmup(Schedule):
    """From 0 to ``value`` in a straight line, full from call ``steps`` on.

    Example:
        >>> [round(Warmup(0.8, steps=4)(torch.tensor(step)).item(), 2) for step in (0, 1, 4, 9)]
        [0.0, 0.2, 0.8, 0.8]
    """

    value: float
    """The weight at last."""
    steps: int
    """How many training calls it takes."""

    def __call__(self, step: Int[Tensor, ""]) -> Float[Tensor, ""]:
        """The weight at a step."""
        return self.value * (step / self.steps).clamp(max=1)

    @property
    def ends(self) -> tuple[float, float]:
        """0 and ``value``."""
        return 0.0, self.value


def as_schedule(name: str, value: float | Schedule, highest: float = math.inf) -> Schedule:
    """A number as a constant schedule; weights lie between 0 and ``highest``.

    Raises:
        TypeError: If it is neither a number nor a schedule.
        ValueError: If it leaves that range.
    """
    if isinstance(value, Real) and not isinstance(value, bool):  # NumPy's too
        value = Constant(float(value))
    if not isinstance(value, Schedule):
        raise TypeError(
            f"{name} is a {type(value).__name__}: wanted a number or a schedule, Cosine(1.0, 0.0, steps=500)"
        )
    if min(value.ends) < 0 or max(value.ends) > highest:
        wanted = "0 or more" if highest == math.inf else f"from 0 to {highest:g}"
        raise ValueError(f"{name} is {value}: wanted {wanted}")
    return value
