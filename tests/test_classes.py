"""Classes as people give them: names in one spelling, missing ones, a single row; wherever labels are read."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import little_runs
import nearfar as nf
from nearfar.cli import main
from nearfar.compare.config import CompareConfig
from nearfar.compare.inputs import make_task
from nearfar.data.config import DataConfig
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from nearfar.index.gallery import enroll, read_gallery
from nearfar.index.run import open_run
from tables import classes_of, json_lines, picture, table, write

APART = "Jose\u0301"
"""The accent is a character of its own."""
WHOLE = "José"
SPELLINGS = (APART, WHOLE, "b")


class TestSpelling:
    def test_rows_of_tables(self, tmp_path):
        wanted = {f"t{i}": WHOLE if i % 3 < 2 else "b" for i in range(18)}
        rows = [f"t{i},{SPELLINGS[i % 3]}{' ' * (i % 2)}" for i in range(18)]
        path = table(tmp_path / "t.csv", "text,label", *rows)
        lines = json_lines(tmp_path / "t.jsonl", [{"text": f"t{i}", "label": SPELLINGS[i % 3]} for i in range(18)])
        pd.DataFrame({"text": list(wanted), "label": [*SPELLINGS] * 6}).to_parquet(tmp_path / "t.parquet")
        for data in (path, lines, str(tmp_path / "t.parquet")):
            corpus = open_corpus(DataConfig(data))
            assert corpus.class_names == (WHOLE, "b")
            assert classes_of(corpus) == wanted
        stream = open_corpus(DataConfig(path, streaming=True))
        [batch] = Loader(stream.train, 18, seed=0).batches(stop=1)
        assert batch.labels.bincount().tolist() == [12, 6]

    def test_ids(self, tmp_path):
        path = table(tmp_path / "t.csv", "text,id", *(f"t{i},{SPELLINGS[i % 3]}" for i in range(18)))
        corpus = open_corpus(DataConfig(path))
        assert len(torch.cat([corpus.train.groups, corpus.test.groups]).unique()) == 2
        [batch] = Loader(open_corpus(DataConfig(path, streaming=True)).train, 18, seed=0).batches(stop=1)
        assert len(batch.groups.unique()) == 2

    def test_folders_and_tables_of_a_comparison(self, tmp_path):
        for name in SPELLINGS:
            for i in range(3):
                picture(tmp_path / "photos" / name / f"{i}.png", i)
        for read in (lambda p: load_data(p).class_names, lambda p: open_corpus(DataConfig(p)).class_names):
            assert read(str(tmp_path / "photos")) == (WHOLE, "b")
        for shade, (part, name) in enumerate((("train", APART), ("test", WHOLE), ("train", "b"), ("test", "b"))):
            picture(tmp_path / "parted" / part / name / "0.png", 2 * shade)
            picture(tmp_path / "parted" / part / name / "1.png", 2 * shade + 1)
        data = load_data(tmp_path / "parted")
        assert (data.class_names, data.test_labels.tolist()) == ((WHOLE, "b"), [0, 0, 1, 1])
        path = table(tmp_path / "t.csv", "x,label", *(f"{i},{SPELLINGS[i % 3]}" for i in range(12)))
        assert load_data(path).class_names == (WHOLE, "b")

    def test_arrays(self):
        z = torch.eye(2)[torch.tensor([0, 1] * 6)]
        labels, train = [WHOLE, "b"] * 6, (z, [APART, "b"] * 6)
        assert nf.evaluate(z, labels, train=train, tasks=("knn",), k=3)["accuracy"] == 1.0
        assert nf.evaluate(z, np.array(labels), gallery=train, tasks=("retrieval",), ks=(1,))["recall@1"] == 1.0
        encoder = nf.ContrastiveEncoder(dim=4, hidden=8, epochs=1).fit(z.numpy(), [*SPELLINGS, "b"] * 3)
        assert encoder.classes_.tolist() == [WHOLE, "b"]

    def test_identities(self, tmp_path):
        run = open_run(little_runs.identity_run(tmp_path))
        for i, name in enumerate(SPELLINGS):
            picture(tmp_path / "known" / name / f"{i}.png", 80 * i)
        from nearfar.index.flat import ParquetStore
        from nearfar.index.gallery import _meta

        store = ParquetStore(tmp_path / "gallery.parquet")
        store.create(_meta(run, tmp_path / "known"))
        store.add(enroll(run, tmp_path / "known"))
        store.finish()
        gallery = read_gallery(tmp_path / "gallery.parquet", run)
        assert gallery.names == (WHOLE, "b")
        assert sorted(np.bincount(gallery.owner).tolist()) == [1, 2]


MISSING = {
    "Int64": lambda: pd.Series([4, 9, pd.NA] * 8, dtype="Int64"),
    "objects": lambda: pd.Series([4, 9, pd.NA] * 8, dtype=object),
    "floats": lambda: pd.Series([4, 9, None] * 8),
    "float array": lambda: np.array([4, 9, np.nan] * 8),
    "list": lambda: [4, 9, None] * 8,
    "list with pandas.NA": lambda: [4, 9, pd.NA] * 8,
    "list with NaN": lambda: [4, 9, float("nan")] * 8,
    "masked array": lambda: np.ma.masked_array([4, 9, 7] * 8, [False, False, True] * 8),
    "names": lambda: ["a", "b", None] * 8,
    "names with NaN": lambda: ["a", "b", float("nan")] * 8,
    "names with pandas.NA": lambda: pd.Series(["a", "b", pd.NA] * 8, dtype="string"),
    "empty names": lambda: ["a", "b", " "] * 8,
    "categories": lambda: pd.Series(["a", "b", None] * 8, dtype="category"),
    "array of names": lambda: np.array(["a", "b", None] * 8, dtype=object),
}
"""Two classes, of 4 and 9 or a and b, and every third row unknown."""


@pytest.mark.parametrize("kind", MISSING)
class TestMissing:
    ids = torch.tensor([0, 1, -1] * 8)
    z = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))

    def test_evaluate(self, kind):
        tasks = ("knn", "retrieval", "verification")
        wanted = nf.evaluate(self.z, self.ids, tasks=tasks).to_dict()
        assert nf.evaluate(self.z, MISSING[kind](), tasks=tasks).to_dict() == wanted
        assert "8 rows without a label were left out" in wanted["notes"]
        wanted = nf.evaluate(self.z, self.ids, train=(self.z, self.ids), tasks=("knn", "probe")).to_dict()
        found = nf.evaluate(self.z, MISSING[kind](), train=(self.z, MISSING[kind]()), tasks=("knn", "probe")).to_dict()
        assert found == wanted

    def test_estimator(self, kind):
        options = {"dim": 4, "hidden": 8, "epochs": 1, "batch_size": 24, "random_state": 0, "lr": 1e-30}
        encoder = nf.ContrastiveEncoder(**options).fit(self.z.numpy(), MISSING[kind]())
        assert [str(name) for name in encoder.classes_] in (["4", "9"], ["a", "b"])
        wanted = nf.ContrastiveEncoder(**options).fit(self.z.numpy(), self.ids.numpy())
        assert encoder.loss_curve_ == wanted.loss_curve_


IDS = [kind for kind in MISSING if "name" not in kind and kind != "categories"]


@pytest.mark.parametrize("kind", MISSING)
def test_a_comparison_leaves_rows_without_a_label_out(kind):
    task = make_task((torch.randn(24, 4), MISSING[kind]()), CompareConfig())
    assert len(task.train) + len(task.validation) + len(task.test) == 16
    assert task.bad == tuple(f"row {row} has no label" for row in range(2, 24, 3))


@pytest.mark.parametrize("kind", IDS)
def test_a_sampler_leaves_rows_without_a_label_out(kind):
    sampler = nf.PKSampler(MISSING[kind](), p=2, k=2, seed=0)
    assert sorted({row for batch in sampler for row in batch}) == [i for i in range(24) if i % 3 < 2]


class TestMissingInTables:
    def test_parquet_of_a_data_frame(self, tmp_path):
        frame = pd.DataFrame(
            {"text": [f"t{i}" for i in range(18)], "label": pd.array([1, 10, pd.NA] * 6, dtype="Int64")}
        )
        wanted = {f"t{i}": ("1", "10", "")[i % 3] for i in range(18)}
        for labels in (frame.label, frame.label.astype("Float64"), frame.label.astype("string")):
            frame.assign(label=labels).to_parquet(path := str(tmp_path / "t.parquet"))
            assert classes_of(open_corpus(DataConfig(path, label="label"))) == wanted
        run = nf.train(data=path, steps=1, batch_size=8, threads=1, show=False, out=str(tmp_path / "run"))
        assert run.config.method == "supcon"

    @pytest.mark.parametrize("word", ["NA", "", "nan", "None", "?"])
    def test_words_among_numbers(self, tmp_path, word):
        path = table(tmp_path / "t.csv", "text,label", *(f"t{i},{['1', '2', word][i % 3]}" for i in range(18)))
        assert classes_of(open_corpus(DataConfig(path))) == {f"t{i}": ["1", "2", ""][i % 3] for i in range(18)}
        path = table(tmp_path / "n.csv", "x,label", *(f"{i},{['1', '2', word][i % 3]}" for i in range(18)))
        with pytest.raises(ValueError, match=r"n\.csv:4: has no label in column 'label'; .*6 bad rows in all"):
            load_data(path)
        assert load_data(path, skip_bad=True).class_names == ("1", "2")

    def test_among_names_they_may_be_names(self, tmp_path):
        path = table(
            tmp_path / "t.csv", "text,label", *(f"t{i},{['mild', 'severe', 'None'][i % 3]}" for i in range(18))
        )
        corpus = open_corpus(DataConfig(path))
        assert corpus.class_names == ("None", "mild", "severe")
        assert any("6 row(s) are of a class called 'None'" in note for note in corpus.notes)


class TestSingleRow:
    @pytest.mark.parametrize(("each", "further"), [(2, "z"), (2, "zy"), (3, "zyx"), (10, "z")])
    def test_it_turns_no_labels_off(self, tmp_path, each, further):
        rows = [f"t{i},{'abc'[i % 3]}" for i in range(3 * each)] + [f"other {name},{name}" for name in further]
        corpus = open_corpus(DataConfig(table(tmp_path / "t.csv", "text,label", *rows), hold_out="rows"))
        assert corpus.class_names == tuple(sorted("abc" + further))
        tested = {corpus.class_names[label] for label in corpus.test.labels.tolist()}
        assert tested == {*"abc"}  # it stays to train on
        assert f"{len(further)} class" in corpus.notes[0]
        assert "'z'" in corpus.notes[0]
        rows = [f"{i},{'abc'[i % 3]}" for i in range(3 * each)] + [f"99,{name}" for name in further]
        data = load_data(table(tmp_path / "n.csv", "x,label", *rows))
        assert data.class_names == tuple(sorted("abc" + further))
        assert {*data.test_labels.tolist()} == {0, 1, 2}
        assert "'z'" in data.notes[0]

    def test_trained_and_evaluated(self, tmp_path, capsys):
        rows = [f"w{i} v,{'ab'[i % 2]}" for i in range(20)] + ["alone,z"]
        path = table(tmp_path / "t.csv", "text,label", *rows)
        run = nf.train(data=path, steps=2, batch_size=8, threads=1, out=str(tmp_path / "run"))
        assert (run.config.method, "knn" in run.metrics) == ("supcon", True)
        assert "note: 1 class has a single row ('z')" in capsys.readouterr().err
        z = torch.randn(21, 4, generator=torch.Generator().manual_seed(0))
        found = nf.evaluate(z, [row.split(",")[1] for row in rows], train=(z, [row.split(",")[1] for row in rows]))
        assert {"knn", "probe", "retrieval", "verification"} <= {measure.task for measure in found.measures}

    def test_rows_that_have_a_value_each_are_no_classes(self, tmp_path):
        rows = [f"t{i},{'ab'[i] if i < 2 else 'ab'[i - 2] if i < 4 else f'c{i}'}" for i in range(12)]
        corpus = open_corpus(DataConfig(table(tmp_path / "t.csv", "text,label", *rows)))
        assert corpus.class_names == ()
        assert any("does not name classes (10 values in 12 rows)" in note for note in corpus.notes)

    def test_one_fraction_is_no_measurement(self, tmp_path):
        rows = [f"t{i},{i % 3}" for i in range(12)] + ["x,2.5"]
        assert open_corpus(DataConfig(table(tmp_path / "t.csv", "text,label", *rows))).class_names == (
            "0",
            "1",
            "2",
            "2.5",
        )


NAMES = [("cat", "dög")[i % 2] for i in range(40)]
TEXT = "\n".join(NAMES)


class TestFiles:
    """``--labels``: kNN is right for every row, however the file of classes was written."""

    @pytest.fixture
    def accuracy(self, tmp_path, capsys):
        z = torch.eye(2)[torch.arange(40) % 2] + 0.01 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        np.save(tmp_path / "z.npy", z.numpy())
        save_file({"vectors": z}, tmp_path / "z.safetensors")

        def measure(labels: str | Path, vectors: str = "z.npy") -> float | str:
            out = tmp_path / "figures.json"
            asked = [
                "--embeddings",
                str(tmp_path / vectors),
                "--labels",
                str(labels),
                "--tasks",
                "knn",
                "--out",
                str(out),
            ]
            if main(["evaluate", *asked]):
                return capsys.readouterr().err
            return json.loads(out.read_text(encoding="utf-8"))["measures"][0]["value"]

        return measure

    @pytest.mark.parametrize(
        "content",
        [
            TEXT,
            TEXT + "\n\n\n",
            TEXT + "\n  \n",
            "\ufeff" + TEXT,
            TEXT.replace("\n", "\r\n") + "\r\n",
            TEXT.replace("\n", "\r"),
            "\ufeff" + TEXT.replace("\n", "\r\n"),
            TEXT.replace("cat", "cat  "),
            "\n".join(f"{name}{' ' * i}" for i, name in enumerate(NAMES)),
            TEXT.replace("dög", "\tdög\u00a0"),
            "\n".join(unicodedata.normalize("NFD" if i % 3 else "NFC", name) for i, name in enumerate(NAMES)),
            TEXT.encode("utf-16"),
        ],
        ids=[
            "plain",
            "empty lines",
            "blank lines",
            "mark",
            "CRLF",
            "CR",
            "mark and CRLF",
            "blanks",
            "all blanks",
            "tabs",
            "accents",
            "utf-16",
        ],
    )
    def test_text(self, tmp_path, accuracy, content):
        assert accuracy(write(tmp_path / "l.txt", content)) == 1.0

    def test_numbers_and_unknown_ones(self, tmp_path, accuracy):
        ids = [str(i % 2) for i in range(40)]
        for unknown in ("NA", "-1", "", "nan"):
            assert accuracy(write(tmp_path / "l.txt", "\n".join(["0", unknown, *ids[2:]]))) == 1.0
        np.save(tmp_path / "l.npy", np.array([0, np.nan, *map(float, ids[2:])]))
        assert accuracy(tmp_path / "l.npy") == 1.0
        assert accuracy(write(tmp_path / "l.txt", "\n".join(ids)), "z.safetensors") == 1.0

    def test_what_is_not_one_a_row(self, tmp_path, accuracy):
        assert "holds 41 classes for 40 rows (the first is 'label'): one a row" in accuracy(
            write(tmp_path / "l.txt", "label\n" + TEXT)
        )
        assert "l.txt:2: is not UTF-8: byte 5 of the file is 0xf6" in accuracy(
            write(tmp_path / "l.txt", TEXT, "latin-1")
        )
        assert "there is no such file" in accuracy(tmp_path / "none.txt")
