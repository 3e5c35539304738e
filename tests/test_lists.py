"""Lines with lists of positives and negatives: FlagEmbedding's, and others in that form."""

from __future__ import annotations

import pytest

import nearfar as nf
from nearfar.data.config import DataConfig
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from tables import json_lines, picture, rows_of

LINES = [{"query": f"q{i}", "pos": [f"p{i}", f"r{i}"][: 1 + i % 2], "neg": [f"n{i}", f"m{i}"]} for i in range(9)]
ROWS = sorted((f"q{i}", f"{p}{i}", f"n{i}", f"m{i}") for i in range(9) for p in "pr"[: 1 + i % 2])


@pytest.mark.parametrize(
    "names", [("query", "pos", "neg"), ("anchor", "positive", "negatives"), ("question", "positives", "negative")]
)
def test_every_positive_makes_a_row(tmp_path, names):
    path = json_lines(tmp_path / "t.jsonl", [dict(zip(names, line.values())) for line in LINES])
    corpus = open_corpus(DataConfig(path))
    assert [(column.name, column.role) for column in corpus.columns] == [
        (names[0], "anchor"), (names[1], "positive"), (f"{names[2]} 1", "negative"), (f"{names[2]} 2", "negative"),
    ]  # fmt: skip
    assert rows_of(corpus) == ROWS
    assert f"column {names[1]!r} holds lists of texts, each of which makes a row: 13 rows of 9" in corpus.notes
    lines = {corpus.train.name(row) for row in range(len(corpus.train))}
    held = {corpus.test.name(row) for row in range(len(corpus.test))}
    assert lines | held == {f"{path}:{line}" for line in range(1, 10)}
    assert not lines & held  # rows of one query are not parted


def test_streamed_and_from_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    path = json_lines(tmp_path / "t.jsonl", LINES)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(LINES).to_parquet(tmp_path / "t.parquet")
    assert rows_of(open_corpus(DataConfig(str(tmp_path / "t.parquet")))) == ROWS
    for data in (path, str(tmp_path / "t.parquet")):
        stream = open_corpus(DataConfig(data, streaming=True))
        [batch] = Loader(stream.train, 13, seed=0).batches(stop=1)
        assert sorted(zip(*batch.columns.values())) == ROWS
        assert any("each of which makes a row" in note for note in stream.notes)


def test_trained_on_pairs_and_negatives(tmp_path, capsys):
    path = json_lines(tmp_path / "t.jsonl", LINES)
    run = nf.train(data=path, steps=1, batch_size=4, threads=1, out=str(tmp_path / "run"))
    assert (run.config.method, "mrr" in run.metrics) == ("pairs", True)
    said = capsys.readouterr().err
    assert "query (text), pos (text), neg 1 (text), neg 2 (text)" in said
    assert "note: column 'pos' holds lists of texts" in said


@pytest.mark.parametrize(("name", "empty"), [("pos", []), ("pos", None), ("pos", [""]), ("neg", [])])
def test_a_line_without_any_is_a_bad_row(tmp_path, name, empty):
    lines = [{**line, name: empty} if i == 2 else line for i, line in enumerate(LINES)]
    path = json_lines(tmp_path / "t.jsonl", lines)
    with pytest.raises(ValueError, match=rf"t\.jsonl:3: column '{name}' is empty.*--skip-bad"):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert rows_of(corpus) == [row for row in ROWS if row[0] != "q2"]


def test_how_many_negatives_are_read(tmp_path):
    lines = [{**line, "neg": line["neg"][: 1 + (i > 0)]} for i, line in enumerate(LINES)]
    corpus = open_corpus(DataConfig(json_lines(tmp_path / "t.jsonl", lines)))
    assert rows_of(corpus) == [row[:3] for row in ROWS]
    assert "column 'neg' holds 1 to 2 texts: the first 1 of each row are read" in corpus.notes
    for few in (0, 1):  # most lines, or all, have none
        lines = [{**line, "neg": line["neg"] if i < few else []} for i, line in enumerate(LINES)]
        corpus = open_corpus(DataConfig(json_lines(tmp_path / "t.jsonl", lines)))
        assert rows_of(corpus) == [row[:2] for row in ROWS]
        assert f"column 'neg' holds texts in {few} of 13 rows only" in corpus.notes


def test_texts_among_lists_and_scores_beside_them(tmp_path):
    lines = [{**line, "pos": line["pos"] if i else "p0", "pos_scores": [0.5]} for i, line in enumerate(LINES)]
    corpus = open_corpus(DataConfig(json_lines(tmp_path / "t.jsonl", lines)))
    assert rows_of(corpus) == ROWS
    assert "not read: pos_scores" in corpus.notes


def test_what_is_no_list_of_texts_is_not_passed_over(tmp_path):
    for name in ("pos", "positive_passages"):
        path = json_lines(tmp_path / "t.jsonl", [{"query": f"q{i}", name: [{"text": "a"}]} for i in range(6)])
        with pytest.raises(ValueError, match=rf"column '{name}' would be what belongs to 'query' .*--positive"):
            open_corpus(DataConfig(path))


def test_captions_of_an_image(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png", 50 * i)
    path = json_lines(tmp_path / "t.jsonl", [{"image": f"{i}.png", "caption": [f"{i} a", f"{i} b"]} for i in range(4)])
    corpus = open_corpus(DataConfig(path))
    assert [column.kind for column in corpus.columns] == ["image", "text"]
    for part in (corpus.train, corpus.test):
        batch = part.fetch(range(len(part)))
        assert [int(text[0]) * 50 for text in batch.columns["caption"]] == batch.columns["image"][:, 0, 0, 0].tolist()
    assert len(corpus.train) + len(corpus.test) == 8
