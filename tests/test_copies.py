"""The same bytes under two names lie on one side of every split."""

import json
import shutil

import pytest
import torch

import nearfar as nf
from nearfar.cli import main
from nearfar.compare.config import CompareConfig
from nearfar.compare.inputs import make_task
from nearfar.data.config import DataConfig
from nearfar.data.copies import same_files
from nearfar.data.labelled import stratified_split
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from nearfar.data.splits import split_rows
from nearfar.index.run import open_run
from photos import contents, noise, photos

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_copies_are_found_by_their_bytes(tmp_path):
    files = [noise(tmp_path / f"{i}.png", i % 3) for i in range(5)]
    large = [tmp_path / f"large {i}" for i in range(3)]
    for i, path in enumerate(large):  # of one size and beginning; the last differs at its end
        path.write_bytes(b"x" * 10_000 + (b"y" if i == 2 else b"x"))
    assert same_files([*files, *large, tmp_path / "gone"]).tolist() == [0, 1, 2, 0, 1, 5, 5, 7, 8]
    assert same_files(files[:3]) is None


@pytest.mark.parametrize("seed", range(5))
def test_copies_stay_on_one_side_of_a_split(seed, tmp_path):
    photos(tmp_path)
    for i in range(4):
        shutil.copy(tmp_path / "a" / f"{i}.png", tmp_path / "a" / f"copy {i}.png")
    shutil.copy(tmp_path / "a" / "5.png", tmp_path / "b" / "under another class.png")
    corpus = open_corpus(DataConfig(str(tmp_path), split_seed=seed))
    assert not contents(corpus.train) & contents(corpus.test)
    assert len(corpus.train) + len(corpus.test) == 23
    assert 4 <= len(corpus.test) <= 11
    assert "5 of 23 images are duplicates of others, byte for byte" in corpus.notes[0]
    batch = corpus.train.fetch(range(len(corpus.train)))
    assert len(batch.same["image"].unique()) == len(contents(corpus.train))  # nor are they each other's negatives
    data = load_data(tmp_path, seed=seed)
    rows = (
        {image.numpy().tobytes() for image in data.train_inputs},
        {image.numpy().tobytes() for image in data.test_inputs},
    )
    assert not rows[0] & rows[1]
    assert data.notes == corpus.notes
    task = make_task(data, CompareConfig(seed=seed))
    rows = (
        {image.numpy().tobytes() for image in task.train.inputs},
        {image.numpy().tobytes() for image in task.validation.inputs},
    )
    assert not rows[0] & rows[1]


def test_copies_tie_identities_and_more_than_a_tenth_of_the_rows(tmp_path):
    photos(tmp_path, "abcdef", 3)
    for name in "abcd":  # one placeholder under four identities
        noise(tmp_path / name / "none.png", 7)
    corpus = open_corpus(DataConfig(str(tmp_path), id="label"))
    assert not contents(corpus.train) & contents(corpus.test)
    assert not set(corpus.train.labels.tolist()) & set(corpus.test.labels.tolist())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["in a class", "across classes", "many", "texts"])
def test_each_class_gives_its_part_where_there_are_duplicates(kind, seed, tmp_path):
    classes = "abcdefghij"
    if kind == "texts":
        rows = [f"text {i if i != 1 else 0},{classes[i // 2]}" for i in range(20)]
        (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
        corpus = open_corpus(DataConfig(str(tmp_path / "t.csv"), split_seed=seed, hold_out="rows"))
        least = 9
    else:
        photos(tmp_path, classes, 2)
        again = {"in a class": ["a"], "across classes": ["b"], "many": [*"abcd"]}[kind]
        for name in again:  # the second image of a class is the first of this one or of another
            source = tmp_path / ("a" if kind == "across classes" else name) / "0.png"
            shutil.copy(source, tmp_path / name / "1.png")
        corpus = open_corpus(DataConfig(str(tmp_path), split_seed=seed, hold_out="rows"))
        least = 10 - len(again)
        data = load_data(tmp_path, seed=seed)
        assert sorted(data.test_labels.tolist()) == sorted(corpus.test.labels.tolist())
    train, test = corpus.train.labels.bincount(minlength=10), corpus.test.labels.bincount(minlength=10)
    assert int(train.min()) >= 1, (train, test)
    assert int((test >= 1).sum()) >= least - (kind == "across classes")  # there a third row lies with the first
    assert len(corpus.train) + len(corpus.test) == 20


def test_copies_of_all_images_to_test_on_are_told(tmp_path, capsys):
    photos(tmp_path / "x" / "train", count=4)
    for name in "ab":
        (tmp_path / "x" / "test" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "x" / "train" / name / "0.png", tmp_path / "x" / "test" / name / "again.png")
    run = nf.train(data=str(tmp_path / "x"), steps=2, batch_size=4, threads=1, show=False, out=str(tmp_path / "run"))
    capsys.readouterr()
    assert main(f"evaluate {run.path} -k 1".split()) == 0
    said = "note: x holds out no rows: the figures are of its rows to train on, which say little if the model was trained on them"
    assert capsys.readouterr().err.splitlines()[0] == said
    figures = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["part"] == "train"
    assert figures["reading"][0] == said.removeprefix("note: ")
    with pytest.raises(ValueError, match=r"leaves no image to test on: .* or of images to train on"):
        make_task(str(tmp_path / "x"), CompareConfig())


def test_a_split_that_comes_with_the_data_is_mended(tmp_path):
    photos(tmp_path / "train", count=6)
    photos(tmp_path / "test", count=4, seed=500)
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "test" / "a" / "again.png")
    corpus = open_corpus(DataConfig(str(tmp_path)))
    assert (len(corpus.train), len(corpus.test)) == (13, 8)
    assert not contents(corpus.train) & contents(corpus.test)
    assert "1 image to test on is a duplicate of images to train on: counted as training images" in corpus.notes
    data = load_data(tmp_path)
    assert (len(data.train_labels), len(data.test_labels)) == (13, 8)
    assert data.notes == corpus.notes


