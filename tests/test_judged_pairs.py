"""Columns that say how alike two sides are: the scale of their grades, and cells that say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar.cli import main
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Corpus
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from nearfar.evaluation.config import EvaluateConfig
from tables import table

WORDS = ["entailment", "neutral", "contradiction"]


def pairs(path: Path, cells: list, header: str = "sentence1,sentence2,score") -> str:
    return table(path, header, *(f"a{i},b{i},{cell}" for i, cell in enumerate(cells)))


def grades(corpus: Corpus) -> dict[str, float]:
    """How alike the sides of each row are, by its first text."""
    found = {}
    for part in (corpus.train, corpus.test):
        batch = part.fetch(range(len(part)))
        assert batch.similar is not None
        found |= dict(zip(batch.columns[corpus.columns[0].name], batch.similar.tolist()))
    return found


@pytest.mark.parametrize("column", ["score", "similarity", "relatedness_score"])
@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        ([0, 3, 7, 10, 5, 9], 0, 10),
        ([0.2, 9.8, 6.1, 4], 0, 10),
        ([0, 33, 77, 100, 50, 90], 0, 100),
        ([0.5, 99.5, 20], 0, 100),
        ([-1, -0.5, 0.3, 1, 0.7], -1, 1),
        ([-0.2, 0.9, 0.1], -1, 1),
        ([1, 2, 5, 4, 3], 1, 5),
        ([1.2, 4.9, 3.6], 1, 5),
        ([0, 2.5, 5, 4], 0, 5),
        ([0, 0.25, 1], 0, 1),
    ],
)
def test_the_scale_is_found_and_told(tmp_path, column, cells, low, high):
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", cells, f"sentence1,sentence2,{column}")))
    assert corpus.similar == column
    assert grades(corpus) == pytest.approx({f"a{i}": (cell - low) / (high - low) for i, cell in enumerate(cells)})
    assert any(
        f"column {column!r} is read as grades from {low} (not alike) to {high} (alike)" in n for n in corpus.notes
    )


@pytest.mark.parametrize("cells", [[0, 1, 2, 9], [1, 7, 3], [0, 25, 50], [-5, 5, 1], [-1, 0, 1]])
def test_another_scale_is_asked_for(tmp_path, cells):
    path = pairs(tmp_path / "t.csv", cells)
    with pytest.raises(
        ValueError, match=rf"column 'score' holds '{cells[0]}', wanted how alike .*--scale LOWEST HIGHEST"
    ):
        open_corpus(DataConfig(path))
    low, high = min(cells), max(cells)
    corpus = open_corpus(DataConfig(path, scale=(low, high)))
    assert grades(corpus) == pytest.approx({f"a{i}": (cell - low) / (high - low) for i, cell in enumerate(cells)})
    other = open_corpus(DataConfig(path, scale=(high, low)))  # the lowest grade is that of the most alike
    assert grades(other) == pytest.approx({name: 1 - grade for name, grade in grades(corpus).items()})
    none = open_corpus(DataConfig(path, similar="none"))
    assert (none.similar, none.train.similar) == (None, None)


def test_votes_are_passed_over_and_told(tmp_path):
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", [12, 0, 340, 7])))
    assert corpus.similar is None
    assert any("column 'score' (0 to 340) is on no usual scale" in note for note in corpus.notes)


def test_grades_off_the_scale_are_bad_cells(tmp_path):
    path = pairs(tmp_path / "t.csv", [0, 3, -1, 4.5, "NA", 5])  # −1 stands for none among such grades
    with pytest.raises(
        ValueError, match=r"t\.csv:4: column 'score' does not say .* from 0 to 5: it holds '-1'; .*t\.csv:6.*'NA'"
    ):
        open_corpus(DataConfig(path))
    assert grades(open_corpus(DataConfig(path, skip_bad=True))) == pytest.approx(
        {"a0": 0, "a1": 0.6, "a3": 0.9, "a5": 1}
    )
    with pytest.raises(ValueError, match=r"from 0 to 4: it holds '4\.5'"):
        open_corpus(DataConfig(path, scale=(0, 4)))


@pytest.mark.parametrize("scale", [(1, 1), (0, float("nan")), (0, float("inf"))])
def test_no_scale(scale):
    with pytest.raises(ValueError, match=r"scale is .*such as 0 10"):
        DataConfig(scale=scale)


@pytest.mark.parametrize("odd", ["-", "", "NA", "maybe", "-1", "entailmnet"])
@pytest.mark.parametrize("options", [{}, {"similar": "label"}], ids=["by default", "named"])
def test_a_pair_without_a_gold_label_is_left_out_and_counted(tmp_path, odd, options):
    """SNLI's dash. It turns the others into nothing else: contradictions are no positives."""
    cells = [*WORDS, odd, *WORDS, *[word.upper() for word in WORDS]]
    path = pairs(tmp_path / "t.csv", cells, "premise,hypothesis,label")
    corpus = open_corpus(DataConfig(path, **options))
    assert (corpus.similar, corpus.class_names) == ("label", ())
    assert grades(corpus) == {f"a{i}": float(cell.lower() == "entailment") for i, cell in enumerate(cells) if i != 3}
    assert [line.partition(": ")[0] for line in corpus.bad] == [f"{path}:5"]
    assert "does not say how alike the sides are: it holds" in corpus.bad[0]
    stream = open_corpus(DataConfig(path, streaming=True, **options))
    [batch] = Loader(stream.train, 9, seed=0).batches(stop=1)
    assert sorted(batch.similar.tolist()) == [0.0] * 6 + [1.0] * 3
    assert {*batch.bad} <= {line.replace(f"{path}:5", f"{path}:5") for line in corpus.bad}


