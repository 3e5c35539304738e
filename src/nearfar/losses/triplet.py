"""Triplet loss: an anchor should be closer to its positive than to its negative, by a margin."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from nearfar.losses.arguments import (
    Options,
    as_floats,
    as_matrix,
    check_rows,
    check_weights,
    flag,
    one_of,
    or_none,
    refuse,
    takes,
    with_tensors,
    working_dtype,
)
from nearfar.losses.base import TRACED_AT_COST, Loss, Outcome, averaged, query_stats, unless
from nearfar.losses.batch import Batch, are_labels, read
from nearfar.losses.numbers import Number, one_a_row
from nearfar.pairs import Pairs
from nearfar.scores import normalize
from nearfar.scores.autograd import full_precision
from nearfar.scores.exponentials import softplus
from nearfar.scores.similarity import some_scores
from nearfar.scores.triplets import TripletPlan, triplets
from nearfar.types import Similarity

Distance = Literal["euclidean", "sqeuclidean", "cosine"]


@unless(
    lambda anchor, positive=None, negative=None, **_: negative is not None and not are_labels(negative), TRACED_AT_COST
)
@takes(
    margin=Number(0.0, open_low=False, per_row=True),
    mining=one_of("all", "hard", "semihard"),
    distance=one_of("euclidean", "sqeuclidean", "cosine"),
    soft=flag,
    fallback=or_none(one_of("farthest")),
)
def triplet_loss(
    anchor: Tensor,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    margin: float | Tensor = 0.2,
    mining: Literal["all", "hard", "semihard"] = "all",
    distance: Distance = "euclidean",
    soft: bool = False,
    fallback: Literal["farthest"] | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """Triplet loss ``[D(a, p) − D(a, n) + margin]₊``, of given triplets or of those in a batch.

    Source: Schroff et al. 2015 (FaceNet), arXiv:1503.03832, eq. 1–3 and the semi-hard rule of sec. 3.2; batch-all and
    batch-hard as in Hermans et al. 2017, arXiv:1703.07737, eq. 5–6.

    Args:
        anchor: ``(n, d)``; or all embeddings of a batch, with ``labels``.
        positive: ``(n, d)``; without ``negative`` a second view of the batch.
        negative: ``(n, d)``, or several an anchor ``(n, j, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels.
        margin: 0 or more, in units of the distance; 0.2 is FaceNet's, for squared distances of unit rows. One number; for
            explicit triplets also one an anchor ``(n,)``.
        mining: ``"all"`` triplets, averaged over those with a loss; ``"hard"``: farthest positive and nearest negative of
            each anchor; ``"semihard"``: for each (anchor, positive) the nearest negative that is farther than the
            positive but within the margin; pairs without one are dropped and counted.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"`` (1 − cosine similarity).
        soft: ``softplus(D(a, p) − D(a, n))``, without margin.
        fallback: ``"farthest"``: semi-hard as TensorFlow reads it, with no upper bound and the farthest negative where none is
            farther than the positive; averaged over all (anchor, positive).
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nf.functional.triplet_loss(z[:1], z[1:2], z[2:], margin=2.5)  # 1 − 3 + 2.5
        tensor(0.5000)
        >>> nf.functional.triplet_loss(z, labels=torch.tensor([0, 0, 1]), margin=2.5, mining="all")
        tensor(1.)
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    similarity: Similarity = "dot" if distance == "cosine" else distance
    if negative is not None and not are_labels(negative):
        if positive is None or labels is not None or pairs is not None:
            raise TypeError("give an anchor, its positive and its negative, or a batch with labels= or pairs=")
        return _explicit(anchor, positive, negative, margin, similarity, soft, options)
    one_a_row("margin", margin, None)
    views = anchor, *(side for side in (positive, negative) if side is not None)
    batch = read(
        views, sided=False, labels=labels, pairs=pairs, options=options, normalized=distance == "cosine",
        similarity=similarity,
    )  # fmt: skip
    if mining == "hard":
        return _hardest(batch, margin, soft)
    if batch.weights is not None:
        raise TypeError("weights= are per query, but the mean runs over triplets; use mining='hard'")
    scores = batch.scores
    count = max(scores.pairs.shape[1], 1)
    plan = TripletPlan(
        scores.pairs, similarity, -1.0 if distance == "cosine" else 1.0, mining, soft, fallback is not None,
        rows=max(8, min(256, 2**19 // count)),
    )  # fmt: skip
    seen: dict[str, Tensor] = {}
    counted = query_stats(scores)

    def value() -> Tensor:
        total, active, dropped = triplets(
            scores.queries, scores.keys, batch.number(margin), plan, scores.plan == "dense"
        )
        seen.update(active=active.detach(), dropped=dropped.detach())
        return batch.ranks.total(total) / batch.ranks.total(active.detach()).clamp(min=1)

    return Outcome(value, None, lambda: {**counted(), **seen})


def _gap(positive: Tensor, negative: Tensor, margin: float | Tensor, soft: bool) -> Tensor:
    return softplus(positive - negative) if soft else (positive - negative + margin).relu()


def _hardest(batch: Batch, margin: float | Tensor, soft: bool) -> Outcome:
    scores = batch.scores
    far, near = ("min", "max") if scores.similarity == "dot" else ("max", "min")
    positive, has_positive, _ = scores.hardest("positives", far)
    negative, has_negative, _ = scores.hardest("negatives", near)
    keep = has_positive & has_negative
    margin = batch.ranks.shared(margin)
    if scores.similarity == "dot":  # 1 − s: the ones cancel
        positive, negative = negative, positive
    return batch.averaged(lambda: _gap(positive, negative, margin, soft), keep, query_stats(scores, negatives=True))


def _explicit(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | Tensor,
    similarity: Similarity,
    soft: bool,
    options: Options,
) -> Outcome:
    for name in ("offsets", "query_rows", "key_rows", "gather"):
        if options.get(name) is not None and options.get(name) is not False:
            raise TypeError(f"{name}= speaks of in-batch pairs; explicit triplets have none")
    a = as_matrix("anchor", anchor)
    p, options = as_matrix("positive", positive, a), with_tensors(options, a.device)
    negative = as_floats("negative", negative, a, "(n, d) or (n, j, d)")
    if p.shape != a.shape or negative.ndim not in (2, 3) or (len(negative), negative.shape[-1]) != a.shape:
        raise ValueError(
            f"anchor, positive and negative have shapes {tuple(a.shape)}, {tuple(p.shape)} and {tuple(negative.shape)}; "
            "(n, d), (n, d) and (n, d) or (n, j, d) were wanted"
        )
    n, d = a.shape
    one_a_row("margin", margin, n)
    margin = margin[:, None] if isinstance(margin, Tensor) and margin.ndim else margin
    rows = (a, p, negative.reshape(-1, d))
    dtype = working_dtype(*rows)
    for name, side in zip(("anchor", "positive", "negative"), rows):
        check_rows(name, side, options.get("validate"))
    with full_precision(a):
        unit = normalize if options.get("normalize", similarity == "dot") else (lambda z: z)
        a, p, others = (unit(side.to(dtype)) for side in rows)
        others = others.view(n, -1, d)

        def values() -> Tensor:
            sign = -1.0 if similarity == "dot" else 1.0
            near = some_scores(a, p, similarity)[:, None]
            return _gap(sign * near, sign * some_scores(a[:, None], others, similarity), margin, soft).mean(1)

    weights = check_weights(options.get("weights"), options.get("validate"), n)
    keep = torch.full((n,), others.shape[1] > 0, device=a.device)
    return averaged(values, keep, None if weights is None else weights.to(dtype), lambda: {"queries": torch.tensor(n)})


class TripletLoss(Loss):
    """Triplet loss; see :func:`nearfar.functional.triplet_loss`.

    Args:
        margin: 0 or more, in units of the distance.
        mining: ``"all"``, ``"hard"`` or ``"semihard"`` triplets of a batch.
        distance: ``"euclidean"``, ``"sqeuclidean"`` or ``"cosine"``.
        soft: Softplus without margin.
        fallback: ``"farthest"`` for TensorFlow's reading of semi-hard.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[0.0], [1.0], [3.0]])
        >>> loss = nf.TripletLoss(margin=2.5, mining="hard")
        >>> loss(z, labels=torch.tensor([0, 0, 1])), loss.stats["queries_without_positive"]
        (tensor(1.), tensor(1))
    """

    function = triplet_loss
    own_options = frozenset({"margin", "mining", "distance", "soft", "fallback"})

    def __init__(
        self,
        margin: float | Tensor = 0.2,
        mining: Literal["all", "hard", "semihard"] = "all",
        distance: Distance = "euclidean",
        soft: bool = False,
        fallback: Literal["farthest"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(margin=margin, mining=mining, distance=distance, soft=soft, fallback=fallback, **options)
