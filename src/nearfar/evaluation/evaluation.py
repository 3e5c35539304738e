"""What an evaluation found, as numbers and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A figure, what chance would give, and how sure it is."""

    task: str
    """``knn``, ``retrieval``, ``first→second``, …: the sections of the table."""
    name: str
    value: float
    chance: float | None = None
    """What embeddings that know nothing would be expected to reach."""
    low: float | None = None
    """The 95% interval, over the rows measured: what other rows of the same kind would give. Not over trainings."""
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Prints as a table.

    Example:
        >>> found = Evaluation((Measure("knn", "accuracy", 0.9, 0.1, 0.85, 0.94),), 100, 8, "cosine")
        >>> print(found)
        100 rows of 8 features, cosine
        task  measure    value     95% interval  chance
        knn   accuracy  0.9000  0.8500 – 0.9400  0.1000
        >>> found["accuracy"], found["knn/accuracy"], Evaluation.from_dict(found.to_dict()) == found
        (0.9, 0.9, True)
    """

    measures: tuple[Measure, ...]
    rows: int
    dim: int
    metric: str
    notes: tuple[str, ...] = ()
    """What was left out or drawn, and why."""

    def get(self, name: str) -> Measure:
        """The measure called ``"recall@1"``, or ``"retrieval/recall@1"`` where several tasks have one.

        Raises:
            KeyError: If it was not measured; the message names what was.
        """
        for m in self.measures:
            if name in (m.name, f"{m.task}/{m.name}"):
                return m
        raise KeyError(f"{name!r} was not measured; there are {', '.join(f'{m.task}/{m.name}' for m in self.measures)}")

    def __getitem__(self, name: str) -> float:
        return self.get(name).value

    def __contains__(self, name: object) -> bool:
        return any(name in (m.name, f"{m.task}/{m.name}") for m in self.measures)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as JSON takes them: what is not finite is ``None``."""
        numbers = ("value", "chance", "low", "high")
        return {
            "rows": self.rows,
            "dim": self.dim,
            "metric": self.metric,
            "notes": list(self.notes),
            "measures": [
                {"task": m.task, "name": m.name} | {name: _finite(getattr(m, name)) for name in numbers}
                for m in self.measures
            ],
        }

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Evaluation:
        """Back from :meth:`to_dict`."""
        measures = (Measure(**{**m, "value": math.nan if m["value"] is None else m["value"]}) for m in held["measures"])
        return cls(tuple(measures), held["rows"], held["dim"], held["metric"], tuple(held["notes"]))

    def __str__(self) -> str:
        table = [("task", "measure", "value", "95% interval", "chance")]
        for m in self.measures:
            between = "" if m.low is None or m.high is None else f"{_show(m.low)} – {_show(m.high)}"
            table.append((m.task, m.name, _show(m.value), between, _show(m.chance)))
        widths = [max(len(row[column]) for row in table) for column in range(5)]
        lines, previous = [f"{self.rows:,} row{'s' * (self.rows != 1)} of {self.dim} features, {self.metric}"], ""
        for row in table if self.measures else ():
            cells = ("" if row[0] == previous else row[0], *row[1:])
            previous = row[0]
            padded = (cell.rjust(w) if at >= 2 else cell.ljust(w) for at, (cell, w) in enumerate(zip(cells, widths)))
            lines.append("  ".join(padded).rstrip())
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _show(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
