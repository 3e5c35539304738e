"""Any call of an in-batch loss in its canonical form: queries, keys and who belongs with whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearfar.given import as_labels, flat
from nearfar.losses.arguments import (
    Options,
    as_floats,
    as_matrix,
    check_names,
    check_offsets,
    check_rows,
    check_weights,
    parameter,
    scale_of,
    tracing,
    with_tensors,
    working_dtype,
)
from nearfar.losses.base import Outcome, averaged
from nearfar.pairs import Pairs
from nearfar.scores import Scores, normalize
from nearfar.scores.autograd import full_precision
from nearfar.scores.cuda_tiles import HALVES
from nearfar.scores.exponentials import NOTHING
from nearfar.scores.gather import Ranks, meet, relation_with_all
from nearfar.scores.ring import RingScores
from nearfar.scores.similarity import rounded
from nearfar.types import Backend, Precision, Similarity


@dataclass(frozen=True)
class Batch:
    """A call in its canonical form. Queries and their weights are this rank's, keys are those of all ranks."""

    scores: Scores
    weights: Float[Tensor, " n"] | None
    ranks: Ranks
    symmetric: bool
    """Whether all ranks' queries are all keys, and the relation is known to be its own transpose."""
    paired: bool = False
    """Whether the layout tells that no query, and no key, has two positives: on all ranks alike."""
    padding: Bool[Tensor, " n"] | None = None
    """Queries that are not there on either side: of weight 0, their keys left out by an offset of −∞."""

    def number(self, value: float | Tensor) -> Tensor:
        """A parameter of the loss that element functions can read."""
        return self.ranks.shared(parameter(value, self.scores.query_rows))

    def scale(self, temperature: float | Tensor, logit_scale: float | Tensor | None) -> float | Tensor:
        """``1/τ``, or the multiplier that takes its place."""
        scale = scale_of(temperature, logit_scale, self.scores.query_rows)
        return self.number(scale) if isinstance(scale, Tensor) and not self.ranks.alone else scale

    def in_one(self, scores: Scores, both_ways: bool = False) -> bool:
        """Whether the engine takes the mean softmax of the scores as a whole: on one rank, its weights being constant."""
        learned = self.weights is not None and self.weights.requires_grad
        return self.ranks.alone and not learned and (scores.at_once(both_ways) or scores.in_one_visit)

    def single(self, scores: Scores) -> bool:
        """Whether a query's loss is ``log(1 + Σ_negatives e^{s − s⁺})``, which keeps its digits near 0."""
        return self.paired or scores.single

    def averaged(
        self, values: Callable[[], Tensor], keep: Tensor | None, stats: Callable[[], dict[str, Tensor]]
    ) -> Outcome:
        """The mean of values by query over the queries that are kept (``None``: all)."""
        return averaged(values, keep, self.weights, stats, self.ranks)


