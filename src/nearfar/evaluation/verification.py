"""Are two rows of one identity? Error rates, and a threshold that others confirm.

A pair is accepted if its score is **at least** the threshold. Scores are cosines, or minus a distance: larger is more alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.evaluation.inputs import as_ids, as_rows, as_scores
from nearfar.evaluation.neighbours import Metric
from nearfar.evaluation.pair_scores import PairScores, listed_scores, pair_scores
from nearfar.given import at_least
from nearfar.losses.arguments import check_range

__all__ = ["Calibration", "PairScores", "Roc", "calibrate", "error_rates", "listed_scores", "pair_scores", "roc"]


@dataclass(frozen=True, eq=False)
class Roc:
    """The operating points, by falling threshold: first nobody is accepted, last everybody. The points of a DET curve too."""

    thresholds: Float[Tensor, "p"]
    """Every score that occurs, and before them infinity."""
    far: Float[Tensor, "p"]
    """Impostors accepted (false acceptance rate), rising."""
    tar: Float[Tensor, "p"]
    """Genuine pairs accepted; the false rejection rate is ``1 − tar``."""
    genuine: int
    impostor: int

    @property
    def auc(self) -> float:
        """The area under the curve: the probability that a genuine pair scores higher than an impostor, ties half."""
        return float(torch.trapezoid(self.tar, self.far))

    @property
    def average_precision(self) -> float:
        """The mean, over genuine pairs, of the share of genuine ones among all that score as high: no straight lines."""
        genuine, impostor = self.tar[1:] * self.genuine, self.far[1:] * self.impostor
        return float((self.tar.diff() * genuine / (genuine + impostor)).sum())

    @property
    def eer(self) -> float:
        """The equal error rate: where the curve, straight between its points, meets FAR = FRR."""
        return self._crossing()[0]

    @property
    def eer_threshold(self) -> float:
        """The threshold there: of the operating point whose two rates are nearest, the higher of equals."""
        return self._crossing()[1]

    def _crossing(self) -> tuple[float, float]:
        gap = self.far - (1 - self.tar)  # rises from −1 to 1
        after = int((gap >= 0).nonzero()[0])
        before = after - 1
        part = float(-gap[before] / (gap[after] - gap[before]))
        nearest = after if float(gap[after]) < float(-gap[before]) or before == 0 else before
        return float(self.far[before] + part * (self.far[after] - self.far[before])), float(self.thresholds[nearest])

    def threshold_at(self, far: float) -> float:
        """The lowest threshold whose FAR is at most ``far``: infinity, if even the highest score is an impostor's."""
        return float(self.thresholds[self._within(far)])

    def tar_at(self, far: float) -> float:
        """Genuine pairs accepted at that threshold. Below one impostor in all (``far < 1/impostor``) it is TAR at FAR 0."""
        return float(self.tar[self._within(far)])

    def _within(self, far: float) -> int:
        if not isinstance(far, Real) or not 0 <= far <= 1:
            raise ValueError(f"far is {far}: a rate between 0 and 1 was wanted, such as 0.001")
        return int((self.far <= far).sum()) - 1

    def points(self, most: int = 200) -> dict[str, list[float]]:
        """Some points for a picture, dense where FAR is small: ``far``, ``frr`` and ``threshold``."""
        wanted = {0, len(self.far) - 1}
        for far in torch.logspace(math.log10(1 / self.impostor), 0, most).tolist():
            wanted.add(self._within(min(far, 1.0)))
        at = torch.tensor(sorted(wanted))[1:]  # the first threshold is infinite
        return {
            "far": self.far[at].tolist(),
            "frr": (1 - self.tar[at]).tolist(),
            "threshold": self.thresholds[at].tolist(),
        }


