"""What the page of a run shows of its embeddings: map, neighbours, similarities, spectrum, confusion, ROC."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nearfar.data.labelled import require
from nearfar.data.similar import LIKENESS
from nearfar.diagnostics.geometry import FEW, effective_rank, similarity_histogram, spectrum
from nearfar.evaluation.evaluate import evaluate
from nearfar.evaluation.evaluation import Evaluation
from nearfar.evaluation.knn import VOTERS, fitting_voters, knn_predict, nearest
from nearfar.evaluation.verification import calibrate, pair_scores, roc
from nearfar.index.held_out import HeldOut
from nearfar.index.thumbnails import make_item
from nearfar.report import run_schema as page

NEIGHBOURS = 6
"""Shown of a query."""
QUERIES = 24
"""Queries shown; as many from each class as it comes out."""
KS = (1, 5)
"""Cut-offs of retrieval, where no evaluation of the run is there."""
CLASSES = 60
"""A confusion of more of them can be read by nobody."""
SIDE = 56
"""Pixels of a picture in the gallery of neighbours, a little larger than on the map."""


def items_of(held: HeldOut, at: int, rows: list[int] | None = None, side: int = 32) -> list[page.Item]:
    """Rows of an input as a page shows them."""
    raw, kind = held.raw[at], held.columns[at].kind
    chosen = range(len(held.rows)) if rows is None else rows
    labels = None if held.labels is None else held.labels.tolist()
    return [
        make_item(held.part.name(int(held.rows[i])), raw[i], None if labels is None else labels[i], kind, side)
        for i in chosen
    ]


def embedding_map(held: HeldOut, method: Literal["pca", "umap"] = "pca") -> page.EmbeddingMap:
    """The embeddings in a plane; those of a pair's both sides, where there are two.

    Args:
        held: The rows.
        method: ``"pca"`` keeps distances as far as a plane can; ``"umap"`` keeps neighbours and no distances.

    Raises:
        ImportError: If umap-learn is asked for and not installed.
    """
    z = torch.cat(held.embeddings).double()
    items = [item for at in range(len(held.columns)) for item in items_of(held, at)]
    found: page.EmbeddingMap = {
        "method": method,
        "x": [],
        "y": [],
        "items": items,
        "total": len(held.part) * len(held.columns),
    }
    if method == "umap":
        flat = _umap(z)
    else:
        centred = z - z.mean(0)
        _, values, directions = torch.linalg.svd(centred, full_matrices=False)
        signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()  # a svd leaves them open
        flat = torch.zeros(len(z), 2, dtype=torch.float64)
        kept = min(2, len(values))
        flat[:, :kept] = centred @ (directions * signs)[:kept].T
        total = float(values.square().sum())
        found["kept"] = float(values[:2].square().sum()) / total if total > 0 else 1.0
    found["x"], found["y"] = ([round(value, 5) for value in flat[:, at].tolist()] for at in range(2))
    return found


def _umap(z: Float[Tensor, "n d"]) -> Float[Tensor, "n two"]:
    umap = require("umap", "a UMAP map", "report")
    if len(z) < 5:
        raise ValueError(f"there are {len(z)} rows: a UMAP map wants five at least; leave --umap out")
    reducer = umap.UMAP(n_neighbors=min(15, len(z) - 1), metric="cosine", random_state=0, n_jobs=1)
    return torch.as_tensor(reducer.fit_transform(z.numpy()), dtype=torch.float64)


def gallery(held: HeldOut) -> list[page.Query]:
    """Queries and what lies nearest: other rows, or the other side's rows where items are pairs."""
    n, paired = len(held.rows), len(held.columns) > 1
    k = min(NEIGHBOURS, n - (0 if paired else 1))
    if k < 1:
        return []
    z = held.embeddings
    near = nearest(z[0], z[1] if paired else None, k, exclude_self=not paired)
    chosen = _spread(held.labels, n)
    shown = items_of(held, 0, chosen, SIDE)
    queries: list[page.Query] = []
    for item, i in zip(shown, chosen):
        columns, scores = near.indices[i].tolist(), near.scores[i].tolist()
        found = items_of(held, 1 if paired else 0, columns, SIDE)
        known, right = _belongs(held, i, paired)
        neighbours: list[page.Neighbour] = [
            {"item": other, "score": score, "right": bool(right[j]) if known[j] else None}
            for other, score, j in zip(found, scores, columns)
        ]
        query: page.Query = {"item": item, "neighbours": neighbours}
        if bool(known.any()):
            query["possible"] = min(k, int(right.sum()))
        queries.append(query)
    return queries


