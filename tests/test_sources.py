"""Named data sets, folders of images and tables: what is read, and what is said of what cannot be."""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nearfar.data.labelled import class_ids, stratified_split
from nearfar.data.sources import FASHION_FILES, FASHION_PLACES, SOURCES, load_data, read_idx

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_fashion(folder: Path, suffix: str = "", train: int = 6, test: int = 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 12).reshape(count, 3, 4)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)


def write_images(folder: Path, count: int = 3, size: tuple[int, int] = (6, 5)) -> Path:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            info = PngInfo()
            info.add_text("Comment", f"{folder}: {i}")  # no two files hold the same bytes
            Image.new("RGB", size, colour).save(folder / name / f"{i}.png", pnginfo=info)
    return folder


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_digits_are_split_by_class_the_same_every_time():
    data, again = load_data("digits"), load_data("digits")
    assert data.kind == "image"
    assert data.train_inputs.shape[1:] == (1, 8, 8)
    assert len(data.train_labels) + len(data.test_labels) == 1797
    assert data.train_inputs.max() == 1.0
    assert data.train_labels.dtype == torch.int64
    torch.testing.assert_close(data.test_inputs, again.test_inputs, rtol=0, atol=0)
    share = data.test_labels.bincount() / (data.train_labels.bincount() + data.test_labels.bincount())
    assert (share - 1 / 3).abs().max() < 0.01


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'digits needs scikit-learn: pip install "nearfar\[cli\]"'):
        load_data("digits")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"'digit' is neither a data set nor a path; did you mean 'digits'\?"):
        load_data("digit")
    with pytest.raises(ValueError, match="Data sets: digits, fashion-mnist"):
        load_data("zzz/none")


def test_every_source_says_what_it_is():
    for row in SOURCES.values():
        assert row.title
        assert row.licence
        assert row.get


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw", "fashion-mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_found_below_the_root(tmp_path, below, suffix):
    write_fashion(tmp_path / below, suffix)
    data = load_data("fashion-mnist", root=tmp_path)
    assert data.train_inputs.shape == (6, 1, 3, 4)
    assert data.test_labels.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(data.train_inputs[1, 0, 2], torch.tensor([20.0, 21, 22, 23]) / 255)
    assert data.class_names[9] == "Ankle boot"


