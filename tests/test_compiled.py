"""`torch.compile` sees through every loss of a small batch, and leaves a large one to the engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import KINDS

NAMES = sorted(name for name in KINDS if name != "NCELoss")  # which draws


def run(*names: str) -> None:
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, str(script), *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("first", range(4))
def test_every_loss_is_one_graph(first):
    run(*NAMES[first::4])


def test_large_batches_are_left_to_the_engine_and_modules_compile():
    run()
