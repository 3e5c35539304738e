"""Numbers that losses are built with or called with, such as margins and temperatures: one number each, in its range."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.given import as_tensor
from nearfar.scores.autograd import in_transform


def tracing() -> bool:
    """Whether values cannot be looked at: under torch.compile or a transform of torch.func."""
    return torch.compiler.is_compiling() or in_transform()


@dataclass(frozen=True)
class Number:
    """What a number may be: called with its name and what was given, it returns the number or refuses it.

    Values of tensors on an accelerator are taken on trust, since looking would wait.

    Example:
        >>> Number(0.0)("temperature", torch.tensor([0.5]))
        tensor(0.5000)
    """

    low: float = -math.inf
    high: float = math.inf
    """Below it; infinity: any finite number."""
    open_low: bool = True
    """Whether ``low`` itself is refused."""
    constant: bool = False
    """Whether no gradient can reach it: then it is a ``float``."""
    per_row: bool = False
    """Whether a tensor ``(n,)`` may give each row its own; whoever reads it checks its length."""
    instead: str = ""
    """What to do where several numbers were given."""

    def __call__(self, what: str, value: Any) -> Any:
        """The number: a ``float``, or a tensor without dimensions that keeps its gradient.

        Raises:
            TypeError: If it is no number.
            ValueError: If it is several, or out of range.
        """
        if type(value) is float:  # the commonest
            self._check(what, value)
            return value
        if isinstance(value, Tensor):
            return self._tensor(what, value)
        if self.per_row and isinstance(value, np.ndarray) and value.ndim == 1 and value.size > 1:
            return self._tensor(what, as_tensor(what, value, "one number a row").to(torch.get_default_dtype()))
        if isinstance(value, np.ndarray) and value.size != 1:
            raise ValueError(self._several(what, value.shape))
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iuf":
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{what} is {value!r}, a {type(value).__name__}: a number was wanted")
        value = float(value)
        self._check(what, value)
        return value

    def _tensor(self, what: str, value: Tensor) -> Any:
        several = value.numel() != 1
        if several and not (self.per_row and value.ndim == 1 and len(value)):
            raise ValueError(self._several(what, value.shape))
        if value.dtype == torch.bool or value.is_complex():
            raise TypeError(f"{what} is a tensor of {value.dtype}: a real number was wanted")
        if self.constant and value.requires_grad:
            raise TypeError(f"{what} is a tensor with a gradient, which this loss does not give it: pass a float")
        value = value if several or not value.ndim else value.reshape(())
        if self.constant or (value.device.type == "cpu" and not tracing()):
            for number in value.detach().aminmax() if several else (value.detach(),):
                self._check(what, float(number))
        return float(value.detach()) if self.constant else value

    def _check(self, what: str, value: float) -> None:
        if (value > self.low if self.open_low else value >= self.low) and value < self.high:
            return
        bound = f" and {'above' if self.open_low else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        bound += f" and below {self.high:g}" if self.high < math.inf else ""
        raise ValueError(f"{what} is {value:g}, but must be finite{bound}")

    def _several(self, what: str, shape: tuple[int, ...]) -> str:
        wanted = ", or one a row, (n,)" if self.per_row else ", the same for all rows"
        return f"{what} has shape {tuple(shape)}; one number was wanted{wanted}{self.instead}"


def one_a_row(what: str, value: float | Tensor, rows: int | None) -> None:
    """Refuse numbers that are neither one for all rows nor one for each; ``None``: rows meet each other, so one for all."""
    if isinstance(value, Tensor) and value.ndim and len(value) != rows:
        wanted = ", the same for all rows of a batch" if rows is None else f", or one a row, ({rows},)"
        raise ValueError(f"{what} has shape {tuple(value.shape)}; one number was wanted{wanted}")


FINITE = Number()
POSITIVE = Number(0.0)
NOT_NEGATIVE = Number(0.0, open_low=False)
PER_BATCH = Number(
    0.0,
    instead="; for one a query, pass rows of length one, each query's divided by its own: normalize=False, temperature=1.0",
)
"""A temperature, or the scale in its place."""
