"""Data sets of every kind, opened for training: what is read, how it is split, and what is said of what cannot be."""

import io
import itertools
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nearfar.data.config import DataConfig
from nearfar.data.loading import Loader
from nearfar.data.open import open_corpus
from nearfar.data.pixels import decode_image
from nearfar.data.sources import SOURCES
from nearfar.data.splits import split_rows
from nearfar.data.words import EMOJI_PLACES, WORDNET_CLASSES, WORDNET_PLACES

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What ``datasets`` keeps is kept where the test's files are."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def picture(path: Path, value: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 10, 20)).save(path, pnginfo=signed(str(path)))
    return path


def signed(name: str) -> PngInfo:
    """What makes the bytes of a file its own, whatever its pixels are."""
    info = PngInfo()
    info.add_text("Comment", name)
    return info


def png(value: int, size: int = 4, name: str = "") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(file, "PNG", pnginfo=signed(name))
    return file.getvalue()


def both(corpus):
    """All rows as (text of columns…, label, group), train and test."""
    for part in (corpus.train, corpus.test):
        batch = part.fetch(range(len(part)))
        yield list(zip(*(batch.columns[column.name] for column in corpus.columns)))


class TestTables:
    def test_quotes_line_breaks_and_every_script(self, tmp_path):
        path = write(tmp_path / "faq.csv", 'question;answer\n"Wie, ""bitte""?";"zwei\nZeilen"\nçא漢;😀\n\nlast;one\n')
        corpus = open_corpus(DataConfig(path))
        train, test = both(corpus)
        assert sorted(train + test) == [('Wie, "bitte"?', "zwei\nZeilen"), ("last", "one"), ("çא漢", "😀")]
        assert [(c.name, c.kind, c.role) for c in corpus.columns] == [
            ("question", "text", "anchor"), ("answer", "text", "positive"),
        ]  # fmt: skip
        names = {corpus.train.fetch([i]).columns["question"][0]: corpus.train.name(i) for i in range(len(corpus.train))}
        names |= {corpus.test.fetch([i]).columns["question"][0]: corpus.test.name(i) for i in range(len(corpus.test))}
        assert names == {'Wie, "bitte"?': f"{path}:2", "çא漢": f"{path}:4", "last": f"{path}:6"}

    def test_triplets_of_json_lines_with_lists_of_negatives(self, tmp_path):
        rows = [
            {"query": f"q{i}", "positive": f"p{i}", "negatives": [f"n{i}", f"m{i}", "x"][: 2 + i % 2]} for i in range(9)
        ]
        path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
        corpus = open_corpus(DataConfig(path))
        assert [(c.name, c.role) for c in corpus.columns] == [
            ("query", "anchor"), ("positive", "positive"), ("negatives 1", "negative"), ("negatives 2", "negative"),
        ]  # fmt: skip
        assert sorted(itertools.chain(*both(corpus))) == [(f"q{i}", f"p{i}", f"n{i}", f"m{i}") for i in range(9)]

    def test_columns_by_the_users_names(self, tmp_path):
        path = write(tmp_path / "t.tsv", "a\tb\tc\tsort\n" + "".join(f"a{i}\tb{i}\tc{i}\ts{i % 2}\n" for i in range(8)))
        corpus = open_corpus(DataConfig(path, text="c", positive="a", negative=("b",), label="sort"))
        assert [(c.name, c.role) for c in corpus.columns] == [("c", "anchor"), ("a", "positive"), ("b", "negative")]
        assert corpus.class_names == ("s0", "s1")
        with pytest.raises(
            ValueError, match=r"t: there is no column 'sotr'; did you mean 'sort'\? Known: a, b, c, sort"
        ):
            open_corpus(DataConfig(path, label="sotr"))

    def test_no_input_is_an_error_that_lists_the_columns(self, tmp_path):
        path = write(tmp_path / "t.csv", "first,second\nab,cd\nef,gh\n")
        with pytest.raises(ValueError, match=r"has the columns first, second: none is an input.*--text"):
            open_corpus(DataConfig(path))

    def test_numbers_become_a_vector_as_they_are(self, tmp_path):
        """The encoder scales them: rows of another file, or given by hand, must not be scaled by their own mean."""
        path = write(tmp_path / "n.csv", "x,label,year\n" + "".join(f"{i},c{i % 2},{2000 + i}\n" for i in range(30)))
        corpus = open_corpus(DataConfig(path))
        assert (corpus.columns[0].kind, corpus.channels, corpus.class_names) == ("vector", 2, ("c0", "c1"))
        for part in (corpus.train, corpus.test):
            held = part.fetch(range(len(part))).columns["vector"]
            assert held.dtype == torch.float32
            lines = [int(part.name(row).rpartition(":")[2]) - 2 for row in range(len(part))]
            assert held.tolist() == [[line, 2000 + line] for line in lines]

    def test_measurements_and_a_word_are_a_vector(self, tmp_path):
        """A word that no usual name calls a text is no input beside several numbers: it names a class, or a thing."""
        path = write(
            tmp_path / "iris.csv", "length,width,species\n" + "".join(f"{i}.5,{i},s{i % 3}\n" for i in range(9))
        )
        assert [(c.name, c.kind) for c in open_corpus(DataConfig(path)).columns] == [("vector", "vector")]
        assert open_corpus(DataConfig(path, label="species")).class_names == ("s0", "s1", "s2")
        assert open_corpus(DataConfig(path, text="species")).columns[0].kind == "text"

    def test_lists_of_numbers_are_vectors_and_lists_of_those_series(self, tmp_path):
        lines = "".join(json.dumps({"embedding": [i, 2, 3], "label": "ab"[i % 2]}) + "\n" for i in range(6))
        corpus = open_corpus(DataConfig(write(tmp_path / "v.jsonl", lines)))
        assert (corpus.columns[0].kind, corpus.channels) == ("vector", 3)
        lines = "".join(json.dumps({"signal": [[i, 2, 3], [4, 5, 6]]}) + "\n" for i in range(6))
        corpus = open_corpus(DataConfig(write(tmp_path / "s.jsonl", lines)))
        assert corpus.columns[0].kind == "series"
        assert corpus.train.fetch([0, 1]).columns["signal"].shape == (2, 2, 3)

    def test_a_broken_record_is_named_by_its_line(self, tmp_path):
        path = write(tmp_path / "b.csv", "text,positive\na,b\nc\n,d\ne,f\ng,h\n")
        with pytest.raises(ValueError, match=r"b\.csv:3: has 1 cells where the first line names 2 columns.*--skip-bad"):
            open_corpus(DataConfig(path))
        corpus = open_corpus(DataConfig(path, skip_bad=True))
        assert len(corpus.train) + len(corpus.test) == 3
        assert [bad.partition(": ")[2] for bad in corpus.bad] == [
            "has 1 cells where the first line names 2 columns", "column 'text' is empty",
        ]  # fmt: skip
        assert corpus.bad[1].startswith(f"{path}:4")

    def test_broken_json_is_named_by_its_line(self, tmp_path):
        path = write(tmp_path / "b.jsonl", '{"text": "a"}\n{"text": \n["a"]\n{"text": "b"}\n')
        with pytest.raises(ValueError, match=r"b\.jsonl:2: is not JSON"):
            open_corpus(DataConfig(path))
        assert [bad.split(": ")[1][:12] for bad in open_corpus(DataConfig(path, skip_bad=True)).bad] == [
            "is not JSON ",
            "holds a list",
        ]
        with pytest.raises(ValueError, match=r"a\.json is one JSON array: wanted one object a line"):
            open_corpus(DataConfig(write(tmp_path / "a.json", '[{"text": "a"}]')))
        path = write(tmp_path / "k.jsonl", '{"text": "a"}\n{"text": [1]}\n')
        with pytest.raises(ValueError, match=r"k\.jsonl:2: column 'text' holds \[1\]"):
            open_corpus(DataConfig(path))

    def test_a_missing_label_is_an_unknown_class(self, tmp_path):
        path = write(tmp_path / "l.csv", "text,label\n" + "".join(f"t{i},{['x', 'y', ''][i % 3]}\n" for i in range(30)))
        corpus = open_corpus(DataConfig(path))
        assert corpus.class_names == ("x", "y")
        assert sorted(set(corpus.train.labels.tolist())) == [-1, 0, 1]

    def test_measurements_are_no_classes(self, tmp_path):
        path = write(tmp_path / "m.csv", "text,label\n" + "".join(f"t{i},{i / 7}\n" for i in range(20)))
        assert open_corpus(DataConfig(path)).class_names == ()

    def test_parquet_with_its_own_split_column(self, tmp_path):
        table = datasets.Dataset.from_dict({
            "anchor": [f"a{i}" for i in range(10)], "positive": [f"p{i}" for i in range(10)],
            "split": ["train"] * 7 + ["Test"] * 3,
        })  # fmt: skip
        table.to_parquet(tmp_path / "d.parquet")
        corpus = open_corpus(DataConfig(str(tmp_path / "d.parquet")))
        assert [row[0] for row in list(both(corpus))[1]] == ["a7", "a8", "a9"]
        assert corpus.train.name(2) == "d: row 3"

    def test_files_named_train_and_test_are_the_split(self, tmp_path):
        for part, count in (("train", 5), ("test", 2)):
            write(tmp_path / "set" / f"{part}.csv", "query,answer\n" + "".join(f"{part}{i},b\n" for i in range(count)))
        train, test = both(open_corpus(DataConfig(str(tmp_path / "set"))))
        assert [row[0] for row in test] == ["test0", "test1"]
        assert len(train) == 5
        assert open_corpus(DataConfig(str(tmp_path / "set"))).test.name(1) == str(tmp_path / "set" / "test.csv") + ":3"

    @pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
    def test_what_separates_cells_is_told_by_the_first_line(self, tmp_path, mark):
        """Not by what its names hold in quotation marks."""
        names = [f'"a {other * 6} ""name"""' for other in ",;\t|" if other != mark]
        table = mark.join(["text", "positive", *names]) + "\n"
        table += "".join(mark.join([f"t{i}", f"p{i}", "1", "2", "3"]) + "\n" for i in range(6))
        corpus = open_corpus(DataConfig(write(tmp_path / "t.csv", table)))
        assert [(column.name, column.role) for column in corpus.columns] == [
            ("text", "anchor"),
            ("positive", "positive"),
        ]

    def test_image_paths_are_relative_to_the_file(self, tmp_path):
        for i in range(6):
            picture(tmp_path / "in" / "ab" / f"ü {i}.png", 40 * i)
        path = write(
            tmp_path / "in" / "t.csv", "file_name,caption\n" + "".join(f"ab/ü {i}.png,n {i}\n" for i in range(6))
        )
        corpus = open_corpus(DataConfig(path))
        assert [(c.name, c.kind, c.role) for c in corpus.columns] == [
            ("file_name", "image", "anchor"), ("caption", "text", "positive"),
        ]  # fmt: skip
        assert (corpus.size, corpus.channels) == ((5, 6), 3)
        for part in (corpus.train, corpus.test):
            batch = part.fetch(range(len(part)))
            for image, text in zip(batch.columns["file_name"], batch.columns["caption"]):
                assert image[:, 0, 0].tolist() == [40 * int(text[2:]), 10, 20]

    def test_an_image_that_is_missing_or_broken_is_named(self, tmp_path):
        for i in range(5):
            picture(tmp_path / f"{i}.png", i)
        (tmp_path / "2.png").unlink()
        (tmp_path / "3.png").write_text("no image")
        path = write(tmp_path / "t.csv", "image,text\n" + "".join(f"{i}.png,n{i}\n" for i in range(5)))
        with pytest.raises(ValueError, match=r"t\.csv:4: column 'image': cannot be read as an image.*2\.png"):
            open_corpus(DataConfig(path))
        corpus = open_corpus(DataConfig(path, skip_bad=True))
        assert len(corpus.train) + len(corpus.test) == 3
        assert [bad.split(":")[1] for bad in corpus.bad] == ["4", "5"]

    def test_metadata_beside_images(self, tmp_path):
        for i in range(4):
            picture(tmp_path / f"{i}.png", i)
        write(
            tmp_path / "metadata.jsonl",
            "".join(json.dumps({"file_name": f"{i}.png", "text": f"t{i}"}) + "\n" for i in range(4)),
        )
        assert [c.kind for c in open_corpus(DataConfig(str(tmp_path))).columns] == ["image", "text"]


