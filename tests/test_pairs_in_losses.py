"""Losses of any relation: however it was made, wherever it lies, and whatever becomes of it afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import nearfar as nf
from nearfar.pairs import Pairs
from nearfar.scores import tile_size
from pair_cases import NAN, filled, some_pairs
from problems import noise

pytestmark = pytest.mark.usefixtures("unchecked")
LOSSES = ["InfoNCELoss", "SupConLoss", "CLIPLoss", "SigLIPLoss", "DCLLoss", "SpectralLoss", "CircleLoss"]


@pytest.mark.parametrize("backend", [None, "tiled", "strip", "dense"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_depends_on_the_relation_alone(name, backend):
    """However it was made: by the pairs and by the same relation as a matrix, value and gradient are the same."""
    loss = getattr(nf, name)(backend=backend)
    for seed, kind in enumerate(["ids", "known ids", "own labels", "sparse", "sets", "soft"]):
        for first, own in [(None, False), (0, False), (None, True), (0, True), (2, False), (-3, False)]:
            itself = first == 0
            n, m = (7, 7) if itself or kind == "own labels" else (7, 9)
            pairs = replace(some_pairs(kind, n, m, seed), own=first)
            pairs = pairs.excluding(torch.arange(n) % 4, torch.arange(m) % 3) if own else pairs
            z = [torch.randn(c, 3, generator=noise(seed + c), dtype=torch.float64).requires_grad_() for c in (n, m)]
            for sides in (z, z[:1]) if itself else (z,):
                by_pairs, by_matrix = (evaluated(loss, sides, p) for p in (pairs, Pairs.from_matrix(as_matrix(pairs))))
                for a, b in zip(by_pairs, by_matrix):
                    # weights of soft labels are float32
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m: f"{kind} {first} {own}\n{m}")


LYING = {"transposed": lambda m: m.T.contiguous().T, "with gaps": lambda m: torch.stack([m, m], 2)[..., 0]}


@pytest.mark.parametrize("backend", [None, "tiled", "strip", "dense"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_matrix_may_lie_in_memory_as_it_likes(name, backend):
    z = [torch.randn(9, 3, generator=noise(seed), dtype=torch.float64).requires_grad_() for seed in (1, 2)]
    weights = torch.rand(9, 9, generator=noise(3), dtype=torch.float64).sub(0.5).relu()
    unknown = weights.masked_fill(weights > 0.4, NAN)
    for matrix in (weights, weights > 0, unknown):
        for sides in (z, z[:1]) if name != "SpectralLoss" or matrix.dtype == torch.bool else ():
            wanted = evaluated(getattr(nf, name)(backend=backend), sides, Pairs.from_matrix(matrix))
            for lie in LYING.values():
                assert not lie(matrix).is_contiguous()
                found = evaluated(getattr(nf, name)(backend=backend), sides, Pairs.from_matrix(lie(matrix)))
                for a, b in zip(found, wanted):
                    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_buffer_may_be_filled_anew(name):
    """Nothing that one call found out about a relation is kept for the next."""
    loss = getattr(nf, name)()
    z = [torch.randn(9, 3, generator=noise(seed), dtype=torch.float64) for seed in (1, 2)]
    labels, matrix = torch.arange(9) % 3, torch.eye(9, dtype=torch.bool)
    held = Pairs.by_label(labels), Pairs.from_matrix(matrix)
    for pairs in held:
        loss(*z, pairs=pairs)
    labels.copy_(torch.arange(9) % 4)
    matrix.copy_(labels[:, None] == labels)
    wanted = loss(*z, pairs=Pairs.by_label(labels.clone()))
    for pairs in held:
        torch.testing.assert_close(loss(*z, pairs=pairs), wanted)


def as_matrix(pairs: Pairs) -> Tensor:
    positive, ignored, weight = filled(pairs.whole())
    assert positive is not None
    assert ignored is not None
    return (positive.float() if weight is None else weight).masked_fill(ignored, NAN)


def evaluated(loss: torch.nn.Module, z: list[Tensor], pairs: Pairs) -> tuple[Tensor, ...]:
    with tile_size(3):
        value = loss(*z, pairs=pairs)
    return value, *torch.autograd.grad(value, z)
