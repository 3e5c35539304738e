"""Weights divided among two ranks (strategy fsdp): the same run, whole checkpoints, half the memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import nearfar as nf
from nearfar.training.sharding import blocks
from shard_cases import DDP, ONE, small_step
from test_train_ranks import TOLERANCE, under_torchrun
from train_cases import differences, run_case, tensors_of, vectors

CASES = Path(__file__).parent / "shard_cases.py"


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of all runs by two ranks, one after another; of one, both were killed."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.raises(AssertionError, match="SIGKILL"):
        under_torchrun(str(CASES), str(folder), "killed")
    assert len(list(folder.glob("there.*"))) == 2
    under_torchrun(str(CASES), str(folder))
    return folder


def losses(run) -> torch.Tensor:
    return torch.tensor([event["loss"] for event in run.events("step")])


def facts(folder: Path) -> list:
    return [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", ONE)
def test_sharded_ranks_give_the_curve_of_one_process(case, together, tmp_path):
    one, two = run_case(case, str(tmp_path / "one"), eval_every=8), nf.Run(together / case)
    assert (one.environment["ranks"], two.environment["ranks"]) == (1, 2)
    assert len(losses(one)) == 8
    assert losses(one).std() > 1e-3  # something was learned, or nothing is compared
    torch.testing.assert_close(losses(two), losses(one), rtol=TOLERANCE, atol=1e-5)
    first, second = tensors_of(one), tensors_of(two)
    assert {name: t.shape for name, t in first.items()} == {name: t.shape for name, t in second.items()}
    for key in (key for key in first if key.startswith(("ema.", "model.", "method.safetensors:queue.slots"))):
        torch.testing.assert_close(second[key], first[key], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("case", DDP)
def test_what_is_a_ranks_own_is_as_under_ddp(case, together):
    """BatchNorm, dropout, bfloat16: ranks with a part each do what ranks with a copy each do."""
    sharded, copied = (nf.Run(together / f"{case}-{strategy}") for strategy in ("fsdp", "ddp"))
    torch.testing.assert_close(losses(sharded), losses(copied), rtol=TOLERANCE, atol=1e-5)
    first, second = tensors_of(sharded), tensors_of(copied)
    assert first.keys() == second.keys()
    for key in (key for key in first if "running_" in key):
        torch.testing.assert_close(first[key], second[key], rtol=2e-3, atol=2e-3)
    for strategy in ("fsdp", "ddp"):  # running statistics are the first rank's
        one, two = (fact[f"{case}-{strategy} buffers"] for fact in facts(together))
        assert one == two


@pytest.mark.parametrize("case", ONE)
def test_a_rank_holds_its_part_and_no_more(case, together):
    """Weights, averages, key encoder and the optimiser's tensors; a learned temperature is one number on each rank."""
    one, two = (fact[case] for fact in facts(together))
    assert any(name.startswith("optimizer") for name in one)
    for name, (held, whole) in one.items():
        if "log_scale" not in name:
            assert held < whole, name
            assert held + two[name][0] >= whole, name
    for own in (one, two):
        assert sum(held for held, _ in own.values()) < 0.51 * sum(whole for _, whole in own.values())


@pytest.mark.parametrize("case", ONE)
def test_what_is_kept_loads_in_one_process(case, together):
    run = nf.Run(together / case)
    embedder = nf.load(run.path / "model")
    assert run.events("look")
    wanted = torch.load(run.path / "seen.pt", weights_only=True)
    corpus = run_corpus(case)
    column = corpus.columns[0]
    inputs = embedder.prepare(column.kind, corpus.test.fetch(range(16)).columns[column.name])
    with torch.no_grad():
        assert torch.equal(embedder(column.kind, inputs), wanted)


def run_corpus(case: str):
    from train_cases import CASES

    return CASES[case][0]()


@pytest.mark.parametrize("name", ["stopped", "killed"])
def test_resumed_is_uninterrupted(name, together):
    """After a signal in step 3, and after the ranks' death in step 6; checkpoints are of every second step."""
    assert differences(nf.Run(together / "whole"), nf.Run(together / name)) == []


@pytest.mark.parametrize("name", ["fsdp-ddp", "ddp-fsdp"])
def test_the_strategy_may_change(name, together):
    whole, changed = nf.Run(together / "whole"), nf.Run(together / name)
    assert len(losses(changed)) == 8
    torch.testing.assert_close(losses(changed), losses(whole), rtol=TOLERANCE, atol=1e-5)
    first, second = tensors_of(whole), tensors_of(changed)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("number", [0, 1])
def test_ranks_with_unlike_rows_give_the_gradient_of_one_process(number, together):
    """Six rows and one, in chunks of two; clipped by the norm of all, a number that is not sharded included."""
    clip = (None, 0.01)[number]
    wanted = small_step([7], 0, 2, False, clip)
    for fact in facts(together):
        found = fact["gradients"][number]
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(torch.tensor(found[name], dtype=torch.float64), gradient, rtol=1e-9, atol=1e-14)


def test_blocks():
    """Members of sequences, inner ones first; none that shares a weight with what is outside, and no bare list."""
    tied, free = nn.Linear(9, 9), nn.Linear(9, 9)
    pair = nn.ModuleList([nn.Linear(9, 9), nn.LayerNorm(9)])
    network = nn.ModuleDict({"layers": nn.Sequential(tied, free, nn.Linear(2, 2)), "pairs": nn.ModuleList([pair])})
    other = nn.Linear(9, 9)
    other.weight = tied.weight
    network["other"] = other
    assert blocks(network, least=50) == [pair[0], free]


def test_what_cannot_be_sharded_is_said_first():
    with pytest.raises(ValueError, match="precision 16 scales gradients, which strategy fsdp does not: pass bf16"):
        nf.train(corpus=vectors(), strategy="fsdp", precision="16", device="cpu")


def test_one_device_has_nothing_to_divide(tmp_path):
    run = run_case("clip", str(tmp_path / "run"), strategy="fsdp", steps=1)
    assert run.finished
