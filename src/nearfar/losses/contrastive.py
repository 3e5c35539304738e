"""Losses that are a sum over pairs: each pair is judged by its own score."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from nearfar.given import ids_of
from nearfar.losses.arguments import (
    Options,
    as_matrix,
    check_rows,
    check_weights,
    one_of,
    refuse,
    takes,
    with_tensors,
    working_dtype,
)
from nearfar.losses.base import TRACED_AT_COST, Loss, Outcome, averaged, loss_function, query_stats, unless
from nearfar.losses.batch import read
from nearfar.losses.numbers import Number, one_a_row
from nearfar.pairs import Pairs
from nearfar.scores import Stage, normalize, squares, sum_over
from nearfar.scores.autograd import full_precision
from nearfar.scores.similarity import some_scores
from nearfar.types import Rule

EUCLIDEAN: Stage = {
    "near": sum_over("positives", lambda s, t: squares.square(s)),
    "far": sum_over("negatives", lambda s, t: squares.hinge(t.parameters["margin"], s)),
}
COSINE: Stage = {
    "near": sum_over("positives", lambda s, t: 1 - s),
    "far": sum_over("negatives", lambda s, t: (s - t.parameters["margin"]).relu()),
}


def _margin(margin: float | Tensor | None, distance: str) -> float | Tensor:
    """Reads a margin: 0 or more for distances, −1 or more for cosines, which begin there."""
    if margin is None:
        return 1.0 if distance == "euclidean" else 0.0
    return Number(0.0 if distance == "euclidean" else -1.0, open_low=False, per_row=True)("margin", margin)


@unless(lambda z1, z2=None, label=None, **_: label is not None, TRACED_AT_COST)
@takes(distance=one_of("euclidean", "cosine"))
def contrastive_loss(
    z1: Tensor,
    z2: Tensor | None = None,
    label: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    margin: float | Tensor | None = None,
    distance: Literal["euclidean", "cosine"] = "euclidean",
    positive: Literal[0, 1] = 1,
    **options: Unpack[Options],
) -> Outcome:
    """Contrastive loss of siamese pairs. **A pair's label is 1 for similar, 0 for dissimilar** (``positive=0`` turns it).

    Euclidean: ``y·D² + (1 − y)·[margin − D]₊²``; cosine: ``y·(1 − cos) + (1 − y)·[cos − margin]₊``. Without the factor ½
    that some write.

    Source: Hadsell et al. 2006, "Dimensionality reduction by learning an invariant mapping", eq. 4 (whose Y is 1 for
    dissimilar).

    Args:
        z1: ``(n, d)``; or a whole batch, with ``labels``.
        z2: ``(n, d)``, row ``i`` paired with row ``i`` of ``z1``.
        label: ``(n,)``, 0 or 1 for each pair, averaged over the pairs.
        labels: Class labels of a batch: all unordered pairs in it, averaged over them.
        pairs: In place of labels.
        margin: ``None`` means 1.0 for the Euclidean distance, 0.0 for cosine. One number; with ``label`` also one a pair
            ``(n,)``.
        distance: ``"euclidean"`` on raw rows, or ``"cosine"``.
        positive: The label that means similar.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z1, z2 = torch.zeros(2, 2), torch.tensor([[0.0, 0.5], [0.0, 0.5]])
        >>> nf.functional.contrastive_loss(z1, z2, torch.tensor([1, 0]))  # (0.25 + 0.25)/2
        tensor(0.2500)
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    if not isinstance(positive, int) or positive not in (0, 1):
        raise ValueError(f"positive={positive!r}, but it is the label that means similar: 1 or 0")
    margin = _margin(margin, distance)
    cosine = distance == "cosine"
    if label is not None:
        if z2 is None or labels is not None or pairs is not None:
            raise TypeError("a label for each pair goes with two matrices: call loss(z1, z2, label)")
        if options.get("gather"):
            raise TypeError(
                "gather= shows a rank the others' rows, but pairs given row by row meet no other: leave it out"
            )
        return _explicit(z1, z2, label, margin, cosine, positive, options)
    batch = read(
        (z1,) if z2 is None else (z1, z2), sided=False, labels=labels, pairs=pairs, options=options,
        normalized=cosine, similarity="dot" if cosine else "euclidean",
    )  # fmt: skip
    scores, total = batch.scores, batch.ranks.total
    one_a_row("margin", margin, None)
    refuse(
        options, "weights", "they are per query, and the mean of a batch runs over pairs; give pairs and their label"
    )

    def everything() -> Tensor:
        return scores.total(COSINE if cosine else EUCLIDEAN, {"margin": batch.number(margin)})

    def value() -> Tensor:
        each = scores.pairs.each("candidates") if batch.ranks.alone else None
        if each is not None:
            return everything() / max(len(scores.query_rows) * each, 1)
        counts = scores.count("positives") + scores.count("negatives")
        return total(everything()) / total(counts.sum()).clamp(min=1)

    return Outcome(value, None, query_stats(scores))


