"""What a run, and a model that was not trained here, are worth: figures before training and after, and where they are told."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import nearfar as nf
from nearfar.cli import main
from nearfar.evaluation.config import EvaluateConfig
from nearfar.index.facts import read_diary
from nearfar.report.run_page import render_runs
from nearfar.report.sections.findings import sentences
from nearfar.report.sections.shown import shown
from nearfar.training import trainer
from tiny_bert import tiny_bert
from train_cases import differences, images, texts, train


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return f"hf:{tiny_bert(tmp_path_factory.mktemp('start') / 'bert')}"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A network that tells four classes of images apart."""
    return train(
        images(), tmp_path_factory.mktemp("start") / "run", method="supcon", model="small-cnn", steps=4, eval_every=2
    )


# ---- before and after ------------------------------------------------------------------------------------------------


def test_before_and_after_are_told_for_any_metric(tmp_path, capsys):
    run = train(texts(columns=2), tmp_path / "run", metric="recall@1", eval_every=3)
    looks = {event["step"]: event["metrics"] for event in run.events("look")}
    assert list(looks) == [0, 3, 6]
    end = run.end
    assert (end["before"], end["after"]) == (looks[0], looks[end["best"]])
    assert run.changes()["mrr"] == f"{looks[0]['mrr']:.4f} → {looks[end['best']]['mrr']:.4f}"
    alone = train(images(labels=False), tmp_path / "alone", method="simclr", eval_every=6)
    assert set(alone.end["before"]) == set(alone.end["after"]) == {"uniformity", "effective_rank", "feature_std"}


@pytest.fixture(scope="module")
def lost(learned, tmp_path_factory):
    """A run that a rate far too high has damaged, by the command line; and what the terminal had."""
    from nearfar.training import train as training

    corpus, folder = images(), tmp_path_factory.mktemp("lost")
    patch = pytest.MonkeyPatch()
    patch.setattr(training, "open_corpus", lambda config, ranges: corpus)
    out = folder / "run"
    options = [
        "--model",
        str(learned.path),
        "--method",
        "supcon",
        "--steps",
        "4",
        "--batch-size",
        "16",
        "--eval-every",
        "2",
    ]
    rates = ["--optimizer", "sgd", "--lr", "30", "--clip", "1", "--warmup", "0", "--views", "none"]
    try:
        assert main(["train", "--data", "images", "--out", str(out), *options, *rates]) == 0
    finally:
        patch.undo()
    return nf.Run(out)


def test_a_run_that_ends_below_its_start_says_so_first(lost, capsys):
    end = lost.end
    best = max(event["metrics"]["knn"] for event in lost.events("look") if event["step"])
    assert end["after"]["knn"] == best < end["before"]["knn"]
    assert end["lost"].startswith(
        f"this run ends below its start: knn was {end['before']['knn']:.4f} before training and is"
    )
    assert "lower the learning rate (--lr 0.0003, it was 30)" in end["lost"]
    facts = {"name": "mine", "config": {}, "events": read_diary(lost.path)}
    told = sentences(shown([facts]))
    assert told[0] == f"mine: {end['lost']}."
    assert not any("warned of nothing" in sentence for sentence in told)
    assert end["lost"].split(" (")[0] in render_runs([facts])


