"""Columns found by their names: both sides of a pair, and images that a table names in its own way."""

from __future__ import annotations

import pytest

from nearfar.data.config import DataConfig
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from tables import json_lines, picture, rows_of, table


@pytest.mark.parametrize(
    ("header", "roles"),
    [
        ("sent0,sent1,hard_neg", "anchor positive negative"),  # SimCSE's
        ("sentence_0,sentence_1", "anchor positive"),  # sentence-transformers'
        ("sentence_1,sentence_2", "anchor positive"),
        ("sent1,sent2", "anchor positive"),
        ("question,context", "anchor positive"),
        ("text_a,text_b", "anchor positive"),
        ("claim,evidence", "anchor positive"),
        ("query,positive_1", "anchor positive"),
        ("anchor,positive,negative_1,negative_2", "anchor positive negative negative"),
        ("query,passage,neg_passage", "anchor positive negative"),
    ],
)
def test_usual_names_of_both_sides(tmp_path, header, roles):
    names = header.split(",")
    path = table(tmp_path / "t.csv", header, *(",".join(f"{name} {i}" for name in names) for i in range(6)))
    columns = open_corpus(DataConfig(path)).columns
    assert [(column.name, column.role) for column in columns] == [*zip(names, roles.split())]


def test_a_query_in_a_list_of_one(tmp_path):
    lines = [{"query": [f"q{i}"], "pos": [f"p{i}", f"r{i}"], "neg": [f"n{i}"]} for i in range(6)]
    path = json_lines(tmp_path / "t.jsonl", lines)
    wanted = sorted((f"q{i}", f"{p}{i}", f"n{i}") for i in range(6) for p in "pr")
    assert rows_of(open_corpus(DataConfig(path))) == wanted
    [batch] = Loader(open_corpus(DataConfig(path, streaming=True)).train, 12, seed=0).batches(stop=1)
    assert sorted(zip(*batch.columns.values())) == wanted


def test_one_positive_in_a_list_among_texts(tmp_path):
    lines = [{"query": f"q{i}", "pos": ["p3", "r3"] if i == 3 else f"p{i}"} for i in range(6)]
    path = json_lines(tmp_path / "t.jsonl", lines)
    wanted = sorted([*((f"q{i}", f"p{i}") for i in range(6)), ("q3", "r3")])
    assert rows_of(open_corpus(DataConfig(path))) == wanted
    [batch] = Loader(open_corpus(DataConfig(path, streaming=True)).train, 7, seed=0).batches(stop=1)
    assert sorted(zip(*batch.columns.values())) == wanted


def test_training_on_one_text_of_several_is_told(tmp_path):
    path = table(tmp_path / "t.csv", "question,reply,source_url,stars", *(f"q{i},r{i},u{i},{i % 5}" for i in range(6)))
    for streaming in (False, True):
        notes = open_corpus(DataConfig(path, streaming=streaming)).notes
        assert (
            "trained on column 'question' alone, each text with itself: 'reply', 'source_url' hold texts that are not read; "
            "name what belongs to it with positive= (--positive reply)"
        ) in notes
    assert not any("alone" in note for note in open_corpus(DataConfig(path, positive="reply")).notes)


def test_a_bad_line_of_several_positives_is_counted_once(tmp_path):
    lines = [{"query": "" if i == 2 else f"q{i}", "pos": [f"p{i}", f"r{i}", f"s{i}"]} for i in range(6)]
    path = json_lines(tmp_path / "t.jsonl", lines)
    with pytest.raises(ValueError, match=rf"^{path}:3: column 'query' is empty: mend it"):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert (len(corpus.bad), len(corpus.train) + len(corpus.test)) == (1, 15)


class TestImagesWithoutEndings:
    @pytest.mark.parametrize("name", ["{}", "{:05d}", "img{}", "of cats/{}"])
    @pytest.mark.parametrize("header", ["image,label", "file_name,text", "image_path,caption", "path,label"])
    def test_they_are_found_beside_the_table(self, tmp_path, name, header):
        for i in range(8):
            picture(tmp_path / f"{name.format(i)}.png", 30 * i)
        rows = [f"{name.format(i)},{'ab'[i % 2]}" for i in range(8)]
        for data in (table(tmp_path / "t.csv", header, *rows), str(tmp_path)):
            if data == str(tmp_path):
                table(tmp_path / "metadata.csv", header, *rows)
            corpus = open_corpus(DataConfig(data))
            assert corpus.columns[0].kind == "image"
            batches = [part.fetch(range(len(part))) for part in (corpus.train, corpus.test)]
            shades = [int(v) for batch in batches for v in batch.columns[corpus.columns[0].name][:, 0, 0, 0]]
            assert sorted(shades) == [30 * i for i in range(8)]

    def test_one_that_is_not_there_is_a_bad_cell(self, tmp_path):
        for i in range(8):
            picture(tmp_path / f"{i}.png", 30 * i)
        path = table(tmp_path / "t.csv", "image,label", *(f"{i + 1},{i % 2}" for i in range(8)))
        with pytest.raises(
            ValueError, match=rf"^{path}:9: column 'image': cannot be read as an image \(there is no file"
        ):
            open_corpus(DataConfig(path))
        assert len(open_corpus(DataConfig(path, skip_bad=True)).bad) == 1

    def test_of_two_formats_none_is_taken(self, tmp_path):
        for i in range(8):
            picture(tmp_path / f"{i}.png", 30 * i)
            picture(tmp_path / f"{i}.jpg", 30 * i)
        path = table(tmp_path / "t.csv", "image,label", *(f"{i},{i % 2}" for i in range(8)))
        with pytest.raises(ValueError, match="column 'image' is called as images are"):
            open_corpus(DataConfig(path))

    @pytest.mark.parametrize("name", ["{}", "{:05d}", "img{}", "1.{}"])
    @pytest.mark.parametrize("header", ["image,label", "file_name,label", "image_path,text", "img,label", "path,label"])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_they_are_no_numbers_and_no_texts(self, tmp_path, name, header, streaming):
        path = table(tmp_path / "t.csv", header, *(f"{name.format(i)},{'ab'[i % 2]}" for i in range(8)))
        with pytest.raises(ValueError, match=rf"column '{header.partition(',')[0]}' is called as images are.*--text"):
            open_corpus(DataConfig(path, streaming=streaming))

    def test_where_a_file_is_but_named_beside_measurements(self, tmp_path):
        rows = [f"{i},{i / 2},{i / 3},{'ab'[i % 2]}" for i in range(8)]
        corpus = open_corpus(DataConfig(table(tmp_path / "t.csv", "filename,x,y,label", *rows)))
        assert (corpus.columns[0].kind, corpus.channels) == ("vector", 2)
        assert "not read: filename" in corpus.notes
        path = table(tmp_path / "t.csv", "image,x,y,label", *rows)
        for read in (lambda: open_corpus(DataConfig(path)), lambda: load_data(path)):
            with pytest.raises(ValueError, match="column 'image' is called as images are"):
                read()