def _explicit(
    z1: Tensor, z2: Tensor, label: Tensor, margin: float | Tensor, cosine: bool, positive: int, options: Options
) -> Outcome:
    a = as_matrix("z1", z1)
    b, label, options = as_matrix("z2", z2, a), ids_of("label", label, a.device), with_tensors(options, a.device)
    if a.shape != b.shape or label.shape != a.shape[:1] or label.is_complex():
        raise ValueError(
            f"z1, z2 and label have shapes {tuple(a.shape)}, {tuple(b.shape)} and {tuple(label.shape)} ({label.dtype}); "
            "(n, d), (n, d) and (n,) of 0 and 1 were wanted"
        )
    if label.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((label != 0) & (label != 1)).any()):
        raise ValueError("a pair's label is 1 (similar) or 0 (dissimilar); class labels of a batch go in labels=")
    one_a_row("margin", margin, len(a))
    for name, side in (("z1", a), ("z2", b)):
        check_rows(name, side, options.get("validate"))
    dtype = working_dtype(a, b)
    with full_precision(a):
        unit = normalize if options.get("normalize", cosine) else (lambda z: z)
        scores = some_scores(unit(a.to(dtype)), unit(b.to(dtype)), "dot" if cosine else "euclidean")
    similar = label == positive

    def values() -> Tensor:
        if cosine:
            return torch.where(similar, 1 - scores, (scores - margin).relu())
        return torch.where(similar, scores * scores, (margin - scores).relu().square())

    def stats() -> dict[str, Tensor]:
        return {"queries": torch.tensor(len(similar)), "positives": similar.sum()}

    weights = check_weights(options.get("weights"), options.get("validate"), len(a))
    return averaged(values, torch.ones_like(similar), None if weights is None else weights.to(dtype), stats)


RULES: tuple[tuple[str, Rule], ...] = (("near", "positives"), ("far", "negatives"))
SPECTRAL: Stage = {
    "near": sum_over("positives"),
    "far": sum_over("negatives", lambda s, t: squares.square(s)),
}


@loss_function
def spectral_loss(
    queries: Tensor,
    keys: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """Spectral contrastive loss: ``−2·mean_P ⟨x, y⟩ + mean_N ⟨x, y⟩²``, means over all pairs.

    Source: HaoChen et al. 2021, arXiv:2106.04156, eq. 6 and their code, which leaves positives out of the second mean.

    Args:
        queries: ``(n, d)``.
        keys: ``(n, d)``; as in InfoNCE.
        labels: Integers, once a sample.
        pairs: In place of labels.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.spectral_loss(torch.eye(4), torch.eye(4))
        tensor(-2.)
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    refuse(options, "weights", "they are per query, and the mean runs over pairs")
    sides = (queries,) if keys is None else (queries, keys)
    batch = read(sides, sided=True, labels=labels, pairs=pairs, options=options, normalized=False)
    scores, total = batch.scores, batch.ranks.total
    stats = query_stats(scores)

    def sums() -> dict[str, Tensor]:
        known = squares.related(scores) if batch.ranks.alone and squares.pay(scores) else None
        if known is None:
            return scores.reduce(SPECTRAL)
        far = squares.sum_of_squares(scores.queries, scores.keys)
        for some in known:
            far = far if some is None else far - some.square().sum(dtype=far.dtype)
        return {"near": known[0], "far": far.to(known[0].dtype)}

    def value() -> Tensor:
        found = sums()
        near, far = (
            total(found[name].sum()) / total(scores.count(rule).sum()).clamp(min=torch.finfo(scores.queries.dtype).tiny)
            for name, rule in RULES
        )
        return far - 2 * near

    return Outcome(value, None, stats)


class ContrastiveLoss(Loss):
    """Contrastive loss of pairs, 1 = similar; see :func:`nearfar.functional.contrastive_loss`.

    Args:
        margin: ``None`` means 1.0 for the Euclidean distance, 0.0 for cosine.
        distance: ``"euclidean"`` or ``"cosine"``.
        positive: The pair label that means similar; ``0`` for the other convention.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z1, z2 = torch.zeros(2, 2), torch.tensor([[0.0, 0.5], [0.0, 0.25]])
        >>> nf.ContrastiveLoss()(z1, z2, torch.tensor([1, 0]))  # (0.5² + 0.75²)/2
        tensor(0.4062)
    """

    function = contrastive_loss
    own_options = frozenset({"margin", "distance", "positive"})

    def __init__(
        self,
        margin: float | Tensor | None = None,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        positive: Literal[0, 1] = 1,
        **options: Any,
    ) -> None:
        super().__init__(margin=margin, distance=distance, positive=positive, **options)
        _margin(margin, distance)


class SpectralLoss(Loss):
    """Spectral contrastive loss; see :func:`nearfar.functional.spectral_loss`.

    Args:
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.SpectralLoss()(torch.eye(4), torch.eye(4))
        tensor(-2.)
    """

    function = spectral_loss
