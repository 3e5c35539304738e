"""A training run from end to end: what is in its folder, what it keeps, what it warns of, and the loop below it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import nearfar as nf
from nearfar.data.config import DataConfig
from nearfar.data.corpus import Corpus, RawBatch, TensorPart
from nearfar.data.open import open_corpus
from nearfar.training.looks import look
from nearfar.training.loop import Diverged, fit
from nearfar.training.progress import Progress
from nearfar.training.watched import watched_rows
from train_cases import images, texts, vectors


def train(corpus: Corpus, tmp_path, name: str = "run", **options):
    given = {"steps": 6, "batch_size": 16, "show": False, "out": str(tmp_path / name), "threads": 1} | options
    return nf.train(corpus=corpus, **given)


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_the_folder_of_a_run(tmp_path):
    """What others read: names of files, and of what is in an event."""
    corpus = images()
    run = train(corpus, tmp_path, method="supcon", eval_every=3, lr=0.01)
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml", "environment.json", "events.jsonl", "checkpoints", "model",
    }  # fmt: skip
    events = list(run.events())
    assert [e["event"] for e in events] == ["look", *["step"] * 3, "look", *["step"] * 3, "look", "end"]
    assert (events[0]["step"], events[0]["seconds"]) == (0, 0.0)
    del events[0]
    assert set(events[0]) == {
        "event", "step", "epoch", "seconds", "rows", "loss", "terms", "rate", "temperature",
    }  # fmt: skip
    assert (events[0]["rows"], events[0]["epoch"], events[0]["terms"]) == (16, 16 / 96, {"supcon": events[0]["loss"]})
    assert set(events[3]) == {"event", "step", "seconds", "metrics", "geometry"}
    assert set(events[3]["metrics"]) == {"knn", "recall@1"}
    assert set(events[3]["geometry"]) == {"alignment", "uniformity", "effective_rank", "feature_std"}
    assert events[-1]["reason"] == "all steps were made"
    assert run.metrics == events[-2]["metrics"]
    assert run.finished
    assert run.config.lr == 0.01
    assert str(tmp_path) not in (run.path / "environment.json").read_text()
    assert not any(line.endswith((".pt", ".pkl", ".bin")) for line in map(str, run.path.rglob("*")))
    embedder = run.embedder()
    z = embedder.embed(corpus.test.data["image"])
    assert z.shape == (48, embedder.dim)
    torch.testing.assert_close(nf.load(run.path).embed(corpus.test.data["image"]), z)


def test_two_columns_are_looked_at_by_retrieval(tmp_path):
    run = train(texts(columns=2), tmp_path, eval_every=6)
    assert set(run.metrics) == {"recall@1", "mrr"}
    assert run.config.method == "pairs"


def test_a_look_is_what_the_kept_encoder_gives(tmp_path):
    """The metrics told are those of the model that is on disk."""
    corpus = images()
    run = train(corpus, tmp_path, method="supcon", steps=8, eval_every=2, ema=0.8, views="none", lr=0.01)
    looks = [e for e in run.events("look") if e["step"]]
    values = [e["metrics"]["knn"] for e in looks]
    best = max(range(len(values)), key=lambda at: (values[at], at))  # of equals the last
    (end,) = run.events("end")
    assert end["best"] == looks[best]["step"]
    watched = watched_rows(corpus, corpus.columns, 2000, 0)
    assert watched is not None
    seen = look(run.embedder(), watched, torch.device("cpu"))
    assert seen.metrics == pytest.approx(looks[best]["metrics"])
    assert seen.geometry == pytest.approx(looks[best]["geometry"], rel=1e-5)
    kept = {path.name for path in run.checkpoints.iterdir()}
    assert kept == {f"step-{end['best']:08d}", "step-00000008"}


def test_early_stop_and_the_metric_that_is_watched(tmp_path):
    run = train(vectors(), tmp_path, steps=50, eval_every=1, patience=3, metric="recall@1", lr=1e-9, method="clip")
    steps = [e["step"] for e in run.events("step")]
    (end,) = run.events("end")
    assert (len(steps), end["best"]) == (4, 4)  # nothing changes: of equals the last is kept, and none is better
    assert end["reason"] == "no better look for 3 looks"
    with pytest.raises(ValueError, match="metric is 'knn', and looks at these data give mrr, recall@1"):
        train(vectors(), tmp_path, "other", method="clip", metric="knn")
    with pytest.raises(ValueError, match="patience needs a metric"):
        train(images(labels=False), tmp_path, "other", patience=2)


# ---- what is trained -------------------------------------------------------------------------------------------------


def losses(run) -> torch.Tensor:
    return torch.tensor([e["loss"] for e in run.events("step")])


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 5},
        {"accumulate": 4, "batch_size": 8},  # one loss of 32 rows, and not the mean of four losses of eight
    ],
)
def test_chunks_change_nothing(options, tmp_path):
    whole = train(vectors(), tmp_path, method="clip", batch_size=32)
    cut = train(vectors(), tmp_path, "cut", method="clip", **({"batch_size": 32} | options))
    torch.testing.assert_close(losses(cut), losses(whole), rtol=1e-4, atol=1e-6)


def test_who_may_read_a_run_may_read_all_of_it(tmp_path):
    """Checkpoints and the encoder too: safetensors' own files are their owner's alone."""
    run = train(vectors(), tmp_path, method="clip", batch_size=32)
    modes = {path.suffix: path.stat().st_mode for path in run.path.rglob("*") if path.is_file()}
    assert modes.keys() >= {".yaml", ".json", ".safetensors"}
    assert len(set(modes.values())) == 1


def test_half_precision_is_near(tmp_path):
    precision = "bf16"
    whole = train(vectors(), tmp_path, method="clip", batch_size=32)
    half = train(vectors(), tmp_path, precision, method="clip", batch_size=32, precision=precision)
    assert 0 < float((losses(half) - losses(whole)).abs().max()) < 0.05
    chunked = train(vectors(), tmp_path, "chunked", method="clip", batch_size=32, precision=precision, chunk=8)
    torch.testing.assert_close(losses(chunked), losses(half), rtol=0.05, atol=0.02)
    with pytest.raises(ValueError, match="precision 16 needs a GPU"):
        train(vectors(), tmp_path, "16", method="clip", precision="16", device="cpu")


class Counted:
    """Rows that come in order; the k-th batch is a function of k."""

    def batches(
        self, batch_size: int, *, seed: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[RawBatch]:
        step = start
        while True:
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(batch_size, 8, generator=generator)
            yield RawBatch(step * batch_size + torch.arange(batch_size), {"x": x, "y": x + 0.1})
            step += 1


def test_a_stream_is_trained_on_by_steps(tmp_path):
    corpus = replace(vectors(), train=Counted(), test=None, class_names=())
    run = train(corpus, tmp_path, method="clip", steps=4)
    assert [e["epoch"] for e in run.events("step")] == [None] * 4
    assert run.finished
    with pytest.raises(ValueError, match="pass steps="):
        train(corpus, tmp_path, "other", method="clip", steps=None)


def test_rows_that_cannot_be_read_are_named_and_left_out(tmp_path):
    from PIL import Image

    for number in range(24):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(256, (12, 12), dtype=torch.uint8).numpy()).save(path)
    bad = tmp_path / "photos" / "a" / "bad.png"
    bad.write_bytes((tmp_path / "photos" / "a" / "0.png").read_bytes()[:60])  # its head can be read, its pixels cannot
    options = {"data": str(tmp_path / "photos"), "batch_size": 8, "steps": 9, "show": False, "method": "siamese"}
    run = nf.train(**options, skip_bad=True, out=str(tmp_path / "run"))
    about = run.environment["data"]["left_out"] + [e["message"] for e in run.events("warning")]
    assert sum("bad.png" in line for line in about) == 1, about
    with pytest.raises(ValueError, match=r"bad\.png"):
        nf.train(**options, out=str(tmp_path / "other"))


def test_classes_in_a_batch(tmp_path):
    """Many classes with few rows: batches are drawn so that no row is alone of its class."""
    x, y = torch.randn(120, 8), torch.arange(120) // 4
    corpus = replace(vectors(), columns=vectors().columns[:1], class_names=tuple(map(str, range(30))))
    corpus = replace(corpus, train=TensorPart({"x": x}, y))
    run = train(corpus, tmp_path, method="siamese", batch_size=16)
    assert run.config.classes_per_batch == 4
    assert all(e["loss"] > 0 for e in run.events("step"))


def test_classes_that_are_held_out_as_a_whole_are_in_no_batch(tmp_path):
    """A batch is drawn of the classes that there are to train on: fewer than the data have names for."""
    x, y = torch.randn(120, 8), torch.arange(120) % 12
    corpus = replace(vectors(), columns=vectors().columns[:1], class_names=tuple(map(str, range(30))))
    corpus = replace(corpus, train=TensorPart({"x": x}, y), test=TensorPart({"x": x}, y + 12))
    run = train(corpus, tmp_path, method="siamese", batch_size=60)
    assert run.config.classes_per_batch is None


def test_a_stream_of_many_classes_comes_in_its_order(tmp_path):
    """Nobody can draw its rows by class, so that nobody asks for it."""
    lines = "".join(f'{{"text": "word {i} and {i % 7}", "label": "c{i % 20}"}}\n' for i in range(80))
    (tmp_path / "rows.jsonl").write_text(lines)
    run = nf.train(
        data=str(tmp_path / "rows.jsonl"), streaming=True, method="supcon", batch_size=16, steps=2, show=False,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert run.finished
    assert run.config.classes_per_batch is None


@pytest.mark.parametrize("unit", [1.0, 1e-13])
def test_numbers_given_by_hand_are_embedded_as_those_of_the_file(unit, tmp_path):
    """Whatever their unit, and whatever else is embedded with them."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([30.0, -2.0])
    lines = "".join(f"{a * unit!r},{b * unit!r},c{i % 2}\n" for i, (a, b) in enumerate(x.tolist()))
    (tmp_path / "n.csv").write_text("a,b,label\n" + lines)
    options = {"data": str(tmp_path / "n.csv"), "steps": 2, "show": False, "method": "siamese"}
    embedder = nf.train(**options, out=str(tmp_path / "run")).embedder()
    part = open_corpus(DataConfig(str(tmp_path / "n.csv"))).test
    assert part is not None
    of_file = embedder.embed(part.fetch(range(len(part))).columns["vector"])
    places = [int(part.name(row).rpartition(":")[2]) - 2 for row in range(len(part))]
    torch.testing.assert_close(embedder.embed(x[places] * unit), of_file)
    assert of_file.std(0).mean() > 0.01  # the columns were not taken for constant ones
    scaled = embedder.towers["vector"].standardise(x * unit)
    torch.testing.assert_close(scaled.std(0), torch.ones(2), atol=0.3, rtol=0)


