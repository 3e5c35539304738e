"""A look at the embeddings of held-out rows while training: how good they are, and whether they collapse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.data.corpus import Corpus, Part

CHUNK = 256
"""Rows embedded at a time."""


@dataclass(frozen=True)
class Look:
    """What was seen."""

    metrics: dict[str, float]
    """knn: accuracy of the 20 nearest others' vote; recall@1, mrr: of a row's partner, or of one of its class."""
    geometry: dict[str, float]
    """alignment, uniformity (Wang & Isola), effective_rank, feature_std (of normalised features, times √dim: 1 is even)."""
    warnings: list[str] = field(default_factory=list)


def watched_rows(corpus: Corpus, most: int, seed: int) -> tuple[Part, list[int]] | None:
    """The part that is looked at, and which of its rows; None: there is none to look at."""
    part = corpus.test if corpus.test is not None and len(corpus.test) else corpus.train
    if not isinstance(part, Part):
        return None
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    return part, sorted(order[:most].tolist())


@torch.no_grad()
def look(embedder: Any, corpus: Corpus, part: Part, rows: list[int], device: torch.device) -> Look:
    """Embeds the rows and measures.

    Args:
        embedder: As it is; it is put back into training mode if it was in it.
        corpus: Whose columns they are.
        part: Of the corpus.
        rows: Which.
        device: Where the embedder is.
    """
    columns = [column for column in corpus.columns if column.role != "negative"][:2]
    found, labels, groups = _embed(embedder, columns, part, rows, device)
    metrics: dict[str, float] = {}
    if len(columns) > 1:
        metrics |= partner_metrics(found[0], found[1], groups)
    elif labels is not None and bool((labels >= 0).any()):
        metrics |= class_metrics(found[0], labels)
    same = found[1] if len(columns) > 1 else None
    return Look(metrics, geometry_of(found[0], same, None if same is not None else labels))


def _embed(
    embedder: Any, columns: list[Any], part: Part, rows: list[int], device: torch.device
) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    training = embedder.training
    embedder.eval()
    chunks, labels, groups = [], [], []
    for start in range(0, len(rows), CHUNK):
        raw = part.fetch(rows[start : start + CHUNK])
        chunks.append(
            [
                normalize(
                    embedder(c.kind, _to(embedder.prepare(c.kind, raw.columns[c.name]), device)).float(), dim=1
                ).cpu()
                for c in columns
            ]
        )
        labels.append(raw.labels)
        groups.append(raw.groups)
    embedder.train(training)
    joined = [torch.cat(side) for side in zip(*chunks)]
    known = [None if ids[0] is None else torch.cat(ids) for ids in (labels, groups)]
    return joined, known[0], known[1]


def _to(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return {name: _to(value, device) for name, value in inputs.items()} if isinstance(inputs, dict) else inputs


def class_metrics(z: Float[Tensor, "n d"], labels: Int64[Tensor, "n"], k: int = 20) -> dict[str, float]:
    """Leave-one-out: the vote of the k nearest, and whether the nearest is of one's class."""
    known = labels >= 0
    z, labels = z[known], labels[known]
    if len(z) < 2:
        return {}
    k = min(k, len(z) - 1)
    right, first = 0, 0
    for start in range(0, len(z), 1024):
        scores = z[start : start + 1024] @ z.T
        own = torch.arange(start, start + len(scores))
        scores[torch.arange(len(scores)), own] = -torch.inf
        near = labels[scores.topk(k, dim=1).indices]
        votes = torch.zeros(len(scores), int(labels.max()) + 1).scatter_add_(
            1, near, torch.ones_like(near, dtype=torch.float)
        )
        right += int((votes.argmax(1) == labels[own]).sum())
        first += int((near[:, 0] == labels[own]).sum())
    return {"knn": right / len(z), "recall@1": first / len(z)}


def partner_metrics(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], groups: Tensor | None) -> dict[str, float]:
    """Of each anchor, where its partner stands among all partners; another of its id counts as well."""
    ranks = []
    for start in range(0, len(a), 1024):
        scores = a[start : start + 1024] @ b.T
        own = torch.arange(start, start + len(scores))
        mine = torch.zeros_like(scores, dtype=torch.bool)
        mine[torch.arange(len(scores)), own] = True
        if groups is not None:
            mine |= (groups[own][:, None] == groups) & (groups >= 0)
        best = scores.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + ((scores >= best) & ~mine).sum(1))  # ties count against it
    rank = torch.cat(ranks).double()
    return {"recall@1": float((rank == 1).double().mean()), "mrr": float(rank.reciprocal().mean())}


def geometry_of(z: Float[Tensor, "n d"], partner: Tensor | None, labels: Tensor | None) -> dict[str, float]:
    """Of normalised embeddings."""
    d = z.shape[1]
    centred = z - z.mean(0)
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp(min=torch.finfo(z.dtype).tiny)
    entropy = -(share * share.clamp(min=torch.finfo(z.dtype).tiny).log()).sum()
    found = {
        "uniformity": float(_uniformity(z)),
        "effective_rank": float(entropy.exp()),
        "feature_std": float(centred.square().mean(0).sqrt().mean() * d**0.5),
    }
    if partner is not None:
        found["alignment"] = float((z - partner).square().sum(1).mean())
    elif labels is not None:
        sums = torch.zeros(int(labels.max()) + 1, d).index_add_(0, labels.clamp(min=0), z * (labels >= 0)[:, None])
        counts = torch.bincount(labels[labels >= 0], minlength=len(sums)).double()
        pairs = (counts * (counts - 1)).sum()
        if pairs > 0:  # mean of ‖x − y‖² = 2 − 2·x·y over ordered pairs of a class
            dots = sums.double().square().sum() - counts.sum()
            found["alignment"] = float(2 - 2 * dots / pairs)
    return found


def _uniformity(z: Tensor) -> Tensor:
    n = len(z)
    if n < 2:
        return z.new_tensor(0.0)
    total = sum((2 * (2 * (z[start : start + 1024] @ z.T) - 2)).exp().double().sum() for start in range(0, n, 1024))
    return ((torch.as_tensor(total) - n) / (n * (n - 1))).log()


def collapse_warnings(geometry: dict[str, float], loss: float, chance: float | None, dim: int) -> list[str]:
    """What looks like a collapse, in words, with a remedy.

    Example:
        >>> collapse_warnings({"effective_rank": 1.2, "feature_std": 0.001}, 5.5, None, 128)
        ['nearly all inputs get the same embedding (spread 0.001; 1 would be even): lower the learning rate, or ...']
    """
    said = []
    if geometry.get("feature_std", 1.0) < 0.05:
        said.append(
            f"nearly all inputs get the same embedding (spread {geometry['feature_std']:.3f}; 1 would be even): lower the "
            "learning rate, or raise the batch size or the temperature"
        )
    elif geometry.get("effective_rank", dim) < min(3.0, dim / 4):
        said.append(
            f"the embeddings use {geometry['effective_rank']:.1f} of {dim} dimensions: lower the learning rate, draw "
            "stronger views, or use a head that is thrown away (projection=128)"
        )
    if chance is not None and abs(loss - chance) < 0.002 * chance:
        said.append(
            f"the loss is {loss:.3f}, what identical embeddings give ({chance:.3f}): nothing has been learned; look at the "
            "learning rate, and at the views (too strong ones have nothing in common)"
        )
    return said
