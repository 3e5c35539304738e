"""Two ranks train as one process with the same global batch: views, negatives, queue, averages and clipping included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nearfar as nf
from train_cases import ENVIRONMENT, run_case, tensors_of

CASES = Path(__file__).parent / "train_cases.py"

# Sums over rows are taken in another order, which eight steps of Adam make larger: losses agree to so much, relatively.
TOLERANCE = 2e-4


def under_torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]


SAME = ("simclr", "queue", "clip", "chunks", "classes", "same", "judged")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of runs by two ranks, all cases one after another."""
    folder = tmp_path_factory.mktemp("two")
    under_torchrun(str(CASES), ",".join(SAME), str(folder), "begin")
    return folder


@pytest.mark.parametrize("case", SAME)
def test_two_ranks_give_the_curve_of_one(case, together, tmp_path):
    one = run_case(case, str(tmp_path / "one"))
    two = nf.Run(together / case)
    assert (one.environment["ranks"], two.environment["ranks"]) == (1, 2)
    losses = [torch.tensor([e["loss"] for e in run.events("step")]) for run in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 8
    assert losses[0].std() > 1e-3  # something was learned, or nothing is compared
    torch.testing.assert_close(losses[1], losses[0], rtol=TOLERANCE, atol=1e-5)
    first, second = tensors_of(one), tensors_of(two)
    assert first.keys() == second.keys()
    for name in ("ema.safetensors", "method.safetensors:queue.slots"):
        for key in (key for key in first if key.startswith(name)):
            torch.testing.assert_close(second[key], first[key], rtol=2e-3, atol=2e-3)


def test_fabric_launches_ranks_itself_and_they_resume(tmp_path):
    """The command line with --devices 2; a batch that two ranks cannot share is refused in one line."""
    options = ["--data", "digits", "--method", "siamese", "--views", "none", "--device", "cpu", "--devices", "2"]
    train = [sys.executable, "-m", "nearfar.cli", "train", *options, "--steps", "4", "--eval-rows", "100"]
    common = {"env": ENVIRONMENT, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*train, "--batch-size", "32", "--out", "run"], **common)
    assert done.returncode == 0, done.stderr[-4000:]
    run = nf.Run(tmp_path / "run")
    assert run.environment["ranks"] == 2
    assert [e["step"] for e in run.events("step")] == [1, 2, 3, 4]  # told once, not by each rank
    assert done.stdout.count("knn") == 1
    done = subprocess.run([*train, "--batch-size", "33", "--out", "odd"], **common)
    assert done.returncode == 2
    assert "batch_size is 33 rows over 2 devices: wanted a multiple" in done.stderr
