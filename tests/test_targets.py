"""Softmax losses against relations that are no rule of ids: one visit of the tiles, whole strips of them at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nearfar as nf
from nearfar.pairs import Pairs
from nearfar.scores import targets, tile_size
from problems import draw

pytestmark = pytest.mark.usefixtures("unchecked")
N, D = 23, 5
LABELS = torch.arange(N) % 6
UNKNOWN = LABELS.masked_fill(LABELS == 4, -1)
SETS = draw(N, 7, seed=9) > 0.8
SOFT = draw(N, 7, seed=9).sub(0.5).relu()
MATRIX = draw(N, N, seed=8).relu()
NAN = MATRIX.masked_fill(draw(N, N, seed=7) > 1, torch.nan)
IDS = torch.stack([LABELS, torch.arange(N) % 4], 1)
RELATIONS: dict[str, Callable[[], Pairs]] = {
    "weights": lambda: Pairs.from_matrix(MATRIX),
    "weights, some unknown": lambda: Pairs.from_matrix(NAN),
    "booleans": lambda: Pairs.from_matrix(MATRIX > 0.5),
    "sparse": lambda: Pairs.from_matrix((MATRIX - 1).relu().to_sparse()),
    "label sets": lambda: Pairs.by_label(SETS),
    "soft labels": lambda: Pairs.by_label(SOFT),
    "unknown labels": lambda: Pairs.by_label(UNKNOWN),
    "two ids": lambda: Pairs.sparing(IDS, IDS),
    "united": lambda: Pairs.by_label(LABELS) | Pairs.from_matrix(MATRIX),
    "other rows of a sample left out": lambda: Pairs.by_label(LABELS).excluding(IDS[:, 1], IDS[:, 1]),
    "nobody": lambda: Pairs.from_matrix(torch.zeros(N, N)),
}
LOSSES = {"one side": (nf.InfoNCELoss, 2), "both sides": (nf.CLIPLoss, 2), "rows with themselves": (nf.SupConLoss, 1)}


@pytest.fixture
def visits(monkeypatch) -> list[Tensor]:
    """A loss that was made in one visit, each."""
    seen: list[Tensor] = []
    monkeypatch.setattr(
        targets, "mean_softmax", lambda *a, real=targets.mean_softmax: (seen.append(real(*a)), seen[-1])[1]
    )
    return seen


def evaluate(
    loss: str, relation: str, backend: str, *, dtype: torch.dtype = torch.float64, temperature: float = 0.2, **options
) -> list[Tensor]:
    """Value; gradients of the rows, of the temperature, and of offsets where they are given."""
    kind, sides = LOSSES[loss]
    module = kind(temperature=temperature, learnable=True, backend=backend).to(dtype)
    rows = [draw(N, D, seed=k).to(dtype).requires_grad_() for k in range(sides)]
    leaves = [*rows, *module.parameters(), *(t for t in options.values() if t.requires_grad)]
    value = module(*rows, pairs=RELATIONS[relation](), **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", ["tiled", "strip"])
def test_value_and_gradients_are_the_dense_form_s(loss, relation, backend, visits):
    wanted = evaluate(loss, relation, "dense")
    assert not visits
    for rows in (1, 7, 64):
        with tile_size(rows):
            for found, exact in zip(evaluate(loss, relation, backend), wanted, strict=True):
                torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)
    assert len(visits) == (6 if loss == "both sides" else 3)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [0.2, 0.005])
def test_weights_offsets_and_scores_beyond_exponentials(loss, relation, temperature, visits):
    """At τ = 0.005 the running maximum is kept."""
    options = {
        "weights": draw(N, seed=3).relu(),
        "offsets": draw(N, seed=4).requires_grad_(),
        "temperature": temperature,
    }
    wanted = evaluate(loss, relation, "dense", **options)
    with tile_size(6):
        for found, exact in zip(evaluate(loss, relation, "tiled", **options), wanted, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-11)
    assert visits


@pytest.mark.parametrize("loss", LOSSES)
def test_float32_is_as_exact_as_the_dense_form(loss, visits):
    exact, dense, found = (
        evaluate(loss, "weights", backend, dtype=dtype)
        for backend, dtype in (("dense", torch.float64), ("dense", torch.float32), ("tiled", torch.float32))
    )
    for a, b, c in zip(found, dense, exact, strict=True):
        assert a.dtype == torch.float32
        floor = 4 * torch.finfo(torch.float32).eps * float(c.abs().max())
        assert float((a - c).abs().max()) <= max(2 * float((b - c).abs().max()), floor)
    assert visits


def test_only_what_is_wanted_is_made(visits):
    """Keys of a queue need no gradient, an evaluation none at all; a second derivative is refused."""
    x, y = draw(N, D, seed=1).requires_grad_(), draw(N, D, seed=2)
    pairs, loss = RELATIONS["weights"](), nf.InfoNCELoss(backend="tiled")
    value = loss(x, y, pairs=pairs)
    with torch.no_grad():
        assert loss(x, y, pairs=pairs) == value
    slope = torch.autograd.grad(3 * value, x, create_graph=True)[0]
    wanted = torch.autograd.grad(nf.InfoNCELoss(backend="dense")(x, y, pairs=pairs), x)[0]
    torch.testing.assert_close(slope.detach(), 3 * wanted)
    with pytest.raises(RuntimeError, match="backend='dense'"):
        slope.sum().backward()
    assert len(visits) == 2


def test_a_matrix_is_not_changed():
    matrix = MATRIX.clone()
    nf.SupConLoss(backend="tiled")(draw(N, D, seed=1), pairs=Pairs.from_matrix(matrix))
    assert torch.equal(matrix, MATRIX)


@pytest.mark.parametrize("backend", [None, "tiled", "strip", "dense"])
@pytest.mark.parametrize("relation", ["weights", "unknown labels", "aligned"])
def test_an_offset_of_minus_infinity_leaves_a_key_out(relation, backend):
    matrix = {
        "weights": MATRIX.clone(),
        "unknown labels": ((UNKNOWN[:, None] == UNKNOWN) & (UNKNOWN >= 0)).double(),
        "aligned": torch.eye(N, dtype=torch.float64),
    }[relation]
    matrix[:, 5] = 0.0  # a key of nobody
    matrix[UNKNOWN < 0] = torch.nan if relation == "unknown labels" else matrix[UNKNOWN < 0]
    offsets, others = torch.zeros(N, dtype=torch.float64), torch.arange(N) != 5
    offsets[5] = -torch.inf
    x, y = (draw(N, D, seed=k).requires_grad_() for k in (1, 2))
    loss = nf.InfoNCELoss(backend=backend)
    found = loss(x, y, pairs=Pairs.from_matrix(matrix), offsets=offsets)
    wanted = nf.InfoNCELoss(backend="dense")(x, y[others], pairs=Pairs.from_matrix(matrix[:, others]))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    for a, b in zip(*(torch.autograd.grad(value, (x, y)) for value in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_clip_of_few_keys_takes_strips_of_its_own(monkeypatch):
    """Either side's strips hold about as many scores, however many queries ask however few keys."""
    sizes = []
    monkeypatch.setattr(targets, "Buffer", lambda x, size, real=targets.Buffer: sizes.append(size) or real(x, size))
    x, y = draw(70_000, 2, seed=1), draw(200, 2, seed=2)
    columns = torch.arange(70_000) % 200
    pairs = Pairs.from_ids(columns, torch.arange(200)) | Pairs.from_ids(columns, torch.arange(200))
    nf.CLIPLoss(backend="tiled")(x, y, pairs=pairs)
    assert len(sizes) == 2
    assert max(sizes) <= 2**22
