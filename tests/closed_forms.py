"""Values that a pencil gives: at least one a loss, each a call of the functional form and what it must return.

`CLOSED_FORMS` maps a loss's name to its cases. The simplest configurations recur: *collapse* (every row the same),
*orthogonal* (the rows of the identity: a sample is similar to itself alone), and orthogonal classes of several rows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from problems import draw

N, TAU = 6, 0.5


class Closed(NamedTuple):
    """What is being said, the call, and its value."""

    fact: str
    tensors: tuple[Tensor, ...]
    keywords: dict[str, Any]
    value: float


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


EYE = torch.eye(N, dtype=torch.float64)
SAME = torch.ones(N, 3, dtype=torch.float64)
PAIRED = EYE[:3].repeat(2, 1)  # three orthogonal classes of two rows
LABELS = torch.arange(3).repeat(2)
POINTS = draw(8, 4, seed=0)
PROTOTYPES = draw(3, 4, seed=1)
TARGETS = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2])
NAMED = torch.where(TARGETS[:, None] == torch.arange(3), 1.0, 0.0)
BY_CLASS = {"labels": LABELS}
T = {"temperature": TAU}

# four samples of two uncorrelated features, mean 0 and variance 1
WHITE = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
WIDE = WHITE * 2.0
"""Standard deviation above VICReg's γ = 1, even with n − 1."""


def row(*entries: float) -> Tensor:
    return torch.tensor([entries], dtype=torch.float64)


ORIGIN, FAR, NEAR = row(0, 0), row(3, 4), row(0.36, 0.48)  # at 0, 5 and 0.6 from the origin
SIMILAR, DISSIMILAR = torch.tensor([1]), torch.tensor([0])

