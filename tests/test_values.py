"""Every loss in every call form: value and gradient of every plan against the naive loop, in float64."""

from __future__ import annotations

import pytest

from harness import KINDS, PAIRWISE, assert_same, build, evaluate, expected, parametrize_backends
from problems import SHAPES, Case, form_cases, forms_of

pytestmark = pytest.mark.usefixtures("unchecked")


def shapes_of(case: Case) -> list[tuple[int, int]]:
    """All of them in a loss's first form; two in the others, smaller where views multiply the rows."""
    if case.form == forms_of(case.name, KINDS[case.name])[0]:
        return SHAPES
    return [(1, 3), (4 if case.form in ("three views", "stacked") else 8, 4)]


@pytest.mark.parametrize(("case", "backend"), parametrize_backends(form_cases(KINDS)), ids=str)
def test_value_and_gradient_are_the_loops(case, backend):
    for n, d in shapes_of(case):
        actual = evaluate(build(case.name, case.options, d, backend), case.problem(n, d))
        assert_same(actual, expected(case, n, d), note=f"at {n} rows of {d}")


@pytest.mark.parametrize("case", [case for case in form_cases(KINDS) if case.name in PAIRWISE], ids=str)
def test_lists_of_larger_batches_give_the_same(case, monkeypatch):
    monkeypatch.setattr("nearfar.counts.FEW", 0)
    for n, d in shapes_of(case):
        actual = evaluate(build(case.name, case.options, d), case.problem(n, d))
        assert_same(actual, expected(case, n, d), note=f"at {n} rows of {d}")
