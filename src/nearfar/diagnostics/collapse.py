"""Whether embeddings have collapsed, in plain words with a remedy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor

from nearfar.diagnostics.geometry import classes_of, effective_rank, feature_std, mean_cosine
from nearfar.given import whole
from nearfar.losses.arguments import check_range

COMPLETE = 0.1
"""Of the spread ``1/√d`` that features of evenly spread directions have."""
DIMENSIONAL = 0.1
"""Of the dimensions there could be."""
CHANCE = 0.02
"""How near the loss may come to that of guessing, relative to it."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and what to do about it."""

    kind: Literal["complete", "dimensional", "dead features", "loss at chance"]
    message: str
    remedy: str
    value: float
    """What was measured."""
    limit: float
    """What it should have been above; for the loss at chance, the chance level."""

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


def collapse(
    z: Float[Tensor, "n d"],
    labels: Int64[Tensor, "n"] | None = None,
    *,
    loss: float | None = None,
    candidates: int | None = None,
) -> tuple[Finding, ...]:
    """Looks for collapse: all rows alike, few dimensions used, dead features, a loss that only guesses.

    - **complete**: the mean spread of a feature is below a tenth of ``1/√d``, that of evenly spread directions (Chen & He
      2021, arXiv:2011.10566, sec. 4.1), or the mean cosine of two rows is above 0.98.
    - **dimensional**: the effective rank is below a tenth of ``min(n − 1, d)`` (Jing et al. 2022, arXiv:2110.09348). With
      labels, below a tenth of the classes less one, if that is fewer: supervised losses tend to so many dimensions
      (Papyan et al. 2020).
    - **dead features**: some never vary, and others do.
    - **loss at chance**: the loss is within 2% of ``ln(candidates)``, which a softmax over so many candidates gives to one
      who guesses.

    Args:
        z: Embeddings ``(n, d)``; a few hundred rows will do.
        labels: Their classes, if the loss had them.
        loss: Of the last steps, in nats.
        candidates: How many keys a query chose among, its own among them.

    Returns:
        What was found; nothing, if all is well.

    Raises:
        ValueError: If rows are fewer than two or not finite, or only one of ``loss`` and ``candidates`` is given.

    Example:
        >>> import torch
        >>> [finding.kind for finding in collapse(torch.ones(8, 4), loss=math.log(256), candidates=256)]
        ['complete', 'loss at chance']
        >>> collapse(torch.eye(4))
        ()
    """
    labels = None if labels is None else classes_of(labels, len(z))
    if (loss is None) != (candidates is None):
        raise ValueError("loss and candidates belong together: the chance level is ln(candidates)")
    found = []
    spread, cosine, d = feature_std(z), mean_cosine(z), z.shape[1]
    even = math.sqrt(1 / d)
    most = min(len(z) - 1, d)
    if d > 1 and (spread < COMPLETE * even or cosine > 0.98):
        found.append(Finding(
            "complete",
            f"All embeddings point nearly the same way: their mean cosine is {cosine:.3f}, a feature varies by {spread:.2g} "
            f"where {even:.2g} would be even.",
            "Nothing pushes rows apart: use a loss with negatives or a variance term (VICReg), check that negatives are in "
            "the batch and labels differ, put batch normalisation before the last layer, and lower the learning rate.",
            spread, COMPLETE * even,
        ))  # fmt: skip
    else:
        rank = effective_rank(z)
        classes = None if labels is None else len(labels[labels >= 0].unique())
        wanted = DIMENSIONAL * (most if classes is None else min(most, max(classes - 1, 1)))
        if most >= 20 and rank < max(wanted, 1.5):
            found.append(Finding(
                "dimensional",
                f"The embeddings use about {rank:.1f} of {most} dimensions (effective rank).",
                "Train with a projection head and take what enters it, use stronger augmentation or more negatives, a higher "
                "temperature, or a loss that decorrelates features (Barlow Twins, VICReg).",
                rank, max(wanted, 1.5),
            ))  # fmt: skip
        still = (z == z[:1]).all(0)
        if bool(still.any()) and not bool(still.all()):
            found.append(Finding(
                "dead features",
                f"{int(still.sum())} of {d} features never vary.",
                "Leave out the ReLU after the last layer, or put batch normalisation before it; lower the learning rate.",
                float(still.double().mean()), 0.0,
            ))  # fmt: skip
    if loss is not None and candidates is not None:
        check_range("loss", loss, -math.inf)
        candidates = whole("candidates", candidates)
        if candidates < 2:
            raise ValueError(f"candidates is {candidates}: a choice is among two at least")
        chance = math.log(candidates)
        if abs(loss - chance) <= CHANCE * chance:
            found.append(Finding(
                "loss at chance",
                f"The loss is {loss:.4f}; guessing among {candidates} candidates gives ln({candidates}) = {chance:.4f}.",
                "Nothing was learned yet: check that partners belong together (row i with row i), raise the learning rate or train "
                "longer, and lower the temperature (0.1 to start with).",
                loss, chance,
            ))  # fmt: skip
    return tuple(found)
