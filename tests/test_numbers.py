"""Numbers that losses are given, such as temperatures and margins: whatever holds one number will do, anything else is refused."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import nearfar as nf
from harness import KINDS, build, class_table
from nearfar.losses.numbers import Number
from oracles import ORACLES
from problems import draw

pytestmark = pytest.mark.usefixtures("unchecked")  # the package's own errors, not those of the types in it

Z, OTHER, TABLE = draw(6, 3, seed=0), draw(6, 3, seed=1), draw(4, 3, seed=2)
Y = torch.tensor([2, 0, 1, 0, 2, 2])
SAMPLES = torch.zeros(16, dtype=torch.int64)


def call(name: str, options: dict[str, Any] | None = None, **keywords: Any) -> Tensor:
    """A loss on rows of its kind, in float64."""
    if name == "NCELoss":
        return nf.NCELoss(torch.ones(4), **(options or {}))(Z, Y, TABLE, samples=SAMPLES, **keywords)
    loss = build(name, options or {}, 3).double()
    if KINDS[name] in ("moments", "information"):
        return loss(Z, OTHER, **keywords)
    if KINDS[name] == "two-sided":
        return loss(Z, OTHER, labels=Y, **keywords)
    return loss(Z, labels=Y, **keywords)


def numbers_of(name: str) -> list[str]:
    """The numbers that a loss takes."""
    row = nf.LOSSES[name]
    known = inspect.signature(row.function).parameters
    declared = [n for n, rule in row.function.takes.items() if isinstance(rule, Number)]
    return sorted(
        {*declared, *(n for n in ("temperature", "logit_scale", "logit_bias", "margin", "epsilon") if n in known)}
    )


CASES = [(name, number) for name in KINDS for number in numbers_of(name)]
A_ROW = {("ArcFaceLoss", "margin"), ("CosFaceLoss", "margin")}  # where each row may have its own
SOFTMAX = [name for name in KINDS if "logit_scale" in numbers_of(name)]


def refused(call: Callable[[], object], *words: str, error: Any) -> None:
    """The call raises, and its message has every word, in this order."""
    with pytest.raises(error, match=re.compile(".*".join(re.escape(w) for w in words), re.S)):
        call()


# ---- what holds one number ----------------------------------------------------------------------------------------------

ONE = [
    np.float32(0.25), np.float64(0.25), np.array(0.25), np.array([[0.25]]), Fraction(1, 4), torch.tensor(0.25),
    torch.tensor([0.25]), torch.tensor([[0.25]]), torch.tensor(0.25).half(), torch.tensor(0.25, dtype=torch.float64),
]  # fmt: skip


@pytest.mark.parametrize(("name", "number"), CASES)
def test_whatever_holds_one_number_is_that_number(name, number):
    wanted = call(name, **{number: 0.25})
    for value in ONE:
        torch.testing.assert_close(call(name, **{number: value}), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("name", SOFTMAX)
def test_the_gradient_of_a_temperature_comes_in_its_shape(name, shape):
    """Against the difference quotient of the paper's formula."""
    rows = (Z, OTHER) if KINDS[name] == "two-sided" else (Z,)
    step = 1e-5
    ends = [ORACLES[name](*rows, labels=Y, temperature=0.3 + side * step) for side in (1, -1)]
    for backend in ("dense", "tiled", None):
        tau = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
        value = nf.LOSSES[name].loss(tau, backend=backend)(*rows, labels=Y)
        value.backward()
        assert tau.grad is not None
        assert tau.grad.shape == shape
        assert float(tau.grad) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-6)
        scale = torch.full(shape, 1 / 0.3, dtype=torch.float64, requires_grad=True)
        torch.testing.assert_close(nf.LOSSES[name].loss(backend=backend)(*rows, labels=Y, logit_scale=scale), value)


def test_a_parameter_of_ones_own_is_learned():
    tau = torch.nn.Parameter(torch.tensor([0.5]))
    loss = nf.SupConLoss(temperature=tau)
    assert [p is tau for p in loss.parameters()] == [True]
    for _ in range(2):  # a graph that is made anew at each call
        loss(Z, labels=Y).backward()
    assert tau.grad is not None
    assert tau.grad.shape == (1,)


# ---- what does not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), CASES)
def test_several_numbers_are_refused(name, number):
    shapes = [(6, 1), (1, 6), (2, 3), (0,)] + [(6,)] * ((name, number) not in A_ROW)
    for shape in shapes:
        for values in (torch.full(shape, 0.1), np.full(shape, 0.1)):
            refused(lambda v=values: call(name, **{number: v}), number, str(shape), "one number", error=ValueError)


@pytest.mark.parametrize(
    "value", ["0.1", True, [0.1], (0.1,), 1j, {"tau": 0.1}, torch.tensor(True), torch.tensor(1j)], ids=str
)
@pytest.mark.parametrize(("name", "number"), CASES)
def test_what_is_no_number_is_refused(name, number, value):
    refused(lambda: call(name, **{number: value}), number, "number was wanted", error=TypeError)


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(math.nan), np.float32("inf")], ids=str)
@pytest.mark.parametrize(("name", "number"), CASES)
def test_numbers_that_are_not_finite_are_refused(name, number, value):
    refused(lambda: call(name, **{number: value}), number, "must be finite", error=ValueError)


