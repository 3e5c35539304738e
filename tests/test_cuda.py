"""`backend="cuda"`: its kernels, by Triton's interpreter or on the GPU if there is one; their code for GPUs; the choice of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nearfar as nf
from nearfar.scores import cuda_tiles
from nearfar.scores.cuda_tiles import BLOCKS, How

pytest.importorskip("triton", reason="pip install 'nearfar[cuda]'")
TESTS = Path(__file__).parent
GPU = torch.cuda.is_available()


@pytest.mark.parametrize("file", ["cuda_kernels.py", "cuda_losses.py"])
def test_in_a_process_of_its_own(file):
    """The interpreter is chosen by the environment, before anything in the process imports triton."""
    environment = os.environ | ({} if GPU else {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"})
    command = [sys.executable, "-m", "pytest", "-n", "0", "-W", "ignore::RuntimeWarning", str(TESTS / file)]
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


# ---- what a GPU would run -------------------------------------------------------------------------------------------

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
EVERY = {"RULE": 1, "IDS": True, "UNKNOWN": True, "ROWS": True, "OFFSETS": True, "UPPER": True, "EVEN": False}
"""Every branch of a kernel at once."""
PLAIN = {"RULE": 0, "IDS": False, "UNKNOWN": False, "ROWS": False, "OFFSETS": False, "UPPER": False, "EVEN": True}


def compiled(name: str, how: How, blocks: str, multiply: str, flags: dict, capability: int):
    """A kernel's machine code, by the compiler alone."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from nearfar.scores import kernels

    kernel, cut = getattr(kernels, name), BLOCKS[blocks]
    wide = "*fp64" if how.dtype is torch.float64 else "*fp32"
    narrow = f"*{NAMES[how.dtype]}"
    types = {
        **dict.fromkeys(("n", "m", "d", "shift"), "i32"),
        **dict.fromkeys(("query", "key", "query_row", "key_row"), "*i64"),
        **dict.fromkeys(("x", "y"), narrow),
        "out": narrow if how.fused else wide,
    }
    fixed = {
        **flags, "ITSELF": True, "FUSED": how.fused, "HOW": multiply, "COLUMNS": True,
        "BI": cut.rows, "BJ": cut.columns, "BK": cut.features,
    }  # fmt: skip
    names = [p.name for p in kernel.params]
    signature = {n: "constexpr" if n in fixed else types.get(n, wide) for n in names}
    aligned = {(k,): [["tt.divisibility", 16]] for k, n in enumerate(names) if "*" in signature[n] or n in ("m", "d")}
    source = ASTSource(kernel, signature, {n: fixed[n] for n in names if n in fixed}, aligned)
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


VARIANTS = [
    (How(torch.bfloat16, True), "half", "ieee", 90),
    (How(torch.float16, True), "half", "ieee", 80),
    (How(torch.float32, True), "tf32", "tf32", 90),
    (How(torch.float32, True), "ieee", "ieee", 90),
    (How(torch.float32, False), "library", "ieee", 90),
    (How(torch.float64, False), "library", "ieee", 80),
]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is at work")
@pytest.mark.parametrize("name", ["statistics", "slopes"])
@pytest.mark.parametrize(("how", "blocks", "multiply", "capability"), VARIANTS, ids=str)
def test_kernels_compile_for_gpus(how, blocks, multiply, capability, name):
    """Types that the interpreter lets pass, and tensor cores where they should be; no GPU is needed for that."""
    for flags in (PLAIN, EVERY) if capability == 90 and blocks == "half" else (EVERY,):
        code = compiled(name, how, blocks, multiply, flags, capability)
        tensor_cores = "wgmma" if capability == 90 else "mma.sync"
        assert (tensor_cores in code.asm["ptx"]) == (blocks in ("half", "tf32"))
        assert code.metadata.shared <= 99 * 1024  # what the smallest GPUs of the last years give a block
        assert len(code.asm["cubin"]) > 1000


# ---- the choice -----------------------------------------------------------------------------------------------------


def rows(n: int = 8, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(n, 3, device=device, dtype=dtype)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter serves the CPU")
def test_rows_on_the_cpu_are_refused():
    with pytest.raises(
        RuntimeError, match=r"rows are on cpu: move them to a GPU \(z.cuda\(\)\), or leave backend= out"
    ):
        nf.NTXentLoss(backend="cuda")(rows(), rows())


def test_without_triton(monkeypatch):
    monkeypatch.setattr(cuda_tiles, "has_triton", lambda: False)
    with pytest.raises(RuntimeError, match=r"pip install 'nearfar\[cuda\]'"):
        nf.NTXentLoss(backend="cuda")(rows(), rows())
    assert not cuda_tiles.at_hand(torch.device("cuda"))


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ({}, "cuda"),
        ({"pairs": nf.Pairs.views(8), "unit": True}, "small"),
        ({"pairs": nf.Pairs.views(8), "unit": True, "precision": "bf16"}, "cuda"),
        ({"backend": "tiled"}, "tiled"),
        ({"backend": "dense"}, "dense"),
    ],
    ids=str,
)
def test_the_plan_on_a_gpu(given, plan):
    """Rows that only say where they lie are enough to choose by."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nearfar.scores import Scores

    with FakeTensorMode():
        z = torch.empty(4096, 3, device="cuda")
    assert Scores(z, z, **({"pairs": nf.Pairs.views(2048)} | given)).plan == plan


def test_without_triton_a_gpu_gets_tiles(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nearfar.scores import Scores

    monkeypatch.setattr(cuda_tiles, "has_triton", lambda: False)
    with FakeTensorMode():
        z = torch.empty(4096, 3, device="cuda")
    assert Scores(z, z, nf.Pairs.views(2048)).plan == "tiled"
