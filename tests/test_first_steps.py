"""What a newcomer meets: little data of their own, slips of the hand, and what is said of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import little_runs
import nearfar as nf
from nearfar import __version__
from nearfar.cli import main
from nearfar.training.looks import collapse_warnings


def folder(place: Path, classes: int, each: int) -> Path:
    """``place/person 0/0.png`` and so on, of 12×12 noise."""
    noise = np.random.default_rng(0)
    for one in range(classes):
        (place / f"person {one}").mkdir(parents=True)
        for number in range(each):
            pixels = noise.integers(0, 256, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"person {one}" / f"{number}.png")
    return place


def test_a_small_folder_of_identities_trains_without_options(tmp_path, capsys):
    """A third of the 24 identities is held out, and batches are drawn from the 16 that are left."""
    data, out = folder(tmp_path / "people", 24, 5), tmp_path / "run"
    assert main(["train", "--data", str(data), "--id", "label", "--steps", "1", "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert "people: 80 rows to train on, 40 held out · image · 24 classes\n" in told
    assert "method supcon · encoder small-cnn · 1 steps of 80 rows\n" in told
    assert nf.train(resume=str(out)).path == out
    assert f"{out} is finished, at step 1: nothing is left to train" in capsys.readouterr().err


def test_a_run_is_not_written_among_the_data(tmp_path, capsys):
    data = folder(tmp_path / "photos", 2, 4)
    before = sorted(data.rglob("*"))
    assert main(["train", "--data", str(data), "--steps", "1", "--out", f"{data}/"]) == 2
    assert "is the folder of the data" in capsys.readouterr().err
    assert sorted(data.rglob("*")) == before


def test_one_class_is_no_class_and_its_geometry_is_measured(tmp_path, capsys):
    data, out = folder(tmp_path / "photos", 1, 12), tmp_path / "run"
    assert main(["train", "--data", str(data), "--steps", "1", "--out", str(out)]) == 0
    assert "no classes\nmethod simclr" in capsys.readouterr().err
    assert main(["evaluate", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("4 rows of ")
    assert "measure  value" not in told  # no table without a row
    assert "nothing says what belongs together" in told
    assert "geometry: uniformity" in told
    assert main(["report", str(out)]) == 0
    assert main(["evaluate", str(out), "--tasks", "knn"]) == 2


def test_few_rows_are_no_collapse():
    """Three rows span two directions, however well they are spread."""
    assert collapse_warnings({"effective_rank": 1.98, "feature_std": 0.05}, 2.0, None, 256, rows=3) == []
    assert len(collapse_warnings({"effective_rank": 1.98, "feature_std": 0.05}, 2.0, None, 256, rows=300)) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--image", "caption"], "column 'caption' holds no images"),
        (["--text", "image"], "column 'image' holds images: name it with image= (--image)"),
        ([], "column 'image': cannot be read as an image (there is no file "),
    ],
)
def test_columns_named_as_what_they_are_not_and_an_image_that_is_missing(option, message, tmp_path, capsys):
    table = tmp_path / "shop.csv"
    table.write_text("image,caption\n" + "".join(f"{i}.png,thing {i}\n" for i in range(6)))
    out = tmp_path / "run"
    assert main(["train", "--data", str(table), "--steps", "1", "--out", str(out), *option]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_query_that_looks_like_a_missing_image_is_no_text(tmp_path, capsys):
    run = little_runs.captioned_run(tmp_path)
    assert main(["index", str(run)]) == 0
    assert main(["search", str(run), "nowhere.png"]) == 2
    assert "there is no image nowhere.png" in capsys.readouterr().err
    assert main(["search", str(run), "nowhere.png", "--as", "text"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "\nfirst: image, second: caption\n" in capsys.readouterr().out


def test_lists_by_place_version_and_help(capsys):
    for arguments in (["list", "views"], ["list", "--what", "views"]):
        assert main(arguments) == 0
        told = capsys.readouterr().out
        assert "simclr" in told
        assert "SupConLoss" not in told
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nearfar {__version__}\n"
    with pytest.raises(SystemExit) as stop:
        main(["help"])
    assert stop.value.code == 0
    assert "usage: nearfar" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path, capsys):
    run, place = little_runs.captioned_run(tmp_path), tmp_path / "nowhere" / "page.json"
    assert main(["evaluate", str(run), "--out", str(place)]) == 2
    assert capsys.readouterr().err.endswith(f"nearfar: {place}: No such file or directory\n")
    shutil.rmtree(tmp_path)


def test_arrays_are_evaluated_as_tensors_are():
    z = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    y = np.array([0, 0, 1, 1])
    theirs = nf.evaluate(torch.from_numpy(z), torch.from_numpy(y), train=(torch.from_numpy(z), torch.from_numpy(y)))
    assert nf.evaluate(z, y, train=(z, y)) == theirs
    assert nf.evaluate(z, pairs=z)["recall@1"] == 1.0