def test_triplets_want_a_positive_too(tmp_path):
    first, negative = texts(columns=3).columns[0], texts(columns=3).columns[2]
    corpus = replace(texts(columns=3), columns=(first, negative))
    with pytest.raises(ValueError, match="'triplet' needs labels, or a positive and a negative column"):
        train(corpus, tmp_path, method="triplet")


def test_what_is_read_and_how_is_said_at_the_start(tmp_path, capsys):
    nf.train(corpus=vectors(), method="simclr", steps=2, batch_size=32, out=str(tmp_path / "run"))
    told = capsys.readouterr().err
    assert "vectors: 128 rows to train on, 64 held out · x (vector) · 4 classes\n" in told
    assert "method simclr · encoder mlp · 2 steps of 32 rows\n" in told


def test_labels_in_memory_need_no_names(tmp_path):
    corpus = replace(vectors(), columns=vectors().columns[:1], class_names=())
    assert train(corpus, tmp_path, method="joint").finished


# ---- what is warned of -----------------------------------------------------------------------------------------------


def test_collapse_is_told_in_words(tmp_path, capsys):
    corpus = images()
    grey = {"image": torch.full((96, 1, 8, 8), 7, dtype=torch.uint8)}
    part = TensorPart(grey, corpus.train.labels)
    corpus = replace(corpus, train=part, test=part)
    run = train(corpus, tmp_path, method="supcon", views="none", eval_every=6, show=True)
    told = [e["message"] for e in run.events("warning")]
    assert len(told) == 2
    assert "nearly all inputs get the same embedding" in told[0]
    assert "which embeddings that are all the same would give" in told[1]
    assert "warning: nearly all inputs" in capsys.readouterr().err


