"""Rows of any length: cosines do not change, and gradients change by the inverse of the length."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from harness import KINDS, backends_of, build, keywords_for, tiles
from nearfar.scores import normalize
from problems import Case, draw, forms_of

RAW = ("ContrastiveLoss", "LiftedStructureLoss", "NCALoss", "NPairsLoss", "SpectralLoss", "MutualInformationLoss",
       "VICRegLoss", "CenterLoss", "NCELoss", "TripletLoss")  # fmt: skip
OPTIONS = {"TripletLoss": {"distance": "cosine"}, "ContrastiveLoss": {"distance": "cosine"}}
RUNS = [
    (Case(name, forms_of(name, kind)[0], OPTIONS.get(name, {})), backend)
    for name, kind in KINDS.items()
    if name not in RAW or name in OPTIONS
    for backend in backends_of(name)
]
LENGTHS = [1e20, 1e-20, 1e-30, 1e-36]


@pytest.mark.parametrize(("case", "backend"), RUNS, ids=str)
def test_a_loss_of_cosines_does_not_know_how_long_rows_are(case, backend):
    loss, given = build(case.name, case.options, 6, backend), case.problem(13, 6).map(lambda x: x.float())
    keywords, found = keywords_for(given, torch.float32), []
    for length in [1.0, *LENGTHS]:
        longer = given.map(lambda x: (x * length).requires_grad_())
        with tiles():
            value = loss(*longer.tensors, **keywords)
        slopes = torch.autograd.grad(value, longer.leaves())
        found.append((value.detach(), [slope.double() * length for slope in slopes]))
    (value, slopes), *others = found
    for other, scaled in others:
        torch.testing.assert_close(other, value, rtol=2e-6, atol=2e-6)
        for a, b in zip(scaled, slopes):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-4 * float(b.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_at_the_ends_of_floats(dtype):
    """Every finite row but zeros has length one, also beside rows of another kind."""
    kind = torch.finfo(dtype)
    z = torch.tensor([[3.0, 4.0]], dtype=dtype) * torch.tensor(
        [[1.0], [kind.max / 5], [kind.tiny], [kind.smallest_normal * 1e-3], [0.0]], dtype=dtype
    )
    wanted = torch.tensor([[0.6, 0.8]] * 4 + [[0.0, 0.0]], dtype=dtype)
    torch.testing.assert_close(normalize(z), wanted, rtol=1e-3, atol=0)
    torch.testing.assert_close(normalize(z[:3]), wanted[:3])
    assert torch.equal(normalize(z[:, :0]), z[:, :0])


def test_derivatives_of_short_rows():
    """Of `z / |z|`: the first is that of the longer row over the length, the second over its square."""
    z, direction = draw(4, 3, seed=1), draw(4, 3, seed=2)
    found = []
    for length in (1.0, 1e-160):
        rows = (z * length).requires_grad_()
        (first,) = torch.autograd.grad((normalize(rows) * direction).sum(), rows, create_graph=True)
        first = first * length
        (again,) = torch.autograd.grad((first * direction).sum(), rows)
        found.append((first.detach(), again * length))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_collapse_is_not_mistaken_for_short_rows():
    """Two orthogonal classes: log(1 + 2/e), whatever the length."""
    z = torch.eye(2).repeat_interleave(2, 0)
    for length in [1.0, *LENGTHS]:
        loss = nf.SupConLoss(temperature=1.0)(z * length, labels=torch.tensor([0, 0, 1, 1]))
        torch.testing.assert_close(loss, torch.tensor(2 / 2.718281828459045).log1p())
