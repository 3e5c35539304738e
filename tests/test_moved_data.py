"""A run knows its own data by where they lay and by what they hold, from whatever folder it is looked at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import nearfar as nf
from nearfar.cli import main
from nearfar.data import place
from nearfar.data.place import contents_of, whole_path


def table(path: Path, rows: int = 60, shift: float = 0.0) -> Path:
    """Rows of two numbers in three classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{i % 3 + shift},{i % 7},{'abc'[i % 3]}" for i in range(rows)]
    path.write_text("\n".join(["x,y,label", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """``one/run``, trained on ``one/d.csv`` by its name alone; another ``two/d.csv`` of as many rows."""
    root = tmp_path_factory.mktemp("moved")
    table(root / "one/d.csv")
    table(root / "two/d.csv", shift=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "one")
        nf.train(data="d.csv", out="run", steps=2, model="mlp", batch_size=8, show=False)
    return root


@pytest.fixture
def root(begun, tmp_path, monkeypatch):
    """A copy of them, whose run knows where its data lie."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "one/run/environment.json"
    file.write_text(file.read_text().replace(str(begun), str(tmp_path)))
    monkeypatch.chdir(tmp_path / "two")
    return tmp_path


def figures(run: Path) -> dict:
    return {path.name: json.loads(path.read_text()) for path in sorted(run.glob("evaluation*.json"))}


def test_another_file_of_the_same_name_is_other_data(root):
    run = root / "one/run"
    assert main(["evaluate", "../one/run"]) == 0  # its own, and not what is called so here
    own = (run / "evaluation.json").read_bytes()
    assert main(["evaluate", "../one/run", "--data", "d.csv"]) == 0
    assert (run / "evaluation.json").read_bytes() == own
    found = figures(run)
    assert found["evaluation-d.json"]["source"] == str(root / "two/d.csv")
    contents = {name: told["protocol"]["contents of the data"] for name, told in found.items()}
    assert contents == {
        "evaluation.json": contents_of(str(root / "one/d.csv")),
        "evaluation-d.json": contents_of("d.csv"),
    }
    assert len({*contents.values()}) == 2


@pytest.mark.parametrize("name", ["../one/d.csv", "copy.csv", "link.csv"])
def test_the_same_data_in_another_place_are_its_own(name, root, capsys):
    shutil.copy(root / "one/d.csv", "copy.csv")
    Path("link.csv").symlink_to(root / "one/d.csv")
    assert main(["evaluate", "../one/run", "--data", name]) == 0
    assert [*figures(root / "one/run")] == ["evaluation.json"]
    assert "some" not in capsys.readouterr().err


def test_own_data_that_hold_something_else_now_are_told(root, capsys):
    table(root / "one/d.csv", shift=0.25)  # as many rows
    assert main(["evaluate", "../one/run"]) == 0
    assert "one/d.csv holds something else than when the run was trained" in capsys.readouterr().err
    assert main(["train", "--resume", "../one/run"]) == 2
    assert "holds something else than when ../one/run was begun: put it back" in capsys.readouterr().err


def test_own_data_that_are_gone_are_not_mistaken_for_others(root, capsys):
    (root / "one/d.csv").unlink()
    assert main(["evaluate", "../one/run"]) == 2
    said = capsys.readouterr().err
    assert f"it was {root / 'one/d.csv'}, and d.csv here holds others; name the data (--data)" in said
    shutil.copy(root / "two/d.csv", root / "kept.csv")
    table(root / "two/d.csv")  # what the run was trained on, moved here under its name
    assert main(["evaluate", "../one/run"]) == 0


@pytest.mark.parametrize("name", ["./d.csv", "here/e.csv", None])
def test_a_run_goes_on_with_data_that_were_moved(name, root, monkeypatch, capsys):
    monkeypatch.chdir(root / "one")
    if name == "here/e.csv":
        Path("here").mkdir()
        Path("d.csv").rename(name)
    shutil.rmtree("run/checkpoints")
    assert main(["train", "--resume", "run", "--data", name or str(Path("d.csv").resolve())]) == 0
    assert main(["evaluate", "run"]) == 0  # it knows now where they are
    assert [*figures(Path("run"))] == ["evaluation.json"]
    assert main(["train", "--resume", "run", "--data", "../two/d.csv"]) == 2
    assert "data was d.csv when run was begun and is ../two/d.csv now" in capsys.readouterr().err


def test_runs_of_an_earlier_version_go_by_the_path(root, monkeypatch):
    file = root / "one/run/environment.json"
    facts = json.loads(file.read_text())
    del facts["source"]
    file.write_text(json.dumps(facts))
    monkeypatch.chdir(root / "one")
    assert main(["evaluate", "run", "--data", "../one/d.csv"]) == 0
    assert main(["train", "--resume", "run", "--data", "./d.csv"]) == 0
    assert [*figures(Path("run"))] == ["evaluation.json"]


class TestContents:
    def test_of_folders_names_and_bytes_count_and_what_is_hidden_does_not(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder / "x").mkdir(parents=True)
            Image.new("L", (2, 2), 7).save(tmp_path / folder / "x/0.png")
        (tmp_path / "b/Thumbs.db").write_bytes(b"x")
        (tmp_path / "b/run.txt").write_text("no picture")
        a, b = str(tmp_path / "a"), str(tmp_path / "b")
        assert contents_of(a) == contents_of(b)
        (tmp_path / "b/x/0.png").rename(tmp_path / "b/x/1.png")
        assert contents_of(a) != contents_of(b)
        (tmp_path / "b/x/1.png").rename(tmp_path / "b/x/0.png")
        Image.new("L", (2, 2), 8).save(tmp_path / "b/x/0.png")
        assert contents_of(a) != contents_of(b)

    def test_of_large_files_and_many(self, tmp_path, monkeypatch):
        monkeypatch.setattr(place, "BLOCK", 4)
        monkeypatch.setattr(place, "WHOLE", 3)
        monkeypatch.setattr(place, "MOST_FILES", 2)
        for name, held in (("a.csv", "0123456789abcdefghij"), ("b.csv", "0123456789abcdefghiJ")):
            (tmp_path / name).write_text(held)
        assert contents_of(str(tmp_path / "a.csv")) != contents_of(str(tmp_path / "b.csv"))
        several = contents_of(str(tmp_path))
        (tmp_path / "c.csv").write_text("x")
        assert contents_of(str(tmp_path)) != several

    def test_of_shards_and_of_what_is_not_here(self, tmp_path):
        assert (contents_of("owner/name"), contents_of("digits"), contents_of(str(tmp_path / "no.csv"))) == (None,) * 3
        (tmp_path / "s-0.tar").write_bytes(b"0")
        pattern = str(tmp_path / "s-{0..0}.tar")
        assert contents_of(pattern) is not None
        assert whole_path(pattern) == pattern


def test_a_run_goes_on_in_its_own_folder(root, monkeypatch, capsys):
    monkeypatch.chdir(root / "one")
    assert main(["train", "--resume", "run", "--out", "r2"]) == 2
    assert "out is 'r2', and a run goes on in its own folder, run: leave it out" in capsys.readouterr().err
    assert not Path("r2").exists()
    assert main(["train", "--resume", "run", "--out", "./run"]) == 0