def _spread(labels: Int64[Tensor, "n"] | None, n: int) -> list[int]:
    """Rows to show, class by class in turn, so that none is left out while there is room."""
    if labels is None:
        return torch.linspace(0, n - 1, min(n, QUERIES)).round().long().tolist()
    seen: dict[int, int] = {}
    turns = []
    for i, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        turns.append((seen[label], label, i))
    return sorted(i for _, _, i in sorted(turns)[:QUERIES])


def _belongs(held: HeldOut, i: int, paired: bool) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"]]:
    """Rows of which it is known whether they belong to row ``i``, and rows that do: by pair or id, else by class; never itself."""
    rows = torch.arange(len(held.rows))
    if paired:
        right = rows == i if held.similar is None else (rows == i) & (held.similar >= LIKENESS)
        if held.ids is not None:
            right |= (rows != i) & ((held.ids == held.ids[i]) & (held.ids[i] >= 0)).any(1)
        return torch.ones_like(right), right
    ids = held.labels if held.known else held.groups
    if ids is None:
        return torch.zeros_like(rows, dtype=torch.bool), torch.zeros_like(rows, dtype=torch.bool)
    known = (ids >= 0) & (ids[i] >= 0) & (rows != i)
    return known, known & (ids == ids[i])


def histogram(held: HeldOut, temperature: float | None, bins: int = 80) -> page.Histogram | None:
    """Cosines of pairs that belong together and of those that do not; None: nobody knows which do."""
    z, ids = held.embeddings, held.labels if held.known else held.groups
    if len(z) > 1:
        alike = slice(None) if held.similar is None else held.similar >= LIKENESS
        first, second = z[0][alike], z[1][alike]
        if len(first) < 2:
            return None
        found = similarity_histogram(first, partners=second, bins=bins)
    elif ids is not None:
        found = similarity_histogram(z[0], ids, bins=bins)
    else:
        return None
    edges = [round(edge, 12) + 0.0 for edge in found.edges.tolist()]  # the middle one is 0
    return {
        "edges": edges, "positives": [float(c) for c in found.positives], "temperature": temperature,
        "negatives": [float(c) for c in found.negatives],
    }  # fmt: skip


def singular_values(z: Float32[Tensor, "n d"]) -> page.Spectrum:
    """Of the centred rows."""
    values = (spectrum(z) * (len(z) - 1)).sqrt()[: len(z) - 1]  # centred rows span one direction less
    rank = effective_rank(z) if len(z) >= FEW else None  # of fewer it would count the rows
    return {"values": values.tolist(), "effective_rank": rank}


def confusion(held: HeldOut) -> page.Confusion | None:
    """Who the nearest others say that a row is; None: without classes, or with more than can be shown."""
    if not held.known or held.labels is None or len(held.labels.unique()) > CLASSES:
        return None
    counts = torch.bincount(held.labels[held.labels >= 0])
    known = (held.labels >= 0) & (
        counts[held.labels.clamp(min=0)] > 1
    )  # of a class alone, no other can say the right one
    z, labels = held.embeddings[0][known], held.labels[known]
    if len(z) < 2:
        return None
    voters = min(fitting_voters(VOTERS, labels, itself=True), len(z) - 1)
    said = knn_predict(z, None, labels, voters)
    present = torch.cat([labels, said]).unique()  # the held-out identities, not those that were trained on
    place, count = torch.searchsorted(present, torch.stack([labels, said])), len(present)
    counts = torch.bincount(place[0] * count + place[1], minlength=count**2).view(count, count)
    names = held.corpus.class_names
    classes = [names[i] if i < len(names) else str(i) for i in present.tolist()]
    return {"matrix": counts.tolist(), "classes": classes, "by": f"{voters} nearest others"}


