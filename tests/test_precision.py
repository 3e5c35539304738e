"""Rounding: float32, bfloat16 and float16 inputs, held to the error of the dense form in the same type.

The reference is the loop in float64 on the identically rounded inputs. A plan may err twice as much as the dense form, plus
4 units in the last place: of float32 at the value's size, of the inputs' type at the largest entry of a gradient.
"""

from __future__ import annotations

import math

import pytest
import torch

import nearfar as nf
from harness import KINDS, backends_of, build, evaluate, expect, expected
from problems import Case, forms_of

pytestmark = pytest.mark.usefixtures("unchecked")

N, D = 17, 8
SEEDS = {torch.float32: (0, 1, 2), torch.bfloat16: (0, 1), torch.float16: (0, 1)}
ROUNDINGS = 256
"""Float32: an exponent near 20 (2/τ) is rounded to 16 units of its exponential, and some 16 such errors may add up."""
NAMES = [name for name in KINDS if name != "NCELoss"]


def ulp(size: float, dtype: torch.dtype) -> float:
    """One unit in the last place of a number of that size."""
    return torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(size)) if size > 0 else torch.finfo(dtype).tiny


def case(name: str) -> Case:
    return Case(name, forms_of(name, KINDS[name])[0], {})


def error(actual: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference, in units of the actual tensors' type at their largest entry."""
    worst = 0.0
    for a, b in zip(actual, wanted, strict=True):
        worst = max(worst, float((a.double() - b).abs().max()) / ulp(float(b.abs().max()), a.dtype))
    return worst


def errors(name: str, backend: str | None, dtype: torch.dtype) -> dict[str, float]:
    """The worst over seeds: of the value, of the gradients of inputs and of parameters."""
    worst = {"value": 0.0, "gradient": 0.0, "parameters": 0.0}
    for seed in SEEDS[dtype]:
        wanted = expected(case(name), N, D, dtype, seed)
        actual = evaluate(build(name, {}, D, backend), case(name).problem(N, D, seed), dtype)
        inputs = len(case(name).problem(N, D, seed).leaves())
        assert actual.value.dtype is torch.float32  # whatever the inputs are
        assert all(g.dtype is dtype for g in actual.gradients[:inputs])
        for what, a, b in (
            ("value", [actual.value], [wanted.value]),
            ("gradient", actual.gradients[:inputs], wanted.gradients[:inputs]),
            ("parameters", actual.gradients[inputs:], wanted.gradients[inputs:]),
        ):
            worst[what] = max(worst[what], error(a, b))
    return worst


@pytest.mark.parametrize("dtype", SEEDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_within_the_budget(name, dtype):
    """And the dense form's own error within a bound, so that both cannot be wrong together."""
    dense = errors(name, backends_of(name)[0], dtype)
    assert dense["value"] <= ROUNDINGS, dense
    assert dense["gradient"] <= (ROUNDINGS if dtype is torch.float32 else 2), dense
    assert dense["parameters"] <= ROUNDINGS, dense
    for backend in (*backends_of(name)[1:], None):
        for what, own in errors(name, backend, dtype).items():
            assert own <= 2 * dense[what] + 4, f"{backend}: {what} off by {own:.1f} ulp, dense {dense[what]:.1f}"


@pytest.mark.parametrize("backend", ["dense", "tiled", "strip"])
@pytest.mark.parametrize("name", ["SupConLoss", "InfoNCELoss", "CLIPLoss", "SigLIPLoss", "MultiSimilarityLoss"])
def test_bf16_products_are_those_of_rounded_rows(name, backend):
    """`precision="bf16"` rounds the unit rows before their products and nothing else."""
    problem = case(name).problem(N, D, 0).map(lambda x: torch.nn.functional.normalize(x, dim=-1).bfloat16().float())
    actual = evaluate(build(name, {"precision": "bf16", "normalize": False}, D, backend), problem, torch.float32)
    wanted = expect(name, {"normalize": False}, problem, torch.float32)
    assert error([actual.value], [wanted.value]) <= ROUNDINGS
    exact = evaluate(build(name, {"precision": "bf16"}, D, backend), case(name).problem(N, D, 0), torch.float32)
    rounded = abs(exact.value - expected(case(name), N, D, torch.float32).value)
    assert (
        0 < rounded <= 2.0**-8 * 20 * max(1.0, float(exact.value))
    )  # a logit moves by at most an ulp of bfloat16 over τ


@pytest.mark.parametrize("angle", [1e-2, 1e-3, 1e-4])
def test_arcface_at_a_small_angle(angle):
    """1 − cos²θ has no digit of a small angle left in float32; the rows themselves have all of them."""
    z = torch.tensor([[1.0, angle, 0.0]])
    table = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
    rows = z.clone().requires_grad_()
    value = nf.functional.arcface_loss(
        rows, torch.tensor([0]), table, margin=2.0, scale=8.0
    )  # s·cos(θ + m) is −3.3: it shows
    theta = math.atan(angle)
    other = 0.6 * angle / math.hypot(1, angle)
    wanted = math.log1p(math.exp(8 * other - 8 * math.cos(theta + 2.0)))
    assert value.item() == pytest.approx(wanted, rel=3e-7)
    slope = 8 / (1 + math.exp(8 * math.cos(theta + 2.0) - 8 * other))
    along = slope * (math.sin(theta + 2.0) / (1 + angle**2) + 0.6 / (1 + angle**2) ** 1.5)
    assert torch.autograd.grad(value, rows)[0][0, 1].item() == pytest.approx(along, rel=1e-5)


@pytest.mark.parametrize(("loss", "sides"), [("NTXentLoss", 1), ("InfoNCELoss", 2), ("CLIPLoss", 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_whole_tile_keeps_the_digits_of_its_gradient(loss, sides, weighted):
    # a positive pulls with 1/n, hundreds of others push with as much together: summed in one go, 8 to 30 units are lost
    n = 1024 if sides == 2 else 512
    x = torch.randn(n, 128, dtype=torch.float64)
    y = (x + 2 * torch.randn(n, 128)).float()
    x = (x + 2 * torch.randn(n, 128)).float()
    weights = torch.rand(n) if weighted else None
    found = []
    for dtype, backend in ((torch.float64, "dense"), (torch.float32, None)):
        rows = [side.to(dtype).requires_grad_() for side in (x, y)]
        options = {"weights": weights.to(dtype)} if weighted else {}
        getattr(nf, loss)(temperature=0.1, backend=backend, **options)(*rows).backward()
        found.append([side.grad for side in rows])
    assert error(found[1], found[0]) <= 6


def test_a_mutual_information_near_zero_keeps_its_digits():
    # the bound is log n less a mean that is nearly as much: rounded before it is taken off, up to 2e-7 are lost
    x, y = torch.randn(2, 512, 16).mul_(0.05)
    wanted = nf.MutualInformationLoss(backend="dense")(x.double(), y.double())
    assert abs(float(nf.MutualInformationLoss()(x, y)) - float(wanted)) < 3e-8


@pytest.mark.parametrize(("loss", "sides"), [("NTXentLoss", 1), ("InfoNCELoss", 2), ("CLIPLoss", 2)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [20, 300])  # by logarithms, by exponentials
def test_offsets_of_a_whole_tile_have_their_gradient(loss, sides, weighted, n):
    x, y = torch.randn(2, n, 16, dtype=torch.float64)
    offsets = torch.randn(n if sides == 2 else 2 * n, dtype=torch.float64)
    options = {"weights": torch.rand(n, dtype=torch.float64)} if weighted else {}
    found = []
    for backend in ("dense", None):
        leaves = [side.clone().requires_grad_() for side in (x, y, offsets)]
        getattr(nf, loss)(temperature=0.2, backend=backend, **options)(*leaves[:2], offsets=leaves[2]).backward()
        found.append([leaf.grad for leaf in leaves])
    for wanted, actual in zip(*found):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-14)


def test_barlow_twins_of_a_large_mean_keeps_its_digits():
    x, y = torch.randn(2, 64, 16)
    x, y = (x + 0.5 * y + 100).requires_grad_(), (y + 100).requires_grad_()
    wide = [side.detach().double().requires_grad_() for side in (x, y)]
    nf.BarlowTwinsLoss()(x, y).backward()
    standard = [(side - side.mean(0)) / side.std(0, correction=0) for side in wide]
    correlation = standard[0].T @ standard[1] / 64
    diagonal = correlation.diagonal()
    ((1 - diagonal).square().sum() + 0.005 * (correlation.square().sum() - diagonal.square().sum())).backward()
    assert (
        error([x.grad, y.grad], [side.grad for side in wide]) <= 24
    )  # the mean's own rounding; by one pass, 100 to 300


@pytest.mark.parametrize("loss", ["AlignUniformLoss", "SigLIPLoss", "NTXentLoss"])
def test_a_backward_pass_inside_autocast_is_in_full_precision(loss):
    x, y = torch.randn(2, 40, 16)
    found = []
    for inside in (False, True):
        leaf = x.clone().requires_grad_()
        value = getattr(nf, loss)()(leaf, y)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            value.backward()
        found.append(leaf.grad)
    assert torch.equal(*found)
