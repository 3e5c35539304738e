"""Where losses break: one row, nothing to compare, duplicates, zero rows, a cold temperature, a large scale.

Value and gradient stay finite in every type, and in float64 they are the loop's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import nearfar as nf
from harness import KINDS, PAIRWISE, assert_same, backends_of, build, evaluate, expect
from problems import FORMS, Problem, forms_of, label_structure

pytestmark = pytest.mark.usefixtures("unchecked")

N, D = 6, 3
NAMES = [name for name in KINDS if name != "NCELoss"]
LOW = [torch.float32, torch.bfloat16, torch.float16]


def first(name: str) -> Problem:
    """The loss's first form, gently sized."""
    return FORMS[forms_of(name, KINDS[name])[0]](N, D, 3)


def each(change: Callable[[Tensor], Tensor]) -> Callable[[str], Problem]:
    return lambda name: first(name).map(change)


def relabelled(structure: str) -> Callable[[str], Problem]:
    def build(name: str) -> Problem:
        problem = first(name)
        if "labels" not in problem.keywords:
            return problem
        labels = torch.full((N,), -1) if structure == "nobody knows" else label_structure(structure, N) % 4
        return replace(problem, keywords=problem.keywords | {"labels": labels})

    return build


def no_pairs(value: float) -> Callable[[str], Problem]:
    """Every pair negative (0), positive (1) or ignored (NaN), for the losses that take pairs."""

    def build(name: str) -> Problem:
        if name not in PAIRWISE:
            return first(name)
        form, keys = ("relation", N + 2) if KINDS[name] in ("one-sided", "two-sided") else ("own relation", N)
        return replace(FORMS[form](N, D, 3), keywords={"pairs": torch.full((N, keys), value)})

    return build


def zeroed(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:2]), x[2:]])


EXTREMES: dict[str, Callable[[str], Problem]] = {
    "one row": lambda name: FORMS[forms_of(name, KINDS[name])[0]](1, D, 3),
    "one label": relabelled("one"),
    "no label known": relabelled("nobody knows"),
    "no positive": no_pairs(0.0),
    "no negative": no_pairs(1.0),
    "no pair": no_pairs(torch.nan),
    "duplicates": each(lambda x: x[torch.arange(len(x)) // 2]),
    "collapse": each(lambda x: torch.ones_like(x)),
    "zero rows": each(zeroed),
    "all zero": each(torch.zeros_like),
    "large": each(lambda x: 1e3 * x),
    "small": each(lambda x: 1e-3 * x),
}


def cold(name: str) -> dict[str, float]:
    return {"temperature": 0.01} if "temperature" in inspect.signature(nf.LOSSES[name].loss).parameters else {}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("name", NAMES)
def test_the_loops_value_in_float64(name, extreme):
    problem = EXTREMES[extreme](name)
    for options in ({}, cold(name)) if cold(name) else ({},):
        wanted = expect(name, options, problem)
        for backend in backends_of(name):
            actual = evaluate(build(name, options, D, backend), problem)
            assert_same(actual, wanted, f"{backend} {options}", rtol=1e-8)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_no_nan_in_any_type(name, dtype):
    """At τ = 0.01 where there is a temperature."""
    options = cold(name)
    for extreme, make in EXTREMES.items():
        problem = make(name)
        for backend in backends_of(name)[:2]:
            actual = evaluate(build(name, options, D, backend), problem, dtype)
            where = f"{extreme}, {backend}: value {actual.value}"
            assert torch.isfinite(actual.value), where
            for k, gradient in enumerate(actual.gradients):
                if not torch.isfinite(gradient).all():  # unless the true one is beyond the type of the inputs
                    wanted = expect(name, options, problem, dtype).gradients[k]
                    assert wanted.abs().max() > 0.5 * torch.finfo(gradient.dtype).max, where


@pytest.mark.parametrize("name", PAIRWISE)
def test_nothing_to_compare_is_zero_and_connected(name):
    """Zero, with a gradient of zeros: a training step goes on."""
    for backend in backends_of(name):
        outcome = evaluate(build(name, {}, D, backend), EXTREMES["no pair"](name))
        assert outcome.value == 0
        assert all((g == 0).all() for g in outcome.gradients)


def test_empty_batch_of_unknown_labels_keeps_the_graph():
    z = torch.randn(5, 3, requires_grad=True)
    for name in (name for name in PAIRWISE if KINDS[name] != "two-sided"):
        value = build(name, {}, 3)(z, labels=torch.full((5,), -1))
        assert value.requires_grad, name
        value.backward()


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name] == "classes"])
def test_a_table_of_one_class(name):
    """Nothing to be told from: finite, and 0 where only other classes could make a loss."""
    loss = nf.LOSSES[name].loss(1, D)
    z = torch.randn(N, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = loss(z, labels=torch.zeros(N, dtype=torch.long))
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, [z, *loss.parameters()]))
    if name in ("ProxyNCALoss", "ArcFaceLoss", "CosFaceLoss"):
        assert value.item() == pytest.approx(0.0, abs=1e-5)
