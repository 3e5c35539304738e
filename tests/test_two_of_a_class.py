"""Two rows of a class, or a large part held out: a class must keep two rows to train on, or be held out whole."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.data.splits import split_classes, usual_split
from photos import noise


def folder(root, counts):
    for c, count in enumerate(counts):
        for i in range(count):
            noise(root / f"c{c:02d}" / f"{i}.png", 100 * c + i)
    return str(root)


@pytest.mark.parametrize(
    ("counts", "options", "held"),
    [
        ([2] * 3, {}, 1), ([2] * 4, {}, 2), ([2] * 12, {}, 4), ([2] * 19, {}, 7), ([2] * 3 + [1], {}, 1),
        ([3] * 12, {"test_fraction": 0.6}, 8), ([3] * 12, {"test_fraction": 0.9}, 10), ([3] * 3, {"test_fraction": 0.9}, 1),
    ],
)  # fmt: skip
def test_whole_classes_are_held_out(counts, options, held, tmp_path):
    corpus = open_corpus(DataConfig(folder(tmp_path, counts), **options))
    trained, tested = (part.labels.unique(return_counts=True) for part in (corpus.train, corpus.test))
    assert len(tested[0]) == held
    assert not set(tested[0].tolist()) & set(trained[0].tolist())
    assert int((trained[1] > 1).sum()) >= 2  # rows to be near to, and others to be far from
    assert corpus.held_out == "classes"
    assert corpus.notes[0].startswith(f"whole classes are held out, {held} of {len(counts)}: most ")


def test_such_a_folder_is_trained_on(tmp_path):
    run = nf.train(data=folder(tmp_path / "data", [2] * 12), steps=2, out=str(tmp_path / "run"), show=False)
    assert (run.environment["data"]["train"], run.environment["data"]["test"]) == (16, 8)
    assert [*run.metrics] == ["recall@1", "knn"]


@pytest.mark.parametrize(
    ("counts", "options", "remedy"),
    [
        ([1, 1], {}, r"add rows until a class has two to train on.*, or train without classes \(--method simclr\)"),
        ([2, 2], {}, "each of the 2 classes has one row of 2 to train on: add rows until a class has two .*, three where one"),
        ([3, 3], {"test_fraction": 0.9}, r"hold out fewer rows \(--test-fraction\), or train without"),
        ([2] * 12, {"hold_out": "rows"}, r"hold out whole classes \(--hold-out classes\), or train without"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_trained_the_remedy_applies(counts, options, remedy, tmp_path):
    data = folder(tmp_path / "data", counts)
    with pytest.raises(ValueError, match=remedy):
        nf.train(data=data, steps=1, out=str(tmp_path / "run"), show=False, **options)
    if counts == [1, 1]:
        assert nf.train(data=data, method="simclr", steps=1, out=str(tmp_path / "run"), show=False).finished


def test_four_of_a_class_are_split_as_before():
    assert usual_split(torch.arange(48) % 12) == "rows"
    assert usual_split(torch.arange(36) % 12) == "rows"  # two are left to train on
    assert usual_split(torch.arange(40) % 12, tied=torch.zeros(40, dtype=torch.int64)) == "rows"


def test_two_classes_are_left_where_there_are_three():
    labels = torch.arange(12) % 4
    train, _ = split_classes(labels, fraction=0.99)
    assert len(labels[train].unique()) == 2
