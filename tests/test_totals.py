"""Sums in one visit of the tiles: rows paired with themselves serve both sides, each with weights of its own."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from nearfar.scores import tile_size, totals
from problems import draw

N = 40
LABELS = torch.arange(N) % 9


@pytest.mark.parametrize("rows", [7, 16, 64])
@pytest.mark.parametrize("both", [False, True], ids=["rows with themselves", "two sides"])
def test_weights_reach_either_side(rows, both, monkeypatch):
    seen = []
    monkeypatch.setattr(totals, "total", lambda *a, real=totals.total: seen.append(1) or real(*a))
    sides = [draw(N, 5, seed=k).requires_grad_() for k in range(1 + both)]
    numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -1.0)]
    keywords = {
        "labels": LABELS,
        "weights": draw(N, seed=3).square(),
        "logit_scale": numbers[0],
        "logit_bias": numbers[1],
    }
    leaves = [*sides, *numbers]
    with tile_size(rows):
        values = [nf.functional.siglip_loss(*sides, **keywords, backend=backend) for backend in ("tiled", "dense")]
    assert seen
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(value, leaves) for value in values)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_learned_weights_take_the_other_way():
    z, weights = draw(N, 5, seed=1), draw(N, seed=3).square().requires_grad_()
    found, wanted = (
        torch.autograd.grad(nf.functional.siglip_loss(z, labels=LABELS, weights=weights, backend=backend), weights)[0]
        for backend in ("tiled", "dense")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_without_gradient_and_twice():
    """No gradient is made where none is asked for, and a kept graph gives the same again; a second derivative is refused."""
    z = draw(N, 5, seed=1).requires_grad_()
    value = nf.functional.contrastive_loss(z, labels=LABELS, backend="tiled")
    with torch.no_grad():
        assert not nf.functional.contrastive_loss(z, labels=LABELS, backend="tiled").requires_grad
    first = torch.autograd.grad(value, z, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(3 * value, z, retain_graph=True)[0], 3 * first)
    slope = torch.autograd.grad(value, z, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="backend='dense'"):
        torch.autograd.grad(slope.sum(), z)


LEARNED = {
    "one visit of the tiles": lambda z, number: nf.functional.siglip_loss(
        z, labels=LABELS, logit_scale=number, backend="tiled"
    ),
    "one tile": lambda z, number: nf.functional.nt_xent_loss(z, z + 1, logit_scale=number),
    "one visit of the classes": lambda z, number: nf.functional.cosface_loss(z, LABELS, z, scale=number),
}


@pytest.mark.parametrize("loss", LEARNED)
def test_second_derivatives_of_a_number_alone_are_refused(loss):
    """Rows need no gradient here: that of the number still depends on the number."""
    number = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(LEARNED[loss](draw(N, 5, seed=1), number), number, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="backend='dense'"):
        torch.autograd.grad(slope + number, number)
