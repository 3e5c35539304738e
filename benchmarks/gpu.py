"""The GPU backend beside its peers, in one run on a machine with an NVIDIA GPU: correctness, then time and memory.

    make bench-cuda                     # installs the peers, then runs the next line
    python benchmarks/gpu.py            # writes benchmarks/results/cuda.json and cuda.md
    python benchmarks/gpu.py --tune     # first tries other cuts of the kernels, and uses the fastest
    python benchmarks/gpu.py --smoke    # the script itself, tiny, on a CPU by Triton's interpreter; writes nothing

First `tests/test_cuda.py` runs on the GPU; if it fails there are no timings. Then forward + backward in bfloat16, every
contender of a size in turn, round after round; medians. The share of the machine's own bfloat16 matrix product counts the
least products known (2 for NT-Xent, 4 for CLIP), whatever a contender spends. A contender that cannot run is shown with its error.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--smoke" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import torch
import torch.nn.functional as F
from torch import Tensor

import nearfar as nf
from nearfar.report.files import write_json, write_text
from nearfar.scores.cuda_tiles import BLOCKS, Blocks, has_triton

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
TAU = {"NT-Xent": 0.1, "CLIP": 0.07}
PRODUCTS = {"NT-Xent": 2, "CLIP": 4}
"""Matrix products that are needed at least: NT-Xent's rows are its own keys."""
SIZES = (8192, 16384, 32768, 65536)
D = 512
ROUNDS, BUDGET = 30, 4.0
BARS = {
    "share": 0.5,  # of the matrix product's rate: NT-Xent at the largest size
    "memeff": 1.3,  # times our time, CLIP at the largest size that a peer runs
    "inf-cl": 1.5,
    "open_clip": 1.5,
    "memory": 1.2,  # times inputs, gradients and 256 MB
}
Step = Callable[[], Tensor]


# ---- contenders -----------------------------------------------------------------------------------------------------


def dense_nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]))
    n = len(z1)
    scores = (z @ z.T / TAU["NT-Xent"]).fill_diagonal_(-torch.inf)
    places = torch.arange(n, device=z.device)
    return F.cross_entropy(scores, torch.cat([places + n, places]))


def dense_clip(z1: Tensor, z2: Tensor) -> Tensor:
    scores = F.normalize(z1) @ F.normalize(z2).T / TAU["CLIP"]
    places = torch.arange(len(z1), device=z1.device)
    return (F.cross_entropy(scores, places) + F.cross_entropy(scores.T, places)) / 2


def open_clip() -> Callable[[Tensor, Tensor], Tensor]:
    package = importlib.util.find_spec("open_clip")  # its loss alone: the package itself wants torchvision
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'open_clip'")
    spec = importlib.util.spec_from_file_location(
        "open_clip_loss", Path(package.submodule_search_locations[0]) / "loss.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.ClipLoss()
    return lambda z1, z2: loss(F.normalize(z1), F.normalize(z2), 1 / TAU["CLIP"])


def inf_cl() -> Callable[[Tensor, Tensor], Tensor]:
    one_way = importlib.import_module("inf_cl").cal_inf_loss

    def loss(z1: Tensor, z2: Tensor) -> Tensor:
        q, k = F.normalize(z1), F.normalize(z2)
        scale = torch.tensor(1 / TAU["CLIP"], device=q.device)
        return (one_way(q, k, scale=scale) + one_way(k, q, scale=scale)) / 2

    return loss


def memeff() -> Callable[[Tensor, Tensor], Tensor]:
    """``stable=True``, its default, scales gradients by another factor."""
    return importlib.import_module("memeff").MemoryEfficientCLIPLoss(temperature=TAU["CLIP"], stable=False)


CONTENDERS: dict[str, dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]]] = {
    "NT-Xent": {
        "nearfar": lambda: nf.NTXentLoss(TAU["NT-Xent"], backend="cuda"),
        "dense, compiled": lambda: torch.compile(dense_nt_xent, dynamic=False),
        "dense": lambda: dense_nt_xent,
    },
    "CLIP": {
        "nearfar": lambda: nf.CLIPLoss(TAU["CLIP"], backend="cuda"),
        "memeff": memeff,
        "inf-cl": inf_cl,
        "open_clip": open_clip,
        "dense, compiled": lambda: torch.compile(dense_clip, dynamic=False),
    },
}


# ---- measuring ------------------------------------------------------------------------------------------------------


