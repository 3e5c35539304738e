"""One rank of `test_large_batches.py`: cached steps and memory banks, on this rank's rows.

    python tests/large_batches.py RANK WORLD STORE OUT

Of the same rows, `alone()` computes what one process does that holds them all, in one batch.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent.parent / "src"), str(Path(__file__).parent)]

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import nearfar as nf

SPLITS = {1: (10,), 2: (7, 3), 3: (6, 0, 4)}
"""How many of the ten samples each rank has: with chunks of two, ranks have different numbers of chunks, one has no row."""
LABELS = torch.tensor([0, 1, 0, 1, 4, 2, 0, 2, 1, 0])
D = 4


def encoder(seed: int = 0, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, D)).double()


def views(count: int, steps: int = 1) -> Tensor:
    """``(steps, views, 10, 6)``."""
    return torch.randn(steps, count, 10, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def by_chunks(model: Callable[[Any], Tensor], rows: Tensor, chunk: int) -> Tensor:
    """Encoded a chunk at a time, with the whole graph: the same random numbers, one big batch for the loss."""
    return torch.cat([model(rows[i : i + chunk]) for i in range(0, len(rows), chunk)])


def gradients(*modules: nn.Module) -> list[Tensor]:
    """A copy of each, and zeros where there is none; they are cleared."""
    parameters = [p for module in modules for p in module.parameters()]
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    for module in modules:
        module.zero_grad()
    return found


Wrap = Callable[[nn.Module], nn.Module]


def two_towers(rows: Tensor, wrap: Wrap, step: Callable[..., Tensor], **options: Any) -> list[Tensor]:
    """CLIP with a learned temperature: an encoder for each side, and then one for both."""
    image, text = encoder(0), encoder(1)
    found = []
    for models in ((image, text), (image, image)):
        loss = nf.CLIPLoss(learnable=True, **options).double()
        wrapped = {m: wrap(m) for m in models}
        value = step(loss, tuple(wrapped[m] for m in models), tuple(views(2)[0][:, rows]))
        found += [value, *gradients(image, text, loss)]
    return found


def labelled(rows: Tensor, wrap: Wrap, step: Callable[..., Tensor], **options: Any) -> list[Tensor]:
    """SupCon, two calls whose gradients add up."""
    network, loss = encoder(), nf.SupConLoss(learnable=True, **options).double()
    model = wrap(network)
    values = [step(loss, model, views(1, 2)[k][:, rows][0], labels=LABELS[rows]) for k in range(2)]
    return [*values, *gradients(network, loss)]


def remembered(rows: Tensor, wrap: Wrap, frozen: bool = False, gather: bool = False) -> list[Tensor]:
    """Four steps with a memory bank of thirteen: each value and gradient, and what the bank then holds."""
    network, loss = encoder(), nf.SupConLoss(learnable=True).double()
    bank = nf.MemoryBank(13, D, frozen=frozen, gather=gather, dtype=torch.float64)
    model, ids, found = wrap(network), torch.arange(10), []
    for step, batch in enumerate(views(1, 4)):
        known = (ids + 5 * step) % 20  # half of the samples come again, twice
        value = bank.loss(loss, model(batch[0][rows]), LABELS[rows] - 1, known[rows])
        value.backward()
        found += [value.detach(), *gradients(network, loss)]
    return [*found, *bank.state_dict().values()]


def plain(criterion: Callable[..., Tensor], model: Any, inputs: Any, **keywords: Any) -> Tensor:
    """One big batch."""
    sides = inputs if isinstance(inputs, tuple) else (inputs,)
    models = model if isinstance(model, tuple) else (model,) * len(sides)
    loss = criterion(*(m(x) for m, x in zip(models, sides)), **keywords)
    loss.backward()
    return loss.detach()


def alone() -> dict[str, list[Tensor]]:
    rows = torch.arange(10)
    return {
        "two towers": two_towers(rows, lambda m: m, plain),
        "labelled": labelled(rows, lambda m: m, plain),
        "remembered": remembered(rows, lambda m: m),
        "remembered, frozen": remembered(rows, lambda m: m, frozen=True),
    }


def cached(criterion: Callable[..., Tensor], model: Any, inputs: Any, **keywords: Any) -> Tensor:
    return nf.cached_step(criterion, model, inputs, chunk=2, **keywords)


def reductions(rows: Tensor) -> list[int]:
    """How often a model's gradients travel: in a step of five chunks, in one under `no_sync`, and in the next."""
    calls = []
    model = DistributedDataParallel(encoder())

    def hook(state, bucket):  # annotations would be checked, as strings
        calls.append(bucket.index())
        return allreduce_hook(state, bucket)

    model.register_comm_hook(None, hook)
    found = []
    loss = nf.NTXentLoss(gather=True)
    for silent in (False, True, False):
        with model.no_sync() if silent else torch.enable_grad():
            cached(loss, model, tuple(views(2)[0][:, rows]))
        found.append(len(calls))
        calls.clear()
    return found


def running_means(rows: Tensor) -> list[Tensor]:
    """Of a BatchNorm in `DistributedDataParallel`, after each of three steps in chunks of four."""
    network = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, D)).double()
    model = DistributedDataParallel(network)
    found = []
    for batch in views(1, 3):
        nf.cached_step(nf.SupConLoss(gather=True), model, batch[0][rows], labels=LABELS[rows], chunk=4)
        found.append(network[0].running_mean.clone())
    return found


def main(rank: int, world: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    first = list(itertools.accumulate(SPLITS[world], initial=0))[rank]
    rows = torch.arange(10)[first : first + SPLITS[world][rank]]
    parts: dict[str, Callable[[], Any]] = {
        "two towers": lambda: two_towers(rows, DistributedDataParallel, cached, gather=True),
        "labelled": lambda: labelled(rows, DistributedDataParallel, cached, gather=True),
        "remembered": lambda: remembered(rows, DistributedDataParallel, gather=True),
        "remembered, frozen": lambda: remembered(rows, DistributedDataParallel, frozen=True, gather=True),
        "reductions": lambda: reductions(rows),
    }
    if all(SPLITS[world]):
        parts["running means"] = lambda: running_means(rows)
    found: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:  # the same on every rank, or the others wait in vain
            found[name] = repr(error)
    torch.save(found, out)
    dist.barrier()  # a rank that leaves early takes the others' connections with it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
