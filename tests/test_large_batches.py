"""Cached steps and memory banks in several processes: those of one process with one big batch.

Real processes talk through gloo; encoders are wrapped in `DistributedDataParallel`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from large_batches import LABELS, SPLITS, alone, views

pytestmark = pytest.mark.usefixtures("unchecked")
SCRIPT = Path(__file__).with_name("large_batches.py")


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda world: f"{world} ranks")
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank found."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.pt" for rank in range(world)]
    logs = [folder / f"{rank}.log" for rank in range(world)]
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(folder / "store"), str(outs[rank])],
            stdout=logs[rank].open("w"), stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * world, "\n".join(log.read_text()[-2000:] for log in logs)
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.parametrize("name", ["two towers", "labelled", "remembered", "remembered, frozen"])
def test_ranks_are_one_batch(ranks, name):
    """Values, gradients of the encoders and of a learned temperature, a bank's state; ragged chunks, a rank without rows."""
    wanted = alone()[name]
    for found in ranks:
        assert not isinstance(found[name], str), found[name]
        for a, b in zip(found[name], wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, float(b.abs().max())))


def test_banks_are_equal_on_all_ranks(ranks):
    """Bit for bit: rows in order of rank."""
    for found in ranks:
        for a, b in zip(found["remembered"][-6:], ranks[0]["remembered"][-6:], strict=True):
            assert torch.equal(a, b)


def test_a_models_gradients_travel_once_a_step(ranks):
    """And not at all under `no_sync`, the caller's way to accumulate."""
    for found in ranks:
        assert found["reductions"] == [1, 0, 1]


def test_running_statistics_start_from_rank_0s_in_each_step(ranks):
    """As `DistributedDataParallel` has it, and move once a chunk."""
    if not all(SPLITS[len(ranks)]):
        pytest.skip("BatchNorm takes no empty batch")
    first, start = 0, torch.zeros(3, 6, dtype=torch.float64)
    batches = views(1, 3)[:, 0]
    for rank, found in enumerate(ranks):
        rows = slice(first, first := first + SPLITS[len(ranks)][rank])
        for step, mean in enumerate(found["running means"]):
            wanted = ranks[0]["running means"][step - 1] if step else start[0]
            for chunk in batches[step][rows].split(4):
                wanted = 0.9 * wanted + 0.1 * chunk.mean(0)
            torch.testing.assert_close(mean, wanted)
    assert first == len(LABELS)