def read(
    views: Sequence[Tensor],
    *,
    sided: bool,
    labels: Tensor | None,
    pairs: Pairs | None,
    options: Options,
    normalized: bool,
    similarity: Similarity = "dot",
    ring: bool = False,
) -> Batch:
    """Bring any call form to queries, keys and pairs (docs/losses.md, "Call forms").

    Args:
        views: One, two or more matrices of embeddings.
        sided: Whether two matrices are queries and keys, or views to be concatenated.
        labels: Once a sample.
        pairs: In place of labels.
        options: The call's options.
        normalized: The loss's default for ``normalize``.
        similarity: What a score is.
        ring: Whether the loss asks only what keys that go round can answer.
    """
    check_names(options)
    if not views:
        raise TypeError(
            "no embeddings were given: call loss(z, labels=y), loss(z1, z2) or loss(queries, keys, pairs=…)"
        )
    if labels is None and pairs is None and len(views) > 1 and are_labels(views[-1]):
        views, labels = views[:-1], views[-1]  # loss(z, y), as other libraries have it
    if len(views) == 1 and isinstance(views[0], Tensor) and views[0].ndim == 3 and not sided:
        views = as_floats("embeddings", views[0], wanted="(n, d) or (n, views, d)").unbind(1)
    first = views[0]
    names = [f"embeddings {k + 1}" for k in range(len(views))] if len(views) > 1 else ["embeddings"]
    views = [as_matrix(name, z, first) for name, z in zip(names, views)]
    options = with_tensors(options, views[0].device)
    for name, z in zip(names, views):
        check_rows(name, z, options.get("validate"))
        if z.shape[1] != views[0].shape[1]:
            raise ValueError(f"embeddings have {views[0].shape[1]} and {z.shape[1]} features: both need the same")
    if labels is not None and pairs is not None:
        raise ValueError("labels and pairs were both given: pass one (Pairs.by_label(labels) | pairs unites them)")
    if pairs is not None and not isinstance(pairs, Pairs):
        raise TypeError(
            f"pairs is a {type(pairs).__name__}; use Pairs.from_matrix(…) or another constructor of nf.Pairs"
        )
    pairs = None if pairs is None else replace(pairs)  # what one call finds out about it the next may not rely on
    if sided and len(views) > 2:
        raise TypeError(f"{len(views)} matrices were given; one or two (queries, keys) were wanted")
    if len(views) > 1 and pairs is None and len({len(z) for z in views}) > 1:
        raise ValueError(
            f"the sides have {' and '.join(str(len(z)) for z in views)} rows, so that row i of one has no partner: "
            "pass pairs=, or the same number of rows"
        )
    if labels is not None:
        labels = as_labels(labels, views[0].device)
        if len(labels) != len(views[0]):
            raise ValueError(
                f"labels have {len(labels)} entries but there are {len(views[0])} samples: pass one label a sample"
                + (" (not one a view)" if len(labels) == sum(map(len, views)) and len(views) > 1 else "")
            )
    if (options.get("query_rows") is None) != (options.get("key_rows") is None):
        raise ValueError("query_rows and key_rows go together: pass the sample ids of both sides, or of neither")
    dtype, n, count = working_dtype(*views), len(views[0]), len(views)
    stacked = count if not sided and pairs is None else 1  # views one behind the other
    sides = {"query": stacked * n, "key": stacked * n if count in (1, stacked) else len(views[1])}
    check_weights(options.get("weights"), options.get("validate"))
    check_offsets(options.get("offsets"), options.get("validate"))
    columns = [
        _per_row(name, options.get(name), side, sides[side], stacked)
        for name, side in (("weights", "query"), ("offsets", "key"), ("query_rows", "query"), ("key_rows", "key"))
    ]
    weights, offsets, query_rows, key_rows = columns

    unit = options.get("normalize", normalized)
    with full_precision(views[0]):
        if count in (1, stacked):
            queries = keys = torch.cat([z.to(dtype) for z in views]) if count > 1 else views[0].to(dtype)
            if pairs is None:
                pairs = _own_pairs(n, count, labels, views[0].device)
            pairs = pairs.excluding_self()
        else:
            if count > 2:
                raise TypeError(f"{count} matrices were given with pairs=; one or two (queries, keys) were wanted")
            queries, keys = (z.to(dtype) for z in views)
            if pairs is None:
                pairs = Pairs.aligned(n, views[0].device) if labels is None else Pairs.by_label(labels)
        together, narrow = options.get("gather"), options.get("precision") == "bf16"
        if together and (unit or narrow):  # before other ranks do the same; and rounded, rows are half as long to send
            sides = [queries] if keys is queries else [queries, keys]
            sides = [normalize(side) for side in sides] if unit else sides
            sides = [rounded(side, torch.bfloat16) for side in sides] if narrow else sides
            queries, keys, unit = sides[0], sides[-1], False
    if pairs.shape != (len(queries), len(keys)):
        raise ValueError(
            f"pairs are {pairs.shape[0]} × {pairs.shape[1]} but there are {len(queries)} queries and {len(keys)} keys"
        )
    if query_rows is not None and key_rows is not None:
        pairs = pairs.excluding(query_rows, key_rows)
    pairs, ranks = pairs.to(queries.device), meet(len(keys), together, keys.device, ring=ring)
    symmetric, paired = keys is queries and pairs.symmetric, pairs.paired
    if not ranks.alone:
        pairs = relation_with_all(pairs, ranks)
        offsets = None if offsets is None else ranks.gather(offsets)
    padding = None
    if offsets is not None:
        pairs, offsets = _leave_out(pairs, offsets.to(dtype))
        padding = _padding(pairs, weights, ranks)
    if together == "ring" and not ranks.alone:
        scores = RingScores(queries, keys, pairs, similarity, offsets, ranks=ranks)
    else:
        keys, backend = ranks.gather(keys, torch.bfloat16 if narrow else None), options.get("backend")
        precision = options.get("precision") or _of_halves(views, backend)
        scores = Scores(queries, keys, pairs, similarity, offsets, backend, unit, precision=precision)
    return Batch(scores, None if weights is None else weights.to(dtype), ranks, symmetric, paired, padding)


