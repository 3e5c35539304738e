"""Classes that are called by numbers: 1 and 1.0 are one, −1 and NA are none."""

from __future__ import annotations

import pytest
import torch

import nearfar as nf
from nearfar.data.classes import class_name, known_rows, number_classes
from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from tables import json_lines, table


@pytest.mark.parametrize("second", ["{}.0", "{}.00", " {}.0 "])
def test_a_number_is_one_class_however_it_is_written(tmp_path, second):
    for part, form in (("train", "{}"), ("test", second)):
        table(tmp_path / f"{part}.csv", "text,label", *(f"{part} {i},{form.format(i % 2)}" for i in range(8)))
    corpus = open_corpus(DataConfig(str(tmp_path)))
    assert corpus.class_names == ("0", "1")
    assert corpus.test.labels.tolist() == [0, 1] * 4
    for names, wanted in ((["1", "1.0", "2"], [0, 0, 1]), (["v1.0", "v1"], [0, 1]), (["01", "1"], [0, 1])):
        assert torch.unique(torch.tensor(wanted)).numel() == len({*map(class_name, names)})
    assert class_name("1.5") == "1.5"


def test_floats_of_json_beside_a_word(tmp_path):
    rows = [{"text": f"t{i}", "label": "NA" if i == 3 else float(i % 2)} for i in range(10)]
    corpus = open_corpus(DataConfig(json_lines(tmp_path / "t.jsonl", rows)))
    assert corpus.class_names == ("0", "1")
    assert sorted([*corpus.train.labels.tolist(), *corpus.test.labels.tolist()]) == [-1] + [0] * 5 + [1] * 4


def test_minus_one_among_whole_numbers_is_no_class(tmp_path):
    path = table(tmp_path / "t.csv", "text,label", *(f"t{i},{-1 if i in (2, 7) else i % 3}" for i in range(12)))
    corpus = open_corpus(DataConfig(path))
    assert corpus.class_names == ("0", "1", "2")
    labels = torch.cat([corpus.train.labels, corpus.test.labels])
    assert (labels == -1).sum() == 2
    assert "column 'label' holds -1 in 2 row(s): their class is unknown" in corpus.notes
    stream = open_corpus(DataConfig(path, streaming=True))
    assert stream.class_names == ("0", "1", "2")
    path = table(tmp_path / "t.csv", "x,y,label", *(f"{i},1,{-1 if i == 2 else i % 3}" for i in range(12)))
    with pytest.raises(ValueError, match=rf"{path}:4: has no label in column 'label' \('-1' is none\)"):
        load_data(path)
    assert load_data(path, skip_bad=True).class_names == ("0", "1", "2")
    path = table(tmp_path / "t.csv", "text,label", *(f"t{i},{[-1, 1][i % 2]}" for i in range(12)))
    assert open_corpus(DataConfig(path)).class_names == ("-1", "1")  # two sides


def test_a_missing_word_among_numbers_is_unknown_wherever_labels_are_taken():
    labels = ["0", "1", "NA", "1", "0"]
    assert number_classes(labels)[0].tolist() == [0, 1, -1, 1, 0]
    assert known_rows(labels) == (["0", "1", "1", "0"], [0, 1, 3, 4])
    assert number_classes(["a", "NA", "a"])[0].tolist() == [1, 0, 1]
    z = torch.nn.functional.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    named, numbered = (nf.evaluate(z, given, tasks=["knn"], k=1) for given in (labels * 2, [0, 1, None, 1, 0] * 2))
    assert [m.value for m in named.measures] == [m.value for m in numbered.measures]


def test_how_many_values_do_not_name_classes(tmp_path):
    """Of the rows that are read."""
    path = table(tmp_path / "t.csv", "text,label", *(f"{'' if i < 2 else f't{i}'},v{i}" for i in range(8)))
    notes = open_corpus(DataConfig(path, skip_bad=True)).notes
    assert "column 'label' does not name classes (6 values in 6 rows): it is not read" in notes