def views(loss: str, rows: int, d: int) -> tuple[Tensor, Tensor]:
    """Rows of both sides; for NT-Xent they are ``rows`` together."""
    n = rows // 2 if loss == "NT-Xent" else rows
    generator = torch.Generator(DEVICE).manual_seed(rows)
    z1 = torch.randn(n, d, generator=generator, device=DEVICE)
    z2 = z1 + torch.randn(n, d, generator=generator, device=DEVICE)
    return z1.bfloat16().requires_grad_(), z2.bfloat16().requires_grad_()


def clock(step: Callable[[], Any]) -> float:
    if not GPU:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def product_rate(size: int) -> float:
    """Operations a second of a bfloat16 product ``(size × size)(size × size)``, the median of a few."""
    a, b = (torch.randn(size, size, device=DEVICE).bfloat16() for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / statistics.median(clock(lambda: a @ b) for _ in range(20))


def stepping(loss: Callable[[Tensor, Tensor], Tensor], z1: Tensor, z2: Tensor) -> Step:
    def step() -> Tensor:
        z1.grad = z2.grad = None
        value = loss(z1, z2)
        value.backward()
        return value.detach()

    return step


def peak(step: Step) -> int:
    """Bytes at the highest, inputs and gradients included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def measure(loss: str, rows: int, d: int) -> list[dict[str, Any]]:
    z1, z2 = views(loss, rows, d)
    found: dict[str, dict[str, Any]] = {}
    steps: dict[str, Step] = {}
    for name, make in CONTENDERS[loss].items():
        found[name] = row = {"loss": loss, "rows": rows, "contender": name}
        try:
            step = stepping(make(), z1, z2)
            row["value"] = float(step())
            row["gradient_norm"] = float(z1.grad.float().norm()) if z1.grad is not None else None
            for _ in range(2):
                step()
            if GPU:
                row["peak_mb"] = round(peak(step) / 2**20, 1)
                row["floor_mb"] = round(2 * sum(z.numel() * z.element_size() for z in (z1, z2)) / 2**20, 1)
            steps[name] = step
        except Exception as error:  # a peer that cannot run is shown so
            text = str(error).strip().splitlines() or [""]
            row["error"] = f"{type(error).__name__}: {text[0][:160]}"
        z1.grad = z2.grad = None
        if GPU:
            torch.cuda.empty_cache()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            if sum(times[name]) < BUDGET or len(times[name]) < 5:
                times[name].append(clock(step))
    for name, seconds in times.items():
        found[name] |= {"milliseconds": round(statistics.median(seconds) * 1e3, 4), "rounds": len(seconds)}
    return list(found.values())


def tune(rows: int, d: int) -> Blocks:
    """The fastest of a few cuts of the kernels for half precision, by NT-Xent."""
    z1, z2 = views("NT-Xent", rows, d)
    best, fastest = BLOCKS["half"], float("inf")
    for blocks in itertools.starmap(
        Blocks,
        [(128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 64, 4, 3), (128, 128, 128, 8, 2), (128, 256, 64, 8, 3),
         (256, 128, 64, 8, 3), (128, 64, 64, 4, 4), (64, 128, 64, 4, 4)],
    ):  # fmt: skip
        BLOCKS["half"] = blocks
        try:
            step = stepping(nf.NTXentLoss(TAU["NT-Xent"], backend="cuda"), z1, z2)
            for _ in range(3):
                step()
            seconds = statistics.median(clock(step) for _ in range(10))
        except Exception as error:
            print(f"{blocks}: {type(error).__name__}", file=sys.stderr)
            continue
        print(f"{blocks}: {seconds * 1e3:.2f} ms", file=sys.stderr, flush=True)
        if seconds < fastest:
            best, fastest = blocks, seconds
    BLOCKS["half"] = best
    return best


# ---- report ---------------------------------------------------------------------------------------------------------


def finish(report: dict[str, Any]) -> None:
    """Shares, ratios and bars."""
    rate, d = report["machine"]["product_teraflops"] * 1e12, report["machine"]["features"]
    own = {(r["loss"], r["rows"]): r for r in report["rows"] if r["contender"] == "nearfar"}
    for row in report["rows"]:
        if "milliseconds" in row:
            seconds = row["milliseconds"] / 1e3
            row["share"] = round(PRODUCTS[row["loss"]] * 2 * row["rows"] ** 2 * d / seconds / rate, 4)
            ours = own[row["loss"], row["rows"]].get("milliseconds")
            row["times_ours"] = round(row["milliseconds"] / ours, 3) if ours else None
    bars: list[dict[str, Any]] = []

    def bar(what: str, wanted: float, found: float | None, met: bool | None) -> None:
        bars.append({"what": what, "bar": wanted, "found": found, "met": met})

    largest = max((rows for loss, rows in own if loss == "NT-Xent"), default=0)
    share = own.get(("NT-Xent", largest), {}).get("share")
    bar(
        f"NT-Xent, {largest:,} rows: share of the product's rate",
        BARS["share"],
        share,
        share and share >= BARS["share"],
    )
    for name in ("memeff", "inf-cl", "open_clip"):
        ran = [r for r in report["rows"] if r["contender"] == name and r.get("times_ours")]
        ratio = max(ran, key=lambda r: r["rows"])["times_ours"] if ran else None
        where = f"{max(r['rows'] for r in ran):,} pairs" if ran else "did not run"
        bar(f"CLIP, {where}: time of {name} over ours", BARS[name], ratio, ratio and ratio >= BARS[name])
    for (loss, rows), row in own.items():
        if rows == max(size for kind, size in own if kind == loss) and "peak_mb" in row:
            ratio = round(row["peak_mb"] / (row["floor_mb"] + 256), 3)
            what = f"{loss}, {rows:,}: peak memory over inputs + gradients + 256 MB"
            bar(what, BARS["memory"], ratio, ratio <= BARS["memory"])
    report["bars"] = bars


def table(report: dict[str, Any]) -> str:
    facts = report["machine"]
    lines = [
        "# The GPU backend beside its peers",
        "",
        f"Forward + backward, bfloat16, d = {facts['features']}, medians of one interleaved run on {facts['gpu']}, torch "
        f"{facts['torch']}, triton {facts['triton']}; the bfloat16 matrix product ran at {facts['product_teraflops']} TF/s. "
        "*Share*: of that rate, counting the least products known for the loss. *× ours*: time over nearfar's. Written by "
        f"`make bench-cuda`. Tests on this GPU: {report['tests']}. Blocks: {facts['blocks']}.",
        "",
        "| bar | wanted | found | met |",
        "|---|--:|--:|---|",
        *(f"| {b['what']} | {b['bar']} | {b['found']} | {'yes' if b['met'] else 'no'} |" for b in report["bars"]),
        "",
    ]
    for loss in PRODUCTS:
        lines += [
            f"## {loss}",
            "",
            "| rows | contender | ms | share | × ours | peak MB | value |",
            "|--:|---|--:|--:|--:|--:|--:|",
        ]
        for row in (r for r in report["rows"] if r["loss"] == loss):
            start = f"| {row['rows']:,} | {row['contender']} | "
            if "error" in row:
                lines.append(start + f"{row['error']} | | | | |")
            else:
                lines.append(
                    start
                    + f"{row['milliseconds']:,.2f} | {row['share']:.0%} | {row['times_ours']} | {row.get('peak_mb', '')} | "
                    f"{row['value']:.5f} |"
                )
        lines.append("")
    return "\n".join(lines)


def tests() -> str:
    command = [sys.executable, "-m", "pytest", "-n", "0", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"tests/test_cuda.py fails on this GPU, so that nothing was timed:\n{done.stdout[-8000:]}")
    return "passed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES), help="rows")
    parser.add_argument("--features", type=int, default=D)
    parser.add_argument("--tune", action="store_true", help="try other cuts of the kernels first")
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU: does the script run?")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for cuda.json and cuda.md")
    args = parser.parse_args()
    if not GPU and not args.smoke:
        sys.exit(
            "No GPU was found (torch.cuda.is_available() is False): run this on a machine with an NVIDIA GPU and a CUDA torch."
        )
    if not has_triton():
        sys.exit("triton is not installed: pip install 'nearfar[cuda]'.")
    if args.smoke:
        args.sizes, args.features = [64], 256
    import triton

    report: dict[str, Any] = {"tests": "not run" if args.smoke else tests(), "rows": []}
    blocks = tune(16384, args.features) if args.tune else BLOCKS["half"]
    report["machine"] = {
        "gpu": torch.cuda.get_device_name() if GPU else f"no GPU ({platform.processor() or 'CPU'})",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "features": args.features,
        "product_teraflops": round(product_rate(8192 if GPU else 128) / 1e12, 4),
        "blocks": str(tuple(blocks)),
    }
    for loss, rows in itertools.product(PRODUCTS, args.sizes):
        for row in measure(loss, rows, args.features):
            report["rows"].append(row)
            print(*row.values(), sep="\t", file=sys.stderr, flush=True)
    finish(report)
    if not args.smoke:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "cuda.json", report)
        write_text(args.out / "cuda.md", table(report))
    print(table(report))


if __name__ == "__main__":
    main()
