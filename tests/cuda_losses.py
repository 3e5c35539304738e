"""Losses with `backend="cuda"` against their loops; run by `test_cuda.py`, as `cuda_kernels.py` is.

Every softmax loss in every form of call, through the kernels; the other in-batch losses once, by torch on larger tiles.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nearfar as nf
from harness import KINDS, PAIRWISE, Outcome, assert_same, build, differentiate, evaluate, expect, expected
from nearfar.scores.similarity import normalize as unit
from nearfar.scores.similarity import rounded
from problems import FORMS, Case, form_cases, forms_of, variant_cases
from test_precision import ulp

pytestmark = pytest.mark.usefixtures("unchecked")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SOFTMAX = [
    "InfoNCELoss", "NTXentLoss", "SupConLoss", "CLIPLoss", "NPairsLoss", "DCLLoss", "HardNegativeLoss", "DebiasedLoss",
]  # fmt: skip
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
TAU = {"InfoNCELoss": 0.1, "CLIPLoss": 0.07}
N, D = 7, 3


CASES = [
    *form_cases({name: KINDS[name] for name in SOFTMAX}),
    *variant_cases({name: KINDS[name] for name in SOFTMAX}),
    *(Case(name, forms_of(name, KINDS[name])[0], {}) for name in PAIRWISE if name not in SOFTMAX),
]
"""What others ask is torch's, and tested as the tiled plan."""


@pytest.fixture(autouse=True)
def _on_the_device():
    """What the problems draw lies on the CPU; the losses' own tensors go where their inputs are."""
    with torch.device(DEVICE):
        yield


@pytest.fixture
def tf32():
    """Fused float32 (the interpreter's products are exact)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(GPU, reason="the loops and their problems are built on the CPU")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_loops_value_and_gradients(case):
    assert_same(evaluate(build(case.name, case.options, D, "cuda"), case.problem(N, D)), expected(case, N, D))


@pytest.mark.skipif(GPU, reason="TF32 rounds on a GPU")
@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("name", SOFTMAX)
def test_scores_in_registers(name):
    for form in forms_of(name, KINDS[name]):
        case = Case(name, form, {})
        actual = evaluate(build(name, {}, D, "cuda"), case.problem(N, D), torch.float32)
        actual = Outcome(actual.value.double(), [g.double() for g in actual.gradients])
        assert_same(actual, expected(case, N, D, torch.float32), form, rtol=3e-5)


@pytest.mark.skipif(GPU, reason="the loops and their problems are built on the CPU")
@pytest.mark.parametrize("backend", ["dense", "cuda"])
@pytest.mark.parametrize("name", SOFTMAX)
def test_a_learned_temperature(name, backend):
    """Held against the loop: its gradient is that of the rows' scale."""
    problem = Case(name, forms_of(name, KINDS[name])[0], {}).problem(N, D)
    if name == "NPairsLoss":
        pytest.skip("has none")
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    wanted = expect(name, {}, problem, temperature=tau)
    own = tau.detach().clone().requires_grad_()
    problem = problem.map(lambda x: x.detach().requires_grad_())
    value = build(name, {}, D, backend)(*problem.tensors, **problem.keywords, temperature=own)
    assert_same(differentiate(value, [*problem.leaves(), own]), wanted)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", [name for name in SOFTMAX if name != "HardNegativeLoss"])  # it has several scales
def test_rows_in_half_precision(name, precision):
    """Against the same loss in float64 on the rows as the products see them: unit rows times the scale, rounded once."""
    dtype, root = HALF[precision], 10.0**0.5
    raw = [z.to(dtype).to(DEVICE) for z in FORMS["two views"](17, 8, 3).tensors]

    def seen(rows: list[Tensor]) -> list[Tensor]:
        if name == "NPairsLoss":
            return rows
        scales = (root, root) if KINDS[name] == "self" else (1 / TAU[name], 1.0)  # both sides, or the queries
        return [rounded(unit(z) * by, dtype) / by for z, by in zip(rows, scales)]

    wide, leaves = ([z.clone().requires_grad_() for z in rows] for rows in ([z.double() for z in raw], raw))
    wanted = nf.LOSSES[name].function(*seen(wide), backend="dense", normalize=False)
    actual = nf.LOSSES[name].function(*leaves, backend="cuda")
    assert actual.dtype is torch.float32
    assert abs(float(actual.detach()) - float(wanted.detach())) <= 16 * ulp(float(wanted.detach()), torch.float32)
    for a, b in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(wanted, wide), strict=True):
        assert a.dtype is dtype
        assert float((a.double() - b).abs().max()) <= 2 * ulp(float(b.abs().max()), dtype)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", SOFTMAX)
