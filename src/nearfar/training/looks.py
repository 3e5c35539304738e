"""A look at the embeddings of some rows while training: how good they are, and whether they collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.data.corpus import Column, Part, RawBatch, joined, same_things
from nearfar.data.similar import LIKENESS
from nearfar.diagnostics.geometry import alignment, class_alignment, effective_rank, feature_std, uniformity
from nearfar.encoders.embedder import evaluating, to_device
from nearfar.evaluation.knn import knn_predict
from nearfar.evaluation.retrieval import pair_retrieval, retrieval
from nearfar.evaluation.similarity import sts
from nearfar.evaluation.verification import listed_scores, roc
from nearfar.lengths import unit_rows
from nearfar.training.watched import Watched

CHUNK = 256
"""Rows embedded at a time."""


@dataclass(frozen=True)
class Look:
    """What was seen."""

    metrics: dict[str, float]
    """For one column with labels: knn (the accuracy of the nearest rows' vote), recall@1. For two: mrr, recall@1 of a row's
    partner; or, where it is said how alike they are, average_precision of similar pairs, spearman of grades. The first is what
    says which look is best, if nobody says otherwise."""
    geometry: dict[str, float]
    """alignment (of partners, or of rows of one class), uniformity, effective_rank, feature_std."""
    bad: tuple[str, ...] = ()
    """Rows that could not be read and were left out: path or line, and why."""


def look(embedder: Any, watched: Watched, device: torch.device) -> Look:
    """Embeds the rows and measures.

    Args:
        embedder: As it is; every part of it is put back into the mode that it was in.
        watched: Which rows, and what is measured of them.
        device: Where the embedder is.
    """
    with evaluating(embedder):
        sides, seen, bad = _embed(embedder, watched.columns, watched.part, watched.rows, device)
        keys: tuple[Tensor, Int64[Tensor, "m"]] | None = None
        if watched.gallery is not None:
            (rows,), read, more = _embed(embedder, watched.columns, *watched.gallery, device)
            assert read.labels is not None
            keys, bad = (rows, read.labels), bad + more
    if len(sides) > 1:
        metrics, geometry = _of_pairs(sides[0], sides[1], seen, watched)
    else:
        metrics, geometry = _of_classes(sides[0], seen.labels, keys, watched)
    z = sides[0]
    geometry |= {"uniformity": uniformity(z), "effective_rank": effective_rank(z), "feature_std": feature_std(z)}
    return Look({name: metrics[name] for name in watched.metrics if name in metrics}, geometry, bad)


def _of_pairs(z: Tensor, other: Tensor, seen: RawBatch, watched: Watched) -> tuple[dict[str, float], dict[str, float]]:
    metrics: dict[str, float] = {}
    if "mrr" in watched.metrics:
        found, _ = pair_retrieval(z, other, same_things(seen.groups, seen.same, watched.columns), ks=(1,))
        metrics = {"mrr": found["mrr"], "recall@1": found["recall@1"]}
    elif seen.similar is not None:
        alike = seen.similar >= LIKENESS
        if "average_precision" in watched.metrics:
            scores = listed_scores(z, other, alike)
            metrics = {"average_precision": roc(scores.genuine, scores.impostor).average_precision}
        elif watched.metrics:
            metrics = {"spearman": sts(z, other, seen.similar)["spearman"]}
        z, other = (z[alike], other[alike]) if bool(alike.any()) else (z, other)
    return metrics, {"alignment": alignment(z, other)}


def _of_classes(
    z: Tensor, labels: Int64[Tensor, "n"] | None, keys: tuple[Tensor, Int64[Tensor, "m"]] | None, watched: Watched
) -> tuple[dict[str, float], dict[str, float]]:
    """Rows that have a row of their class to find are asked for it."""
    if labels is None or not watched.metrics:
        return {}, {}
    near = class_alignment(z, labels)
    geometry = {} if near is None else {"alignment": near}  # else no two rows share a class
    known = labels >= 0
    z, labels = z[known], labels[known]
    among, classes = (z, labels) if keys is None else keys
    there, counts = classes[classes >= 0].unique(return_counts=True)
    able = torch.isin(labels, there[counts > (keys is None)])
    if not bool(able.any()):
        return {}, geometry
    itself = able.nonzero().squeeze(1) if keys is None else None
    said = knn_predict(z[able], among, classes, watched.voters, exclude=itself)
    found = retrieval(z, labels, *(keys or (None, None)), ks=(1,))
    return {"knn": float((said == labels[able]).double().mean()), "recall@1": found["recall@1"]}, geometry


@torch.no_grad()
def _embed(
    embedder: Any, columns: Sequence[Column], part: Part, rows: list[int], device: torch.device
) -> tuple[list[Float[Tensor, "n d"]], RawBatch, tuple[str, ...]]:
    """The sides' embeddings, and what is known of the rows."""
    chunks, read = [], []
    bad: tuple[str, ...] = ()
    for start in range(0, len(rows), CHUNK):
        raw = part.fetch(rows[start : start + CHUNK])
        bad += raw.bad
        if not len(raw):
            continue
        inputs = [(c.kind, to_device(embedder.prepare(c.kind, raw.columns[c.name]), device)) for c in columns]
        chunks.append([unit_rows(embedder(kind, given).float()).cpu() for kind, given in inputs])
        read.append(replace(raw, columns={}))
    if not chunks:
        raise ValueError("none of the rows to look at could be read")
    return [torch.cat(side) for side in zip(*chunks)], joined(read), bad


def collapse_warnings(
    geometry: dict[str, float],
    loss: float,
    chance: float | None,
    dim: int,
    classes: int | None = None,
    rows: int | None = None,
) -> list[str]:
    """What looks like a collapse, in words, with a remedy.

    Args:
        geometry: Of a ``Look``.
        loss: Of the last step.
        chance: The loss of embeddings that are all the same, where known.
        dim: Of the embeddings.
        classes: How many classes were learned from, if any: that many directions less one are all that they need.
        rows: How many were looked at, if known: they span that many directions less one, and no more.

    Example:
        >>> collapse_warnings({"effective_rank": 1.2, "feature_std": 0.001}, 5.5, None, 128)
        ['nearly all inputs get the same embedding (spread 0.001; 0.088 would be even): lower the learning rate, ...']
        >>> collapse_warnings({"effective_rank": 40.0, "feature_std": 0.08}, 6.2361, 6.2364, 128)
        ['the loss is 6.236, which embeddings that are all the same would give: nothing has been learned; look at ...']
    """
    said = []
    least = min(3.0, dim / 4) if classes is None else min(3.0, 0.5 * (classes - 1))
    least = least if rows is None else min(least, 0.5 * (rows - 1))
    if geometry["feature_std"] < 0.05 * dim**-0.5:
        said.append(
            f"nearly all inputs get the same embedding (spread {geometry['feature_std']:.3f}; {dim**-0.5:.3f} would be "
            "even): lower the learning rate, or raise the batch size or the temperature"
        )
    elif geometry["effective_rank"] < least:
        said.append(
            f"the embeddings use {geometry['effective_rank']:.1f} of {dim} dimensions: lower the learning rate, draw "
            "stronger views, or use a head that is thrown away (projection=128)"
        )
    if chance is not None and abs(loss - chance) < 0.001 * chance:
        said.append(
            f"the loss is {loss:.3f}, which embeddings that are all the same would give: nothing has been learned; look "
            "at the learning rate, and at the views (too strong ones have nothing in common)"
        )
    return said