def test_fashion_mnist_that_is_missing_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_data("fashion-mnist", root=tmp_path)
    assert "apt-get install dataset-fashion-mnist" in str(error.value)
    assert "train-images-idx3-ubyte.gz" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_fashion_mnist_with_other_counts_is_refused(tmp_path):
    write_fashion(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(ValueError, match=r"holds \(6, 3, 4\) and .* \(5,\)"):
        load_data("fashion-mnist", root=tmp_path)


def test_a_broken_idx_file_is_named(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="images starts with 504b0304"):
        read_idx(path)
    write_idx(path, np.zeros((2, 3)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"holds 5 bytes where its header says \[2, 3\]"):
        read_idx(path)
    path.write_bytes(gzip.compress(b"0" * 100)[:-12])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read_idx(path)


REAL = next((p for p in map(Path, FASHION_PLACES) if (p / f"{FASHION_FILES[0]}.gz").exists()), None)


@pytest.mark.skipif(REAL is None, reason="Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist")
def test_the_real_fashion_mnist():
    data = load_data("fashion-mnist")
    assert data.train_inputs.shape == (60_000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [6000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    assert abs(data.train_inputs.mean().item() - 0.2860) < 1e-3  # the mean that its users subtract


def test_a_folder_of_images_by_class(tmp_path):
    data = load_data(write_images(tmp_path / "toys"))
    assert data.name == "toys"
    assert data.class_names == ("blue", "red")
    assert data.train_inputs.shape == (4, 3, 5, 6)
    for image, label in zip(data.train_inputs, data.train_labels, strict=True):
        assert image.mean((1, 2)).tolist() == ([0, 0, 1] if label == 0 else [1, 0, 0])


def test_a_folder_with_its_own_test_images(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "test", 2)
    data = load_data(tmp_path)
    assert len(data.train_labels) == 6
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    (tmp_path / "test" / "green").mkdir()
    with pytest.raises(ValueError, match="green is a class without training images"):
        load_data(tmp_path)


def test_images_take_the_commonest_size_up_to_64_or_the_one_asked_for(tmp_path):
    folder = write_images(tmp_path / "toys", 3, (200, 100))
    Image.new("RGB", (30, 30)).save(folder / "red" / "other.png")
    assert load_data(folder).train_inputs.shape[2:] == (32, 64)
    assert load_data(folder, size=8).train_inputs.shape[2:] == (8, 8)
    assert load_data(folder, size=(4, 9)).train_inputs.shape[2:] == (4, 9)
    with pytest.raises(ValueError, match="at least one pixel"):
        load_data(folder, size=0)


def test_grey_images_keep_one_channel_and_sixteen_bits_their_greys(tmp_path):
    for name, level in (("dark", 0), ("mid", 128)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (4, 4), level).save(tmp_path / name / f"{i}.png")
        Image.fromarray(np.full((4, 4), level * 257, np.uint16)).save(tmp_path / name / "deep.png")
    data = load_data(tmp_path)
    assert data.train_inputs.shape[1] == 1
    everything = torch.cat([data.train_inputs, data.test_inputs])
    assert everything.unique().tolist() == [0.0, pytest.approx(128 / 255)]


def test_an_unreadable_image_is_named_or_skipped_and_listed(tmp_path):
    folder = write_images(tmp_path / "toys", 4)
    broken = folder / "red" / "1.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"red.1\.png: cannot be read as an image .*--skip-bad"):
        load_data(folder)
    cut = folder / "blue" / "2.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))
    noise.save(cut)
    cut.write_bytes(cut.read_bytes()[:3000])  # the header is whole, the pixels are not
    data = load_data(folder, skip_bad=True)
    assert len(data.train_labels) + len(data.test_labels) == 6
    assert len(data.bad) == 2
    assert str(broken) in data.bad[0]
    assert str(cut) in data.bad[1]


def test_a_folder_laid_out_otherwise_says_how(tmp_path):
    with pytest.raises(ValueError, match=r"has no sub-folders: images are wanted as"):
        load_data(tmp_path)
    (tmp_path / "red").mkdir()
    with pytest.raises(ValueError, match="red holds no image"):
        load_data(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "red" / "0.png")
    with pytest.raises(ValueError, match="a class is a sub-folder, and two are needed"):
        load_data(tmp_path)
    (tmp_path / "red" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 1 images could be read"):
        load_data(tmp_path, skip_bad=True)


GOOD = "size,weight,species\n" + "".join(f"{i},{2 * i},{'cat' if i % 2 else 'dog'}\n" for i in range(12))


def test_a_table_is_standardised_by_its_training_rows(tmp_path):
    data = load_data(write_csv(tmp_path / "pets.csv", GOOD), label="species")
    assert (data.kind, data.name, data.class_names) == ("tabular", "pets", ("cat", "dog"))
    assert data.train_inputs.shape == (8, 2)
    torch.testing.assert_close(data.train_inputs.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(data.train_inputs.std(0, correction=0), torch.ones(2))
    raw = load_data(tmp_path / "pets.csv", label="species", standardize=False)
    for row, label in zip(raw.train_inputs.tolist(), raw.train_labels, strict=True):
        assert row[1] == 2 * row[0]
        assert label == (0 if row[0] % 2 else 1)


def test_a_constant_feature_becomes_zero_and_a_large_offset_keeps_its_spread(tmp_path):
    rows = "".join(f"5,{1e9 + i},{i % 2}\n" for i in range(12))
    data = load_data(write_csv(tmp_path / "t.csv", "a,b,y\n" + rows))
    assert not data.train_inputs[:, 0].any()
    assert data.train_inputs[:, 1].unique().numel() == 8


@pytest.mark.parametrize("name", ["Label", "target", "CLASS", "y"])
def test_the_label_column_is_known_by_its_usual_names(tmp_path, name):
    data = load_data(write_csv(tmp_path / "t.csv", GOOD.replace("species", name)))
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_semicolons_and_tabs_and_a_byte_order_mark(tmp_path, delimiter):
    path = write_csv(tmp_path / "t.csv", "\ufeff" + GOOD.replace(",", delimiter))
    assert load_data(path, label="species").train_inputs.shape == (8, 2)


def test_labels_that_are_numbers_are_ordered_as_numbers_and_kept_as_text(tmp_path):
    assert class_ids(["10", "9"])[1] == ("9", "10")
    text = "a,y\n" + "".join(f"{i},{('10', '9', '00123')[i % 3]}\n" for i in range(9))
    assert load_data(write_csv(tmp_path / "t.csv", text)).class_names == ("9", "10", "00123")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,2", "has 2 cells where the first line names 3 columns"),
        ("1,2,cat,4", "has 4 cells where"),
        ("1,two,cat", "column 'weight' holds 'two', wanted a finite number"),
        ("1,nan,cat", "column 'weight' holds 'nan'"),
        (",2,cat", "column 'size' holds ''"),
        ("1,2, ", "has no label in column 'species'"),
    ],
)
def test_a_bad_row_is_named_with_its_line_or_skipped_and_listed(tmp_path, row, reason):
    path = write_csv(tmp_path / "pets.csv", GOOD + row + "\n")
    with pytest.raises(ValueError, match=r"pets\.csv:14: .*--skip-bad") as error:
        load_data(path, label="species")
    assert reason in str(error.value)
    data = load_data(path, label="species", skip_bad=True)
    assert len(data.train_labels) + len(data.test_labels) == 12
    assert data.bad == (f"{path}:14: {data.bad[0].split(':14: ')[1]}",)
    assert reason in data.bad[0]


def test_the_line_is_right_below_empty_lines_and_quoted_line_breaks(tmp_path):
    text = 'a,y\n1,"x\ny"\n\n2,z\noops,z\n'
    with pytest.raises(ValueError, match=r"t\.csv:6: column 'a' holds 'oops'"):
        load_data(write_csv(tmp_path / "t.csv", text))


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        ("", None, "is empty"),
        ("a,y\n", None, "holds no row that can be read"),
        ("a\n1\n", None, "has one column, 'a'"),
        ("a,a,y\n1,2,3\n", None, "two columns called 'a'"),
        ("1,2,3\n4,5,6\n", None, "the first line holds numbers only"),
        (GOOD, None, "has no column called label, target, class, y; it has size, weight, species"),
        (GOOD, "specie", "has no column 'specie'; did you mean 'species'? It has: size, weight, species"),
        (GOOD, "weight", "column 'species' holds no numbers"),
        ("a,y\n1,x\n2,x\n", None, "the label takes 1 value(s) in 2 rows"),
        ("a,y\n" + "".join(f"{i},{i}\n" for i in range(9)), None, "the label takes 9 value(s) in 9 rows"),
        ('a,y\n1,"x\n2,z\n', None, ":2: cannot be read as CSV"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, text, label, reason):
    with pytest.raises(ValueError) as error:
        load_data(write_csv(tmp_path / "t.csv", text), label=label)
    assert reason in str(error.value)
    assert "t.csv" in str(error.value)


def test_a_table_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("a,y\n1,Zürich\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.csv:2: is not UTF-8: byte 7 of the file is 0xfc"):
        load_data(path)


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '\.xlsx'"):
        load_data(write_csv(tmp_path / "t.xlsx", ""))


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {"size": range(12), "flag": [True, False] * 6, "weight": np.arange(12) * 0.5, "species": ["cat", "dog"] * 6}
    )


def test_parquet_reads_as_the_same_table(tmp_path):
    frame().to_parquet(tmp_path / "pets.parquet")
    frame().astype({"flag": int}).to_csv(tmp_path / "pets.csv", index=False)
    one, two = load_data(tmp_path / "pets.parquet", label="species"), load_data(tmp_path / "pets.csv", label="species")
    torch.testing.assert_close(one.train_inputs, two.train_inputs)
    assert one.train_labels.tolist() == two.train_labels.tolist()
    assert one.class_names == two.class_names


def test_a_bad_parquet_row_is_named_or_skipped_and_listed(tmp_path):
    bad = frame()
    bad.loc[3, "weight"] = np.nan
    bad.loc[5, "species"] = None
    bad.to_parquet(path := tmp_path / "pets.parquet")
    with pytest.raises(ValueError, match=r"pets\.parquet: row 4: column 'weight' holds nan.*2 bad rows in all"):
        load_data(path, label="species")
    data = load_data(path, label="species", skip_bad=True)
    assert len(data.train_labels) + len(data.test_labels) == 10
    assert len(data.bad) == 2
    assert "row 6 has no label" in data.bad[1]


def test_parquet_that_cannot_be_used_says_why(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"t\.parquet cannot be read as Parquet"):
        load_data(path)
    frame().to_parquet(path)
    with pytest.raises(ValueError, match="column 'species' holds no numbers"):
        load_data(path, label="flag")


def test_a_class_of_one_row_stays_in_training():
    labels = torch.tensor([0] * 9 + [1] + [2, 2])
    train, test = stratified_split(labels)
    assert sorted(train.tolist() + test.tolist()) == list(range(12))
    assert labels[test].bincount(minlength=3).tolist() == [3, 0, 1]
    assert stratified_split(labels, seed=1)[1].tolist() != test.tolist()
    with pytest.raises(ValueError, match="between 0 and 1"):
        stratified_split(labels, 1.0)
