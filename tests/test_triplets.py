"""In-batch triplets where anchors come in several strips: more rows than the loops can walk, by broadcasting instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

import nearfar as nf
from nearfar.pairs import Pairs
from nearfar.scores import hinge_tiles
from nearfar.scores.triplets import TripletPlan, triplets
from problems import draw

N, D, MARGIN = 531, 4, 0.3  # two strips of 256 anchors and a ragged third


def distances(z: Tensor, distance: str) -> Tensor:
    if distance == "cosine":
        return 1.0 - normalize(z) @ normalize(z).T
    squared = (z[:, None] - z).square().sum(2)
    return squared if distance == "sqeuclidean" else squared.masked_fill(squared == 0, 1.0).sqrt() * (squared > 0)


def reference(z: Tensor, labels: Tensor, mining: str, distance: str, soft: bool) -> Tensor:
    """A positive column at a time: each anchor's k-th positive against all of its negatives."""
    d = distances(z, distance)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(z), dtype=torch.bool)
    total, count = z.sum() * 0.0, 0
    for k in range(int(positive.sum(1).max())):
        has = positive.sum(1) > k
        column = positive.int().cumsum(1).eq(k + 1).int().argmax(1)
        ap = d.gather(1, column[:, None])
        if mining == "semihard":
            allowed = ~same & (d > ap) & (d < ap + MARGIN)
            an = d.masked_fill(~allowed, torch.inf).min(1, keepdim=True).values
            chosen = allowed.any(1, keepdim=True) & has[:, None]
        else:
            an, chosen = d, ~same & has[:, None]
        gap = (ap - an).masked_fill(~chosen, 0.0)
        value = softplus(gap) if soft else (gap + MARGIN).clamp(min=0.0)
        counted = chosen & (value > 0) if mining == "all" and not soft else chosen
        total = total + value[counted].sum()
        count += int(counted.sum())
    return total / max(count, 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("soft", [False, True], ids=["hinge", "soft"])
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("mining", ["all", "semihard"])
@pytest.mark.parametrize("classes", [200, 60, 10])  # few positives an anchor, and over fifty
def test_several_strips_are_one_batch(classes, mining, distance, soft):
    labels = torch.randint(classes, (N,), generator=torch.Generator().manual_seed(0))
    z = (0.5 * draw(N, D, seed=1)).requires_grad_()
    value = nf.TripletLoss(MARGIN, mining, distance, soft, backend="tiled")(z, labels=labels)
    wanted = reference(z, labels, mining, distance, soft)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    gradient, other = (torch.autograd.grad(v, z)[0] for v in (value, wanted))
    torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-9 * other.abs().max().item())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("rows", [(7, 5), (256, 512)], ids=str)
def test_tiles_of_hinges_are_one_batch(distance, rows, monkeypatch):
    """Ties, two equal rows, and a class of one; a learned margin as well."""
    for name, value in zip(("LARGE", "ROWS", "COLUMNS"), (0, *rows)):
        monkeypatch.setattr(hinge_tiles, name, value)
    labels = torch.cat([torch.tensor([99]), torch.randint(20, (91,), generator=torch.Generator().manual_seed(0))])
    z = (2 * draw(92, D, seed=1)).round() / 4
    z[5] = z[40]
    z, margin = z.requires_grad_(), torch.tensor(MARGIN, dtype=z.dtype, requires_grad=True)
    value = nf.TripletLoss(mining="all", distance=distance, backend="tiled")(z, labels=labels, margin=margin)
    wanted = reference(z, labels, "all", distance, False)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    (own, slope), (other,) = torch.autograd.grad(value, (z, margin)), torch.autograd.grad(wanted, z)
    torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-9 * other.abs().max().item())
    assert float(slope) == pytest.approx(1.0)  # every hinge that counts is open


@pytest.mark.usefixtures("unchecked")
def test_tiles_of_hinges_between_two_sides(monkeypatch):
    """Queries and keys of their own: neither the same rows nor as many, and own samples on another diagonal."""
    ids, x, y = torch.arange(40) % 9, draw(40, D, seed=2), draw(30, D, seed=3)
    pairs = Pairs.from_ids(ids, ids[10:])
    for pair in (pairs, replace(pairs, own=-10)):
        found = []
        for large in (0, 2**30):
            monkeypatch.setattr(hinge_tiles, "LARGE", large)
            sides = [side.clone().requires_grad_() for side in (x, y)]
            plan = TripletPlan(pair, "euclidean", 1.0, "all", False, False, 8)
            total, active, _ = triplets(*sides, torch.tensor(MARGIN, dtype=x.dtype), plan)
            found.append((total, active, *torch.autograd.grad(total, sides)))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_the_dense_form_keeps_no_graph_of_what_it_only_searches():
    """The hardest pairs are found among all differences, n·m·d of them, but backward is told of the chosen pairs alone."""
    n, d, kept = 24, 7, [0]

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.numel())
        return x

    z, labels = torch.randn(n, d, requires_grad=True), torch.arange(n) % 5
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        nf.functional.triplet_loss(z, labels=labels, mining="hard", backend="dense").backward()
    assert max(kept) < n * n