def test_snli_as_it_comes(tmp_path):
    """Its labels are called gold_label."""
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", [*WORDS, "-"] * 3, "sentence1,sentence2,gold_label")))
    assert (corpus.similar, corpus.class_names, len(corpus.bad)) == ("gold_label", (), 3)
    assert sorted(grades(corpus).values()) == [0.0] * 6 + [1.0] * 3


def test_most_of_a_column_says_what_it_is(tmp_path):
    header = "sentence1,sentence2,label"
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", ["sport", "art", "true"] * 4, header)))
    assert (corpus.similar, corpus.class_names) == (None, ("art", "sport", "true"))
    assert any("column 'label' is read as classes" in note and "--similar label" in note for note in corpus.notes)
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", ["yes", "no", "maybe"] * 4, header)))
    assert (corpus.similar, len(corpus.bad)) == ("label", 4)


def test_all_alike_but_for_those_without_a_judgement(tmp_path):
    corpus = open_corpus(DataConfig(pairs(tmp_path / "t.csv", ["-", *["entailment"] * 9], "premise,hypothesis,label")))
    assert (corpus.similar, corpus.train.similar, len(corpus.train) + len(corpus.test)) == (None, None, 9)
    assert len(corpus.bad) == 1
    assert any("that it judges that its sides are similar" in note for note in corpus.notes)


def test_from_the_command_line(tmp_path, capsys):
    path = pairs(tmp_path / "t.csv", [0, 20, 40, 39] * 6)
    options = ["--steps", "1", "--batch-size", "8", "--threads", "1", "--out", str(tmp_path / "run")]
    assert main(["train", "--data", path, *options]) == 2
    assert "--scale LOWEST HIGHEST" in capsys.readouterr().err
    assert main(["train", "--data", path, "--scale", "0", "40", *options]) == 0
    assert "by score graded, " in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run")]) == 0  # the run knows its scale
    other = pairs(tmp_path / "o.csv", [0, 12, 21, 33] * 6)
    asked = ["evaluate", str(tmp_path / "run"), "--data", other, "--out", str(tmp_path / "found.json")]
    assert main(asked) == 0  # also for other pairs
    assert main([*asked, "--scale", "0", "20"]) == 2
    assert "from 0 to 20: it holds '21'" in capsys.readouterr().err
    embed = ["embed", str(tmp_path / "run"), other, "--out", str(tmp_path / "z.parquet")]
    assert main([*embed, "--similar", "none"]) == 0
    with pytest.raises(ValueError, match="a run knows its own"):
        EvaluateConfig(run="run", scale=(0, 20))
