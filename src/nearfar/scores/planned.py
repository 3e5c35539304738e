"""What the scores of queries with keys are made of: rows, who belongs with whom, and the choice of a plan to visit them by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.pairs import Pairs
from nearfar.rules import Matrix, Overlap
from nearfar.scores import few, held
from nearfar.scores.autograd import beyond_a_gradient, full_precision, in_transform
from nearfar.scores.cuda_tiles import HALVES, at_hand, require
from nearfar.scores.hold import Given
from nearfar.scores.similarity import all_scores, normalize, rounded
from nearfar.types import Backend, Precision, Similarity

_ONE_TILE = 1024 * 1024  # up to so many scores one tile holds them all
_KEPT = 2048 * 2048  # and so many are kept for what element functions ask
_KEPT_WIDE = 4096 * 4096  # and from both sides of long rows, where tiles take four products in place of three
_MANY = 1 / 6  # of all pairs, as positives: five classes or fewer
TILE: ContextVar[int | None] = ContextVar("tile", default=None)


@contextlib.contextmanager
def tile_size(rows: int) -> Iterator[None]:
    """Within this context every tiled plan uses tiles of this many rows (tests; tuning)."""
    token = TILE.set(rows)
    try:
        yield
    finally:
        TILE.reset(token)


Plan = Backend | Literal["small"]
P = TypeVar("P", bound="Planned")


@dataclass(frozen=True, eq=False)
class Planned:
    """Scores ``s_ij`` of ``n`` queries with ``m`` keys, not computed yet.

    Attributes:
        query_rows: ``(n, d)``, float32 or float64.
        key_rows: ``(m, d)``; the same tensor as ``query_rows`` for rows paired with themselves.
        pairs: Who belongs with whom.
        similarity: What a score is.
        offsets: Added to the score of each key, ``(m,)``.
        backend: The plan by name, or ``None``.
        unit: Divide rows by their norm first.
        scale: Multiplies the products of rows, above 0; one number.
        precision: What rows are rounded to for their products; statistics stay in float32.
        power_of: The scores that these are a multiple of, and what multiplies them.
    """

    query_rows: Float[Tensor, "n d"]
    key_rows: Float[Tensor, "m d"]
    pairs: Pairs
    similarity: Similarity = "dot"
    offsets: Float[Tensor, " m"] | None = None
    backend: Backend | None = None
    unit: bool = False
    scale: float | Tensor = 1.0
    precision: Precision | None = None

    power_of: tuple[Planned, float] | None = None

    _made: dict[bool, tuple[Tensor, Tensor]] = field(init=False, repr=False, default_factory=dict)
    _kept: dict[bool, few.Few | held.Held] = field(init=False, repr=False, default_factory=dict)
    _all: dict[bool, Tensor] = field(init=False, repr=False, default_factory=dict)

    # ---- the rows as they are multiplied ----------------------------------------------------------------------------

    @property
    def queries(self) -> Float[Tensor, "n d"]:
        """``(n, d)``, normalised and scaled."""
        return self._rows()[0]

    @property
    def keys(self) -> Float[Tensor, "m d"]:
        """``(m, d)``, normalised; the same tensor as ``queries`` for rows paired with themselves."""
        return self._rows()[1]

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Made once, with a graph and without."""
        grad = torch.is_grad_enabled()
        if grad not in self._made:
            with full_precision(self.query_rows):
                self._made[grad] = self._make_rows()
        return self._made[grad]

    def _make_rows(self) -> tuple[Tensor, Tensor]:
        own = self.key_rows is self.query_rows
        sides: tuple[Tensor, ...] = (self.query_rows,) if own else (self.query_rows, self.key_rows)
        sides = tuple(normalize(side) for side in sides) if self.unit else sides
        narrow = self.narrow
        if self.precision is not None and narrow is None:  # products of rounded rows, else in full
            sides = tuple(rounded(side, HALVES[self.precision]) for side in sides)
        if not isinstance(self.scale, float) or self.scale != 1.0:
            root = self.scale.sqrt() if isinstance(self.scale, Tensor) else self.scale**0.5
            # rows on both sides take the root, so that they stay one
            sides = (sides[0] * root,) if own else (sides[0] * self.scale, *sides[1:])
        if narrow is not None:  # as the products will round them, so that positives agree
            sides = tuple(rounded(side, HALVES[narrow]) for side in sides)
        return sides[0], sides[-1]

    @property
    def matrix(self) -> Float[Tensor, "n m"]:
        """All scores by the definition, made once, with a graph and without: what the dense plan reads."""
        found = self._products()
        return found if self.offsets is None else found + self.offsets

    def _products(self) -> Float[Tensor, "n m"]:
        """The same before offsets."""
        grad = torch.is_grad_enabled()
        if grad not in self._all:
            with full_precision(self.query_rows):
                if self.power_of is None:
                    self._all[grad] = all_scores(self.queries, self.keys, self.similarity)
                else:
                    base, power = self.power_of
                    self._all[grad] = base._products() * power
        return self._all[grad]

    def _with_rows(self: P, queries: Tensor, keys: Tensor, **changes: Any) -> P:
        """The same with other rows, ready to be multiplied."""
        return replace(
            self,
            query_rows=queries,
            key_rows=keys,
            unit=False,
            scale=1.0,
            precision=self.narrow,
            power_of=None,
            **changes,
        )

    # ---- the plan ---------------------------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """How the scores will be visited."""
        device = self.query_rows.device
        if self.backend is not None:
            if self.backend == "cuda":
                require(device)
            if self.backend != "dense" and beyond_a_gradient():
                raise RuntimeError(
                    f"backend={self.backend!r} has a gradient, and no more (vmap, jvp, hessian, grad of grad): "
                    "pass backend='dense', or leave backend= out"
                )
            return self.backend
        if torch.compiler.is_compiling() or beyond_a_gradient():
            return "dense"  # plain torch: the compiler fuses it, where it would unroll the loops of other plans
        if in_transform():
            return "tiled"
        return "small" if self._one_tile(_ONE_TILE) else "cuda" if at_hand(device) else "tiled"

    def _one_tile(self, most: int) -> bool:
        """Whether all scores may be one tile of a softmax loss, of at most so many."""
        n, m = self.pairs.shape
        if not (0 < n * m <= most and self.similarity == "dot" and self._one_number):
            return False
        if self.query_rows.device.type == "cpu":
            return True
        # elsewhere a look at a number would wait for the device, and half precision counts
        known = self.unit and not isinstance(self.scale, Tensor) and self.offsets is None
        return n * m <= _ONE_TILE and known and self.precision is None

    @property
    def traced(self) -> bool:
        """Whether values cannot be looked at: under torch.compile or a transform of torch.func."""
        return torch.compiler.is_compiling() or in_transform()

    @property
    def _one_number(self) -> bool:
        return not isinstance(self.scale, Tensor) or self.scale.numel() == 1

    @property
    def _wide(self) -> bool:
        """Whether the rows have half as many numbers as the scores, or more."""
        n, m = self.pairs.shape
        return n * m <= 2 * (n + m) * self.query_rows.shape[1]

    def at_once(self, both_ways: bool = False) -> bool:
        """Whether a mean softmax takes all scores as one tile."""
        if self.plan == "small":
            return True
        halved = self.symmetric and not both_ways and not self._wide  # tiles of rows paired with themselves serve twice
        most = _KEPT_WIDE if both_ways and self._wide else _KEPT
        usual = self.backend is None and self.narrow is None and not self.traced
        return usual and not halved and self._one_tile(most)

    @property
    def holds(self) -> bool:
        """Whether all scores are made once and kept: where the loss is no mean softmax, and the matrix fits the cache."""
        n, m = self.pairs.shape
        usual = self.backend is None and self.query_rows.device.type == "cpu" and self._one_number and not self.traced
        return usual and 0 < n * m <= _KEPT

    @property
    def _held_for_sums(self) -> bool:
        """Whether log-sum-exps are taken of kept scores, which tiles of narrow rows are quicker at."""
        n, m = self.pairs.shape
        known = self.at_hand or self.similarity != "dot" or self.power_of is not None
        return self.holds and (known or n * m <= _ONE_TILE or (self._wide and self.narrow is None))

    @property
    def at_hand(self) -> bool:
        """Whether all scores were made already, so that those of the positives cost nothing."""
        return torch.is_grad_enabled() in self._kept

    @property
    def _held(self) -> few.Few | held.Held:
        """Made once, with a graph and without."""
        grad = torch.is_grad_enabled()
        if grad not in self._kept:
            kind = few.Few if self._by_numbers() else held.Held
            with full_precision(self.query_rows):
                self._kept[grad] = kind(self._given(), self.pairs)
        return self._kept[grad]

    def _given(self) -> Given:
        """What a small batch is made of: rows as they came, or, where they are rounded, as they are multiplied."""
        if self.precision is None:
            return Given(self.query_rows, self.key_rows, self.scale, self.offsets, self.similarity, self.unit)
        return Given(self.queries, self.keys, 1.0, self.offsets, self.similarity, unit=False)

    def _by_numbers(self) -> bool:
        """Whether a matrix says who belongs with whom, for a list of positives would be long or take long to find."""
        pairs = self.pairs
        if pairs.listed or pairs.few:
            return not pairs.listed
        n, m = pairs.shape
        if pairs.ids is not None:
            return float(pairs.count("positives").sum()) > _MANY * n * m
        if not all(isinstance(part, Matrix | Overlap) for part in pairs.parts):
            return False  # ids of several kinds are shared by few
        positive = pairs.whole().positive
        return positive is not None and int(positive.count_nonzero()) > _MANY * n * m

    @property
    def single(self) -> bool:
        """Whether no query has two positives, as far as it can be told without waiting for a device."""
        return self.pairs.paired or (
            not self.traced and self.query_rows.device.type == "cpu" and self.pairs.at_most_one()
        )

    @property
    def narrow(self) -> Precision | None:
        """What the products of tiles round rows to: on a GPU, and on a CPU where the matrix is large enough to pay for it."""
        n, m = self.pairs.shape
        large = self.plan in ("tiled", "strip") and n * m > _ONE_TILE and self.query_rows.dtype == torch.float32
        return self.precision if self.similarity == "dot" and (self.plan == "cuda" or large) else None

    @property
    def symmetric(self) -> bool:
        """Whether ``s_ij`` and the relation are both symmetric, so that half of the tiles suffice."""
        return self.key_rows is self.query_rows and self.offsets is None and self.pairs.symmetric

    def _tile(self, rows: int = 512) -> tuple[int, int]:
        rows = TILE.get() or (2048 if self.plan == "cuda" else rows)
        return (rows, max(self.pairs.shape[1], 1)) if self.plan == "strip" else (rows, rows)

    @property
    def T(self: P) -> P:
        """Keys asking the queries."""
        flipped = self._with_rows(self.keys, self.queries, pairs=self.pairs.T, offsets=None)
        if self.plan == "dense":
            flipped._all[torch.is_grad_enabled()] = self._products().T
        return flipped

    def scaled(self: P, scale: float | Tensor) -> P:
        """The same scores times ``scale``, above 0 (dot products; before any offsets)."""
        return replace(self, scale=self._times(scale), power_of=None)

    def powered(self: P, power: float) -> P:
        """The same scores, offsets included, times ``power``: what e^s raised to it has for exponents."""
        offsets = None if self.offsets is None else self.offsets * power
        return replace(self, scale=self._times(power), offsets=offsets, power_of=(self, power))

    def _times(self, scale: float | Tensor) -> float | Tensor:
        return scale if isinstance(self.scale, float) and self.scale == 1.0 else scale * self.scale

    def _by_class(self: P) -> tuple[P, Int[Tensor, " n"] | None, Int[Tensor, " m"] | None]:
        """Rows in order of their ids, so that most tiles hold no positive; and the orders of queries and keys."""
        ids = self.pairs.ids
        if ids is None or self.plan not in ("tiled", "cuda") or not len(ids[0]) or not len(ids[1]):
            return self, None, None
        order = key_order = ids[0].argsort(stable=True)
        queries = keys = self.queries[order]
        if self.keys is not self.queries or ids[0] is not ids[1]:
            if self.pairs.own is not None:  # the diagonal would be lost
                return self, None, None
            key_order = ids[1].argsort(stable=True)
            keys = self.keys[key_order]
        offsets = None if self.offsets is None else self.offsets[key_order]
        pairs = self.pairs.take(order, key_order)
        return self._with_rows(queries, keys, pairs=pairs, offsets=offsets), order, key_order
