"""Options that say nothing of the data, the method or the store are refused with the remedy, and never passed over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import nearfar as nf
from nearfar.compare import CompareConfig
from nearfar.compare.convergence import prepare
from nearfar.compare.inputs import make_task
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.data.open import open_corpus
from nearfar.data.sources import load_data
from nearfar.encoders.config import ExportConfig
from nearfar.evaluation.config import EvaluateConfig
from nearfar.index.config import IndexConfig, SearchConfig
from nearfar.index.run import open_run
from nearfar.methods.table import METHODS, READ_BY
from nearfar.names import Unused
from nearfar.training.config import TrainConfig
from studies import SMALL, blobs, tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "texts.csv").write_text("text,kind\n" + "".join(f"word {i % 7} of {i},c{i % 3}\n" for i in range(30)))
    (folder / "numbers.csv").write_text("a,b,kind\n" + "".join(f"{i},{i * i % 7},c{i % 3}\n" for i in range(30)))
    (folder / "pairs.csv").write_text("question,answer\n" + "".join(f"what is {i},it is {i}\n" for i in range(30)))
    places = [folder / where / name for where in ("pictures", "parted/train", "parted/test") for name in ("a", "b")]
    for at, place in enumerate(places):
        place.mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 4), 10 * (3 * at + i)).save(place / f"{i}.png")  # no two alike
    return folder


# ---- data ------------------------------------------------------------------------------------------------------------

COLUMNS = ("image", "text", "positive", "similar", "label", "id")


@pytest.mark.parametrize("name", ["digits", "wordnet"])
@pytest.mark.parametrize("option", [*COLUMNS, "negative"])
def test_a_known_set_takes_no_names_of_columns(name, option):
    value = ("foo",) if option == "negative" else "foo"
    with pytest.raises(ValueError, match=rf"{option} is .*foo.*--{option}.*columns of {name} are known: leave it out"):
        open_corpus(DataConfig(name, **{option: value}))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("digits", {"root": "/x"}, r"root is '/x' \(--root\), and digits is inside scikit-learn: leave it out"),
        ("digits", {"streaming": True}, "digits is held in memory"),
        ("wordnet", {"size": 8}, "wordnet holds no images"),
        ("fashion-mnist", {"test_fraction": 0.5}, "fashion-mnist comes with its split"),
        ("fashion-mnist", {"split_seed": 1}, r"split_seed is 1 \(--split-seed\)"),
        ("texts.csv", {"root": "/x"}, "texts.csv is no data set by name"),
        ("texts.csv", {"size": (8, 8)}, r"size is \(8, 8\) \(--size\), and texts holds no images"),
        ("numbers.csv", {"size": 8}, "numbers holds no images"),
        ("texts.csv", {"streaming": True, "size": 8}, "holds no images"),
        (
            "texts.csv",
            {"streaming": True, "test_fraction": 0.5},
            "of a stream, only a test part of its own is held out",
        ),
        ("texts.csv", {"streaming": True, "split_seed": 1}, "split_seed is 1"),
        ("digits", {"pixel_range": (0.0, 9.0)}, "pixel_range is .*the pixels of digits are known"),
        ("texts.csv", {"pixel_range": (0.0, 9.0)}, "pixel_range is .*texts holds no images"),
        ("numbers.csv", {"pixel_range": (0.0, 9.0)}, "numbers holds no images"),
        ("texts.csv", {"streaming": True, "pixel_range": (0.0, 9.0)}, "holds no images"),
        ("pictures", {"pixel_range": (0.0, 9.0)}, r"\(--pixel-range\), and all images have 8 bits.*leave it out"),
        (
            "texts.csv",
            {"scale": (0, 5)},
            r"scale is \(0, 5\) \(--scale\), and no column of texts grades .*: leave it out, or name",
        ),
        ("texts.csv", {"scale": (0, 5), "streaming": True}, "no column of .*texts.* grades"),
        ("pictures", {"scale": (0, 5)}, "no column of pictures grades"),
        ("pictures", {"root": "/x"}, "root is '/x'"),
        ("pictures", {"label": "kind"}, "there is no column 'kind'"),
        ("parted", {"test_fraction": 0.5}, "parted comes with its split"),
        ("parted", {"split_seed": 2}, "parted comes with its split"),
    ],
)
def test_options_of_other_data_are_refused(files, data, options, message):
    path = str(files / data) if (files / data).exists() else data
    with pytest.raises(ValueError, match=message):
        open_corpus(DataConfig(path, **options))


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("texts.csv", {"label": "kind", "test_fraction": 0.5, "split_seed": 1}),
        ("pictures", {"size": 2, "test_fraction": 0.5, "id": "label"}),
        ("parted", {"size": 2, "skip_bad": True}),
        ("digits", {"size": 4, "test_fraction": 0.5, "split_seed": 1, "skip_bad": True}),
    ],
)
def test_options_of_these_data_are_taken(files, data, options):
    path = str(files / data) if (files / data).exists() else data
    assert len(open_corpus(DataConfig(path, **options)).train)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            "digits",
            {"label": "foo"},
            r"label is 'foo' \(--label\), and the classes of digits are known: leave it out, or pass",
        ),
        ("digits", {"root": "/x"}, "digits is inside scikit-learn"),
        ("digits", {"size": 4}, "digits comes with its size and its split"),
        ("digits", {"seed": 1}, "seed is 1"),
        ("digits", {"test_fraction": 0.5}, "test_fraction is 0.5"),
        ("pictures", {"label": "kind"}, "the sub-folders of .*pictures are its classes: leave it out, or pass a table"),
        ("numbers.csv", {"root": "/x", "label": "kind"}, "is a path, and not a data set by name"),
        ("numbers.csv", {"size": 3, "label": "kind"}, "numbers.csv is a table, without images"),
    ],
)
def test_labelled_data_refuse_them_too(files, data, options, message):
    path = files / data if (files / data).exists() else data
    with pytest.raises(ValueError, match=message):
        load_data(path, **options)


# ---- nf.compare ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "value"), [("label", "foo"), ("root", "/x")])
def test_a_comparison_of_data_in_memory_reads_no_files(option, value):
    with pytest.raises(ValueError, match=f"{option} is '{value}' .* the data are in memory: leave it out"):
        make_task(blobs(30), CompareConfig(**{option: value}))
    with pytest.raises(ValueError, match="the data are in memory"):
        make_task(load_data("digits"), CompareConfig(**{option: value}))


def test_a_comparison_of_data_by_name_leaves_nothing_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"skip_bad is True \(--skip-bad\), and all of digits can be read: leave it out"
    ):
        make_task("digits", CompareConfig(skip_bad=True))
    with pytest.raises(ValueError, match=r"skip_bad is True .* the data are in memory"):
        make_task(blobs(30), CompareConfig(skip_bad=True))


def test_a_comparison_refuses_what_no_arm_or_loss_reads():
    few = {name: value for name, value in SMALL.items() if name != "show"}
    with pytest.raises(ValueError, match=r"temperature is 0\.5 .* contrastive= is a loss with its own"):
        prepare(CompareConfig(**few | {"temperature": 0.5}), blobs(30), tiny, nf.TripletLoss(), show=False)
    without = few | {"arms": ("task", "control")}
    for option, value in (("temperature", 0.5), ("features", "0")):
        with pytest.raises(ValueError, match=f"{option} is .* no arm with contrast takes part"):
            prepare(CompareConfig(**without | {option: value}), blobs(30), tiny, show=False)


def test_a_comparison_that_was_begun_with_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("nearfar.data.sources.refuse_unused", lambda *given: None)  # as it was
    out = str(tmp_path / "run")
    nf.compare(
        "digits", label="foo", **SMALL | {"seeds": 1, "steps": 2, "eval_every": 1, "arms": ("task", "control")}, out=out
    )
    monkeypatch.undo()
    study, _ = prepare(CompareConfig(resume=out), show=False)
    assert study.trainer.config.label == "foo"


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, (100, 5, 2, (3e-3, 1e-2), 4)),
        ({"budget": 6}, (100, 5, 6, (3e-3, 1e-2), 4)),
        ({"rates": (1e-3, 3e-3, 1e-2, 3e-2)}, (100, 5, 4, (1e-3, 3e-3, 1e-2, 3e-2), 4)),
        ({"arms": ("task", "joint"), "steps": 30, "seeds": 8}, (30, 8, 2, (3e-3, 1e-2), 2)),
    ],
)
def test_a_quick_comparison_is_what_its_help_says_where_nothing_else_is_said(options, made):
    config = CompareConfig(quick=True, **options).resolved(1_000, 64)
    assert (config.steps, config.seeds, config.budget, config.rates, len(config.arms)) == made


def test_all_arms_can_be_asked_for_in_a_quick_comparison():
    every = tuple(nf.compare.ARMS)
    assert CompareConfig(quick=True, arms=every).resolved(1_000, 64).arms == every
    assert CompareConfig(rates=tuple(10.0**-k for k in range(1, 9))).resolved(1_000, 64).budget == 8


# ---- nf.train --------------------------------------------------------------------------------------------------------


def corpus(columns=1) -> Corpus:
    x, y = blobs(40)
    named = (Column("x", "vector"), Column("y", "vector", "positive"), Column("n", "vector", "negative"))[:columns]
    part = TensorPart({column.name: x for column in named}, y)
    return Corpus("made", named, part, part)


def train(tmp_path, given=None, **options):
    out = {"out": str(tmp_path / "run")} if "resume" not in options else {}
    return nf.train(corpus=given or corpus(), **({"steps": 2, "batch_size": 8, "show": False} | out | options))


@pytest.mark.parametrize("method", ["supcon", "moco", "vicreg", "joint", "siamese"])
@pytest.mark.parametrize(("option", "value"), [
    ("temperature", 0.3), ("learnable_temperature", True), ("weight", 0.5), ("projection", 4), ("margin", 0.3), ("queue", 64),
    ("momentum", 0.9),
])  # fmt: skip
def test_an_option_of_another_method_is_refused(tmp_path, method, option, value):
    asked = (
        {"method": method, "views": "mask", option: value}
        if METHODS[method].needs == "views"
        else {"method": method, option: value}
    )
    if method in READ_BY[option]:
        assert train(tmp_path, **asked).path.is_dir()
    else:
        with pytest.raises(
            ValueError, match=rf"{option} is .*method '{method}' has none: leave it out, or pass method="
        ):
            train(tmp_path, **asked)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "foo"}, "corpus= has the data"),
        ({"data": "foo.csv"}, "data is 'foo.csv' .* corpus= has the data"),
        ({"positive": "y", "method": "supcon"}, "corpus= has the data"),
        ({"method": "triplet", "views": "mask"}, "triplets go in as they are"),
    ],
)
def test_data_in_memory_have_their_columns(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, corpus(3), **options)


def test_a_column_that_the_method_does_not_read_is_refused(files, tmp_path):
    given = {
        "data": str(files / "pairs.csv"),
        "positive": "answer",
        "steps": 1,
        "show": False,
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(ValueError, match=r"positive is 'answer' .* method 'simcse' does not read it: leave it out"):
        nf.train(**given, method="simcse")
    assert nf.train(**given).config.method == "pairs"


def test_an_encoder_of_one_s_own_has_its_model_and_its_width(tmp_path):
    embedder = train(tmp_path).embedder()
    for option, value in (("dim", 3), ("model", "mlp")):
        with pytest.raises(ValueError, match=f"{option} is .* embedder= is the encoder"):
            train(tmp_path / "again", embedder=embedder, **{option: value})


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 100), ({"epochs": 2}, 6), ({"steps": 7}, 7), ({"epochs": 50}, 150), ({"steps": 400}, 400)],
)
def test_a_quick_run_has_100_steps_where_nothing_else_is_said(options, steps):
    config = TrainConfig.of(quick=True, **options)
    assert config.resolved(rows=1000, method="supcon", classes=3, accelerated=False).steps == steps


def test_a_run_that_was_begun_with_one_is_still_read(tmp_path):
    run = nf.train(data="digits", steps=1, batch_size=32, out=str(tmp_path / "run"), show=False)
    file = run.path / "config.yaml"
    stored = yaml.safe_load(file.read_text()) | {"label": "foo", "root": "/x", "streaming": True}
    file.write_text(yaml.safe_dump(stored))
    opened = open_run(run.path)
    assert len(opened.open_data().train) == 1198
    assert nf.train(resume=str(run.path), show=False).path == run.path
    with pytest.raises(Unused, match="label is 'other'"):
        opened.open_data(label="other")


# ---- the other commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (IndexConfig, {"source": "run", "method": "ivf-pq"}, "every search is exact: leave it out, or pass --approximate"),
        (IndexConfig, {"source": "run", "partitions": 4}, "partitions is 4"),
        (IndexConfig, {"source": "run", "probes": 4}, "probes is 4"),
        (IndexConfig, {"source": "run", "refine": 4}, "refine is 4"),
        (IndexConfig, {"source": "z.parquet", "label": "kind"}, "z.parquet is embedded already: .* pass it to nearfar embed"),
        (IndexConfig, {"source": "z.parquet", "split": "test"}, "z.parquet is embedded already"),
        (IndexConfig, {"source": "z.parquet", "device": "cpu"}, "z.parquet is embedded already"),
        (SearchConfig, {"run": "run", "query": "a", "exact": True, "probes": 4}, "probes is 4 .* --exact visits every row"),
        (EvaluateConfig, {"embeddings": "z.npy", "device": "cpu"}, "measured without a model: leave it out, or pass a run"),
        (EvaluateConfig, {"embeddings": "z.npy", "templates": ("a {}",)}, "measured without a model"),
        (EvaluateConfig, {"run": "run", "tasks": ("retrieval",), "k": 5}, "knn is not among --tasks: leave it out, or add knn"),
        (EvaluateConfig, {"run": "run", "tasks": ("knn",), "ks": (2,)}, "retrieval is not among --tasks"),
        (EvaluateConfig, {"run": "run", "tasks": ("knn",), "templates": ("a {}",)}, "zero-shot is not among --tasks"),
        (ExportConfig, {"run": "run", "to": "onnx", "private": True}, "--to onnx writes to a folder: .* pass --to hub"),
    ],
)  # fmt: skip
def test_commands_refuse_what_they_would_pass_over(config, options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_classes_of_a_file_without_columns_are_a_file(tmp_path, capsys):
    from nearfar.cli import main

    for name in ("z", "p"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).random((9, 4), dtype=np.float32))
    given = ["evaluate", "--embeddings", str(tmp_path / "z.npy"), "--pairs", str(tmp_path / "p.npy")]
    assert main([*given, "--labels", "kind"]) == 2
    assert "labels is 'kind'" in capsys.readouterr().err
    assert main(given) == 0


def test_a_task_that_was_asked_for_and_cannot_be_measured_is_told():
    z = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    found = nf.evaluate(z, pairs=z.roll(1, 0), tasks=("retrieval", "knn", "zero-shot"))
    assert found.notes == ("knn: what was given does not allow it", "zero-shot: what was given does not allow it")
    assert not any("allow" in note for note in nf.evaluate(z, pairs=z.roll(1, 0)).notes)
