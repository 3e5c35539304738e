"""``nearfar evaluate``: runs of each kind, and files of embeddings whoever wrote them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import little_runs
import nearfar as nf
from nearfar.cli import main
from nearfar.evaluation.config import EvaluateConfig
from nearfar.evaluation.evaluation import Evaluation
from nearfar.index.config import EmbedConfig
from nearfar.index.embed import run as embed
from nearfar.index.vectors import read_vectors


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    return little_runs.captioned_run(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    return little_runs.identity_run(tmp_path_factory.mktemp("people"))


def written(path: Path) -> Evaluation:
    return Evaluation.from_dict(json.loads(path.read_text(encoding="utf-8")))


def test_pairs_classes_and_zero_shot(captioned, capsys):
    assert main(["evaluate", str(captioned)]) == 0
    said = capsys.readouterr().out
    found = written(captioned / "evaluation.json")
    tasks = {m.task for m in found.measures}
    assert {"knn", "probe", "zero-shot", "first→second", "second→first"} <= tasks
    assert all(task in said for task in tasks)
    assert found["zero-shot/top-1"] > 0.5
    told = json.loads((captioned / "evaluation.json").read_text())
    assert told["part"] == "test"
    assert told["inputs"] == ["image", "caption"]
    assert set(told["geometry"]) == {"alignment", "uniformity", "effective_rank", "feature_std", "mean_cosine"}


def test_held_out_identities(people, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(people), "--out", str(out)]) == 0
    found = written(out)
    assert found["verification/auc"] > 0.8
    assert {m.task for m in found.measures} >= {"knn", "verification", "retrieval"}
    assert "probe/accuracy" not in found  # nobody of the held-out was trained on
    assert not (people / "evaluation.json").exists()
    assert "chosen at equal errors on" in capsys.readouterr().out


def test_it_measures_the_held_out_rows(people, tmp_path):
    """The same figures by hand: embed what was held out, and call nf.evaluate."""
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(people), "--out", str(out), "--tasks", "knn"]) == 0
    config = EmbedConfig(
        run=str(people), data=str(people.parent / "people"), out=str(tmp_path / "z.parquet"), split="test"
    )
    assert embed(config) == 0
    z, labels = read_vectors(tmp_path / "z.parquet", None, {})
    assert labels is not None
    assert written(out)["accuracy"] == nf.evaluate(z, labels, tasks=("knn",))["accuracy"]


class TestFiles:
    z = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(6)[torch.arange(40) % 4]
    y = torch.arange(40) % 4

    def accuracy(self, capsys, tmp_path: Path, *arguments: str) -> float:
        out = tmp_path / "figures.json"
        assert main(["evaluate", "--embeddings", *arguments, "--tasks", "knn", "--out", str(out)]) == 0, (
            capsys.readouterr().err
        )
        return written(out)["accuracy"]

    @property
    def wanted(self) -> float:
        return nf.evaluate(self.z, self.y, tasks=("knn",))["accuracy"]

    def test_numpy_with_classes_beside_it(self, tmp_path, capsys):
        np.save(tmp_path / "z.npy", self.z.numpy())
        np.save(tmp_path / "y.npy", self.y.numpy())
        (tmp_path / "y.txt").write_text("\n".join("abcd"[c] for c in self.y), encoding="utf-8")
        for labels in ("y.npy", "y.txt"):
            found = self.accuracy(capsys, tmp_path, str(tmp_path / "z.npy"), "--labels", str(tmp_path / labels))
            assert found == self.wanted

    def test_safetensors(self, tmp_path, capsys):
        save_file({"vectors": self.z, "labels": self.y}, tmp_path / "z.safetensors")
        assert self.accuracy(capsys, tmp_path, str(tmp_path / "z.safetensors")) == self.wanted

    def test_parquet_of_anybody(self, tmp_path, capsys):
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        table = pa.table({"emb": self.z.double().tolist(), "kind": ["abcd"[c] for c in self.y], "n": list(range(40))})
        pyarrow.parquet.write_table(table, tmp_path / "z.parquet")
        assert self.accuracy(capsys, tmp_path, str(tmp_path / "z.parquet"), "--labels", "kind") == self.wanted
        assert main(["evaluate", "--embeddings", str(tmp_path / "z.parquet"), "--labels", "knid"]) == 2
        assert "did you mean 'kind'" in capsys.readouterr().err

    def test_train_and_pairs(self, tmp_path, capsys):
        save_file({"vectors": self.z, "labels": self.y}, tmp_path / "z.safetensors")
        out = tmp_path / "o.json"
        path = str(tmp_path / "z.safetensors")
        assert main(["evaluate", "--embeddings", path, "--train", path, "--pairs", path, "--out", str(out)]) == 0
        assert written(out)["first→second/recall@1"] == 1.0
        assert written(out)["probe/accuracy"] > 0.9

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("z.csv", b"1,2", "no file of embeddings"),
            ("z.npy", b"nonsense", "no array of numbers"),
            ("z.safetensors", b"nonsense", "no safetensors file"),
            ("z.parquet", b"nonsense", "no Parquet file"),
        ],
    )
    def test_other_files(self, tmp_path, capsys, name, content, says):
        (tmp_path / name).write_bytes(content)
        assert main(["evaluate", "--embeddings", str(tmp_path / name)]) == 2
        assert says in capsys.readouterr().err

    def test_pickles_are_not_opened(self, tmp_path, capsys):
        np.save(tmp_path / "z.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        assert main(["evaluate", "--embeddings", str(tmp_path / "z.npy")]) == 2
        assert "no array of numbers" in capsys.readouterr().err

    def test_no_classes(self, tmp_path, capsys):
        np.save(tmp_path / "z.npy", self.z.numpy())
        assert main(["evaluate", "--embeddings", str(tmp_path / "z.npy")]) == 2
        assert "pass --labels, or --pairs" in capsys.readouterr().err
        (tmp_path / "y.txt").write_text("a\nb")
        assert main(["evaluate", "--embeddings", str(tmp_path / "z.npy"), "--labels", str(tmp_path / "y.txt")]) == 2
        assert "2 classes for 40 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "pass a run, or --embeddings"),
        ({"run": "a", "embeddings": "b"}, "one of the two"),
        ({"run": "a", "labels": "b"}, "goes with --embeddings"),
        ({"run": "a", "rows": 1}, "two at least"),
        ({"run": "a", "templates": ("photo",)}, "where the class goes"),
    ],
)
def test_what_cannot_be_meant(options, says):
    with pytest.raises(ValueError, match=says):
        EvaluateConfig(**options)


def test_its_help_loads_no_torch():
    code = (
        "from nearfar.cli import main\ntry: main(['evaluate', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    source = str(Path(nf.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "held-out rows" in done.stdout


def test_broken_images_are_named_and_left_out_if_asked(people, tmp_path, capsys):
    """One that is held out, and one that the probe would learn from."""
    data = tmp_path / "faces"
    for who in ("train/a", "train/b", "test/a", "test/b"):
        (data / who).mkdir(parents=True)
        for n in range(4):
            little_runs.picture((40 + 60 * n, 90, 200 if who.endswith("a") else 20), n + 9 * (who[1] == "e")).save(
                data / who / f"{n}.png"
            )
    torn = [data / "train/a/1.png", data / "test/b/2.png"]
    for path in torn:
        path.write_bytes(path.read_bytes()[:60])
    asked = ["evaluate", str(people), "--data", str(data), "--out", str(tmp_path / "found.json")]
    assert main(asked) == 2
    assert "leave such rows out with skip_bad=True (--skip-bad)" in capsys.readouterr().err
    assert main([*asked, "--skip-bad"]) == 0
    said = capsys.readouterr().err
    told = json.loads((tmp_path / "found.json").read_text())
    assert said.count("left out: ") == len(told["left_out"]) == 2
    assert all(any(str(path) in line for line in told["left_out"]) for path in torn)
    assert (written(tmp_path / "found.json").rows, told["part"]) == (7, "test")


@pytest.mark.parametrize("command", ["evaluate", "embed", "index", "enroll", "views", "train", "compare"])
def test_what_reads_data_has_the_option_that_its_errors_name(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--skip-bad" in capsys.readouterr().out
