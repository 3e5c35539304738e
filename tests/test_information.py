"""Mutual information: the learned critic, the corrected gradient, and every shape of the local side."""

from __future__ import annotations

import math

import pytest
import torch

import nearfar as nf
from oracles import ORACLES
from problems import draw

ESTIMATORS = ["infonce", "jsd", "dv"]
information = ORACLES["MutualInformationLoss"]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("local", ["vectors", "maps", "graphs"])
def test_bilinear_critic(estimator, local):
    """`⟨x, W y⟩` between spaces of different size, with W's gradient."""
    x, w = draw(5, 3, seed=0), draw(3, 4, seed=1)
    second, batch = {
        "vectors": (draw(5, 4, seed=2), None),
        "maps": (draw(5, 4, 2, 2, seed=2), None),
        "graphs": (draw(9, 4, seed=2), torch.tensor([0, 0, 1, 3, 3, 3, 4, 2, 0])),
    }[local]
    loss = nf.MutualInformationLoss(estimator, bilinear=(3, 4)).double()
    (parameter,) = loss.parameters()
    with torch.no_grad():
        parameter.copy_(w)
    keywords = {} if batch is None else {"batch": batch}
    value, own = loss(x, second, **keywords), w.clone().requires_grad_()
    wanted = information(x, second, **keywords, estimator=estimator, matrix=own)
    torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(value, parameter)[0], torch.autograd.grad(wanted, own)[0], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_sequences_are_maps_of_one_row(estimator):
    x, local = draw(4, 3, seed=0), draw(4, 3, 5, seed=1)
    loss = nf.MutualInformationLoss(estimator)
    torch.testing.assert_close(
        loss(x, local), information(x, local[:, :, None], estimator=estimator), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_graph_without_nodes_only_meets_the_others(estimator):
    x, nodes, batch = draw(4, 3, seed=0), draw(6, 3, seed=1), torch.tensor([0, 0, 1, 3, 3, 1])
    value = nf.MutualInformationLoss(estimator)(x, nodes, batch=batch)
    torch.testing.assert_close(value, information(x, nodes, batch=batch, estimator=estimator), rtol=1e-10, atol=1e-12)


def test_corrected_gradient_divides_by_the_running_mean():
    """MINE, section 3.2: the value is the batch's, the marginal's gradient is over the mean of many batches."""
    x, y = draw(5, 3, seed=0).requires_grad_(), draw(5, 3, seed=1)
    log_ema = torch.tensor(1.3, dtype=torch.float64)
    value = nf.functional.mutual_information_loss(x, y, estimator="dv", log_ema=log_ema)
    torch.testing.assert_close(value, information(x, y, estimator="dv"), rtol=1e-10, atol=0)
    t = x @ y.T
    others = t[~torch.eye(5, dtype=torch.bool)].exp().mean()
    corrected = -(t.diagonal().mean() - others / log_ema.exp())
    torch.testing.assert_close(
        torch.autograd.grad(value, x)[0], torch.autograd.grad(corrected, x)[0], rtol=1e-9, atol=1e-12
    )


def test_running_mean_is_carried_on_while_training_only():
    """The first batch sets it; later ones enter by 1 − decay; evaluation leaves it."""
    x, y = draw(5, 3, seed=0), draw(5, 3, seed=1)

    def marginal(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a @ b.T)[~torch.eye(5, dtype=torch.bool)].exp().mean().item()

    loss = nf.MutualInformationLoss("dv", ema=0.9).double()
    loss(x, y)
    assert loss.log_ema.exp().item() == pytest.approx(marginal(x, y), rel=1e-6)
    loss(y, x + 1)
    after = 0.9 * marginal(x, y) + 0.1 * marginal(y, x + 1)
    assert loss.log_ema.exp().item() == pytest.approx(after, rel=1e-6)
    loss.eval()
    loss(x, y)
    assert loss.log_ema.exp().item() == pytest.approx(after, rel=1e-6)


def test_infonce_never_claims_more_than_the_logarithm_of_its_candidates():
    for scale in (1.0, 10.0, 100.0):
        assert -nf.MutualInformationLoss()(scale * draw(6, 3, seed=0), draw(6, 3, seed=1)) <= math.log(6) + 1e-12


def test_donsker_varadhan_without_a_negative_is_zero():
    x = draw(1, 3, seed=0).requires_grad_()
    value = nf.MutualInformationLoss("dv")(x, draw(1, 3, seed=1))
    assert value == 0
    assert not torch.autograd.grad(value, x)[0].any()


def test_only_a_running_mean_is_part_of_the_state():
    assert "log_ema" not in nf.MutualInformationLoss("dv").state_dict()
    assert "log_ema" in nf.MutualInformationLoss("dv", ema=0.9).state_dict()
