"""Runs that start from weights that were trained before: rates, layers, and what stays as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nearfar as nf
from nearfar.encoders.make import make_embedder
from nearfar.encoders.pretrained import PooledTransformer, read_transformer
from nearfar.index.run import open_run
from nearfar.training import trainer
from nearfar.training.config import TrainConfig
from nearfar.training.pace import layers_above
from tiny_bert import tiny_bert
from train_cases import differences, images, texts, train


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    return f"hf:{tiny_bert(tmp_path_factory.mktemp('start') / 'bert')}"


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A network with batch normalisation that tells four classes of images apart."""
    return train(
        images(), tmp_path_factory.mktemp("start") / "run", method="supcon", model="resnet-small", steps=4, eval_every=2
    )


# ---- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "asked", "wanted"),  # wanted: rate, how many times as fast what is new learns, steps of the warm-up
    [
        ("scratch", {}, (1e-3, 1.0, 5.0)),
        ("network", {}, (1e-4, 10.0, 10.0)),
        ("transformer", {}, (2e-5, 50.0, 10.0)),
        ("network", {"optimizer": "sgd", "batch_size": 128}, (0.0025, 10.0, 10.0)),
        ("transformer", {"lr": 2e-4, "warmup": 0.0}, (2e-4, 5.0, 0.0)),
        ("transformer", {"lr": 0.01}, (0.01, 1.0, 10.0)),
        ("transformer", {"lr": 0.01, "head_factor": 3.0, "warmup": 7.0}, (0.01, 3.0, 7.0)),
    ],
)
def test_rates_by_what_the_weights_are(start, asked, wanted):
    """The usual one, a tenth or a fiftieth of it, or the user's; what is new has the usual one beside it, and never less."""
    config = TrainConfig(steps=100, **asked).resolved(
        rows=1000, method="pairs", classes=0, accelerated=False, start=start
    )
    assert (config.lr, config.head_factor, config.warmup) == pytest.approx(wanted)
    again = TrainConfig.of(**config.saved()).resolved(
        rows=1000, method="pairs", classes=0, accelerated=False, start=start
    )
    assert again == config


def test_what_the_weights_are_is_known(bert, learned, tmp_path):
    of_others = train(texts(columns=2), tmp_path / "hf", model=bert, steps=1, lr=None)
    assert (of_others.config.lr, of_others.environment["pretrained"]) == (2e-5, ["towers.text"])
    options = {"method": "supcon", "steps": 1}
    for number, start in enumerate(({"model": str(learned.path)}, {"embedder": nf.load(learned.path)})):
        run = train(images(), tmp_path / str(number), **start, **options)
        assert (run.config.lr, run.environment["pretrained"]) == (1e-4, ["towers.image"])
    brought = train(
        images(), tmp_path / "brought", embedder=make_embedder(images(), "small-cnn"), pretrained=True, **options
    )
    new = train(images(), tmp_path / "new", embedder=make_embedder(images(), "small-cnn"), **options)
    assert (brought.config.lr, new.config.lr) == (1e-4, 1e-3)


def first_step(bert: str, out: Path, **options) -> dict[str, torch.Tensor]:
    """How far each parameter goes in a step of plain gradient descent without momentum."""
    sgd = {"optimizer": "sgd", "lr": 0.1, "schedule": "constant", "warmup": 0, "weight_decay": 0.0, "steps": 1}
    run = train(texts(columns=2), out, model=bert, dim=8, **sgd, **options)
    before = {f"towers.text.network.{name}": p for name, p in read_transformer(bert).network.named_parameters()}
    return {name: p - before[name].detach() for name, p in run.embedder().state_dict().items() if name in before}


def test_each_layer_goes_by_its_part_of_the_step_of_the_one_above(bert, tmp_path):
    """A first step is rate times gradient, so that steps of one gradient are to each other as the rates."""
    even, less = first_step(bert, tmp_path / "a"), first_step(bert, tmp_path / "b", layer_decay=0.5)
    seen = set()
    for name, step in even.items():
        below = 3 if ".embeddings." in name else next((2 - k for k in range(3) if f".layer.{k}." in name), 0)
        if float(step.abs().max()) > 1e-5:
            seen.add(below)
            torch.testing.assert_close(less[name], 0.5**below * step, rtol=2e-2, atol=1e-7)
    assert seen == {0, 1, 2, 3}


