"""Mutual-information maximisation: a summary should tell its own parts from those of others."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack, override

from nearfar.given import at_least, ids_of, is_integer
from nearfar.losses.arguments import Options, as_floats, as_matrix, one_of, refuse, takes, working_dtype
from nearfar.losses.base import Loss, Outcome, loss_function, query_stats
from nearfar.losses.batch import read
from nearfar.losses.numbers import Number
from nearfar.losses.softmax import softmax
from nearfar.pairs import Pairs
from nearfar.scores import Stage, sum_over
from nearfar.scores.exponentials import softplus
from nearfar.scores.gather import Ranks, meet
from nearfar.scores.similarity import product

Estimator = Literal["infonce", "jsd", "dv"]

# T − log(e^T + Σ_N e^T) = −softplus(log Σ_N e^T − T)
INFONCE: Stage = {"value": sum_over("positives", lambda s, t: -softplus(t.rows["repulsion"] - s))}
JSD: Stage = {
    "near": sum_over("positives", lambda s, t: -softplus(-s)),
    "far": sum_over("negatives", lambda s, t: softplus(s)),
}
SCORE: Stage = {"value": sum_over("positives")}


@loss_function
@takes(estimator=one_of("infonce", "jsd", "dv"))
def mutual_information_loss(
    summary: Tensor,
    local: Tensor,
    *,
    batch: Tensor | None = None,
    pairs: Pairs | None = None,
    estimator: Estimator = "infonce",
    bilinear: Tensor | None = None,
    log_ema: Tensor | None = None,
    **options: Unpack[Options],
) -> Outcome:
    """Minus a bound on the mutual information between summaries and their own parts, in nats.

    ``infonce``: ``mean_P[T − log(e^T + Σ_N e^T)] + log(1 + |N|)``, at most ``log(1 + |N|)`` (van den Oord et al. 2018,
    arXiv:1807.03748, eq. 5; Hjelm et al. 2019, arXiv:1808.06670, eq. 5). ``jsd``: ``mean_P(−softplus(−T)) −
    mean_N(softplus(T))`` (Hjelm et al., eq. 4): good to maximise, **not an estimate of the mutual information**. ``dv``:
    ``mean_P(T) − log mean_N(e^T)`` (Donsker–Varadhan; Belghazi et al. 2018, MINE, arXiv:1801.04062, eq. 5), its marginal
    without the positives; 0 where there is no negative pair to take it from.

    Source: van den Oord et al. 2018, eq. 5; Hjelm et al. 2019, eq. 4–5; Belghazi et al. 2018, eq. 5, as above.

    Args:
        summary: Global features ``(n, d)``.
        local: Another vector of each item ``(n, e)``; maps ``(n, e, h, w)`` or sequences ``(n, e, l)``; or nodes ``(m, e)``
            with ``batch``. A location is contrasted with other items' locations only.
        batch: The item of each node ``(m,)``.
        pairs: For vectors: who belongs together, in place of row with row.
        estimator: The bound.
        bilinear: ``W`` of the critic ``T = ⟨x, W y⟩``; the dot product by default.
        log_ema: ``dv``: logarithm of a running mean of ``mean_N e^T``; the gradient then divides by that mean instead of
            the batch's own, which is biased (MINE, sec. 3.2). The value does not change.
        **options: See :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = 10 * torch.eye(4)  # told apart for sure: the bound reaches log 4
        >>> nf.functional.mutual_information_loss(z, z), -torch.tensor(4.0).log()
        (tensor(-1.3863), tensor(-1.3863))
    """
    refuse(options, "offsets", "they are added to the logits of softmax losses only")
    refuse(options, "weights", "they are per query, and the mean runs over pairs")
    for name, side in (("summary", summary), ("local", local)):
        if as_floats(name, side).ndim < 2:
            as_matrix(name, side)
    if summary.ndim > 2 and local.ndim == 2:
        summary, local = local, summary
    parts = local
    if local.ndim > 2:
        if pairs is not None or batch is not None or len(local) != len(summary):
            raise ValueError(
                f"maps of shape {tuple(local.shape)} go with one summary each, without pairs= or batch=; "
                f"there are {len(summary)} summaries"
            )
        parts = local.flatten(2).transpose(1, 2).reshape(-1, local.shape[1])
        batch = torch.arange(len(local), device=local.device).repeat_interleave(local.shape[2:].numel())
    elif batch is not None:
        batch = ids_of("batch", batch, local.device)
        if batch.shape != (len(local),) or not is_integer(batch):
            raise ValueError(
                f"batch is {batch.dtype} {tuple(batch.shape)}; one item number a node, integers ({len(local)},), was wanted"
            )
        look = len(batch) and batch.device.type == "cpu" and not torch.compiler.is_compiling()
        if look and int(batch.max()) >= len(summary):
            raise ValueError(
                f"batch reaches {int(batch.max())}; the items of {len(summary)} summaries are 0 to {len(summary) - 1}"
            )
    items = meet(len(summary), options.get("gather"), summary.device)
    if batch is not None:
        first = items.own.start
        pairs = Pairs.from_ids(torch.arange(len(summary), device=summary.device) + first, batch + first)
    parts = as_matrix("local", parts)
    if bilinear is not None:
        if as_matrix("bilinear", bilinear, summary).shape != (summary.shape[1], parts.shape[1]):
            raise ValueError(f"bilinear is {tuple(bilinear.shape)}; ({summary.shape[1]}, {parts.shape[1]}) was wanted")
        dtype = working_dtype(summary, parts, bilinear)
        summary = product(as_matrix("summary", summary).to(dtype), items.shared(bilinear).to(dtype).T)
    read_batch = read((summary, parts), sided=True, labels=None, pairs=pairs, options=options, normalized=False)
    scores, ranks = read_batch.scores, read_batch.ranks
    seen: dict[str, Tensor] = {}

    def value() -> Tensor:
        if estimator == "infonce" and scores.pairs.row_by_row and ranks.alone:  # N-pairs, but for a constant
            most = math.log(max(scores.pairs.shape[1], 1))
            if scores.at_once():
                return scores.mean_softmax(None, less=most)
            return softmax(read_batch, 1.0, "out").value() - most
        near, far = scores.count("positives"), scores.count("negatives")
        total = ranks.total(near.sum()).clamp(min=1)
        if estimator == "jsd":
            found = scores.reduce(JSD)
            means = [ranks.total(found[name].sum()) for name in ("near", "far")]
            return means[1] / ranks.total(far.sum()).clamp(min=1) - means[0] / total
        repulsion = scores.logsumexp("negatives")
        if estimator == "infonce":
            repulsion = repulsion.masked_fill(far == 0, -1e30)
            found = scores.reduce(INFONCE, statistics={"repulsion": repulsion})["value"]
            most = near.double() * torch.log1p(far.double())
            return (0.0 - ranks.total((found + most).sum()) / total).to(found.dtype)  # in float64: the two terms cancel
        joint = ranks.total(scores.reduce(SCORE)["value"].sum(dtype=torch.float64)) / total
        return _donsker_varadhan(joint, repulsion, far, log_ema, seen, ranks)

    counted = query_stats(scores)
    return Outcome(value, None, lambda: {**counted(), **seen})


def _donsker_varadhan(
    joint: Tensor, repulsion: Tensor, far: Tensor, log_ema: Tensor | None, seen: dict[str, Tensor], ranks: Ranks
) -> Tensor:
    # in float64: the two terms cancel
    negatives, dtype = ranks.total(far.sum(dtype=torch.float64)), repulsion.dtype
    repulsion = torch.where(far > 0, repulsion, torch.full_like(repulsion, -1e30)).double()
    marginal = ranks.log_total(repulsion.logsumexp(0)) - negatives.clamp(min=1).log()
    seen["log_marginal"] = marginal.detach().to(dtype)
    if log_ema is not None:
        ratio = (marginal - log_ema.detach()).exp()
        marginal = marginal.detach() + ratio - ratio.detach()
    return torch.where(negatives == 0, 0.0 * joint, marginal - joint).to(dtype)


class MutualInformationLoss(Loss):
    """Minus a bound on mutual information; see :func:`nearfar.functional.mutual_information_loss`.

    Args:
        estimator: ``"infonce"``, ``"jsd"`` (no estimate of the mutual information) or ``"dv"``.
        bilinear: Sizes ``(d, e)`` of a learned bilinear critic; the dot product by default.
        ema: ``"dv"``: decay of the running mean that corrects its gradient (MINE uses 0.99); ``None``: uncorrected.
        **options: Those of :class:`nearfar.losses.arguments.Options`.

    Example:
        >>> import torch, nearfar as nf
        >>> z = 10 * torch.eye(4)
        >>> maps = z[:, :, None, None].expand(4, 4, 2, 2)  # log(1 + 3·2·2)
        >>> nf.MutualInformationLoss()(z, maps)
        tensor(-2.5649)
    """

    function = mutual_information_loss
    own_options = frozenset({"estimator"})

    def __init__(
        self,
        estimator: Estimator = "infonce",
        *,
        bilinear: tuple[int, int] | None = None,
        ema: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(estimator=estimator, **options)
        if ema is not None:
            ema = Number(0.0, 1.0, constant=True)("ema", ema)
            if estimator != "dv":
                raise ValueError(f"ema= corrects the gradient of the 'dv' estimator; {estimator!r} needs none")
        self.ema = ema
        self.weight = None
        if bilinear is not None:
            if not isinstance(bilinear, tuple | list) or len(bilinear) != 2:
                raise ValueError(f"bilinear is {bilinear!r}; the sizes (d, e) of summaries and parts were wanted")
            self.weight = nn.Parameter(torch.empty(*(at_least("bilinear", size, 1) for size in bilinear)))
            nn.init.xavier_uniform_(self.weight)
        self.register_buffer("log_ema", None if ema is None else torch.tensor(torch.nan))  # NaN: nothing seen yet

    log_ema: Tensor | None

    @override
    def arguments(self) -> dict[str, Any]:
        if self.weight is None:
            return {}
        return {"bilinear": self.weight}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, a scalar; while training, the running mean is carried on."""
        if self.ema is None or self.log_ema is None:
            return super().forward(*args, **kwargs)
        with torch.no_grad():
            super().forward(*args, **kwargs)
            now = self.stats["log_marginal"]
            before = torch.where(self.log_ema.isnan(), now, self.log_ema)
            mean = torch.logaddexp(before + math.log(self.ema), now + math.log1p(-self.ema))
            if self.training:
                self.log_ema.copy_(mean)
        return super().forward(*args, **{**kwargs, "log_ema": mean})
