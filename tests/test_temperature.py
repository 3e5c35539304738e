"""A learned temperature: held as the logarithm of 1/τ, kept in its range after the step and never in the forward pass."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from torch import nn

import nearfar as nf
from oracles import ORACLES
from problems import draw

LEARNABLE = [name for name, row in nf.LOSSES.items() if "learnable" in inspect.signature(row.loss).parameters]
Z, Y = draw(6, 3, seed=0).float(), torch.tensor([0, 0, 1, 1, 2, 2])


def log_scale(loss: nn.Module) -> nn.Parameter:
    return next(p for name, p in loss.named_parameters() if "log_scale" in name)


def put(loss: nn.Module, scale: float) -> None:
    with torch.no_grad():
        log_scale(loss).fill_(math.log(scale))


def step(loss: nn.Module) -> None:
    """An optimiser's step that moves nothing itself."""
    optimiser = torch.optim.SGD(loss.parameters(), lr=0.0)
    loss(Z, Z.flip(0), labels=Y).backward()
    optimiser.step()


@pytest.mark.parametrize("name", LEARNABLE)
def test_it_is_a_parameter_only_when_learned(name):
    row = nf.LOSSES[name]
    assert not list(row.loss().parameters())
    start = inspect.signature(row.function).parameters["temperature"].default
    assert log_scale(row.loss(learnable=True)).exp().item() == pytest.approx(1 / start)
    assert log_scale(row.loss(temperature=0.2, learnable=True)).exp().item() == pytest.approx(5.0)


@pytest.mark.parametrize(("name", "highest"), [("CLIPLoss", 100.0), ("SigLIPLoss", 1000.0), ("SupConLoss", 100.0)])
def test_the_step_brings_it_back_into_range(name, highest):
    loss = nf.LOSSES[name].loss(learnable=True)
    for scale, wanted in ((1e5, highest), (1e-5, 0.01), (7.0, 7.0)):
        put(loss, scale)
        step(loss)
        assert log_scale(loss).exp().item() == pytest.approx(wanted, rel=1e-5)


def test_the_highest_scale_is_an_option():
    loss = nf.CLIPLoss(learnable=True, max_scale=20.0)
    put(loss, 50.0)
    step(loss)
    assert log_scale(loss).exp().item() == pytest.approx(20.0, rel=1e-5)


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("tau", [0.0005, 0.005, 150.0])
def test_a_start_beyond_the_range_stays_where_it_was_put(name, tau):
    """A step at rate 0 moves nothing; learning may go back into the range, and no farther out."""
    for loss in (
        nf.LOSSES[name].loss(temperature=tau, learnable=True),
        nf.LOSSES[name].loss(torch.tensor([tau]), learnable=True),
    ):
        for copied in (loss, copy.deepcopy(loss)):
            step(copied)
            assert 1 / log_scale(copied).exp().item() == pytest.approx(tau, rel=1e-5)
            put(copied, 1e6 if tau < 1 else 1e-6)
            step(copied)
            farthest = min(tau, 0.001 if name == "SigLIPLoss" else 0.01) if tau < 1 else tau
            assert 1 / log_scale(copied).exp().item() == pytest.approx(farthest, rel=1e-5)
            put(copied, 7.0)
            step(copied)
            assert log_scale(copied).exp().item() == pytest.approx(7.0, rel=1e-5)


def test_a_start_beyond_a_highest_scale_that_was_given_is_refused():
    with pytest.raises(
        ValueError, match=r"temperature=0\.005 is a scale of 200, above max_scale=100.*pass a higher max_scale"
    ):
        nf.SupConLoss(0.005, learnable=True, max_scale=100.0)
    assert log_scale(nf.SupConLoss(0.005, learnable=True, max_scale=200.0)).exp().item() == pytest.approx(200)
    assert nf.SupConLoss(0.005, max_scale=100.0).temperature == 0.005  # a fixed one is nobody's to bound


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("highest", [0.0, 0.01, -1.0, math.nan, math.inf, "100", True, [100.0], torch.ones(2)], ids=str)
def test_the_highest_scale_is_one_number(highest):
    with pytest.raises((TypeError, ValueError), match="max_scale"):
        nf.CLIPLoss(learnable=True, max_scale=highest)


def test_the_forward_pass_does_not_clamp():
    """Beyond the bound the value is the true one and its gradient leads back."""
    loss = nf.SupConLoss(learnable=True).double()
    put(loss, 400.0)
    value = loss(Z.double(), labels=Y)
    assert value.item() == pytest.approx(
        ORACLES["SupConLoss"](Z.double(), labels=Y, temperature=1 / 400).item(), rel=1e-6
    )
    assert torch.autograd.grad(value, log_scale(loss))[0].abs() > 1


def test_a_copy_is_clamped_too():
    loss = copy.deepcopy(nf.CLIPLoss(learnable=True))
    put(loss, 1e5)
    step(loss)
    assert log_scale(loss).exp().item() == pytest.approx(100.0, rel=1e-5)


def test_another_models_optimiser_leaves_it_alone():
    loss, model = nf.CLIPLoss(learnable=True), nn.Linear(2, 1)
    put(loss, 1e5)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    assert log_scale(loss).exp().item() == pytest.approx(1e5, rel=1e-4)


def test_it_learns():
    """Two aligned views want a colder softmax: τ falls to its bound."""
    loss = nf.CLIPLoss(temperature=1.0, learnable=True)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        loss(torch.eye(8), torch.eye(8)).backward()
        optimiser.step()
    assert log_scale(loss).exp().item() > 10


def test_siglips_bias_is_learned_beside_it():
    loss = nf.SigLIPLoss(learnable=True)
    assert sorted(p.item() for p in loss.parameters()) == pytest.approx([-10.0, math.log(10)])


@pytest.mark.parametrize("tau", [0.005, 200.0])
def test_a_loaded_temperature_stays_where_it_was(tau):
    learned, fresh = nf.NTXentLoss(temperature=tau, learnable=True), nf.NTXentLoss(learnable=True)
    fresh.load_state_dict(learned.state_dict())
    optimiser = torch.optim.SGD(fresh.parameters(), lr=0.0)
    fresh(torch.eye(4), torch.eye(4)).backward()
    optimiser.step()
    assert float(fresh.temperature) == pytest.approx(tau)
    bounded = nf.NTXentLoss(learnable=True, max_scale=50.0)
    bounded.load_state_dict(nf.NTXentLoss(temperature=0.01, learnable=True).state_dict())
    optimiser = torch.optim.SGD(bounded.parameters(), lr=0.0)
    bounded(torch.eye(4), torch.eye(4)).backward()
    optimiser.step()
    assert float(bounded.temperature) == pytest.approx(1 / 50)  # the bound that was named stands