def roc(genuine: Float[Tensor, "g"], impostor: Float[Tensor, "i"]) -> Roc:
    """The curve of all thresholds, exact: equal scores are one point.

    Args:
        genuine: Scores of pairs of one identity, one at least.
        impostor: Scores of pairs of two.

    Raises:
        ValueError: If a kind is empty, or a score is not finite.

    Example:
        >>> curve = roc(torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0.5, 0.2, 0.1]))
        >>> round(curve.eer, 4), round(curve.auc, 4), round(curve.tar_at(0.0), 4)
        (0.3333, 0.8889, 0.6667)
    """
    genuine, impostor = as_scores("genuine scores", genuine), as_scores("impostor scores", impostor)
    for name, scores in (("genuine", genuine), ("impostor", impostor)):
        if scores.ndim != 1 or not len(scores) or not bool(scores.isfinite().all()):
            raise ValueError(f"{name} scores have shape {tuple(scores.shape)}: one finite score at least was wanted")
    scores = torch.cat([genuine, impostor])
    order = scores.argsort(descending=True)
    scores, accepted = scores[order], (order < len(genuine)).long().cumsum(0)
    last = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    last[:-1] = scores[1:] != scores[:-1]
    at = last.nonzero()[:, 0]
    tar = torch.cat([accepted.new_zeros(1), accepted[at]]).double() / len(genuine)
    far = torch.cat([accepted.new_zeros(1), at + 1 - accepted[at]]).double() / len(impostor)
    thresholds = torch.cat([scores.new_full((1,), torch.inf), scores[at]])
    return Roc(thresholds.cpu(), far.cpu(), tar.cpu(), len(genuine), len(impostor))


def error_rates(scores: PairScores, threshold: float) -> tuple[float, float]:
    """FAR and FRR of a threshold.

    Example:
        >>> error_rates(PairScores(torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1]), 2, 2), 0.5)
        (0.5, 0.5)
    """
    return float((scores.impostor >= threshold).double().mean()), float((scores.genuine < threshold).double().mean())


@dataclass(frozen=True, eq=False)
class Calibration:
    """A threshold from some identities, and its error rates on others."""

    threshold: float
    wanted_far: float | None
    """``None``: chosen at equal errors."""
    far: float
    """On the identities it was not chosen on."""
    frr: float
    calibrated_on: int
    """Identities."""
    tested_on: int


def calibrate(
    embeddings: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"],
    *,
    far: float | None = None,
    metric: Metric = "cosine",
    fraction: float = 0.5,
    seed: int = 0,
) -> Calibration:
    """A threshold chosen on a part of the identities, and the errors that it makes on the others.

    A threshold chosen and judged on the same people looks better than it is.

    Args:
        embeddings: ``(n, d)``.
        labels: Identities.
        far: The false acceptance rate to keep; ``None``: where both errors are equal.
        metric: As in :func:`pair_scores`.
        fraction: The part of the identities to choose on.
        seed: Of the split.

    Raises:
        ValueError: With fewer than four identities that have two rows: two a side.

    Example:
        >>> z = torch.eye(4).repeat(2, 1)
        >>> found = calibrate(z, torch.arange(4).repeat(2))
        >>> found.far, found.frr
        (0.0, 0.0)
    """
    embeddings = as_rows("embeddings", embeddings)
    labels = as_ids("labels", labels, len(embeddings)).to(embeddings.device)
    check_range("fraction", fraction, 0.0, 1.0)
    names, counts = labels[labels >= 0].unique(return_counts=True)
    if int((counts > 1).sum()) < 4:
        raise ValueError(
            f"{int((counts > 1).sum())} identities have two rows or more: a threshold is chosen on two of them "
            "at least, and judged on two others"
        )
    generator = torch.Generator().manual_seed(at_least("seed", seed, 0))
    chosen, others = [], []
    for group in (names[counts > 1], names[counts == 1]):  # so that both sides have genuine pairs
        order = group[torch.randperm(len(group), generator=generator).to(group.device)]
        cut = (
            round(fraction * len(group))
            if len(group) < 4
            else min(max(round(fraction * len(group)), 2), len(group) - 2)
        )
        chosen.append(order[:cut])
        others.append(order[cut:])
    sides = []
    for ids in (torch.cat(chosen), torch.cat(others)):
        rows = torch.isin(labels, ids)
        sides.append(pair_scores(embeddings[rows], labels[rows], metric=metric, seed=seed))
    curve = roc(sides[0].genuine, sides[0].impostor)
    threshold = curve.eer_threshold if far is None else curve.threshold_at(far)
    return Calibration(
        threshold, far, *error_rates(sides[1], threshold), len(torch.cat(chosen)), len(torch.cat(others))
    )
