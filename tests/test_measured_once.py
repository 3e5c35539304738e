"""A content is measured once: copies of an image and rows that repeat do not answer each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import nearfar as nf
from nearfar.cli import main
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.data.same import different_rows
from nearfar.index.facts import run_facts
from nearfar.training.watched import watched_rows
from photos import noise


def pictures(root: Path, copies: int) -> str:
    """Noise in two classes, twelve pictures each to train on and to test on, saved several times in folders below the class."""
    for part in ("train", "test"):
        for c in range(2):
            for i in range(12):
                first = noise(root / part / "ab"[c] / "0" / f"{i}.png", 1000 * (part == "test") + 100 * c + i)
                for copy in range(1, copies):
                    (first.parent.parent / str(copy)).mkdir(exist_ok=True)
                    shutil.copy(first, first.parent.parent / str(copy) / first.name)
    return str(root)


def sentences(path: Path, copies: int) -> str:
    """Texts whose words say nothing of their class."""
    words = "alpha beta gamma delta eps zeta eta theta".split()  # noqa: SIM905
    texts = [f"{words[i % 8]} {words[i // 8 % 8]} {words[3 * i % 8]} {i % 5}" for i in range(40)]
    rows = [f"{text},{'ab'[i * 7 % 3 % 2]}" for i, text in enumerate(dict.fromkeys(texts))]
    spelled = [
        row if copy != 1 else row.upper().replace(",A", ",a").replace(",B", ",b")
        for row in rows
        for copy in range(copies)
    ]
    path.write_text("\n".join(["text,label", *spelled]) + "\n")
    return str(path)


@pytest.mark.parametrize(("make", "name"), [(pictures, "photos"), (sentences, "t.csv")])
def test_figures_are_those_without_the_copies(make, name, tmp_path, capsys):
    found, looks, pages = {}, {}, {}
    run = None
    for copies in (1, 3):
        root = tmp_path / str(copies)
        root.mkdir()
        data = make(root / name, copies)
        if run is None:
            run = nf.train(data=data, steps=1, out=str(root / "run"), show=False, eval_rows=500)
        out = root / "e.json"
        assert main(["evaluate", str(run.path), "--data", data, "--out", str(out)]) == 0
        found[copies] = json.loads(out.read_text())
        looks[copies] = nf.train(data=data, steps=1, out=str(root / "again"), show=False, eval_rows=500)
        pages[copies] = run_facts(looks[copies].path)
    told = next(note for note in found[3]["notes"] if "repeat" in note)
    assert told == f"{2 * found[1]['rows']} rows repeat another one, and are left out"
    assert found[3]["rows"] == found[1]["rows"] or name == "t.csv"  # of which other rows are drawn
    if name == "photos":
        same = ("measures", "geometry", "rows")
        assert {key: found[3][key] for key in same} == {key: found[1][key] for key in same}
        assert next(looks[3].events("look"))["metrics"] == next(looks[1].events("look"))["metrics"]
        assert len(pages[3]["gallery"]) == len(pages[1]["gallery"]) == 24
    assert any(
        "rows that are looked at repeat another one, and are left out" in line
        for line in looks[3].environment["decided"]
    )
    best = [max(near["score"] for near in query["neighbours"]) for query in pages[3]["gallery"]]
    assert max(best) < 1
    assert "rows repeat another one, and are left out" in pages[3]["evaluation"]["about"]


def test_the_rule_by_hand():
    x = torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    column = [Column("x", "vector")]
    assert different_rows(TensorPart({"x": x}), column, [0, 1, 2, 3]) == [0, 1]
    assert different_rows(TensorPart({"x": x}, torch.tensor([5, 5, 5, 6])), column, [1, 2, 3]) == [1, 2, 3]
    assert different_rows(TensorPart({"x": x}, groups=torch.tensor([0, 0, 1, 0])), column, [0, 1, 2, 3]) == [0, 1, 2]
    pair = [*column, Column("t", "text", "positive")]
    assert different_rows(TensorPart({"x": x, "t": ["a", "a", "a", "b"]}), pair, [0, 1, 2, 3]) == [0, 1, 3]
    assert different_rows(TensorPart({"x": x}), column, []) == []


def test_training_rows_that_repeat_vote_once():
    """Held-out rows alone of their class look among training rows, of which each stands there three times."""
    x = torch.arange(24.0).repeat_interleave(3)[:, None]
    train = TensorPart({"x": x}, torch.arange(12).repeat_interleave(6))
    test = TensorPart({"x": torch.arange(12.0)[:, None] + 0.5}, torch.arange(12))
    corpus = Corpus("made", (Column("x", "vector"),), train, test, tuple("abcdefghijkl"))
    watched = watched_rows(corpus, corpus.columns, 100, 0)
    assert watched is not None
    assert watched.gallery is not None
    assert (len(watched.gallery[1]), watched.voters) == (24, 2)


def test_of_rows_that_hardly_differ_the_spread_alone_is_measured():
    part = TensorPart({"x": torch.zeros(40, 3)}, torch.arange(40) % 4)
    watched = watched_rows(Corpus("made", (Column("x", "vector"),), part, part), (Column("x", "vector"),), 100, 0)
    assert watched is not None
    assert (len(watched.rows), watched.metrics) == (40, ())
    assert watched.notes == ("only 4 of 40 rows that are looked at differ: nothing but their spread is measured",)
