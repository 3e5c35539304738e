"""Kernels against the whole matrix in float64: value and gradients, awkward sizes, every rule, every precision.

`test_cuda.py` runs this file in a process of its own: on the GPU where there is one, else by Triton's interpreter, which has
to be chosen before anything imports triton.

In low precision the inputs are rounded first, so that the reference knows what the kernel knows. Errors are counted in units of
the last place (of float32 for values, of the rows' type for gradients) at the largest entry.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import nearfar as nf
from nearfar.scores import cuda
from nearfar.scores.softmax import SoftmaxPlan
from problems import draw
from test_precision import ulp

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILE = 48
"""Rows of a tile: larger problems have several, and no block of a kernel divides it."""
KINDS = ["fp64", "fp32", "fp32 library", "bf16", "fp16", "bf16 library"]
TYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STRUCTURES = ["classes", "unknown", "one class", "all different", "rows", "offsets", "all of it"]
LARGE = ["unknown", "offsets", "all of it"]
"""Structures of the largest size: the interpreter takes a second for each."""
SIZES = [(1, 1), (2, 3), (17, 16), (63, 100), (65, 1), (130, 252)]


@dataclass
class Problem:
    """Rows in float64 that the type of the products can hold, and who counts."""

    x: Tensor
    y: Tensor
    offsets: Tensor | None
    plan: SoftmaxPlan
    gradients: tuple[Tensor, Tensor]  # by the log-sum-exp of rows, and of columns

    @property
    def leaves(self) -> list[Tensor]:
        sides = [self.x] if self.x is self.y else [self.x, self.y]
        return sides if self.offsets is None else [*sides, self.offsets]


def ids(structure: str, n: int, seed: int) -> Tensor:
    if structure in ("one class", "all different"):
        return torch.arange(n) if structure == "all different" else torch.zeros(n, dtype=torch.long)
    low = -1 if structure in ("unknown", "all of it") else 0
    return torch.randint(low, 4, (n,), generator=torch.Generator().manual_seed(seed))


def make(
    n: int, d: int, structure: str, over: str, itself: bool, kind: str, both: bool = False, scale: float = 1.0
) -> Problem:
    m = n if itself else n + 5
    dtype = TYPES[kind.split()[0]]
    x = (scale * draw(n, d, seed=n) / d**0.25).to(dtype).double().to(DEVICE)
    y = x if itself else (scale * draw(m, d, seed=m + 1) / d**0.25).to(dtype).double().to(DEVICE)
    query = ids(structure, n, 1).to(DEVICE)
    pairs = nf.Pairs.from_ids(query, query if itself else ids(structure, m, 2).to(DEVICE))
    pairs = pairs.excluding_self() if itself else pairs
    if structure in ("rows", "all of it"):
        pairs = pairs.excluding(torch.arange(n, device=DEVICE) % 7, torch.arange(m, device=DEVICE) % 5)
    offsets = draw(m, seed=3).float().double().to(DEVICE) if structure in ("offsets", "all of it") else None
    symmetric = pairs.symmetric and offsets is None
    plan = SoftmaxPlan(pairs, symmetric, TILE, TILE, over, both)
    return Problem(x, y, offsets, plan, tuple(draw(size, seed=4).float().double().to(DEVICE) for size in (n, m)))


def whole(p: Problem, x: Tensor, y: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The definition."""
    scores = (x @ y.T).to(torch.promote_types(x.dtype, torch.float32))
    scores = scores if offsets is None else scores + offsets
    positive, ignored, _ = p.plan.pairs.whole()
    ignored = torch.zeros_like(positive) if ignored is None else ignored
    keep = {"candidates": ~ignored, "negatives": ~ignored & ~positive, "positives": positive & ~ignored}[p.plan.over]
    scores = scores.masked_fill(~keep, -torch.inf)
    return scores.logsumexp(1), scores.logsumexp(0) if p.plan.by_column else scores.new_zeros(0)


