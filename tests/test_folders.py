"""What in a folder is a row: hidden files never, and tables beside images in every part."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nearfar as nf
from nearfar.cli import main
from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from nearfar.report.files import read_json, write_json
from nearfar.training.events import EventLog, read_events
from photos import litter, names, noise, photos

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


# ---- hidden files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["classes", "parts", "flat"])
def test_hidden_files_are_never_rows_and_are_counted(layout, tmp_path):
    if layout == "flat":
        photos(tmp_path, "a")
        for path in (tmp_path / "a").iterdir():
            path.rename(tmp_path / path.name)
        (tmp_path / "a").rmdir()
        count = litter(tmp_path, ".")
    else:
        photos(tmp_path if layout == "classes" else tmp_path / "train")
        if layout == "parts":
            photos(tmp_path / "test", count=3, seed=500)
        count = litter(tmp_path if layout == "classes" else tmp_path / "train")
    corpus = open_corpus(DataConfig(str(tmp_path)))
    assert len(names(corpus)) == {"classes": 18, "parts": 24, "flat": 9}[layout]
    assert corpus.class_names == (() if layout == "flat" else ("a", "b"))
    assert corpus.notes == (f"passed over {count} hidden files: .DS_Store, ._0.png, .hidden.png …",)
    if layout != "flat":
        data = load_data(tmp_path)
        assert len(data.train_labels) + len(data.test_labels) == len(names(corpus))
        assert data.notes == corpus.notes


def test_a_folder_that_lies_in_a_hidden_one_is_read(tmp_path):
    assert len(names(open_corpus(DataConfig(str(photos(tmp_path / ".cache" / "x")))))) == 18


def test_files_that_are_no_images_are_counted_by_their_endings(tmp_path):
    photos(tmp_path)
    for name in ("a/0.json", "a/1.json", "b/clip.mov"):
        (tmp_path / name).write_bytes(b"x")
    assert open_corpus(DataConfig(str(tmp_path))).notes == (
        "passed over 3 files that are no image by the ending: 2 .json, 1 .mov",
    )


def test_hidden_tables_and_shards_are_no_data(tmp_path):
    for name, text in (
        ("train", "text,label\n" + "".join(f"t {i},{i % 2}\n" for i in range(6))),
        ("test", "text,label\nu,0\nv,1\n"),
    ):
        (tmp_path / "t" / f"{name}.csv").parent.mkdir(exist_ok=True)
        (tmp_path / "t" / f"{name}.csv").write_text(text, encoding="utf-8")
        (tmp_path / "t" / f"._{name}.csv").write_bytes(b"\0\5\26\7")
    corpus = open_corpus(DataConfig(str(tmp_path / "t")))
    assert (len(corpus.train), len(corpus.test)) == (6, 2)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "._s.tar").write_bytes(b"\0\5\26\7")
    with tarfile.open(tmp_path / "s" / "s.tar", "w") as tar:
        for name in (
            ".ipynb_checkpoints/000.png",
            "Thumbs.db",
            *(f"{i:03}.{end}" for i in range(6) for end in ("png", "cls")),
        ):
            data = (
                str(int(name[:3]) % 2).encode()
                if name.endswith("cls")
                else noise(tmp_path / "x", hash(name) % 999).read_bytes()
            )
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for data in (tmp_path / "s", tmp_path / "s" / "*.tar"):
        corpus = open_corpus(DataConfig(str(data)))
        assert (len(names(corpus)), corpus.class_names) == (6, ("0", "1"))
        assert corpus.notes == ("passed over 2 hidden files in the shards",)
        stream = open_corpus(DataConfig(str(data), streaming=True)).train
        assert next(stream.batches(12, seed=0)).labels.min() >= 0


def test_what_is_passed_over_may_have_any_name(tmp_path, capsys):
    photos(tmp_path / "x", count=4)
    folder = os.fsencode(tmp_path / "x" / "a")
    for name in (b"._caf\xe9.png", b"notes.t\xe9"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"x")
    run = nf.train(
        data=str(tmp_path / "x"), steps=2, batch_size=4, threads=1, show=False, out=str(tmp_path / "run")
    ).path
    said = [
        "passed over 1 hidden file: ._caf\\xe9.png",
        "passed over 1 file that is no image by the ending: 1 .t\\xe9",
    ]
    described = tmp_path / "y"
    for i in range(6):
        noise(described / f"{i}.png", i)
    (described / "metadata.csv").write_text("file_name,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(6)))
    os.rename(os.fsencode(noise(described / "more.png", 9)), os.path.join(os.fsencode(described), b"caf\xe9.png"))
    for data, lines in (
        ("x", said),
        ("y", [r"passed over 1 image that the table beside them does not name, such as caf\xe9.png"]),
    ):
        out = tmp_path / f"{data}.json"
        assert main(f"evaluate {run} --data {tmp_path / data} -o {out}".split()) == 0
        assert json.loads(out.read_text(encoding="utf-8"))["reading"][: len(lines)] == lines
        assert all(line in capsys.readouterr().err for line in lines[:1])


def test_a_table_in_a_folder_whose_name_is_no_utf_8_is_named_or_left_out(tmp_path):
    for name in ("d", "e"):
        photos(tmp_path, name, 6, seed=ord(name))
        rows = (f"{i}.png,{i % 2}" for i in range(6))
        (tmp_path / name / "metadata.csv").write_text("\n".join(["file_name,label", *rows]), encoding="utf-8")
    os.rename(os.fsencode(tmp_path / "d"), os.path.join(os.fsencode(tmp_path), b"d\xe9"))
    with pytest.raises(ValueError, match=r"d\\xe9.metadata\.csv cannot be read: its name is not UTF-8"):
        open_corpus(DataConfig(str(tmp_path)))
    corpus = open_corpus(DataConfig(str(tmp_path), skip_bad=True))
    assert len(corpus.train) + len(corpus.test) == 6
    assert len(corpus.bad) == 1


def test_no_result_is_lost_for_a_character_that_utf_8_does_not_know(tmp_path):
    write_json(tmp_path / "r.json", {"data": "caf\udce9", "value": 0.5})
    assert read_json(tmp_path / "r.json") == {"data": "caf\udce9", "value": 0.5}
    log = EventLog(tmp_path / "events.jsonl")
    log.write("note", text="caf\udce9 é")
    log.close()
    assert [event["text"] for event in read_events(tmp_path / "events.jsonl")] == ["caf\udce9 é"]


def test_a_gallery_and_every_command_pass_them_over(tmp_path, capsys):
    photos(tmp_path / "x")
    count = litter(tmp_path / "x")
    said = f"passed over {count} hidden files"
    run = nf.train(
        data=str(tmp_path / "x"), steps=2, batch_size=8, threads=1, show=True, out=str(tmp_path / "run")
    ).path
    told = capsys.readouterr()
    assert said in told.out + told.err
    commands = (
        f"evaluate {run}",
        f"index {run}",
        f"embed {run} {tmp_path / 'x'} -o {tmp_path / 'e.parquet'}",
        f"enroll {run} {tmp_path / 'x'}",
    )
    for command in commands:
        assert main(command.split()) == 0
        told = capsys.readouterr()
        assert said in told.err, command
        if "enroll" in command:
            assert "2 identities, 18 images" in told.out


# ---- tables beside images ---------------------------------------------------------------------------------------------


def described(root: Path, part: str, count: int, form: str, seed: int = 0) -> None:
    """Images of a part, and a table that names them from where it lies."""
    rows = [{"file_name": f"img/{i}.png", "text": f"{part} {i}", "label": "ab"[i % 2]} for i in range(count)]
    for i, row in enumerate(rows):
        noise(root / part / row["file_name"], seed + i)
    table = datasets.Dataset.from_list(rows)
    path = root / part / f"metadata.{form}"
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[form](path)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_in_each_part_is_read_as_hugging_face_reads_it(form, tmp_path):
    described(tmp_path, "train", 6, form)
    described(tmp_path, "test", 4, form, seed=50)
    corpus = open_corpus(DataConfig(str(tmp_path)))
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path))
    assert (len(corpus.train), len(corpus.test)) == (len(theirs["train"]), len(theirs["test"])) == (6, 4)
    for part, other in ((corpus.train, theirs["train"]), (corpus.test, theirs["test"])):
        batch = part.fetch(range(len(part)))
        assert batch.columns["text"] == other["text"]
        assert [corpus.class_names[label] for label in batch.labels.tolist()] == other["label"]
        wanted = np.stack([np.asarray(image) for image in other["image"]])
        assert np.array_equal(batch.columns["file_name"].permute(0, 2, 3, 1).numpy(), wanted)
    data = load_data(tmp_path)
    assert (len(data.train_labels), len(data.test_labels), data.class_names) == (6, 4, ("a", "b"))


def test_one_part_with_a_table_and_images_that_no_table_names(tmp_path):
    described(tmp_path, "train", 6, "csv")
    noise(tmp_path / "train" / "more.png", 99)
    corpus = open_corpus(DataConfig(str(tmp_path)))
    assert len(corpus.train) + len(corpus.test) == 6
    assert corpus.notes == ("passed over 1 image that the table beside them does not name, such as train/more.png",)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\nimg/9.png,a\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train.metadata\.csv:2: .*cannot be read as an image.*img.9\.png"):
        open_corpus(DataConfig(str(tmp_path)))


def test_a_table_in_one_class_folder_does_not_hide_the_others(tmp_path):
    photos(tmp_path)
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text\n0.png,zero\n", encoding="utf-8")
    assert len(names(open_corpus(DataConfig(str(tmp_path))))) == 18


def test_one_table_above_the_parts_keeps_them_apart(tmp_path):
    rows = ["file_name,label"]
    for seed, (part, count) in enumerate((("train", 6), ("test", 4))):
        for i in range(count):
            noise(tmp_path / part / f"{i}.png", 10 * seed + i)
            rows.append(f"{part}/{i}.png,{'ab'[i % 2]}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    corpus = open_corpus(DataConfig(str(tmp_path)))
    assert (len(corpus.train), len(corpus.test)) == (6, 4)
    data = load_data(tmp_path)
    assert (len(data.train_labels), len(data.test_labels)) == (6, 4)
    wanted = np.stack([np.asarray(Image.open(tmp_path / "test" / f"{i}.png")) for i in range(4)])
    assert np.array_equal(data.test_inputs.mul(255).round().permute(0, 2, 3, 1).numpy(), wanted)


def test_a_further_part_and_heic_files_are_named(tmp_path):
    for seed, part in enumerate(("train", "val", "test")):
        photos(tmp_path / part, count=3, seed=1000 * seed)
    corpus = open_corpus(DataConfig(str(tmp_path)))
    assert (len(corpus.train), len(corpus.test)) == (6, 6)
    assert corpus.notes == ("passed over val: beside train, test is read",)
    (tmp_path / "train" / "a" / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=r"phone\.HEIC: .*pillow_heif.*--skip-bad"):
        open_corpus(DataConfig(str(tmp_path)))
