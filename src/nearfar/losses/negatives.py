"""Softmax losses that set the negatives apart: decoupled, hard-negative and debiased InfoNCE."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import Unpack

from nearfar.losses.arguments import Options, parameter, takes
from nearfar.losses.base import Outcome, costly_to_trace, having, kept, query_stats
from nearfar.losses.batch import read
from nearfar.losses.numbers import Number
from nearfar.losses.softmax import SoftmaxLoss
from nearfar.pairs import Pairs
from nearfar.scores import Stage, mean_over
from nearfar.scores.exponentials import softplus
from nearfar.types import Rule


@costly_to_trace
def dcl_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.1,
    logit_scale: float | Tensor | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """Decoupled contrastive loss: InfoNCE with the positives left out of the denominator.

    Source: Yeh et al. 2022, arXiv:2110.06848, eq. 6, averaged over queries with a positive and a negative.

    Args:
        *views: One or more matrices ``(n, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels.
        temperature: τ.
        logit_scale: The multiplier 1/τ, in place of the temperature.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.ones(4, 2)  # collapsed: log(2n − 2)
        >>> nf.functional.dcl_loss(z, z)
        tensor(1.7918)
    """
    batch = read(views, sided=False, labels=labels, pairs=pairs, options=options, normalized=True)
    scores = batch.scores.scaled(batch.scale(temperature, logit_scale))
    keep = having(scores, "positives", "negatives")

    def values() -> Tensor:
        return kept(scores.logsumexp("negatives"), keep) - scores.mean_positive()

    return batch.averaged(values, keep, query_stats(scores, negatives=True))


# −log( e^{s_p} / (e^{s_p} + G) ) = softplus(log G − s_p)
AGAINST: Stage = {
    "value": mean_over("positives", lambda s, t: softplus(t.rows["repulsion"] - s)),
}


# powers and shares that sums are asked for: constants of the loss
BETA = Number(0.0, open_low=False, constant=True)
TAU_PLUS = Number(0.0, 1.0, open_low=False, constant=True)


@costly_to_trace
@takes(beta=BETA, tau_plus=TAU_PLUS)
def hard_negative_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.1,
    logit_scale: float | Tensor | None = None,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    **options: Unpack[Options],
) -> Outcome:
    """InfoNCE whose negatives weigh more the closer they are, corrected for false negatives.

    ``−log( e^{s_p} / (e^{s_p} + G) )`` with
    ``G = max( (N·Σ_N e^{(1+β)s} / Σ_N e^{βs} − τ⁺·N·mean_P e^s) / (1 − τ⁺), N·e^{−1/τ} )``, averaged over positives, then
    over queries with a positive and a negative.

    Source: Robinson et al. 2021, arXiv:2010.04592, sec. 3 and their code; ``beta=0`` is the debiased loss of Chuang et
    al. 2020, arXiv:2007.00224, eq. 8.

    Args:
        *views: One or more matrices ``(n, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels.
        temperature: τ.
        logit_scale: The multiplier 1/τ, in place of the temperature.
        beta: How much closer negatives are preferred; 1 is the paper's.
        tau_plus: Chance that a negative is a false one, below 1; 0.1 is the paper's.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.ones(4, 2)  # collapsed: log(1 + 6)
        >>> nf.functional.hard_negative_loss(z, z)
        tensor(1.9459)
    """
    batch = read(views, sided=False, labels=labels, pairs=pairs, options=options, normalized=True)
    scale = batch.scale(temperature, logit_scale)
    scores = batch.scores.scaled(scale)
    keep = having(scores, "positives", "negatives")
    inverse = parameter(scale, scores.query_rows)

    def log_count(over: Rule) -> float | Tensor:
        each = scores.pairs.each(over)
        if each:
            return math.log(each)
        count = scores.count(over)
        return (count if keep is None else count.masked_fill(~keep, 1.0)).log()

    def values() -> Tensor:
        many = log_count("negatives")
        sums = scores.logsumexps((1 + beta, beta) if beta else (1.0,), "negatives")
        weighted, weights = [kept(value, keep) for value in sums] if beta else (kept(sums[0], keep), many)
        hard = weighted - weights + many
        false = many - math.inf
        if tau_plus:
            false = kept(scores.logsumexp("positives"), keep) - log_count("positives") + many + math.log(tau_plus)
        # log(e^hard − e^false) where that is positive, never below N·e^{−1/τ}
        floor = many - inverse
        gap = (false - hard).clamp(max=-torch.finfo(hard.dtype).eps)
        estimate = hard + torch.log1p(-gap.exp()) - math.log1p(-tau_plus)
        repulsion = torch.where((false < hard) & (estimate > floor), estimate, floor)
        return scores.reduce(AGAINST, statistics={"repulsion": repulsion})["value"]

    return batch.averaged(values, keep, query_stats(scores, negatives=True))


@costly_to_trace
@takes(tau_plus=TAU_PLUS)
def debiased_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.1,
    logit_scale: float | Tensor | None = None,
    tau_plus: float = 0.1,
    **options: Unpack[Options],
) -> Outcome:
    """Debiased contrastive loss: InfoNCE corrected for false negatives.

    Source: Chuang et al. 2020, arXiv:2007.00224, eq. 7–8: :func:`hard_negative_loss` with ``beta=0``.

    Args:
        *views: One or more matrices ``(n, d)``.
        labels: Integers, once a sample.
        pairs: In place of labels.
        temperature: τ.
        logit_scale: The multiplier 1/τ, in place of the temperature.
        tau_plus: Chance that a negative is a false one, below 1.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.ones(4, 2)  # collapsed: log(1 + 6)
        >>> nf.functional.debiased_loss(z, z)
        tensor(1.9459)
    """
    return hard_negative_loss.outcome(
        *views, labels=labels, pairs=pairs, temperature=temperature, logit_scale=logit_scale, beta=0.0,
        tau_plus=tau_plus, **options,
    )  # fmt: skip


class DCLLoss(SoftmaxLoss):
    """Decoupled contrastive loss; see :func:`nearfar.functional.dcl_loss`.

    Args:
        temperature: τ, 0.1 by default.
        learnable: Learn τ.
        max_scale: Largest 1/τ that learning may reach; 100 by default, or the start's where that is larger.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.DCLLoss()(torch.ones(4, 2), torch.ones(4, 2))
        tensor(1.7918)
    """

    function = dcl_loss


class HardNegativeLoss(SoftmaxLoss):
    """Hard-negative reweighted InfoNCE; see :func:`nearfar.functional.hard_negative_loss`.

    Args:
        temperature: τ, 0.1 by default.
        learnable: Learn τ.
        max_scale: Largest 1/τ that learning may reach; 100 by default, or the start's where that is larger.
        **options: ``beta``, ``tau_plus``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.HardNegativeLoss(beta=2.0)(torch.ones(4, 2), torch.ones(4, 2))
        tensor(1.9459)
    """

    function = hard_negative_loss
    own_options = frozenset({"beta", "tau_plus"})


class DebiasedLoss(SoftmaxLoss):
    """Debiased InfoNCE; see :func:`nearfar.functional.debiased_loss`.

    Args:
        temperature: τ, 0.1 by default.
        learnable: Learn τ.
        max_scale: Largest 1/τ that learning may reach; 100 by default, or the start's where that is larger.
        **options: ``tau_plus``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.DebiasedLoss()(torch.ones(4, 2), torch.ones(4, 2))
        tensor(1.9459)
    """

    function = debiased_loss
    own_options = frozenset({"tau_plus"})
