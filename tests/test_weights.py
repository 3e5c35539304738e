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
    weights = draw(N, seed=4).square().requires_grad_()
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
