"""Which folders are parts to train and to test on, and which tables tell of them: training and comparing read them alike."""

from pathlib import Path

import pytest

from nearfar.compare.config import CompareConfig
from nearfar.compare.inputs import Task, make_task
from nearfar.data.config import DataConfig
from nearfar.data.open import open_corpus
from nearfar.data.pixels import decode_image
from photos import noise

pytest.importorskip("datasets")

CLASSES = "there are no classes|has no sub-folders: images are wanted as .* nothing says their classes"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def tree(root: Path, folders: dict[str, int], tables: dict[str, str] | None = None) -> Path:
    """Folders of so many images, no two of which are the same, and tables in them."""
    seed = 0
    for name, count in folders.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise(root / name / f"{i}.png", seed)
            seed += 1
    for name, text in (tables or {}).items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def table(count: int, head: str = "file_name,label", *more: str) -> str:
    rows = (f"{i}.png,{'ab'[i % 2]}" + (f",{more[i]}" if more else "") for i in range(count))
    return "\n".join((head, *rows)) + "\n"


def compared(root: Path) -> tuple[Task, tuple[int, int]]:
    task = make_task(str(root), CompareConfig())
    return task, (len(task.train) + len(task.validation), len(task.test))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("training", "testing"),
        ("train", "dev"),
        ("TRAIN", "Validation"),
        ("train", "eval"),
    ],
)
def test_parts_are_known_by_the_usual_names_and_are_never_classes(train, test, tmp_path):
    flat = tree(tmp_path / "flat", {train: 8, test: 4, "notes": 0})
    corpus = open_corpus(DataConfig(str(flat)))
    assert (len(corpus.train), len(corpus.test), corpus.class_names) == (8, 4, ())
    with pytest.raises(ValueError, match=CLASSES):
        make_task(str(flat), CompareConfig())
    named = tree(tmp_path / "named", {f"{train}/a": 4, f"{train}/b": 4, f"{test}/a": 2, f"{test}/b": 1})
    corpus = open_corpus(DataConfig(str(named)))
    task, sizes = compared(named)
    assert (len(corpus.train), len(corpus.test), corpus.class_names) == (*sizes, task.class_names) == (8, 3, ("a", "b"))


def test_what_lies_beside_the_parts_is_counted_and_classes_may_be_called_as_parts(tmp_path):
    beside = tree(tmp_path / "x", {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2, "more": 3, ".": 1})
    task, sizes = compared(beside)
    corpus = open_corpus(DataConfig(str(beside)))
    assert (len(corpus.train), len(corpus.test)) == sizes == (8, 4)
    assert task.notes == corpus.notes == ("passed over 4 images that lie beside test and train, such as 0.png",)
    classes = tree(tmp_path / "y", {"train": 4, "test": 4, "car": 4})
    task, _ = compared(classes)
    corpus = open_corpus(DataConfig(str(classes)))
    assert task.class_names == corpus.class_names == ("car", "test", "train")
    assert task.notes == corpus.notes == ("test and train are read as classes, beside car",)
    for folders, why in (
        ({"test": 4, "val": 4}, "no folder to train on"),
        ({"train": 4, "Train": 4, "test": 4}, "Train and train"),
    ):
        with pytest.raises(ValueError, match=why):
            open_corpus(DataConfig(str(tree(tmp_path / why, folders))))
    alone = open_corpus(DataConfig(str(tree(tmp_path / "z", {"test/a": 4, "test/b": 4}))))
    assert (alone.class_names, len(alone.train) + len(alone.test)) == (("a", "b"), 8)


def test_a_class_without_images_is_told_and_one_that_is_not_trained_on(tmp_path):
    root = tree(tmp_path, {"train/a": 4, "train/b": 4, "train/c": 0, "test/a": 2, "test/b": 2})
    task, sizes = compared(root)
    corpus = open_corpus(DataConfig(str(root)))
    assert (len(corpus.train), len(corpus.test)) == sizes == (8, 4)
    assert task.notes == corpus.notes == ("passed over 1 folder without images: c",)
    noise(root / "test" / "c" / "0.png", 99)
    assert "1 class has images to test on and none to train on: 'c'" in open_corpus(DataConfig(str(root))).notes
    with pytest.raises(ValueError, match="c is a class without training images"):
        make_task(str(root), CompareConfig())


@pytest.mark.parametrize("told", ["train", "test"])
def test_a_table_for_one_part_alone_is_refused(told, tmp_path):
    root = tree(tmp_path, {"train": 8, "test": 6}, {f"{told}/metadata.csv": table(6)})
    for read in (lambda: open_corpus(DataConfig(str(root))), lambda: make_task(str(root), CompareConfig())):
        with pytest.raises(
            ValueError, match=rf"{told}.metadata\.csv tells of .* no table tells of (6|8) images in the t"
        ):
            read()


def test_captions_for_both_parts_are_no_classes(tmp_path):
    captions = {f"{part}/metadata.csv": table(4, "file_name,text") for part in ("train", "test")}
    root = tree(tmp_path, {"train": 4, "test": 4}, captions)
    assert len(open_corpus(DataConfig(str(root))).train) == 4
    with pytest.raises(ValueError, match=CLASSES):
        make_task(str(root), CompareConfig())


def test_tables_of_further_parts_and_of_some_classes_are_named(tmp_path):
    parts = tree(
        tmp_path / "x", {"train": 8, "val": 4, "test": 6},
        {"train/metadata.csv": table(8), "val/metadata.csv": table(4), "test/metadata.csv": table(6)},
    )  # fmt: skip
    some = tree(tmp_path / "y", {"a": 4, "b": 4}, {"a/metadata.csv": table(4)})
    for root, at, rest in (
        (parts, "val", ("passed over 4 images that the table beside them does not name, such as val/0.png",)),
        (some, "a", ()),
    ):
        task, sizes = compared(root)
        corpus = open_corpus(DataConfig(str(root)))
        assert (len(corpus.train), len(corpus.test)) == sizes
        said = f"passed over 1 table that tells of some images only, such as {root / at / 'metadata.csv'}"
        assert task.notes == corpus.notes == (said, *rest)


def test_a_split_column_of_a_table_beside_images_is_read(tmp_path):
    parts = ["Test", "train", "test", *["Training"] * 6, "holdout"]
    root = tree(tmp_path, {".": 10}, {"metadata.csv": table(10, "file_name,label,split", *parts)})
    task, sizes = compared(root)
    corpus = open_corpus(DataConfig(str(root)))
    assert (len(corpus.train), len(corpus.test)) == sizes == (7, 2)
    wanted = [decode_image(root / f"{i}.png", (8, 8), 3).float() / 255 for i in (0, 2)]
    assert all(bool((row == image).all()) for row, image in zip(task.test.inputs, wanted, strict=True))
    assert task.notes == corpus.notes == ("1 row is of another part than train and test: it is not read",)
    (root / "metadata.csv").write_text(table(10, "file_name,label,split", *["train"] * 10), encoding="utf-8")
    with pytest.raises(ValueError, match="puts no row in a test part"):
        make_task(str(root), CompareConfig())
