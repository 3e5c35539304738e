"""Exact nearest neighbours of 100,000 rows among themselves: seconds and extra memory, beside scikit-learn and faiss.

    python benchmarks/knn.py [--rows 100000] [--dim 128] [--k 20] [--rounds 3]

Each contender runs in processes of its own, in turn, round after round; the median counts. Extra memory is by how much the
process's high-water mark rises over that of a small call before. Recall is against the exact neighbours in float64 of some rows.
Writes ``benchmarks/results/knn.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "src"))

BAR = {"seconds": 20.0, "extra_mb": 1000.0}
CHECKED = 200  # rows whose neighbours are looked up in float64
MB = 2**20


def rows(n: int, d: int) -> Any:
    """Clusters of unequal size, as embeddings have them."""
    import torch

    random = torch.Generator().manual_seed(0)
    centres = torch.randn(max(n // 100, 1), d, generator=random)
    z = centres[torch.randint(len(centres), (n,), generator=random)] + torch.randn(n, d, generator=random)
    return torch.nn.functional.normalize(z, dim=1)


def nearfar(z: Any, k: int) -> Any:
    from nearfar.evaluation.knn import nearest

    return nearest(z, k=k).indices


def nearfar_faiss(z: Any, k: int) -> Any:
    from nearfar.evaluation.knn import nearest

    return nearest(z, k=k, backend="faiss").indices


def scikit_learn(z: Any, k: int) -> Any:
    import torch
    from sklearn.neighbors import NearestNeighbors

    found = (
        NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=-1).fit(z.numpy()).kneighbors(return_distance=False)
    )
    return torch.from_numpy(found)


def faiss(z: Any, k: int) -> Any:
    import faiss
    import torch

    index = faiss.IndexFlatIP(z.shape[1])
    index.add(z.numpy())
    found = torch.from_numpy(index.search(z.numpy(), k + 1)[1])
    return found[:, 1:]  # itself first, where no other is the same


def torch_topk(z: Any, k: int) -> Any:
    """What one writes by hand: a strip of scores, its topk."""
    import torch

    found = []
    for start in range(0, len(z), 1024):
        scores = z[start : start + 1024] @ z.T
        scores[torch.arange(len(scores)), torch.arange(start, start + len(scores))] = -torch.inf
        found.append(scores.topk(k, 1).indices)
    return torch.cat(found)


CONTENDERS: dict[str, Callable[[Any, int], Any]] = {
    "nearfar": nearfar, "nearfar with faiss": nearfar_faiss, "faiss IndexFlatIP": faiss, "scikit-learn brute": scikit_learn,
    "torch strips and topk": torch_topk,
}  # fmt: skip


def one(name: str, n: int, d: int, k: int) -> dict[str, Any]:
    """A contender's call, in this process, which has done nothing else."""
    import torch

    high = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # noqa: E731
    z = rows(n, d)
    try:
        CONTENDERS[name](z[:2000], k)
    except ImportError as error:
        return {"error": str(error)}
    before, start, work = high(), time.perf_counter(), time.process_time()
    found = CONTENDERS[name](z, k)
    taken = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - work}
    extra = (high() - before) / MB
    some = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:CHECKED]
    scores = z[some].double() @ z.double().T
    scores[torch.arange(len(some)), some] = -torch.inf
    exact = scores.topk(k, 1).indices
    shared = (found[some][:, :, None] == exact[:, None]).any(2).double().mean()
    return taken | {"extra_mb": extra, "recall": float(shared)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 100_000), ("dim", 128), ("k", 20), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--one", choices=CONTENDERS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "knn.json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.rows, args.dim, args.k)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    for _ in range(args.rounds):
        for name, found in runs.items():
            size = [f"--rows={args.rows}", f"--dim={args.dim}", f"--k={args.k}"]
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, *size], capture_output=True, text=True, timeout=1800
            )
            answer = (
                json.loads(done.stdout)
                if done.returncode == 0
                else {"error": done.stderr.strip().splitlines()[-1][:200]}
            )
            found.append(answer)
            print(f"{name:24}", answer, flush=True)
    results = []
    for name, found in runs.items():
        if any("error" in run for run in found):
            results.append({"name": name, "error": next(run["error"] for run in found if "error" in run)})
        else:
            results.append({"name": name} | {key: statistics.median(run[key] for run in found) for key in found[0]})
    import torch

    held = {
        "rows": args.rows, "dim": args.dim, "k": args.k, "rounds": args.rounds, "bar": BAR, "cores": os.cpu_count(),
        "load": os.getloadavg()[1], "torch": torch.__version__, "results": results,
    }  # fmt: skip
    args.out.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