Found = tuple[list[Tensor], list[Tensor]]
"""Log-sum-exps, and gradients."""


def differentiate(p: Problem, how, dtype: torch.dtype) -> Found:
    """Of Σ g·LSE over the rows and columns where anything counts."""
    x = p.x.to(dtype).requires_grad_()
    y = x if p.x is p.y else p.y.to(dtype).requires_grad_()
    wide = torch.promote_types(dtype, torch.float32)
    offsets = None if p.offsets is None else p.offsets.to(wide).requires_grad_()
    values = how(x, y, offsets)
    terms = [
        torch.where(value == -torch.inf, torch.zeros_like(value), value) @ gradient.to(value)
        for value, gradient in zip(values, p.gradients)
        if len(value)
    ]
    leaves = [leaf for leaf in (x, None if x is y else y, offsets) if leaf is not None]
    return [v.detach() for v in values], list(torch.autograd.grad(sum(terms), leaves))


def in_kernels(p: Problem, kind: str) -> Found:
    dtype = TYPES[kind.split()[0]]
    precision = kind[:4] if dtype.itemsize == 2 else None
    fused = "library" not in kind
    return differentiate(
        p, lambda *rows: cuda.logsumexp(*rows, p.plan, precision, fused), torch.promote_types(dtype, torch.float32)
    )


def errors(found: Found, wanted: Found, dtype: torch.dtype) -> tuple[float, float]:
    """Of values and gradients; where nothing counts a value has to be −∞ exactly."""
    value = gradient = 0.0
    for a, b in zip(found[0], wanted[0], strict=True):
        assert torch.equal(a == -torch.inf, b == -torch.inf)
        b = b.masked_fill(b == -torch.inf, 0.0)
        if len(b):
            off = (a.masked_fill(a == -torch.inf, 0.0).double() - b).abs().max()
            value = max(value, float(off) / ulp(float(b.abs().max()), torch.promote_types(dtype, torch.float32)))
    for a, b in zip(found[1], wanted[1], strict=True):
        assert torch.isfinite(a).all()
        size = float(b.abs().max())
        gradient = max(
            gradient, float((a.double() - b).abs().max()) / ulp(size, dtype) if size else float(a.abs().max())
        )
    return value, gradient


def check(p: Problem, kind: str) -> None:
    """Twice the error of the plain form in the same type, plus 4 units; and half precision costs the statistics nothing."""
    dtype = TYPES[kind.split()[0]]
    wanted = differentiate(p, lambda *rows: whole(p, *rows), torch.float64)
    if dtype is torch.float64:  # the reference is no better, and e^s shows the last place of s
        assert max(errors(in_kernels(p, kind), wanted, dtype)) <= 256
        return
    plain = errors(differentiate(p, lambda *rows: whole(p, *rows), dtype), wanted, dtype)
    own = errors(in_kernels(p, kind), wanted, dtype)
    assert own[0] <= 2 * plain[0] + 4, (own, plain)
    assert own[1] <= 2 * plain[1] + 4, (own, plain)
    if dtype.itemsize == 2:
        assert own[0] <= 16, own
        assert own[1] <= 2, own


CASES = [
    (size, structure, over, itself)
    for (size, structure), (over, itself) in zip(
        [(size, kind) for size, kind in itertools.product(SIZES, STRUCTURES) if size[0] < 130 or kind in LARGE],
        itertools.cycle(itertools.product(["candidates", "negatives", "positives"], [True, False])),
    )
] + [
    ((65, 16), structure, over, itself)
    for structure in STRUCTURES
    for over, itself in [("candidates", True), ("negatives", False)]
]


