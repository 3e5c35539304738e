"""The command line: quick to answer, clear about mistakes, and safe to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nearfar import cli

SOURCE = Path(__file__).parent.parent / "src"
FEW = [
    "--workers", "1", "--arms", "task", "joint", "--rates", "0.01", "--budget", "1", "--sweep-seeds", "1", "--seeds", "2",
    "--steps", "12", "--eval-every", "4",
]  # fmt: skip


def run(*arguments: str, **options):
    return subprocess.run([sys.executable, "-m", "nearfar", *arguments], **(COMMON | options))


COMMON = {
    "capture_output": True, "text": True, "timeout": 120, "env": {**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "200"},
}  # fmt: skip


def words(text: str) -> str:
    """The words of a message, without the frame that the terminal draws around them."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def test_help_loads_no_torch_and_answers_at_once():
    code = "import sys, nearfar.cli as cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], **COMMON)
        seconds.append(time.perf_counter() - begun)
        assert done.returncode == 0, done.stderr
    for command in cli.COMMANDS:
        assert command in done.stdout
    assert min(seconds) < 1


@pytest.mark.parametrize("command", [None, "compare", "report", "list"])
def test_every_command_and_every_option_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"] if command else ["--help"])
    assert stop.value.code == 0
    text = words(capsys.readouterr().out)
    if command == "compare":
        for option in (
            "--data", "--root", "--label", "--skip-bad", "--model", "--features", "--arms", "--rates", "--seeds", "--steps",
            "--eval-every", "--batch-size", "--target", "--budget", "--out", "--resume", "--quick", "--device", "--threads",
        ):  # fmt: skip
            assert option in text
        assert "Learning rates (Adam) that every arm tries in the sweep." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comapre"], "there is no command 'comapre'; did you mean 'compare'?"),
        (["compare", "--data", "digts"], "did you mean 'digits'?"),
        (["compare", "--data", "nowhere.csv"], "'nowhere.csv' is neither a data set nor a path"),
        (["compare", "--arms", "task", "jiont"], "there is no arm 'jiont'; did you mean 'joint'?"),
        (["compare", "--sed", "3"], "--seed"),
        (["compare", "--steps", "ten"], "--steps"),
        (["compare", "--target", "95"], "pass 0.9 for 90%"),
        (["compare", "--model", "nosuchthing:net"], "there is no module 'nosuchthing'"),
        (["compare", "--model", "small-cnm"], "did you mean 'small-cnn'?"),
        (["compare", "--features", "7.x"], "there is no layer '7.x'"),
        (["compare", "--resume", "nowhere"], "nowhere holds no comparison"),
        (["compare", "--device", "gpu"], "device 'gpu' cannot be used here"),
        (["compare", "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["report", "nowhere"], "nowhere holds no comparison"),
        (["report"], "run"),
        (["list", "--what", "looses"], "looses"),
    ],
)
def test_a_mistake_ends_in_words_on_stderr_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # the parser's own
        code = stop.code
    told = capsys.readouterr()
    assert code == 2
    assert message in words(told.err)
    assert "Traceback" not in told.err
    assert not list(tmp_path.iterdir())


def test_bad_rows_are_named_or_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i % 7},{i % 5},{i % 2}" for i in range(60)]
    rows[6] = "1,oops,0"
    (tmp_path / "t.csv").write_text("a,b,label\n" + "\n".join(rows) + "\n")
    assert cli.main(["compare", "--data", "t.csv", *FEW]) == 2
    assert "t.csv:8" in capsys.readouterr().err
    assert cli.main(["compare", "--data", "t.csv", "--skip-bad", *FEW, "--out", "run"]) == 0
    told = capsys.readouterr()
    assert "left out: t.csv:8" in told.err
    assert "1 rows could not be read and were left out" in words(told.out)


def test_the_users_network_in_the_current_folder(tmp_path):
    (tmp_path / "mynet.py").write_text(
        "from torch import nn\n"
        "def build(in_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))\n"
    )
    done = run("compare", "--model", "mynet:build", "--out", "run", *FEW, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mynet:build, 610 parameters" in words(done.stdout)
    assert json.loads((tmp_path / "run/config.json").read_text())["model"]["name"] == "mynet:build"


def test_a_comparison_from_start_to_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *FEW]) == 0
    told = words(capsys.readouterr().out)
    assert "digits: 959 rows to train on" in told
    assert "runs/compare-digits-1/report.html" in told
    folder = tmp_path / "runs/compare-digits-1"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "events.jsonl", "report.html", "result.json"]
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder), "--out", "page.html", "--picture", "p.svg"]) == 0
    assert capsys.readouterr().out.split() == ["page.html", "p.svg"]
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


def test_ctrl_c_prints_the_table_so_far_and_how_to_go_on_and_a_kill_loses_one_run(tmp_path):
    many = [
        "--arms",
        "task",
        "joint",
        "--rates",
        "0.01",
        "--budget",
        "1",
        "--seeds",
        "12",
        "--steps",
        "120",  # long enough to be interrupted on a fast machine
        "--eval-every",
        "60",
        "--sweep-seeds",
        "1",
    ]
    command = [sys.executable, "-m", "nearfar", "compare", *many, "--out", "run", "--workers", "2"]
    options = {
        "cwd": tmp_path,
        "env": COMMON["env"],
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        # A job in the background ignores Ctrl-C, and would hand that down.
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    process = subprocess.Popen(command, **options)
    _wait_for(tmp_path / "run/events.jsonl", ends=6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nearfar compare --resume run" in err
    assert "Traceback" not in err
    assert "Not finished:" in words(out)
    assert "Steps to a test accuracy" in words(out)
    kept = _ends(tmp_path / "run/events.jsonl")

    process = subprocess.Popen([*command[:4], "--resume", "run", "--workers", "1"], **options)
    _wait_for(tmp_path / "run/events.jsonl", ends=kept + 4)
    process.kill()
    process.communicate(timeout=60)
    kept = _ends(tmp_path / "run/events.jsonl")
    done = run("report", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Not finished" in (tmp_path / "run/report.html").read_text()

    done = run("compare", "--resume", "run", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert _ends(tmp_path / "run/events.jsonl") == 2 + 2 * 12  # each run once, finished ones not again
    assert json.loads((tmp_path / "run/result.json").read_text())["complete"] is True


def _ends(events: Path) -> int:
    return sum('"end"' in line for line in events.read_text().splitlines()) if events.exists() else 0


def _wait_for(events: Path, ends: int) -> None:
    begun = time.monotonic()
    while _ends(events) < ends:
        assert time.monotonic() - begun < 60
        time.sleep(0.02)


def test_lists_say_the_facts(capsys):
    assert cli.main(["list"]) == 0
    told = words(capsys.readouterr().out)
    for fact in ("joint-prototypes", "fashion-mnist", "SupConLoss", "small-cnn"):
        assert fact in told
    assert cli.main(["list", "--what", "arms"]) == 0
    assert "SupConLoss" not in capsys.readouterr().out
