"""What is measured: one row a loss, with its inputs, our call, its dense form, and the least work that it takes.

`n` is the rows that score each other: for a loss of two views, of both together; for a one-sided or two-sided loss, those
of one side. So every row of a table at n has n×n scores, but for classes (n/8 of them, or as many as a row's name says) and
moments (d×d numbers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

import dense
import nearfar as nf
from dense import DEBIASED_TAU, TAU, K

Kind = Literal[
    "views", "labels", "sets", "sides", "soft", "twice", "frozen", "moments", "classes", "identities", "noise"
]
Call = Callable[..., Tensor]
LABELLED: tuple[Kind, ...] = ("labels", "sets", "twice")
ROWS_A_CLASS = 8
SETS = 80
"""Classes that a row may have some of, as photographs of COCO have."""
WORDS = 10_000
IDENTITIES = 10_000


@dataclass(frozen=True)
class Workload:
    """One loss as it is measured.

    Attributes:
        name: As the tables say it.
        loss: Its name in `nf.LOSSES`.
        kind: What its inputs are, `inputs` below.
        dense: Its dense form.
        products: The least matrix products known for it, forward and backward; None: it has none to speak of.
        options: Of our module.
        across: What a product runs over beside the rows and the features: other rows, classes, or features again.
    """

    name: str
    loss: str
    kind: Kind
    dense: Call
    products: float | None
    options: dict[str, Any] = field(default_factory=dict)
    across: Literal["rows", "classes", "identities", "features"] = "rows"

    def flops(self, n: int, d: int) -> float | None:
        """Operations at least, forward and backward."""
        m = {"rows": n, "classes": classes(n), "identities": IDENTITIES, "features": d}[self.across]
        return None if self.products is None else self.products * 2 * n * m * d

    def traced(self, n: int) -> bool:
        """Whether `torch.compile` sees through our loss at n rows; else it runs as it is, and there is nothing new to time."""
        others = {"views": 0, "labels": 0, "sets": 0, "classes": classes(n), "identities": IDENTITIES, "noise": WORDS}
        return n + others.get(self.kind, n) <= nf.LOSSES[self.loss].function.traced

    def ours(self, **options: Any) -> Call:
        """Our loss as a function of the inputs."""
        row, options = nf.LOSSES[self.loss], {**self.options, **options}
        if self.kind in ("classes", "identities"):
            return lambda z, labels, table: row.function(z, labels, table, **options)
        if self.kind == "noise":
            noise = nf.Noise(torch.ones(WORDS))
            return lambda z, targets, table, samples: row.function(
                z, targets, table, noise=noise, k=K, samples=samples, **options
            )
        loss = row.loss(**options)
        if self.kind == "soft":
            return lambda x, y, matrix: loss(x, y, pairs=nf.Pairs.from_matrix(matrix))
        return (lambda *views: loss(*views[:-1], labels=views[-1])) if self.kind in LABELLED else loss


SOFTMAX = {"temperature": TAU}
DEBIASED = {"temperature": DEBIASED_TAU}
SEMIHARD = {"mining": "semihard", "fallback": "farthest"}

_ROWS = (
    Workload("NT-Xent", "NTXentLoss", "views", dense.nt_xent, 2, SOFTMAX),
    Workload("SupCon", "SupConLoss", "labels", dense.supcon, 2, SOFTMAX),
    Workload("InfoNCE", "InfoNCELoss", "sides", dense.info_nce, 3, SOFTMAX),
    Workload("InfoNCE, frozen keys", "InfoNCELoss", "frozen", dense.info_nce, 2, SOFTMAX),
    Workload("CLIP", "CLIPLoss", "sides", dense.clip, 4, SOFTMAX),
    Workload("SupCon, label sets", "SupConLoss", "sets", dense.supcon_sets, 3, SOFTMAX),
    Workload("InfoNCE, soft targets", "InfoNCELoss", "soft", dense.info_nce_soft, 3, SOFTMAX),
    Workload("CLIP, texts of several images", "CLIPLoss", "twice", dense.clip_twice, 4, SOFTMAX),
    Workload("SigLIP", "SigLIPLoss", "sides", dense.siglip, 3),
    Workload("Triplet, hard", "TripletLoss", "labels", dense.triplet_hard, 0.5, {"mining": "hard"}),
    Workload("Triplet, all", "TripletLoss", "labels", dense.triplet_all, 1.5, {"mining": "all"}),
    Workload("Triplet, semi-hard", "TripletLoss", "labels", dense.triplet_semihard, 0.5, SEMIHARD),
    Workload("DCL", "DCLLoss", "views", dense.dcl, 2, SOFTMAX),
    Workload("Hard negatives", "HardNegativeLoss", "views", dense.hard_negative, 2, DEBIASED),
    Workload("Debiased", "DebiasedLoss", "views", dense.debiased, 2, DEBIASED),
    Workload("N-pairs", "NPairsLoss", "sides", dense.n_pairs, 3),
    Workload("NCA", "NCALoss", "labels", dense.nca, 2),
    Workload("Mutual information", "MutualInformationLoss", "sides", dense.mutual_information, 3),
    Workload("Multi-similarity", "MultiSimilarityLoss", "labels", dense.multi_similarity, 2),
    Workload("Circle", "CircleLoss", "labels", dense.circle, 2),
    Workload("Lifted structure", "LiftedStructureLoss", "labels", dense.lifted, 2),
    Workload("Contrastive", "ContrastiveLoss", "labels", dense.contrastive, 1.5),
    Workload("Align, uniform", "AlignUniformLoss", "sides", dense.align_uniform, 3),  # 1.5 for either side
    Workload("Spectral", "SpectralLoss", "sides", dense.spectral, 4, across="features"),
    Workload("Barlow Twins", "BarlowTwinsLoss", "moments", dense.barlow_twins, 3, across="features"),
    Workload("VICReg", "VICRegLoss", "moments", dense.vicreg, 4, {"form": "code"}, across="features"),
    Workload("Proxy-anchor", "ProxyAnchorLoss", "classes", dense.proxy_anchor, 3, across="classes"),
    Workload("Proxy-NCA", "ProxyNCALoss", "classes", dense.proxy_nca, 3, {"denominator": "all"}, across="classes"),
    Workload("ArcFace", "ArcFaceLoss", "classes", dense.arcface, 3, across="classes"),
    Workload("CosFace", "CosFaceLoss", "classes", dense.cosface, 3, across="classes"),
    Workload("Center", "CenterLoss", "classes", dense.center, None),
    *(Workload(f"{name}, {IDENTITIES:,} classes", loss, "identities", form, 3, options, across="identities")
      for name, loss, form, options in (
          ("ArcFace", "ArcFaceLoss", dense.arcface, {}), ("CosFace", "CosFaceLoss", dense.cosface, {}),
          ("Proxy-NCA", "ProxyNCALoss", dense.proxy_nca, {"denominator": "all"}),
      )),
    Workload("NCE", "NCELoss", "noise", dense.nce, None),
)  # fmt: skip

WORKLOADS: dict[str, Workload] = {row.name: row for row in _ROWS}


def classes(n: int) -> int:
    return max(n // ROWS_A_CLASS, 2)


def inputs(kind: Kind, n: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """What the loss is called with; those that require a gradient are the leaves.

    Rows are a centre of length 1 and noise of length 2, about: related rows have cosines near 0.2, as early in training.
    """
    random = torch.Generator().manual_seed(n)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random) * (0.3 if kind == "moments" else d**-0.5)

    def leaf(z: Tensor) -> Tensor:
        return z.to(dtype).requires_grad_()

    if kind in ("views", "sides", "frozen", "moments", "soft", "twice"):
        x = draw(n // 2 if kind == "views" else n, d)
        y = x + 2 * draw(*x.shape)
        sides = leaf(x + 2 * draw(*x.shape)), y.to(dtype) if kind == "frozen" else leaf(y)
        if kind == "twice":  # every text some two images have, and some images' is unknown
            return *sides, torch.randint(n // 2, (n,), generator=random).sub_(n // 16)
        if kind == "soft":  # as a teacher gives them: most of the weight on few
            logits = x @ x.T / (x.square().sum() / len(x))
            return *sides, (logits * 8).softmax(1).to(dtype)
        return sides
    if kind == "sets":
        return leaf(draw(n, d)), (torch.rand(n, SETS, generator=random) < 3 / SETS).long()
    if kind == "noise":
        table = draw(WORDS, d)
        targets = torch.randint(WORDS, (n,), generator=random)
        samples = torch.randint(WORDS, (n, K), generator=random)
        return leaf(table[targets] + draw(n, d)), targets, leaf(table), samples
    if kind == "identities":
        labels, centres = torch.randint(IDENTITIES, (n,), generator=random), draw(IDENTITIES, d)
    else:
        labels, centres = (torch.arange(n) % classes(n))[torch.randperm(n, generator=random)], draw(classes(n), d)
    z = leaf(centres[labels] + 2 * draw(n, d))
    return (z, labels) if kind == "labels" else (z, labels, leaf(centres + draw(*centres.shape)))
