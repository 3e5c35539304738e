"""What losses against one learned row a class share: reading their arguments, and the table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from nearfar.given import at_least, ids_of
from nearfar.losses.arguments import (
    Options,
    a_generator,
    as_matrix,
    check_names,
    check_rows,
    check_weights,
    parameter,
    with_tensors,
    working_dtype,
)
from nearfar.losses.base import Loss, Outcome, averaged, mean_weights
from nearfar.losses.numbers import one_a_row, tracing
from nearfar.pairs import Pairs
from nearfar.rules import Ids
from nearfar.scores import Scores, Stage, normalize, sum_over
from nearfar.scores.autograd import full_precision
from nearfar.scores.class_softmax import Ask, mean_class_softmax
from nearfar.scores.gather import meet
from nearfar.scores.similarity import picked_scores
from nearfar.types import Backend, Similarity

OWN: Stage = {"value": sum_over("positives")}


class Classified:
    """Rows of known label (this rank's), their class table and weights, in working precision.

    Classes are the same on all ranks, so that no row has to travel: only sums over rows do, and the table's gradient.
    """

    def __init__(self, z: Tensor, labels: Tensor, table: Tensor, options: Options, normalized: bool) -> None:
        check_names(options)
        z = as_matrix("embeddings", z)
        table, options = as_matrix("table", table, z), with_tensors(options, z.device)
        labels = ids_of("labels", labels, z.device)
        if labels.shape != (len(z),) or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; one integer a row, ({len(z)},), was wanted"
            )
        if z.shape[1] != table.shape[1]:
            raise ValueError(f"embeddings have {z.shape[1]} features but the class table has {table.shape[1]}")
        unused = set(options) - {"normalize", "weights", "backend", "precision", "gather", "validate"}
        if unused:
            raise TypeError(f"{min(unused)}= speaks of pairs of rows; a loss against classes has none")
        check_rows("embeddings", z, options.get("validate"))
        weights = check_weights(options.get("weights"), options.get("validate"), len(z))
        look = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and len(labels) and int(labels.max()) >= len(table):
            raise ValueError(
                f"labels reach {int(labels.max())} but there are {len(table)} classes, 0 to {len(table) - 1}"
            )
        dtype = working_dtype(z, table)
        self.unit = bool(options.get("normalize", normalized))
        self.ranks = meet(len(z), options.get("gather"), z.device)
        with full_precision(z):
            self.given = z.to(dtype), self.ranks.shared(table.to(dtype))
        self._scores: dict[Similarity, Scores] = {}
        self._prepared: tuple[Tensor, Tensor] | None = None
        self.known = labels >= 0
        self.labels = labels.long().clamp(min=0)
        self.weights = None if weights is None else weights.to(dtype)
        self.backend: Backend | None = options.get("backend")
        known = self.known
        self.stats = lambda: {"queries": torch.tensor(len(known)), "unknown": (~known).sum()}

    @property
    def prepared(self) -> tuple[Tensor, Tensor]:
        """The rows and the classes, of length one where that was asked for."""
        if self._prepared is None:
            z, table = self.given
            with full_precision(z):
                self._prepared = (normalize(z), normalize(table)) if self.unit else self.given
        return self._prepared

    def number(self, value: float | Tensor) -> Tensor:
        """A parameter of the loss that element functions can read."""
        return self.ranks.shared(parameter(value, self.given[0]))

    def number_a_row(self, name: str, value: float | Tensor) -> Tensor:
        """The same of a parameter that may differ from row to row."""
        one_a_row(name, value, len(self.labels))
        return self.number(value)

    def averaged(self, values: Callable[[], Tensor], keep: Tensor) -> Outcome:
        """The mean of values by row over the rows that are kept."""
        return averaged(values, keep, self.weights, self.stats, self.ranks)

    def visited(self, outcome: Outcome, keep: Tensor, scale: Tensor, margin: Tensor, ask: Ask) -> Outcome:
        """The same mean by one visit of the classes, where there is a plan for it."""
        usual = self.unit and self.backend is None and self.given[0].device.type == "cpu" and not tracing()
        full = all(part.numel() for part in self.given)
        if not (usual and full) or margin.ndim:
            return outcome

        def value() -> Tensor:
            weights = mean_weights(keep, self.weights, self.given[0].dtype, self.ranks)
            return self.ranks.total(mean_class_softmax(*self.given, self.labels, weights, scale, margin, ask))

        return replace(outcome, value=value)

    def scores(self, similarity: Similarity = "dot") -> Scores:
        """Rows asking the classes."""
        if similarity not in self._scores:
            shape = len(self.labels), len(self.given[1])
            classes = torch.arange(shape[1], device=self.labels.device)
            pairs = Pairs(shape, (Ids(self.labels, classes, False, numbered=True),))
            self._scores[similarity] = Scores(*self.given, pairs, similarity, backend=self.backend, unit=self.unit)
        return self._scores[similarity]

    def own(self, similarity: Similarity = "dot") -> Tensor:
        """Score of each row with its own class."""
        if similarity in self._scores and self._scores[similarity].at_hand:
            return self._scores[similarity].reduce(OWN)["value"]
        return picked_scores(*self.prepared, self.labels, similarity)

    def own_sine(self, rows: Tensor) -> Tensor:
        """Sine of the angle of some rows with their own class, without gradient: half of ``|x − c|·|x + c|``."""
        z, table = (side.index_select(0, which) for side, which in zip(self.given, (rows, self.labels[rows])))
        z, table = normalize(z), normalize(table)
        return ((z - table).square_().sum(1) * (z + table).square_().sum(1)).sqrt_().div_(2)


class ClassLoss(Loss):
    """A loss that owns one row a class: give its parameters to the optimiser, often at a higher rate.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        generator: For the table's start, drawn normal and scaled to rows of about unit length.
    """

    start: ClassVar[float] = 1.0

    def __init__(self, num_classes: int, dim: int, *, generator: torch.Generator | None = None, **options: Any) -> None:
        super().__init__(**options)
        num_classes, dim = at_least("num_classes", num_classes, 1), at_least("dim", dim, 1)
        generator = a_generator("generator", generator)
        self.table = nn.Parameter(torch.randn(num_classes, dim, generator=generator) * (self.start / math.sqrt(dim)))

    @override
    def arguments(self) -> dict[str, Any]:
        return {"table": self.table}
