"""Bad input: each message says what was given, what was wanted, and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nearfar as nf
from harness import KINDS, PAIRWISE
from problems import draw

pytestmark = pytest.mark.usefixtures("unchecked")  # the package's own errors, not those of the shapes in its types

Z, OTHER, WIDE, FEWER = draw(6, 3, seed=0), draw(6, 3, seed=1), draw(6, 4, seed=2), draw(4, 3, seed=3)
Y = torch.tensor([0, 0, 1, 1, 2, 2])
ONES = torch.ones(6, dtype=torch.float64)
WORDS = torch.ones(4)


def spoilt(value: float, row: int = 3) -> Tensor:
    return Z.index_put((torch.tensor(row), torch.tensor(1)), torch.tensor(value, dtype=Z.dtype))


def refused(call: Callable[[], object], *words: str, error: type[Exception] = ValueError) -> None:
    """The call raises, and its message has every word, in this order."""
    with pytest.raises(error, match=re.compile(".*".join(re.escape(w) for w in words), re.S)):
        call()


class TestShapes:
    def test_views_of_different_length(self):
        for loss in (nf.InfoNCELoss(), nf.NTXentLoss(), nf.CLIPLoss(), nf.SigLIPLoss(), nf.NPairsLoss()):
            refused(lambda loss=loss: loss(Z, FEWER), "6", "4", "pairs=")

    def test_features_that_differ(self):
        for loss in (nf.InfoNCELoss(), nf.SupConLoss(), nf.TripletLoss(), nf.SpectralLoss()):
            refused(lambda loss=loss: loss(Z, WIDE), "3", "4", "features")

    def test_moments_of_views_that_differ(self):
        for loss in (nf.BarlowTwinsLoss(), nf.VICRegLoss(), nf.AlignUniformLoss()):
            refused(lambda loss=loss: loss(Z, FEWER), "6", "4")

    @pytest.mark.parametrize("name", [name for name in PAIRWISE if KINDS[name] != "two-sided"])
    def test_labels_of_another_number(self, name):
        refused(lambda: nf.LOSSES[name].loss()(Z, labels=Y[:5]), "labels have 5", "6", "one label a sample")

    def test_labels_of_views_are_once_a_sample(self):
        refused(lambda: nf.SupConLoss()(Z, OTHER, labels=Y.repeat(2)), "12", "6", "one label a sample")

    @pytest.mark.parametrize("name", ["ProxyAnchorLoss", "ProxyNCALoss", "ArcFaceLoss", "CosFaceLoss", "CenterLoss"])
    def test_class_losses(self, name):
        refused(lambda: nf.LOSSES[name].loss(4, 3)(Z, labels=Y[:5]), "5", "6")
        refused(lambda: nf.LOSSES[name].loss(4, 5)(Z, labels=Y), "3 features", "5")
        refused(lambda: nf.LOSSES[name].loss(2, 3)(Z, labels=Y), "labels reach 2", "2 classes")

    def test_no_matrix(self):
        refused(lambda: nf.SupConLoss()(Z[0], labels=Y), "(3,)", "(n, d)")
        refused(lambda: nf.SupConLoss()(Y[:, None], labels=Y), "int64", "floats")

    def test_pairs_of_another_shape(self):
        refused(lambda: nf.SupConLoss()(Z, pairs=nf.Pairs.by_label(Y[:4])), "4", "6")

    def test_explicit_negatives(self):
        refused(lambda: nf.InfoNCELoss()(Z, OTHER, WIDE), "(6, 4)", "(m, 3)", "(6, j, 3)")
        refused(lambda: nf.InfoNCELoss()(Z, OTHER, FEWER[:, None]), "(4, 1, 3)", "(6, j, 3)")

    def test_weights_and_offsets(self):
        refused(lambda: nf.SupConLoss()(Z, labels=Y, weights=ONES[:5]), "weights", "(5,)", "(6,)")
        refused(lambda: nf.SupConLoss()(Z, labels=Y, offsets=ONES[:5]), "offsets", "(5,)", "(6,)")

    @pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
    def test_weights_of_a_mean(self, weight):
        weights = ONES.index_put((torch.tensor(2),), torch.tensor(weight, dtype=ONES.dtype))
        for call in (
            lambda: nf.SupConLoss()(Z, labels=Y, weights=weights),
            lambda: nf.ContrastiveLoss()(Z, OTHER, Y > 0, weights=weights),
            lambda: nf.TripletLoss()(Z, OTHER, spoilt(2.0), weights=weights),
            lambda: nf.ArcFaceLoss(3, 3)(Z, labels=Y, weights=weights),
            lambda: nf.NCELoss(WORDS)(Z, Y, FEWER, weights=weights),
        ):
            refused(call, "weights", f"{weight:g} in row 2", "0 or more")

    def test_noise_contrast(self):
        refused(lambda: nf.NCELoss(WORDS)(Z, Y + 2, FEWER), "targets", "4", "0 to 3")
        refused(lambda: nf.NCELoss(torch.ones(7))(Z, Y, FEWER), "7", "4")


class TestValues:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("name", [name for name in PAIRWISE if KINDS[name] != "two-sided"])
    def test_rows_that_are_not_finite_are_named(self, name, value):
        refused(lambda: nf.LOSSES[name].loss()(spoilt(value), labels=Y), "NaN or infinity", "1 of 6 rows", "row 3")

    @pytest.mark.parametrize(
        "name", [n for n in KINDS if KINDS[n] in ("one-sided", "two-sided", "moments", "information")]
    )
    def test_in_the_second_view_too(self, name):
        refused(lambda: nf.LOSSES[name].loss()(Z, spoilt(math.nan, row=5)), "NaN or infinity", "row 5")

    def test_in_explicit_negatives_and_class_losses(self):
        refused(lambda: nf.TripletLoss()(Z, OTHER, spoilt(math.nan)), "negative", "row 3")
        refused(lambda: nf.InfoNCELoss()(Z, OTHER, spoilt(math.nan)), "negatives", "row 3")
        refused(lambda: nf.ArcFaceLoss(4, 3)(spoilt(math.nan), labels=Y), "row 3")
        refused(lambda: nf.NCELoss(WORDS)(spoilt(math.nan), Y, FEWER), "queries", "row 3")

    def test_looking_can_be_declined(self):
        assert nf.SupConLoss(validate=False)(spoilt(math.nan), labels=Y).isnan()

    def test_half_labelled_pairs(self):
        refused(lambda: nf.ContrastiveLoss()(Z, OTHER, Y), "1 (similar)", "0 (dissimilar)", "labels=")

    def test_what_similar_means(self):
        refused(lambda: nf.ContrastiveLoss(positive=2)(Z, OTHER, Y % 2), "positive=2", "1 or 0")

    def test_labels_that_are_no_integers(self):
        refused(lambda: nf.SupConLoss()(Z, labels=Y.float()), "float32", "integers", error=TypeError)

    def test_noise_that_is_no_distribution(self):
        for weights in (torch.tensor([1.0, -1.0]), torch.zeros(3), torch.tensor([1.0, math.nan])):
            refused(lambda weights=weights: nf.NCELoss(weights), "noise", "0 or more")
        refused(lambda: nf.NCELoss(WORDS, k=0), "k is 0", "at least one")


RANGES = [
    *((name, {"temperature": t}) for name in ("SupConLoss", "InfoNCELoss", "CLIPLoss", "SigLIPLoss", "NCALoss", "DCLLoss")
      for t in (0.0, -0.1, math.inf, math.nan)),
    ("TripletLoss", {"margin": -0.1}), ("TripletLoss", {"margin": math.nan}), ("ContrastiveLoss", {"margin": -1.0}),
    ("LiftedStructureLoss", {"margin": math.inf}),
    ("CircleLoss", {"scale": 0.0}), ("MultiSimilarityLoss", {"alpha": 0.0}), ("MultiSimilarityLoss", {"beta": -1.0}),
    ("HardNegativeLoss", {"tau_plus": 1.0}), ("HardNegativeLoss", {"tau_plus": -0.1}), ("HardNegativeLoss", {"beta": -1.0}),
    ("DebiasedLoss", {"tau_plus": 1.5}), ("ProxyAnchorLoss", {"scale": 0.0}), ("ProxyNCALoss", {"temperature": 0.0}),
    ("ArcFaceLoss", {"scale": -1.0}), ("CosFaceLoss", {"scale": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), RANGES, ids=str)
def test_numbers_out_of_range(name, options):
    ((option, value),) = options.items()
    views = (Z, OTHER) if KINDS[name] == "two-sided" else (Z,)
    sizes = (4, 3) if KINDS[name] == "classes" else ()
    refused(lambda: nf.LOSSES[name].loss(*sizes, **options)(*views, labels=Y), option, f"{value:g}", "must be")


NAMES = [
    ("TripletLoss", {"mining": "semi-hard"}, "semihard"),
    ("TripletLoss", {"mining": "hardest"}, "hard"),
    ("TripletLoss", {"distance": "euclidian"}, "euclidean"),
    ("TripletLoss", {"fallback": "furthest"}, "farthest"),
    ("ContrastiveLoss", {"distance": "cosin"}, "cosine"),
    ("SupConLoss", {"backend": "tile"}, "tiled"),
    ("SupConLoss", {"backend": "dens"}, "dense"),
    ("SupConLoss", {"precision": "bf17"}, "bf16"),
    ("SupConLoss", {"form": "inn"}, "in"),
    ("NCALoss", {"objective": "logs"}, "log"),
    ("ProxyNCALoss", {"denominator": "negative"}, "negatives"),
    ("MutualInformationLoss", {"estimator": "infoNCE"}, "infonce"),
    ("VICRegLoss", {"form": "coded"}, "code"),
]


@pytest.mark.parametrize(("name", "options", "nearest"), NAMES, ids=str)
def test_unknown_names_suggest_the_nearest(name, options, nearest):
    ((option, value),) = options.items()
    sizes = {"num_classes": 4, "dim": 3} if KINDS[name] == "classes" else {}
    call = {"views": (Z, OTHER), "keywords": {}} if KINDS[name] in ("moments", "information") else {
        "views": (Z,), "keywords": {"labels": Y},
    }  # fmt: skip
    refused(
        lambda: nf.LOSSES[name].loss(**sizes, **options)(*call["views"], **call["keywords"]),
        option, repr(value), f"did you mean {nearest!r}",
    )  # fmt: skip


class TestOptions:
    def test_an_unknown_option_is_refused_when_built(self):
        refused(lambda: nf.SupConLoss(normalise=False), "normalise", "did you mean 'normalize'", error=TypeError)
        refused(lambda: nf.SupConLoss(temprature=0.5), "temprature", "did you mean 'temperature'", error=TypeError)

    def test_an_unknown_option_is_refused_when_called(self):
        """Swallowed, a slip of the pen would train with the default."""
        calls: tuple[Any, ...] = nf.SupConLoss(), nf.functional.supcon_loss
        for call in calls:
            refused(lambda call=call: call(Z, labels=Y, temprature=0.5), "temprature", error=TypeError)

    def test_an_option_that_the_loss_cannot_honour_is_refused(self):
        """Offsets are of softmax losses; weights are per query, and some means run over pairs."""
        for name in (
            "TripletLoss",
            "ContrastiveLoss",
            "SpectralLoss",
            "LiftedStructureLoss",
            "CircleLoss",
            "MultiSimilarityLoss",
        ):
            refused(lambda name=name: nf.LOSSES[name].loss()(Z, labels=Y, offsets=ONES), "offsets", error=TypeError)
        refused(lambda: nf.SigLIPLoss()(Z, OTHER, offsets=ONES), "offsets", error=TypeError)
        for name in ("TripletLoss", "ContrastiveLoss", "SpectralLoss", "LiftedStructureLoss"):
            refused(lambda name=name: nf.LOSSES[name].loss()(Z, labels=Y, weights=ONES), "weights", error=TypeError)

    def test_one_matrix_without_labels(self):
        for name in PAIRWISE:
            if KINDS[name] != "two-sided":
                refused(lambda name=name: nf.LOSSES[name].loss()(Z), "labels", "pairs")

    def test_labels_and_pairs_together(self):
        refused(lambda: nf.SupConLoss()(Z, labels=Y, pairs=nf.Pairs.by_label(Y)), "labels and pairs", "pass one")

    def test_a_loss_that_does_not_exist(self):
        refused(lambda: nf.SupConLos, "SupConLos", error=AttributeError)
