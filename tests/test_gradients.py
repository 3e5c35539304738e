"""Gradients against finite differences, of what is learned, and of gradients."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import nearfar as nf
from harness import KINDS, PAIRWISE, Outcome, assert_same, backends_of, build, evaluate, expect, keywords_for, tiles
from oracles import ORACLES
from problems import Case, draw, forms_of
from relations import resolve, scores

pytestmark = pytest.mark.usefixtures("unchecked")

N, D = 6, 3
LEARNABLE = [name for name, row in nf.LOSSES.items() if "learnable" in inspect.signature(row.loss).parameters]
SMOOTH = [(name, b) for name in KINDS if name not in ("NCELoss", "CircleLoss") for b in backends_of(name)]


def case(name: str, **options) -> Case:
    return Case(name, forms_of(name, KINDS[name])[0], options)


@pytest.mark.parametrize(("name", "backend"), SMOOTH, ids=str)
def test_gradient_is_the_finite_difference(name, backend):
    problem = case(name).problem(N, D).map(lambda x: x.requires_grad_())
    loss = build(name, {}, D, backend).double()

    def value(*_: torch.Tensor) -> torch.Tensor:  # gradcheck moves the entries in place
        return loss(*problem.tensors, **keywords_for(problem, torch.float64))

    with tiles():
        assert gradcheck(value, (*problem.leaves(), *loss.parameters()), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("backend", backends_of("CircleLoss"))
def test_circles_gradient_is_that_of_fixed_weights(backend):
    """Its weights carry no gradient, so the difference is taken with the weights held where they were."""
    options = {"scale": 8.0}
    problem = case("CircleLoss").problem(N, D)
    z, labels = problem.tensors[0], problem.keywords["labels"]
    fixed = scores(z, z, "dot", True)
    (gradient,) = evaluate(build("CircleLoss", options, D, backend), problem).gradients
    step = 1e-6
    for i in range(N):
        for j in range(D):
            move = torch.zeros_like(z)
            move[i, j] = step
            up, down = (ORACLES["CircleLoss"](x, labels=labels, at=fixed, **options) for x in (z + move, z - move))
            assert gradient[i, j].item() == pytest.approx((up - down).item() / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("backend", ["dense", "tiled", "strip", None])
def test_what_is_learned_has_the_loops_gradient(name, backend):
    """The temperature is held as the logarithm of the scale 1/τ; SigLIP's bias as it is."""
    problem = case(name).problem(N, D)
    loss = build(name, {"learnable": True}, D, backend).double()
    parameters = dict(loss.named_parameters())
    log_scale = next(p for k, p in parameters.items() if "bias" not in k).detach().clone().requires_grad_()
    default = inspect.signature(nf.LOSSES[name].function).parameters["temperature"].default
    assert log_scale.exp().item() == pytest.approx(1 / default)
    learned = {"temperature": torch.exp(-log_scale)}
    leaves = [log_scale]
    if any("bias" in k for k in parameters):
        learned["bias"] = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
        leaves.append(learned["bias"])
    actual = evaluate(loss, problem)
    value = ORACLES[name](*problem.tensors, **problem.keywords, **learned)
    wanted = torch.autograd.grad(value, leaves)
    order = sorted(range(len(parameters)), key=lambda k: "bias" in list(parameters)[k])
    own = actual.gradients[len(problem.leaves()) :]
    assert len(own) == len(wanted)
    assert_same(Outcome(actual.value, [own[k] for k in order]), Outcome(value.detach(), list(wanted)))