def test_a_budget_for_half_precision(name, precision):
    """Twice what rounding unit rows costs the plain form in float32, and 4 units of the rows' type."""
    dtype = HALF[precision]
    warm = {} if name == "NPairsLoss" else {"temperature": 0.5}  # debiased losses are ill-conditioned where it is cold

    def found(rows: list[Tensor], narrow: bool, **options) -> tuple[float, list[Tensor]]:
        leaves = [z.clone().requires_grad_() for z in rows]
        seen = [rounded(z if name == "NPairsLoss" else unit(z), dtype) for z in leaves] if narrow else leaves
        value = nf.LOSSES[name].function(*seen, **options, **warm)
        return float(value.detach()), [g.double() for g in torch.autograd.grad(value, leaves)]

    plain_worst = own_worst = (0.0, 0.0)
    for seed in range(4):
        raw = [z.to(dtype).to(DEVICE) for z in FORMS["two views"](17, 8, seed).tensors]
        wanted = found([z.double() for z in raw], False, backend="dense")
        plain = found([z.float() for z in raw], True, backend="dense", normalize=False)
        own = found(raw, False, backend="cuda")
        units = ulp(wanted[0], dtype), ulp(max(float(g.abs().max()) for g in wanted[1]), dtype)

        def worst(so_far, other, wanted=wanted, units=units):
            off = abs(other[0] - wanted[0]), max(float((a - b).abs().max()) for a, b in zip(other[1], wanted[1]))
            return tuple(max(before, now / unit) for before, now, unit in zip(so_far, off, units))

        plain_worst, own_worst = worst(plain_worst, plain), worst(own_worst, own)
    assert own_worst[0] <= 2 * plain_worst[0] + 4, (own_worst, plain_worst)
    assert own_worst[1] <= 2 * plain_worst[1] + 4, (own_worst, plain_worst)


def views(n: int, d: int, count: int = 2, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):
        drawn = [torch.randn(n, d, generator=generator) for _ in range(count)]
    return [z.to(dtype).to(DEVICE).requires_grad_() for z in drawn]


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", ["NTXentLoss", "CLIPLoss", "InfoNCELoss", "DCLLoss", "NPairsLoss"])
def test_nothing_waits_for_the_gpu(name):
    z = views(2048, 128)
    loss = nf.LOSSES[name].loss()
    loss(*z).backward()  # kernels are compiled and loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(*z).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SOFTMAX)
def test_a_large_batch_on_the_gpu(name, dtype):
    """Many tiles of the sizes in force, against the whole matrix in float64 on the same rows."""
    z = views(9000, 100, dtype=dtype)
    own = (
        nf.LOSSES[name].function(*z, temperature=0.2)
        if name != "NPairsLoss"
        else nf.LOSSES[name].function(*z, normalize=True)
    )
    wide = [x.detach().double().requires_grad_() for x in z]
    options = {"normalize": True} if name == "NPairsLoss" else {"temperature": 0.2}
    wanted = nf.LOSSES[name].function(*wide, backend="dense", **options)
    rounding = 2e-5 if dtype is torch.float32 else 2e-3
    assert float(own) == pytest.approx(float(wanted), rel=rounding)
    for a, b in zip(torch.autograd.grad(own, z), torch.autograd.grad(wanted, wide)):
        assert float((a.double() - b).norm() / b.norm()) <= (1e-4 if dtype is torch.float32 else 2e-2)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", ["NTXentLoss", "CLIPLoss"])
def test_no_matrix_on_the_gpu(name):
    z = views(16384, 128)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nf.LOSSES[name].loss()(*z).backward()
    assert torch.cuda.max_memory_allocated() - before < 16384**2 * 4