class TestFolders:
    def folder(self, root: Path, classes=("b", "<script>"), count: int = 6) -> str:
        for k, name in enumerate(classes):
            for i in range(count):
                picture(root / name / f"{i}.png", 100 * k + i)
        return str(root)

    def test_by_class(self, tmp_path):
        corpus = open_corpus(DataConfig(self.folder(tmp_path)))
        assert corpus.class_names == ("<script>", "b")
        assert (len(corpus.train), len(corpus.test)) == (8, 4)
        assert corpus.test.labels.tolist() == [0, 0, 1, 1]
        batch = corpus.train.fetch([7, 0])
        assert batch.columns["image"].dtype == torch.uint8
        assert batch.columns["image"][0, 0, 0, 0].item() == int(Path(corpus.train.name(7)).stem)
        assert batch.columns["image"][1, 0, 0, 0].item() == 100 + int(Path(corpus.train.name(0)).stem)
        assert "<script>" in corpus.train.name(0)

    def test_with_a_test_folder(self, tmp_path):
        self.folder(tmp_path / "train")
        self.folder(tmp_path / "test", ("b", "new"), 2)
        corpus = open_corpus(DataConfig(str(tmp_path)))
        assert (len(corpus.train), len(corpus.test)) == (12, 4)
        assert corpus.class_names == ("<script>", "b", "new")  # an identity may come in the test alone

    def test_flat_and_without_labels(self, tmp_path):
        for i in range(6):
            picture(tmp_path / f"{i}.png", i, mode="L")
        corpus = open_corpus(DataConfig(str(tmp_path)))
        assert (corpus.train.labels, corpus.class_names, corpus.channels) == (None, (), 1)
        assert (len(corpus.train), len(corpus.test)) == (4, 2)

    def test_parts_without_classes(self, tmp_path):
        for part, count in (("train", 5), ("val", 2)):
            for i in range(count):
                picture(tmp_path / part / f"{i}.png", i)
        corpus = open_corpus(DataConfig(str(tmp_path)))
        assert (len(corpus.train), len(corpus.test), corpus.train.labels) == (5, 2, None)

    def test_identities_are_held_out_whole(self, tmp_path):
        corpus = open_corpus(DataConfig(self.folder(tmp_path, [f"person {i}" for i in range(9)], 3), id="label"))
        train, test = set(corpus.train.labels.tolist()), set(corpus.test.labels.tolist())
        assert (len(train), len(test)) == (6, 3)
        assert not train & test
        assert not set(corpus.train.groups.tolist()) & set(corpus.test.groups.tolist())

    def test_the_commonest_size_or_the_one_given(self, tmp_path):
        self.folder(tmp_path)
        picture(tmp_path / "b" / "other.png", size=(30, 40))
        assert open_corpus(DataConfig(str(tmp_path))).size == (5, 6)
        corpus = open_corpus(DataConfig(str(tmp_path), size=(8, 7)))
        assert corpus.train.fetch([0, 1]).columns["image"].shape == (2, 3, 8, 7)

    def test_a_file_cut_short_is_named_when_it_is_read(self, tmp_path):
        folder = self.folder(tmp_path)
        big = tmp_path / "b" / "zz.png"
        Image.effect_noise((64, 64), 50).convert("RGB").save(big)
        big.write_bytes(big.read_bytes()[:-2000])  # its header is whole
        corpus = open_corpus(DataConfig(folder, test_fraction=0.01))
        row = next(i for i in range(len(corpus.train)) if corpus.train.name(i) == str(big))
        with pytest.raises(ValueError, match=r"zz\.png: column 'image' cannot be read as an image.*--skip-bad"):
            corpus.train.fetch([row])
        corpus = open_corpus(DataConfig(folder, test_fraction=0.01, skip_bad=True))
        batch = corpus.train.fetch([0, row, 1])
        assert batch.rows.tolist() == [0, 1]
        assert len(batch.columns["image"]) == len(batch.labels) == 2
        assert len(batch.bad) == 1
        assert str(big) in batch.bad[0]
        alone = corpus.train.fetch([row])  # as the last piece of a part may hold no other row
        assert (len(alone), len(alone.labels), len(alone.columns["image"]), len(alone.bad)) == (0, 0, 0, 1)
        with pytest.raises(ValueError, match=r"none of the 1 rows of a batch could be read.*larger batch_size"):
            list(Loader(corpus.train, 1, seed=0).batches(stop=len(corpus.train)))

    def test_an_empty_folder_says_what_is_wanted(self, tmp_path):
        with pytest.raises(ValueError, match="holds no image: files ending in"):
            open_corpus(DataConfig(str(tmp_path)))


