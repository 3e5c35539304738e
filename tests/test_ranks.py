"""Processes that see each other's rows: value and gradients are those of one process that holds them all.

Real processes talk through gloo; the encoder is wrapped in `DistributedDataParallel`. The ranks' rows are uneven, one rank's
have no positive, and each run goes through every loss.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nearfar as nf
from ranks import CASES, DTYPES, whole

pytestmark = pytest.mark.usefixtures("unchecked")
SCRIPT = Path(__file__).with_name("ranks.py")
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Of the largest entry. In float32 what is found is held against float64; where one process's matrix of scores in float32 is
itself farther off than this, twice its error is allowed, as for every plan (`test_precision.py`)."""
UNLUCKY = {"CLIPLoss labels": 2e-6}
"""Whose logits reach 14.3, a last bit of which is 1e-6: rows 1.1, 1.3 or 3.3 times as long give 4e-7, as one process does."""
REFUSED = [
    ("pairs as a matrix", "ValueError", "by id or label only"),
    ("pairs of several parts", "ValueError", "by id or label only"),
    ("NCELoss", "TypeError", "gather="),
    ("InfoNCELoss with negatives", "TypeError", "gather="),
    ("TripletLoss of triplets", "TypeError", "gather="),
    ("ContrastiveLoss of rows", "TypeError", "gather="),
]


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


def assert_equal(found: Any, name: str, dtype: torch.dtype) -> None:
    """Value, encoder's gradient (weight and bias together: a shift may not matter to the loss), each gradient of the loss's."""
    assert not isinstance(found, str), found
    wanted, dense = reference(name)
    assert len(found) == len(wanted)
    for a, b, c in zip(grouped(found), grouped(wanted), grouped(dense)):
        assert a.dtype == dtype
        bound = BOUNDS[dtype] * float(b.abs().max())
        if dtype == torch.float32:
            bound = max(bound, 2 * float((c - b).abs().max()), UNLUCKY.get(name, 0) * float(b.abs().max()))
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)


@functools.cache
def reference(name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What one process gets that has all the samples, in float64; and the matrix of scores in float32."""
    return whole(name, torch.float64), whole(name, torch.float32, backend="dense")


def grouped(found: list[torch.Tensor]) -> list[torch.Tensor]:
    value, weight, bias, *own = found
    return [value, torch.cat([weight, bias[:, None]], 1), *own]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_ranks_are_one_batch(ranks, name, dtype):
    """On every rank: the value, the encoder's gradients, and those of what the loss learns."""
    assert float(reference(name)[0][1].abs().max()) > 0
    for found in ranks:
        assert_equal(found[f"{name} {dtype}"], name, dtype)


def test_every_loss_is_among_them():
    assert {name.split()[0] for name in CASES} >= set(nf.LOSSES) - {"NCELoss"}


def test_a_rank_without_rows(ranks):
    for found in ranks:
        assert_equal(found["empty"], "SupConLoss labels", torch.float64)


@pytest.mark.parametrize("place", range(len(REFUSED)), ids=[what for what, *_ in REFUSED])
def test_what_cannot_see_other_ranks_rows_says_so(ranks, place):
    """A process alone has nothing to gather, and may go on."""
    _, kind, words = REFUSED[place]
    for found in ranks:
        said = found["refusals"][place]
        assert (said.startswith(kind) and words in said) or (len(ranks) == 1 and said.startswith("value")), said


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match=r"no process group: call torch\.distributed\.init_process_group"):
        nf.SupConLoss(gather=True)(torch.randn(4, 3), labels=torch.tensor([0, 0, 1, 1]))