@pytest.mark.parametrize("name", [name for name in LEARNABLE if name != "NCALoss"])
def test_temperature_as_a_tensor_and_scale_at_the_call(name):
    problem = case(name).problem(N, D)
    wanted = expect(name, {"temperature": 0.25}, problem)
    assert_same(evaluate(build(name, {"temperature": torch.tensor(0.25, dtype=torch.float64)}, D), problem), wanted)
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    with tiles():
        value = build(name, {}, D)(*problem.tensors, **problem.keywords, logit_scale=scale)
        (gradient,) = torch.autograd.grad(value, scale)
    again = scale.detach().clone().requires_grad_()
    wanted_value = ORACLES[name](*problem.tensors, **problem.keywords, logit_scale=again)
    assert value.item() == pytest.approx(wanted_value.item(), rel=1e-10)
    assert gradient.item() == pytest.approx(torch.autograd.grad(wanted_value, again)[0].item(), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options"), [("SupConLoss", {}), ("InfoNCELoss", {}), ("TripletLoss", {"soft": True}), ("TripletLoss", {})]
)
def test_dense_plan_can_be_differentiated_twice(name, options):
    """Once with a record of the gradient, as without; twice as the loop is, rows of zeros and duplicates included."""
    problem = case(name).problem(5, D).map(lambda x: torch.cat([x[:3], x[2:3], 0 * x[:1]]).requires_grad_())
    loss, z = build(name, options, D, "dense"), problem.leaves()
    outcome = evaluate(loss, problem)
    own, loop = (
        torch.autograd.grad(value, z, create_graph=True)
        for value in (loss(*z, **problem.keywords), ORACLES[name](*z, **problem.keywords, **options))
    )
    for a, b, plain in zip(own, loop, outcome.gradients):
        torch.testing.assert_close(a, plain, rtol=1e-12, atol=1e-13)
        second, wanted = (torch.autograd.grad((g * draw(*g.shape, seed=9)).sum(), z, retain_graph=True) for g in (a, b))
        torch.testing.assert_close(second, wanted, rtol=1e-8, atol=1e-9)
    smooth = case(name).problem(5, D).map(lambda x: x.requires_grad_())
    assert gradgradcheck(lambda *x: loss(*x, **smooth.keywords), smooth.tensors, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("backend", ["tiled", "strip", None])
@pytest.mark.parametrize("name", PAIRWISE)
def test_a_second_derivative_is_right_or_refused(name, backend):
    """A plan that does not record its gradient says so and names the one that does; it never gives another number."""
    problem = case(name).problem(9, D).map(lambda x: x.requires_grad_())

    def second(plan: str) -> tuple[torch.Tensor, ...]:
        with tiles():
            value = build(name, {}, D, plan)(*problem.tensors, **keywords_for(problem, torch.float64))
            first = torch.autograd.grad(value, problem.leaves(), create_graph=True)
            return torch.autograd.grad([g.square().sum() for g in first], problem.leaves())

    try:
        own = second(backend)
    except RuntimeError as refusal:
        own = str(refusal)
    if isinstance(own, str):
        assert "dense" in own
    else:
        torch.testing.assert_close(own, second("dense"), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in PAIRWISE if name != "LiftedStructureLoss"])
def test_gradient_flows_to_one_side_alone(name):
    """Frozen keys, and frozen queries: the other side's gradient does not change."""
    problem = Case(name, "relation", {}).problem(N, D)
    both = evaluate(build(name, {}, D, "tiled"), problem).gradients
    for side in (0, 1):
        q, k = (x.detach().clone().requires_grad_(s == side) for s, x in enumerate(problem.tensors))
        with tiles():
            value = build(name, {}, D, "tiled")(q, k, **keywords_for(problem, torch.float64))
        torch.testing.assert_close(torch.autograd.grad(value, (q, k)[side])[0], both[side], rtol=1e-9, atol=1e-12)


def test_gradient_is_scaled_by_what_comes_from_above_and_can_be_taken_again():
    problem = case("SupConLoss").problem(N, D)
    z, labels = problem.tensors[0].requires_grad_(), problem.keywords["labels"]
    with tiles():
        value = build("SupConLoss", {}, D, "tiled")(z, labels=labels)
        first = torch.autograd.grad(value, z, retain_graph=True)[0]
        again = torch.autograd.grad(3.0 * value, z, retain_graph=True)[0]
        torch.testing.assert_close(again, 3.0 * first, rtol=1e-12, atol=0)
        torch.testing.assert_close(torch.autograd.grad(value, z)[0], first, rtol=0, atol=0)


def test_resolve_reads_self_calls_view_major():
    """The oracles' own reading of a call, seen once with the eye."""
    a, b = draw(2, 1, seed=0), draw(2, 1, seed=1)
    rows, _, relation = resolve("self", (a, b))
    assert rows.flatten().tolist() == [*a.flatten().tolist(), *b.flatten().tolist()]
    assert [[j for j, r in enumerate(row) if r > 0] for row in relation] == [[2], [3], [0], [1]]
