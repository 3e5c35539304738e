"""A look at the embeddings of held-out rows while training: how good they are, and whether they collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from nearfar.data.corpus import Column, Corpus, Part, RawBatch, joined, same_things
from nearfar.data.similar import LIKENESS, is_binary
from nearfar.diagnostics.geometry import alignment, class_alignment, effective_rank, feature_std, uniformity
from nearfar.encoders.embedder import to_device
from nearfar.evaluation.knn import knn_accuracy
from nearfar.evaluation.retrieval import pair_retrieval, retrieval
from nearfar.evaluation.similarity import sts
from nearfar.evaluation.verification import listed_scores, roc
from nearfar.lengths import unit_rows

CHUNK = 256
"""Rows embedded at a time."""


@dataclass(frozen=True)
class Look:
    """What was seen."""

    metrics: dict[str, float]
    """Of one column with labels: knn (the accuracy of the 20 nearest others' vote), recall@1. Of two: mrr, recall@1 of a
    row's partner; or, where it is said how alike they are, average_precision of similar pairs, spearman of grades. The first
    is what says which look is best, if nobody says otherwise."""
    geometry: dict[str, float]
    """alignment (of partners, or of rows of one class), uniformity, effective_rank, feature_std."""
    bad: tuple[str, ...] = ()
    """Rows that could not be read and were left out: path or line, and why."""


def watched_part(corpus: Corpus) -> Part | None:
    """The part that is looked at: rows held out, else training rows, which show a collapse as well; None: they are streamed."""
    part = corpus.test if corpus.test is not None and len(corpus.test) > 1 else corpus.train
    return part if isinstance(part, Part) else None


def watched_rows(corpus: Corpus, most: int, seed: int) -> tuple[Part, list[int]] | None:
    """The part that is looked at, and which of its rows; None: rows are streamed, and none are held out."""
    part = watched_part(corpus)
    if part is None:
        return None
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    return part, sorted(order[:most].tolist())


def looked_at(
    columns: Sequence[Column], labels: Int64[Tensor, "n"] | None, similar: Float32[Tensor, "n"] | None
) -> tuple[tuple[str, ...], str]:
    """What rows allow to be measured, and why it is nothing, if something is missing.

    Example:
        >>> looked_at([Column("image", "image")], torch.tensor([3, 3, -1]), None)[1]
        'all rows that are looked at are of one class: kNN and recall would be 1 whatever was learned, and are left out'
    """
    if len([column for column in columns if column.role != "negative"]) > 1:
        if similar is None:
            return ("mrr", "recall@1"), ""
        if len(similar.unique()) < 2:
            return (
                (),
                "all pairs that are looked at are judged alike: whether they are told from others is not measured",
            )
        return (("average_precision",) if is_binary(similar) else ("spearman",)), ""
    known = None if labels is None else labels[labels >= 0]
    if known is None or not len(known):
        return (), ""
    if bool((known == known[0]).all()):
        return (), (
            "all rows that are looked at are of one class: kNN and recall would be 1 whatever was learned, and are left out"
        )
    return ("knn", "recall@1"), ""


def look(embedder: Any, columns: tuple[Column, ...], part: Part, rows: list[int], device: torch.device) -> Look:
    """Embeds the rows and measures.

    Args:
        embedder: As it is; it is put back into training mode if it was in it.
        columns: Those that were trained on.
        part: Of the corpus.
        rows: Which.
        device: Where the embedder is.
    """
    used = [c for c in columns if c.role != "negative"][:2]
    sides, seen, bad = _embed(embedder, used, part, rows, device)
    z, names = sides[0], looked_at(columns, seen.labels, seen.similar)[0]
    metrics: dict[str, float] = {}
    geometry: dict[str, float] = {}
    if len(sides) > 1:
        other = sides[1]
        if "mrr" in names:
            found, _ = pair_retrieval(z, other, same_things(seen.groups, seen.same, used), ks=(1,))
            metrics = {"mrr": found["mrr"], "recall@1": found["recall@1"]}
        elif seen.similar is not None:
            alike = seen.similar >= LIKENESS
            if "average_precision" in names:
                scores = listed_scores(z, other, alike)
                metrics = {"average_precision": roc(scores.genuine, scores.impostor).average_precision}
            elif names:
                metrics = {"spearman": sts(z, other, seen.similar)["spearman"]}
            z, other = (z[alike], other[alike]) if bool(alike.any()) else (z, other)
        geometry["alignment"] = alignment(z, other)
        z = sides[0]
    elif names and seen.labels is not None:
        metrics["knn"] = knn_accuracy(z, seen.labels)
        near = class_alignment(z, seen.labels)
        if near is not None:  # else no two rows share a class
            metrics["recall@1"] = retrieval(z, seen.labels, ks=(1,))["recall@1"]
            geometry["alignment"] = near
    geometry |= {"uniformity": uniformity(z), "effective_rank": effective_rank(z), "feature_std": feature_std(z)}
    return Look(metrics, geometry, bad)


@torch.no_grad()
def _embed(
    embedder: Any, columns: list[Column], part: Part, rows: list[int], device: torch.device
) -> tuple[list[Float[Tensor, "n d"]], RawBatch, tuple[str, ...]]:
    """The sides' embeddings, and what is known of the rows."""
    training = embedder.training
    embedder.eval()
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
    embedder.train(training)
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
