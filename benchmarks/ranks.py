"""What ranks cost on this machine: gloo processes of one thread each that share one batch, keys gathered or going round.

    python benchmarks/ranks.py               # 8,192 rows in all, W = 1, 2, 4; about a minute
    python benchmarks/ranks.py --rows 16384

writes results/ranks.json and results/ranks.md. Products and bytes are counted, memory is the rise of a process's high-water mark
beyond its gradients, each of the rank that has most. Seconds are of processes that share the machine's cores: with more ranks than
cores they say little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import nearfar as nf
from nearfar.report.files import write_json, write_text
from processes import high_water, reset_high_water, return_freed_memory

RESULTS = Path(__file__).parent / "results"
WORLDS = (1, 2, 4)
D = 128
LOSSES: dict[str, tuple[Callable[..., torch.nn.Module], int]] = {
    # how to build it, and into how many parts its rows are cut: both sides have all, two views have half each
    "InfoNCE": (nf.InfoNCELoss, 1),
    "CLIP": (nf.CLIPLoss, 1),
    "NT-Xent": (nf.NTXentLoss, 2),
}
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise"}


class Count(TorchDispatchMode):
    """Multiplications, and bytes that a rank sends: those of the usual ring algorithms."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func._schema.name
        tensors = [x for x in tree_leaves((args, found)) if isinstance(x, Tensor)]
        if name in PRODUCTS:
            right = args[1] if name.startswith("mkldnn") else args[-1]
            left = args[0] if name.startswith("mkldnn") else args[-2]
            self.products += left.numel() * right.shape[0 if name.startswith("mkldnn") else 1]
        elif name.startswith("c10d::"):
            world = dist.get_world_size()
            size = max((x.numel() * x.element_size() for x in tensors), default=0)
            share = (world - 1) / world
            times = {"c10d::allreduce_": 2 * share, "c10d::send": 1.0, "c10d::recv_": 0.0, "c10d::barrier": 0.0}
            self.sent += size * times.get(name, share)
        return found


def measure(loss: torch.nn.Module, rows: int) -> dict[str, float]:
    """One rank's figures for one loss."""
    random = torch.Generator().manual_seed(dist.get_rank())
    z = [torch.randn(rows, D, generator=random).requires_grad_() for _ in range(2)]

    def step() -> None:
        for side in z:
            side.grad = None
        loss(*z).backward()

    step()
    with Count() as count:
        step()
    return_freed_memory()
    dist.barrier()
    before = reset_high_water()
    step()
    extra = high_water() - before
    times = []
    for _ in range(3):
        dist.barrier()
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return {
        "products": count.products, "sent_mb": count.sent / 2**20, "extra_mb": extra / 2**20,
        "seconds": statistics.median(times),
    }  # fmt: skip


def rank_main(out: str, rows: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world, found = dist.get_world_size(), {}
    for name, (build, parts) in LOSSES.items():
        for how in (True, "ring"):
            mine = measure(build(gather=how), rows // parts // world)
            everyone: list[Any] = [None] * world
            dist.all_gather_object(everyone, mine)
            most = {key: max(one[key] for one in everyone) for key in mine}
            found[name, "gather" if how is True else how] = most | {"products": most["products"] / (rows**2 * D)}
    if dist.get_rank() == 0:
        table = [{"loss": loss, "keys": how, "ranks": world, **row} for (loss, how), row in found.items()]
        Path(out).write_text(json.dumps(table))
    dist.barrier()
    dist.destroy_process_group()


def launch(world: int, rows: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}", __file__]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, "--rank-out", str(out), "--rows", str(rows)], check=True, env=environment, timeout=600
        )
        return json.loads(out.read_text())


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# What ranks cost",
        "",
        f"{report['rows']:,} rows in all, d = {D}, float32, forward + backward, one thread a rank, {report['cores']} cores. "
        "Products of all rows with all rows, counted, and megabytes sent by the rank that has most; extra memory beyond the "
        "rows; seconds are indicative where ranks share cores. Written by `python benchmarks/ranks.py`.",
        "",
        "| loss | keys | ranks | products a rank | MB sent a rank | extra MB a rank | seconds |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['loss']} | {r['keys']} | {r['ranks']} | {r['products']:.2f} | {r['sent_mb']:.1f} | {r['extra_mb']:.0f} | "
        f"{r['seconds']:.2f} |"
        for r in report["table"]
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="of all ranks together")
    parser.add_argument("--rank-out", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_out:
        rank_main(args.rank_out, args.rows)
        return
    table = [row for world in WORLDS for row in launch(world, args.rows)]
    table.sort(key=lambda row: (list(LOSSES).index(row["loss"]), row["keys"], row["ranks"]))
    report = {"rows": args.rows, "features": D, "cores": os.cpu_count(), "torch": torch.__version__, "table": table}
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / "ranks.json", report)
    write_text(RESULTS / "ranks.md", markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
