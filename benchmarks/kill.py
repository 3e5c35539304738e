"""Training that is killed at random moments (`kill -9`) and resumed: is it the run that was never interrupted, bit for bit?

    python benchmarks/kill.py [--moments 20] [--seed 0]

Real processes, the command line as a user gives it: digits by MoCo (queue, slow encoder, views, averaged weights), and
text pairs (dropout, a learned temperature, averaged weights), each with a checkpoint every other step, so that many a
kill falls into the writing of one. After each kill every checkpoint on disk is read; at the end all tensors of the last
checkpoint and of the encoder, and all events but for their clocks, are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
PATIENCE = 300.0


@dataclass
class Kill:
    """What was found after one kill."""

    case: str
    after: float
    """Seconds after the run folder's first event, or after the start where it had none yet."""
    step: int
    """Of the last event on disk."""
    checkpoint: int
    """Step of the last checkpoint; 0: there was none."""
    unfinished: bool
    """Whether a checkpoint was being written."""
    torn: bool
    """Whether the last event was half written."""
    unreadable: int
    """Checkpoints that could not be read."""


def finish(command: list[str]) -> float:
    """Runs to the end; the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - begun


def kill(case: str, command: list[str], folder: Path, after: float) -> Kill | None:
    """Starts, waits for a new event, and some seconds more, and kills; None: it was finished before."""
    log = folder / "events.jsonl"
    before = log.stat().st_size if log.exists() else 0
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until:
            if log.exists() and log.stat().st_size != before:
                break
            time.sleep(0.002)
        time.sleep(after)
        if process.poll() is not None:
            return None
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait(30)
    return look(case, folder, after)


def look(case: str, folder: Path, after: float) -> Kill:
    """What the killed process left on disk."""
    from nearfar.training.checkpoint import last_checkpoint, read_checkpoint

    checkpoints = folder / "checkpoints"
    unreadable = 0
    for path in checkpoints.glob("step-*"):
        try:
            read_checkpoint(path)
        except ValueError:
            unreadable += 1
    last = last_checkpoint(checkpoints)
    whole = (folder / "events.jsonl").read_text(encoding="utf-8")
    steps = [json.loads(line)["step"] for line in whole.splitlines(keepends=True) if line.endswith("\n")]
    return Kill(
        case, round(after, 3), steps[-1] if steps else 0, int(last.name[5:]) if last else 0,
        any(checkpoints.glob(".new-*")), bool(whole) and not whole.endswith("\n"), unreadable,
    )  # fmt: skip


def survive(
    case: str, begin: list[str], resume: list[str], folder: Path, moments: list[float]
) -> tuple[list[Kill], int]:
    """Kills a run at each moment, resumes it after each, and lets it finish; the kills, and how many came too late."""
    kills: list[Kill] = []
    late = 0
    for after in moments:
        command = resume if (folder / "config.yaml").exists() else begin
        found = kill(case, command, folder, after)
        if found is None:
            late += 1
            break
        kills.append(found)
    finish(resume)
    return kills, late


def main(arguments: list[str] | None = None) -> int:
    """Prints a table and writes it to `results/kill.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "kill.json"))
    asked = parser.parse_args(arguments)
    import torch

    from nearfar.training.environment import describe_machine
    from nearfar.training.run import Run
    from train_cases import differences

    draw = random.Random(asked.seed)
    kills: list[Kill] = []
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        cases = commands(home)
        whole, seconds = {}, {}
        for case, options in cases.items():
            finish(train(*options, "--out", str(home / f"{case}-whole")))
            whole[case] = Run(home / f"{case}-whole")
            seconds[case] = next(e["seconds"] for e in whole[case].events("end"))
        number = 0
        while len(kills) < asked.moments:
            case = list(cases)[number % len(cases)]
            folder = home / f"{case}-{number}"
            number += 1
            wanted = min(draw.choice((1, 2, 3)), asked.moments - len(kills))
            # a run's clock stands while it writes: what it takes from event to event is several times as long
            moments = [draw.uniform(0.0, 2.5 * seconds[case] / wanted) for _ in range(wanted)]
            begin = train(*cases[case], "--out", str(folder))
            found, late = survive(case, begin, train("--resume", str(folder)), folder, moments)
            kills += found
            different = differences(whole[case], Run(folder))
            runs.append({"case": case, "kills": len(found), "too_late": late, "differences": different})
            print(f"{case}: {len(found)} kills, {different or 'equal'}", flush=True)
    print(f"\n{'case':8} {'killed at step':>14} {'checkpoint':>10}  while writing one  unreadable")
    for each in kills:
        print(
            f"{each.case:8} {each.step:14d} {each.checkpoint:10d}  {'yes' if each.unfinished else '–':17}  {each.unreadable}"
        )
    equal = sum(not run["differences"] for run in runs)
    unreadable = sum(each.unreadable for each in kills)
    print(
        f"{len(kills)} kills in {len(runs)} runs: {equal} runs equal to the uninterrupted one, {unreadable} checkpoints unreadable"
    )
    result = {
        "kills": [asdict(each) for each in kills], "runs": runs, "seed": asked.seed,
        "environment": describe_machine(torch.device("cpu"), 1),
    }  # fmt: skip
    Path(asked.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if equal == len(runs) and not unreadable else 1


def train(*options: str) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "nearfar", "train", *options]


def commands(home: Path) -> dict[str, list[str]]:
    """Options of the two cases; the text pairs are written to a file."""
    from train_cases import WORDS

    draw = random.Random(1)
    rows = [[draw.choice(WORDS) for _ in range(4)] for _ in range(200)]
    table = home / "pairs.csv"
    lines = ["text,positive", *(f"{' '.join(row)},{' '.join(reversed(row))}" for row in rows)]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    common = ["--ema", "0.9", "--checkpoint-every", "2", "--eval-every", "10", "--threads", "1"]
    return {
        "moco": [
            "--data",
            "digits",
            "--method",
            "moco",
            "--queue",
            "256",
            "--batch-size",
            "32",
            "--steps",
            "80",
            *common,
        ],
        "pairs": [
            "--data",
            str(table),
            "--batch-size",
            "16",
            "--steps",
            "40",
            "--learnable-temperature",
            "True",
            *common,
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
