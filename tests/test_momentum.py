"""Averaged copies: the numbers of the formula, and nothing lost when they are swapped in or resumed."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

from nearfar.encoders.momentum import Average


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    network(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    optimizer.step()


def test_it_is_the_formula():
    """Constant steps of the live weight: θ' = Σ (1 − m)·m^(k−i)·θ_i + m^k·θ_0."""
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    average = Average(linear, decay=0.9)
    for value in (2.0, 3.0, 4.0):
        nn.init.constant_(linear.weight, value)
        average.update(linear)
    wanted = 0.1 * (0.81 * 2 + 0.9 * 3 + 4) + 0.729 * 1
    assert average.module.weight.item() == pytest.approx(wanted, rel=1e-6)


def test_it_is_torchs_own():
    ours, theirs = net(), net()
    average = Average(ours, decay=0.95)
    swa = torch.optim.swa_utils.AveragedModel(
        theirs, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.95), use_buffers=False
    )
    swa.update_parameters(theirs)  # torch's first call copies
    for seed in range(5):
        for network in (ours, theirs):
            step(network, torch.optim.SGD(network.parameters(), lr=0.1), seed)
        average.update(ours)
        swa.update_parameters(theirs)
    for own, other in zip(average.module.parameters(), swa.module.parameters(), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("buffers", ["copy", "keep"])
def test_buffers(buffers):
    network = net()
    average = Average(network, 0.9, buffers=buffers)
    network(torch.randn(16, 3) + 5)
    average.update(network)
    same = torch.equal(average.module[1].running_mean, network[1].running_mean)
    assert same == (buffers == "copy")
    assert average.module[1].num_batches_tracked == (1 if buffers == "copy" else 0)


def test_a_key_encoder_keeps_statistics_of_its_own_batches():
    network = net()
    average = Average(network, 0.9, buffers="keep")
    average(torch.randn(16, 3) + 5)
    average.update(network)
    assert average.module[1].num_batches_tracked == 1


def test_warmup_forgets_the_random_start():
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, 0.0)
    average = Average(linear, decay=0.999, warmup=True)
    nn.init.constant_(linear.weight, 1.0)
    average.update(linear)  # decay (1 + 1) / (10 + 1)
    assert average.module.weight.item() == pytest.approx(9 / 11)
    average.update(linear, decay=0.1)  # a lower one, for once
    assert average.module.weight.item() == pytest.approx(1 - 2 / 11 * 0.1)


def test_it_has_no_gradients_and_does_not_hold_the_module():
    network = net()
    average = Average(network)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not average(torch.randn(4, 3, requires_grad=True)).requires_grad
    assert all(module is not network for module in average.modules())
    before = copy.deepcopy(network.state_dict())
    average.update(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_swapped_puts_everything_back_even_after_an_error():
    network = net()
    average = Average(network, 0.5)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    step(network, optimizer, 0)
    average.update(network)
    step(network, optimizer, 1)
    own = copy.deepcopy(network.state_dict())
    x = torch.randn(4, 3)
    with contextlib.suppress(ZeroDivisionError), average.swapped(network) as swapped:
        assert swapped is network
        assert torch.equal(network.eval()(x), average.module.eval()(x))
        raise ZeroDivisionError
    assert all(torch.equal(own[name], value) for name, value in network.state_dict().items())


def test_resumed_by_its_state_it_goes_on_bit_for_bit():
    def trained(stop: int | None) -> Average:
        network = net()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        average = Average(network, 0.99, warmup=True)
        for seed in range(6):
            if seed == stop:
                state = copy.deepcopy((network.state_dict(), optimizer.state_dict(), average.state_dict()))
                network = net()
                optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
                average = Average(network, 0.99, warmup=True)
                network.load_state_dict(state[0])
                optimizer.load_state_dict(state[1])
                average.load_state_dict(state[2])
            step(network, optimizer, seed)
            average.update(network)
        return average

    plain, resumed = trained(None).state_dict(), trained(3).state_dict()
    assert plain.keys() == resumed.keys()
    assert all(torch.equal(plain[name], resumed[name]) for name in plain)
    assert plain["updates"] == 6


def test_a_module_in_half_precision_is_followed_in_float32():
    network = nn.Linear(2, 2)
    average = Average(network, 0.5)
    average.update(copy.deepcopy(network).bfloat16())
    assert average.module.weight.dtype == torch.float32


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"buffers": "none"}], ids=str)
def test_what_cannot_be_is_refused(options, unchecked):
    with pytest.raises(ValueError, match=r"wanted|pass"):
        Average(nn.Linear(1, 1), **options)


def test_another_module_is_refused():
    with pytest.raises((RuntimeError, ValueError)):
        Average(nn.Linear(1, 1)).update(nn.Linear(1, 1, bias=False))
