"""An offset of −∞ leaves a key out of everything; rows that a batch was filled up with change nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import nearfar as nf
from harness import assert_same, backends_of, build, differentiate, expect, tiles
from problems import VARIANTS, Problem, draw, label_structure, relation_matrix
from relations import by_label, without_self

N, D = 11, 3
SIDED = ("InfoNCELoss", "NPairsLoss", "CLIPLoss")
LOSSES = (*SIDED, "NTXentLoss", "SupConLoss", "NCALoss", "DCLLoss", "HardNegativeLoss", "DebiasedLoss")
CASES = [(name, {}) for name in LOSSES] + [
    (name, o) for name in LOSSES for o in VARIANTS.get(name, []) if o.keys() & {"form", "objective"}
]
RUNS = [(name, options, backend) for name, options in CASES for backend in backends_of(name)]
GONE = torch.tensor([0, 4, 5, 9])


def offsets(size: int = N) -> torch.Tensor:
    found = draw(size, seed=8)
    found[GONE] = -torch.inf
    return found


def relation_of(labels: torch.Tensor) -> torch.Tensor:
    """Rows with themselves, by label, as a matrix for the oracles."""
    return torch.tensor(without_self(by_label(labels.tolist(), labels.tolist())), dtype=torch.float64)


FORMS: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "labels": ({"labels": label_structure("random", N, 1)}, relation_of(label_structure("random", N, 1))),
    "unknown": ({"labels": label_structure("unknown", N, 1)}, relation_of(label_structure("unknown", N, 1))),
    "matrix": (
        {"pairs": nf.Pairs.from_matrix(matrix := relation_matrix(N, N, 2, weighted=True))},
        matrix.masked_fill(torch.eye(N, dtype=torch.bool), math.nan),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "options", "backend"), RUNS, ids=str)
def test_as_if_it_were_nobodys_pair(name, options, backend, form):
    """Against the loop over a relation that ignores the whole column."""
    keywords, relation = FORMS[form]
    z, shift, relation = draw(N, D, seed=3), offsets(), relation.clone()
    relation[:, GONE] = math.nan
    want = expect(name, options, Problem((z,), {"pairs": relation, "offsets": shift.nan_to_num(neginf=0.0)}))
    loss, z, shift = build(name, options, D, backend).double(), z.requires_grad_(), shift.requires_grad_()
    with tiles():
        value = loss(z, offsets=shift, **keywords)
        found = differentiate(value, [z])
        (by_offset,) = torch.autograd.grad(loss(z, offsets=shift, **keywords), shift)
    assert_same(found, want, f"{options} {backend} {form}")
    assert bool(by_offset.isfinite().all())
    assert not by_offset[GONE].any()


@pytest.mark.parametrize("form", ["labels", "views", "views, labels"])
@pytest.mark.parametrize(("name", "options", "backend"), RUNS, ids=str)
def test_a_padded_batch_is_the_batch(name, options, backend, form):
    """Weight 0 and offset −∞: values, gradients and values by query, wherever the padding stands."""
    if form == "views, labels" and name in SIDED:
        form = "labels"
    if name == "NPairsLoss":
        options = {"regularization": 0.3}
    labels, kept = label_structure("random", N, 1), torch.ones(N, dtype=torch.bool)
    kept[GONE] = False
    weights, shift = draw(N, seed=5).exp() * kept, draw(N, seed=6)
    views = [draw(N, D, seed=k) for k in range(1 if form == "labels" else 2)]
    said = {} if form == "views" else {"labels": labels}

    def run(rows: torch.Tensor, shift: torch.Tensor):
        leaves = [z[rows].clone().requires_grad_() for z in views]
        keywords = {"weights": weights[rows], "offsets": shift[rows]} | {k: v[rows] for k, v in said.items()}
        loss = build(name, options, D, backend).double()
        with tiles():
            value = loss(*leaves, **keywords)
            each = None if name == "NPairsLoss" else loss.per_query(*leaves, **keywords)
            return differentiate(value, leaves), each

    padded, by_query = run(torch.arange(N), shift.masked_fill(~kept, -torch.inf))
    plain, wanted = run(kept.nonzero()[:, 0], shift)
    torch.testing.assert_close(padded.value, plain.value, rtol=1e-10, atol=1e-12)
    for a, b in zip(padded.gradients, plain.gradients):
        torch.testing.assert_close(a[kept], b, rtol=1e-8, atol=1e-11)
        assert not a[~kept].any()
    if by_query is not None:
        every = kept.repeat(len(by_query) // N)
        torch.testing.assert_close(by_query[every], wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", [None, "dense", "tiled", "strip"])
def test_by_hand(backend):
    """Key 0 is out: query 0 has no positive, the other two tell one key from one other at a score 1/τ."""
    z, shift = torch.eye(3), torch.tensor([-torch.inf, 0.0, 0.0])
    one = torch.tensor(-1.0).exp().log1p()  # log(1 + e^−1)
    torch.testing.assert_close(nf.InfoNCELoss(1.0, backend=backend)(z, z, offsets=shift), one)
    loss = nf.InfoNCELoss(1.0, backend=backend)
    torch.testing.assert_close(loss.per_query(z, z, offsets=shift), torch.stack([0 * one, one, one]))
    loss(z, z, offsets=shift)
    assert int(loss.stats["queries_without_positive"]) == 1
    assert nf.InfoNCELoss(backend=backend)(z, z, offsets=torch.full((3,), -torch.inf)) == 0


def test_clip_leaves_a_column_out_of_both_sides_means():
    """Rows 1 and 2 over keys 1 and 2; columns 1 and 2 over all three queries: key 0 alone is left out."""
    z = torch.eye(3)
    row, column = torch.tensor(-1.0).exp().log1p(), (2 * torch.tensor(-1.0).exp()).log1p()
    found = nf.CLIPLoss(1.0)(z, z, offsets=torch.tensor([-torch.inf, 0.0, 0.0]))
    torch.testing.assert_close(found, (row + column) / 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan])
def test_other_infinities_are_refused(name, wrong):
    shift = torch.zeros(N)
    shift[3] = wrong
    with pytest.raises(ValueError, match=r"offsets has (inf|nan) in row 3: .*−∞ leaves the key out"):
        build(name, {}, D)(draw(N, D, seed=1), labels=torch.arange(N) % 3, offsets=shift)


@pytest.mark.parametrize("name", ["InfoNCELoss", "CLIPLoss", "DCLLoss"])
@pytest.mark.parametrize("rows", [300, 1500])
def test_in_larger_batches(name, rows):
    """Sizes at which other plans are taken, against the dense one."""
    z, labels, shift = draw(rows, 4, seed=3), torch.arange(rows) % 40, torch.zeros(rows, dtype=torch.float64)
    shift[::7] = -torch.inf
    found = [build(name, {}, D, backend)(z, labels=labels, offsets=shift) for backend in (None, "dense")]
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_values_that_cannot_be_looked_at():
    """Under a transform of torch.func; compiled: `compiled.py`."""
    z, shift = draw(N, D, seed=1), offsets()
    loss = lambda z, shift: nf.functional.info_nce_loss(z, z.flip(0), offsets=shift)  # noqa: E731
    wanted = torch.func.grad(loss)(z, shift)
    leaf = z.clone().requires_grad_()
    torch.testing.assert_close(wanted, torch.autograd.grad(loss(leaf, shift), leaf)[0], rtol=1e-10, atol=1e-12)


def test_losses_by_label_and_relations_that_leave_rows_out():
    """`Pairs.without` says the same of any loss: batch-hard triplets of the rows that are there."""
    labels, kept = torch.arange(N) % 3, torch.ones(N, dtype=torch.bool)
    kept[GONE] = False
    pairs, z = nf.Pairs.by_label(labels).without(~kept, ~kept), draw(N, D, seed=1)
    for mining in ("all", "hard", "semihard"):
        for backend in (None, "dense", "tiled", "strip"):
            loss = nf.TripletLoss(mining=mining, backend=backend)
            torch.testing.assert_close(loss(z, pairs=pairs), loss(z[kept], labels=labels[kept]), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_rows_to_leave_out_in_every_form():
    wanted = nf.Pairs.aligned(3).without(keys=torch.tensor([True, False, False])).table()
    for keys in ([True, False, False], np.array([True, False, False])):
        assert nf.Pairs.aligned(3).without(keys=keys).table() == wanted  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"keys are torch.int64 \(3,\); one boolean a row"):
        nf.Pairs.aligned(3).without(keys=torch.arange(3))
    with pytest.raises(TypeError, match=r"offsets are torch.sparse_coo: wanted a dense tensor, offsets.to_dense\(\)"):
        nf.InfoNCELoss()(torch.eye(3), torch.eye(3), offsets=torch.zeros(3).to_sparse())


@pytest.mark.parametrize(
    "name", [n for n, row in nf.LOSSES.items() if row.kind in ("self", "one-sided", "two-sided", "information")]
)
def test_a_batch_of_no_rows_is_0(name):
    z = torch.zeros(0, 3, requires_grad=True)
    value = nf.LOSSES[name].loss()(z, z)
    assert float(value.detach()) == 0
    value.backward()
