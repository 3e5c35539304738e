"""Gradients of gradients: right under `create_graph`, right when differentiated again, or refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import nearfar as nf
from harness import KINDS, backends_of, build, class_table, keywords_for, tiles
from oracles import ORACLES
from problems import Case, Problem, draw, forms_of, variant_cases

N, D, FACTOR = 9, 3, 1.7
NO_PAIRS = ("one label", "all different")  # nothing to differentiate
CASES = [
    Case(name, form, {})
    for name, kind in KINDS.items()
    for form in [form for form in forms_of(name, kind) if form not in NO_PAIRS][:3]
]
CASES += [case for case in variant_cases(KINDS) if case.form in ("labels", "two views", "vectors")]
RUNS = [(case, backend) for case in CASES for backend in backends_of(case.name)]


def leaves_of(case: Case) -> Problem:
    return case.problem(N, D).map(lambda x: x.clone().requires_grad_())


def along(gradients: tuple[Tensor | None, ...]) -> Tensor:
    """The gradients along one direction, the same for all who ask."""
    return torch.stack([(g * draw(*g.shape, seed=7 + k)).sum() for k, g in enumerate(gradients) if g is not None]).sum()


def zeros(found: tuple[Tensor | None, ...], leaves: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves)]


def told(question: Callable[[], Any], backend: str | None) -> Any:
    """The answer; ``None`` where it is refused in words that name the plan which has it."""
    refused = ""
    try:
        return question()
    except RuntimeError as error:
        refused = str(error)
    assert "backend='dense'" in refused
    assert backend != "dense"
    return None


_WANTED: dict[str, list[Tensor]] = {}


def wanted(case: Case) -> list[Tensor]:
    """Second derivatives of the oracle, along that direction."""
    if str(case) not in _WANTED:
        problem = leaves_of(case)
        learned = {"table": class_table(D).requires_grad_()} if KINDS[case.name] == "classes" else {}
        value = FACTOR * ORACLES[case.name](*problem.tensors, **problem.keywords, **case.options, **learned)
        leaves = [*problem.leaves(), *learned.values()]
        first = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        again = torch.autograd.grad(along(first), leaves, allow_unused=True)
        _WANTED[str(case)] = zeros(again, leaves)
    return _WANTED[str(case)]


@pytest.mark.parametrize(("case", "backend"), RUNS, ids=str)
def test_second_derivatives(case, backend):
    problem, loss = leaves_of(case), build(case.name, case.options, D, backend).double()
    leaves, factor = (
        [*problem.leaves(), *loss.parameters()],
        torch.tensor(FACTOR, dtype=torch.float64, requires_grad=True),
    )
    with tiles():
        plain = torch.autograd.grad(
            factor * loss(*problem.tensors, **keywords_for(problem, torch.float64)), leaves, allow_unused=True
        )
        value = factor * loss(*problem.tensors, **keywords_for(problem, torch.float64))
        first = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    for a, b in zip(zeros(first, leaves), zeros(plain, leaves)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    total = along(first)
    if not total.requires_grad:
        assert all(not g.any() for g in zeros(first, leaves))
        return

    def asked(*of: Tensor) -> Any:
        return told(lambda: torch.autograd.grad(total, of, retain_graph=True, allow_unused=True), backend)

    by_factor = asked(factor)
    if by_factor is not None:
        torch.testing.assert_close(by_factor[0], total.detach() / FACTOR, rtol=1e-9, atol=1e-12)
    found = asked(*leaves)
    if found is not None:
        for a, b in zip(zeros(found, leaves), wanted(case)):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8 * (1 + float(b.abs().max())))


LABELS, TABLE = torch.arange(12) // 3, class_table(D).double()
LOSSES = {
    "supcon": lambda z, **o: nf.SupConLoss(**o)(z, labels=LABELS),
    "clip": lambda z, **o: nf.CLIPLoss(**o)(z, z.flip(0)),
    "siglip": lambda z, **o: nf.SigLIPLoss(**o)(z, labels=LABELS),
    "contrastive": lambda z, **o: nf.ContrastiveLoss(**o)(z, labels=LABELS),
    "multi-similarity": lambda z, **o: nf.MultiSimilarityLoss(**o)(z, labels=LABELS),
    "triplet, all": lambda z, **o: nf.TripletLoss(**o)(z, labels=LABELS),
    "triplet, hard": lambda z, **o: nf.TripletLoss(mining="hard", **o)(z, labels=LABELS),
    "spectral": lambda z, **o: nf.SpectralLoss(**o)(z, labels=LABELS),
    "arcface": lambda z, **o: nf.functional.arcface_loss(z, LABELS, TABLE, **o),
}


@pytest.mark.parametrize("backend", [None, "tiled", "strip"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_gradient_by_torch_func(name, backend):
    """A step of MAML: inside a transform a constant gradient would be lost without a word."""
    z = draw(12, D, seed=4)

    def again(**options: Any) -> Tensor:
        first = torch.func.grad(lambda z: LOSSES[name](z, **options))
        return torch.func.grad(lambda z: (first(z) * draw(12, D, seed=5)).sum())(z)

    found = told(lambda: again(backend=backend), backend)
    if found is not None:
        torch.testing.assert_close(found, again(backend="dense"), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_more_than_a_gradient_by_torch_func(name):
    """Where no plan is named, the one that has all derivatives is taken; the others say so."""
    loss, z, direction = LOSSES[name], draw(12, D, seed=4), draw(12, D, seed=5)
    wanted = torch.autograd.functional.hessian(lambda z: loss(z, backend="dense"), z)
    torch.testing.assert_close(torch.func.hessian(loss)(z), wanted, rtol=1e-8, atol=1e-10)
    slope = torch.func.jvp(loss, (z,), (direction,))[1]
    torch.testing.assert_close(slope, (torch.func.grad(loss)(z) * direction).sum(), rtol=1e-9, atol=1e-11)
    batches = torch.stack([z, 2 * z, -z])
    each = torch.stack([loss(one) for one in batches])
    torch.testing.assert_close(torch.func.vmap(loss)(batches), each, rtol=1e-9, atol=1e-11)
    for call in (torch.func.hessian, torch.func.jacfwd, torch.func.vmap, torch.func.jacrev):
        told(
            lambda call=call: call(lambda z: loss(z, backend="tiled"))(z[None] if call is torch.func.vmap else z),
            "tiled",
        )


@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
def test_hardest_triplets_of_rows_on_both_sides(distance):
    """By the definition: each anchor's farthest positive and nearest negative."""
    z, direction = draw(12, 4, seed=1).requires_grad_(), draw(12, 4, seed=2)
    rows = torch.nn.functional.normalize(z, dim=1) if distance == "cosine" else z
    d = 1 - rows @ rows.T if distance == "cosine" else (rows[:, None] - rows).square().sum(2)
    d = (d + torch.eye(12)).sqrt() if distance == "euclidean" else d  # the diagonal is nobody's pair
    same, own = LABELS[:, None] == LABELS, torch.eye(12, dtype=torch.bool)
    far, near = d.masked_fill(~same | own, -9).amax(1), d.masked_fill(same, 99).amin(1)
    sides = [(far - near + 0.2).relu().mean(), nf.TripletLoss(mining="hard", distance=distance)(z, labels=LABELS)]
    first = [torch.autograd.grad(side, z, create_graph=True)[0] for side in sides]
    torch.testing.assert_close(first[1], first[0], rtol=1e-9, atol=1e-11)
    again = [torch.autograd.grad((g * direction).sum(), z)[0] for g in first]
    torch.testing.assert_close(again[1], again[0], rtol=1e-8, atol=1e-10)