@pytest.mark.parametrize("kind", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize(("size", "structure", "over", "itself"), CASES, ids=str)
def test_rows(size, structure, over, itself, kind):
    check(make(*size, structure, over, itself, kind), kind)


@pytest.mark.parametrize("kind", ["fp32 library", "bf16 library", "fp16"])
@pytest.mark.parametrize(("size", "structure", "over", "itself"), CASES[::3], ids=str)
def test_rows_once_more(size, structure, over, itself, kind):
    check(make(*size, structure, over, itself, kind), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", ["classes", "unknown", "all of it"])
@pytest.mark.parametrize("size", [(1, 3), (63, 16), (65, 100)], ids=str)
def test_rows_and_columns(size, structure, kind):
    check(make(*size, structure, "candidates", False, kind, both=True), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("itself", [True, False])
def test_a_temperature_of_0_005(itself, kind):
    """Scores between ±200 of rows of length 1: e^200 is beyond float32. Kept within the budget on rows rounded alike."""
    p = make(65, 16, "unknown", "candidates", itself, kind, both=not itself)
    root = 200.0**0.5
    rows = [(root * torch.nn.functional.normalize(z)).to(TYPES[kind.split()[0]]).double() for z in (p.x, p.y)]
    p = replace(p, x=rows[0], y=rows[0] if itself else rows[1])
    assert (p.x @ p.y.T).max() > 120
    check(p, kind)


@pytest.mark.parametrize("kind", ["fp32", "fp32 library"])
def test_a_cold_softmax_keeps_its_last_places(kind):
    """Scores of 900 to 903 are exact here; the last place of their log-sum-exp is 6e-5, and shares of the softmax know better."""
    x, y = torch.ones(1, 1, device=DEVICE), torch.arange(900.0, 904.0, device=DEVICE)[:, None].requires_grad_()
    pairs = nf.Pairs.from_ids(torch.zeros(1, dtype=torch.long), torch.zeros(4, dtype=torch.long)).to(DEVICE)
    plan = SoftmaxPlan(pairs, False, TILE, TILE, "candidates")
    rows, _ = cuda.logsumexp(x, y, None, plan, None, "library" not in kind)
    (shares,) = torch.autograd.grad(rows.sum(), y)
    torch.testing.assert_close(shares.double(), y.detach().double().softmax(0), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_all_alike(kind):
    p = make(50, 3, "classes", "candidates", True, kind)
    p = replace(p, x=(one := torch.ones_like(p.x)), y=one)
    check(p, kind)
    values, _ = in_kernels(p, kind)
    torch.testing.assert_close(
        values[0].double(), torch.full_like(p.x[:, 0], 3.0) + torch.tensor(49.0).log().double().to(DEVICE)
    )


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
@pytest.mark.parametrize("size", [2.0**-60, 1.0, 2.0**60])
def test_gradients_of_any_size_survive_half_precision(kind, size):
    """A mean over many rows, or a gradient scaler, makes the slopes tiny or huge: they are kept near 1 in the tile."""
    p = make(65, 16, "classes", "candidates", False, kind)
    p = replace(p, gradients=tuple(size * g for g in p.gradients))
    wanted = differentiate(p, lambda *rows: whole(p, *rows), torch.float64)
    assert errors(in_kernels(p, kind), wanted, TYPES[kind])[1] <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("structure", ["offsets", "all of it"])
def test_mean(structure, frozen, kind):
    """A weighted mean, its gradient taken forward where scores lie in memory; a weight of 0 hides a row without pairs."""
    p = make(65, 16, structure, "candidates", False, kind)
    dtype = torch.promote_types(TYPES[kind.split()[0]], torch.float32)
    precision = kind[:4] if TYPES[kind.split()[0]].itemsize == 2 else None
    rows, _ = whole(p, p.x, p.y, p.offsets)
    weights = p.gradients[0].abs().masked_fill(rows == -torch.inf, 0.0)

    def mean(how, dtype):
        x, y = p.x.to(dtype).requires_grad_(), p.y.to(dtype).requires_grad_(not frozen)
        offsets = p.offsets.to(dtype).requires_grad_()
        value = how(x, y, offsets)
        return value.detach(), torch.autograd.grad(3 * value, [x, offsets] if frozen else [x, y, offsets])

    def dense(x, y, offsets):
        lse, _ = whole(p, x, y, offsets)
        return (weights * lse.masked_fill(lse == -torch.inf, 0.0)).sum()

    wanted, gradients = mean(dense, torch.float64)
    value, found = mean(
        lambda *rows: cuda.mean_logsumexp(*rows, weights.to(dtype), p.plan, precision, "library" not in kind)[0], dtype
    )
    assert abs(float(value) - float(wanted)) <= 64 * ulp(float(wanted), dtype)
    kept = TYPES[kind.split()[0]]
    for a, b in zip(found, gradients, strict=True):
        assert float((a.double() - b).abs().max()) <= 16 * ulp(float(b.abs().max()), kept)


RELATIONS = {
    "soft labels": lambda n: nf.Pairs.by_label(torch.rand(n, 3, generator=torch.Generator().manual_seed(0))),
    "label sets": lambda n: nf.Pairs.by_label(torch.randint(2, (n, 3), generator=torch.Generator().manual_seed(0))),
    "matrix": lambda n: nf.Pairs.from_matrix(
        torch.where(torch.rand(n, n, generator=torch.Generator().manual_seed(0)) < 0.3, torch.nan, 1.0).tril()
    ),
    "union": lambda n: nf.Pairs.by_label(torch.arange(n) % 4 - 1) | nf.Pairs.views(n // 2),
}


@pytest.mark.parametrize("kind", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("over", ["candidates", "negatives"])
@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_that_are_not_ids(relation, over, kind):
    """Kernels read a tile that torch has masked; or stay fused, where the relation leaves nobody out."""
    p = make(60, 16, "classes", over, True, kind)
    pairs = RELATIONS[relation](60).to(DEVICE).excluding_self()
    p = replace(p, plan=replace(p.plan, pairs=pairs, symmetric=pairs.symmetric))
    check(p, kind)
    how = cuda.choose(p.x.float(), p.plan, "bf16", None)
    assert how.fused == (over == "candidates" and relation in ("soft labels", "label sets"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_every_time(kind):
    p = make(130, 16, "unknown", "candidates", False, kind, both=True)
    once, again = in_kernels(p, kind), in_kernels(p, kind)
    assert all(torch.equal(a, b) for part, other in zip(once, again) for a, b in zip(part, other))


def test_no_rows_and_no_keys():
    for n, m in ((0, 3), (3, 0)):
        x, y = (
            torch.zeros(n, 4, device=DEVICE, requires_grad=True),
            torch.zeros(m, 4, device=DEVICE, requires_grad=True),
        )
        pairs = nf.Pairs.from_ids(torch.zeros(n, dtype=torch.long), torch.zeros(m, dtype=torch.long)).to(DEVICE)
        rows, columns = cuda.logsumexp(x, y, None, SoftmaxPlan(pairs, False, TILE, TILE, "candidates", True))
        assert (rows == -torch.inf).all()
        assert (columns == -torch.inf).all()
        assert (len(rows), len(columns)) == (n, m)
        gradients = torch.autograd.grad(rows.sum() + columns.sum(), [x, y])
        assert all((g == 0).all() for g in gradients)


def test_second_derivatives_are_refused():
    p = make(5, 3, "classes", "candidates", False, "fp32")
    x = p.x.float().requires_grad_()
    rows, _ = cuda.logsumexp(x, p.y.float(), None, p.plan)
    (gradient,) = torch.autograd.grad(rows.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="backend='dense'"):
        torch.autograd.grad(gradient.sum(), x)


def test_transforms_are_refused():
    p = make(17, 3, "classes", "candidates", False, "fp64")
    with pytest.raises(RuntimeError, match="backend='tiled'"):
        torch.func.grad(lambda x: cuda.logsumexp(x, p.y, None, p.plan)[0].sum())(p.x)
