"""One evaluation of a loss, and the same of its oracle: value and gradients of the inputs and of what is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import nearfar as nf
from nearfar.losses.base import Loss
from oracles import ORACLES
from problems import CLASSES, Case, Problem, draw

TILE = 5
"""Rows of a tile in the tests: every problem above five rows has several, the last one ragged."""
KINDS = {name: row.kind for name, row in nf.LOSSES.items()}
PAIRWISE = [name for name, kind in KINDS.items() if kind in ("self", "one-sided", "two-sided", "pairs")]


class Outcome(NamedTuple):
    """A loss's value and the gradients of its inputs, then of its parameters; zeros where nothing flows."""

    value: Tensor
    gradients: list[Tensor]


def class_table(d: int) -> Tensor:
    """A table of float32 numbers, in float64."""
    return draw(CLASSES, d, seed=99).float().double()


def tiles(rows: int = TILE):
    """Every tiled plan inside takes tiles of so many rows."""
    from nearfar.scores import tile_size

    return tile_size(rows)


def build(name: str, options: dict[str, Any], d: int, backend: str | None = None) -> Loss:
    """The loss; a class table is drawn, so that the oracle can have the same."""
    sizes = {"num_classes": CLASSES, "dim": d} if KINDS[name] == "classes" else {}
    loss = nf.LOSSES[name].loss(**sizes, **options, **({} if backend is None else {"backend": backend}))
    if sizes:
        (table,) = loss.parameters()
        with torch.no_grad():
            table.copy_(class_table(d))
    return loss


def keywords_for(problem: Problem, dtype: torch.dtype) -> dict[str, Any]:
    """The problem's keywords as the library takes them; its floating tensors in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    cast = {k: v.to(wide) if _floating(v) else v for k, v in problem.keywords.items()}
    return cast | ({"pairs": nf.Pairs.from_matrix(cast["pairs"])} if "pairs" in cast else {})


def _floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def differentiate(value: Tensor, leaves: list[Tensor]) -> Outcome:
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    return Outcome(value.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients)])


def evaluate(loss: Loss, problem: Problem, dtype: torch.dtype = torch.float64) -> Outcome:
    """The loss on the problem rounded to `dtype`, in small tiles."""
    problem = problem.map(lambda x: x.detach().to(dtype).requires_grad_())
    loss = loss.double() if dtype is torch.float64 else loss
    with tiles():
        value = loss(*problem.tensors, **keywords_for(problem, dtype))
        return differentiate(value, [*problem.leaves(), *loss.parameters()])


def expect(
    name: str, options: dict[str, Any], problem: Problem, dtype: torch.dtype = torch.float64, **learned: Tensor
) -> Outcome:
    """The oracle in float64 on the inputs rounded to `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    problem = problem.map(lambda x: x.detach().to(dtype).double().requires_grad_())
    keywords = {k: v.to(wide).double() if _floating(v) else v for k, v in problem.keywords.items()}
    if KINDS[name] == "classes":
        learned["table"] = class_table(problem.tensors[0].shape[1]).requires_grad_()
    value = ORACLES[name](*problem.tensors, **keywords, **options, **learned)
    return differentiate(value, [*problem.leaves(), *(x for x in learned.values() if x.requires_grad)])


_EXPECTED: dict[tuple, Outcome] = {}


def expected(case: Case, n: int, d: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Outcome:
    """`expect` of a case, kept: several backends are held against one walk of the loop."""
    key = (str(case), n, d, dtype, seed)
    if key not in _EXPECTED:
        _EXPECTED[key] = expect(case.name, case.options, case.problem(n, d, seed), dtype)
    return _EXPECTED[key]


def assert_same(actual: Outcome, wanted: Outcome, note: str = "", rtol: float = 1e-9) -> None:
    """Value and gradients within `rtol`, a gradient's entries relative to its largest."""

    def close(a: Tensor, b: Tensor, what: str) -> None:
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * scale + 1e-12, msg=lambda m: f"{what} {note}\n{m}")

    close(actual.value, wanted.value, "value")
    assert len(actual.gradients) == len(wanted.gradients)
    for k, (a, b) in enumerate(zip(actual.gradients, wanted.gradients)):
        close(a, b, f"gradient {k}")


def backends_of(name: str) -> tuple[str | None, ...]:
    """The plans to run; ``None`` is what a small batch gets by itself, and all that losses without pairs have."""
    if KINDS[name] == "classes":
        return "dense", "tiled", None
    return ("dense", "tiled", "strip", None) if name in PAIRWISE else (None,)


def parametrize_backends(cases: Iterable[Case]) -> list[tuple[Case, str | None]]:
    return [(case, backend) for case in cases for backend in backends_of(case.name)]


def functional(name: str) -> Callable[..., Tensor]:
    return nf.LOSSES[name].function
