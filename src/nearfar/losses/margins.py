"""Cross-entropy over the cosines with one learned row a class, the own class's made harder by a margin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from nearfar.losses.arguments import Options, takes
from nearfar.losses.base import Outcome, loss_function
from nearfar.losses.classes import Classified, ClassLoss
from nearfar.losses.numbers import POSITIVE, Number
from nearfar.scores.class_softmax import Ask, Change
from nearfar.scores.exponentials import softplus
from nearfar.scores.similarity import picked_scores, root


def _against_others(rows: Classified, own: Callable[[], Tensor], scale: float | Tensor) -> Tensor:
    """Cross-entropy of the own class's cosine, as changed by a margin, with all others' as they are."""
    scores = rows.scores().scaled(scale) if isinstance(scale, Tensor) else rows.scores().powered(scale)
    others = scores.logsumexp("negatives")
    return softplus(others - own() * scale)


def _arc(rows: Classified, margin: Tensor) -> Tensor:
    """``cos(θ + m)`` with the own class."""
    (z, table), cosine = rows.prepared, rows.own()
    # 1 − cos²θ has no digits left where rows nearly align; half the product of the distances to the class and to its opposite does
    near, far = (picked_scores(side, table, rows.labels, "sqeuclidean") for side in (z, -z))
    sine = root(torch.where(cosine.abs() > 0.5, near * far / 4, 1 - cosine.square()))
    return cosine * margin.cos() - sine * margin.sin()


def _widened(rows: Classified) -> Change:
    """The same, and its derivatives."""

    def change(cosine: Tensor, i: slice, margin: float) -> tuple[Tensor, Tensor, Tensor]:
        near, far = math.cos(margin), math.sin(margin)
        sine = (1 - cosine.square()).clamp_(min=0.0).sqrt_()
        steep = (cosine.abs() > 0.5).nonzero()[:, 0]  # 1 − cos²θ has no digits left for a small angle
        if len(steep):
            sine.index_copy_(0, steep, rows.own_sine(steep + i.start))
        # d sin θ / d cos θ = −cot θ; at an angle of 0, where it has none, as if it were 0
        cotangent = (cosine / sine).masked_fill_(sine == 0, 0.0)
        return cosine * near - sine * far, cotangent.mul_(far).add_(near), cosine * -far - sine * near

    return change


@loss_function
@takes(margin=Number(0.0, math.pi, open_low=False, per_row=True), scale=POSITIVE)
def arcface_loss(
    z: Tensor,
    labels: Tensor,
    table: Tensor,
    *,
    margin: float | Tensor = 0.5,
    scale: float | Tensor = 64.0,
    **options: Unpack[Options],
) -> Outcome:
    """ArcFace: cross-entropy over cosines, the angle to the own class widened by a margin: ``s·cos(θ_y + m)``.

    Source: Deng et al. 2019, arXiv:1801.07698, eq. 3, without a switch to another form beyond ``θ + m = π``.

    Args:
        z: ``(n, d)``.
        labels: ``(n,)``; negative means unknown, left out.
        table: One row a class, ``(c, d)``.
        margin: m, radians from 0 to π, one number or one a row ``(n,)``; 0.5 is the paper's.
        scale: s; 64 is the paper's.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.arcface_loss(torch.eye(3), torch.arange(3), torch.eye(3), margin=0.0, scale=1.0)
        tensor(0.5514)
    """
    rows = Classified(z, labels, table, options, True)

    by = rows.number_a_row("margin", margin)

    def values() -> Tensor:
        return _against_others(rows, lambda: _arc(rows, by), rows.ranks.shared(scale))

    outcome = rows.averaged(values, rows.known)
    return rows.visited(outcome, rows.known, rows.number(scale), by, Ask(_widened(rows)))


@loss_function
@takes(margin=Number(0.0, open_low=False, per_row=True), scale=POSITIVE)
def cosface_loss(
    z: Tensor,
    labels: Tensor,
    table: Tensor,
    *,
    margin: float | Tensor = 0.35,
    scale: float | Tensor = 64.0,
    **options: Unpack[Options],
) -> Outcome:
    """CosFace: cross-entropy over cosines, the own class's lowered by a margin: ``s·(cos θ_y − m)``.

    Source: Wang et al. 2018, arXiv:1801.09414, eq. 4.

    Args:
        z: ``(n, d)``.
        labels: ``(n,)``; negative means unknown, left out.
        table: One row a class, ``(c, d)``.
        margin: m, a cosine, 0 or more, one number or one a row ``(n,)``; 0.35 is the paper's for faces.
        scale: s; 64 is the paper's.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.cosface_loss(torch.eye(3), torch.arange(3), torch.eye(3), margin=1.0, scale=1.0)  # log 3
        tensor(1.0986)
    """
    rows = Classified(z, labels, table, options, True)

    by = rows.number_a_row("margin", margin)

    def values() -> Tensor:
        return _against_others(rows, lambda: rows.own() - by, rows.ranks.shared(scale))

    outcome, lowered = rows.averaged(values, rows.known), Ask(lambda cosine, _, by: (cosine - by, 1.0, -1.0))
    return rows.visited(outcome, rows.known, rows.number(scale), by, lowered)


# ---- modules --------------------------------------------------------------------------------------------------------


class ArcFaceLoss(ClassLoss):
    """ArcFace; see :func:`nearfar.functional.arcface_loss`.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        margin: m, radians.
        scale: s.
        **options: ``generator``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.ArcFaceLoss(3, 2)(torch.eye(2), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    function = arcface_loss
    own_options = frozenset({"margin", "scale"})

    def __init__(
        self, num_classes: int, dim: int, margin: float | Tensor = 0.5, scale: float | Tensor = 64.0, **options: Any
    ) -> None:
        super().__init__(num_classes, dim, margin=margin, scale=scale, **options)


class CosFaceLoss(ClassLoss):
    """CosFace; see :func:`nearfar.functional.cosface_loss`.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        margin: m, a cosine.
        scale: s.
        **options: ``generator``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.CosFaceLoss(3, 2)(torch.eye(2), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    function = cosface_loss
    own_options = frozenset({"margin", "scale"})

    def __init__(
        self, num_classes: int, dim: int, margin: float | Tensor = 0.35, scale: float | Tensor = 64.0, **options: Any
    ) -> None:
        super().__init__(num_classes, dim, margin=margin, scale=scale, **options)
