"""Losses on the moments of two views: no pair of rows is a negative, the features themselves must spread."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack

from nearfar.losses.arguments import (
    Options,
    as_matrix,
    check_names,
    check_rows,
    one_of,
    parameter,
    takes,
    working_dtype,
)
from nearfar.losses.base import Loss, Outcome, costly_to_trace, without_scores
from nearfar.losses.numbers import FINITE, NOT_NEGATIVE, POSITIVE, tracing
from nearfar.pairs import Pairs
from nearfar.scores import Scores, Stage, logsumexp_over, normalize
from nearfar.scores.autograd import full_precision
from nearfar.scores.gather import Ranks, meet, relation_with_all
from nearfar.scores.similarity import product, root
from nearfar.scores.small import pooled_logsumexp


def _two_views(z1: Tensor, z2: Tensor, options: Options, normalized: bool) -> tuple[Tensor, Tensor, Ranks]:
    z1 = as_matrix("z1", z1)
    z2 = as_matrix("z2", z2, z1)
    if z1.shape != z2.shape:
        raise ValueError(f"the views have shapes {tuple(z1.shape)} and {tuple(z2.shape)}; both need the same (n, d)")
    check_names(options)
    unused = set(options) - {"normalize", "backend", "precision", "gather", "validate"}
    if unused:
        raise TypeError(f"{min(unused)}= speaks of pairs of rows; a loss on moments has none")
    for name, z in (("z1", z1), ("z2", z2)):
        check_rows(name, z, options.get("validate"))
    dtype, ranks = working_dtype(z1, z2), meet(len(z1), options.get("gather"), z1.device)
    with full_precision(z1):
        a, b = z1.to(dtype), z2.to(dtype)
        return (normalize(a), normalize(b), ranks) if options.get("normalize", normalized) else (a, b, ranks)


def _centred(z: Tensor, ranks: Ranks) -> Tensor:
    """This rank's rows less the mean of all ranks'."""
    return z - ranks.total(z.sum(0)) / max(ranks.rows, 1)


def _off_diagonal(square: Float[Tensor, "d d"]) -> Tensor:
    return square.sum() - square.diagonal().sum()


@without_scores
@takes(off_diagonal=NOT_NEGATIVE)
def barlow_twins_loss(z1: Tensor, z2: Tensor, *, off_diagonal: float = 0.005, **options: Unpack[Options]) -> Outcome:
    """Barlow Twins: ``Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij²``, ``C`` the correlations between the views' features.

    Source: Zbontar et al. 2021, arXiv:2103.03230, eq. 1–2.

    Args:
        z1: ``(n, d)``.
        z2: ``(n, d)``.
        off_diagonal: λ; 0.005 is the paper's.
        **options: ``normalize`` (off), ``gather`` and ``validate`` of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # white, and equal
        >>> nf.functional.barlow_twins_loss(z, z)
        tensor(0.)
    """
    z1, z2, ranks = _two_views(z1, z2, options, False)
    n = len(z1)

    def standard(z: Tensor) -> Tensor:
        """Features of mean 0 and variance 1; one whose deviations are all exactly 0 stays 0."""
        if ranks.alone and n > 1 and z.shape[1] and z.device.type == "cpu" and not tracing():
            # in half the visits. A constant shift changes nothing, but a large mean would cost it digits
            shifted = z - z.detach().mean(0)
            found, _, inverse = torch.native_batch_norm(shifted, None, None, None, None, True, 0.0, 0.0)
            smallest, largest = (float(end) for end in inverse.aminmax())
            if smallest > 0 and largest < 1e-4 * torch.finfo(z.dtype).tiny ** -0.5:
                return found
        centred = _centred(z, ranks)
        largest = ranks.highest(centred.abs().amax(0) if n else centred.new_zeros(z.shape[1]))
        centred = centred / largest.masked_fill(largest == 0, 1.0)  # so that no square over- or underflows
        deviation = root(ranks.total(centred.square().sum(0)) / max(ranks.rows, 1))
        return centred / deviation.masked_fill(deviation == 0, 1.0)

    def value() -> Tensor:
        with full_precision(z1):
            correlation = ranks.total(product(standard(z1).T, standard(z2).T)) / max(ranks.rows, 1)
            return (1 - correlation.diagonal()).square().sum() + off_diagonal * _off_diagonal(correlation.square())

    return Outcome(value, None, lambda: {"queries": torch.tensor(n)})


@without_scores
@takes(
    invariance=NOT_NEGATIVE,
    variance=NOT_NEGATIVE,
    covariance=NOT_NEGATIVE,
    gamma=FINITE,
    eps=NOT_NEGATIVE,
    form=one_of("paper", "code"),
)
def vicreg_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-4,
    form: Literal["paper", "code"] = "paper",
    **options: Unpack[Options],
) -> Outcome:
    """VICReg: views agree (invariance), features spread (variance), features differ (covariance).

    ``λ·mean_i ‖z_i − z'_i‖² + μ·[v(Z) + v(Z')] + ν·[c(Z) + c(Z')]`` with ``v = mean_j [γ − √(Var_j + ε)]₊`` and
    ``c = 1/d Σ_{i≠j} Cov_ij²``, moments with ``n − 1``.

    Source: Bardes et al. 2022, arXiv:2105.04906, eq. 1–6.

    Args:
        z1: ``(n, d)``.
        z2: ``(n, d)``.
        invariance: λ, 25 in the paper.
        variance: μ, 25 in the paper.
        covariance: ν, 1 in the paper.
        gamma: The spread that features should reach.
        eps: Keeps the root differentiable.
        form: ``"paper"``, or ``"code"``: as the authors' code has it, the invariance divided by ``d`` as well and the variance
            terms halved.
        **options: ``normalize`` (off), ``gather`` and ``validate`` of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> nf.functional.vicreg_loss(z, z)
        tensor(0.)
    """
    z1, z2, ranks = _two_views(z1, z2, options, False)
    n, d = z1.shape

    def spread(z: Tensor) -> tuple[Tensor, Tensor]:
        centred = _centred(z, ranks)
        cov = ranks.total(product(centred.T, centred.T)) / max(ranks.rows - 1, 1)
        return (gamma - root(cov.diagonal() + eps)).clamp(min=0).mean(), _off_diagonal(cov.square()) / d

    def value() -> Tensor:
        if ranks.rows == 0:
            return (z1.sum() + z2.sum()) * 0.0
        with full_precision(z1):
            agreement = ranks.total((z1 - z2).square().sum()) / ranks.rows
            (v1, c1), (v2, c2) = spread(z1), spread(z2)
            code = form == "code"
            return (
                invariance * agreement / (d if code else 1)
                + variance * (v1 + v2) / (2 if code else 1)
                + covariance * (c1 + c2)
            )

    return Outcome(value, None, lambda: {"queries": torch.tensor(n)})


def _all_of_length_one(z: Tensor) -> bool:
    """Of normalised rows: none was 0; False where numbers cannot be looked at."""
    return not tracing() and bool(z.detach().any(1).all())


UNIFORMITY: Stage = {"value": logsumexp_over("candidates", lambda s, t: -t.parameters["t"] * s)}


@costly_to_trace
@takes(alpha=POSITIVE, t=POSITIVE, align=FINITE, uniform=FINITE)
def align_uniform_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    alpha: float = 2.0,
    t: float | Tensor = 2.0,
    align: float = 1.0,
    uniform: float = 1.0,
    **options: Unpack[Options],
) -> Outcome:
    """Alignment of the views and uniformity of each: what InfoNCE tends to, by itself.

    ``align·mean ‖z1 − z2‖^α + uniform·½·[u(z1) + u(z2)]``, ``u(z) = log mean_{i<j} e^{−t‖z_i − z_j‖²}``.

    Source: Wang & Isola 2020, arXiv:2005.10242, sec. 4.1.

    Args:
        z1: ``(n, d)``.
        z2: ``(n, d)``.
        alpha: Power of the distance, 2 in the paper.
        t: Sharpness of the Gaussian, 2 in the paper.
        align: Weight of the alignment.
        uniform: Weight of the uniformity.
        **options: ``normalize`` (on), ``backend``, ``precision``, ``gather`` and ``validate`` of
            :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(3)  # aligned; every distance is √2
        >>> nf.functional.align_uniform_loss(z, z).round(decimals=3)
        tensor(-4.)
    """
    z1, z2, ranks = _two_views(z1, z2, options, True)
    n, every = len(z1), ranks.rows

    pairs = Pairs.aligned(n, z1.device).excluding_self()
    pairs = pairs if ranks.alone else relation_with_all(pairs, ranks)
    sharp = ranks.shared(parameter(t, z1)) if isinstance(t, Tensor) else t
    how: Any = {"backend": options.get("backend"), "precision": options.get("precision")}

    def uniformity(z: Tensor) -> Tensor:
        keys = ranks.gather(z)
        if options.get("normalize", True) and _all_of_length_one(keys):
            # −t‖x − y‖² = 2t⟨x, y⟩ − 2t: a softmax loss's sum
            scores = Scores(z, keys, pairs, scale=2 * sharp, **how)
            if ranks.alone and scores.at_once() and not isinstance(sharp, Tensor) and scores.precision is None:
                return pooled_logsumexp(z, 2 * sharp) - (2 * sharp + math.log(every * (every - 1)))
            rows = scores.logsumexp() - 2 * sharp
        elif options.get("normalize", True):  # likewise, but that a row of zeros keeps its length
            square, squares = (side.detach().any(1).to(side.dtype) for side in (z, keys))
            scores = Scores(z, keys, pairs, offsets=-sharp * squares, scale=2 * sharp, **how)
            rows = scores.logsumexp() - sharp * square
        else:
            scores = Scores(z, keys, pairs, "sqeuclidean", **how)
            rows = scores.reduce(UNIFORMITY, {"t": parameter(sharp, z)})["value"]
        # in float64: alignment and uniformity cancel
        return ranks.log_total(rows.double().logsumexp(0)) - math.log(every * (every - 1))

    def value() -> Tensor:
        with full_precision(z1):
            square = (z1 - z2).square().sum(1)
            aligned = (square if alpha == 2 else root(square) ** alpha).sum(dtype=torch.float64)
            aligned = ranks.total(aligned) / max(every, 1)
            if every < 2:  # no pair of rows to spread
                return (align * aligned).to(square.dtype)
            return (align * aligned + uniform * (uniformity(z1) + uniformity(z2)) / 2).to(square.dtype)

    return Outcome(value, None, lambda: {"queries": torch.tensor(n)})


class BarlowTwinsLoss(Loss):
    """Barlow Twins; see :func:`nearfar.functional.barlow_twins_loss`.

    Args:
        off_diagonal: λ.
        **options: ``normalize``, ``gather`` and ``validate``.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> nf.BarlowTwinsLoss()(z, z)
        tensor(0.)
    """

    function = barlow_twins_loss
    own_options = frozenset({"off_diagonal"})

    def __init__(self, off_diagonal: float = 0.005, **options: Any) -> None:
        super().__init__(off_diagonal=off_diagonal, **options)


class VICRegLoss(Loss):
    """VICReg; see :func:`nearfar.functional.vicreg_loss`.

    Args:
        invariance: λ.
        variance: μ.
        covariance: ν.
        **options: ``gamma``, ``eps``, ``form``, ``normalize``, ``gather`` and ``validate``.

    Example:
        >>> import torch, nearfar as nf
        >>> z = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> nf.VICRegLoss()(z, z)
        tensor(0.)
    """

    function = vicreg_loss
    own_options = frozenset({"invariance", "variance", "covariance", "gamma", "eps", "form"})

    def __init__(
        self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, **options: Any
    ) -> None:
        super().__init__(invariance=invariance, variance=variance, covariance=covariance, **options)


class AlignUniformLoss(Loss):
    """Alignment and uniformity; see :func:`nearfar.functional.align_uniform_loss`.

    Args:
        alpha: Power of the distance.
        t: Sharpness of the Gaussian.
        align: Weight of the alignment.
        uniform: Weight of the uniformity.
        **options: ``normalize``, ``backend``, ``precision``, ``gather`` and ``validate``.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.AlignUniformLoss()(torch.eye(3), torch.eye(3)).round(decimals=3)
        tensor(-4.)
    """

    function = align_uniform_loss
    own_options = frozenset({"alpha", "t", "align", "uniform"})

    def __init__(
        self, alpha: float = 2.0, t: float | Tensor = 2.0, align: float = 1.0, uniform: float = 1.0, **options: Any
    ) -> None:
        super().__init__(alpha=alpha, t=t, align=align, uniform=uniform, **options)
