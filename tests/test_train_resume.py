"""Interrupted, killed, resumed: the run is the one that was never stopped, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import nearfar as nf
from nearfar.cli import main
from nearfar.training.checkpoint import last_checkpoint, prune_checkpoints, read_checkpoint, write_checkpoint
from train_cases import ENVIRONMENT, differences, images, run_case, tensors_of, texts

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from kill import survive  # noqa: E402

CASES = Path(__file__).parent / "train_cases.py"


def program(case: str, folder: Path, what: str, **options) -> list[str]:
    return [sys.executable, str(CASES), case, str(folder), what, json.dumps(options)]


@pytest.mark.parametrize("case", ["moco", "pairs"])
def test_killed_and_resumed_is_uninterrupted(case, tmp_path):
    whole = run_case(case, str(tmp_path / "whole"))
    draw = random.Random(3)
    folder = tmp_path / "killed"
    moments = [draw.uniform(0, 0.3), draw.uniform(0, 0.3)]
    kills, _ = survive(case, program(case, folder, "begin"), program(case, folder, "resume"), folder, moments)
    assert kills, "every kill came too late"
    assert not any(each.unreadable for each in kills)
    assert differences(whole, nf.Run(folder)) == []
    names = " ".join(tensors_of(whole))
    for what in ("method.safetensors:network", "ema.safetensors:", "optimizer.safetensors:", "model.safetensors:"):
        assert what in names
    if case == "moco":
        assert "method.safetensors:queue.slots" in names
        assert "method.safetensors:slow.module" in names


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path):
    table = tmp_path / "pairs.csv"
    part = texts(columns=2).train
    rows = zip(part.data["text"], part.data["other"], strict=True)
    table.write_text("text,positive\n" + "".join(f"{a},{b}\n" for a, b in rows), encoding="utf-8")
    options = [
        "--data",
        "pairs.csv",
        "--batch-size",
        "8",
        "--steps",
        "400",
        "--checkpoint-every",
        "1000",
        "--threads",
        "1",
    ]
    train = [sys.executable, "-m", "nearfar", "train"]
    common = {"env": ENVIRONMENT, "cwd": tmp_path, "text": True}
    process = subprocess.Popen(
        [*train, *options, "--eval-every", "100", "--out", "run"], **common, stderr=subprocess.PIPE
    )
    log = tmp_path / "run" / "events.jsonl"
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (log.exists() and log.read_text().count("\n") > 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "nearfar train --resume run" in said
    last = last_checkpoint(tmp_path / "run" / "checkpoints")
    steps = [e["step"] for e in nf.Run(tmp_path / "run").events("step")]
    assert last is not None
    assert int(last.name[5:]) == steps[-1] < 400  # nothing is lost
    done = subprocess.run([*train, "--resume", "run", "--lr", "0.5"], **common, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert "lr was 0.001 when run was begun and is 0.5 now" in done.stderr


def test_a_look_in_between_changes_nothing(tmp_path):
    """What a step draws depends on the step alone."""
    often = run_case("pairs", str(tmp_path / "often"), eval_every=2, ema=None)
    seldom = run_case("pairs", str(tmp_path / "seldom"), eval_every=24, ema=None)
    losses = [[event["loss"] for event in run.events("step")] for run in (often, seldom)]
    assert losses[0] == losses[1]


def test_the_optimiser_may_group_its_parameters_anew(tmp_path, monkeypatch):
    """As by another strategy: a checkpoint counts them in an order of its own."""
    from nearfar.training import optimiser, trainer

    options = {"steps": 8, "checkpoint_every": 4, "eval_every": 8, "clip": None}
    whole = run_case("clip", str(tmp_path / "whole"), **options)
    update = trainer.Trainer._update

    def fail(self) -> None:
        if self._step == 6:
            raise RuntimeError("the power is cut")
        update(self)

    with monkeypatch.context() as cut:
        cut.setattr(trainer.Trainer, "_update", fail)
        with pytest.raises(RuntimeError, match="the power is cut"):
            run_case("clip", str(tmp_path / "cut"), **options)
    asked: list[bool] = []
    monkeypatch.setattr(optimiser, "is_sharded", lambda p: asked.append(p.ndim == 0) or p.ndim == 0)
    resumed = run_case("clip", resume=str(tmp_path / "cut"))
    assert any(asked)  # the temperature, now ahead of the biases
    assert differences(whole, resumed) == []


def test_the_optimiser_goes_on_in_the_layout_of_the_weights(tmp_path, monkeypatch):
    """Those of convolutions lie channels last, and what a checkpoint has of them does not: side by side they would not match."""
    from nearfar.training import trainer

    options = {
        "method": "supcon",
        "model": "resnet-small",
        "steps": 4,
        "batch_size": 16,
        "checkpoint_every": 2,
        "show": False,
    }
    whole = nf.train(corpus=images(), out=str(tmp_path / "whole"), **options)
    update = trainer.Trainer._update

    def fail(self) -> None:
        if self._step == 3:
            raise RuntimeError("the power is cut")
        update(self)

    with monkeypatch.context() as cut:
        cut.setattr(trainer.Trainer, "_update", fail)
        with pytest.raises(RuntimeError, match="the power is cut"):
            nf.train(corpus=images(), out=str(tmp_path / "cut"), **options)
    assert differences(whole, nf.train(corpus=images(), resume=str(tmp_path / "cut"), show=False)) == []


def test_killed_before_its_last_word(tmp_path):
    """The last checkpoint is written, the event that says so is not; an early stop does not go on either."""
    for number, options in enumerate(({"steps": 6}, {"steps": 24, "patience": 1, "eval_every": 2})):
        run = run_case("pairs", str(tmp_path / str(number)), **options)
        log = run.path / "events.jsonl"
        whole = log.read_text()
        (end,) = run.events("end")
        log.write_text(whole[: whole.rindex('{"event": "end"')] + '{"event": "en')
        assert not run.finished
        run_case("pairs", resume=str(run.path))
        assert log.read_text() == whole
        assert end["reason"] == ("no better look for 1 looks" if number else "all steps were made")


def test_resumed_with_other_data_is_refused(tmp_path):
    run_case("pairs", str(tmp_path / "run"), steps=4)
    with pytest.raises(ValueError, match="begun with other data"):
        nf.train(corpus=images(), resume=str(tmp_path / "run"), show=False)
    with pytest.raises(ValueError, match="holds no training run"):
        nf.train(resume=str(tmp_path), show=False)
    with pytest.raises(ValueError, match="holds a run already"):
        run_case("pairs", str(tmp_path / "run"))


def test_a_checkpoint_is_whole_or_not_there(tmp_path):
    shared = torch.arange(6.0)
    parts = {
        "model": {
            "a": shared,
            "tied": shared,
            "view": shared[:2],
            "empty": torch.zeros(0),
            "turned": torch.ones(2, 3).T,
        }
    }
    write_checkpoint(tmp_path, 12, parts, {"rate": 0.1})
    write_checkpoint(tmp_path, 7, parts, {})
    (tmp_path / ".new-1").mkdir()  # what a killed process leaves
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "step-00000012"
    found, facts = read_checkpoint(last)
    assert facts["rate"] == 0.1
    for name, tensor in parts["model"].items():
        assert torch.equal(found["model"][name], tensor)
    prune_checkpoints(tmp_path, {12})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]
    (last / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="step-00000012 cannot be read"):
        read_checkpoint(last)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that was told of a seed and a logger."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    options = {"seed": 3, "logger": "csv", "batch_size": 16, "steps": 2, "model": "mlp", "weight_decay": 0.1}
    return nf.train(data="digits", method="supcon", views="none", out=str(folder), show=False, **options).path


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (["--seed", "0"], {"seed": 0}, "seed was 3"),
        (["--weight-decay=1e-4"], {"weight_decay": 1e-4}, "weight_decay was 0.1"),
        (["--batch-size", "256"], {"batch_size": 256}, "batch_size was 16"),
        (["--no-pretrained", "--epochs", "3"], {"epochs": 3}, r"epochs was 0\.027027 \(2 steps\)"),
    ],
)
def test_a_default_that_is_asked_for_is_an_option_like_another(arguments, options, said, begun, capsys):
    with pytest.raises(ValueError, match=f"{said} when .* was begun"):
        nf.train(resume=str(begun), show=False, **options)
    assert main(["train", "--resume", str(begun), *arguments]) == 2
    assert said.replace("\\", "") in capsys.readouterr().err


def test_what_may_change_goes_back_to_its_default(begun, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("nearfar.training.session.make_logger", lambda name, *_: asked.append(name))
    file = tmp_path / "options.yaml"
    file.write_text("logger: none\n")
    for arguments in ([], ["--logger", "none"], ["--config", str(file)]):
        assert main(["train", "--resume", str(begun), *arguments]) == 0
    nf.train(nf.TrainConfig(resume=str(begun)), show=False)  # says nothing of the logger
    nf.train(resume=str(begun), logger="none", show=False)
    assert asked == ["csv", "none", "none", "csv", "none"]
    file.write_text("seed: 0\n")
    assert main(["train", "--config", str(file), "--resume", str(begun)]) == 2


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A run that was told of epochs, of more rows a batch than there are, and of a part of its steps."""
    folder = tmp_path_factory.mktemp("counted") / "run"
    options = {"epochs": 6, "batch_size": 64, "accumulate": 2, "warmup": 0.25, "views": "none", "eval_every": 6}
    return nf.train(corpus=images(), method="supcon", model="small-cnn", out=str(folder), show=False, **options).path


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("epochs", 12, r"epochs was 6 \(6 steps\) when .* is 12 now"),
        ("steps", 12, "steps was 6 when"),
        ("batch_size", 32, r"batch_size was 64 \(96 with these data\) when"),
        ("accumulate", 4, r"accumulate was 2 \(1 with these data\) when"),
        ("warmup", 0.5, r"warmup was 0\.25 \(2 with these data\) when"),
        ("clip", 1.0, "clip was not given when"),
        ("lr", 0.01, r"lr was 0\.001 when"),
        ("quick", True, "quick was False when"),
        ("freeze", True, "freeze was False when"),
        ("metric", "knn", "metric was not given when"),
    ],
)
def test_an_option_that_differs_is_told_as_it_was_asked_for(option, value, said, counted):
    with pytest.raises(ValueError, match=said):
        nf.train(corpus=images(), resume=str(counted), show=False, **{option: value})


def test_what_was_asked_for_may_be_said_again_as_may_what_came_of_it(counted):
    told = {"epochs": 6, "batch_size": 64, "accumulate": 2, "warmup": 0.25}
    settled = {"steps": 6, "batch_size": 96, "accumulate": 1, "warmup": 2.0, "lr": 1e-3}
    for options in (told, settled):
        assert nf.train(corpus=images(), resume=str(counted), show=False, **options).finished


def test_epochs_of_a_run_that_wrote_down_its_steps_alone_are_counted(counted, tmp_path):
    run = shutil.copytree(counted, tmp_path / "run")
    facts = json.loads((run / "environment.json").read_text())
    del facts["asked"]
    (run / "environment.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"epochs was 6 \(6 steps\) when"):
        nf.train(corpus=images(), resume=str(run), show=False, epochs=12)
    assert nf.train(corpus=images(), resume=str(run), show=False, epochs=6).finished