CLOSED_FORMS: dict[str, list[Closed]] = {
    "ContrastiveLoss": [
        Closed("a similar pair pays D²", (ORIGIN, FAR, SIMILAR), {}, 25.0),
        Closed("a dissimilar pair pays (m − D)² within the margin", (ORIGIN, NEAR, DISSIMILAR), {}, 0.4**2),
        Closed("and nothing beyond it", (ORIGIN, FAR, DISSIMILAR), {}, 0.0),
        Closed("labels turned round", (ORIGIN, FAR, DISSIMILAR), {"positive": 0}, 25.0),
        Closed("cosine, similar: 1 − s", (row(1, 0), row(0.6, 0.8), SIMILAR), {"distance": "cosine"}, 0.4),
        Closed("cosine, dissimilar: s", (row(1, 0), row(0.6, 0.8), DISSIMILAR), {"distance": "cosine"}, 0.6),
        Closed("3 of 15 unordered pairs are similar, 12 at √2 > 1", (PAIRED,), BY_CLASS, 0.0),
        Closed(
            "margin 2: 12 of 15 pairs pay", (PAIRED,), {**BY_CLASS, "margin": 2.0}, 12 / 15 * (2 - math.sqrt(2)) ** 2
        ),
    ],
    "TripletLoss": [
        Closed("collapse pays the margin", (SAME,), BY_CLASS, 0.2),
        Closed("collapse pays it with the hardest too", (SAME,), {**BY_CLASS, "mining": "hard"}, 0.2),
        Closed("collapse, soft: log 2", (SAME,), {**BY_CLASS, "soft": True}, math.log(2)),
        Closed("explicit: 5 − 0.6 + 0.2", (ORIGIN, FAR, NEAR), {}, 4.6),
        Closed("explicit, squared: 25 − 0.36 + 0.2", (ORIGIN, FAR, NEAR), {"distance": "sqeuclidean"}, 24.84),
        Closed("orthogonal classes are √2 apart", (PAIRED,), {**BY_CLASS, "margin": 2.0}, 2 - math.sqrt(2)),
    ],
    "InfoNCELoss": [
        Closed("collapse: log n, chance", (SAME, SAME), T, math.log(N)),
        Closed("orthogonal: log(1 + (n−1)·e^(−1/τ))", (EYE, EYE), T, math.log(1 + (N - 1) * math.exp(-1 / TAU))),
        Closed(
            "over class prototypes it is softmax cross-entropy",
            (POINTS, PROTOTYPES),
            {"pairs": NAMED, "normalize": False, "temperature": 1.0},
            float(F.cross_entropy(POINTS @ PROTOTYPES.T, TARGETS)),
        ),
        Closed(
            "its own key and 4 orthogonal negatives", (EYE[:2], EYE[:2], EYE[2:]), T, math.log(1 + 4 * math.exp(-2))
        ),
        Closed(
            "the same, in batch", (EYE[:2], EYE[:2], EYE[2:]), {**T, "in_batch": True}, math.log(1 + 5 * math.exp(-2))
        ),
    ],
    "NTXentLoss": [
        Closed("collapse: log(2n − 1)", (SAME, SAME), T, math.log(2 * N - 1)),
        Closed("orthogonal samples: log(1 + (2n−2)·e^(−1/τ))", (EYE, EYE), T, math.log(1 + (2 * N - 2) * math.exp(-2))),
    ],
    "SupConLoss": [
        Closed("collapse: log(n − 1)", (SAME,), {**T, **BY_CLASS}, math.log(N - 1)),
        Closed("orthogonal classes of two", (PAIRED,), {**T, **BY_CLASS}, math.log(1 + (N - 2) * math.exp(-1 / TAU))),
        Closed(
            "orthogonal classes of three, in three views, inside the log",
            (EYE[:3], EYE[:3], EYE[:3]),
            {**T, "form": "in"},
            math.log(2 + 6 * math.exp(-1 / TAU)),
        ),
    ],
    "CLIPLoss": [
        Closed("collapse: log n", (SAME, SAME), T, math.log(N)),
        Closed("orthogonal: log(1 + (n−1)·e^(−1/τ))", (EYE, EYE), T, math.log(1 + (N - 1) * math.exp(-1 / TAU))),
    ],
    "SigLIPLoss": [
        Closed(
            "orthogonal: n pairs at 1/τ + b, n(n−1) at b, over n",
            (EYE, EYE),
            {**T, "bias": -1.0},
            softplus(-1.0) + (N - 1) * softplus(-1.0),
        ),
    ],
    "NPairsLoss": [
        Closed("rows of length r: log(1 + (n−1)·e^(−r²))", (2 * EYE, 2 * EYE), {}, math.log(1 + 5 * math.exp(-4))),
        Closed(
            "and λ times the mean of r²",
            (2 * EYE, 4 * EYE),
            {"regularization": 0.02},
            math.log(1 + 5 * math.exp(-8)) + 0.02 * (4 + 16) / 2,
        ),
    ],
    "NCALoss": [
        Closed("collapse: log(candidates / positives)", (SAME,), BY_CLASS, math.log(5)),
        Closed("collapse, probability", (SAME,), {**BY_CLASS, "objective": "probability"}, 1 - 1 / 5),
        Closed("orthogonal classes are 2 apart, squared", (PAIRED,), BY_CLASS, math.log(1 + 4 * math.exp(-2))),
    ],
    "DCLLoss": [Closed("orthogonal: log(2n − 2) − 1/τ", (EYE, EYE), T, math.log(2 * N - 2) - 1 / TAU)],
    "HardNegativeLoss": [
        Closed("collapse: log(1 + N), whatever β and τ⁺", (SAME, SAME), {**T, "beta": 3.0}, math.log(1 + 10)),
        Closed("orthogonal: the floor N·e^(−1/τ)", (EYE, EYE), {**T, "tau_plus": 0.5}, math.log(1 + 10 * math.exp(-4))),
    ],
    "DebiasedLoss": [
        Closed("τ⁺ = 0 is NT-Xent", (EYE, EYE), {**T, "tau_plus": 0.0}, math.log(1 + 10 * math.exp(-2))),
        Closed(
            "orthogonal: G = N·(1 − τ⁺e^(1/τ))/(1 − τ⁺)",
            (EYE, EYE),
            {**T, "tau_plus": 0.1},
            -2 + math.log(math.exp(2) + 10 * (1 - 0.1 * math.exp(2)) / 0.9),
        ),
    ],
    "MultiSimilarityLoss": [
        Closed("orthogonal classes are solved: nothing is hard enough", (PAIRED,), BY_CLASS, 0.0),
        Closed(
            "unless every pair counts",
            (PAIRED,),
            {**BY_CLASS, "epsilon": None},
            math.log(1 + math.exp(-1)) / 2 + math.log(1 + 4 * math.exp(-25)) / 50,
        ),
    ],
    "CircleLoss": [
        Closed(
            "orthogonal classes: softplus(log(P·N) − 2γm²)",
            (PAIRED,),
            {**BY_CLASS, "margin": 0.25, "scale": 4.0},
            softplus(math.log(4) - 2 * 4 * 0.25**2),
        ),
    ],
    "LiftedStructureLoss": [
        Closed("collapse: ½·(m + log of both ends' negatives)²", (SAME,), BY_CLASS, 0.5 * (1 + math.log(8)) ** 2),
    ],
    "SpectralLoss": [
        Closed("rows of length r, orthogonal: −2r²", (2 * EYE, 2 * EYE), {}, -8.0),
        Closed("collapse: −2r² + r⁴", (SAME, SAME), {}, -6.0 + 9.0),
    ],
    "MutualInformationLoss": [
        Closed("a critic that knows nothing: 0 nats", (0 * EYE, EYE), {"estimator": "infonce"}, 0.0),
        Closed("the same by Donsker–Varadhan", (0 * EYE, EYE), {"estimator": "dv"}, 0.0),
        Closed("the Jensen–Shannon form is 2·log 2 there", (0 * EYE, EYE), {"estimator": "jsd"}, 2 * math.log(2)),
        Closed("a critic that knows all: −log n", (30 * EYE, EYE), {"estimator": "infonce"}, -math.log(N)),
        Closed("dv of T = 3 on pairs, 0 elsewhere", (3 * EYE, EYE), {"estimator": "dv"}, -3.0),
        Closed("jsd of the same", (3 * EYE, EYE), {"estimator": "jsd"}, softplus(-3.0) + math.log(2)),
    ],
    "NCELoss": [
        Closed(
            "scores of 0 over V equal words: log(1 + k/V) + k·log(1 + V/k)",
            (SAME, torch.arange(N), torch.zeros(N, 3, dtype=torch.float64)),
            {"noise": torch.ones(N, dtype=torch.float64), "samples": torch.zeros(N, 4, dtype=torch.long)},
            math.log(1 + 4 / N) + 4 * math.log(1 + N / 4),
        ),
    ],
    "ProxyAnchorLoss": [
        Closed(
            "on its own proxy, orthogonal to the rest",
            (EYE, torch.arange(N), EYE),
            {"margin": 0.1, "scale": 2.0},
            math.log(1 + math.exp(-1.8)) + math.log(1 + 5 * math.exp(0.2)),
        ),
    ],
    "ProxyNCALoss": [
        Closed("on its own proxy, 2 from the rest", (EYE, torch.arange(N), EYE), {}, math.log(5) - 2),
        Closed("over every class", (EYE, torch.arange(N), EYE), {"denominator": "all"}, math.log(1 + 5 * math.exp(-2))),
    ],
    "ArcFaceLoss": [
        Closed(
            "at angle 0 the target is s·cos m",
            (EYE, torch.arange(N), EYE),
            {"margin": 0.5, "scale": 2.0},
            math.log(1 + 5 * math.exp(-2 * math.cos(0.5))),
        ),
        Closed(
            "at a right angle it is −s·sin m",
            (EYE, (torch.arange(N) + 1) % N, EYE),
            {"margin": 0.5, "scale": 2.0},
            math.log(math.exp(-2 * math.sin(0.5)) + 4 + math.exp(2)) + 2 * math.sin(0.5),
        ),
    ],
    "CosFaceLoss": [
        Closed(
            "at angle 0 the target is s·(1 − m)",
            (EYE, torch.arange(N), EYE),
            {"margin": 0.35, "scale": 2.0},
            math.log(1 + 5 * math.exp(-2 * 0.65)),
        ),
    ],
    "CenterLoss": [Closed("½ of a squared distance of 5", (FAR, torch.tensor([0]), ORIGIN), {}, 12.5)],
    "BarlowTwinsLoss": [
        Closed("identical whitened views", (WHITE, WHITE), {}, 0.0),
        Closed("opposite ones: 4 a feature", (WHITE, -WHITE), {}, 8.0),
        Closed("features changed over", (WHITE, WHITE.flip(1)), {}, 2 + 2 * 0.005),
        Closed("collapse: 1 a feature, and λ for nothing", (SAME, SAME), {}, 3.0),
    ],
    "VICRegLoss": [
        Closed("identical, uncorrelated, wide", (WIDE, WIDE), {}, 0.0),
        Closed("collapse: 2μ(γ − √ε)", (SAME, SAME), {}, 2 * 25 * (1 - 0.01)),
        Closed("collapse in the authors' code: half of it", (SAME, SAME), {"form": "code"}, 25 * (1 - 0.01)),
        Closed("λ·‖2z‖²: 25 times 32", (WIDE, -WIDE), {}, 25 * 32.0),
        Closed("over d in the authors' code", (WIDE, -WIDE), {"form": "code"}, 25 * 16.0),
    ],
    "AlignUniformLoss": [
        Closed("orthonormal rows are 2 apart, squared: −2t", (EYE, EYE), {}, -4.0),
        Closed("opposite views: 2^α more", (EYE, -EYE), {"alpha": 1.0}, 2.0 - 4.0),
        Closed("collapse: log 1", (SAME, SAME), {}, 0.0),
    ],
}