def test_it_is_also_what_the_terminal_says_first(lost, monkeypatch, capsys):
    from nearfar.training import command

    monkeypatch.setattr(command, "train", lambda **options: lost)
    assert main(["train", "--data", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lost.end["lost"]
    assert lines[1] == f"knn {lost.end['before']['knn']:.4f} → {lost.end['after']['knn']:.4f}"


def test_the_page_says_before_and_after(tmp_path):
    looks = [{"step": step, "metrics": {"mrr": value}} for step, value in ((0, 0.25), (5, 0.75), (10, 0.5))]
    steps = [{"step": step, "loss": 1.0, "epoch": step / 5} for step in (1, 5, 10)]
    run = {"name": "a", "config": {}, "events": {"steps": steps, "looks": looks, "end": "done", "kept": 5}}
    assert "a: mrr went from 25.0% before training to 75.0% in the weights that are kept (step 5 of 10)." in sentences(
        shown([run])
    )
    page = render_runs([run])
    assert '"epochs":[0.0,1.0,2.0]' in page.replace(
        " ", ""
    )  # the look before the first step has its place on each axis


def test_nothing_is_looked_at_twice_if_the_first_checkpoint_was_not_reached(tmp_path, monkeypatch):
    options = {"method": "supcon", "steps": 4, "checkpoint_every": 4, "eval_every": 4}
    whole = train(images(), tmp_path / "whole", **options)
    with monkeypatch.context() as cut:
        cut.setattr(trainer.Trainer, "_update", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(images(), tmp_path / "cut", **options)
    assert differences(whole, nf.train(corpus=images(), resume=str(tmp_path / "cut"), show=False)) == []


# ---- untrained models are measured too -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    part = texts(columns=2, rows=58)
    rows = zip(part.train.data["text"], part.train.data["other"], strict=True)
    path = tmp_path_factory.mktemp("table") / "pairs.csv"
    path.write_text("first,second\n" + "".join(f"{a},{b[:9]}\n" for a, b in rows), encoding="utf-8")
    return path


def test_a_model_of_others_is_measured_as_the_run_that_starts_from_it(bert, table, tmp_path, capsys):
    columns = ["--text", "first", "--positive", "second", "--test-fraction", "0.5"]
    out = tmp_path / "figures.json"
    assert main(["evaluate", bert, "--data", str(table), *columns, "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert "first→second" in capsys.readouterr().out
    assert (told["part"], told["rows"], told["inputs"]) == ("test", 29, ["first", "second"])
    found = {measure["name"]: measure["value"] for measure in told["measures"] if measure["task"] == "first→second"}
    options = {"data": str(table), "text": "first", "positive": "second", "test_fraction": 0.5, "model": bert}
    run = nf.train(**options, steps=1, batch_size=8, show=False, out=str(tmp_path / "run"))
    before = run.end["before"]
    assert before["mrr"] == pytest.approx(found["mrr"], abs=1e-6)
    assert before["recall@1"] == pytest.approx(found["recall@1"], abs=1e-6)
    assert 0 < before["mrr"] < 1
    assert not math.isclose(before["mrr"], 1.0)
    assert main(["evaluate", str(run.path), "--test-fraction", "0.25"]) == 0  # a run's data, read otherwise
    assert "15 rows of 32 features" in capsys.readouterr().out
    (file,) = run.path.glob("evaluation*.json")
    assert file.name == "evaluation-pairs-test_fraction-0.25.json"  # none of the run's own figures
    assert json.loads(file.read_text())["data"] == "pairs (test_fraction 0.25)"
    assert main(["evaluate", str(run.path), "--test-fraction", "0.5"]) == 0  # as when it was trained
    assert {path.name for path in run.path.glob("evaluation*.json")} == {file.name, "evaluation.json"}


def test_a_network_with_new_weights_and_what_is_missing(table, capsys, tmp_path):
    assert main(["evaluate", "small-cnn", "--data", "digits", "--tasks", "knn"]) == 0
    assert "599 rows of 128 features" in capsys.readouterr().out
    for arguments, message in (
        (["hf:./nowhere", "--data", str(table), "--text", "first"], "there is no folder ./nowhere"),
        (["hf:nowhere"], "name what it is to embed (--data)"),
        ([str(tmp_path / "typo"), "--data", "digits"], "there is no folder"),
        (["text-small", "--data", "digits"], "text-small reads text inputs; the data have image"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="--label speaks of data that a model embeds"):
        EvaluateConfig(embeddings="z.npy", label="kind")