def test_a_healthy_run_is_not_warned_of(tmp_path):
    run = train(images(), tmp_path, method="supcon", views="none", steps=30, eval_every=10, lr=0.01)
    assert list(run.events("warning")) == []


def test_divergence_ends_the_run_and_says_when(tmp_path):
    options = {"method": "supcon", "views": "none", "optimizer": "sgd", "steps": 20, "warmup": 0.0}
    for number, (lr, kind) in enumerate([(1e30, Diverged), (1e12, ValueError)]):  # the weights, or what is made of them
        with pytest.raises(kind, match="learning rate"):
            train(images(), tmp_path, str(number), **options, lr=lr)
        run = nf.Run(tmp_path / str(number))
        (end,) = run.events("end")
        assert "learning rate" in end["reason"]
        assert not run.finished


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("nearfar.training.progress.SECONDS", 0.0)
    with Progress(True, 10, 0, 32) as progress:
        progress.step(5, 1.25)
        progress.say("a line")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 5 of 10 · loss 1.250 · ")
    assert first.endswith("left")
    assert second == "a line"
    with Progress(False, 10, 0, 32) as progress:
        progress.step(5, 1.25)
        progress.say("a line")
    assert capsys.readouterr().err == ""


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_the_loop_goes_on_where_it_was_and_calls_back():
    weight = torch.nn.Parameter(torch.tensor(1.0))
    sgd = torch.optim.SGD([weight], lr=1.0)
    told = []

    def backward(loss: torch.Tensor) -> None:
        told.append("backward")
        (2 * loss).backward()

    def update() -> None:
        told.append("update")
        sgd.step()

    steps = fit(
        lambda batch: weight * batch, sgd, [torch.tensor(float(k)) for k in (3, 4, 5)], steps=5, start=2, seconds=100.0,
        every=lambda step: step == 4, before=lambda step: told.append(step), backward=backward, update=update,
    )  # fmt: skip
    pauses = list(steps)
    assert [pause.step for pause in pauses] == [4, 5]
    assert 100 < pauses[0].seconds < pauses[1].seconds < 110
    assert told == [3, "backward", "update", 4, "backward", "update", 5, "backward", "update"]
    assert float(weight.detach()) == 1.0 - 2 * (3 + 4 + 5)


def test_no_line_of_the_diary_is_half(tmp_path):
    run = train(images(), tmp_path, method="siamese", views="none", steps=2)
    with (run.path / "events.jsonl").open("a") as log:
        log.write('{"event": "st')
    assert [e["event"] for e in run.events()][-1] == "end"
    (run.path / "events.jsonl").write_text('{"event": "step"\n' + json.dumps({"event": "end"}) + "\n")
    with pytest.raises(ValueError, match=r"events\.jsonl:1 cannot be read"):
        list(run.events())
