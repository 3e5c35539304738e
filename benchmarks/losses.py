"""Every loss beside every peer that has it: forward + backward on this machine, in one run.

    python benchmarks/losses.py            # the table, about an hour: all losses at a few sizes, the softmax family at many
    python benchmarks/losses.py --resume   # goes on with a run that was cut
    python benchmarks/losses.py --full     # everything, hours
    python benchmarks/losses.py --huge     # SupCon at 131,072 rows, added to the results
    python benchmarks/losses.py --quick    # does it run? seconds
    python benchmarks/losses.py --losses SupCon CLIP --rows 4096 --features 128

writes losses.json (after each cell), losses.md and losses.svg. What is measured is in `workloads.py`, the peers in `peers.py`,
how in `cells.py` and `measure.py`, what is asked in `bars.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of workers: children are forked

import torch

import table
from cells import Limits, Past, cell
from measure import rates
from nearfar.report.files import read_json
from peers import PEERS, contenders
from processes import forked
from workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"
TRIAL = Path("runs/benchmark")  # of runs that are no table
FAMILY = ("NT-Xent", "SupCon", "InfoNCE", "CLIP")
TRIPLETS = ("Triplet, hard", "Triplet, all", "Triplet, semi-hard")
ROWS = tuple(2**k for k in range(6, 17))
FEATURES = (128, 512, 1024)


@dataclass(frozen=True)
class Cell:
    """A loss at a size."""

    loss: str
    n: int
    d: int
    compiled: bool = False
    ours: bool = False  # us alone

    @property
    def key(self) -> tuple[str, int, int]:
        return self.loss, self.n, self.d


def standard() -> list[Cell]:
    """What `make bench` runs: sizes of a loss from small to large, so that each foretells the next."""
    cells = [Cell(loss, n, 128, compiled=True) for n in (64, 256, 1024, 4096, 16384) for loss in FAMILY]
    cells += [Cell("InfoNCE, frozen keys", n, 128) for n in (1024, 16384)]
    many = [loss for loss, one in WORKLOADS.items() if one.kind == "identities"]
    rest = [loss for loss in WORKLOADS if loss not in (*FAMILY, *many)]
    cells += [Cell(loss, n, d) for d in (128, 512) for n in (64, 512) for loss in many]
    cells += [Cell(loss, n, 128, compiled=n < 4096) for n in (64, 512, 4096) for loss in rest]
    cells += [Cell(loss, n, 128) for n in (8192, 16384) for loss in TRIPLETS]
    cells += [Cell("InfoNCE", 8192, 128), *(Cell(loss, 8192, 512) for loss in ("InfoNCE", "CLIP"))]
    cells += [Cell(loss, 16384, 512) for loss in FAMILY]
    cells += [Cell(loss, n, d) for d in (512, 1024) for n in (64, 256, 1024, 4096) for loss in FAMILY]
    cells += [Cell(loss, 8192, 1024) for loss in ("NT-Xent", "InfoNCE")]
    wide = ((512, 512), (2048, 512), (2048, 1024))  # rows as encoders give them
    cells += [Cell(loss, n, d) for n, d in wide for loss in (*FAMILY, *rest)]
    return [*cells, Cell("NT-Xent", 65536, 128)]


def full() -> list[Cell]:
    return [Cell(loss, n, d, compiled=True) for d in FEATURES for n in ROWS for loss in WORKLOADS]


def quick() -> list[Cell]:
    return [Cell(loss, 64, 16) for loss in WORKLOADS]


def huge() -> list[Cell]:
    return [Cell("SupCon", 131072, 128, ours=True)]


def machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def begun(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run that was cut."""
    path = folder / "losses.json"
    if not path.exists():
        return []
    report = read_json(path)
    if report["machine"] != facts:
        sys.exit(f"{path} was measured on {report['machine']}, this is {facts}: run without --resume, or with --out")
    return report["rows"]


def run(cells: list[Cell], folder: Path, rows: list[dict[str, Any]], facts: dict[str, Any], limits: Limits) -> None:
    """Every cell that has no rows yet, written as it comes."""
    past: Past = {}
    for row in rows:
        if "milliseconds" in row and "extra_mb" in row:
            size = row["extra_mb"] * 2**20
            past[row["loss"], row["contender"]] = {
                "n": row["n"], "d": row["d"], "seconds": row["milliseconds"] / 1e3, "bytes": size,
            }  # fmt: skip
    done = {(row["loss"], row["n"], row["d"]) for row in rows}
    start = time.monotonic()
    for place, one in enumerate(cells):
        if one.key in done:
            continue
        workload = WORKLOADS[one.loss]
        those = contenders(workload, one.n, compiled=one.compiled)
        found = cell(workload, one.n, one.d, those[:1] if one.ours else those, past, limits)
        for row in found:
            print(*(row.get(name, "") for name in SHOWN), sep="\t", file=sys.stderr, flush=True)
        rows = rows + found
        table.write(folder, {"machine": facts, "rows": rows})
        print(f"{place + 1}/{len(cells)} cells, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


SHOWN = ("loss", "n", "d", "contender", "milliseconds", "share", "extra_mb", "value_error", "gradient_error", "error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="every loss at 64 rows, seconds")
    which.add_argument("--full", action="store_true", help="every loss at every size")
    which.add_argument("--huge", action="store_true", help="SupCon at 131,072 rows, added to the results")
    parser.add_argument("--losses", nargs="+", choices=list(WORKLOADS), metavar="LOSS", help="these only")
    parser.add_argument("--rows", nargs="+", type=int, help="these only")
    parser.add_argument("--features", nargs="+", type=int, default=[128], help="with --rows; 128 if left out")
    parser.add_argument("--compiled", action="store_true", help="with --rows: torch.compile of the dense form too")
    parser.add_argument("--resume", action="store_true", help="keep what the folder has, and run what it has not")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds a step beyond which a peer is not run")
    parser.add_argument("--budget", type=float, help="seconds of timing a contender and size; 0.7 if left out")
    parser.add_argument("--out", type=Path, help=f"folder; {RESULTS.name} for a whole table, else {TRIAL}")
    args = parser.parse_args()
    whole = not (args.quick or args.losses or args.rows)
    if args.rows:
        names = args.losses or list(WORKLOADS)
        cells = [Cell(loss, n, d, args.compiled) for d in args.features for n in args.rows for loss in names]
    else:
        cells = (quick if args.quick else full if args.full else huge if args.huge else standard)()
        cells = [one for one in cells if not args.losses or one.loss in args.losses]
    folder, facts = args.out or (RESULTS if whole else TRIAL), machine()
    rows = begun(folder, facts) if args.resume or args.huge else []
    limits = Limits(step=600.0 if args.huge else args.limit, budget=args.budget or (0.01 if args.quick else 0.7))
    for peer in PEERS:  # their packages are imported here once, not in each child
        if peer.loss in {one.loss for one in cells}:
            with contextlib.suppress(Exception):
                peer.build()
    print(f"the 1024-row product, d = 128: {forked(lambda: rates(128), 60)} GF/s", file=sys.stderr)
    run(cells, folder, rows, facts, limits)
    print(f"{folder}/losses.md")


if __name__ == "__main__":
    main()