class TestSplits:
    def test_the_same_seed_gives_the_same_split(self):
        labels = torch.arange(90) % 3
        first, again, other = (split_rows(90, labels, seed=seed)[1] for seed in (1, 1, 2))
        assert first.tolist() == again.tolist() != other.tolist()
        assert labels[first].bincount().tolist() == [10, 10, 10]

    def test_groups_within_classes_are_drawn_class_by_class(self):
        groups = torch.arange(60) // 2  # thirty groups
        labels = groups % 3
        train, test = split_rows(60, labels, groups)
        assert not set(groups[train].tolist()) & set(groups[test].tolist())
        assert labels[test].bincount().tolist() == [6, 6, 6]  # a third of ten groups is three

    def test_groups_of_many_sizes_hold_out_about_the_part(self):
        groups = torch.repeat_interleave(torch.arange(40), torch.arange(40) + 1)
        train, test = split_rows(len(groups), None, groups, 0.25)
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(820))
        assert 0.25 <= len(test) / 820 < 0.30

    def test_no_more_than_five_thousand_are_held_out(self):
        assert len(split_rows(60_000)[1]) == 5_000

    def test_one_row_cannot_be_split(self):
        with pytest.raises(ValueError, match="two are the least"):
            split_rows(1)
        with pytest.raises(ValueError, match="all 3 rows have one id"):
            split_rows(3, None, torch.zeros(3, dtype=torch.int64))

    def test_captions_of_one_picture_are_not_parted(self, tmp_path):
        for i in range(12):
            picture(tmp_path / f"{i}.png", i)
        rows = "".join(f"{i}.png,a picture with number {i} in words {j}\n" for i in range(12) for j in range(5))
        for seed in range(3):
            corpus = open_corpus(DataConfig(write(tmp_path / "c.csv", "image,caption\n" + rows), split_seed=seed))
            seen, held = (
                {text.split()[4] for text in part.fetch(range(len(part))).columns["caption"]}
                for part in (corpus.train, corpus.test)
            )
            assert len(corpus.test) % 5 == 0
            assert not seen & held

    def test_a_conversation_is_not_parted_nor_bound_by_what_everyone_says(self, tmp_path):
        lines = [
            f"{said},{said} then\n" + f"{said} then,{said} at last\n" for said in (f"topic {i}" for i in range(20))
        ]
        path = write(tmp_path / "talk.csv", "text,positive\n" + "".join(lines))
        corpus = open_corpus(DataConfig(path))
        seen, held = ({" ".join(t[0].split()[:2]) for t in part} for part in both(corpus))
        assert not seen & held
        same = "".join(f"question {i // 2},yes\n" for i in range(40))  # each twice
        corpus = open_corpus(DataConfig(write(tmp_path / "yes.csv", "text,positive\n" + same)))
        seen, held = ({t[0] for t in part} for part in both(corpus))
        assert not seen & held

    def test_what_is_a_negative_elsewhere_ties_nothing(self, tmp_path):
        rows = "".join(f"q{i},a{i},a{(i + 1) % 30}\n" for i in range(30))
        corpus = open_corpus(DataConfig(write(tmp_path / "t.csv", "text,positive,negative\n" + rows)))
        assert (len(corpus.train), len(corpus.test)) == (20, 10)

    def test_two_rows_of_one_text_can_still_be_split(self, tmp_path):
        corpus = open_corpus(DataConfig(write(tmp_path / "2.csv", "text,positive\na,b\na,c\n")))
        assert (len(corpus.train), len(corpus.test)) == (1, 1)

    def test_ids_that_repeat_hold_out_whole_groups(self, tmp_path):
        path = write(tmp_path / "g.csv", "text,id\n" + "".join(f"t{i},p{i % 7}\n" for i in range(28)))
        corpus = open_corpus(DataConfig(path))
        texts = [{int(t[0][1:]) % 7 for t in part} for part in both(corpus)]
        assert not texts[0] & texts[1]
        unique = write(tmp_path / "u.csv", "text,id\n" + "".join(f"t{i},{i}\n" for i in range(28)))
        assert open_corpus(DataConfig(unique)).train.groups is None  # row numbers join nothing


