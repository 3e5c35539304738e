"""Data with few rows, few rows a class, or rows that are all alike: what is held out, what is measured, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import nearfar as nf
from nearfar.cli import main
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.data.open import open_corpus
from nearfar.data.splits import split_classes, usual_split
from nearfar.evaluation.knn import fitting_voters
from nearfar.index.run import open_run
from nearfar.training.looks import look
from nearfar.training.watched import watched_rows
from train_cases import images, texts


def folder(place: Path, sizes: list[int]) -> Path:
    """A class a folder, of pictures that are a pattern of the class with noise."""
    for who, size in enumerate(sizes):
        pattern = np.kron(np.random.default_rng(who).uniform(0, 255, (4, 4)), np.ones((3, 3)))
        (place / f"who {who:02d}").mkdir(parents=True)
        for n in range(size):
            noisy = pattern + np.random.default_rng(100 * who + n).normal(0, 70, (12, 12))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"who {who:02d}" / f"{n}.png")
    return place


def labels_of(sizes: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


FORTY = [2 + who % 4 for who in range(40)]


# ---- what is held out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "fraction", "wanted"),
    [
        (FORTY, None, "classes"),
        ([4] * 20, None, "classes"),
        ([4] * 19, None, "rows"),  # too few to spare any
        ([5] * 40, None, "rows"),  # a third of five is two, of which each finds the other
        ([5] * 40, 0.2, "classes"),
        ([4] * 40, 0.5, "rows"),
        ([1] * 100, None, "rows"),  # no class has two rows
        ([100] * 5 + [2] * 40, None, "rows"),  # most rows are of large classes
    ],
)
def test_whole_classes_are_held_out_where_most_would_hold_out_a_single_row(sizes, fraction, wanted):
    assert usual_split(labels_of(sizes), fraction) == wanted


def test_held_out_classes_are_whole_and_rows_that_ask_nothing_are_trained_on():
    labels = torch.cat([labels_of(FORTY), torch.tensor([40, 41, 42, -1, -1])])
    train, test = split_classes(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    assert not set(labels[train].tolist()) & set(labels[test].tolist())
    assert int(labels[test].min()) >= 0
    assert int(labels[test].bincount()[labels[test].unique()].min()) >= 2
    assert 1 / 3 <= len(test) / sum(FORTY) < 1 / 3 + 5 / sum(FORTY)
    assert split_classes(labels, seed=1)[1].tolist() != test.tolist() == split_classes(labels)[1].tolist()


def test_what_is_tied_goes_to_one_side_with_its_classes():
    """A row of class 0 has a copy in class 1, and in a class of one row: all three are held out, or none."""
    labels, tied = torch.arange(61).clamp(max=60) // 3, torch.arange(61)
    tied[[0, 3, 60]] = 0
    for seed in range(8):
        train, test = split_classes(labels, tied, seed=seed)
        assert not set(tied[train].tolist()) & set(tied[test].tolist())
        assert len({int(row) in test.tolist() for row in (0, 1, 2, 3, 4, 5, 60)}) == 1


def test_the_decision_is_told_recorded_and_can_be_taken_otherwise(tmp_path, capsys):
    data = str(folder(tmp_path / "faces", FORTY))
    assert main(["train", "--data", data, "--steps", "4", "--eval-every", "2", "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().err
    assert "note: whole classes are held out, " in told
    run = nf.Run(tmp_path / "run")
    assert run.config.hold_out == "classes"
    assert run.environment["decided"][0].startswith("whole classes are held out")
    corpus = open_run(run.path).open_data()
    assert not set(corpus.train.labels.tolist()) & set(corpus.test.labels.tolist())
    values = [look["metrics"]["recall@1"] for look in run.events("look")]
    assert 0.2 < min(values) <= max(values) <= 1.0
    rows = open_corpus(DataConfig(data, hold_out="rows"))
    assert set(rows.test.labels.tolist()) == set(range(40))
    assert rows.notes == ()
    split = folder(tmp_path / "split" / "train", [2, 2]).parent
    folder(split / "test", [2, 2])
    for options, why in (({"id": "label"}, "ids say"), ({"data": str(split)}, "a split of their own")):
        with pytest.raises(ValueError, match=rf"hold_out is 'classes' \(--hold-out\), and .*{why}"):
            open_corpus(DataConfig(**{"data": data} | options, hold_out="classes"))
    with pytest.raises(ValueError, match="1 classes have two rows or more"):
        open_corpus(DataConfig(str(folder(tmp_path / "two", [3, 1])), hold_out="classes"))


def test_a_run_of_an_earlier_version_keeps_its_split(tmp_path):
    """Its folder names no option: rows of every class were held out."""
    data = str(folder(tmp_path / "faces", FORTY))
    run = nf.train(data=data, hold_out="rows", steps=4, checkpoint_every=2, out=str(tmp_path / "run"), show=False)
    whole = yaml.safe_load((run.path / "config.yaml").read_text())
    (run.path / "config.yaml").write_text(
        yaml.safe_dump({k: v for k, v in whole.items() if k not in ("hold_out", "head_factor")})
    )
    assert nf.Run(run.path).config.hold_out == "rows"
    assert nf.train(resume=str(run.path), show=False).finished
    assert set(open_run(run.path).open_data().test.labels.tolist()) == set(range(40))
    assert nf.TrainConfig.of(run.path / "config.yaml").hold_out == "rows"


# ---- what is measured ------------------------------------------------------------------------------------------------


class Given(torch.nn.Module):
    """An encoder that gives rows back as they are."""

    def prepare(self, kind, raw):
        return raw

    def forward(self, kind, inputs):
        return inputs


def vectors(angles: list[float], labels: list[int]) -> TensorPart:
    at = torch.tensor(angles)
    return TensorPart({"x": torch.stack([at.cos(), at.sin()], 1)}, torch.tensor(labels))


def test_rows_alone_of_their_class_look_for_it_among_training_rows():
    """By hand: the first three find a training row of their class next to them, the last two another one's."""
    test = vectors([0.0, 1.0, 2.0, 0.55, 1.6], [0, 1, 2, 0, 1])
    train = vectors([0.1, 1.1, 2.1, 3.0, 0.9, 1.9], [0, 1, 2, 3, 1, 2])
    test = replace(test, labels=torch.tensor([0, 1, 2, 3, 4]))
    corpus = Corpus("few", (Column("x", "vector"),), train, test)
    watched = watched_rows(corpus, corpus.columns, 100, 0)
    assert watched is not None
    assert watched.gallery is not None
    assert "among rows that are trained on" in watched.notes[0]
    seen = look(Given(), watched, torch.device("cpu"))
    assert seen.metrics == {"recall@1": 0.75, "knn": 0.75}  # class 3 finds class 1 or 0; class 4 has no row to find
    assert watched.metrics == ("recall@1", "knn")


