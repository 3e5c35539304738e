"""Losses against one learned row a class: the classes are the keys, or the queries."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from nearfar.losses.arguments import Options, one_of, takes
from nearfar.losses.base import Outcome, costly_to_trace, loss_function, without_scores
from nearfar.losses.classes import Classified, ClassLoss
from nearfar.losses.numbers import FINITE, POSITIVE
from nearfar.pairs import Pairs
from nearfar.scores import Scores, Stage, logsumexp_over
from nearfar.scores.class_softmax import Ask
from nearfar.scores.exponentials import softplus


@loss_function
@takes(margin=FINITE, scale=POSITIVE)
def proxy_anchor_loss(
    z: Tensor,
    labels: Tensor,
    table: Tensor,
    *,
    margin: float | Tensor = 0.1,
    scale: float | Tensor = 32.0,
    **options: Unpack[Options],
) -> Outcome:
    """Proxy-anchor: each class is an anchor that gathers its own rows and pushes the others away.

    ``mean_{classes present} log(1 + Σ_{own} e^{−α(s−δ)}) + mean_{all classes} log(1 + Σ_{others} e^{α(s+δ)})``.

    Source: Kim et al. 2020, arXiv:2003.13911, eq. 4.

    Args:
        z: ``(n, d)``.
        labels: ``(n,)``; negative means unknown, left out.
        table: One row a class, ``(c, d)``.
        margin: δ; 0.1 is the paper's.
        scale: α; 32 is the paper's.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(2)
        >>> loss = nf.functional.proxy_anchor_loss(z, torch.tensor([0, 1]), z, scale=1.0)
        >>> torch.isclose(loss, (1 + torch.tensor(-0.9).exp()).log() + (1 + torch.tensor(0.1).exp()).log())
        tensor(True)
    """
    rows = Classified(z, labels, table, options, True)
    if rows.weights is not None:
        raise TypeError("weights= are per row, but the means of proxy-anchor run over classes")
    ids = torch.where(rows.known, rows.labels, -1)
    embeddings, classes = rows.given
    pairs = Pairs.from_ids(torch.arange(len(classes), device=ids.device), ids)
    scores = Scores(classes, embeddings, pairs, backend=rows.backend, unit=rows.unit)
    numbers = {"margin": rows.number(margin), "scale": rows.number(scale)}
    present = embeddings.new_zeros(len(classes)).detach()
    present = rows.ranks.total(present.index_add(0, rows.labels, rows.known.to(present.dtype))) > 0

    def value() -> Tensor:
        found = scores.reduce(PROXY_ANCHOR, numbers)
        near, far = (softplus(rows.ranks.log_total(found[side])) for side in ("near", "far"))
        return near.sum() / present.sum().clamp(min=1) + far.sum() / max(len(classes), 1)

    counted = rows.stats
    return Outcome(value, None, lambda: {**counted(), "classes_present": present.sum()})


PROXY_ANCHOR: Stage = {
    "near": logsumexp_over("positives", lambda s, t: -t.parameters["scale"] * (s - t.parameters["margin"])),
    "far": logsumexp_over("negatives", lambda s, t: t.parameters["scale"] * (s + t.parameters["margin"])),
}

PROXY_NCA: Stage = {"value": logsumexp_over("negatives", lambda s, t: s * -t.parameters["scale"])}


@costly_to_trace
@takes(temperature=POSITIVE, denominator=one_of("negatives", "all"))
def proxy_nca_loss(
    z: Tensor,
    labels: Tensor,
    table: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    denominator: Literal["negatives", "all"] = "negatives",
    **options: Unpack[Options],
) -> Outcome:
    """Proxy-NCA: ``−log( e^{−D_y/τ} / Σ_c e^{−D_c/τ} )``, ``D`` the squared distance of unit rows.

    Source: Movshovitz-Attias et al. 2017, arXiv:1703.07464, eq. 2, whose sum leaves the own class out
    (``denominator="negatives"``); Teh et al. 2020, ProxyNCA++, arXiv:2004.01113, eq. 6, sums over all classes.

    Args:
        z: ``(n, d)``.
        labels: ``(n,)``; negative means unknown, left out.
        table: One row a class, ``(c, d)``.
        temperature: τ; 1 in the first paper, 1/9 in the second.
        denominator: ``"negatives"`` or ``"all"``.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.proxy_nca_loss(torch.eye(3), torch.arange(3), torch.eye(3))  # −2 + log 2
        tensor(-1.3069)
    """
    rows = Classified(z, labels, table, options, True)
    scale = rows.number(temperature).reciprocal()
    keep = rows.known if len(table) > 1 or denominator == "all" else torch.zeros_like(rows.known)

    def values() -> Tensor:
        found = rows.scores("sqeuclidean").reduce(PROXY_NCA, {"scale": scale})["value"]
        gap = torch.where(keep, found, 0.0) + rows.own("sqeuclidean") * scale
        return gap if denominator == "negatives" else softplus(gap)  # log(1 + Σ_others/own), small ones too

    # −D = 2·cos − 2 of rows of length one; a class at the origin is nearer by 1
    ask = Ask(lambda cosine, *_: (cosine, 1.0, 0.0), denominator == "all", origin=0.5)
    return rows.visited(rows.averaged(values, keep), keep, 2 * scale, rows.number(0.0), ask)


@without_scores
def center_loss(z: Tensor, labels: Tensor, table: Tensor, **options: Unpack[Options]) -> Outcome:
    """Centre loss: ``½‖z − c_y‖²``, averaged over rows.

    Source: Wen et al. 2016, "A discriminative feature learning approach for deep face recognition", eq. 2. The centres
    are ordinary parameters here, in place of the paper's own update rule.

    Args:
        z: ``(n, d)``.
        labels: ``(n,)``; negative means unknown, left out.
        table: One centre a class, ``(c, d)``.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.center_loss(torch.ones(2, 2), torch.tensor([0, 0]), torch.zeros(1, 2))
        tensor(1.)
    """
    rows = Classified(z, labels, table, options, False)
    return rows.averaged(lambda: rows.own("sqeuclidean") / 2, rows.known)


# ---- modules --------------------------------------------------------------------------------------------------------


class ProxyAnchorLoss(ClassLoss):
    """Proxy-anchor; see :func:`nearfar.functional.proxy_anchor_loss`.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        margin: δ.
        scale: α.
        **options: ``generator``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> loss = nf.ProxyAnchorLoss(3, 2)
        >>> loss(torch.eye(2), labels=torch.tensor([0, 1])).backward()
        >>> loss.table.grad.shape
        torch.Size([3, 2])
    """

    function = proxy_anchor_loss
    own_options = frozenset({"margin", "scale"})

    def __init__(
        self, num_classes: int, dim: int, margin: float | Tensor = 0.1, scale: float | Tensor = 32.0, **options: Any
    ) -> None:
        super().__init__(num_classes, dim, margin=margin, scale=scale, **options)


class ProxyNCALoss(ClassLoss):
    """Proxy-NCA; see :func:`nearfar.functional.proxy_nca_loss`.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        temperature: τ.
        denominator: ``"negatives"`` or ``"all"``.
        **options: ``generator``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.ProxyNCALoss(3, 2)(torch.eye(2), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    function = proxy_nca_loss
    own_options = frozenset({"temperature", "denominator"})

    def __init__(
        self,
        num_classes: int,
        dim: int,
        temperature: float | Tensor = 1.0,
        denominator: Literal["negatives", "all"] = "negatives",
        **options: Any,
    ) -> None:
        super().__init__(num_classes, dim, temperature=temperature, denominator=denominator, **options)


class CenterLoss(ClassLoss):
    """Centre loss; see :func:`nearfar.functional.center_loss`.

    Args:
        num_classes: Centres.
        dim: Features of the embeddings.
        **options: ``generator``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.CenterLoss(3, 2)(torch.eye(2), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    function = center_loss
    start = 0.01  # near the origin, where features start
