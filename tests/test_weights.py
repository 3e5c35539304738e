"""Weights of a mean that are learned, as networks that weigh samples do: their gradient is the dense form's, in every plan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nearfar as nf
from harness import KINDS
from nearfar.scores import tile_size
from problems import draw

N, D, CLASSES = 14, 5, 4
LABELS = torch.arange(N) % CLASSES
REFUSING = (
    "ContrastiveLoss", "TripletLoss", "LiftedStructureLoss", "SpectralLoss", "MutualInformationLoss", "ProxyAnchorLoss"
)  # fmt: skip
"""Their means run over something else than queries."""
RELATIONS = {
    "": lambda: {},
    " by label": lambda: {"labels": LABELS},
    " by matrix": lambda: {"pairs": nf.Pairs.from_matrix(draw(N, N, seed=5).relu())},
}


def slope(name: str, relation: str, backend: str | None) -> Tensor:
    weights = draw(N, seed=4).relu().requires_grad_()  # some are 0 just now
    torch.manual_seed(0)
    z = draw(N, D, seed=1)
    kind, options = KINDS[name], {} if name == "NCELoss" else {"backend": backend}
    if kind == "classes":
        value = nf.LOSSES[name].loss(CLASSES, D, **options).double()(z, LABELS, weights=weights)
    elif name == "NCELoss":
        value = nf.NCELoss(torch.ones(CLASSES))(z, LABELS, draw(CLASSES, D, seed=2), weights=weights)
    else:
        sides = (z,) if kind in ("self", "pairs") and relation else (z, draw(N, D, seed=2))
        keywords = RELATIONS[relation]()
        value = nf.LOSSES[name].loss(**options)(*sides, **keywords, weights=weights)
    return torch.autograd.grad(value, weights)[0]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind != "moments"])
def test_weights_have_the_gradient_of_the_dense_form(name, relation):
    if name in REFUSING:
        with pytest.raises(TypeError, match="weights"):
            slope(name, relation, "dense")
        return
    wanted = slope(name, relation, "dense")
    assert float(wanted.abs().max()) > 1e-6
    for backend in (None, "tiled", "strip"):
        with tile_size(4):
            torch.testing.assert_close(slope(name, relation, backend), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", [None, "tiled", "strip", "dense"])
@pytest.mark.parametrize("name", ["InfoNCELoss", "SupConLoss", "CLIPLoss", "NPairsLoss", "DCLLoss"])
def test_a_weight_that_is_0_just_now_has_a_gradient(name, backend):
    """That of ``Σ w·ℓ / Σ w``, which is written here."""
    loss, z = nf.LOSSES[name].loss(backend=backend), draw(N, D, seed=1)
    weights = draw(N, seed=4).relu().requires_grad_()
    assert int((weights == 0).sum()) > 3
    sides = (z,) if KINDS[name] == "self" else (z, draw(N, D, seed=2))
    values = loss.per_query(*sides, labels=LABELS)
    (wanted,) = torch.autograd.grad((weights * values).sum() / weights.sum(), weights)
    (found,) = torch.autograd.grad(loss(*sides, labels=LABELS, weights=weights), weights)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
