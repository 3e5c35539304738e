"""In-batch triplets where anchors come in several strips: more rows than the loops can walk, by broadcasting instead."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

import nearfar as nf
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