def verification(held: HeldOut) -> page.Roc | None:
    """Whether two rows are of one identity, or of one class where there are no ids; None: nobody knows."""
    ids = held.labels if held.groups is None else held.groups
    if ids is None or len(held.columns) > 1:
        return None
    z = held.embeddings[0]
    try:
        scores = pair_scores(z, ids)
    except ValueError:  # no two of one identity, or all of one
        return None
    curve = roc(scores.genuine, scores.impostor)
    points = curve.points()
    first = {"far": 0.0, "frr": 1 - curve.tar_at(0.0), "threshold": curve.threshold_at(0.0)}
    if math.isfinite(first["threshold"]):
        points = {name: [first[name], *values] for name, values in points.items()}
    what = "classes" if held.groups is None else "identities"
    found: page.Roc = {
        "far": points["far"], "tar": [1 - frr for frr in points["frr"]], "thresholds": list(points["threshold"]),
        "eer": curve.eer,
    }  # fmt: skip
    try:
        chosen = calibrate(z, ids)
    except ValueError:  # too few to choose on some and judge on others
        return found
    found["threshold"], found["threshold_far"], found["threshold_tar"] = chosen.threshold, chosen.far, 1 - chosen.frr
    found["about"] = (
        f"Chosen for equal errors on {chosen.calibrated_on} {what}; its rates are those on {chosen.tested_on} others."
    )
    return found


def measure(held: HeldOut) -> Evaluation | None:
    """Figures of the rows, where no evaluation of the run is there."""
    pairs = held.embeddings[1] if len(held.columns) > 1 else None
    labels = held.labels if held.known else held.groups if pairs is None else None
    if pairs is not None and labels is not None and int(torch.bincount(labels[labels >= 0]).max()) < 2:
        labels = None  # classes of one row each: the pairs say all
    if labels is None and pairs is None:
        return None
    try:
        ids = held.ids if held.similar is None else None
        found = evaluate(held.embeddings[0], labels, pairs=pairs, scores=held.similar, ids=ids, k=VOTERS, ks=KS)
    except ValueError:  # too few rows
        return None
    return replace(found, notes=(*held.notes, *found.notes))


def who_votes(rows: int, taught: int) -> str:
    """Names the rows that vote in kNN: they are not the same everywhere.

    Example:
        >>> who_votes(599, 1198), who_votes(599, 0)
        ('1,198 rows that were trained on', 'the other 598 rows that are measured')
    """
    return f"{taught:,} rows that were trained on" if taught else f"the other {rows - 1:,} rows that are measured"


def page_evaluation(found: Evaluation, about: str, columns: Sequence[str] = (), voting: str = "") -> page.Evaluation:
    """An evaluation as a page takes it.

    Args:
        found: What was measured.
        about: On what.
        columns: Names of a pair's two sides, whose figures then come first.
        voting: Whose neighbours vote in kNN, if known.
    """
    sides = {"first→second": " → ".join(columns), "second→first": " → ".join(reversed(columns))} if columns else {}
    metrics: list[page.Metric] = []
    for measure in sorted(found.measures, key=lambda measure: "→" not in measure.task):
        name = f"{sides.get(measure.task, measure.task)} {measure.name}"
        metric: page.Metric = {"name": name, "value": _finite(measure.value)}
        if measure.task == "knn" and voting:
            metric["about"] = f"by the vote of {voting}"
        for key, value in (("low", measure.low), ("high", measure.high), ("chance", measure.chance)):
            if _finite(value) is not None:
                metric[key] = value
        if measure.name.lower() in ("eer", "frr", "far"):
            metric["better"] = "lower"
        metrics.append(metric)
    return {"metrics": metrics, "rows": found.rows, "about": f"{about} {'; '.join(found.notes)}".strip()}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
