"""What a rank holds of a transformer in training, with a copy on each rank (ddp) and divided among them (fsdp).

    MALLOC_MMAP_THRESHOLD_=262144 torchrun --nproc-per-node N benchmarks/sharding.py [ddp|fsdp]

Counted are the tensors that stay from step to step: weights, gradients, the optimiser's. Beside them, the largest size
of the process while it trains, beyond what it had before the model was made: activations and gathered blocks as well.
The variable makes glibc give freed blocks back to the system; without it, what was gathered once stays with the process.
"""

from __future__ import annotations

import gc
import sys
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


def main(strategy: str) -> None:
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
    sizes = (held(learned), held(p.grad for p in learned), held(state), size("VmHWM") - before)
    lines: list[Any] = [None] * fabric.world_size
    line = f"{strategy}, rank {fabric.global_rank} of {fabric.world_size}: " + " · ".join(
        f"{what} {mb:.1f} MB"
        for what, mb in zip(("weights", "gradients", "optimiser", "peak of the process"), sizes, strict=True)
    )
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(lines, line)
    if fabric.is_global_zero:
        print(
            f"{sum(p.numel() for p in learned):,} parameters", *(lines if fabric.world_size > 1 else [line]), sep="\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["fsdp"])
