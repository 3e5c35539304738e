"""A run's configuration: files, the command line, names and types looked at; rates and optimisers."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import yaml
from torch import nn

import nearfar as nf
from nearfar import cli
from nearfar.training.config import RATES, TrainConfig
from nearfar.training.lars import LARS
from nearfar.training.optimiser import OPTIMIZERS, make_optimizer, parameter_groups, rate_at
from train_cases import ENVIRONMENT

# ---- options ---------------------------------------------------------------------------------------------------------


def test_a_file_then_the_command_line(tmp_path, monkeypatch):
    """YAML reads 1e-3 as text; the command line wins over the file; both over the defaults."""
    file = tmp_path / "run.yaml"
    file.write_text("data: digits\nlr: 1e-3\nepochs: 3\nnegative: [a, b]\nsize: [8, 8]\nprecision: 32\nclip: null\n")
    seen = []
    monkeypatch.setattr("nearfar.training.command.run", lambda config: seen.append(config) or 0)
    assert cli.main(["train", "--config", str(file), "--epochs", "5", "--batch-size", "32"]) == 0
    (config,) = seen
    assert (config.lr, config.epochs, config.batch_size, config.negative, config.size) == (
        1e-3,
        5.0,
        32,
        ("a", "b"),
        (8, 8),
    )
    assert config.precision == "32"
    assert cli.main(["train", f"--config={file}"]) == 0
    assert seen[1].epochs == 3.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epcohs: 3", "there is no option 'epcohs'; did you mean 'epochs'?"),
        ("epochs: many", "epochs is 'many': wanted a number"),
        ("batch_size: 2.5", "batch_size is 2.5: wanted a whole number"),
        ("optimizer: adma", "optimizer is 'adma': wanted one of adamw, adam, sgd, lars"),
        ("quick: 3", "quick is 3: wanted true or false"),
        ("method: simclrr", "did you mean 'simclr'?"),
        ("lr: -1", "lr is -1.0: wanted a number above 0"),
        ("batch_size: 1", "batch_size is 1: wanted 2 or more"),
        ("ema: 1", "ema is 1.0: wanted 0 to below 1"),
        ("epochs: 2\nsteps: 3", "pass one of them"),
        ("- a", "holds a list: wanted options"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(text, message, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert cli.main(["train", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nearfar: ")
    assert message in said


def test_options_in_python():
    assert TrainConfig.of(steps=3, negative=["a"]).negative == ("a",)
    assert TrainConfig.of(TrainConfig(lr=0.1), steps=3).lr == 0.1
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        nf.train(temprature=0.1, show=False)
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.yaml"):
        nf.train("nowhere.yaml", show=False)


def test_the_resolved_configuration_is_one(tmp_path):
    """What a run writes can be read and gives the same run."""
    config = TrainConfig(epochs=2.0, accumulate=3, batch_size=20, warmup=0.1)
    once = config.resolved(rows=1000, method="simclr", classes=0, accelerated=False)
    assert (once.steps, once.batch_size, once.chunk, once.warmup) == (32, 60, 20, 3.0)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(once.saved()))
    again = TrainConfig.of(str(file))
    assert again == once == again.resolved(rows=1000, method="simclr", classes=0, accelerated=False)


def test_batches_that_are_joined_are_chunks_of_a_rank():
    """A chunk as large as the batch of all ranks would be all that a rank of two has: nothing would be spared."""
    config = TrainConfig(accumulate=4, batch_size=64)
    for world, chunk in ((1, 64), (2, 32), (4, 16)):
        resolved = config.resolved(rows=1000, method="simclr", classes=0, accelerated=False, world=world)
        assert (resolved.batch_size, resolved.chunk) == (256, chunk)


@pytest.mark.parametrize(
    ("options", "given", "wanted"),
    [
        ({}, {"rows": 100, "classes": 0}, {"batch_size": 100, "steps": 20, "lr": 1e-3}),
        ({"optimizer": "sgd", "batch_size": 512}, {"rows": 5120, "classes": 0}, {"lr": 0.1, "steps": 200}),
        ({}, {"rows": 99, "classes": 0, "world": 2}, {"batch_size": 98, "steps": 20}),
        ({"quick": True}, {"rows": 60_000, "classes": 0}, {"steps": 100, "eval_every": 10}),
        ({"steps": 7}, {"rows": None, "classes": 0}, {"steps": 7}),
        ({"batch_size": 64}, {"rows": 6400, "classes": 500}, {"classes_per_batch": 16}),
        ({"batch_size": 64}, {"rows": 6400, "classes": 10}, {"classes_per_batch": None}),
    ],
)
def test_defaults_that_depend_on_the_data(options, given, wanted):
    config = TrainConfig(**options).resolved(method="supcon", accelerated=False, **given)
    assert {name: getattr(config, name) for name in wanted} == wanted


def test_streamed_rows_want_steps():
    with pytest.raises(ValueError, match="pass steps="):
        TrainConfig().resolved(rows=None, method="simclr", classes=0, accelerated=False)


def test_help_says_what_every_option_is_and_loads_no_torch():
    code = (
        "import sys, nearfar.cli as cli\ntry: cli.main(['train', '--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in TrainConfig.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in done.stdout


# ---- optimisers ------------------------------------------------------------------------------------------------------


def test_rates_by_hand():
    assert [rate_at(k, 10, "cosine", 0) for k in (1, 6)] == [1.0, pytest.approx(0.5)]
    assert [rate_at(k, 10, "linear", 5) for k in (1, 5, 6, 8)] == [0.2, 1.0, 1.0, pytest.approx(0.6)]
    assert rate_at(10, 10, "cosine", 0) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    assert rate_at(3, 3, "constant", 3) == 1.0


def test_biases_norms_and_temperatures_do_not_decay():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    loss = nf.InfoNCELoss(learnable=True)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    decayed, plain = parameter_groups([model, loss, model, frozen], 0.5)
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert (decayed["weight_decay"], plain["weight_decay"], len(plain["params"])) == (0.5, 0.0, 5)
    assert any(p is loss.tau.log_scale for p in plain["params"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_learns_a_line(name):
    assert name in RATES
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    model = nn.Linear(3, 1)
    trust = {"trust": 0.1} if name == "lars" else {}
    groups = [group | trust for group in parameter_groups([model], 0.0)]
    optimizer = make_optimizer(name, groups, 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_lars_is_its_paper_by_hand():
    """Two steps of algorithm 1 with momentum and decay; a plain group has no scale of its own."""
    w, b = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([2.0]))
    groups = [{"params": [w], "weight_decay": 0.1, "plain": False}, {"params": [b], "weight_decay": 0.0, "plain": True}]
    optimizer = LARS(groups, lr=0.5, momentum=0.9, trust=0.01)
    gradient = torch.tensor([[1.0, -2.0]])
    wanted, velocity = w.detach().clone(), torch.zeros(1, 2)
    for _ in range(2):
        g = gradient + 0.1 * wanted
        velocity = 0.9 * velocity + 0.5 * 0.01 * wanted.norm() / g.norm() * g
        wanted = wanted - velocity
        w.grad, b.grad = gradient.clone(), torch.tensor([4.0])
        optimizer.step()
    torch.testing.assert_close(w.detach(), wanted)
    torch.testing.assert_close(b.detach(), torch.tensor([2.0 - 2.0 - (1.8 + 2.0)]))
    zero = nn.Parameter(torch.zeros(1, 2))
    optimizer = LARS([zero], lr=0.5)
    zero.grad = torch.ones(1, 2)
    optimizer.step()  # weights of 0 would never move at a rate of 0
    torch.testing.assert_close(zero.detach(), torch.full((1, 2), -0.5))
