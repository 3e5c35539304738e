"""What a rank holds of a transformer in training, with a copy on each rank (ddp) and divided among them (fsdp).

    python benchmarks/sharding.py      # one process, then two ranks each; writes benchmarks/results/sharding.json

Counted are the tensors that stay from step to step: weights, gradients, the optimiser's. Beside them, the largest size
of the process while it trains, beyond what it had before the model was made: activations and gathered blocks as well.
Ranks run with MALLOC_MMAP_THRESHOLD_=262144, by which glibc gives freed blocks back to the system; without it, what was
gathered once stays with the process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from nearfar.data.corpus import Column, Corpus, TensorPart
from nearfar.encoders.make import make_embedder
from nearfar.shards import shard_of
from nearfar.training.assemble import resolve
from nearfar.training.config import TrainConfig
from nearfar.training.devices import make_fabric
from nearfar.training.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "sharding.json"
CASES = (("ddp", 1), ("ddp", 2), ("fsdp", 2))
NETWORK = {"width": 384, "depth": 6, "heads": 6}
MB = 1e6


def texts(rows: int = 64) -> Corpus:
    """Numbers, written down twice."""
    data = {"text": [f"row {row} of {rows}" for row in range(rows)], "other": [f"{row}" for row in range(rows)]}
    columns = (Column("text", "text"), Column("other", "text", "positive"))
    return Corpus("texts", columns, TensorPart(dict(data)), None)


def size(what: str) -> float:
    """Of this process, in MB: ``VmRSS`` now, ``VmHWM`` the largest since it was last set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / MB


def held(tensors: Any) -> float:
    """MB on this rank."""
    return sum(part.numel() * part.element_size() for part in map(shard_of, tensors)) / MB


def train(strategy: str) -> dict[str, Any]:
    """MB that the ranks of a run hold; the same on each rank."""
    config = TrainConfig.of(method="pairs", batch_size=8, steps=3, strategy=strategy, device="cpu", threads=1)
    fabric = make_fabric(config)
    corpus = texts()
    settled = resolve(config, corpus, False, fabric.world_size)
    before = size("VmRSS")
    trainer = Trainer(settled, corpus, make_embedder(corpus, options={"text": NETWORK}), fabric)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    for _ in trainer.fit(0, 0.0, lambda step: False):
        pass
    learned = list(trainer.method.network.parameters())
    state = [t for entries in trainer.optimizer.state.values() for t in entries.values()]
    own = {
        "weights": held(learned), "gradients": held(p.grad for p in learned), "optimiser": held(state),
        "peak of the process": size("VmHWM") - before,
    }  # fmt: skip
    ranks: list[Any] = [own]
    if fabric.world_size > 1:
        ranks = [None] * fabric.world_size
        torch.distributed.all_gather_object(ranks, own)
    parameters = sum(p.numel() for p in learned)
    return {"strategy": strategy, "ranks": fabric.world_size, "parameters": parameters, "mb": ranks}


def launch(strategy: str, ranks: int) -> dict[str, Any]:
    """A run in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        subprocess.run(
            [*(command if ranks > 1 else command[:1]), __file__, "--case", strategy, "--out", str(out)], check=True,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["ddp", "fsdp"], help="this one, on the ranks that torchrun has started")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    if asked.case:
        found = train(asked.case)
        if int(os.environ.get("RANK", "0")):
            return
    else:
        found = [launch(*case) for case in CASES]
        for run in found:
            print(f"{run['strategy']}, {run['ranks']} ranks, {run['parameters']:,} parameters")
            for rank in run["mb"]:
                print("  " + " · ".join(f"{what} {mb:.1f} MB" for what, mb in rank.items()))
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
