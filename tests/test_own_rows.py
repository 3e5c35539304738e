"""A query is never its own partner, whatever ids its sample carries on either side."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from harness import KINDS, assert_same, backends_of, build, differentiate, expect, tiles
from problems import VARIANTS, Problem, draw, noise

N, D = 14, 3
SELF = [name for name, kind in KINDS.items() if kind == "self"]
OPTIONS = {
    name: [{}, *(o for o in VARIANTS.get(name, []) if o.keys() & {"mining", "epsilon", "distance", "form"})]
    for name in SELF
}
RUNS = [(name, options, backend) for name in SELF for options in OPTIONS[name] for backend in backends_of(name)]


def ids(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two columns of ids of the same samples, most of which differ."""
    first, second = torch.randint(4, (2, N), generator=noise(seed))
    return first, second


@pytest.mark.parametrize(("name", "options", "backend"), RUNS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_ids_of_two_columns(name, options, backend, seed):
    query, key = ids(seed)
    z = draw(N, D, seed=seed)
    relation = (query[:, None] == key).double()
    want = expect(name, options, Problem((z,), {"pairs": relation}))
    loss, z = build(name, options, D, backend).double(), z.requires_grad_()
    with tiles():
        found = differentiate(loss(z, pairs=nf.Pairs.from_ids(query, key)), [z])
    assert_same(found, want, f"{options} {backend}")


def test_three_rows_by_hand():
    """Row 0 has the positives 1 and 2, and no negative: its own sample, of another id, is none."""
    z, pairs = torch.tensor([[0.0], [1.0], [3.0]]), nf.Pairs.from_ids(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0]))
    for mining in ("all", "hard", "semihard"):
        for backend in (None, "dense", "strip", "tiled"):
            assert nf.TripletLoss(margin=1.0, mining=mining)(z, pairs=pairs, backend=backend) == 0


@pytest.mark.parametrize("rows", [300, 1100])
def test_in_larger_batches(rows):
    """Sizes at which other plans are taken, against the dense one."""
    query, key = torch.randint(rows // 8, (2, rows), generator=noise(3))
    pairs, z = nf.Pairs.from_ids(query, key), draw(rows, 4, seed=3)
    for loss in (
        nf.TripletLoss(mining="hard", distance="cosine"), nf.TripletLoss(mining="hard"), nf.MultiSimilarityLoss(), nf.DCLLoss(),
    ):  # fmt: skip
        torch.testing.assert_close(loss(z, pairs=pairs), loss(z, pairs=pairs, backend="dense"), rtol=1e-9, atol=1e-12)