def _leave_out(pairs: Pairs, offsets: Tensor) -> tuple[Pairs, Tensor]:
    """Keys whose offset is −∞ are no candidates, positives or negatives of anybody; what is left of the offsets is finite."""
    gone = offsets.detach() == -torch.inf
    if offsets.device.type == "cpu" and not tracing() and not bool(gone.any()):
        return pairs, offsets.clamp(min=-NOTHING)
    return pairs.without(keys=gone), offsets.masked_fill(gone, 0.0).clamp(min=-NOTHING)


def _padding(pairs: Pairs, weights: Tensor | None, ranks: Ranks) -> Tensor | None:
    """Queries that weigh nothing and whose own keys are left out: rows that a batch was filled up with."""
    if weights is None or pairs.missing is None or pairs.missing[1] is None:
        return None
    gone = pairs.missing[1] if ranks.alone else pairs.missing[1][ranks.own]
    return gone & (weights.detach() == 0) if gone.shape == weights.shape else None


def are_labels(given: Any) -> bool:
    """Whether what was given by place is labels: integers ``(n,)`` or a column of them, or a list or an array of anything."""
    if isinstance(given, Tensor):
        return flat(given).ndim == 1 and not given.is_floating_point()
    if not isinstance(given, list | tuple) and not hasattr(given, "__array__"):
        return False
    try:
        array = np.asarray(given)
    except (ValueError, RuntimeError):  # rows of several lengths; tensors with a graph
        return False
    return array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "iu")


def _own_pairs(n: int, count: int, labels: Tensor | None, device: torch.device) -> Pairs:
    if labels is not None:
        return Pairs.by_label(labels if count == 1 else labels.repeat(count, *[1] * (labels.ndim - 1)))
    if count == 1:
        raise ValueError(
            "one matrix of embeddings was given without labels or pairs, so that nothing belongs together: "
            "pass labels=, pairs=, or a second view"
        )
    return Pairs.views(n, count, device)


def _per_row(name: str, values: Tensor | None, what: str, rows: int, stacked: int) -> Tensor | None:
    if values is None:
        return None
    if values.ndim != 1 or len(values) not in (rows, rows // stacked):
        raise ValueError(f"{name} have shape {tuple(values.shape)}; one number a {what}, ({rows},), was wanted")
    return values.repeat(stacked) if len(values) != rows else values


def _of_halves(views: Sequence[Tensor], backend: Backend | None) -> Precision | None:
    """On a GPU, products of rows that come in half precision stay in it."""
    kinds = {z.dtype for z in views}
    if (backend == "cuda" or (backend is None and views[0].is_cuda)) and len(kinds) == 1:
        return next((name for name, dtype in HALVES.items() if dtype in kinds), None)
    return None
