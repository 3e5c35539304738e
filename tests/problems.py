"""Problems for the losses: one call each, drawn by shape, label structure and form of the call.

`FORMS` builds a problem from `(n, d, seed)`; `FORMS_OF` names the forms that a kind of loss (or one loss) takes;
`VARIANTS` holds the options worth a run of their own; `form_cases()` and `variant_cases()` list what to go through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

SHAPES = [(1, 3), (2, 1), (3, 8), (7, 1), (17, 8), (33, 3)]
"""Rows and features: awkward, and none a multiple of the five-row tiles of the tests."""
CLASSES = 4


@dataclass(frozen=True)
class Problem:
    """One call: tensors by position, keywords by name; `pairs` is a dense relation matrix."""

    tensors: tuple[Tensor, ...]
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.tensors[0])

    def map(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem with every embedding changed; labels, ids and weights are left."""
        return replace(self, tensors=tuple(change(x) if x.is_floating_point() else x for x in self.tensors))

    def leaves(self) -> list[Tensor]:
        return [x for x in self.tensors if x.is_floating_point()]


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=noise(seed), dtype=torch.float64)


def label_structure(structure: str, n: int, seed: int = 0) -> Tensor:
    """Labels of `n` samples: "random", "one", "different", or "unknown" (random, a third of them −1)."""
    if structure == "one":
        return torch.zeros(n, dtype=torch.long)
    if structure == "different":
        return torch.arange(n)
    labels = torch.randint(min(CLASSES, max(2, n // 3)), (n,), generator=noise(seed))
    return labels if structure == "random" else labels.where(torch.arange(n) % 3 != 1, -1)


def relation_matrix(n: int, m: int, seed: int, weighted: bool = False, symmetric: bool = False) -> Tensor:
    """About a third positive, a fifth ignored, the rest negative."""
    u = torch.rand(n, m, generator=noise(seed), dtype=torch.float64)
    u = torch.triu(u) + torch.triu(u, 1).T if symmetric else u
    weight = 0.5 + 2.0 * u if weighted else torch.ones_like(u)
    return torch.where(u < 0.35, weight, 0.0).masked_fill(u > 0.8, math.nan)


def _labels(structure: str) -> Callable[[int, int, int], Problem]:
    return lambda n, d, seed: Problem((draw(n, d, seed=seed),), {"labels": label_structure(structure, n, seed)})


def _views(count: int) -> Callable[[int, int, int], Problem]:
    return lambda n, d, seed: Problem(tuple(draw(count, n, d, seed=seed)))


def _with(form: str, **keywords: Callable[[int, int], Any]) -> Callable[[int, int, int], Problem]:
    """Another form plus keywords, each drawn from `(n, seed)`."""

    def build(n: int, d: int, seed: int) -> Problem:
        base = FORMS[form](n, d, seed)
        return replace(base, keywords=base.keywords | {k: v(n, seed) for k, v in keywords.items()})

    return build


def _relation(weighted: bool) -> Callable[[int, int, int], Problem]:
    def build(n: int, d: int, seed: int) -> Problem:
        tensors = draw(n, d, seed=seed), draw(n + 2, d, seed=seed + 1)
        return Problem(tensors, {"pairs": relation_matrix(n, n + 2, seed, weighted)})

    return build


FORMS: dict[str, Callable[[int, int, int], Problem]] = {
    # by label
    "labels": _labels("random"),
    "one label": _labels("one"),
    "all different": _labels("different"),
    "unknown": _labels("unknown"),
    # by view
    "two views": _views(2),
    "three views": _views(3),
    "stacked": lambda n, d, seed: Problem((draw(n, 3, d, seed=seed),)),
    "views, labels": _with("two views", labels=lambda n, seed: label_structure("random", n, seed)),
    "views, unknown": _with("two views", labels=lambda n, seed: label_structure("unknown", n, seed)),
    # by relation
    "relation": _relation(False),
    "weighted relation": _relation(True),
    "own relation": lambda n, d, seed: Problem(
        (draw(n, d, seed=seed),), {"pairs": relation_matrix(n, n, seed, symmetric=True)}
    ),
    # with more about queries and keys
    "labels, weights": _with("labels", weights=lambda n, seed: draw(n, seed=seed + 2).exp()),
    "views, weights": _with("two views", weights=lambda n, seed: draw(n, seed=seed + 2).exp()),
    "labels, offsets": _with("labels", offsets=lambda n, seed: draw(n, seed=seed + 2)),
    "views, offsets": _with("two views", offsets=lambda n, seed: draw(n, seed=seed + 2)),
    "scale": _with("views, labels", logit_scale=lambda n, seed: 5.0),
    "scale, bias": _with("views, labels", logit_scale=lambda n, seed: 5.0, logit_bias=lambda n, seed: -2.0),
    # negatives given by the caller
    "shared negatives": lambda n, d, seed: Problem((*draw(2, n, d, seed=seed), draw(4, d, seed=seed + 1))),
    "own negatives": lambda n, d, seed: Problem((*draw(2, n, d, seed=seed), draw(n, 3, d, seed=seed + 1))),
    "shared and in batch": _with("shared negatives", in_batch=lambda n, seed: True),
    "own and in batch": _with("own negatives", in_batch=lambda n, seed: True),
    "triplets": lambda n, d, seed: Problem(tuple(draw(3, n, d, seed=seed))),
    "triplets, many": lambda n, d, seed: Problem((*draw(2, n, d, seed=seed), draw(n, 3, d, seed=seed + 1))),
    "rows": lambda n, d, seed: Problem(
        (*(0.7 * draw(2, n, d, seed=seed)), torch.randint(2, (n,), generator=noise(seed)))
    ),
    # mutual information
    "vectors": _views(2),
    "maps": lambda n, d, seed: Problem((draw(n, d, seed=seed), draw(n, d, 2, 3, seed=seed + 1))),
    "graphs": lambda n, d, seed: Problem(
        (draw(n, d, seed=seed), draw(2 * n + 1, d, seed=seed + 1)), {"batch": torch.arange(2 * n + 1) % n}
    ),
}

SELF = (
    "labels", "one label", "all different", "unknown", "two views", "three views", "stacked", "views, labels",
    "views, unknown", "relation", "own relation",
)  # fmt: skip
SIDED = ("views, labels", "two views", "views, unknown", "relation", "labels", "unknown", "own relation")
SOFTMAX = ("labels, offsets", "weighted relation")
FORMS_OF: dict[str, tuple[str, ...]] = {
    # by kind
    "self": SELF,
    "one-sided": SIDED,
    "two-sided": SIDED,
    "classes": ("labels", "one label", "unknown"),
    "moments": ("two views",),
    # by name, in place of the kind's
    "ContrastiveLoss": ("rows", "labels", "one label", "all different", "unknown", "relation", "own relation"),
    "MutualInformationLoss": ("vectors", "maps", "graphs"),
    "TripletLoss": (*SELF, "triplets", "triplets, many"),
    "InfoNCELoss": (
        *SIDED, *SOFTMAX, "scale", "labels, weights", "views, weights", "views, offsets", "shared negatives", "own negatives",
        "shared and in batch", "own and in batch",
    ),
    "NPairsLoss": (*SIDED, *SOFTMAX, "labels, weights"),
    "CLIPLoss": (*SIDED, *SOFTMAX, "scale", "views, offsets"),
    "SigLIPLoss": (*SIDED, "views, weights", "scale", "scale, bias"),
    "MultiSimilarityLoss": (*SELF, "labels, weights"),
    "CircleLoss": (*SELF, "labels, weights"),
    **dict.fromkeys(
        ("NTXentLoss", "SupConLoss", "NCALoss", "DCLLoss", "HardNegativeLoss", "DebiasedLoss"),
        (*SELF, *SOFTMAX, "scale", "labels, weights", "views, weights"),
    ),
}  # fmt: skip

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ContrastiveLoss": [
        {"distance": "cosine"}, {"distance": "cosine", "margin": 0.3}, {"margin": 2.5}, {"positive": 0},
    ],
    "TripletLoss": [
        {"mining": mining, "distance": distance, "soft": soft}
        for mining in ("all", "hard", "semihard")
        for distance in ("euclidean", "sqeuclidean", "cosine")
        for soft in (False, True)
        if (mining, distance, soft) != ("all", "euclidean", False)
    ] + [{"mining": "semihard", "fallback": "farthest"}, {"margin": 3.0}],
    "InfoNCELoss": [{"form": "in"}, {"temperature": 0.7}, {"normalize": False, "temperature": 1.0}],
    "NTXentLoss": [{"temperature": 0.5}],
    "SupConLoss": [{"form": "in"}, {"temperature": 0.5}],
    "CLIPLoss": [{"temperature": 0.3}],
    "SigLIPLoss": [{"temperature": 0.5, "bias": -1.0}],
    "MultiSimilarityLoss": [{"epsilon": None}, {"alpha": 1.0, "beta": 10.0, "base": 0.3}],
    "CircleLoss": [{"margin": 0.4, "scale": 80.0}, {"scale": 4.0}],
    "LiftedStructureLoss": [{"margin": 0.3}],
    "NCALoss": [{"objective": "probability"}, {"temperature": 3.0}],
    "DCLLoss": [{"temperature": 0.5}],
    "HardNegativeLoss": [{"beta": 0.5, "tau_plus": 0.05, "temperature": 0.5}, {"tau_plus": 0.0}],
    "DebiasedLoss": [{"tau_plus": 0.02, "temperature": 0.5}],
    "MutualInformationLoss": [{"estimator": "jsd"}, {"estimator": "dv"}],
    "ProxyAnchorLoss": [{"margin": 0.3, "scale": 8.0}],
    "ProxyNCALoss": [{"denominator": "all"}, {"temperature": 0.3}],
    "ArcFaceLoss": [{"margin": 0.2, "scale": 8.0}],
    "CosFaceLoss": [{"margin": 0.1, "scale": 8.0}],
    "BarlowTwinsLoss": [{"off_diagonal": 0.1}],
    "VICRegLoss": [
        {"form": "code"}, {"invariance": 1.0, "variance": 2.0, "covariance": 3.0, "gamma": 0.7, "eps": 1e-2},
    ],
    "AlignUniformLoss": [{"alpha": 1.0, "t": 3.0, "align": 0.5, "uniform": 2.0}],
}  # fmt: skip
VARIANT_FORMS = {
    "TripletLoss": ("labels", "triplets, many"),
    "ContrastiveLoss": ("rows", "labels", "relation"),
    "MutualInformationLoss": ("vectors", "maps", "graphs"),
}
"""Where a variant is run; otherwise in the loss's first form and, for the pairwise kinds, on a relation."""


@dataclass(frozen=True)
class Case:
    """A loss with options, in one form of call."""

    name: str
    form: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return ",".join([self.name, self.form.replace(", ", "+"), *(f"{k}={v}" for k, v in self.options.items())])

    def problem(self, n: int, d: int, seed: int = 0) -> Problem:
        return FORMS[self.form](n, d, seed)


def forms_of(name: str, kind: str) -> tuple[str, ...]:
    return FORMS_OF.get(name, FORMS_OF.get(kind, ()))


def form_cases(kinds: dict[str, str]) -> Iterator[Case]:
    """Every form with the loss's defaults; `kinds` maps a loss's name to its kind."""
    for name, kind in kinds.items():
        yield from (Case(name, form, {}) for form in forms_of(name, kind))


def variant_cases(kinds: dict[str, str]) -> Iterator[Case]:
    """Every variant, in the forms where it is run."""
    for name, kind in kinds.items():
        forms = forms_of(name, kind)
        chosen = VARIANT_FORMS.get(name, forms[:1])
        chosen += ("relation",) if kind in ("self", "one-sided", "two-sided") and name not in VARIANT_FORMS else ()
        for options in VARIANTS.get(name, []):
            explicit = options.get("mining", "all") == "all"  # mining means nothing where the triplets are given
            yield from (Case(name, form, options) for form in chosen if explicit or not form.startswith("triplets"))


shapes = st.tuples(st.integers(1, 9), st.integers(1, 5))
"""Hypothesis: rows and features."""
seeds = st.integers(0, 2**16)
"""Hypothesis: what the entries are drawn from."""
structures = st.sampled_from(["random", "one", "different", "unknown"])
"""Hypothesis: how the labels lie."""
