"""Embeddings that were interrupted: nothing that looks whole, and nothing done twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="needs datasets")

import pyarrow.parquet as pq

from little_runs import captioned_run
from nearfar import cli
from nearfar.index import resumed
from nearfar.index.flat import ParquetStore
from nearfar.index.run import Run

SOURCE = str(Path(__file__).parent.parent / "src")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The run, and its data beside it."""
    return captioned_run(tmp_path_factory.mktemp("captioned"))


def told(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_kill_leaves_no_file_that_looks_whole(made, tmp_path):
    """An embedding of many digits, killed half-way; the next one starts cleanly."""
    out = tmp_path / "out.parquet"
    command = [
        sys.executable, "-m", "nearfar", "embed", str(made), "digits", "-o", str(out), "--batch-size", "2",
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"})
    begun = time.monotonic()
    while not list(tmp_path.iterdir()):
        assert time.monotonic() - begun < 60
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not out.exists()
    assert cli.main(["embed", str(made), "digits", "-o", str(out)]) == 0
    assert pq.read_table(out).num_rows == 1797


@pytest.mark.parametrize("suffix", ["parquet", "npy"])
@pytest.mark.parametrize("options", [[], ["--column", "image"], ["--skip-bad"]])
def test_a_crash_costs_no_more_than_a_part(suffix, options, made, tmp_path, capsys, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(made.parent / "data", data)
    if options == ["--skip-bad"]:
        sorted((data / "bilder").iterdir())[3].write_bytes(b"no image")
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    arguments = ["embed", str(made), str(data / "captions.csv"), *options, "--batch-size", "5"]
    code, said, left_out = told(capsys, *arguments, "-o", str(whole))
    assert code == 0
    embedded, embed = [], Run.embed

    def until(last: int):
        def counted(self, kind, raw):
            if len(embedded) == last:
                raise KeyboardInterrupt
            embedded.append(len(raw))
            return embed(self, kind, raw)

        return counted

    monkeypatch.setattr(resumed, "ROWS", 15)
    monkeypatch.setattr(Run, "embed", until(7))
    assert told(capsys, *arguments, "-o", str(out))[0] == 130
    assert not out.exists()
    kept = sum(pq.read_metadata(part).num_rows for part in (tmp_path / f".{out.name}.parts").iterdir())
    assert 15 <= kept <= sum(embedded) < int(said.split()[0])
    embedded.clear()
    monkeypatch.setattr(Run, "embed", until(-1))
    code, resumed_said, err = told(capsys, *arguments, "-o", str(out))
    assert code == 0
    assert resumed_said == said.replace("whole", "out")
    assert err == f"{kept} rows are there already\n{left_out}"
    assert sum(embedded) == int(said.split()[0]) - kept
    if suffix == "npy":
        assert out.read_bytes() == whole.read_bytes()
    else:
        assert pq.read_table(out).equals(pq.read_table(whole), check_metadata=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", out.name, whole.name]


@pytest.mark.parametrize("change", ["batch", "rows", "texts", "damage", "gap"])
def test_what_another_job_left_is_not_taken(change, made, tmp_path, capsys, monkeypatch):
    def full(self, approximate=None):
        raise OSError("the disk is full")

    data, out = tmp_path / "data", tmp_path / "out.parquet"
    shutil.copytree(made.parent / "data", data)
    arguments = ["embed", str(made), str(data / "captions.csv"), "-o", str(out), "--batch-size"]
    monkeypatch.setattr(resumed, "ROWS", 15)
    with monkeypatch.context() as patch:
        patch.setattr(ParquetStore, "finish", full)
        assert told(capsys, *arguments, "5")[0] == 2
    parts = sorted((tmp_path / ".out.parquet.parts").iterdir())
    assert parts
    if change == "rows":
        table = (data / "captions.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (data / "captions.csv").write_text("".join(table[:-1]), encoding="utf-8")
    if change == "texts":  # of rows that are named as before
        texts = (data / "captions.csv").read_text(encoding="utf-8")
        assert "something" in texts
        (data / "captions.csv").write_text(texts.replace("something", "anything"), encoding="utf-8")
    if change == "gap":
        parts[0].unlink()
    if change == "damage":
        parts[0].write_bytes(parts[0].read_bytes()[:100])
    code, said, err = told(capsys, *arguments, "6" if change == "batch" else "5")
    assert code == 0
    assert "already" not in err
    assert said.startswith("70 rows" if change == "rows" else "72 rows")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.parquet"]
