"""Training with float16 and a gradient scaler, as on a GPU, on a CPU: torch's autocast and scaler know it, Fabric does not."""

from __future__ import annotations

import json
import math
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import nearfar as nf
from nearfar.training.session import Session
from train_cases import vectors

OPTIONS: dict[str, Any] = {
    "method": "clip", "batch_size": 32, "steps": 9, "eval_every": 9, "checkpoint_every": 3, "show": False, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def half(monkeypatch):
    """Float16 from here on; called with the scale that the scaler begins with. It doubles after four good steps."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision.amp import MixedPrecision

    def begin(scale: float = 2.0**16) -> None:
        def make(config: Any) -> Fabric:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
            fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
            fabric.launch()
            return fabric

        monkeypatch.setattr(import_module("nearfar.training.train"), "make_fabric", make)

    return begin


def run(out: Path, **options: Any) -> nf.Run:
    return nf.train(corpus=vectors(), out=str(out), **(OPTIONS | options))


def losses(run: nf.Run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def scale(run: nf.Run) -> float:
    last = max((run.path / "checkpoints").iterdir())
    return json.loads((last / "state.json").read_text())["scaler"]["scale"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunk": 8},
        {"clip": 0.1},
        {"clip": 0.1, "chunk": 8},
        {"clip": 0.1, "optimizer": "sgd"},
        {"optimizer": "lars"},
    ],
    ids=str,
)
def test_float16_is_near(options, half, tmp_path):
    """Whatever takes part in a step: chunks, clipping, and optimisers that are fused and ones that are not."""
    whole = losses(run(tmp_path / "32", **options))
    half()
    done = run(tmp_path / "16", precision="16", **options)
    assert losses(done) == pytest.approx(whole, rel=0.02, abs=2e-3)
    assert losses(done) != whole
    assert scale(done) > 2.0**16  # doubled, and where a step overflowed halved again


@pytest.mark.parametrize("options", [{}, {"chunk": 8, "clip": 0.1}], ids=str)
def test_steps_whose_gradients_overflow_are_left_out(options, half, tmp_path):
    """The weights are as they were, and the scale is halved until one is made."""
    half(2.0**40)
    begun = run(tmp_path / "a", precision="16", steps=3, **options)
    first = run(tmp_path / "b", precision="16", steps=1, **options)
    assert scale(begun) == 2.0**37
    states = [one.embedder().state_dict() for one in (begun, first)]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    half(2.0**20)
    done = run(tmp_path / "c", precision="16", steps=20, **options)
    assert losses(done)[-1] < 0.5 * losses(done)[0]
    assert all(map(math.isfinite, losses(done)))


def test_resumed_with_its_scale(half, monkeypatch, tmp_path):
    """Ended at its eighth step, after the scale was doubled: bit for bit what was not interrupted."""
    half()
    whole = run(tmp_path / "whole", precision="16", clip=0.5)

    def broken(self: Session, step: int) -> None:
        if step == 8:
            raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_tell_bad", broken)
        with pytest.raises(RuntimeError, match="the disk is full"):
            run(tmp_path / "cut", precision="16", clip=0.5)
    resumed = nf.train(corpus=vectors(), resume=str(tmp_path / "cut"), show=False)
    assert losses(resumed) == losses(whole)
    assert scale(resumed) == scale(whole) == 2.0**18
    theirs = whole.embedder().state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in resumed.embedder().state_dict().items())


def test_it_is_refused_on_a_cpu_and_nothing_else_is_said(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="precision 16 needs a GPU"):
            run(tmp_path / "run", precision="16")
    assert [str(warning.message) for warning in said] == []
