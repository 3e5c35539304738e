"""Every loss, one row each: what tests, docs and the command line say of it is read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nearfar.losses import (
    contrastive,
    information,
    margins,
    moments,
    negatives,
    noise,
    proxies,
    raw_softmax,
    softmax,
    triplet,
    two_sided,
    weighting,
)
from nearfar.losses.base import Loss, LossFunction

Kind = Literal["self", "one-sided", "two-sided", "pairs", "classes", "moments", "noise", "information"]


@dataclass(frozen=True)
class LossRow:
    """The facts of one loss.

    Attributes:
        loss: The module.
        kind: How its arguments are read (docs/losses.md).
        mean: What its mean runs over.
        per_query: Whether a batch's value is a mean over queries.
        similarity: What it scores by, by default.
        paper: Where it comes from.
    """

    loss: type[Loss]
    kind: Kind
    mean: str
    per_query: bool
    similarity: Literal["cosine", "dot", "euclidean", "sqeuclidean", "features"]
    paper: str

    @property
    def name(self) -> str:
        """The class's name."""
        return self.loss.__name__

    @property
    def function(self) -> LossFunction[...]:
        """The functional form."""
        return self.loss.function


_WITH_POSITIVE = "queries with a positive"
_WITH_BOTH = "queries with a positive and a negative"

_ROWS = (
    LossRow(contrastive.ContrastiveLoss, "pairs", "pairs (unordered in a batch)", False, "euclidean", "Hadsell et al. 2006, eq. 4"),
    LossRow(triplet.TripletLoss, "self", "active triplets; hard: anchors; explicit: rows", False, "euclidean", "arXiv:1503.03832, eq. 1; arXiv:1703.07737, eq. 5–6"),
    LossRow(softmax.InfoNCELoss, "one-sided", _WITH_POSITIVE, True, "cosine", "arXiv:1807.03748, eq. 4"),
    LossRow(softmax.NTXentLoss, "self", _WITH_POSITIVE, True, "cosine", "arXiv:2002.05709, eq. 1"),
    LossRow(softmax.SupConLoss, "self", _WITH_POSITIVE, True, "cosine", "arXiv:2004.11362, eq. 2–3"),
    LossRow(two_sided.CLIPLoss, "two-sided", "each side's queries with a positive", True, "cosine", "arXiv:2103.00020, fig. 3"),
    LossRow(two_sided.SigLIPLoss, "two-sided", "queries", True, "cosine", "arXiv:2303.15343, alg. 1"),
    LossRow(noise.NCELoss, "noise", "queries", True, "dot", "Gutmann & Hyvärinen 2010, eq. 3; arXiv:1206.6426, eq. 8"),
    LossRow(information.MutualInformationLoss, "information", "positive pairs, negative pairs", False, "dot", "arXiv:1808.06670, eq. 4–5; arXiv:1801.04062, eq. 5"),
    LossRow(weighting.MultiSimilarityLoss, "self", "queries", True, "cosine", "arXiv:1904.06627, eq. 15"),
    LossRow(weighting.CircleLoss, "self", _WITH_BOTH, True, "cosine", "arXiv:2002.10857, eq. 6"),
    LossRow(weighting.LiftedStructureLoss, "self", "positive pairs", False, "euclidean", "arXiv:1511.06452, eq. 4"),
    LossRow(raw_softmax.NPairsLoss, "one-sided", _WITH_POSITIVE, True, "dot", "Sohn 2016, eq. 7–8"),
    LossRow(raw_softmax.NCALoss, "self", _WITH_POSITIVE, True, "sqeuclidean", "Goldberger et al. 2004, eq. 3 and 7"),
    LossRow(negatives.DCLLoss, "self", _WITH_BOTH, True, "cosine", "arXiv:2110.06848, eq. 6"),
    LossRow(negatives.HardNegativeLoss, "self", _WITH_BOTH, True, "cosine", "arXiv:2010.04592, sec. 3"),
    LossRow(negatives.DebiasedLoss, "self", _WITH_BOTH, True, "cosine", "arXiv:2007.00224, eq. 7–8"),
    LossRow(contrastive.SpectralLoss, "one-sided", "positive pairs, negative pairs", False, "dot", "arXiv:2106.04156, eq. 6"),
    LossRow(proxies.ProxyAnchorLoss, "classes", "classes present, all classes", False, "cosine", "arXiv:2003.13911, eq. 4"),
    LossRow(proxies.ProxyNCALoss, "classes", "rows of known class", True, "sqeuclidean", "arXiv:1703.07464, eq. 2; arXiv:2004.01113, eq. 6"),
    LossRow(margins.ArcFaceLoss, "classes", "rows of known class", True, "cosine", "arXiv:1801.07698, eq. 3"),
    LossRow(margins.CosFaceLoss, "classes", "rows of known class", True, "cosine", "arXiv:1801.09414, eq. 4"),
    LossRow(proxies.CenterLoss, "classes", "rows of known class", True, "sqeuclidean", "Wen et al. 2016, eq. 2"),
    LossRow(moments.BarlowTwinsLoss, "moments", "features", False, "features", "arXiv:2103.03230, eq. 1–2"),
    LossRow(moments.VICRegLoss, "moments", "rows and features", False, "features", "arXiv:2105.04906, eq. 1–6"),
    LossRow(moments.AlignUniformLoss, "moments", "rows; unordered pairs of rows", False, "cosine", "arXiv:2005.10242, sec. 4.1"),
)  # fmt: skip

LOSSES: dict[str, LossRow] = {row.name: row for row in _ROWS}
"""Every loss by the name of its class."""
