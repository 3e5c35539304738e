"""Softmax losses that are almost 0: value and gradient keep their digits, where 1 − p and LSE − s⁺ would lose them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import nearfar as nf
from harness import tiles
from problems import draw

TAU = 0.05


def logits(a: Tensor, b: Tensor) -> Tensor:
    return normalize(a, dim=1) @ normalize(b, dim=1).T / TAU


def sided(a: Tensor, b: Tensor) -> Tensor:
    return cross_entropy(logits(a, b), torch.arange(len(a)))


def spared(n: int) -> Tensor:
    """Row by row, and one pair that is neither."""
    relation = torch.eye(n)
    relation[0, 1] = torch.nan
    return relation


def filled(n: int) -> dict[str, Tensor]:
    """Two rows that are not there."""
    gone = torch.arange(n) < 2
    return {"weights": (~gone).float(), "offsets": torch.zeros(n).masked_fill(gone, -torch.inf)}


def paired(a: Tensor, b: Tensor) -> Tensor:
    z, n = normalize(torch.cat([a, b]), dim=1), len(a)
    return cross_entropy((z @ z.T / TAU).fill_diagonal_(-torch.inf), torch.arange(2 * n).roll(n))


def neighbours(a: Tensor, b: Tensor) -> Tensor:
    z, n = 0.4 * torch.cat([a, b]), len(a)
    return cross_entropy((-(z[:, None] - z).square().sum(2)).fill_diagonal_(-torch.inf), torch.arange(2 * n).roll(n))


def scaled(a: Tensor) -> Tensor:
    return a / a.detach().square().sum(1, keepdim=True).sqrt() * TAU**-0.5


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, tuple[Callable[..., Loss], Loss]] = {
    "InfoNCE": (lambda **o: nf.InfoNCELoss(TAU, **o), sided),
    "N-pairs": (lambda **o: lambda a, b: nf.NPairsLoss(**o)(scaled(a), scaled(b)), lambda a, b: sided_raw(a, b)),
    "CLIP": (lambda **o: nf.CLIPLoss(TAU, **o), lambda a, b: (sided(a, b) + sided(b, a)) / 2),
    "NT-Xent": (lambda **o: nf.NTXentLoss(TAU, **o), paired),
    "SupCon, two a class": (
        lambda **o: lambda a, b: nf.SupConLoss(TAU, **o)(torch.cat([a, b]), labels=torch.arange(len(a)).repeat(2)), paired
    ),
    "InfoNCE, weights of a matrix": (
        lambda **o: lambda a, b: nf.InfoNCELoss(TAU, **o)(a, b, pairs=nf.Pairs.from_matrix(0.7 * torch.eye(len(a)))), sided
    ),
    "CLIP, weights of a matrix": (
        lambda **o: lambda a, b: nf.CLIPLoss(TAU, **o)(a, b, pairs=nf.Pairs.from_matrix(0.7 * torch.eye(len(a)))),
        lambda a, b: (sided(a, b) + sided(b, a)) / 2,
    ),
    "InfoNCE, a pair ignored": (
        lambda **o: lambda a, b: nf.InfoNCELoss(TAU, **o)(a, b, pairs=nf.Pairs.from_matrix(spared(len(a)))),
        lambda a, b: cross_entropy(
            logits(a, b).masked_fill(spared(len(a)).isnan(), -torch.inf), torch.arange(len(a))
        ),
    ),
    "CLIP, a key unknown": (
        lambda **o: lambda a, b: nf.CLIPLoss(TAU, **o)(a, b, labels=torch.arange(len(a)).where(torch.arange(len(a)) > 1, -1)),
        lambda a, b: (sided(a[2:], b[2:]) + sided(b[2:], a[2:])) / 2,
    ),
    "CLIP, filled up": (
        lambda **o: lambda a, b: nf.CLIPLoss(TAU, **o)(a, b, **filled(len(a))),
        lambda a, b: (sided(a[2:], b[2:]) + sided(b[2:], a[2:])) / 2,
    ),
    "NT-Xent, weighted": (
        lambda **o: lambda a, b: nf.NTXentLoss(TAU, **o)(a, b, weights=torch.full((len(a),), 0.3)), paired
    ),
    "SupCon, in": (lambda **o: nf.SupConLoss(TAU, form="in", **o), paired),
    "NCA": (
        lambda **o: lambda a, b: nf.NCALoss(**o)(0.4 * torch.cat([a, b]), labels=torch.arange(len(a)).repeat(2)), neighbours
    ),
}  # fmt: skip


def sided_raw(a: Tensor, b: Tensor) -> Tensor:
    return cross_entropy(scaled(a) @ scaled(b).T, torch.arange(len(a)))


def views(n: int) -> tuple[Tensor, Tensor]:
    """Two that agree all but wholly; as float32 has them."""
    a = draw(n, 24, seed=1).float()
    return a, a + 0.02 * draw(n, 24, seed=2).float()


def found(loss: Loss, rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    leaves = [z.clone().requires_grad_() for z in rows]
    value = loss(*leaves)
    return value.detach(), torch.cat(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("backend", [None, "dense", "tiled", "strip"])
@pytest.mark.parametrize("n", [6, 40, 300, 800])
@pytest.mark.parametrize("name", LOSSES)
def test_against_float64(name, n, backend):
    make, reference = LOSSES[name]
    if name == "NCA" and n > 40:
        pytest.skip("its distances say nothing new")
    if backend is not None and n > 300:
        pytest.skip("as by itself")
    rows = views(n)
    value, slope = found(reference, (rows[0].double(), rows[1].double()))
    with tiles(5 if n < 100 else 128):
        ours, gradient = found(make(**({} if backend is None else {"backend": backend})), rows)
    assert 0 < float(value) < 0.2
    assert abs(float(ours) / float(value) - 1) < 1e-5  # scores of 20 are rounded to 1e-6
    assert float((gradient - slope).abs().max() / slope.abs().max()) < 5e-5


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("backend", [None, "dense", "tiled"])
def test_explicit_negatives(own, in_batch, backend):
    n, d = 24, 64
    a, negatives = draw(n, d, seed=1).float(), draw(5 * n, d, seed=3).float()
    b, negatives = a + 0.3 * draw(n, d, seed=2).float(), negatives.view(n, 5, d) if own else negatives

    def reference(a: Tensor, b: Tensor, negatives: Tensor) -> Tensor:
        near = logits(a, b)
        far = torch.einsum("nd,n...d->n...", normalize(a, dim=1), normalize(negatives, dim=-1)) if own else None
        far = logits(a, negatives) if far is None else far / TAU
        others = near.masked_fill(~torch.eye(n, dtype=torch.bool), -torch.inf) if not in_batch else near
        return cross_entropy(torch.cat([others, far], 1), torch.arange(n))

    results = []
    for loss, dtype in (
        (reference, torch.float64),
        (nf.InfoNCELoss(TAU, backend=backend, in_batch=in_batch), torch.float32),
    ):
        leaves = [z.to(dtype).requires_grad_() for z in (a, b, negatives)]
        value = loss(*leaves)
        results.append((value.detach(), torch.autograd.grad(value, leaves)))
    (value, slopes), (ours, gradients) = results
    assert 0 < float(value) < 0.01
    assert abs(float(ours) / float(value) - 1) < 1e-5
    for gradient, slope in zip(gradients, slopes):
        assert float((gradient - slope).abs().max() / slope.abs().max()) < 5e-5


@pytest.mark.parametrize("backend", [None, "dense", "tiled"])
def test_proxy_nca_over_all_classes(backend):
    n, tau = 16, 1 / 9
    table = torch.linalg.qr(draw(32, 32, seed=1))[0][:n].float()
    z, y = table + 0.05 * draw(n, 32, seed=2).float(), torch.arange(n)

    def reference(z: Tensor, table: Tensor) -> Tensor:
        z, table = normalize(z, dim=1), normalize(table, dim=1)
        return cross_entropy(-(z[:, None] - table).square().sum(2) / tau, y)

    value, slope = found(reference, (z.double(), table.double()))
    options = {} if backend is None else {"backend": backend}
    ours, gradient = found(
        lambda z, table: nf.functional.proxy_nca_loss(z, y, table, temperature=tau, denominator="all", **options),
        (z, table),
    )
    assert 0 < float(value) < 1e-6
    assert abs(float(ours) / float(value) - 1) < 1e-4  # distances of 2/τ are rounded to 2e-6
    assert float((gradient - slope).abs().max() / slope.abs().max()) < 1e-4


def test_a_loss_below_the_last_place_of_one():
    """`log1p` of what is left: e^−38, where `log(1 + e^−38)` of float32 is 0."""
    z = torch.eye(2)
    for loss in (nf.InfoNCELoss(1 / 38), nf.CLIPLoss(1 / 38), nf.InfoNCELoss(1 / 38, backend="tiled")):
        assert float(loss(z, z)) == pytest.approx(math.exp(-38), rel=1e-5)


@pytest.mark.parametrize("name", ["InfoNCELoss", "NTXentLoss", "SupConLoss", "CLIPLoss", "NPairsLoss", "NCALoss"])
@pytest.mark.parametrize("backend", [None, "dense", "tiled", "strip"])
def test_no_loss_is_plus_0(name, backend):
    loss, z = nf.LOSSES[name].loss(backend=backend), torch.ones(1, 3)
    sides = (z, z)
    for value in (loss(*sides), *loss.per_query(*sides), loss(torch.ones(2, 3), labels=torch.tensor([0, 1]))):
        assert float(value) == 0
        assert math.copysign(1, float(value)) == 1


def test_no_information_is_plus_0():
    value = nf.MutualInformationLoss()(torch.ones(1, 3), torch.ones(1, 3, 2, 2))
    assert math.copysign(1, float(value)) == 1
