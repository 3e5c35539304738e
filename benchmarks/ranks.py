"""One batch on 1, 2 and 4 processes: what each multiplies, sends and holds, and how long a step takes.

    python benchmarks/ranks.py            # about four minutes; writes results/ranks.json and results/ranks.md

The processes talk through gloo and share this machine's cores, one thread each: products and bytes are counted, seconds are
indicative. *all rows on each rank*: every rank gathers all rows and computes the loss of the whole batch, as is common.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

import torch
import torch.distributed as dist
from torch import Tensor, nn

import nearfar as nf
from nearfar.report.files import write_json, write_text
from nearfar.scores.gather import meet
from work import Work

RESULTS = Path(__file__).parent / "results"
N, D = 8192, 256
WORLDS = (1, 2, 4)
LOSSES = ("InfoNCELoss", "NTXentLoss", "CLIPLoss")
WAYS = {"whole": "all rows on each rank", "gather": "gather=True", "ring": 'gather="ring"'}
STEPS = 3
GIVES_BACK = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes, or the peak could not be seen


def peak() -> int:
    """The most memory this process has held since `forget`, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget() -> int:
    """Lower the peak to what is held now, and say how much that is."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak()


def step(loss: nn.Module, way: str, views: list[Tensor]) -> None:
    for z in views:
        z.grad = None
    rows = views
    if way == "whole":
        ranks = meet(len(views[0]), True, views[0].device)
        rows = [ranks.gather(z) for z in views]
    loss(*rows).backward()


def worker(rank: int, world: int, store: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = []
    for name in LOSSES:
        rows = N // 2 if name == "NTXentLoss" else N  # two views make one batch
        mine = range(rows * rank // world, rows * (rank + 1) // world)
        generator = torch.Generator().manual_seed(rank)
        views = [torch.randn(len(mine), D, generator=generator).requires_grad_() for _ in range(2)]
        for way in WAYS if world > 1 else ("gather",):
            loss = getattr(nf, name)(gather={"whole": False, "gather": True, "ring": "ring"}[way])
            step(loss, way, views)
            with Work() as seen:
                step(loss, way, views)
            for z in views:
                z.grad = None
            before = forget()
            step(loss, way, views)
            held = peak() - before
            seconds = []
            for _ in range(STEPS):
                dist.barrier()
                start = time.perf_counter()
                step(loss, way, views)
                dist.barrier()
                seconds.append(time.perf_counter() - start)
            found.append({
                "loss": name, "way": way, "world": world, "rows": rows, "rank": rank,
                "products": seen.products / (2 * N * N * D), "sent_mb": seen.sent / 1e6, "held_mb": held / 1e6,
                "seconds": statistics.median(seconds),
            })  # fmt: skip
    out.write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def measure(world: int) -> list[dict[str, Any]]:
    """What rank 0 found: the others do the same."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker"]
        outs = [Path(folder) / f"{rank}.json" for rank in range(world)]
        running = [
            subprocess.Popen([*command, str(rank), str(world), f"{folder}/store", str(out)], env=GIVES_BACK)
            for rank, out in enumerate(outs)
        ]
        codes = [process.wait() for process in running]
        if any(codes):
            raise SystemExit(f"a process of {world} failed")
        return json.loads(outs[0].read_text(encoding="utf-8"))


def table(report: dict[str, Any]) -> str:
    lines = [
        "# One batch on several processes",
        "",
        f"Forward + backward, float32, {report['rows']:,} rows of all ranks (queries, and keys), d = {report['d']}; on "
        f"{report['machine']}, {report['cores']} cores that all processes share, one thread each, torch {report['torch']}, gloo. "
        "*Products*: matrix products of all queries with all keys that one rank computes. *Sent*: by one rank, as a ring of ranks "
        "sends. *Held*: peak memory of one rank beyond its rows. Products and bytes are counted; seconds are indicative. Written "
        "by `python benchmarks/ranks.py`.",
        "",
        "| loss | ranks | way | products | sent, MB | held, MB | s |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in report["results"]:
        way = "one process" if row["world"] == 1 else WAYS[row["way"]]
        lines.append(
            f"| {row['loss']} | {row['world']} | {way} | {row['products']:.2f} | {row['sent_mb']:.1f} | {row['held_mb']:.0f} "
            f"| {row['seconds']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        rank, world, store, out = arguments.worker
        return worker(int(rank), int(world), store, Path(out))
    results = sorted((row for world in WORLDS for row in measure(world)), key=lambda row: LOSSES.index(row["loss"]))
    report = {
        "rows": N, "d": D, "machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "results": results
    }  # fmt: skip
    write_json(arguments.out / "ranks.json", report)
    write_text(arguments.out / "ranks.md", table(report))


if __name__ == "__main__":
    main()
