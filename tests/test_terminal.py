"""No terminal costs a result: signs that it lacks, and readers that go before the end."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nearfar
from nearfar import cli
from nearfar.terminal import steady

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(nearfar.__file__).parents[1]), "COLUMNS": "100"}


@pytest.fixture
def pairs(tmp_path) -> list[str]:
    """A command whose table has arrows in it, and the file it is to write."""
    z = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "z.npy", z)
    files = str(tmp_path / "z.npy")
    return ["evaluate", "--embeddings", files, "--pairs", files, "--out", str(tmp_path / "figures.json")]


def shown(monkeypatch, encoding: str, arguments: list[str]) -> tuple[int, str, str]:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams):
        monkeypatch.setattr(sys, name, stream)
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    monkeypatch.undo()
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
def test_a_table_with_arrows(encoding, pairs, monkeypatch):
    code, out, err = shown(monkeypatch, encoding, pairs)
    assert (code, err) == (0, "")
    assert "first->second  recall@1" in out
    assert json.loads(Path(pairs[-1]).read_text())["rows"] == 12
    assert out.splitlines()[-1] == pairs[-1]


@pytest.mark.parametrize(
    "arguments", [["list"], ["--help"], ["compare", "--help"], ["evaluate", "--embeddings", "→ λ.npy"]]
)
def test_lists_help_and_mistakes(arguments, monkeypatch):
    code, out, err = shown(monkeypatch, "ascii", arguments)
    assert code == (2 if "→ λ.npy" in arguments else 0)
    assert len(out + err) > 20
    assert "Traceback" not in err
    assert code == 0 or r"there is no file -> \u03bb.npy" in err


def test_names_that_are_no_text(tmp_path, monkeypatch):
    code, _, err = shown(monkeypatch, "utf-8", ["evaluate", "--embeddings", "a\udcff.npy"])
    assert code == 2
    assert r"there is no file a\udcff.npy" in err


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone(stream, pairs, monkeypatch):
    """The rest of the work is done, and written."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, stream, closed)
        assert cli.main(pairs) == 0
        monkeypatch.undo()
    assert json.loads(Path(pairs[-1]).read_text())["rows"] == 12


@pytest.mark.parametrize("command", [
    "list | head -n 1", "list losses | true", "evaluate --embeddings {z} --pairs {z} --out {out} | head -n 1",
])  # fmt: skip
def test_the_head_of_a_pipe(command, pairs):
    """In a shell: nothing on stderr, and exit code 0."""
    full = command.format(z=shlex.quote(pairs[2]), out=shlex.quote(pairs[-1]))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{shlex.quote(sys.executable)} -m nearfar {full}"],
        capture_output=True, text=True, timeout=120, env=ENVIRONMENT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "evaluate" not in command or json.loads(Path(pairs[-1]).read_text())["rows"] == 12


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_stops_no_study(stream, tmp_path, monkeypatch, capsys):
    """It goes on and writes its files, and the exit code says that not all was printed."""
    options = "--arms task joint --rates 0.01 --budget 1 --sweep-seeds 1 --seeds 2 --steps 8 --workers 1".split()  # noqa: SIM905
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, stream, full)
        code = cli.main(["compare", "--data", "digits", *options, "--out", str(tmp_path / "c")])
        monkeypatch.undo()
    assert {"config.json", "events.jsonl", "result.json", "report.html"} <= {
        path.name for path in (tmp_path / "c").iterdir()
    }
    assert json.loads((tmp_path / "c/result.json").read_text())["complete"]
    if stream == "stdout":
        assert code == 2
        assert "not all could be printed (No space left on device)" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_and_figures(pairs):
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m nearfar {shlex.join(pairs)} > /dev/full"],
        capture_output=True, text=True, timeout=120, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert json.loads(Path(pairs[-1]).read_text())["rows"] == 12


def test_figures_are_written_before_they_are_printed(pairs, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the terminal is on fire")

    monkeypatch.setattr("builtins.print", fail)
    with pytest.raises(RuntimeError):
        cli.main(pairs)
    monkeypatch.undo()
    assert json.loads(Path(pairs[-1]).read_text())["rows"] == 12


def test_a_place_that_cannot_be_written_to(pairs, tmp_path, capsys):
    """The figures are shown all the same."""
    for place in (tmp_path / "nowhere" / "f.json", tmp_path / "z.npy" / "f.json"):
        assert cli.main([*pairs[:-1], str(place)]) == 2
        told = capsys.readouterr()
        assert "recall@1" in told.out
        assert str(place) in told.err


def test_streams_are_as_they_were(capsys):
    before = sys.stdout, sys.stderr
    with steady():
        print("near")
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "near\n"