def test_bytes_in_a_table_are_compared_too(tmp_path):
    held = [noise(tmp_path / f"{i}.png", i % 8).read_bytes() for i in range(12)]
    rows = {"image": [{"bytes": b, "path": None} for b in held], "label": [f"{i % 2}" for i in range(12)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    corpus = open_corpus(DataConfig(str(tmp_path / "t.parquet")))
    sides = [
        {image.numpy().tobytes() for image in part.fetch(range(len(part))).columns["image"]}
        for part in (corpus.train, corpus.test)
    ]
    assert not sides[0] & sides[1]
    assert "4 of 12 images are duplicates" in corpus.notes[0]


@pytest.mark.parametrize("stored", ["bytes", "paths"])
def test_an_image_with_several_texts_is_no_copy_of_itself(stored, tmp_path):
    files = [noise(tmp_path / f"{i}.png", i % 29) for i in range(30)]
    cells = [path.read_bytes() if stored == "bytes" else str(path) for path in files]
    captions = [[f"first of {i}", f"second of {i}"] for i in range(30)]
    datasets.Dataset.from_dict({"image": cells, "caption": captions}).to_parquet(tmp_path / "t.parquet")
    corpus = open_corpus(DataConfig(str(tmp_path / "t.parquet")))
    assert (
        corpus.notes[1]
        == "1 of 30 images is a duplicate of others, byte for byte: copies stay on one side of the split"
    )
    texts = [part.fetch(range(len(part))).columns["caption"] for part in (corpus.train, corpus.test)]
    fit, held = ({text.split()[-1] for text in found} for found in texts)
    assert not held & fit
    assert ("0" in held) == ("29" in held)
    assert sum(map(len, texts)) == 60


def test_without_copies_a_split_is_what_it_was(tmp_path):
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    plain = stratified_split(labels, 0.5, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain, stratified_split(labels, 0.5, 3, torch.arange(8))))
    twice = torch.tensor([0, 0, 2, 2, 4, 4, 6, 6])
    train, test = split_rows(8, labels, None, 0.5, 3, twice)
    assert train.tolist() in ([0, 1, 4, 5], [0, 1, 6, 7], [2, 3, 4, 5], [2, 3, 6, 7])
    assert sorted(train.tolist() + test.tolist()) == list(range(8))
    for i in range(4):
        noise(tmp_path / "ab"[i % 2] / f"{i}.png", 0)
    with pytest.raises(ValueError, match=r"leaves no image to test on: all of each class are duplicates"):
        load_data(tmp_path)


def test_a_run_whose_data_are_split_otherwise_now_says_so(tmp_path):
    run = nf.train(
        data=str(photos(tmp_path / "x")), steps=2, batch_size=8, threads=1, show=False, out=str(tmp_path / "run")
    )
    assert open_run(run.path).open_data().notes == ()
    shutil.copy(tmp_path / "x" / "a" / "0.png", tmp_path / "x" / "a" / "00.png")
    (note,) = open_run(run.path).open_data().notes[1:]
    assert note.startswith("the run was made of 12 rows to train on and 6 held out, and now there are 1")
    (tmp_path / "x" / "a" / "00.png").unlink()
    assert open_run(run.path).open_data(split_seed=0).notes == ()
    (note,) = open_run(run.path).open_data(split_seed=1).notes
    told = "the rows held out are drawn otherwise than when the run was trained (split_seed): some may have been trained on"
    assert note == told
