"""One rank of `test_ranks.py`: every loss on this rank's rows, with all ranks' rows in sight.

    python tests/ranks.py RANK WORLD STORE FOLDER
    torchrun --nproc_per_node WORLD tests/ranks.py FOLDER

Of the same rows, `whole()` computes what one process does that holds them all.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent.parent / "src"), str(Path(__file__).parent)]

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import nearfar as nf
from nearfar.pairs import Pairs
from nearfar.scores import tile_size
from rank_cases import BY_QUERY, CASES, DTYPES, LABELS, SHARDED, SPLITS, Case, D
from work import Work


def encoder(dtype: torch.dtype) -> nn.Linear:
    """A layer whose products have no rounding, so that rows are the same bits whatever rows they come with."""
    torch.manual_seed(0)
    layer = nn.Linear(6, D)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_((64 * parameter).round() / 64)
    return layer.to(dtype)


def inputs(views: int) -> Tensor:
    z = torch.randn(views, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (16 * z).round() / 16


def run(
    case: Case, rows: Tensor, dtype: torch.dtype, wrap: Callable[[nn.Module], nn.Module], **options: Any
) -> list[Tensor]:
    """Value, gradients of the encoder, and gradients of what the loss learns, on some of the samples."""
    network = encoder(dtype)
    torch.manual_seed(2)
    loss = case.loss(**options).to(dtype)
    wrapped = wrap(network)  # it must outlive the backward pass
    z = wrapped(inputs(case.views)[:, rows].to(dtype).flatten(0, 1)).unflatten(0, (case.views, len(rows)))
    value = case.call(loss, list(z), **case.keywords(rows))
    value.backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in [*network.parameters(), *loss.parameters()]]
    return [value.detach(), *(g.full_tensor() if isinstance(g, DTensor) else g for g in found)]


def whole(name: str, dtype: torch.dtype, **options: Any) -> list[Tensor]:
    """What one process gets that has all the samples."""
    return run(CASES[name], torch.arange(8), dtype, lambda network: network, **options)


def with_empty_rank(case: Case) -> list[Tensor]:
    """Two ranks or more: the last one has no sample at all."""
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = torch.arange(8).tensor_split(max(world - 1, 1))[rank] if rank < max(world - 1, 1) else torch.arange(0)
    return run(case, rows, torch.float64, DistributedDataParallel, gather=True)


def sharded(case: Case, rows: Tensor) -> list[Tensor]:
    """The encoder's parameters divided among the ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return run(case, rows, torch.float64, lambda network: fully_shard(network, mesh=mesh), gather=True)


def by_query(case: Case, rows: Tensor, **options: Any) -> Tensor:
    """The loss of each query."""
    torch.manual_seed(2)
    loss = case.loss(**options).double()
    z = encoder(torch.float64)(inputs(case.views)[:, rows])
    return loss.per_query(*z, **case.keywords(rows)).detach()


def work(rows: Tensor) -> dict[str, list[float]]:
    """Matrix products (over all d features), bytes sent, and length of the largest matrix, of losses of wide rows."""
    found = {}
    for name, options in (("one process", {}), ("gather", {"gather": True}), ("ring", {"gather": "ring"})):
        for kind in (nf.InfoNCELoss, nf.CLIPLoss):
            z = [
                torch.randn(8, 64, generator=torch.Generator().manual_seed(k), dtype=torch.float64)[
                    rows if options else slice(None)
                ].requires_grad_()
                for k in (4, 5)
            ]
            with tile_size(2), Work() as seen:
                kind(**options, backend="tiled")(*z).backward()
            found[f"{name} {kind.__name__}"] = [seen.products / (2 * 64), float(seen.sent), float(seen.largest)]
    return found


NEAR_ZERO: dict[str, Callable[..., nn.Module]] = {
    "InfoNCELoss": nf.InfoNCELoss, "CLIPLoss": nf.CLIPLoss, "NTXentLoss": nf.NTXentLoss, "SupConLoss": nf.SupConLoss
}  # fmt: skip


def near_zero(rows: Tensor, name: str, dtype: torch.dtype, **options: Any) -> Tensor:
    """The value, and behind it the gradient of these rows, of views that agree all but wholly; both as one process has them."""
    a = torch.randn(8, 24, generator=torch.Generator().manual_seed(5))
    b = a + 0.02 * torch.randn(8, 24, generator=torch.Generator().manual_seed(6))
    sides = [z[rows].to(dtype).requires_grad_() for z in (a, b)]
    value = NEAR_ZERO[name](temperature=0.05, **options)(*sides)
    gradients = torch.autograd.grad(value, sides)
    shares = dist.get_world_size() if options else 1  # a rank's gradients wait to be averaged
    return torch.cat([value.detach()[None], *(g.flatten() / shares for g in gradients)])


def refusals() -> list[str]:
    """What is said where all ranks' rows cannot be had."""
    z = torch.randn(4, D)
    said = []
    for call in (
        lambda: nf.SupConLoss(gather=True)(z, pairs=Pairs.from_matrix(torch.eye(4))),
        lambda: nf.SupConLoss(gather=True)(z, pairs=Pairs.aligned(4) | Pairs.by_label(LABELS[:4])),
        lambda: nf.NCELoss(torch.ones(4), gather=True)(z, LABELS[:4] % 4, z),
        lambda: nf.InfoNCELoss(gather=True)(z, z, z),
        lambda: nf.TripletLoss(gather=True)(z, z, z),
        lambda: nf.ContrastiveLoss(gather=True)(z, z, LABELS[:4] % 2),
        lambda: nf.TripletLoss(gather="ring")(z, labels=LABELS[:4]),
        lambda: nf.VICRegLoss(gather="ring")(z, z),
        lambda: nf.ArcFaceLoss(5, D, gather="ring")(z, labels=LABELS[:4]),
        lambda: nf.SupConLoss(gather="ring", form="in")(z, labels=LABELS[:4]),
    ):
        try:
            said.append(f"value {float(call())}")
        except (TypeError, ValueError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def main(folder: str, rank: int, world: int, names: Iterable[str] = CASES) -> None:
    torch.set_num_threads(1)
    first = list(itertools.accumulate(SPLITS[world], initial=0))[rank]
    rows = torch.arange(8)[first : first + SPLITS[world][rank]]
    found: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        for dtype in DTYPES:
            try:
                found[f"{name} {dtype}"] = run(case, rows, dtype, DistributedDataParallel, gather=True)
            except Exception as error:  # the same on every rank, or the others wait in vain
                found[f"{name} {dtype}"] = repr(error)
        found[f"{name} empty"] = with_empty_rank(case)
    for name in SHARDED:
        found[f"{name} sharded"] = sharded(CASES[name], rows)
    for name in BY_QUERY:
        found[f"{name} by query"] = by_query(CASES[name], rows, gather=True)
    for name, way in itertools.product(NEAR_ZERO, (True, "ring")):
        found[f"{name} {way} near zero"] = near_zero(rows, name, torch.float32, gather=way)
    found["refusals"] = refusals()
    found["work"] = work(rows)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.barrier()  # a rank that leaves early takes the others' connections with it
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun's
        dist.init_process_group("gloo")
        main(sys.argv[1], dist.get_rank(), dist.get_world_size(), SHARDED)
    else:
        rank, world = map(int, sys.argv[1:3])
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
        main(sys.argv[4], rank, world)