def test_what_is_new_goes_by_its_factor(learned, tmp_path, monkeypatch):
    """The rates that the optimiser has, by parameter, at a step of the peak rate."""
    found = {}

    def note(self) -> None:
        names = {id(p): name for name, p in self.method.named_parameters()}
        found.update({names[id(p)]: g["lr"] for g in self.optimizer.param_groups for p in g["params"]})

    monkeypatch.setattr(trainer.Trainer, "_update", note)
    options = {"lr": 0.25, "head_factor": 4.0, "schedule": "constant", "warmup": 0, "steps": 1}
    train(images(), tmp_path / "run", method="joint", model=str(learned.path), dim=8, **options)
    body = {name for name in found if ".towers." in name}
    assert {found[name] for name in body} == {0.25}
    assert {found[name] for name in found.keys() - body} == {1.0}
    assert any("projections" in name for name in found.keys() - body)


def test_layers_of_residual_stages_are_their_blocks():
    """Of a network whose stages are attributes, as torchvision's and timm's are."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))

    class Staged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)
            self.stage1, self.stage2 = (nn.Sequential(Block(), Block()) for _ in range(2))
            self.head = nn.Linear(2, 2)

    network = Staged()
    above = layers_above(network)
    found = {name: above[id(p)] for name, p in network.named_parameters()}
    assert {found[name] for name in found if name.startswith(("stem", "norm"))} == {4}
    assert [found[f"stage{s}.{b}.layers.0.weight"] for s in (1, 2) for b in (0, 1)] == [3, 2, 1, 0]
    assert found["head.weight"] == 0


# ---- what stays as it is ---------------------------------------------------------------------------------------------


def test_frozen_weights_and_statistics_stay_bit_for_bit(learned, tmp_path):
    run = train(images(), tmp_path / "run", method="supcon", model=str(learned.path), freeze=True, dim=8)
    before, after = learned.embedder().state_dict(), run.embedder().state_dict()
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert after.keys() - before.keys() == {"projections.image.weight"}
    losses = [event["loss"] for event in run.events("step")]
    assert losses[-1] < losses[0]


def test_frozen_at_first_and_resumed_exactly(learned, tmp_path, monkeypatch):
    options = {
        "method": "supcon", "model": str(learned.path), "freeze_steps": 0.5, "layer_decay": 0.7, "steps": 8, "dim": 8, "ema": 0.9,
        "checkpoint_every": 2, "eval_every": 4, "lr": 0.01, "metric": "recall@1", "clip": 0.1,
    }  # fmt: skip
    whole = train(images(), tmp_path / "whole", **options)
    update, kept = trainer.Trainer._update, {}

    def until(self) -> None:
        if self._step == 7:
            raise RuntimeError("the power is cut")
        update(self)
        kept[self._step] = {name: value.clone() for name, value in self.method.embedder.state_dict().items()}

    with monkeypatch.context() as cut:
        cut.setattr(trainer.Trainer, "_update", until)
        with pytest.raises(RuntimeError, match="the power is cut"):
            train(images(), tmp_path / "cut", **options)
    start = learned.embedder().state_dict()
    assert all(torch.equal(kept[4][name], start[name]) for name in start)
    assert not any(torch.equal(kept[5][name], start[name]) for name in start if name.endswith("running_mean"))
    assert not torch.equal(kept[5]["towers.image.network.0.weight"], start["towers.image.network.0.weight"])
    resumed = nf.train(corpus=images(), resume=str(tmp_path / "cut"), show=False)
    assert resumed.config.freeze_steps == 4.0
    assert differences(whole, resumed) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": True}, "nothing of it is new: pass --dim"),
        ({"freeze_steps": 100}, "nothing of it is new: pass --dim"),
        (
            {"model": "small-cnn", "freeze": True},
            "freeze is True, and the encoder has no weights that were trained before",
        ),
        ({"model": "small-cnn", "layer_decay": 0.9}, "layer_decay is 0.9, and the encoder has no weights"),
        ({"model": "small-cnn", "pretrained": True}, "small-cnn has none: name timm:NAME"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5: wanted a number above 0, up to 1"),
    ],
)
def test_what_could_only_be_ignored_is_refused(options, message, learned, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(images(), tmp_path / "run", **({"method": "supcon", "model": str(learned.path)} | options))


# ---- where it starts -------------------------------------------------------------------------------------------------


def test_the_look_before_training_is_that_of_the_weights_it_starts_from(learned, tmp_path):
    for number, model in enumerate((learned.path, learned.path / "model", *learned.checkpoints.iterdir())):
        run = train(images(), tmp_path / str(number), method="supcon", model=str(model), steps=1)
        (before,) = (event for event in run.events("look") if event["step"] == 0)
        theirs = {event["step"]: event for event in learned.events("look")}
        step = int(model.name[5:]) if model.name.startswith("step-") else learned.end["best"]
        assert before["geometry"] == pytest.approx(theirs[step]["geometry"], rel=1e-5)


def test_weights_of_each_checkpoint_have_a_fingerprint_of_their_own(learned):
    """Steps 2 and 4 of a run differ, and so an index of the one is none of the other."""
    prints = {open_run(path).weights for path in (learned.path, *learned.checkpoints.iterdir())}
    assert len(prints) == 1 + len(list(learned.checkpoints.iterdir()))


def test_two_kinds_start_from_two_places(bert, learned, tmp_path):
    """A text encoder of others and an image encoder of ours; the lower of their rates is taken."""
    from nearfar.data.corpus import Column, Corpus, TensorPart

    pictures, words = images(), texts()
    columns = (Column("image", "image"), Column("text", "text", "positive"))
    part = TensorPart({"image": pictures.train.data["image"][:64], "text": words.train.data["text"]})
    corpus = Corpus("both", columns, part, None, size=(8, 8), channels=1)
    run = train(corpus, tmp_path / "run", method="clip", model=f"image={learned.path},text={bert}", steps=2)
    assert run.environment["pretrained"] == ["towers.image", "towers.text"]
    assert (run.config.lr, run.embedder().dim) == (2e-5, 256)
    again = train(corpus, tmp_path / "again", method="clip", model=str(run.path), steps=1)
    assert again.environment["pretrained"] == ["projections.image", "projections.text", "towers.image", "towers.text"]
    assert again.embedder().dim == 256


def test_what_does_not_fit_the_folder_is_said(learned, tmp_path):
    colour = images()
    parts = [replace(p, data={"image": p.data["image"].expand(-1, 3, -1, -1)}) for p in (colour.train, colour.test)]
    with pytest.raises(ValueError, match=r"reads images of shape \(1, 8, 8\), and those of images are \(3, 8, 8\)"):
        train(replace(colour, train=parts[0], test=parts[1], channels=3), tmp_path / "a", model=str(learned.path))
    with pytest.raises(ValueError, match="reads image, and texts has inputs of the kind text"):
        train(texts(columns=2), tmp_path / "b", model=str(learned.path))
    (tmp_path / "table.csv").write_text(
        "text,positive\n" + "".join(f"a {i},b {i}\n" for i in range(9)), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="reads image, and table has inputs of the kind text"):
        nf.train(data=str(tmp_path / "table.csv"), model=str(learned.path), out=str(tmp_path / "d"), show=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"is not an embedder's.*is named hf:"):
        train(texts(columns=2), tmp_path / "c", model=str(tmp_path / "other"))


@pytest.fixture
def alone() -> Iterator[None]:
    """Afterwards this process is no rank, and no variable says that it was."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.mark.usefixtures("alone")
def test_parameters_that_nothing_depends_on_keep_no_rank_waiting(bert, tmp_path):
    """A transformer's pooler has no gradient, which ``DistributedDataParallel`` would wait for."""
    assert train(texts(columns=2), tmp_path / "run", model=bert, steps=3, strategy="ddp", device="cpu").finished
    tower = read_transformer(bert)
    assert isinstance(tower.network, PooledTransformer)
    assert tower.network.unused == ["model.pooler.dense.weight", "model.pooler.dense.bias"]
