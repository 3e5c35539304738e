"""Losses that are a softmax over a query's candidates: InfoNCE and its family.

With ``s`` the score over the temperature, most are ``LSE(candidates) − mean(positives)``; the log-sum-exp is the engine's,
the mean of the positives is linear in the rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Unpack, override

from nearfar.losses.arguments import Options, as_floats, check_rows, flag, one_of, scale_of, takes
from nearfar.losses.base import TRACED, Form, Loss, Outcome, costly_to_trace, mean_weights, query_stats, unless
from nearfar.losses.batch import Batch, are_labels, read
from nearfar.losses.temperature import Temperature
from nearfar.pairs import Pairs
from nearfar.scores import Scores, Stage, count_over, logsumexp_over, mean_over, normalize
from nearfar.scores.autograd import full_precision
from nearfar.scores.exponentials import log_add_exp, softplus
from nearfar.scores.similarity import product, some_scores

AGAINST: Stage = {
    "others": logsumexp_over("negatives"),
    "own": replace(logsumexp_over("positives"), weighted=False),
    "many": count_over("positives"),
}
GAPS: dict[Form, Stage] = {
    "out": {"gap": mean_over("positives", lambda s, t: t.rows["own"] - s)},
    "in": {"gap": logsumexp_over("positives", lambda s, t: s - t.rows["own"])},
}


def against_others(scores: Scores, form: Form = "out") -> Float[Tensor, " n"]:
    """The loss of each query by its definition: ``log(1 + e^{LSE_N − LSE_P})``, and how far its positives are below ``LSE_P``.

    So all digits of a small loss are kept, whatever the relation: where there is one positive, it is not below, and has no
    gradient of it that would be added and taken off again.
    """
    found = scores.reduce(AGAINST)
    keep, several = found["many"] > 0, found["many"] > 1
    own = found["own"].masked_fill(~keep, 0.0)
    gap = scores.reduce(GAPS[form], statistics={"own": own})["gap"].masked_fill(~several, 0.0)
    if form == "in":
        gap = scores.count("positives").masked_fill(~several, 1.0).log() - gap
    return torch.where(keep, softplus(found["others"] - own) + gap, 0.0)


def softmax(batch: Batch, scale: float | Tensor, form: Form) -> Outcome:
    """``LSE_A − mean_P`` (out) or ``LSE_A − LSE_P + log|P|`` (in), averaged over queries with a positive."""
    scores = batch.scores.scaled(scale)

    def attraction(positives: Tensor) -> Tensor:
        if form == "out":
            return scores.mean_positive()
        keep = positives > 0
        found = scores.logsumexp("positives") - positives.masked_fill(~keep, 1.0).log()
        return found.masked_fill(~keep, 0.0)

    def value() -> Tensor:
        if form == "out" and batch.in_one(scores):
            return scores.mean_softmax(batch.weights)
        positives = scores.count("positives")
        weights = mean_weights(positives > 0, batch.weights, positives.dtype, batch.ranks)
        if scores.plan == "dense":
            return batch.ranks.total((weights * against_others(scores, form)).sum())
        if batch.single(scores):
            return batch.ranks.total(scores.mean_against(weights))
        repulsion = scores.mean_logsumexp(weights)
        return batch.ranks.total(repulsion - (weights * attraction(positives)).sum())

    def per_query() -> Tensor:
        if scores.plan == "dense":
            return against_others(scores, form)
        positives = scores.count("positives")
        if batch.single(scores):
            found = softplus(scores.logsumexp("negatives") - scores.mean_positive())
        else:
            found = scores.logsumexp() - attraction(positives)
        return torch.where(positives > 0, found, 0.0)

    return Outcome(value, per_query, query_stats(scores))


def _own_negatives(
    queries: Tensor, keys: Tensor | None = None, negatives: Tensor | None = None, in_batch: bool = False, **_: Any
) -> bool:
    """Whether a query meets its own key and its own negatives only."""
    return isinstance(negatives, Tensor) and negatives.ndim == 3 and not in_batch


@unless(_own_negatives, TRACED)
@takes(form=one_of("out", "in"), in_batch=flag)
def info_nce_loss(
    queries: Tensor,
    keys: Tensor | None = None,
    negatives: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.1,
    logit_scale: float | Tensor | None = None,
    form: Form = "out",
    in_batch: bool = False,
    **options: Unpack[Options],
) -> Outcome:
    """InfoNCE: ``−log( e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s⁻_j/τ}) )``, averaged over queries with a positive.

    Source: van den Oord et al. 2018, arXiv:1807.03748, eq. 4; with labels Khosla et al. 2020, arXiv:2004.11362, eq. 2–3.

    Args:
        queries: ``(n, d)``.
        keys: ``(n, d)``, row ``i`` belonging to query ``i`` unless ``labels`` or ``pairs`` say otherwise; left out, the
            queries are their own keys, each excluded for itself (then ``labels`` or ``pairs`` are needed).
        negatives: Shared ``(m, d)`` or each query's own ``(n, j, d)``: a query then meets its own key and these only.
        labels: Integers, once a sample; negative means unknown.
        pairs: In place of labels.
        temperature: τ.
        logit_scale: The multiplier 1/τ, in place of the temperature.
        form: Several positives: the mean of their log-probabilities (``"out"``) or the logarithm of their mean
            probability (``"in"``).
        in_batch: With ``negatives``: the other queries' keys are negatives too.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(4)
        >>> nf.functional.info_nce_loss(z, z, temperature=1.0)  # log(1 + 3/e)
        tensor(0.7437)
    """
    if negatives is None or are_labels(negatives):
        sides = queries, *(side for side in (keys, negatives) if side is not None)
        batch = read(sides, sided=True, labels=labels, pairs=pairs, options=options, normalized=True, ring=True)
        return softmax(batch, batch.scale(temperature, logit_scale), form)
    if keys is None or labels is not None or pairs is not None:
        raise TypeError("negatives go with queries and their own keys: call loss(queries, keys, negatives)")
    return _explicit(queries, keys, negatives, temperature, logit_scale, in_batch, options)


def _explicit(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float | Tensor,
    logit_scale: float | Tensor | None,
    in_batch: bool,
    options: Options,
) -> Outcome:
    """InfoNCE of each query with its own key and explicit negatives."""
    if options.get("offsets") is not None or options.get("gather"):
        raise TypeError("offsets= and gather= speak of in-batch keys: pass the negatives as keys, with pairs=")
    batch = read((queries, keys), sided=True, labels=None, pairs=None, options=options, normalized=True)
    x = batch.scores.query_rows
    n, d = x.shape
    negatives = as_floats("negatives", negatives, x, f"(m, {d}) or ({n}, j, {d})")
    if negatives.ndim not in (2, 3) or negatives.shape[-1] != d or (negatives.ndim == 3 and len(negatives) != n):
        raise ValueError(f"negatives have shape {tuple(negatives.shape)}; (m, {d}) shared or ({n}, j, {d}) was wanted")
    check_rows("negatives", negatives, options.get("validate"))
    scale = scale_of(temperature, logit_scale, x)
    if in_batch and negatives.ndim == 2 and batch.scores.pairs.rows is None:  # then they are keys, of nobody
        others = torch.cat([batch.scores.key_rows, negatives.to(x.dtype)])
        own = Pairs.from_ids(*(torch.arange(size, device=x.device) for size in (n, len(others))))
        scores = replace(batch.scores, key_rows=others, pairs=own)
        return softmax(replace(batch, scores=scores), scale, "out")
    prepare = normalize if options.get("normalize", True) else (lambda z: z)
    with full_precision(x):
        others = prepare(negatives.reshape(-1, d).to(x.dtype))
        x, y = batch.scores.queries, batch.scores.keys
        positive = some_scores(x, y, "dot") * scale
        parts = []
        if negatives.ndim == 2:
            none = Pairs.from_ids(torch.arange(n, device=x.device), torch.arange(n, n + len(others), device=x.device))
            parts.append(Scores(x, others, none, backend=options.get("backend")).scaled(scale).logsumexp())
        else:
            each = product(x[:, None], others.view(n, -1, d))[:, 0] * scale
            parts.append(each.logsumexp(1))
        if in_batch:
            parts.append(batch.scores.scaled(scale).logsumexp("negatives"))

    def values() -> Tensor:
        return softplus((parts[0] if len(parts) == 1 else log_add_exp(*parts)) - positive)

    keep = torch.ones(n, dtype=torch.bool, device=x.device)
    return batch.averaged(values, keep, query_stats(batch.scores))


@costly_to_trace
def nt_xent_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.1,
    logit_scale: float | Tensor | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """NT-Xent: InfoNCE over the 2n views of a batch, a view never its own candidate.

    Source: Chen et al. 2020 (SimCLR), arXiv:2002.05709, eq. 1, averaged over all 2n views.

    Args:
        *views: Two or more matrices ``(n, d)``, row ``i`` of each a view of sample ``i``.
        labels: As in SupCon.
        pairs: In place of labels.
        temperature: τ. 0.1 suits batches of a few hundred; SimCLR's own sweep (Table 5) found 0.1 best.
        logit_scale: The multiplier 1/τ, in place of the temperature.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.ones(4, 2)  # collapsed: log(2n − 1)
        >>> nf.functional.nt_xent_loss(z, z), torch.tensor(7.0).log()
        (tensor(1.9459), tensor(1.9459))
    """
    batch = read(views, sided=False, labels=labels, pairs=pairs, options=options, normalized=True, ring=True)
    return softmax(batch, batch.scale(temperature, logit_scale), "out")


@costly_to_trace
@takes(form=one_of("out", "in"))
def supcon_loss(
    *views: Tensor,
    labels: Tensor | None = None,
    pairs: Pairs | None = None,
    temperature: float | Tensor = 0.1,
    logit_scale: float | Tensor | None = None,
    form: Form = "out",
    **options: Unpack[Options],
) -> Outcome:
    """Supervised contrastive loss: every sample of the same class is a positive.

    Source: Khosla et al. 2020, arXiv:2004.11362, eq. 2 (``form="out"``) and eq. 3 (``form="in"``), averaged over queries
    with a positive; without the reference code's factor ``τ/0.07``.

    Args:
        *views: One or more matrices ``(n, d)``, or one tensor ``(n, views, d)``.
        labels: Integers ``(n,)``, once a sample; negative means unknown. Without them this is NT-Xent.
        pairs: In place of labels: soft or multi-label relations.
        temperature: τ. 0.1 is the paper's best (Fig. 4).
        logit_scale: The multiplier 1/τ, in place of the temperature.
        form: ``"out"``, the paper's better one, or ``"in"``.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = torch.eye(2).repeat_interleave(2, 0)  # two classes, orthogonal
        >>> nf.functional.supcon_loss(z, labels=torch.tensor([0, 0, 1, 1]), temperature=1.0)  # log(1 + 2/e)
        tensor(0.5514)
    """
    batch = read(views, sided=False, labels=labels, pairs=pairs, options=options, normalized=True, ring=True)
    return softmax(batch, batch.scale(temperature, logit_scale), form)


# ---- modules --------------------------------------------------------------------------------------------------------


class SoftmaxLoss(Loss):
    """A loss with a temperature: fixed, a tensor of the user's, or learned (``learnable=True``)."""

    default_temperature: ClassVar[float] = 0.1

    def __init__(
        self,
        temperature: float | Tensor | None = None,
        *,
        learnable: bool = False,
        max_scale: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        start = self.default_temperature if temperature is None else temperature
        self.tau = Temperature(start, learnable, max_scale)

    @property
    def temperature(self) -> float | Tensor:
        """τ in force."""
        return self.tau()

    @override
    def arguments(self) -> dict[str, Any]:
        return {"temperature": self.tau()}


class InfoNCELoss(SoftmaxLoss):
    """InfoNCE; see :func:`nearfar.functional.info_nce_loss`.

    Args:
        temperature: τ, 0.1 by default.
        learnable: Learn τ, as ``log_scale`` clamped to ``max_scale`` after the optimiser's step.
        max_scale: Largest 1/τ that learning may reach; 100 by default, or the start's where that is larger.
        **options: ``form``, ``in_batch``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> loss = nf.InfoNCELoss(temperature=1.0)
        >>> loss(torch.eye(4), torch.eye(4))
        tensor(0.7437)
        >>> loss(torch.eye(4)[:2], torch.eye(4)[:2], torch.eye(4)[2:])  # negatives of one's own
        tensor(0.5514)
    """

    function = info_nce_loss
    own_options = frozenset({"form", "in_batch"})


class NTXentLoss(SoftmaxLoss):
    """NT-Xent; see :func:`nearfar.functional.nt_xent_loss`.

    Args:
        temperature: τ, 0.1 by default.
        learnable: Learn τ.
        max_scale: Largest 1/τ that learning may reach; 100 by default, or the start's where that is larger.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.NTXentLoss()(torch.ones(4, 2), torch.ones(4, 2))
        tensor(1.9459)
    """

    function = nt_xent_loss


class SupConLoss(SoftmaxLoss):
    """Supervised contrastive loss; see :func:`nearfar.functional.supcon_loss`.

    Args:
        temperature: τ, 0.1 by default.
        learnable: Learn τ.
        max_scale: Largest 1/τ that learning may reach; 100 by default, or the start's where that is larger.
        **options: ``form``, and those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> nf.SupConLoss()(torch.ones(4, 2), labels=torch.tensor([0, 0, 1, 1]))  # collapsed: log 3
        tensor(1.0986)
    """

    function = supcon_loss
    own_options = frozenset({"form"})
