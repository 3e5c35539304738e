"""Losses whose gradients are made together with the value: passes back through a graph that is kept, scaled or batched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import nearfar as nf
from nearfar.scores import tile_size
from problems import draw

N, D = 12, 5
LABELS = torch.arange(N) % 4
LOSSES = {
    "one tile": lambda z, **o: nf.NTXentLoss(**o)(z, z + draw(N, D, seed=2)),
    "strips": lambda z, **o: nf.InfoNCELoss(**(o or {"backend": "tiled"}))(z, draw(N, D, seed=2)),
    "sums": lambda z, **o: nf.SigLIPLoss(**(o or {"backend": "tiled"}))(z, labels=LABELS),
    "targets": lambda z, **o: nf.SupConLoss(**(o or {"backend": "tiled"}))(z, labels=(LABELS[:, None] == LABELS)),
    "triplets": lambda z, **o: nf.TripletLoss(mining="all", **o)(z, labels=LABELS),
    "classes": lambda z, **o: nf.functional.cosface_loss(z, LABELS, draw(4, D, seed=3), **o),
}


def rows() -> Tensor:
    return draw(N, D, seed=1).requires_grad_()


@pytest.fixture(params=LOSSES)
def case(request):
    """The loss, and its gradient by autograd on the dense form."""
    z = rows()
    (slope,) = torch.autograd.grad(LOSSES[request.param](z, backend="dense"), z)
    with tile_size(5):
        yield LOSSES[request.param], slope


def test_each_pass_through_a_kept_graph_gives_the_same(case):
    """Whatever is done to what a pass gave."""
    loss, slope = case
    z = rows()
    value = loss(z)
    for _ in range(3):
        (found,) = torch.autograd.grad(value, z, retain_graph=True)
        torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-11)
        found.zero_()
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(z.grad, 2 * slope, rtol=1e-9, atol=1e-11)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.0])
def test_what_comes_from_above_is_a_factor(case, factor):
    loss, slope = case
    for layers in (lambda z: z, lambda z: z * 1.0):  # rows that are a leaf, and rows that are not
        z = rows()
        (factor * loss(layers(z))).backward()
        torch.testing.assert_close(z.grad, factor * slope, rtol=1e-9, atol=1e-11)


def test_gradients_may_be_batched(case):
    loss, slope = case
    z, factors = rows(), torch.tensor([1.0, -2.0], dtype=torch.float64)
    (found,) = torch.autograd.grad(loss(z), z, factors, is_grads_batched=True)
    torch.testing.assert_close(found, factors[:, None, None] * slope, rtol=1e-9, atol=1e-11)


def test_a_value_used_twice(case):
    """As one loss of two parts of an objective."""
    loss, slope = case
    z = rows()
    value = loss(z)
    (value + value * value).backward()
    torch.testing.assert_close(z.grad, (1 + 2 * value.detach()) * slope, rtol=1e-9, atol=1e-11)


def test_within_a_checkpoint(case):
    """It makes saved tensors anew, and lets them be asked for once."""
    loss, slope = case
    z = rows()
    checkpoint(loss, z, use_reentrant=False).backward()
    torch.testing.assert_close(z.grad, slope, rtol=1e-9, atol=1e-11)


def test_a_learned_number_and_the_value_share_nothing():
    z, scale = rows(), torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
    loss = nf.functional.cosface_loss(z, LABELS, draw(4, D, seed=3), scale=scale)
    (0.5 * loss).backward()
    assert loss.grad_fn is not None
    assert (loss + 1).requires_grad