class TestShardsAndHub:
    def shards(self, root: Path) -> str:
        number = 0
        for shard in range(3):
            with tarfile.open(root / f"s-{shard:03d}.tar", "w") as tar:
                for _ in range(6):
                    members = {
                        "png": png(number),
                        "json": json.dumps({"caption": f"n° {number}"}).encode(),
                        "cls": b"%d" % (number % 2),
                    }
                    for ending, data in members.items():
                        info = tarfile.TarInfo(f"{number:05d}.{ending}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                    number += 1
        return str(root / "s-{000..002}.tar")

    def test_shards(self, tmp_path):
        corpus = open_corpus(DataConfig(self.shards(tmp_path)))
        assert [(c.name, c.kind) for c in corpus.columns] == [("png", "image"), ("json.caption", "text")]
        assert (len(corpus.train), len(corpus.test), corpus.class_names) == (12, 6, ("0", "1"))
        batch = corpus.train.fetch(range(12))
        for image, text, label in zip(batch.columns["png"], batch.columns["json.caption"], batch.labels):
            assert image[0, 0, 0] == int(text[3:])
            assert label == int(text[3:]) % 2
        stem, key = corpus.train.name(0).split(".tar: ")
        assert int(key) // 6 == int(stem[-3:])

    def test_a_glob_and_a_folder_of_shards_are_the_same(self, tmp_path):
        self.shards(tmp_path)
        assert len(open_corpus(DataConfig(str(tmp_path / "s-*.tar"))).train) == 12
        assert len(open_corpus(DataConfig(str(tmp_path))).train) == 12

    def test_a_missing_or_broken_shard_is_named(self, tmp_path):
        pattern = self.shards(tmp_path)
        (tmp_path / "s-001.tar").unlink()
        with pytest.raises(ValueError, match=r"s-001\.tar is missing: .* names 3 shards"):
            open_corpus(DataConfig(pattern))
        (tmp_path / "s-001.tar").write_bytes(b"nothing of a tar" * 100)
        with pytest.raises(ValueError, match=r"s-001\.tar cannot be read"):
            open_corpus(DataConfig(str(tmp_path / "s-001.tar")))

    def hub(self, root: Path) -> str:
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        (root / "data").mkdir(parents=True)
        for part, count in (("train", 6), ("test", 3)):
            rows = {
                "img": [{"bytes": png(i, name=part), "path": None} for i in range(count)],
                "label": [i % 2 for i in range(count)],
            }
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(root / "data" / f"{part}-00000-of-00001.parquet")
        write(root / "README.md", "---\nconfigs:\n- config_name: default\n  data_files:\n"
              "  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*\n---\n")  # fmt: skip
        return str(root)

    def test_a_folder_laid_out_as_on_the_hub(self, tmp_path):
        corpus = open_corpus(DataConfig(self.hub(tmp_path / "animals")))
        assert (corpus.name, corpus.class_names, corpus.size) == ("animals", ("cat", "dog"), (4, 4))
        assert corpus.train.labels.tolist() == [0, 1] * 3
        assert corpus.test.fetch([2]).columns["img"][0, :, 0, 0].tolist() == [2, 0, 0]

    def test_a_hub_name_goes_to_the_library_as_it_is(self, tmp_path, monkeypatch):
        asked, real, folder = [], datasets.load_dataset, self.hub(tmp_path / "animals")
        monkeypatch.chdir(tmp_path)

        def load(*arguments, **options):
            asked.append((arguments, options))
            return real(folder, **options)

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert len(open_corpus(DataConfig("owner/animals:plain")).train) == 6
        assert asked == [(("owner/animals", "plain"), {})]
        corpus = open_corpus(DataConfig("owner/animals", streaming=True))
        assert corpus.class_names == ("cat", "dog")
        assert len(corpus.test) == 3

    @pytest.mark.parametrize("name", ["digit", "nowhere/pictures/of/mine", "a/b.csv", "tests/none", "shards.tar"])
    def test_what_is_no_hub_name_is_never_asked_for(self, name, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
        monkeypatch.chdir(Path(__file__).parent.parent)
        with pytest.raises(ValueError, match=r"neither a data set nor a path|no file is called"):
            open_corpus(DataConfig(name))


class TestSources:
    def test_digits_and_their_split(self):
        corpus = open_corpus(DataConfig("digits", test_fraction=0.5, split_seed=3))
        assert (len(corpus.train), len(corpus.test), corpus.size, corpus.channels) == (899, 898, (8, 8), 1)

    @pytest.mark.skipif(
        not any(Path(p).exists() for p in WORDNET_PLACES), reason="WordNet is missing: apt-get install wordnet-base"
    )
    def test_wordnet(self):
        corpus = open_corpus(DataConfig("wordnet"))
        assert len(corpus.train) + len(corpus.test) == 117_659
        assert len(corpus.class_names) == 45
        assert not set(corpus.train.groups.tolist()) & set(corpus.test.groups.tolist())
        for part in (corpus.train, corpus.test):
            for row, word in enumerate(part.data["word"]):
                if word == "dog" and "domesticated" in part.data["gloss"][row]:
                    assert corpus.class_names[part.labels[row]] == "noun.animal"
                    assert part.data["gloss"][row].startswith("a member of the genus Canis")
                    return
        pytest.fail("no dog")

    @pytest.mark.skipif(
        not any(Path(p).exists() for p in EMOJI_PLACES), reason="no emoji font: apt-get install fonts-noto-color-emoji"
    )
    def test_emoji(self):
        corpus = open_corpus(DataConfig("emoji"))
        assert 1_200 < len(corpus.train) + len(corpus.test) < 1_600
        assert (corpus.size, corpus.channels) == ((64, 64), 3)
        named = {
            name: image
            for part in (corpus.train, corpus.test)
            for image, name in zip(part.data["image"], part.data["name"])
        }
        red, green = (
            named["red apple"][:, 20:44, 20:44].float().mean((1, 2)),
            named["green apple"][:, 20:44, 20:44].float().mean((1, 2)),
        )
        assert red[0] > 2 * red[1]
        assert green[1] > green[0]

    @pytest.mark.parametrize(("name", "package"), [("wordnet", "wordnet-base"), ("emoji", "fonts-noto-color-emoji")])
    def test_one_that_is_missing_says_how_to_get_it(self, name, package, tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not in .*apt-get install {package}"):
            open_corpus(DataConfig(name, root=str(tmp_path)))

    def test_a_comparison_wants_numbers(self):
        from nearfar.data.sources import load_data

        with pytest.raises(ValueError, match="wordnet holds texts"):
            load_data("wordnet")
        assert len(WORDNET_CLASSES) == 45
        assert set(SOURCES) >= {"digits", "fashion-mnist", "wordnet", "emoji"}


class TestPixels:
    def test_a_photograph_is_turned_upright(self, tmp_path):
        image = Image.new("RGB", (40, 20), "blue")
        image.paste("red", (0, 0, 20, 20))
        exif = image.getexif()
        exif[0x0112] = 6  # the camera was held on its right side
        image.save(tmp_path / "p.jpg", exif=exif, quality=95)
        pixels = decode_image(tmp_path / "p.jpg", (40, 20), 3)
        assert pixels[0, :15].float().mean() > 200  # what was left is above
        assert pixels[2, 25:].float().mean() > 200

    def test_what_is_transparent_becomes_white(self, tmp_path):
        image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
        image.putpixel((0, 0), (255, 0, 0, 255))
        image.save(tmp_path / "t.png")
        pixels = decode_image(tmp_path / "t.png", (4, 4), 3)
        assert pixels[:, 0, 0].tolist() == [255, 0, 0]
        assert pixels[:, 1, 1].tolist() == [255, 255, 255]

    def test_sixteen_bits_keep_their_shades(self, tmp_path):
        Image.new("I;16", (4, 4), 128 * 256).save(tmp_path / "d.png")
        assert decode_image(tmp_path / "d.png", (4, 4), 1).unique().tolist() == [128]


@pytest.mark.parametrize("options", [{"test_fraction": 1.0}, {"split_seed": -1}, {"size": 0}, {"size": (4, 0)}])
def test_a_wrong_option_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        DataConfig(**options)
