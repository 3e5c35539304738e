"""A column is what most of its cells are; the others are bad cells, bad files, bad names: told all at once, or left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from nearfar.cli import main
from nearfar.data.config import DataConfig
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from tables import beside, json_lines, picture, png, rows_of, shards, table, write


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What ``datasets`` keeps is kept where the test's files are."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def measured(path: Path, word: str, rows: int = 12) -> str:
    """Two measurements and a class, with a word in place of a number on lines 5 and 9."""
    lines = [f"{i},{i / 2},{'ab'[i % 2]}" for i in range(rows)]
    lines[3], lines[7] = f'3,"{word}",b', f'"{word}",3.5,b'
    return table(path, "x,width,label", *lines)


class TestNumbers:
    @pytest.mark.parametrize("word", ["NA", "N/A", "null", "None", "nan", "NaN", "", "-", "?", "abc", "inf", "1,5"])
    def test_an_odd_cell_is_a_bad_cell(self, tmp_path, word):
        path = measured(tmp_path / "t.csv", word)
        shown = "nothing" if word == "" else f"'{word}'"
        told = rf"t\.csv:5: column 'width' holds {shown.replace('?', '[?]')}, wanted a finite number; "
        with pytest.raises(
            ValueError, match=told + r".*t\.csv:9: column 'x' .*\(2 bad rows in all\): mend them.*--skip-bad"
        ):
            open_corpus(DataConfig(path))
        corpus = open_corpus(DataConfig(path, skip_bad=True))
        assert [(column.name, column.kind) for column in corpus.columns] == [("vector", "vector")]
        assert corpus.channels == 2
        assert (len(corpus.train) + len(corpus.test), len(corpus.bad)) == (10, 2)
        held = torch.cat([part.fetch(range(len(part))).columns["vector"] for part in (corpus.train, corpus.test)])
        assert sorted(held.tolist()) == [[i, i / 2] for i in range(12) if i not in (3, 7)]
        with pytest.raises(ValueError, match=r"t\.csv:5: column 'width' holds .*t\.csv:9: .*2 bad rows in all"):
            load_data(path)
        data = load_data(path, skip_bad=True)
        assert (data.train_inputs.shape[1], len(data.train_labels) + len(data.test_labels)) == (2, 10)

    def test_many_are_named_to_ten_and_counted(self, tmp_path):
        path = table(tmp_path / "t.csv", "x,y,label", *(f"{'NA' if i < 40 else i},{i},{i % 2}" for i in range(100)))
        with pytest.raises(ValueError, match=r"t\.csv:11: .* … \(40 bad rows in all\)") as error:
            open_corpus(DataConfig(path))
        assert str(error.value).count("t.csv:") == 10

    def test_missing_ones_in_front_hide_nothing(self, tmp_path):
        path = table(tmp_path / "t.csv", "x,y,label", *(f"{'' if i < 300 else i},{i},{i % 2}" for i in range(900)))
        corpus = open_corpus(DataConfig(path, skip_bad=True))
        assert (corpus.channels, len(corpus.bad), len(corpus.train) + len(corpus.test)) == (2, 300, 600)

    def test_in_json_and_parquet(self, tmp_path):
        rows = [{"x": "NA" if i == 3 else i, "y": None if i == 5 else i / 2, "label": "ab"[i % 2]} for i in range(12)]
        path = json_lines(tmp_path / "t.jsonl", rows)
        with pytest.raises(
            ValueError, match=r"t\.jsonl:4: column 'x' holds 'NA', .*t\.jsonl:6: column 'y' holds nothing"
        ):
            open_corpus(DataConfig(path))
        assert len(open_corpus(DataConfig(path, skip_bad=True)).bad) == 2
        frame = pd.DataFrame(
            {"x": [str(i) if i != 3 else "NA" for i in range(12)], "y": range(12), "label": list("ab") * 6}
        )
        frame.to_parquet(path := str(tmp_path / "t.parquet"))
        for read in (lambda: open_corpus(DataConfig(path)), lambda: load_data(path)):
            with pytest.raises(ValueError, match="row 4: column 'x' holds 'NA', wanted a finite number"):
                read()
        assert load_data(path, skip_bad=True).train_inputs.shape[1] == 2

    def test_numbers_among_texts_are_texts(self, tmp_path):
        path = table(
            tmp_path / "t.csv", "text,label", *(f"{['one', 'two', '3', '4'][i % 4]} {i},{i % 2}" for i in range(12))
        )
        assert open_corpus(DataConfig(path)).columns[0].kind == "text"
        rows = [{"text": 3 if i == 3 else f"t{i}"} for i in range(6)]
        assert ("3",) in rows_of(open_corpus(DataConfig(json_lines(tmp_path / "t.jsonl", rows))))
        answers = table(tmp_path / "a.csv", "question,answer", *(f"what is {i}?,{i}" for i in range(6)))
        assert [column.role for column in open_corpus(DataConfig(answers)).columns] == ["anchor", "positive"]

    def test_true_and_false_are_numbers(self, tmp_path):
        """As data frames write them, and as Parquet holds them."""
        path = table(tmp_path / "t.csv", "x,flag,label", *(f"{i},{i % 3 == 0},{'ab'[i % 2]}" for i in range(12)))
        corpus = open_corpus(DataConfig(path))
        held = torch.cat([part.fetch(range(len(part))).columns["vector"] for part in (corpus.train, corpus.test)])
        assert sorted(held.tolist()) == [[i, float(i % 3 == 0)] for i in range(12)]
        assert load_data(path).train_inputs.shape[1] == 2

    def test_lists_of_another_length_or_kind(self, tmp_path):
        rows = [{"embedding": [1.0, 2, i], "label": "ab"[i % 2]} for i in range(12)]
        for odd in ([1.0, 2.0], [1.0, "x", 3.0], "none", {"a": 1}, []):
            path = json_lines(
                tmp_path / "t.jsonl", [row | {"embedding": odd} if i == 4 else row for i, row in enumerate(rows)]
            )
            with pytest.raises(ValueError, match=r"t\.jsonl:5: column 'embedding' (holds|is empty).*--skip-bad"):
                open_corpus(DataConfig(path))
            corpus = open_corpus(DataConfig(path, skip_bad=True))
            assert (corpus.channels, len(corpus.train) + len(corpus.test), len(corpus.bad)) == (3, 11, 1)


class TestImages:
    @pytest.fixture
    def folder(self, tmp_path):
        for i in range(8):
            picture(tmp_path / f"{i}.png", 20 * i)
        return tmp_path

    @pytest.mark.parametrize(
        ("cell", "told"),
        [
            ("NA", "there is no file .*NA"),
            ("", "is empty"),
            ("  ", "is empty"),
            ("notes.txt", "there is no file"),
            ("~nobody", "there is no file"),
            (".", "\\S+ is a folder"),
        ],
    )
    def test_an_odd_cell_among_paths(self, folder, cell, told):
        path = table(folder / "t.csv", "image,label", *(f"{cell if i == 2 else f'{i}.png'},{i % 2}" for i in range(8)))
        with pytest.raises(ValueError, match=rf"t\.csv:4: column 'image': cannot be read as an image \({told}"):
            open_corpus(DataConfig(path))
        corpus = open_corpus(DataConfig(path, skip_bad=True))
        assert (corpus.columns[0].kind, len(corpus.train) + len(corpus.test), len(corpus.bad)) == ("image", 7, 1)
        stream = open_corpus(DataConfig(path, skip_bad=True, streaming=True))
        batches = list(Loader(stream.train, 8, seed=0).batches(stop=1))
        assert [len(batch) for batch in batches] == [7]
        assert "t.csv:4: column 'image'" in batches[0].bad[0]
        with pytest.raises(ValueError, match=r"t\.csv:4: column 'image'"):
            next(Loader(open_corpus(DataConfig(path, streaming=True)).train, 8, seed=0).batches())

    def test_no_text_encoder_for_what_is_called_image(self, folder):
        path = table(folder / "t.csv", "image,label", *(f"number {i},{i % 2}" for i in range(8)))
        with pytest.raises(ValueError, match=r"column 'image' is called as images are.*\.png.*--text"):
            open_corpus(DataConfig(path))
        assert open_corpus(DataConfig(path, text="image")).columns[0].kind == "text"

    def test_a_name_that_is_no_utf_8(self, folder):
        names = (b"a/0.png", b"a/1.png", b"b/0.png", b"b/1.png", b"a/caf\xe9.png", b"\xfcber/0.png")
        for shade, name in enumerate(names):
            os.makedirs(os.path.dirname(beside(folder / "classes", name)), exist_ok=True)
            picture(beside(folder / "classes", name), shade)
        path = str(folder / "classes")
        with pytest.raises(
            ValueError, match=r"a/caf\\xe9\.png: its name is not UTF-8.*\\xfcber/0\.png.*2 bad rows in all"
        ):
            open_corpus(DataConfig(path))
        corpus = open_corpus(DataConfig(path, skip_bad=True))
        assert (corpus.class_names, len(corpus.train) + len(corpus.test), len(corpus.bad)) == (("a", "b"), 4, 2)
        with pytest.raises(ValueError, match=r"a/caf\\xe9\.png: .*its name is not UTF-8"):
            load_data(path)
        data = load_data(path, skip_bad=True)
        assert (data.class_names, len(data.bad)) == (("a", "b"), 2)
        json.dumps([*corpus.bad, *data.bad], ensure_ascii=False).encode()  # a report can hold it
        text = write(Path(beside(folder, b"t\xe9.csv")), "text\na\nb\n")
        for read in (lambda: open_corpus(DataConfig(text)), lambda: load_data(text)):
            with pytest.raises(ValueError, match=r"t\\xe9\.csv cannot be read: its name is not UTF-8"):
                read()


class TestFiles:
    @pytest.mark.parametrize("size", [0, 100, 512 * 3, 3000, 512 * 4])
    @pytest.mark.parametrize("which", [0, 1])
    def test_a_shard_cut_short_among_whole_ones(self, tmp_path, size, which):
        paths = shards(tmp_path)
        paths[which].write_bytes(paths[which].read_bytes()[:size])
        pattern = str(tmp_path / "s-{0..2}.tar")
        for streaming in (False, True):
            with pytest.raises(
                ValueError, match=rf"^\S*s-{which}\.tar .*get it anew, or leave such files out.*--skip-bad"
            ) as error:
                open_corpus(DataConfig(pattern, streaming=streaming))
            assert str(error.value).count(".tar") == 1  # no other is blamed
        kept = {4 * shard + row for shard in {0, 1, 2} - {which} for row in range(4)}
        kept |= {4 * which} if size == 512 * 4 else set()  # cut between two files: what is there is read
        corpus = open_corpus(DataConfig(pattern, skip_bad=True))
        assert {text for (text,) in rows_of(corpus)} == {f"caption {number}" for number in kept}
        assert [f"s-{which}.tar" in line for line in corpus.bad] == [True]
        stream = open_corpus(DataConfig(pattern, skip_bad=True, streaming=True))
        [batch] = Loader(stream.train, len(kept), seed=0).batches(stop=1)
        assert {*batch.columns["txt"]} == {f"caption {number}" for number in kept}
        assert [f"s-{which}.tar" in line for line in stream.bad] == [True]

    def test_a_parquet_file_cut_short_among_whole_ones(self, tmp_path):
        for i in range(3):
            frame = pd.DataFrame({"text": [f"a {i} {j}" for j in range(4)], "label": list("abab")})
            frame.to_parquet(tmp_path / f"part-{i}.parquet")
        broken = tmp_path / "part-1.parquet"
        broken.write_bytes(broken.read_bytes()[:300])
        for streaming in (False, True):
            with pytest.raises(ValueError, match=r"^\S*part-1\.parquet cannot be read as Parquet.*--skip-bad"):
                open_corpus(DataConfig(str(tmp_path), streaming=streaming))
            corpus = open_corpus(DataConfig(str(tmp_path), streaming=streaming, skip_bad=True))
            assert ["part-1.parquet" in line for line in corpus.bad] == [True]
        assert len(rows_of(open_corpus(DataConfig(str(tmp_path), skip_bad=True)))) == 8


def test_what_is_not_read_is_told(tmp_path, capsys):
    path = table(
        tmp_path / "t.csv",
        "query,answer,url,split",
        *(f"q{i},a{i},u{i},{['train', 'test', 'dev'][i % 3]}" for i in range(9)),
    )
    notes = open_corpus(DataConfig(path)).notes
    assert "not read: url" in notes
    assert any(note.startswith("3 rows are of other parts than train and test") for note in notes)
    assert (
        main(
            [
                "train",
                "--data",
                path,
                "--steps",
                "1",
                "--batch-size",
                "3",
                "--threads",
                "1",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    assert "note: not read: url" in capsys.readouterr().err


def test_an_image_of_bytes_that_is_none(tmp_path):
    frame = pd.DataFrame(
        {"image": [{"bytes": png(i) if i != 2 else None, "path": None} for i in range(6)], "label": [0, 1] * 3}
    )
    frame.to_parquet(path := str(tmp_path / "t.parquet"))
    with pytest.raises(ValueError, match=r"row 3: column 'image.bytes': cannot be read as an image \(is empty"):
        open_corpus(DataConfig(path))


@pytest.mark.parametrize("odd", [["x y"], ["x", "y"], [], [1]], ids=str)
@pytest.mark.parametrize("column", ["query", "reply", "label"])
def test_a_list_among_texts_is_a_bad_cell(tmp_path, column, odd):
    """One such cell leaves the column what it is."""
    rows = [{"query": f"q{i}", "reply": f"a{i}", "label": "uv"[i % 2]} for i in range(8)]
    rows[3] |= {column: odd}
    path = json_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(
        ValueError, match=rf"^\S*t\.jsonl:4: column '{column}' holds .*most rows hold a text.*--skip-bad"
    ):
        open_corpus(DataConfig(path, positive="reply"))
    corpus = open_corpus(DataConfig(path, positive="reply", skip_bad=True))
    assert [(column.name, column.role) for column in corpus.columns] == [("query", "anchor"), ("reply", "positive")]
    assert rows_of(corpus) == [(f"q{i}", f"a{i}") for i in range(8) if i != 3]
    assert (corpus.class_names, len(corpus.bad)) == (("u", "v"), 1)
    stream = open_corpus(DataConfig(path, positive="reply", skip_bad=True, streaming=True))
    batches = [*Loader(stream.train, 8, seed=0).batches(stop=2)]
    assert {row for batch in batches for row in zip(*batch.columns.values())} == {*rows_of(corpus)}
    assert {line.partition(" ")[0] for batch in batches for line in batch.bad} == {f"{path}:4:"}


@pytest.mark.parametrize("odd", [["3.png"], [], ["a.png", "b.png"]], ids=str)
def test_a_list_among_paths_of_images_is_a_bad_cell(tmp_path, odd):
    for i in range(8):
        picture(tmp_path / f"{i}.png", 20 * i)
    rows = [{"image": odd if i == 2 else f"{i}.png", "label": i % 2} for i in range(8)]
    path = json_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=r"^\S*t\.jsonl:3: column 'image' holds .*--skip-bad"):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert (corpus.columns[0].kind, len(corpus.train) + len(corpus.test), len(corpus.bad)) == ("image", 7, 1)


@pytest.mark.parametrize("odd", [[], [1.0], "NA"], ids=str)
def test_a_list_among_numbers_is_a_bad_cell(tmp_path, odd):
    rows = [{"x": odd if i == 5 else 1.5 * i, "y": i, "label": "ab"[i % 2]} for i in range(8)]
    path = json_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=r"^\S*t\.jsonl:6: column 'x' holds .*--skip-bad"):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert (corpus.channels, len(corpus.train) + len(corpus.test), len(corpus.bad)) == (2, 7, 1)


def test_a_cell_that_is_unlike_the_others_within(tmp_path):
    rows = [{"text": f"t{i}", "series": [[1.0, i], [2, 3]], "label": "ab"[i % 2]} for i in range(8)]
    rows[3]["series"] = [[1.0, 2.0], ["x", 3.0]]
    path = json_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(
        ValueError, match=rf"^{path}:4: column 'series' holds .*, unlike the rows before: mend it.*--skip-bad"
    ):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert (len(corpus.train) + len(corpus.test), len(corpus.bad)) == (7, 1)


def test_blanks_around_the_names_of_columns(tmp_path):
    path = json_lines(tmp_path / "t.jsonl", [{"text ": f"t{i}", " label": "ab"[i % 2]} for i in range(8)])
    for streaming in (False, True):
        corpus = open_corpus(DataConfig(path, streaming=streaming))
        assert (corpus.columns[0].name, corpus.class_names) == ("text", ("a", "b"))
