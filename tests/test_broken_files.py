"""Files of many rows that are broken within: named, and the rest is read."""

from __future__ import annotations

import io
import tarfile

import pandas as pd
import pytest

from nearfar.data.config import DataConfig
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from tables import png, rows_of, shards


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What ``datasets`` keeps is kept where the test's files are."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def streamed(data: str, rows: int) -> tuple[set, set[str]]:
    """Texts of an epoch that leaves bad rows out, and what is said of those."""
    corpus = open_corpus(DataConfig(data, streaming=True, skip_bad=True))
    [batch] = Loader(corpus.train, rows, seed=0).batches(stop=1)
    return {*next(held for held in batch.columns.values() if isinstance(held, list))}, {*corpus.bad}


def test_one_text_of_a_shard_that_is_no_utf_8(tmp_path):
    """It costs its row, and neither its shard nor the others."""
    paths = shards(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes().replace(b"caption 5", b"caption \xe9"))
    told = r"^\S*s-1\.tar: \S*5: column 'txt' cannot be read \(UnicodeDecodeError.*--skip-bad"
    for streaming in (False, True):
        with pytest.raises(ValueError, match=told) as error:
            open_corpus(DataConfig(str(tmp_path), streaming=streaming))
        assert str(error.value).count(".tar") == 1
    wanted = {f"caption {i}" for i in range(12) if i != 5}
    corpus = open_corpus(DataConfig(str(tmp_path), skip_bad=True))
    assert ({text for (text,) in rows_of(corpus)}, len(corpus.bad)) == (wanted, 1)
    again = open_corpus(DataConfig(str(tmp_path), skip_bad=True))  # from what was kept on disk
    assert again.bad == corpus.bad
    assert streamed(str(tmp_path), 11) == (wanted, {*corpus.bad})


def test_one_class_of_a_shard_that_is_no_number(tmp_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as tar:
            for i in range(4 * shard, 4 * shard + 8):
                for ending, held in (
                    ("png", png(10 * i)),
                    ("txt", b"t%d" % i),
                    ("cls", b"x" if i == 6 else b"%d" % (i % 2)),
                ):
                    info = tarfile.TarInfo(f"{i:03}.{ending}")
                    info.size = len(held)
                    tar.addfile(info, io.BytesIO(held))
    (tmp_path / "s-2.tar").unlink()
    told = r"^\S*s-0\.tar: 006: column 'cls' cannot be read \(ValueError: invalid literal"
    for streaming in (False, True):
        with pytest.raises(ValueError, match=told):
            open_corpus(DataConfig(str(tmp_path), streaming=streaming))
    corpus = open_corpus(DataConfig(str(tmp_path), skip_bad=True))
    assert (len(corpus.train) + len(corpus.test), len(corpus.bad), corpus.class_names) == (14, 2, ("0", "1"))
    texts, bad = streamed(str(tmp_path), 14)
    assert (texts, bad) == ({f"t{i}" for i in range(12) if i != 6}, {*corpus.bad})


def test_bytes_that_are_no_image_are_not_told_by_their_address(tmp_path):
    frame = pd.DataFrame({"image": [png(i) if i != 2 else b"junk" for i in range(6)], "label": [0, 1] * 3})
    frame.to_parquet(path := str(tmp_path / "t.parquet"))
    with pytest.raises(
        ValueError, match=r"row 3: column 'image': cannot be read as an image \(cannot identify image file\)"
    ):
        open_corpus(DataConfig(path))


class TestParquet:
    @pytest.fixture
    def folder(self, tmp_path):
        for i in range(3):
            frame = pd.DataFrame({"text": [f"a {i} {j}" for j in range(40)], "label": [*"abab"] * 10})
            frame.to_parquet(tmp_path / f"part-{i}.parquet")
        return tmp_path

    def texts(self, kept):
        return {f"a {i} {j}" for i in kept for j in range(40)}

    @pytest.mark.parametrize("which", [0, 2])
    def test_a_page_that_is_broken(self, folder, which):
        path = folder / f"part-{which}.parquet"
        raw = bytearray(path.read_bytes())
        raw[20:60] = bytes(40)
        path.write_bytes(bytes(raw))
        for streaming in (False, True):
            with pytest.raises(ValueError, match=rf"^{path} cannot be read .*--skip-bad") as error:
                open_corpus(DataConfig(str(folder), streaming=streaming))
            assert str(error.value).count(".parquet") == 1
        kept = {0, 1, 2} - {which}
        corpus = open_corpus(DataConfig(str(folder), skip_bad=True))
        assert {text for (text,) in rows_of(corpus)} == self.texts(kept)
        stream = open_corpus(DataConfig(str(folder), streaming=True, skip_bad=True))
        assert [line.partition(" ")[0] for line in stream.bad] == [str(path)]
        if which == 0:  # the library waits some seconds when it is left before the end
            [batch] = Loader(stream.train, 80, seed=0).batches(stop=1)
            assert {*batch.columns["text"]} == self.texts(kept)

    @pytest.mark.parametrize("which", [0, 2])
    def test_other_columns_than_most(self, folder, which):
        path = folder / f"part-{which}.parquet"
        pd.DataFrame({"txt": ["b"] * 4, "label": [1, 2] * 2}).to_parquet(path)
        for streaming in (False, True):
            with pytest.raises(
                ValueError,
                match=rf"^{path} has the columns label, txt, where most others have label, text: .*--skip-bad",
            ) as error:
                open_corpus(DataConfig(str(folder), streaming=streaming))
            assert "\n" not in str(error.value)
        corpus = open_corpus(DataConfig(str(folder), skip_bad=True))
        assert {text for (text,) in rows_of(corpus)} == self.texts({0, 1, 2} - {which})
        stream = open_corpus(DataConfig(str(folder), streaming=True, skip_bad=True))
        assert [line.partition(" ")[0] for line in stream.bad] == [str(path)]
