"""Two ranks train as one process with the same global batch: views, negatives, queue, averages and clipping included."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import nearfar as nf
from nearfar.training.config import TrainConfig
from nearfar.training.devices import _started
from train_cases import ENVIRONMENT, run_case, tensors_of

CASES = Path(__file__).parent / "train_cases.py"

# Sums over rows are taken in another order, which eight steps of Adam make larger: losses agree to so much, relatively.
TOLERANCE = 2e-4


def under_torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
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
    train = [sys.executable, "-m", "nearfar", "train", *options, "--steps", "4", "--eval-rows", "100"]
    common = {"env": ENVIRONMENT, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*train, "--batch-size", "32", "--out", "run"], **common)
    assert done.returncode == 0, done.stderr[-4000:]
    run = nf.Run(tmp_path / "run")
    assert run.environment["ranks"] == 2
    assert [e["step"] for e in run.events("step")] == [1, 2, 3, 4]  # told once, not by each rank
    assert len([line for line in done.stdout.splitlines() if line.startswith("knn 0")]) == 1
    done = subprocess.run([*train, "--batch-size", "33", "--out", "odd"], **common)
    assert done.returncode == 2
    assert "batch_size is 33 rows over 2 devices: wanted a multiple" in done.stderr


def srun(tasks: int, cwd: Path, arguments: list[str], **more: str) -> list[subprocess.Popen]:
    """The tasks of a job step on one machine, as SLURM 22.05 starts them with ``--ntasks``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": str(tasks), "SLURM_NNODES": "1",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", "nearfar", "train", *arguments],
            env=ENVIRONMENT | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} | more,
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(tasks)
    ]  # fmt: skip


def ended(tasks: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    try:
        return [(task.returncode, *said) for task in tasks for said in [task.communicate(timeout=120)]]
    finally:
        for task in tasks:
            task.kill()


def test_the_tasks_of_slurm_are_ranks_which_sigterm_stops_and_resume_goes_on(tmp_path):
    """``scancel --signal=TERM`` reaches every task; on a requeue also by way of srun, so that it comes twice."""
    options = ["--data", "digits", "--method", "siamese", "--views", "none", "--device", "cpu", "--steps", "40"]
    options += ["--batch-size", "32", "--eval-rows", "100", "--eval-every", "1000", "--checkpoint-every", "1000"]
    tasks = srun(2, tmp_path, [*options, "--out", "run"])
    log = tmp_path / "run" / "events.jsonl"
    until = time.monotonic() + 100
    while time.monotonic() < until and not (log.exists() and log.read_text().count("\n") > 1):
        time.sleep(0.01)
    for _ in range(2):
        for task in tasks:
            task.send_signal(signal.SIGTERM)
    found = ended(tasks)
    assert [code for code, _, _ in found] == [130, 130], found
    assert ["nearfar train --resume run" in said for _, _, said in found] == [True, False]
    run = nf.Run(tmp_path / "run")
    steps = [e["step"] for e in run.events("step")]
    (checkpoint,) = run.checkpoints.iterdir()
    assert checkpoint.name == f"step-{steps[-1]:08d}"
    assert steps[-1] < 40
    found = ended(srun(2, tmp_path, ["--resume", "run"]))
    assert [code for code, _, _ in found] == [0, 0], found
    assert run.environment["ranks"] == 2
    assert [e["step"] for e in run.events("step")] == [*range(1, 41)]
    assert run.finished


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ({}, (2, 1)),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, (2, 1)),  # a job script that calls nearfar without srun
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, (2, 1)),  # a shell of srun's
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, (4, 2)),
        ({"SLURM_JOB_ID": "1", "TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "12"}, (4, 3)),
    ],
)
def test_who_started_the_ranks(known, wanted, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    for name, value in (known | {"SLURM_NTASKS_PER_NODE": "3"}).items():  # the job's, which need not be the step's
        monkeypatch.setenv(name, value)
    processes, machines, plugins = _started(TrainConfig(devices=2))
    assert (processes, machines) == wanted
    others = any(plugin.creates_processes_externally for plugin in plugins)
    assert others == (known.get("SLURM_STEP_NUM_TASKS", "1") != "1")


def test_tasks_that_lie_unevenly_are_refused(monkeypatch):
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"3 tasks on 2 machines: wanted as many on each \(--ntasks-per-node\)"):
        _started(TrainConfig())
