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
from rank_cases import BY_QUERY, CASES, DTYPES, SHARDED, SPLITS
from ranks import NEAR_ZERO, by_query, near_zero, whole

pytestmark = pytest.mark.usefixtures("unchecked")
SCRIPT = Path(__file__).with_name("ranks.py")
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Of the largest entry. In float32 what is found is held against float64."""
CANCELLING = (
    "AlignUniformLoss", "MutualInformationLoss dv", "HardNegativeLoss", "DebiasedLoss", "SigLIPLoss", "SpectralLoss"
)  # fmt: skip
"""And rings: what is found is the small difference of two large numbers (alignment and uniformity, logarithms of two estimates,
the gradient of a temperature or a bias from positives and negatives). Where one process's matrix of scores in float32 is itself
farther off than the bound, twice its error is allowed, as for every plan (`test_precision.py`)."""
REFUSED = [
    ("pairs as a matrix", "ValueError", "by id or label only"),
    ("pairs of several parts", "ValueError", "by id or label only"),
    ("NCELoss", "TypeError", "gather="),
    ("InfoNCELoss with negatives", "TypeError", "gather="),
    ("TripletLoss of triplets", "TypeError", "gather="),
    ("ContrastiveLoss of rows", "TypeError", "gather="),
    ("TripletLoss, ring", "TypeError", "gather='ring' is for softmax losses"),
    ("VICRegLoss, ring", "TypeError", "gather='ring' is for softmax losses"),
    ("ArcFaceLoss, ring", "TypeError", "gather='ring' is for softmax losses"),
    ("positives in one logarithm, ring", "TypeError", "form='out'"),
]


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda world: f"{world} ranks")
def ranks(request, tmp_path_factory) -> list[dict[str, Any]]:
    """What each rank found."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    logs = [folder / f"{rank}.log" for rank in range(world)]
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(world), str(folder / "store"), str(folder)],
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
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def test_torchrun_starts_them_too(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", str(SCRIPT)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in SHARDED:
            assert_equal(found[f"{name} {torch.float64}"], name, torch.float64)


def assert_equal(found: Any, name: str, dtype: torch.dtype) -> None:
    """Value, encoder's gradient (weight and bias together: a shift may not matter to the loss), each gradient of the loss's."""
    assert not isinstance(found, str), found
    wanted, dense = reference(name)
    assert len(found) == len(wanted)
    for a, b, c in zip(grouped(found), grouped(wanted), grouped(dense)):
        assert a.dtype == dtype
        bound = BOUNDS[dtype] * float(b.abs().max())
        if dtype == torch.float32 and (name.startswith(CANCELLING) or name.endswith(", ring")):
            bound = max(bound, 2 * float((c - b).abs().max()))
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


@pytest.mark.parametrize("name", CASES)
def test_a_rank_without_rows(ranks, name):
    for found in ranks:
        assert_equal(found[f"{name} empty"], name, torch.float64)


@pytest.mark.parametrize("name", SHARDED)
def test_with_sharded_parameters(ranks, name):
    """Under `torch.distributed.fsdp.fully_shard`."""
    for found in ranks:
        assert_equal(found[f"{name} sharded"], name, torch.float64)


@pytest.mark.parametrize("name", BY_QUERY)
def test_values_by_query_are_this_ranks(ranks, name):
    """Rank after rank they are those of one process (whose views stand behind one another, though)."""
    case = CASES[name]
    wanted = by_query(case, torch.arange(8)).unflatten(0, (-1, 8))
    parts = [found[f"{name} by query"] for found in ranks]
    found = torch.cat([part.unflatten(0, (-1, size)) for part, size in zip(parts, SPLITS[len(ranks)])], 1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


PASSES = {"one process": (3, 4), "gather": (3, 4), "ring": (4, 4)}


@pytest.mark.parametrize("way", [True, "ring"])
@pytest.mark.parametrize("name", NEAR_ZERO)
def test_near_0_digits_are_kept(ranks, name, way):
    world, (whole, *slopes) = len(ranks), near_zero(torch.arange(8), name, torch.float64).split([1, 8 * 24, 8 * 24])
    rows = torch.arange(8).split(SPLITS[world])
    assert 0 < float(whole) < 1e-3
    for mine, found in zip(rows, ranks):
        value, *gradients = found[f"{name} {way} near zero"].split([1, len(mine) * 24, len(mine) * 24])
        assert abs(float(value) / float(whole) - 1) < 1e-5
        for gradient, slope in zip(gradients, slopes):
            off = gradient - slope.view(8, 24)[mine].flatten()
            assert float(off.abs().max() / slope.abs().max()) < 5e-5


@pytest.mark.parametrize("way", ["gather", "ring"])
def test_a_ranks_work_is_its_own_rows(ranks, way):
    """Products are those of its rows with all keys; what it sends is its keys and their gradients, and few numbers a row."""
    sizes, row = SPLITS[len(ranks)], 64 * 8
    world, longest = len(sizes), max(sizes)
    for rank, found in enumerate(ranks):
        # gathered: padded to the longest; in the ring: all chunks but the last to come by, twice, and all gradients
        rows = {"gather": 2 * (world - 1) * longest, "ring": 2 * (8 - sizes[(rank + 1) % world]) + 8}[way]
        for name, passes in zip(("InfoNCELoss", "CLIPLoss"), PASSES["one process" if world == 1 else way]):
            products, sent, largest = found["work"][f"{way} {name}"]
            assert products == passes * sizes[rank] * 8
            assert world == 1 or rows * row <= sent <= rows * row + 100 * 8 * 8
            if way == "ring" and world > 1:
                assert largest <= longest * 64  # no rank ever holds all keys
            elif world > 1:
                assert largest >= 8 * 64


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