def test_a_gallery_that_is_cut_keeps_a_row_of_each_class():
    train = vectors([0.01 * i for i in range(90)], [0] * 60 + [1 + i % 10 for i in range(30)])
    test = vectors([0.1 * i for i in range(10)], list(range(1, 11)))
    corpus = Corpus("few", (Column("x", "vector"),), train, test)
    watched = watched_rows(corpus, corpus.columns, 15, 0)
    assert watched is not None
    assert watched.gallery is not None
    assert len(watched.gallery[1]) == 15
    assert set(range(1, 11)) <= set(train.labels[watched.gallery[1]].tolist())


def test_neighbours_that_vote_are_no_more_than_a_class_has():
    assert fitting_voters(20, labels_of([30] * 4), itself=True) == 20
    assert fitting_voters(20, labels_of([6] * 4), itself=True) == 5
    assert fitting_voters(20, labels_of([6] * 4)) == 6
    assert fitting_voters(20, labels_of([2] * 2 + [3] * 20), itself=True) == 2  # 4 of 64 rows do not decide
    assert fitting_voters(20, labels_of([2] * 10 + [3] * 20), itself=True) == 1  # 20 of 80 do
    assert fitting_voters(20, torch.tensor([0, 1, 2])) == 1
    corpus = images(rows=24)
    corpus = replace(corpus, test=replace(corpus.train, labels=torch.arange(24) % 8))
    watched = watched_rows(corpus, corpus.columns, 100, 0)
    assert watched is not None
    assert (watched.voters, watched.metrics) == (2, ("recall@1", "knn"))