@pytest.mark.parametrize("name", [name for name in SOFTMAX if name != "NCALoss"])
def test_a_temperature_a_query_is_told_where_it_goes(name):
    """The remedy in the message is right: rows divided by their own, for queries of one's own."""
    refused(
        lambda: call(name, temperature=torch.full((6,), 0.1)),
        "(6,)",
        "one number",
        "each query's divided by its own",
        error=ValueError,
    )


def test_the_remedy_gives_each_query_its_own_temperature():
    tau = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    x, y = (torch.nn.functional.normalize(side, dim=1) for side in (Z, OTHER))
    wanted = sum(((x[i] @ y.T) / tau[i]).logsumexp(0) - (x[i] @ y[i]) / tau[i] for i in range(6)) / 6
    found = nf.InfoNCELoss(temperature=1.0, normalize=False)(x / tau[:, None], y)
    torch.testing.assert_close(found, wanted)


BUILT = [
    ("SupConLoss", {"temperature": "0.1"}), ("CLIPLoss", {"temperature": [0.1]}), ("SigLIPLoss", {"bias": "b"}),
    ("TripletLoss", {"margin": "0.2"}), ("ContrastiveLoss", {"margin": math.nan}), ("HardNegativeLoss", {"beta": "1"}),
    ("DebiasedLoss", {"tau_plus": 2.0}), ("VICRegLoss", {"gamma": math.nan}), ("VICRegLoss", {"invariance": -1.0}),
    ("AlignUniformLoss", {"align": "1"}), ("BarlowTwinsLoss", {"off_diagonal": None}), ("MultiSimilarityLoss", {"base": math.nan}),
    ("CircleLoss", {"margin": math.inf}), ("NPairsLoss", {"regularization": -1.0}), ("InfoNCELoss", {"in_batch": "no"}),
    ("TripletLoss", {"soft": 1}), ("SupConLoss", {"form": None}), ("SupConLoss", {"normalize": None}),
    ("SupConLoss", {"learnable": "yes"}), ("SupConLoss", {"backend": ["dense"]}), ("NCALoss", {"objective": np.array(["log"])}),
    ("MutualInformationLoss", {"estimator": "dv", "ema": "0.9"}), ("MutualInformationLoss", {"bilinear": 8}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), BUILT, ids=str)
def test_they_are_refused_when_the_loss_is_built(name, options):
    refused(lambda: nf.LOSSES[name].loss(**options), list(options)[-1], error=(TypeError, ValueError))


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", True, None])
def test_sizes_are_whole_numbers(size):
    refused(lambda: nf.ArcFaceLoss(size, 3), "num_classes", error=ValueError)
    refused(lambda: nf.CenterLoss(3, size), "dim", error=ValueError)
    refused(lambda: nf.NCELoss(torch.ones(4), k=size), "k is", "at least one", error=ValueError)


def test_a_gradient_that_would_be_lost_is_refused():
    beta = torch.tensor(1.0, requires_grad=True)
    refused(lambda: call("HardNegativeLoss", beta=beta), "beta", "gradient", "float", error=TypeError)


# ---- one a row ----------------------------------------------------------------------------------------------------------


def test_given_pairs_and_triplets_may_have_a_margin_each():
    margin = torch.linspace(0.1, 1.6, 6, dtype=torch.float64, requires_grad=True)
    third = draw(6, 3, seed=3)
    near, far = (Z - OTHER).norm(dim=1), (Z - third).norm(dim=1)
    value, wanted = nf.TripletLoss(margin)(Z, OTHER, third), (near - far + margin).clamp(min=0).mean()
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(torch.autograd.grad(value, margin), torch.autograd.grad(wanted, margin))
    several = nf.TripletLoss(margin)(Z, OTHER, torch.stack([third, third, third], 1))
    torch.testing.assert_close(several, wanted)
    value = nf.ContrastiveLoss(margin)(Z, OTHER, Y % 2)
    torch.testing.assert_close(value, torch.where(Y % 2 == 1, near**2, (margin - near).clamp(min=0) ** 2).mean())
    for loss in (nf.TripletLoss(margin), nf.ContrastiveLoss(margin)):
        refused(lambda loss=loss: loss(Z, labels=Y), "margin", "(6,)", "one number", "batch", error=ValueError)
    refused(lambda: nf.TripletLoss(margin[:5])(Z, OTHER, third), "(5,)", "(6,)", error=ValueError)
    refused(lambda: nf.ArcFaceLoss(4, 3, margin[:5])(Z, labels=Y), "(5,)", "(6,)", error=ValueError)


def test_a_class_loss_may_have_a_margin_a_row():
    margin = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    alone = [
        ORACLES["CosFaceLoss"](Z[i : i + 1], Y[i : i + 1], class_table(3), margin=float(m))
        for i, m in enumerate(margin)
    ]
    torch.testing.assert_close(call("CosFaceLoss", margin=margin), torch.stack(alone).mean())


def test_a_margin_a_row_may_be_an_array():
    margin = np.linspace(0.1, 0.6, 6)
    wanted = nf.functional.triplet_loss(Z, OTHER, -Z, margin=torch.from_numpy(margin).float())
    torch.testing.assert_close(nf.functional.triplet_loss(Z, OTHER, -Z, margin=margin), wanted)  # pyright: ignore[reportArgumentType]
