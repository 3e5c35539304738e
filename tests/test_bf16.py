"""`precision="bf16"`: where the matrix is large, products in bfloat16, all between in float32, and the error that is stated;
where it is small, products in float32 of rows that are rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import nearfar as nf

pytestmark = pytest.mark.usefixtures("unchecked")
N, D, CLASSES = 1100, 48, 140
"""Rows enough for tiles, the last one ragged."""
STATED = {0.1: 6e-3, 0.05: 4e-2}
"""By temperature: a logit is off by half an ulp of bfloat16, 2⁻⁹·|s|, so that the error grows with 1/τ (docs/losses.md)."""


def rows() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % CLASSES
    centres = torch.randn(CLASSES, D, generator=generator, dtype=torch.float64)
    z1, z2 = (centres[labels] + torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    return z1, z2, labels


def one_sided(z1: Tensor, z2: Tensor, labels: Tensor, tau: float) -> Tensor:
    return cross_entropy(normalize(z1) @ normalize(z2).T / tau, torch.arange(N))


def both_ways(z1: Tensor, z2: Tensor, labels: Tensor, tau: float) -> Tensor:
    return (one_sided(z1, z2, labels, tau) + one_sided(z2, z1, labels, tau)) / 2


def by_class(z1: Tensor, z2: Tensor, labels: Tensor, tau: float) -> Tensor:
    logits = (normalize(z1) @ normalize(z1).T / tau).fill_diagonal_(-torch.inf)
    positive = (labels[:, None] == labels).fill_diagonal_(False)
    return -(logits.log_softmax(1).masked_fill(~positive, 0.0).sum(1) / positive.sum(1)).mean()


CASES = {
    "InfoNCE": (one_sided, lambda tau, **o: lambda a, b, y: nf.InfoNCELoss(tau, **o)(a, b)),
    "CLIP": (both_ways, lambda tau, **o: lambda a, b, y: nf.CLIPLoss(tau, **o)(a, b)),
    "SupCon": (by_class, lambda tau, **o: lambda a, b, y: nf.SupConLoss(tau, **o)(a, labels=y)),
}


def differentiated(loss, dtype: torch.dtype) -> tuple[float, Tensor]:
    z1, z2, labels = rows()
    sides = [z.to(dtype).requires_grad_() for z in (z1, z2)]
    value = loss(*sides, labels)
    gradients = torch.autograd.grad(value, sides, allow_unused=True)
    return value.item(), torch.cat([g.double() for g in gradients if g is not None])


@pytest.mark.parametrize("tau", STATED)
@pytest.mark.parametrize("name", CASES)
def test_the_error_is_the_stated_one(name, tau):
    reference, build = CASES[name]
    value, gradient = differentiated(lambda a, b, y: reference(a, b, y, tau), torch.float64)
    found, slope = differentiated(build(tau, precision="bf16"), torch.float32)
    full, exact = differentiated(build(tau), torch.float32)
    assert abs(found - value) <= 1e-3 * value
    off = float((slope - gradient).abs().max() / gradient.abs().max())
    assert 1e-5 < off <= STATED[tau]  # it does round: in full precision the error is a thousand times smaller
    assert float((exact - gradient).abs().max() / gradient.abs().max()) < 1e-5
    assert abs(full - value) <= 1e-5 * value


def test_a_learned_temperature_gets_its_gradient():
    z1, z2, _ = rows()
    slopes = []
    for dtype, options in ((torch.float64, {"backend": "dense"}), (torch.float32, {"precision": "bf16"})):
        loss = nf.CLIPLoss(learnable=True, **options).to(dtype)
        loss(z1.to(dtype), z2.to(dtype)).backward()
        slopes.append(float(loss.tau.log_scale.grad))
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-2)


def test_extreme_scores_stay_finite():
    """Beyond ±60 a running maximum is kept, in bfloat16 products too."""
    z1, _, labels = rows()
    z = z1.float().requires_grad_()
    value = nf.SupConLoss(0.005, precision="bf16")(z, labels=labels)
    assert value.isfinite()
    assert torch.autograd.grad(value, z)[0].isfinite().all()


def test_uniformity_is_rounded_too():
    z1, z2, _ = rows()
    views = [normalize(z) for z in (z1, z2)]
    spread = [torch.pdist(z).square().mul(-2).exp().mean().log() for z in views]
    value = (views[0] - views[1]).square().sum(1).mean() + sum(spread) / 2
    found = nf.AlignUniformLoss(precision="bf16")(z1.float(), z2.float())
    full = nf.AlignUniformLoss()(z1.float(), z2.float())
    assert abs(float(full - value)) < 1e-6
    assert 1e-7 < abs(float(found - full)) < 1e-3


BY_LABEL = {
    "SupCon": lambda **o: nf.SupConLoss(0.1, **o),
    "DCL": lambda **o: nf.DCLLoss(0.1, **o),
    "hard negatives": lambda **o: nf.HardNegativeLoss(0.1, **o),
    "multi-similarity": nf.MultiSimilarityLoss,
    "circle": nf.CircleLoss,
    "triplets": lambda **o: nf.TripletLoss(mining="all", normalize=True, **o),
}


def through(rows: Tensor) -> Tensor:
    """Rows of length one, rounded; the gradient passes straight through."""
    unit = normalize(rows)
    return unit + (unit.detach().bfloat16().to(rows.dtype) - unit.detach())


@pytest.mark.parametrize("n", [12, 90, 300], ids="{} rows".format)
@pytest.mark.parametrize("name", BY_LABEL)
def test_small_batches_are_those_of_rounded_rows(name, n):
    z, _, labels = rows()
    z, labels = z[:n], labels[:n] % min(20, n // 3)
    dense, rounding = BY_LABEL[name](backend="dense"), BY_LABEL[name](precision="bf16")
    a, b = z.requires_grad_(), z.detach().float().requires_grad_()
    value = dense(through(b.double()), labels=labels, normalize=False)
    (wanted,) = torch.autograd.grad(value, b)
    found = rounding(b, labels=labels)
    (slope,) = torch.autograd.grad(found, b)
    assert float(found.detach()) == pytest.approx(float(value.detach()), rel=1e-5)
    torch.testing.assert_close(slope, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))
    exact = dense(a, labels=labels)
    assert abs(float(exact.detach() - value.detach())) > 1e-6  # it does round


@pytest.mark.parametrize(
    ("name", "most"), [("SupCon", 6e-3), ("DCL", 4e-3), ("SigLIP", 1e-2), ("circle", 3e-2), ("multi-similarity", 0.12)]
)
def test_other_losses_by_tiles_are_near(name, most):
    """Sums, log-sum-exps and their gradients from products in bfloat16: the steeper the loss, the farther off (docs/losses.md)."""
    z, other, labels = rows()
    build = BY_LABEL.get(name, nf.SigLIPLoss)
    slopes, values = [], []
    for dtype, options in (
        (torch.float64, {"backend": "dense"}),
        (torch.float32, {"precision": "bf16", "backend": "tiled"}),
        (torch.float32, {"backend": "tiled"}),
    ):
        sides = [side.detach().to(dtype).requires_grad_() for side in (z, other)]
        loss = build(**options)
        value = loss(*sides) if name == "SigLIP" else loss(sides[0], labels=labels)
        values.append(float(value.detach()))
        slopes.append(torch.autograd.grad(value, sides[0])[0].double())
    off, full = (float((slope - slopes[0]).abs().max() / slopes[0].abs().max()) for slope in slopes[1:])
    assert values[1] == pytest.approx(values[0], rel=1e-3)
    assert full < 2e-6
    assert 1e-4 < off < most


def test_uniformity_of_few_rows_is_rounded_too():
    z1, z2, _ = (side[:60].float() if side.is_floating_point() else side for side in rows())
    found, full = nf.AlignUniformLoss(precision="bf16")(z1, z2), nf.AlignUniformLoss()(z1, z2)
    assert 1e-7 < abs(float(found - full)) < 1e-3


def test_second_derivatives_are_refused_of_rounded_rows():
    z = rows()[0][:16].float().requires_grad_()
    value = nf.SupConLoss(precision="bf16")(z, labels=torch.arange(16) % 4)
    (slope,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='dense'"):
        slope.sum().backward()
