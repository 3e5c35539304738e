"""Odd cells in columns of judgements: most cells say how the column is read, and the odd one is named by its line."""

from __future__ import annotations

import pytest

from nearfar.data.config import DataConfig
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from tables import json_lines
from test_judged_pairs import grades, pairs

TENTHS = [round(0.1 * i, 1) for i in range(11)]
HALVES = [0.5 * i for i in range(11)]


@pytest.mark.parametrize("column", ["label", "is_duplicate", "score"])
def test_minus_one_among_0_and_1_is_no_judgement(tmp_path, column):
    """Its row is left out and named; every 0 is still no positive."""
    cells = [1, 0, -1, 0, 1, 0, 1, 0, 1, 0]
    path = pairs(tmp_path / "t.csv", cells, f"sentence1,sentence2,{column}")
    corpus = open_corpus(DataConfig(path))
    assert (corpus.similar, corpus.class_names) == (column, ())
    assert grades(corpus) == {f"a{i}": cell for i, cell in enumerate(cells) if i != 2}
    assert [line.partition(": ")[0] for line in corpus.bad] == [f"{path}:4"]
    rows = [{"sentence1": f"a{i}", "sentence2": f"b{i}", column: cell} for i, cell in enumerate(cells)]
    stream = open_corpus(DataConfig(json_lines(tmp_path / "t.jsonl", rows), streaming=True))
    [batch] = Loader(stream.train, 9, seed=0).batches(stop=1)
    assert sorted(batch.similar.tolist()) == [0] * 5 + [1] * 4


@pytest.mark.parametrize("column", ["label", "is_duplicate"])
@pytest.mark.parametrize("odd", ["2", "5", "-2", "NA", ""])
def test_another_number_among_0_and_1_is_a_bad_cell(tmp_path, column, odd):
    cells = [1, 0, 0, odd, 1, 0, 1, 0, 1, 0]
    path = pairs(tmp_path / "t.csv", cells, f"question1,question2,{column}")
    with pytest.raises(
        ValueError, match=rf"^\S*t\.csv:5: column '{column}' does not say .* by 0 or 1: it holds .*--skip-bad"
    ):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert (corpus.similar, corpus.class_names, len(corpus.bad)) == (column, (), 1)
    assert grades(corpus) == {f"a{i}": cell for i, cell in enumerate(cells) if i != 3}


@pytest.mark.parametrize(
    ("cells", "odd", "low", "high"),
    [
        (HALVES, 50, 0, 5),
        (HALVES, 6.5, 0, 5),
        (HALVES[2:], 50, 1, 5),
        (TENTHS, 5, 0, 1),
        (TENTHS, -0.02, 0, 1),
        ([2 * cell - 0.3 for cell in HALVES[1:]], 55, 0, 10),
    ],
)
@pytest.mark.parametrize("column", ["label", "similarity"])
def test_the_scale_is_that_of_most(tmp_path, column, cells, odd, low, high):
    path = pairs(tmp_path / "t.csv", [*cells, odd], f"sentence1,sentence2,{column}")
    with pytest.raises(
        ValueError, match=rf"^\S*t\.csv:{len(cells) + 2}: .*\(--scale\) from {low} to {high}: it holds '{odd}': mend it"
    ):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert grades(corpus) == pytest.approx({f"a{i}": (cell - low) / (high - low) for i, cell in enumerate(cells)})
    assert any(f"grades from {low} (not alike) to {high} (alike)" in note for note in corpus.notes)


def test_what_was_rounded_beyond_the_end_is_the_end(tmp_path):
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", [*TENTHS, 1.0001, -0.0002])))
    assert corpus.bad == ()
    assert grades(corpus) == pytest.approx({f"a{i}": cell for i, cell in enumerate([*TENTHS, 1, 0])})


@pytest.mark.parametrize(("cells", "low"), [([0, 1, 2, 3, 4, 5], 0), ([1, 2, 3, 4, 5], 1)])
def test_whole_grades_to_five_beside_two_sentences(tmp_path, cells, low):
    """They are no five classes whose pairs all belong together."""
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", cells * 2, "sentence1,sentence2,label")))
    assert (corpus.similar, corpus.class_names) == ("label", ())
    assert grades(corpus) == pytest.approx({f"a{i}": (cell - low) / (5 - low) for i, cell in enumerate(cells * 2)})
    named = open_corpus(DataConfig(pairs(tmp_path / "t.csv", cells * 2, "sentence1,sentence2,label"), label="label"))
    assert named.class_names == tuple(map(str, cells))


@pytest.mark.parametrize("cells", [[0, 1, 2], [-1, 0, 1], [1, 2, 3], [0, 1, 2, 3]])
def test_verdicts_without_a_name_are_asked_for(tmp_path, cells):
    path = pairs(tmp_path / "t.csv", cells * 4, "sentence1,sentence2,label")
    with pytest.raises(ValueError, match=r"nothing says which is entailment: .*--similar label --scale.*--label label"):
        open_corpus(DataConfig(path))
    assert len(open_corpus(DataConfig(path, label="label")).class_names) == len([c for c in cells if c >= 0])
    topics = open_corpus(DataConfig(pairs(tmp_path / "t.csv", cells * 4, "question,answer,label")))
    assert (topics.similar, len(topics.class_names)) == (None, len([c for c in cells if c >= 0]))


@pytest.mark.parametrize(
    ("alike", "others"),
    [
        ("supports", ["refutes", "not enough info"]),
        ("SUPPORTED", ["REFUTED", "NEI"]),
        ("e", ["n", "c"]),
        ("entailment", ["non-entailment"]),
        ("entailment", ["not_entailment"]),
        ("true", ["false"]),
        ("yes", ["no"]),
        ("paraphrase", ["not_paraphrase"]),
        ("duplicate", ["non-duplicate"]),
        ("agree", ["disagree", "unrelated", "discuss"]),
        ("match", ["no match"]),
    ],
)
def test_verdicts_in_words(tmp_path, alike, others):
    cells = [alike, *others, *[word.upper() for word in (alike, *others)]] * 2
    corpus = open_corpus(
        DataConfig(pairs(tmp_path / "t.csv", cells, "claim,evidence,label"), text="claim", positive="evidence")
    )
    assert (corpus.similar, corpus.class_names) == ("label", ())
    assert grades(corpus) == {f"a{i}": float(cell.lower() == alike.lower()) for i, cell in enumerate(cells)}


def test_letters_that_are_classes(tmp_path):
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", [*"abcde"] * 3, "sentence1,sentence2,label")))
    assert (corpus.similar, corpus.class_names) == (None, tuple("abcde"))
