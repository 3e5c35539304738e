"""Losses beside their peers: forward + backward on this machine, in one run, as ratios.

    python benchmarks/losses.py            # all sizes, about nine minutes
    python benchmarks/losses.py --quick    # small sizes only

Every contender of a size is timed in turn, round after round, with the machine's own (1024×d)(d×1024) matrix product in
each round; medians are quoted. A contender that takes long is timed in fewer rounds. The share of the product's rate counts
the least work known (2 products for rows with themselves, 3 for one side, 4 for both), whatever a contender spends.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import nearfar as nf
from nearfar.report.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
D = 128
TAU = 0.1
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
LIMIT = {  # pairs beyond which a contender is not run, and why
    ("NT-Xent", "pytorch-metric-learning"): (64, "not run: memory for every pair with every negative, O(n³)"),
    ("SupCon", "pytorch-metric-learning"): (1024, "not run: minutes a round"),
    ("NT-Xent", "lightly"): (4096, "not run: minutes a round"),
}
BURST = 0.02  # seconds that a contender runs at a stretch: a single call among others would time cold caches
Step = Callable[[], Any]


def views(n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    z1 = torch.randn(n, D, generator=generator)
    z2 = z1 + torch.randn(n, D, generator=generator)
    return z1.requires_grad_(), z2.requires_grad_(), torch.randint(max(n // 8, 1), (n,), generator=generator)


def backward(loss: Tensor, *inputs: Tensor) -> None:
    for z in inputs:
        z.grad = None
    loss.backward()


# ---- dense forms as anyone would write them -------------------------------------------------------------------------


def dense_nt_xent(z1: Tensor, z2: Tensor) -> Tensor:
    z = F.normalize(torch.cat([z1, z2]))
    n = len(z1)
    scores = (z @ z.T / TAU).fill_diagonal_(-torch.inf)
    return F.cross_entropy(scores, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]))


def dense_supcon(z: Tensor, labels: Tensor) -> Tensor:
    z = F.normalize(z)
    scores = (z @ z.T / TAU).fill_diagonal_(-torch.inf)
    positive = labels[:, None] == labels
    positive.fill_diagonal_(False)
    count = positive.sum(1)
    logs = scores.log_softmax(1).masked_fill(~positive, 0.0).sum(1)
    return -(logs / count.clamp(min=1))[count > 0].mean()


def dense_info_nce(z1: Tensor, z2: Tensor) -> Tensor:
    scores = F.normalize(z1) @ F.normalize(z2).T / TAU
    return F.cross_entropy(scores, torch.arange(len(z1)))


def dense_clip(z1: Tensor, z2: Tensor) -> Tensor:
    scores = F.normalize(z1) @ F.normalize(z2).T / TAU
    target = torch.arange(len(z1))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


# ---- contenders -----------------------------------------------------------------------------------------------------


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision, as far as importing lightly's losses needs it, where the real one does not import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None
        )

    def create_module(self, spec: Any) -> Any:
        class Module(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {"__init__": lambda self, *args, **kwargs: None})

        return Module(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__version__ = "0.0"


def lightly_nt_xent() -> Callable[[Tensor, Tensor], Tensor]:
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        sys.meta_path.append(_StandIn())
    return importlib.import_module("lightly.loss").NTXentLoss(temperature=TAU)


def pml(name: str) -> Any:
    return getattr(importlib.import_module("pytorch_metric_learning.losses"), name)(temperature=TAU)


def linear_cross_entropy(z1: Tensor, z2: Tensor) -> Tensor:
    return F.linear_cross_entropy(F.normalize(z1) / TAU, F.normalize(z2), torch.arange(len(z1)))


def contenders(n: int) -> dict[str, dict[str, Callable[[], Step]]]:
    """For each loss, for each contender, how to make its step."""
    z1, z2, labels = views(n)
    both = torch.cat([z1, z2]).detach().requires_grad_()
    twice = labels.repeat(2)

    def pair(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Callable[[], Step]:
        def build() -> Step:
            loss = make()
            return lambda: backward(loss(z1, z2), z1, z2)

        return build

    def labelled(make: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Callable[[], Step]:
        def build() -> Step:
            loss = make()
            return lambda: backward(loss(both, twice), both)

        return build

    def ours(loss: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, y: loss(z, labels=y)

    return {
        "NT-Xent": {
            "nearfar": pair(lambda: nf.NTXentLoss(TAU)),
            "dense": pair(lambda: dense_nt_xent),
            "lightly": pair(lightly_nt_xent),
            "pytorch-metric-learning": labelled(lambda: pml("NTXentLoss")),
        },
        "SupCon": {
            "nearfar": labelled(lambda: ours(nf.SupConLoss(TAU))),
            "dense": labelled(lambda: dense_supcon),
            "pytorch-metric-learning": labelled(lambda: pml("SupConLoss")),
        },
        "InfoNCE": {
            "nearfar": pair(lambda: nf.InfoNCELoss(TAU)),
            "dense": pair(lambda: dense_info_nce),
            "info-nce-pytorch": pair(lambda: importlib.import_module("info_nce").InfoNCE(temperature=TAU)),
            "linear_cross_entropy": pair(lambda: linear_cross_entropy),
        },
        "CLIP": {"nearfar": pair(lambda: nf.CLIPLoss(TAU)), "dense": pair(lambda: dense_clip)},
    }


# Matrix products that are needed at least, for n rows a side
PRODUCTS = {
    "NT-Xent": lambda n: 2 * (2 * n) ** 2,
    "SupCon": lambda n: 2 * (2 * n) ** 2,
    "InfoNCE": lambda n: 3 * n**2,
    "CLIP": lambda n: 4 * n**2,
}


def burst(step: Step) -> list[float]:
    """Times of calls in a row, for a while."""
    times = [clock(step)]
    while sum(times) < BURST:
        times.append(clock(step))
    return times


def clock(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def product_seconds() -> float:
    """One (1024×d)(d×1024) product, the median of a few."""
    a, b, out = torch.randn(1024, D), torch.randn(D, 1024), torch.empty(1024, 1024)
    return statistics.median(clock(lambda: torch.mm(a, b, out=out)) for _ in range(15))


def measure(loss: str, n: int, made: dict[str, Callable[[], Step]], budget: float) -> list[dict[str, Any]]:
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, build in made.items():
        rows[name] = {"loss": loss, "pairs": n, "contender": name}
        try:
            most, why = LIMIT.get((loss, name), (n, ""))
            if n > most:
                rows[name]["error"] = why
                continue
            step = build()
            step()
            steps[name] = step
        except Exception as error:
            rows[name]["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    times: dict[str, list[float]] = {name: [] for name in steps}
    products: list[float] = []
    for round_number in range(400):
        products.append(product_seconds())
        for name, step in steps.items():
            if sum(times[name]) < budget or len(times[name]) < 3:
                times[name] += burst(step)
        if round_number >= 2 and all(sum(t) >= budget for t in times.values()):
            break
    product = statistics.median(products)
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rows[name] |= {
            "milliseconds": round(median * 1e3, 4),
            "rounds": len(seconds),
            "share": round(PRODUCTS[loss](n) * product / 1024**2 / median, 4),
        }
    return list(rows.values())


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": model,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "features": D,
        "product_gigaflops": round(2 * 1024 * 1024 * D / product_seconds() / 1e9, 1),
    }


def table(report: dict[str, Any]) -> str:
    facts = report["machine"]
    lines = [
        "# Losses beside their peers",
        "",
        f"Forward + backward, float32, d = {facts['features']}, τ = {TAU}; medians of one interleaved run on {facts['processor']}, "
        f"{facts['threads']} threads, {facts['instructions']}, torch {facts['torch']}; the 1024-row matrix product ran at "
        f"{facts['product_gigaflops']} GF/s. *Share*: of that rate, counting the least products known for the loss. "
        "*× ours*: time over nearfar's. Written by `make bench`.",
        "",
    ]
    for loss in PRODUCTS:
        rows = [row for row in report["rows"] if row["loss"] == loss]
        lines += [f"## {loss}", "", "| pairs | contender | ms | share | × ours |", "|--:|---|--:|--:|--:|"]
        own = {row["pairs"]: row["milliseconds"] for row in rows if row["contender"] == "nearfar"}
        for row in rows:
            if "error" in row:
                lines.append(f"| {row['pairs']:,} | {row['contender']} | {row['error']} | | |")
            else:
                ratio = row["milliseconds"] / own[row["pairs"]]
                lines.append(
                    f"| {row['pairs']:,} | {row['contender']} | {row['milliseconds']:,.2f} | {row['share']:.0%} | {ratio:.2f} |"
                )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sizes up to 512 only")
    parser.add_argument("--sizes", type=int, nargs="*", help="pairs")
    parser.add_argument("--losses", nargs="*", choices=list(PRODUCTS))
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of timing a contender and size")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for losses.json and losses.md")
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "rows": []}
    for n in args.sizes or [size for size in SIZES if not args.quick or size <= 512]:
        for loss, made in contenders(n).items():
            if args.losses and loss not in args.losses:
                continue
            rows = measure(loss, n, made, args.budget)
            report["rows"] += rows
            for row in rows:
                print(*row.values(), sep="\t", file=sys.stderr, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "losses.json", report)
    write_text(args.out / "losses.md", table(report))
    print(table(report))


if __name__ == "__main__":
    main()
