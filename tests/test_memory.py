"""Memory in O(n·d): measured in processes of their own, by the high-water mark and by the profiler's allocations.

What is too slow to run each time at 16,384 rows can be run by hand: `python tests/memory_probe.py all:16384 hard:16384`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BAR = 64
"""MB beyond inputs and gradients, at 16,384 rows of 128 features."""
ABOVE = 2304
"""Rows of as many scores as are never kept, unless the rows themselves have half as many numbers."""

FULL = ["supcon:16384", "ntxent:8192", "clip:8192", "all:16384", "spectral, labels:8192"]
"""NT-Xent's two views and CLIP's two sides of 8,192 are 16,384 rows. Spectral lists 57,344 pairs, not their rows."""
GROWING = ["hard", "semihard", "clip", "infonce"]
TWO_CLASSES = [f"{name}:5120:classes=2" for name in ("supcon", "supcon-in", "hard", "all", "semihard")]
ALLOCATING = [
    "supcon", "supcon:classes=2", "supcon-in:classes=2", "ntxent", "clip", "infonce", "hard", "hard:classes=2", "all",
    "all:classes=2", "semihard", "semihard:classes=2", "soft", "siglip", "multisimilarity", "circle", "lifted", "contrastive",
    "nca", "dcl", "hardnegative", "debiased", "spectral", "spectral, labels", "uniform", "jsd",
]  # fmt: skip


def probe(*cases: str) -> dict[str, dict[str, Any]]:
    """Each case's measurements. The allocator is told to keep nothing back, so that its luck is not measured."""
    script = str(Path(__file__).with_name("memory_probe.py"))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, script, *cases], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(cases), done.stderr[-2000:]
    assert not [f["error"] for f in found if "error" in f]
    return dict(zip(cases, found))


@pytest.fixture(scope="module")
def full() -> dict[str, dict[str, Any]]:
    return probe(*(f"{case}:only=peak" for case in FULL))


@pytest.mark.parametrize("case", FULL)
def test_under_the_bar_at_full_size(full, case):
    assert full[f"{case}:only=peak"]["peak_mb"] < BAR


@pytest.fixture(scope="module")
def growing() -> dict[str, dict[str, Any]]:
    return probe(*(f"{name}:{rows}:only=peak" for name in GROWING for rows in (3072, 4096)))


@pytest.mark.parametrize("name", GROWING)
def test_grows_with_the_rows_and_meets_the_bar(growing, name):
    """Eight rows a class; from 3,072 and 4,096 rows on a straight line to 16,384 (of both sides together)."""
    small, large = (growing[f"{name}:{rows}:only=peak"]["peak_mb"] for rows in (3072, 4096))
    end = 8192 if name in ("clip", "infonce") else 16384
    assert large + max(large - small, 0.0) * (end - 4096) / 1024 < BAR


@pytest.fixture(scope="module")
def two_classes() -> dict[str, dict[str, Any]]:
    return probe(*(f"{case}:only=peak" for case in TWO_CLASSES))


@pytest.mark.parametrize("case", TWO_CLASSES)
def test_with_two_classes_it_stays_far_under_the_matrix(two_classes, case):
    """Half of all pairs are positive. A matrix of 5,120² float32 numbers is 100 MB; of triplets there are 67 billion."""
    assert two_classes[f"{case}:only=peak"]["peak_mb"] < 0.5 * 5120**2 * 4 / 2**20


def allocating(case: str, rows: int = ABOVE) -> str:
    name, *options = case.split(":")
    return ":".join([name, str(rows), *options, "only=tensors"])


@pytest.fixture(scope="module")
def allocations() -> dict[str, dict[str, Any]]:
    return probe(*map(allocating, ALLOCATING))


def assert_no_matrix(found: dict[str, Any], rows: int = ABOVE) -> None:
    """No allocation has half as many numbers as there are pairs; that none has n·m is the promise."""
    assert found["largest_elements"] <= rows * rows / 2, f"{found['largest_elements']} in {found['largest_in']}"


WIDE = [f"clip:{rows}:features={d}:only=tensors" for rows, d in ((4096, 1024), (4608, 1024), (3072, 512))]


def test_from_both_sides_a_matrix_is_kept_of_long_rows_only():
    """Of up to 4,096² scores, if the rows have half as many numbers."""
    largest = [found["largest_elements"] for found in probe(*WIDE).values()]
    assert largest[0] == 4096**2
    assert largest[1] < 4608**2 / 2
    assert largest[2] < 3072**2 / 2


@pytest.mark.parametrize("case", ALLOCATING)
def test_no_allocation_is_a_matrix(allocations, case):
    assert_no_matrix(allocations[allocating(case)])


def test_the_measurements_would_see_the_matrix():
    """The dense plan holds it several times over, and breaks every bound above."""
    case = "supcon:5120:backend=dense"
    found = probe(case)[case]
    assert found["peak_mb"] > 2 * 5120**2 * 4 / 2**20 > BAR
    assert found["tensors_mb"] > 2 * 5120**2 * 4 / 2**20
    with pytest.raises(AssertionError, match="aten::"):
        assert_no_matrix(found, 5120)
