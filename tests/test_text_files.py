"""Text files whoever wrote them: encodings, ends of lines, quotation marks, and where a line cannot be read."""

from __future__ import annotations

import csv
import io
import random

import pytest

from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from tables import json_lines, rows_of, write

STRAY = 'text\tlabel\nfoo\ta\n"never closed\tb\nnormal\ta\nends so"\ta\n5" disk\tb\nx "mid" y\tb\n'
"""Six rows; read by RFC 4180, the mark of the second encloses two lines."""


def texts(path: str, **options) -> list[str]:
    return [row[0] for row in rows_of(open_corpus(DataConfig(path, **options)))]


def test_stray_quotes_between_tabs_are_characters(tmp_path):
    wanted = ['"never closed', '5" disk', 'ends so"', "foo", "normal", 'x "mid" y']
    assert texts(write(tmp_path / "t.tsv", STRAY)) == wanted
    assert texts(write(tmp_path / "t.csv", STRAY)) == wanted  # tabs say it, not the ending
    assert texts(write(tmp_path / "t.tsv", STRAY.replace("\n", "\r\n"))) == wanted


def test_stray_quotes_in_the_last_column(tmp_path):
    path = write(tmp_path / "t.tsv", 'label\ttext\na\t"x\nb\ty"\na\t"\nb\t"never\na\tok\nb\t"Hello," he said, "bye"\n')
    assert texts(path) == ['"', '"Hello," he said, "bye"', '"never', '"x', "ok", 'y"']


def test_a_line_cut_short_among_stray_quotes_is_the_only_bad_one(tmp_path):
    path = write(tmp_path / "t.tsv", 'text\tlabel\n"x\t1\ncut\ny"\t2\nz\t1\nw\t2\n')
    with pytest.raises(ValueError, match=r"t\.tsv:3: has 1 cells where the first line names 2 columns"):
        open_corpus(DataConfig(path))
    assert texts(path, skip_bad=True) == ['"x', "w", 'y"', "z"]


def test_cells_in_quotes_between_tabs_hold_tabs_or_line_breaks(tmp_path):
    path = write(tmp_path / "t.tsv", 'text\tlabel\n"say ""hi"""\ta\n"two\nlines"\tb\n"tab\tinside"\ta\nlast\tb\n')
    assert texts(path) == ["last", 'say "hi"', "tab\tinside", "two\nlines"]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_what_the_csv_module_writes_is_read_back(tmp_path, mark):
    """A tab and a line break in one cell are the only thing that tab-separated files cannot hold."""
    draw = random.Random(0)
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        cells = ["".join(draw.choice('ab"\n é' + mark) for _ in range(draw.randint(1, 6))) for _ in range(120)]
        cells = [f"x{cell.replace(mark, '') if mark == chr(9) and chr(10) in cell else cell}x" for cell in cells]
        rows = [cells[i : i + 3] for i in range(0, 120, 3)]
        file = io.StringIO()
        csv.writer(file, delimiter=mark, quoting=quoting, lineterminator="\n").writerows(
            [["text", "answer", "c"], *rows]
        )
        corpus = open_corpus(DataConfig(write(tmp_path / "t.csv", file.getvalue()), positive="answer", negative=("c",)))
        assert rows_of(corpus) == sorted(map(tuple, rows))


def test_broken_quotes_lose_their_own_line_alone(tmp_path):
    path = write(tmp_path / "t.csv", 'text,label\n"open,1\nb,2\n"again,1\nd,2\ne,1\n')
    with pytest.raises(ValueError, match=r"t\.csv:2: cannot be read as CSV.*t\.csv:4: .*close its.*2 bad rows in all"):
        open_corpus(DataConfig(path))
    assert texts(path, skip_bad=True) == ["b", "d", "e"]
    path = write(tmp_path / "u.csv", 'text,label\na,1\nb,2\n"never closed,2\nd,1\ne,2\n')  # to the end of the file
    assert texts(path, skip_bad=True) == ["a", "b", "d", "e"]


def test_a_bad_record_of_several_lines_says_how_far_it_goes(tmp_path):
    path = write(tmp_path / "t.csv", 'text,label\na,1\n"b\nc",2,3\nd,2\ne,1\n')
    with pytest.raises(
        ValueError, match=r"t\.csv:3: has 3 cells where .* 2 columns; its quotation marks reach to line 4"
    ):
        open_corpus(DataConfig(path))


@pytest.mark.parametrize("lines", [1, 3000], ids=["short", "longer than what is read at a time"])
def test_a_byte_that_is_no_utf_8_is_named_by_its_place(tmp_path, lines):
    raw = b"text,label\n" + b"abc,x\n" * lines + "Zürich,y\nRöm,y\nd,x\ne,y\n".encode("latin-1")
    path = write(tmp_path / "t.csv", raw)
    found = rf"t\.csv:{lines + 2}: is not UTF-8: byte {raw.index(0xFC)} of the file is 0xfc.*t\.csv:{lines + 3}: .*"
    with pytest.raises(ValueError, match=found + rf"byte {raw.index(0xF6)} of the file is 0xf6.*2 bad rows in all"):
        open_corpus(DataConfig(path))
    corpus = open_corpus(DataConfig(path, skip_bad=True))
    assert (len(corpus.bad), len(rows_of(corpus))) == (2, lines + 2)
    raw = b"\xef\xbb\xbf" + raw.replace(b"x\n", b"x\r\n")  # a mark in front, and another end of line
    with pytest.raises(ValueError, match=rf":{lines + 2}: is not UTF-8: byte {raw.index(0xFC)} of the file"):
        open_corpus(DataConfig(write(tmp_path / "t.csv", raw)))


