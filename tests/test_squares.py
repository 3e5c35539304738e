"""Sums of squared scores by second moments, and squares as element functions, beside their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nearfar as nf
from nearfar.pairs import Pairs
from nearfar.scores import squares
from problems import draw

N, D = 90, 7
LABELS = torch.arange(N) % 30
RELATIONS = {"two views": (2, {}), "labels": (2, {"labels": LABELS}), "rows with themselves": (1, {"labels": LABELS})}


def by_definition(sides: list[Tensor], labels: Tensor | None) -> Tensor:
    x, y = sides[0], sides[-1]
    scores, itself = x @ y.T, torch.eye(N, dtype=torch.bool) & (len(sides) == 1)
    same = torch.eye(N, dtype=torch.bool) if labels is None else labels[:, None] == labels
    near, far = same & ~itself, ~same
    return scores[far].square().mean() - 2 * scores[near].mean()


@pytest.mark.parametrize("relation", RELATIONS)
def test_spectral_loss_is_the_definition(relation, monkeypatch):
    """Many rows of few features: moments, and no matrix of scores."""
    many, options = RELATIONS[relation]
    seen = []
    monkeypatch.setattr(
        squares, "sum_of_squares", lambda x, y, real=squares.sum_of_squares: seen.append(1) or real(x, y)
    )
    sides = [draw(N, D, seed=k).requires_grad_() for k in range(many)]
    value, wanted = nf.functional.spectral_loss(*sides, **options), by_definition(sides, options.get("labels"))
    assert seen
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(v, sides) for v in (value, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_one_side_alone_has_its_gradient():
    x, y = draw(N, D, seed=1), draw(N, D, seed=2)
    whole = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    wanted = torch.autograd.grad(nf.functional.spectral_loss(*whole), whole)
    for side in range(2):
        given = [part.clone().requires_grad_(k == side) for k, part in enumerate((x, y))]
        found = torch.autograd.grad(nf.functional.spectral_loss(*given), given[side])[0]
        torch.testing.assert_close(found, wanted[side], rtol=1e-13, atol=1e-15)


def test_what_has_many_positives_or_weights_is_left_to_the_scores(monkeypatch):
    monkeypatch.setattr(squares, "sum_of_squares", lambda x, y: pytest.fail("no list of positives is short enough"))
    z = draw(N, D, seed=3)
    nf.functional.spectral_loss(z, labels=torch.arange(N) % 2)
    nf.functional.spectral_loss(z, z + 1, pairs=Pairs.from_matrix(torch.eye(N) / 2))


def test_long_lists_are_not_made(monkeypatch):
    """Two classes have half of all pairs as positives, which large batches have no memory for."""
    monkeypatch.setattr(squares.Edges, "of", lambda pairs, dtype: pytest.fail("a list was made to be counted"))
    z = draw(N, D, seed=3)
    assert squares.related(nf.scores.Scores(z, z, Pairs.by_label(torch.arange(N) % 2).excluding_self())) is None


def test_in_float32_nothing_is_lost_to_what_is_taken_off():
    """Rows that nearly fulfil the loss: positives make up most of all squares."""
    x = torch.linalg.qr(draw(N, N, seed=4))[0].float()
    y = x + 1e-3 * draw(N, N, seed=5).float()
    x, y = torch.cat([x] * 2, 1).requires_grad_(), torch.cat([y] * 2, 1).requires_grad_()
    found = squares.sum_of_squares(x, y) - (x * y).sum(1).square().sum(dtype=torch.float64)
    scores = x.double() @ y.double().T
    wanted = scores.square().fill_diagonal_(0.0).sum()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * scores.diagonal().square().sum().item())


def test_element_functions_have_their_first_two_derivatives():
    values, margin = draw(5, 4, seed=6).requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squares.square, (values,))
    assert torch.autograd.gradgradcheck(squares.square, (values,))
    assert torch.autograd.gradcheck(squares.hinge, (margin, values))
    assert torch.autograd.gradgradcheck(squares.hinge, (margin, values))
    torch.testing.assert_close(squares.hinge(margin, values), (margin - values).clamp(min=0).square())
