"""Every option of every loss: value and gradient of every plan against the naive loop, in float64."""

from __future__ import annotations

import pytest

from harness import KINDS, assert_same, build, evaluate, expected, parametrize_backends
from problems import variant_cases

pytestmark = pytest.mark.usefixtures("unchecked")
SHAPES = [(2, 2), (11, 4)]


@pytest.mark.parametrize(("case", "backend"), parametrize_backends(variant_cases(KINDS)), ids=str)
def test_value_and_gradient_are_the_loops(case, backend):
    for n, d in SHAPES:
        actual = evaluate(build(case.name, case.options, d, backend), case.problem(n, d))
        assert_same(actual, expected(case, n, d), note=f"at {n} rows of {d}")
