"""Losses against many classes by one visit of the table: in strips of rows, beside cross-entropy written down in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nearfar as nf
from nearfar.scores import class_softmax
from problems import draw

C = 40
LOSSES = {
    "ArcFace": (nf.functional.arcface_loss, {}),
    "CosFace": (nf.functional.cosface_loss, {}),
    "Proxy-NCA": (nf.functional.proxy_nca_loss, {"denominator": "negatives"}),
    "Proxy-NCA++": (nf.functional.proxy_nca_loss, {"denominator": "all"}),
}
MARGINS = {"ArcFace": 0.5, "CosFace": 0.35}
Number = float | Tensor


def unit(rows: Tensor) -> Tensor:
    """Of length one; a row of zeros stays."""
    return F.normalize(rows, eps=1e-300)


def by_definition(
    name: str, z: Tensor, labels: Tensor, table: Tensor, scale: Number, weights: Tensor, margin: Number | None = None
) -> Tensor:
    """The whole matrix, one formula after the other."""
    margin = MARGINS.get(name, 0.0) if margin is None else margin
    rows, (z, table) = torch.arange(len(z)), (unit(z), unit(table))
    logits = z @ table.T
    if name.startswith("Proxy"):
        logits = -(z[:, None] - table).square().sum(2)
    own = logits[rows, labels]
    if name == "ArcFace":
        own = (own.acos() + margin).cos()
    if name == "CosFace":
        own = own - margin
    changed = logits.index_put((rows, labels), own) * scale
    all_of_them = changed.index_put((rows, labels), own * 0 - math.inf) if name == "Proxy-NCA" else changed
    values = all_of_them.logsumexp(1) - own * scale
    return (values * weights).sum() / weights.sum()


def ours(
    name: str, z: Tensor, labels: Tensor, table: Tensor, scale: Number, weights: Tensor, margin: Number | None = None
) -> Tensor:
    function, options = LOSSES[name]
    if name.startswith("Proxy"):
        strength = {"temperature": 1 / scale}
    else:
        strength = {"scale": scale, "margin": MARGINS[name] if margin is None else margin}
    return function(z, labels, table, **options, **strength, weights=weights)


def problem(n: int = 11) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = torch.randint(C, (n,), generator=torch.Generator().manual_seed(1))
    table = draw(C, 6, seed=2)
    z = 3 * table[labels] + 2 * draw(n, 6, seed=3)  # of any length, and nearer to their own class than most
    return z, labels, table, draw(n, seed=4).square()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.5, 30.0, 200.0])
@pytest.mark.parametrize("strip", [1, 4 * C, 2**22])
def test_it_is_the_definition(name, scale, strip, monkeypatch):
    """Exponents that need no maximum and such that do, one row at a time, a ragged last strip, all rows at once."""
    monkeypatch.setattr(class_softmax, "_SCORES", strip)
    monkeypatch.setattr(class_softmax, "_NUMBERS", 50)
    z, labels, table, weights = problem()
    leaves = [z.requires_grad_(), table.requires_grad_()]
    value, wanted = (form(name, z, labels, table, scale, weights) for form in (ours, by_definition))
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(v, leaves) for v in (value, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [80.0, 200.0])
def test_exponents_that_float32_does_not_hold(name, scale):
    """Some of either sign: they need a maximum, which float64 would not."""
    z, labels, table, weights = problem()
    value = ours(name, z.float(), labels, table.float(), scale, weights.float())
    torch.testing.assert_close(
        value.double(), by_definition(name, z, labels, table, scale, weights), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", LOSSES)
def test_zeros_have_no_direction(name):
    """Neither a row nor a class at the origin is divided by its length; a distance to that class is another one."""
    z, labels, table, weights = problem()
    z[2], table[5], table[labels[7]] = 0.0, 0.0, 0.0
    value = ours(name, z, labels, table, 10.0, weights)
    torch.testing.assert_close(value, by_definition(name, z, labels, table, 10.0, weights), rtol=1e-12, atol=1e-12)
    z.requires_grad_()
    gradient = torch.autograd.grad(ours(name, z, labels, table, 10.0, weights), z)[0]
    assert gradient.isfinite().all()
    assert not gradient[2].any()


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_do_not_count_change_nothing(name):
    z, labels, table, _ = problem()
    weights = torch.ones(len(z), dtype=z.dtype)
    weights[3] = 0.0
    unknown = labels.clone()
    unknown[3] = -1
    keep = torch.arange(len(z)) != 3
    some = ours(name, z[keep], labels[keep], table, 20.0, weights[keep])
    for given in (labels, unknown):
        torch.testing.assert_close(ours(name, z, given, table, 20.0, weights), some, rtol=1e-12, atol=0)
    z = z.clone().requires_grad_()
    assert not torch.autograd.grad(ours(name, z, unknown, table, 20.0, weights), z)[0][3].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("strip", [4 * C, 2**22])
@pytest.mark.parametrize("zero", [False, True], ids=["", "a class at the origin"])
def test_weights_scale_and_margin_may_be_learned(name, strip, zero, monkeypatch):
    """Together with the rows and without them, and without any gradient; the table's visit is the one for it."""
    monkeypatch.setattr(class_softmax, "_SCORES", strip)
    z, labels, table, weights = problem()
    table[5] = table[5] * (not zero)
    scale, margin = torch.tensor(9.0, dtype=z.dtype), torch.tensor([0.3], dtype=z.dtype)
    numbers = [
        weights.requires_grad_(),
        scale.requires_grad_(),
        *([margin.requires_grad_()] if name in MARGINS else []),
    ]
    rows = [z] if zero else [z, table]  # at the origin a class has no gradient to compare
    for leaves in (numbers, [*numbers, *(part.requires_grad_() for part in rows)]):
        value, wanted = (form(name, z, labels, table, scale, weights, margin) for form in (ours, by_definition))
        assert visits(value)
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
        for a, b in zip(*(torch.autograd.grad(v, leaves) for v in (value, wanted))):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def visits(value: Tensor) -> bool:
    """Whether a loss was made by the one visit of the classes."""
    seen, nodes = set(), [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes.extend(before for before, _ in node.next_functions)
    return any("MeanClassSoftmax" in node.name() for node in seen)


@pytest.mark.parametrize("name", MARGINS)
def test_a_margin_a_row(name):
    """Which the one visit does not know."""
    z, labels, table, weights = problem()
    margin = torch.linspace(0.1, 0.6, len(z), dtype=z.dtype).requires_grad_()
    value, wanted = (form(name, z, labels, table, 9.0, weights, margin) for form in (ours, by_definition))
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(v, margin) for v in (value, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_one_side_alone_and_one_class_alone(name):
    z, labels, table, weights = problem()
    whole = [z.clone().requires_grad_(), table.clone().requires_grad_()]
    wanted = torch.autograd.grad(ours(name, whole[0], labels, whole[1], 9.0, weights), whole)
    for side in range(2):
        given = [x.detach().requires_grad_(k == side) for k, x in enumerate(whole)]
        value = ours(name, given[0], labels, given[1], 9.0, weights)
        torch.testing.assert_close(torch.autograd.grad(value, given[side])[0], wanted[side], rtol=1e-13, atol=1e-15)
    alone = ours(name, whole[0], torch.zeros_like(labels), whole[1][:1], 9.0, weights)
    assert alone.item() == 0.0
    assert all(g is None or not g.any() for g in torch.autograd.grad(alone, whole, allow_unused=True))


def test_many_classes_cost_one_copy_of_the_table_and_one_strip(monkeypatch):
    """Beside gradients: the table's rows of length one, and the strip; never all scores."""
    monkeypatch.setattr(class_softmax, "_SCORES", 2**16)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.append(found.numel() if isinstance(found, Tensor) else 0)
            return found

    n, c, d = 256, 4096, 8
    z, table = torch.randn(n, d, requires_grad=True), torch.randn(c, d, requires_grad=True)
    with Watch():
        nf.functional.arcface_loss(z, torch.arange(n), table).backward()
    assert max(sizes) < n * c / 8
