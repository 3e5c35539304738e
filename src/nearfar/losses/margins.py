"""Cross-entropy over the cosines with one learned row a class, the own class's made harder by a margin."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import Unpack

from nearfar.losses.arguments import Options, check_range
from nearfar.losses.base import Outcome, loss_function
from nearfar.losses.classes import Classified, ClassLoss
from nearfar.scores.autograd import once
from nearfar.scores.similarity import root


def _against_others(rows: Classified, own: Callable[[], Tensor], scale: float | Tensor) -> Tensor:
    """Cross-entropy of the own class's cosine, as changed by a margin, with all others' as they are."""
    scores = rows.scores().scaled(scale) if isinstance(scale, Tensor) else rows.scores().powered(scale)
    others = scores.logsumexp("negatives")
    return softplus(others - own() * scale)


def _arc(rows: Classified, margin: Tensor) -> Tensor:
    """``cos(θ + m)`` with the own class."""
    cosine = rows.own()
    # 1 − cos²θ has no digits left for a small angle; the distance of rows of length one has all of them
    if not rows.scores().holds:
        square = rows.own("sqeuclidean")
        sine = root(torch.where(cosine > 0.5, square * (1 - square / 4), 1 - cosine.square()))
        return cosine * margin.cos() - sine * margin.sin()
    with torch.no_grad():
        sine = 1 - cosine.square()
        close = (cosine > 0.5).nonzero()[:, 0]
        if len(close):
            square = rows.distance(close)
            sine.index_copy_(0, close, square * (1 - square / 4))
        sine.clamp_(min=0.0).sqrt_()
    return _Widened.apply(cosine, sine, margin)  # pyright: ignore[reportReturnType]


class _Widened(torch.autograd.Function):
    """``cos(θ + m)`` of a cosine, the sine being given: it is no second way to the rows."""

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, sine: Tensor, margin: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(cosine, sine, margin)
        return cosine * margin.cos() - sine * margin.sin()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,), (cosine, sine, margin) = gradients, ctx.saved_tensors
        with torch.no_grad():
            # d sin θ / d cos θ = −cot θ; at an angle of 0, where it has none, as if it were 0
            cotangent = (cosine / sine).masked_fill_(sine == 0, 0.0)
            near = gradient * (margin.cos() + cotangent * margin.sin())
            of_margin = -(gradient * (cosine * margin.sin() + sine * margin.cos())).sum()
        needs = ctx.needs_input_grad
        found = near if needs[0] else None, None, of_margin.view_as(margin) if needs[2] else None
        return tuple(once(part, cosine, margin) for part in found)


@loss_function
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
        margin: m, radians from 0 to π; 0.5 is the paper's.
        scale: s; 64 is the paper's.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.arcface_loss(torch.eye(3), torch.arange(3), torch.eye(3), margin=0.0, scale=1.0)
        tensor(0.5514)
    """
    check_range("margin", margin, 0.0, math.pi, open_low=False)
    check_range("scale", scale, 0.0)
    rows = Classified(z, labels, table, options, True)

    def values() -> Tensor:
        return _against_others(rows, lambda: _arc(rows, rows.number(margin)), rows.ranks.shared(scale))

    return rows.averaged(values, rows.known)


@loss_function
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
        margin: m, a cosine, 0 or more; 0.35 is the paper's for faces.
        scale: s; 64 is the paper's.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.cosface_loss(torch.eye(3), torch.arange(3), torch.eye(3), margin=1.0, scale=1.0)  # log 3
        tensor(1.0986)
    """
    check_range("margin", margin, 0.0, open_low=False)
    check_range("scale", scale, 0.0)
    rows = Classified(z, labels, table, options, True)
    margin, scale = rows.ranks.shared(margin), rows.ranks.shared(scale)
    return rows.averaged(lambda: _against_others(rows, lambda: rows.own() - margin, scale), rows.known)


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
        check_range("margin", margin, 0.0, math.pi, open_low=False)
        check_range("scale", scale, 0.0)
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
        check_range("margin", margin, 0.0, open_low=False)
        check_range("scale", scale, 0.0)
        super().__init__(num_classes, dim, margin=margin, scale=scale, **options)
