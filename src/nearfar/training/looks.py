"""A look at the embeddings of held-out rows while training: how good they are, and whether they collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.data.corpus import Column, Corpus, Part
from nearfar.diagnostics.geometry import alignment, class_alignment, effective_rank, feature_std, uniformity
from nearfar.encoders.embedder import to_device
from nearfar.evaluation.knn import knn_accuracy
from nearfar.evaluation.retrieval import pair_retrieval, retrieval

CHUNK = 256
"""Rows embedded at a time."""


@dataclass(frozen=True)
class Look:
    """What was seen."""

    metrics: dict[str, float]
    """Of one column with labels: knn (the accuracy of the 20 nearest others' vote), recall@1. Of two: mrr, recall@1 of a
    row's partner. The first is what says which look is best, if nobody says otherwise."""
    geometry: dict[str, float]
    """alignment (of partners, or of rows of one class), uniformity, effective_rank, feature_std."""
    bad: tuple[str, ...] = ()
    """Rows that could not be read and were left out: path or line, and why."""


def watched_rows(corpus: Corpus, most: int, seed: int) -> tuple[Part, list[int]] | None:
    """The part that is looked at, and which of its rows; None: rows are streamed, and none are held out.

    Without held-out rows it is training rows: they show a collapse as well.
    """
    part = corpus.test if corpus.test is not None and len(corpus.test) > 1 else corpus.train
    if not isinstance(part, Part):
        return None
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    return part, sorted(order[:most].tolist())


def look(embedder: Any, columns: tuple[Column, ...], part: Part, rows: list[int], device: torch.device) -> Look:
    """Embeds the rows and measures.

    Args:
        embedder: As it is; it is put back into training mode if it was in it.
        columns: Those that were trained on.
        part: Of the corpus.
        rows: Which.
        device: Where the embedder is.
    """
    sides, labels, groups, bad = _embed(embedder, [c for c in columns if c.role != "negative"][:2], part, rows, device)
    z = sides[0]
    metrics: dict[str, float] = {}
    geometry: dict[str, float] = {}
    if len(sides) > 1:
        # an id that is not known is a thing of its own
        ids = None if groups is None else torch.where(groups < 0, groups.max() + 1 + torch.arange(len(groups)), groups)
        found, _ = pair_retrieval(z, sides[1], ids, ks=(1,))
        metrics = {"mrr": found["mrr"], "recall@1": found["recall@1"]}
        geometry["alignment"] = alignment(z, sides[1])
    elif labels is not None and bool((labels >= 0).any()):
        metrics["knn"] = knn_accuracy(z, labels)
        near = class_alignment(z, labels)
        if near is not None:  # else no two rows share a class
            metrics["recall@1"] = retrieval(z, labels, ks=(1,))["recall@1"]
            geometry["alignment"] = near
    geometry |= {"uniformity": uniformity(z), "effective_rank": effective_rank(z), "feature_std": feature_std(z)}
    return Look(metrics, geometry, bad)


@torch.no_grad()
def _embed(
    embedder: Any, columns: list[Column], part: Part, rows: list[int], device: torch.device
) -> tuple[list[Float[Tensor, "n d"]], Int64[Tensor, "n"] | None, Int64[Tensor, "n"] | None, tuple[str, ...]]:
    training = embedder.training
    embedder.eval()
    chunks, labels, groups = [], [], []
    bad: tuple[str, ...] = ()
    for start in range(0, len(rows), CHUNK):
        raw = part.fetch(rows[start : start + CHUNK])
        bad += raw.bad
        if not len(raw):
            continue
        inputs = [(c.kind, to_device(embedder.prepare(c.kind, raw.columns[c.name]), device)) for c in columns]
        chunks.append([normalize(embedder(kind, given).float(), dim=1).cpu() for kind, given in inputs])
        labels.append(raw.labels)
        groups.append(raw.groups)
    embedder.train(training)
    if not chunks:
        raise ValueError("none of the rows to look at could be read")
    known = [None if ids[0] is None else torch.cat(ids) for ids in (labels, groups)]
    return [torch.cat(side) for side in zip(*chunks)], known[0], known[1], bad


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
