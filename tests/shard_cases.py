"""Runs of `test_train_sharded.py`, as one rank of torchrun: weights divided among the ranks, and what each of them held.

torchrun --nproc-per-node 2 tests/shard_cases.py FOLDER killed
torchrun --nproc-per-node 2 tests/shard_cases.py FOLDER
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import nearfar as nf
import nearfar.training.train as training
from nearfar.encoders.memory import MemoryBank
from nearfar.shards import all_whole, is_sharded, shard_of
from nearfar.training.sharding import clip_sharded, shard
from train_cases import run_case

LOOK = {"eval_every": 8}  # one look, at the end: the model that is kept is the last
ONE = ("simclr", "queue", "clip", "chunks", "lars", "sgd")
"""Cases that are those of one process."""
DDP: dict[str, tuple[str, dict[str, Any]]] = {
    # what is a rank's own, as under ddp: BatchNorm (and blocks that lie channels last), dropout in a transformer's layers
    "residual": ("simclr", {"model": "resnet-small", "steps": 3}),
    "pairs": ("pairs", {"steps": 4}),
    "bf16": ("clip", {"precision": "bf16"}),
}
"""Cases that are those of two ranks with a copy each."""
MOCO = {"steps": 8, "eval_every": 4}


class Trainer(training.Trainer):
    """Stops itself, or dies, in the middle of a step; the last one is looked at."""

    last: Trainer
    stop = die = 0
    there: Path

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Trainer.last = self
        self.met: list[float] = []
        """Sums of the buffers that the last forward pass began with."""
        self.method.network.register_forward_pre_hook(self._meet)

    def _meet(self, network: nn.Module, inputs: Any) -> None:
        self.met = [float(buffer.double().sum()) for buffer in network.buffers()]

    def _update(self) -> None:
        if self._step == Trainer.die:
            Trainer.there.with_suffix(f".{self.fabric.global_rank}").touch()
            until = time.monotonic() + 60
            while time.monotonic() < until and len(list(Trainer.there.parent.glob("there.*"))) < 2:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        if self._step == Trainer.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        super()._update()


training.Trainer = Trainer


def stopped(name: str, out: str, step: int, **options: Any) -> None:
    Trainer.stop = step
    try:
        run_case(name, out, **options)
    except KeyboardInterrupt:
        return
    finally:
        Trainer.stop = 0
    raise AssertionError(f"{name} was not stopped")


def held(trainer: Trainer) -> dict[str, list[int]]:
    """Of every parameter of the network and its copies, and of every tensor of the optimiser: held here, and in all."""
    modules = {"method": trainer.method, "ema": trainer.ema}
    tensors = {f"{k}.{n}": p for k, m in modules.items() if m is not None for n, p in m.named_parameters()}
    for number, state in enumerate(trainer.optimizer.state.values()):
        tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items() if v.ndim}
    assert all(not isinstance(m, MemoryBank) or not is_sharded(m.rows) for m in trainer.method.modules())
    return {name: [shard_of(t).untyped_storage().nbytes(), t.numel() * t.element_size()] for name, t in tensors.items()}


def embedded(trainer: Trainer) -> Tensor:
    """Held-out rows, by all ranks' weights together."""
    kept: Any = trainer.kept
    column = trainer.method.setting.columns[0]
    inputs = kept.prepare(column.kind, trainer.corpus.test.fetch(range(16)).columns[column.name])
    kept.eval()
    with torch.no_grad():
        return kept(column.kind, inputs)


class Small(nn.Module):
    """Blocks of their own, and a number that cannot be divided."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layers(x)


def small_step(split: list[int], rank: int, chunk: int, sharded: bool, clip: float | None) -> dict[str, Tensor]:
    """Gradients of a cached step on a rank's rows, clipped; chunks are as many as rows give."""
    torch.manual_seed(4)
    network = Small().double()
    x = torch.randn(2, sum(split), 6, dtype=torch.float64).split(split, dim=1)[rank]
    if sharded:
        shard(network, init_device_mesh("cpu", (len(split),)), least=1)
        assert [n for n, p in network.named_parameters() if not is_sharded(p)] == ["scale"]
    loss = nf.CLIPLoss(gather=sharded)
    nf.cached_step(loss, network, (x[0], x[1]), chunk=chunk)
    if sharded:
        assert network.scale.grad is not None
        dist.all_reduce(network.scale.grad)
        network.scale.grad /= len(split)
    if clip is not None and sharded:
        clip_sharded(network.parameters(), clip)
    elif clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), clip)
    return all_whole({n: p.grad for n, p in network.named_parameters() if p.grad is not None})


def killed(folder: str) -> None:
    """Trains, and is killed in step 6, once both ranks are there."""
    Trainer.die, Trainer.there = 6, Path(folder) / "there"
    run_case("moco", f"{folder}/killed", strategy="fsdp", **MOCO)


def main(folder: str) -> None:
    facts: dict[str, Any] = {}
    for name in ONE:
        run_case(name, f"{folder}/{name}", strategy="fsdp", **LOOK)
        facts[name] = held(Trainer.last)
        seen = embedded(Trainer.last)
        if Trainer.last.fabric.is_global_zero:
            torch.save(seen, f"{folder}/{name}/seen.pt")
    for name, (case, options) in DDP.items():
        for strategy in ("fsdp", "ddp"):
            run_case(case, f"{folder}/{name}-{strategy}", strategy=strategy, **options)
            facts[f"{name}-{strategy} buffers"] = Trainer.last.met
    run_case("moco", f"{folder}/whole", strategy="fsdp", **MOCO)
    run_case("moco", resume=f"{folder}/killed")
    stopped("moco", f"{folder}/stopped", 3, strategy="fsdp", **MOCO)
    run_case("moco", resume=f"{folder}/stopped")
    for first, then in (("fsdp", "ddp"), ("ddp", "fsdp")):
        stopped("moco", f"{folder}/{first}-{then}", 3, strategy=first, **MOCO)
        run_case("moco", resume=f"{folder}/{first}-{then}", strategy=then)
    rank = dist.get_rank()
    facts["gradients"] = [
        {n: g.tolist() for n, g in small_step([6, 1], rank, 2, True, clip).items()} for clip in (None, 0.01)
    ]
    Path(f"{folder}/held-{rank}.json").write_text(json.dumps(facts))
    del Trainer.last  # before the ranks part


if __name__ == "__main__":
    (killed if sys.argv[2:] == ["killed"] else main)(sys.argv[1])
