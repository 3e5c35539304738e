"""``nf.evaluate``: everything that embeddings, with what is known of them, allow to be measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_ids, as_rows
from nearfar.evaluation.intervals import bootstrap_interval, share_interval
from nearfar.evaluation.knn import Metric, knn_predict
from nearfar.evaluation.retrieval import Retrieval, pair_retrieval, retrieval

QUERIES = 10_000
"""Queries at most; the 95% interval of a share is then ±1 point at the widest."""


@dataclass(frozen=True)
class Measure:
    """A figure, what chance would give, and how sure it is."""

    task: str
    """``knn``, ``retrieval``, ``first→second``, …: the table's sections."""
    name: str
    value: float
    chance: float | None = None
    low: float | None = None
    """The 95% interval, over the rows measured: what other rows of the same kind would give. Not over trainings."""
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Prints as a table."""

    measures: tuple[Measure, ...]
    rows: int
    dim: int
    metric: str
    notes: tuple[str, ...] = ()
    """What was left out or drawn, and why."""
    _index: dict[str, Measure] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._index.update({f"{m.task}/{m.name}": m for m in self.measures})
        for m in self.measures:
            self._index.setdefault(m.name, m)

    def __getitem__(self, name: str) -> float:
        """The value of ``"recall@1"``, or of ``"retrieval/recall@1"`` where several tasks have one."""
        if name not in self._index:
            known = ", ".join(f"{m.task}/{m.name}" for m in self.measures)
            raise KeyError(f"{name!r} was not measured; there are {known}")
        return self._index[name].value

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as JSON takes them: no NaN in it."""
        return {
            "rows": self.rows, "dim": self.dim, "metric": self.metric, "notes": list(self.notes),
            "measures": [
                {"task": m.task, "name": m.name} | {
                    key: None if value is None or not math.isfinite(value) else value
                    for key, value in (("value", m.value), ("chance", m.chance), ("low", m.low), ("high", m.high))
                }
                for m in self.measures
            ],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Evaluation:
        """Back from :meth:`to_dict`."""
        measures = tuple(
            Measure(**{**m, "value": math.nan if m["value"] is None else m["value"]}) for m in held["measures"]
        )
        return cls(measures, held["rows"], held["dim"], held["metric"], tuple(held["notes"]))

    def __str__(self) -> str:
        body = [
            (
                m.task,
                m.name,
                _show(m.value),
                "" if m.low is None else f"{_show(m.low)} – {_show(m.high)}",
                _show(m.chance),
            )
            for m in self.measures
        ]
        table = [("task", "measure", "value", "95% interval", "chance"), *body]
        widths = [max(len(row[column]) for row in table) for column in range(5)]
        lines = [f"{self.rows:,} rows of {self.dim} features, {self.metric}"]
        previous = ""
        for row in table:
            cells = ["" if row[0] == previous else row[0], *row[1:]]
            previous = row[0]
            lines.append(
                "  ".join(
                    c.rjust(w) if at >= 2 else c.ljust(w) for at, (c, w) in enumerate(zip(cells, widths))
                ).rstrip()
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def evaluate(
    embeddings: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"] | None = None,
    *,
    pairs: Float[Tensor, "n d"] | None = None,
    gallery: tuple[Float[Tensor, "m d"], Int64[Tensor, "m"]] | None = None,
    train: tuple[Float[Tensor, "t d"], Int64[Tensor, "t"]] | None = None,
    k: int = 20,
    ks: Sequence[int] = (1, 5, 10),
    metric: Metric = "cosine",
    queries: int | None = QUERIES,
    seed: int = 0,
) -> Evaluation:
    """Measures what the inputs allow.

    Args:
        embeddings: ``(n, d)``, of rows that were not trained on.
        labels: Their classes; negative: unknown, left out.
        pairs: Their partners ``(n, d)``: row i belongs to row i, such as captions of images.
        gallery: Keys and their classes, to retrieve from in place of the other rows.
        train: Rows to learn classifiers from, and their classes.
        k: Neighbours that vote.
        ks: Cut-offs of retrieval.
        metric: How rows are compared.
        queries: Rows that retrieve, at most, drawn with the seed; ``None``: all.
        seed: Of draws.

    Raises:
        ValueError: If there is nothing to measure with, or an input is not as said.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> evaluate(z, torch.tensor([0, 0, 1, 1]), ks=(1,))["recall@1"]
        1.0
    """
    embeddings = as_rows("embeddings", embeddings)
    notes: list[str] = []
    measures: list[Measure] = []
    if labels is None and pairs is None:
        raise ValueError("nothing is known of the rows: pass labels, or pairs= with the partner of each row")
    if labels is not None:
        labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
        measures += _by_labels(embeddings, labels, gallery, train, k, ks, metric, queries, seed, notes)
    if pairs is not None:
        there, back = pair_retrieval(embeddings, pairs, ks=ks, metric=metric)
        measures += [*_retrieval("first→second", there, seed), *_retrieval("second→first", back, seed)]
    return Evaluation(tuple(measures), len(embeddings), embeddings.shape[1], metric, tuple(notes))


def _by_labels(
    z: Tensor, labels: Tensor, gallery: tuple[Tensor, Tensor] | None, train: tuple[Tensor, Tensor] | None, k: int,
    ks: Sequence[int], metric: Metric, queries: int | None, seed: int, notes: list[str],
) -> list[Measure]:  # fmt: skip
    known = (labels >= 0).nonzero()[:, 0]
    if not len(known):
        raise ValueError(f"none of {len(labels)} rows has a label (0 or more)")
    if len(known) < len(labels):
        notes.append(f"{len(labels) - len(known):,} rows without a label were left out")
    z, labels = z[known], labels[known]
    counts = labels.unique(return_counts=True)[1]
    measures = []
    if train is not None or len(z) > 1:
        voters, classes = (None, labels) if train is None else train
        right = knn_predict(z, voters, classes, k, metric=metric) == labels
        interval = share_interval(int(right.sum()), len(right))
        measures.append(
            Measure("knn", "accuracy", float(right.double().mean()), float(counts.max() / len(z)), *interval)
        )
    if gallery is not None:
        measures += _retrieval("retrieval", retrieval(z, labels, *gallery, ks=ks, metric=metric), seed, notes)
    elif int(counts.max()) > 1:
        measures += _retrieval("retrieval", retrieval(z, labels, ks=ks, metric=metric), seed, notes)
    else:
        notes.append("no two rows share a class: no retrieval by labels")
    return measures


def _retrieval(task: str, found: Retrieval, seed: int, notes: list[str] | None = None) -> list[Measure]:
    if notes is not None and found.left_out:
        notes.append(f"{task}: {found.left_out:,} rows without a relevant key were left out")
    measures = []
    for name, value in found.scores.items():
        if name.startswith("found") or (name.startswith("ndcg") and name != list(found.scores)[-2]):
            continue  # with whole classes relevant the share found says little; one nDCG is enough
        values = found.per_query[name]
        share = name.startswith("recall")
        interval = share_interval(int(values.sum()), len(values)) if share else bootstrap_interval(values, seed)
        measures.append(Measure(task, name, value, found.chance.get(name), *interval))
    return measures


def _show(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
