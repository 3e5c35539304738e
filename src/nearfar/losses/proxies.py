"""Losses against one learned row a class: the classes are the keys, or the queries."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from typing_extensions import Unpack, override

from nearfar.losses.base import (
    Loss,
    Options,
    Outcome,
    as_matrix,
    averaged,
    check_range,
    check_rows,
    choice,
    loss_function,
    parameter,
    working_dtype,
)
from nearfar.pairs import Pairs
from nearfar.scores import Scores, Stage, Tile, logsumexp_over, normalize
from nearfar.scores.autograd import full_precision
from nearfar.scores.gather import gather_rows
from nearfar.scores.similarity import root, some_scores
from nearfar.types import Backend, Similarity


class _Classified:
    """Rows of known label, their class table and weights, in working precision."""

    def __init__(self, z: Tensor, labels: Tensor, table: Tensor, options: Options, normalized: bool) -> None:
        z, table = as_matrix("embeddings", z), as_matrix("table", table)
        labels = torch.as_tensor(labels, device=z.device)
        if labels.shape != (len(z),) or labels.is_floating_point():
            raise ValueError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; one integer a row, ({len(z)},), was wanted"
            )
        if z.shape[1] != table.shape[1]:
            raise ValueError(f"embeddings have {z.shape[1]} features but the class table has {table.shape[1]}")
        unused = set(options) - {"normalize", "weights", "backend", "precision", "gather", "validate"}
        if unused:
            raise TypeError(f"{min(unused)}= speaks of pairs of rows; a loss against classes has none")
        check_rows("embeddings", z, options.get("validate"))
        weights = options.get("weights")
        if options.get("gather"):
            (z,), gathered, _, (weights,) = gather_rows((z,), labels, columns=(weights,))
            assert gathered is not None
            labels = gathered
        look = labels.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and len(labels) and int(labels.max()) >= len(table):
            raise ValueError(
                f"labels reach {int(labels.max())} but there are {len(table)} classes, 0 to {len(table) - 1}"
            )
        dtype = working_dtype(z, table)
        with full_precision(z):
            prepare = normalize if options.get("normalize", normalized) else (lambda rows: rows)
            self.z, self.table = prepare(z.to(dtype)), prepare(table.to(dtype))
        self.known = labels >= 0
        self.labels = labels.clamp(min=0).long()
        self.weights = None if weights is None else weights.to(dtype)
        self.backend: Backend | None = options.get("backend")
        known = self.known
        self.stats = lambda: {"queries": torch.tensor(len(known)), "unknown": (~known).sum()}

    def scores(self, similarity: Similarity = "dot") -> Scores:
        """Rows asking the classes."""
        classes = torch.arange(len(self.table), device=self.z.device)
        return Scores(
            self.z, self.table, Pairs.from_ids(self.labels, classes), similarity, backend=self.backend
        )  # fmt: skip

    def own(self, similarity: Similarity = "dot") -> Tensor:
        """Score of each row with its own class."""
        return some_scores(self.z, self.table[self.labels], similarity)


@loss_function
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
        **options: See :class:`nearfar.losses.base.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(2)
        >>> loss = nf.functional.proxy_anchor_loss(z, torch.tensor([0, 1]), z, scale=1.0)
        >>> torch.isclose(loss, (1 + torch.tensor(-0.9).exp()).log() + (1 + torch.tensor(0.1).exp()).log())
        tensor(True)
    """
    check_range("scale", scale, 0.0)
    rows = _Classified(z, labels, table, options, True)
    if rows.weights is not None:
        raise TypeError("weights= are per row, but the means of proxy-anchor run over classes")
    ids = torch.where(rows.known, rows.labels, -1)
    pairs = Pairs.from_ids(torch.arange(len(rows.table), device=rows.z.device), ids)
    scores = Scores(rows.table, rows.z, pairs, backend=rows.backend)
    numbers = {"margin": parameter(margin, rows.z), "scale": parameter(scale, rows.z)}
    present = torch.zeros(len(rows.table), device=rows.z.device, dtype=rows.z.dtype)
    present = present.index_add(0, rows.labels, rows.known.to(present.dtype)) > 0

    def value() -> Tensor:
        found = scores.reduce(PROXY_ANCHOR, numbers)
        near, far = softplus(found["near"]), softplus(found["far"])
        return near.sum() / present.sum().clamp(min=1) + far.sum() / max(len(rows.table), 1)

    counted = rows.stats
    return Outcome(value, None, lambda: {**counted(), "classes_present": present.sum()})


PROXY_ANCHOR: Stage = {
    "near": logsumexp_over("positives", lambda s, t: -t.parameters["scale"] * (s - t.parameters["margin"])),
    "far": logsumexp_over("negatives", lambda s, t: t.parameters["scale"] * (s + t.parameters["margin"])),
}

PROXY_NCA: Stage = {"value": logsumexp_over("negatives", lambda s, t: -s * t.parameters["scale"])}
PROXY_NCA_ALL: Stage = {"value": logsumexp_over("candidates", lambda s, t: -s * t.parameters["scale"])}