def test_an_evaluation_has_as_many_votes_as_there_can_be_right_ones():
    """Three rows of each of eight classes lie together: 20 votes of 23 are anybody's, the two nearest are right."""
    angle = 0.7 * (torch.arange(24) // 3) + 0.01 * torch.arange(24)
    found = nf.evaluate(torch.stack([angle.cos(), angle.sin()], 1), torch.arange(24) // 3, tasks=("knn",))
    assert found["accuracy"] == 1.0
    assert found.notes == ("knn: 2 neighbours vote, not 20: classes have no more rows to find",)


def test_classes_that_nobody_else_has_are_not_measured():
    corpus = images(rows=24)
    corpus = replace(corpus, test=replace(corpus.train, labels=100 + torch.arange(24)))
    watched = watched_rows(corpus, corpus.columns, 100, 0)
    assert watched is not None
    assert watched.metrics == ()
    assert "no two rows that are looked at share a class" in watched.warnings[0]


# ---- tiny data, and rows that are all alike --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5, 6])
def test_of_a_handful_of_rows_nothing_is_measured(count, tmp_path, capsys):
    data = folder(tmp_path / "few", [count])
    assert main(["train", "--data", str(data), "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "effective_rank" not in told.err + told.out
    assert "are there to look at, and 5 are the least" in told.err
    run = nf.Run(tmp_path / "run")
    assert [event["message"].split(" different")[0] for event in run.events("warning")] == ["2"]
    assert run.end["best"] == 2


def pairs(place: Path, rows: list[tuple[str, str]]) -> str:
    place.write_text("anchor,positive\n" + "".join(f"{a},{b}\n" for a, b in rows), encoding="utf-8")
    return str(place)


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([("a question", "an answer")] * 40, "anchor"),
        ([(f"question {i}", "yes") for i in range(40)], "positive"),
        ([("Just  so.", f"answer {i}") for i in range(20)] + [("just so.", f"other {i}") for i in range(20)], "anchor"),
    ],
)
def test_a_column_that_is_always_the_same_cannot_be_learned_from(rows, column, tmp_path, capsys):
    assert main(["train", "--data", pairs(tmp_path / "same.csv", rows), "--steps", "1"]) == 2
    said = capsys.readouterr().err
    assert f"column '{column}' of same holds the same in all" in said


def test_pairs_are_looked_at_once_each(tmp_path):
    """Twenty pairs stand there twice; and where nearly every answer is the same, any order finds it."""
    twice = pairs(tmp_path / "twice.csv", [(f"question {i // 2}", f"answer {i // 2}") for i in range(60)])
    corpus = open_corpus(DataConfig(twice))
    watched = watched_rows(corpus, corpus.columns, 100, 0)
    assert watched is not None
    texts_of = corpus.test.fetch(range(len(corpus.test))).columns["anchor"]
    assert len(watched.rows) == len(set(texts_of)) == len({texts_of[row] for row in watched.rows})
    assert watched.metrics == ("mrr", "recall@1")
    assert f"{len(texts_of) - len(watched.rows)} pairs that are looked at repeat" in watched.notes[0]
    mostly = pairs(tmp_path / "yes.csv", [(f"question {i}", "yes" if i < 32 else f"answer {i}") for i in range(40)])
    corpus = open_corpus(DataConfig(mostly))
    watched = watched_rows(corpus, corpus.columns, 100, 0)
    assert watched is not None
    assert watched.metrics == ()
    yes = sum(answer == "yes" for answer in corpus.test.fetch(range(13)).columns["positive"])
    assert f"belongs with {(yes**2 + 13 - yes) / 13**2:.0%} of the others" in watched.warnings[0]


def test_an_evaluation_in_which_nothing_can_be_wrong_is_refused(tmp_path, capsys):
    """Forty rows of one pair; and, in Python, forty rows of one id."""
    two = [("a", "b"), ("c", "d")] * 10 + [(f"question {i}", f"answer {i}") for i in range(20)]
    run = nf.train(data=pairs(tmp_path / "two.csv", two), steps=1, out=str(tmp_path / "run"), show=False)
    same = pairs(tmp_path / "same.csv", [("a question", "an answer")] * 40)
    assert main(["evaluate", str(run.path), "--data", same, "--out", str(tmp_path / "figures.json")]) == 2
    assert "every key is right for every row, so that any embedding would be right" in capsys.readouterr().err
    z = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="every key is right for every row"):
        nf.evaluate(z, pairs=z, ids=torch.zeros(40, dtype=torch.int64))


def test_one_class_is_refused_by_methods_that_tell_classes_apart(tmp_path):
    corpus = images(rows=32)
    corpus = replace(corpus, train=replace(corpus.train, labels=torch.zeros(32, dtype=torch.int64)))
    with pytest.raises(
        ValueError, match=r"'supcon' tells classes apart, .* all rows to train on are of one.*--method simclr"
    ):
        nf.train(corpus=corpus, method="supcon", steps=1, out=str(tmp_path / "run"), show=False)


def test_looks_at_rows_that_are_trained_on_say_so(tmp_path, capsys):
    nf.train(corpus=replace(texts(columns=2), test=None), steps=1, batch_size=8, out=str(tmp_path / "run"))
    assert "note: no rows are held out: looks are at rows that are trained on" in capsys.readouterr().err


def test_few_rows_say_that_they_are_few():
    z = torch.eye(6)[[0, 0, 1, 1, 2, 2]]
    assert "6 rows are few" in nf.evaluate(z, torch.arange(6) // 2, tasks=("knn",)).notes[-1]


# ---- the same bytes under two names ----------------------------------------------------------------------------------


def test_classes_that_share_an_image_are_held_out_together(tmp_path):
    """In each of four seeds, an image of the first class lies in the second too: one side has both classes."""
    place = folder(tmp_path / "faces", [3] * 24)
    (place / "who 01" / "copy.png").write_bytes((place / "who 00" / "0.png").read_bytes())
    for seed in range(4):
        corpus = open_corpus(DataConfig(str(place), split_seed=seed))
        assert corpus.held_out == "classes"
        train, test = (set(part.labels.tolist()) for part in (corpus.train, corpus.test))
        assert not train & test
        assert {0, 1} <= train or {0, 1} <= test


def test_an_image_that_every_class_has_lets_each_class_give_rows(tmp_path):
    """A placeholder ties all classes together: none could be held out whole, and the placeholder is on one side."""
    place = folder(tmp_path / "faces", [3] * 24)
    for who in place.iterdir():
        (who / "none.png").write_bytes((place / "who 00" / "0.png").read_bytes())
    corpus = open_corpus(DataConfig(str(place)))
    assert corpus.held_out == "rows"
    held = [{Path(part.name(row)).read_bytes() for row in range(len(part))} for part in (corpus.train, corpus.test)]
    assert not held[0] & held[1]
    assert len(corpus.train) + len(corpus.test) == 24 * 4


def test_copies_within_a_class_are_one_row_of_it():
    """Six files of three images each: rows would hold out one image with its copy, which finds nothing but itself."""
    labels, copies = torch.arange(144) // 6, torch.arange(144) // 2
    assert usual_split(labels, copies=copies) == "classes"
    assert usual_split(labels) == "rows"
    rows = torch.arange(60)
    test = split_classes(rows // 2, copies=torch.where(rows < 20, rows // 2 * 2, rows))[1]
    assert int(test.min()) >= 20  # ten classes of one image are trained on