def test_a_byte_that_is_no_utf_8_in_other_files(tmp_path):
    raw = '{"text": "a"}\n{"text": "Zürich"}\n{"text": "b"}\n{"text": "c"}\n'.encode("latin-1")
    path = write(tmp_path / "t.jsonl", raw)
    with pytest.raises(ValueError, match=rf"t\.jsonl:2: is not UTF-8: byte {raw.index(0xFC)} of the file is 0xfc"):
        open_corpus(DataConfig(path))
    assert texts(path, skip_bad=True) == ["a", "b", "c"]
    raw = "x,label\n1,a\n2,Zürich\n3,a\n4,b\n5,b\n".encode("latin-1")
    path = write(tmp_path / "n.csv", raw)
    with pytest.raises(ValueError, match=rf"n\.csv:3: is not UTF-8: byte {raw.index(0xFC)} of the file"):
        load_data(path)
    assert len(load_data(path, skip_bad=True).bad) == 1
    with pytest.raises(ValueError, match=r"h\.csv:1: is not UTF-8: byte 1 "):  # the names of the columns
        open_corpus(DataConfig(write(tmp_path / "h.csv", "tëxt\na\n".encode("latin-1"))))


def test_sixteen_bits_are_told_by_their_mark(tmp_path):
    assert texts(write(tmp_path / "t.csv", "text,label\nä,x\nb,y\nç,x\n", "utf-16")) == ["b", "ä", "ç"]


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    path = json_lines(
        tmp_path / "t.jsonl", [{"text": "a"}, {"text": "\ud83d"}, {"text": "\ud83d\ude00"}, {"text": "b"}]
    )
    with pytest.raises(ValueError, match=r"t\.jsonl:2: holds half a surrogate pair"):
        open_corpus(DataConfig(path))
    assert texts(path, skip_bad=True) == ["a", "b", "😀"]


ROWS = "text,label\n" + "".join(f"wörd {i},{'ab'[i % 2]}\n" for i in range(8))


def test_utf_16_that_was_cut_or_is_broken(tmp_path):
    """A line is bad, as any other, and the rest is read."""
    cut = write(tmp_path / "cut.csv", ROWS.encode("utf-16")[:-3])
    half = write(tmp_path / "half.csv", ROWS.encode("utf-16-be").replace("d 4".encode("utf-16-be"), b"\xd8\0\0 \x004"))
    (tmp_path / "half.csv").write_bytes(b"\xfe\xff" + (tmp_path / "half.csv").read_bytes())
    for path, line, at in ((cut, 9, 8), (half, 6, 4)):
        for streaming in (False, True):
            with pytest.raises(
                ValueError, match=rf"^{path}:{line}: is not UTF-16 at its character {at} .*save it as UTF-8.*--skip-bad"
            ):
                open_corpus(DataConfig(path, streaming=streaming))
        assert texts(path, skip_bad=True) == [f"wörd {i}" for i in range(8) if i != line - 2]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_wide_characters_without_a_mark(tmp_path, encoding, ending):
    path = write(tmp_path / f"t.{ending}", ROWS, encoding)
    for streaming in (False, True):
        with pytest.raises(
            ValueError, match=rf"{path} is UTF-32, or UTF-16 without its byte order mark: save it as UTF-8"
        ):
            open_corpus(DataConfig(path, streaming=streaming))


def test_nul_characters(tmp_path):
    path = write(tmp_path / "h.csv", ROWS.replace("text", "te\0xt"))
    with pytest.raises(ValueError, match=rf"^{path}:1: holds a NUL character.*save the file as UTF-8"):
        open_corpus(DataConfig(path))
    path = write(tmp_path / "t.csv", ROWS.replace("wörd 3", "w\0rd 3"))
    with pytest.raises(ValueError, match=rf"^{path}:5: holds a NUL character.*--skip-bad"):
        open_corpus(DataConfig(path))
    assert len(texts(path, skip_bad=True)) == 7


def test_blanks_before_quotation_marks(tmp_path):
    rows = "".join(f'"a, {i}", "{"uv"[i % 2]}"\n' for i in range(6))
    corpus = open_corpus(DataConfig(write(tmp_path / "t.csv", '"text", "label"\n' + rows)))
    assert (rows_of(corpus), corpus.class_names) == ([(f"a, {i}",) for i in range(6)], ("u", "v"))


def test_nan_is_no_text(tmp_path):
    rows = [{"text": float("nan") if i == 2 else f"t{i}", "label": "ab"[i % 2]} for i in range(8)]
    path = json_lines(tmp_path / "t.jsonl", rows)
    with pytest.raises(ValueError, match=rf"^{path}:3: column 'text' is empty.*--skip-bad"):
        open_corpus(DataConfig(path))
    assert texts(path, skip_bad=True) == [f"t{i}" for i in range(8) if i != 2]