@loss_function
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
        **options: See :class:`nearfar.losses.base.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.proxy_nca_loss(torch.eye(3), torch.arange(3), torch.eye(3))  # −2 + log 2
        tensor(-1.3069)
    """
    choice("denominator", denominator, ("negatives", "all"))
    check_range("temperature", temperature, 0.0)
    rows = _Classified(z, labels, table, options, True)
    scale = parameter(temperature, rows.z).reciprocal()
    keep = rows.known if len(rows.table) > 1 or denominator == "all" else torch.zeros_like(rows.known)

    def values() -> Tensor:
        stage = PROXY_NCA if denominator == "negatives" else PROXY_NCA_ALL
        found = rows.scores("sqeuclidean").reduce(stage, {"scale": scale})["value"]
        return torch.where(keep, found, torch.zeros_like(found)) + rows.own("sqeuclidean") * scale

    return averaged(values, keep, rows.weights, rows.stats)


def _arc(s: Tensor, margin: Tensor) -> Tensor:
    """``cos(θ + m)`` of ``s = cos θ``."""
    return s * margin.cos() - root((1 - s.square()).clamp(min=0)) * margin.sin()


def _arcface_logits(s: Tensor, t: Tile) -> Tensor:
    if t.positive is False:
        return s * t.parameters["scale"]
    return torch.where(t.positive, _arc(s, t.parameters["margin"]), s) * t.parameters["scale"]


def _cosface_logits(s: Tensor, t: Tile) -> Tensor:
    if t.positive is False:
        return s * t.parameters["scale"]
    return torch.where(t.positive, s - t.parameters["margin"], s) * t.parameters["scale"]


ARCFACE: Stage = {"value": logsumexp_over("candidates", _arcface_logits)}
COSFACE: Stage = {"value": logsumexp_over("candidates", _cosface_logits)}


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
        **options: See :class:`nearfar.losses.base.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.arcface_loss(torch.eye(3), torch.arange(3), torch.eye(3), margin=0.0, scale=1.0)
        tensor(0.5514)
    """
    check_range("margin", margin, 0.0, math.pi, open_low=False)
    check_range("scale", scale, 0.0)
    rows = _Classified(z, labels, table, options, True)
    numbers = {"margin": parameter(margin, rows.z), "scale": parameter(scale, rows.z)}

    def values() -> Tensor:
        return rows.scores().reduce(ARCFACE, numbers)["value"] - _arc(rows.own(), numbers["margin"]) * numbers["scale"]

    return averaged(values, rows.known, rows.weights, rows.stats)


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
        **options: See :class:`nearfar.losses.base.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.cosface_loss(torch.eye(3), torch.arange(3), torch.eye(3), margin=1.0, scale=1.0)  # log 3
        tensor(1.0986)
    """
    check_range("margin", margin, 0.0, open_low=False)
    check_range("scale", scale, 0.0)
    rows = _Classified(z, labels, table, options, True)
    numbers = {"margin": parameter(margin, rows.z), "scale": parameter(scale, rows.z)}

    def values() -> Tensor:
        return rows.scores().reduce(COSFACE, numbers)["value"] - (rows.own() - numbers["margin"]) * numbers["scale"]

    return averaged(values, rows.known, rows.weights, rows.stats)


@loss_function
def center_loss(z: Tensor, labels: Tensor, table: Tensor, **options: Unpack[Options]) -> Outcome:
    """Centre loss: ``½‖z − c_y‖²``, averaged over rows.

    Source: Wen et al. 2016, "A discriminative feature learning approach for deep face recognition", eq. 2. The centres
    are ordinary parameters here, in place of the paper's own update rule.

    Args:
        z: ``(n, d)``.
        labels: ``(n,)``; negative means unknown, left out.
        table: One centre a class, ``(c, d)``.
        **options: See :class:`nearfar.losses.base.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.functional.center_loss(torch.ones(2, 2), torch.tensor([0, 0]), torch.zeros(1, 2))
        tensor(1.)
    """
    rows = _Classified(z, labels, table, options, False)
    return averaged(lambda: rows.own("sqeuclidean") / 2, rows.known, rows.weights, rows.stats)


class ClassLoss(Loss):
    """A loss that owns one row a class: give its parameters to the optimiser, often at a higher rate.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        generator: For the table's start, drawn normal and scaled to rows of about unit length.
    """

    start: ClassVar[float] = 1.0

    def __init__(self, num_classes: int, dim: int, *, generator: torch.Generator | None = None, **options: Any) -> None:
        super().__init__(**options)
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes={num_classes} and dim={dim}; both must be at least 1")
        self.table = nn.Parameter(torch.randn(num_classes, dim, generator=generator) * (self.start / math.sqrt(dim)))

    @override
    def arguments(self) -> dict[str, Any]:
        return {"table": self.table}


class ProxyAnchorLoss(ClassLoss):
    """Proxy-anchor; see :func:`nearfar.functional.proxy_anchor_loss`.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        margin: δ.
        scale: α.
        **options: ``generator``, and those of :class:`nearfar.losses.base.Options`.

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
        check_range("scale", scale, 0.0)
        super().__init__(num_classes, dim, margin=margin, scale=scale, **options)


class ProxyNCALoss(ClassLoss):
    """Proxy-NCA; see :func:`nearfar.functional.proxy_nca_loss`.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        temperature: τ.
        denominator: ``"negatives"`` or ``"all"``.
        **options: ``generator``, and those of :class:`nearfar.losses.base.Options`.

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
        check_range("temperature", temperature, 0.0)
        choice("denominator", denominator, ("negatives", "all"))
        super().__init__(num_classes, dim, temperature=temperature, denominator=denominator, **options)


class ArcFaceLoss(ClassLoss):
    """ArcFace; see :func:`nearfar.functional.arcface_loss`.

    Args:
        num_classes: Rows of the table.
        dim: Features of the embeddings.
        margin: m, radians.
        scale: s.
        **options: ``generator``, and those of :class:`nearfar.losses.base.Options`.

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
        **options: ``generator``, and those of :class:`nearfar.losses.base.Options`.

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


class CenterLoss(ClassLoss):
    """Centre loss; see :func:`nearfar.functional.center_loss`.

    Args:
        num_classes: Centres.
        dim: Features of the embeddings.
        **options: ``generator``, and those of :class:`nearfar.losses.base.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.CenterLoss(3, 2)(torch.eye(2), labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """

    function = center_loss
    start = 0.01  # near the origin, where features start
