"""Scores of queries with all keys, fast and rough by tiles, or exact for a few; and the order that they define.

Every metric becomes a product to be made large, the *value*: ``⟨x, y⟩``, that of normalised rows (cosine), or
``⟨x, y⟩ − ½|y|²`` of centred rows, which orders the keys of a query as their distances do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nearfar.lengths import safe_range
from nearfar.scores.matmul import mm

_HELD = 2**28
"""Bytes of prepared keys that are kept; larger sets are prepared tile by tile, each time."""
_EXACT = 2**21
"""Numbers gathered at a time for exact scores."""
_TIED = 36
"""Bits of a value that decide an order. Beyond them lies the rounding of float64 sums, which depends on their order."""


@dataclass(frozen=True, eq=False)
class Keys:
    """The keys, and what is known of them."""

    rows: Tensor
    metric: str

    @cached_property
    def norms(self) -> Tensor:
        """Lengths, as float64: of centred rows for distances."""
        return self.lengths(self.rows)

    @cached_property
    def centre(self) -> Tensor:
        """The mean, taken off before distances: they stay, and products lose fewer digits."""
        return torch.stack([part.sum(0, dtype=torch.float64) for part in self.rows.split(65536)]).sum(0) / len(
            self.rows
        )

    @cached_property
    def longest(self) -> float:
        """The greatest of the lengths."""
        return float(self.norms.max())

    @cached_property
    def _half_squares(self) -> Tensor:
        return self.norms.square() / 2

    @cached_property
    def _held(self) -> Tensor | None:
        small = self.rows.numel() * 4 <= _HELD
        return self._prepare(self.rows, self.norms, torch.float32) if small else None

    def prepare(self) -> None:
        """Works out once what all queries need, before threads ask for it at the same time."""
        _ = self.longest, self._half_squares, self._held

    def lengths(self, rows: Tensor) -> Tensor:
        """|x| of each row, centred for distances, as float64."""
        parts = []
        for part in rows.split(16384):
            wide = part.double() if self.metric != "euclidean" else part.double() - self.centre
            parts.append(torch.linalg.vector_norm(wide, dim=1))
        return torch.cat(parts)

    def _prepare(self, rows: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
        if self.metric == "euclidean":
            return (rows.double() - self.centre).to(dtype) if rows.dtype != dtype else rows - self.centre.to(dtype)
        rows = rows.to(dtype)
        if self.metric == "dot":
            return rows
        return rows * norms.reciprocal().masked_fill_(norms == 0, 0.0).to(dtype)[:, None]

    def queries(self, rows: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
        """Queries as ``tile`` wants them."""
        return self._prepare(rows, norms, dtype)

    def scale(self, norms: Tensor) -> Tensor:
        """The largest magnitude that a query's values can have ``(b, 1)``, float64."""
        if self.metric == "cosine":
            return torch.ones_like(norms)[:, None]
        scale = norms * self.longest + (self.longest**2 / 2 if self.metric == "euclidean" else 0.0)
        return scale.clamp_min(torch.finfo(torch.float64).tiny)[:, None]

    def tile(self, queries: Tensor, j: slice) -> Tensor:
        """Values of prepared queries with some keys, to within :func:`slack` of the exact ones."""
        held = self._held if queries.dtype == torch.float32 else None
        keys = self._prepare(self.rows[j], self.norms[j], queries.dtype) if held is None else held[j]
        values = mm(queries, keys.T)
        return values.sub_(self._half_squares[j].to(values.dtype)) if self.metric == "euclidean" else values

    def exact(self, queries: Tensor, norms: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Values and scores with chosen keys ``(b, c)``, float64, each summed alone: the same whatever stands beside it."""
        values, scores = [], []
        step = max(1, _EXACT // max(1, columns.shape[1] * queries.shape[1]))
        for x, length, chosen in zip(queries.split(step), norms.split(step), columns.split(step)):
            x, y = x.double()[:, None], self.rows[chosen.flatten()].double().view(*chosen.shape, -1)
            if self.metric == "euclidean":
                square = (x - y).square_().sum(2)
                values.append((length[:, None].square() - square) / 2)
                scores.append(square.sqrt_())
                continue
            product = (x * y).sum(2)
            if self.metric == "cosine":
                lengths = length[:, None] * self.norms[chosen]
                product /= lengths.masked_fill_(lengths == 0, 1.0)  # a zero row has cosine 0 with all
            values.append(product)
            scores.append(product.clamp(-1.0, 1.0) if self.metric == "cosine" else product)
        return torch.cat(values), torch.cat(scores)


def in_range(rows: Tensor, unit: float | None = None) -> Tensor:
    """Rows whose squares float32 can hold: as they are, or in float64 by another unit.

    Args:
        rows: Any.
        unit: What to divide by; ``None``: each row by its largest entry, for cosines.
    """
    if unit is not None:
        return rows if unit == 1 else rows.double() / unit
    largest = rows.abs().amax(1, keepdim=True)
    low, high = safe_range(torch.float32, rows.shape[1])
    if bool(((largest == 0) | ((largest >= low) & (largest <= high))).all()):
        return rows
    return rows.double() / largest.double().masked_fill_(largest == 0, 1.0)


def unit_of(*sides: Tensor) -> float:
    """What to divide rows by before their distances or products: 1, or a power of two where their squares leave float32."""
    largest = max(float(side.abs().max()) for side in sides)
    low, high = safe_range(torch.float32, sides[0].shape[1])
    return 1.0 if largest == 0 or low <= largest <= high else 2.0 ** min(math.frexp(largest)[1], 1023)


def score_unit(unit: float, metric: str) -> float:
    """What to multiply scores by of rows that were divided by a unit.

    Raises:
        ValueError: If products are beyond float64.
    """
    found = {"cosine": 1.0, "euclidean": unit, "dot": unit * unit}[metric]
    if math.isinf(found):
        raise ValueError(
            "keys are too large: their products are infinite in float64. Divide them, or compare by cosine"
        )
    return found


def settled(scores: Tensor, scale: float = 1.0) -> Tensor:
    """Scores in float64 without the rounding of their sums: what is equal is equal then, and no cosine is above 1.

    Args:
        scores: Float64.
        scale: The largest magnitude that they can have.
    """
    step = 2.0 ** (math.frexp(scale or 1.0)[1] - 1 - _TIED)  # a power of two, so that what is exact stays exact
    return (scores / step).round_().mul_(step)


def slack(d: int, dtype: torch.dtype) -> float:
    """How far a product of ``d`` terms may be from its exact value, relative to the scale: ``γ_d`` and the inputs' rounding
    (Higham 2002, eq. 3.5), with some room.
    """
    return 1.1 * (d + 16) * torch.finfo(dtype).eps / 2


def ranks(values: Tensor, columns: Tensor, scale: Tensor, keys: int) -> Tensor:
    """Whole numbers that order keys: larger values first, equal ones by the lower column. No two are the same.

    Values are equal that agree in their first bits, counted from the scale.
    """
    places = _places(keys)
    whole = (values * (2.0 ** min(_TIED, 61 - places) / scale)).round_().to(torch.int64)
    return whole.mul_(2**places).add_(2**places - 1 - columns)


def levels(ranks: Tensor, keys: int) -> Tensor:
    """The part of :func:`ranks` that says how near a key is: the same for keys of equal value."""
    return ranks >> _places(keys)


def columns_of(ranks: Tensor, keys: int) -> Tensor:
    """The part of :func:`ranks` that says which key it is."""
    last = 2 ** _places(keys) - 1
    return last - (ranks & last)


def descending(ranks: Tensor) -> Tensor:
    """Rows of whole numbers sorted, largest first: on a CPU by NumPy, several times as fast as torch where it has AVX-512."""
    if ranks.device.type != "cpu":
        return ranks.sort(1, descending=True).values
    return torch.from_numpy(np.sort(ranks.numpy(), axis=1)).flip(1)


def _places(keys: int) -> int:
    """Bits that tell so many columns apart."""
    return max(1, (keys - 1).bit_length())
