"""One rank of `test_ranks.py`: every loss on this rank's rows, with all ranks' rows in sight.

    python tests/ranks.py RANK WORLD STORE FOLDER
    torchrun --nproc_per_node WORLD tests/ranks.py FOLDER

Of the same rows, `whole()` computes what one process does that holds them all.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
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
from torch.utils._python_dispatch import TorchDispatchMode

import nearfar as nf
from nearfar.pairs import Pairs
from nearfar.scores import tile_size

SPLITS = {1: (8,), 2: (5, 3), 3: (4, 1, 3)}
"""How many of the eight samples each rank has; labels 4 and 7 occur once, so that rank 1 of 3 has no positive."""
LABELS = torch.tensor([0, 1, 0, 1, 4, 2, 0, 2])
UNKNOWN = torch.tensor([0, -1, 0, 1, -1, 1, 0, 3])
D = 4
DTYPES = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Case:
    """A loss and its call: `views` matrices from the encoder, and keywords drawn from this rank's samples."""

    loss: Callable[..., nn.Module]
    views: int = 1
    keywords: Callable[[Tensor], dict[str, Any]] = field(default=lambda rows: {})
    call: Callable[..., Tensor] = field(default=lambda loss, z, **keywords: loss(*z, **keywords))


def labels(rows: Tensor) -> dict[str, Any]:
    return {"labels": LABELS[rows]}


def unknown(rows: Tensor) -> dict[str, Any]:
    return {"labels": UNKNOWN[rows]}


def _maps(loss: nn.Module, z: list[Tensor], **keywords: Any) -> Tensor:
    """A summary, and 2 × 1 locations, of each sample."""
    return loss(z[0], torch.stack(z[1:], 2)[..., None], **keywords)


def _graphs(loss: nn.Module, z: list[Tensor], **keywords: Any) -> Tensor:
    """A summary and two nodes of each sample."""
    return loss(z[0], torch.cat(z[1:]), batch=torch.arange(len(z[0])).repeat(2), **keywords)


class Margin(nn.Module):
    """A loss whose margin is learned."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss, self.margin = loss, nn.Parameter(torch.tensor(1.5))

    def forward(self, *z: Tensor, **keywords: Any) -> Tensor:
        return self.loss(*z, margin=self.margin, **keywords)


def _cases() -> Iterator[tuple[str, Case]]:
    for name, row in nf.LOSSES.items():
        learnable = {"learnable": True} if "learnable" in inspect.signature(row.loss).parameters else {}

        def build(row: Any = row, learnable: dict[str, Any] = learnable, **options: Any) -> nn.Module:
            return row.loss(**learnable, **options)

        if row.kind == "noise":
            continue
        if row.kind == "classes":
            yield name, Case(lambda build=build, **o: build(num_classes=5, dim=D, **o), 1, labels)
            yield f"{name} unknown", Case(lambda build=build, **o: build(num_classes=5, dim=D, **o), 1, unknown)
        elif row.kind == "information":
            for estimator in ("infonce", "jsd", "dv"):
                make = lambda build=build, e=estimator, **o: build(estimator=e, bilinear=(D, D), **o)  # noqa: E731
                yield f"{name} {estimator}", Case(make, 2)
            yield f"{name} maps", Case(lambda build=build, **o: build(bilinear=(D, D), **o), 3, call=_maps)
            yield f"{name} graphs", Case(lambda build=build, **o: build(bilinear=(D, D), **o), 3, call=_graphs)
        elif row.kind == "moments":
            yield name, Case(build, 2)
        else:
            yield f"{name} labels", Case(build, 1, labels)
            wide = {"epsilon": 2.0} if name == "MultiSimilarityLoss" else {}  # few pairs: let its mining keep them
            yield f"{name} unknown", Case(partial(build, **wide), 1, unknown)
            if row.kind != "pairs":
                yield f"{name} views", Case(build, 2)
                yield f"{name} views, labels", Case(build, 2, labels)

    for mining in ("hard", "semihard"):
        yield f"TripletLoss {mining}", Case(lambda m=mining, **o: nf.TripletLoss(margin=1.0, mining=m, **o), 1, labels)
    yield "three views", Case(nf.NTXentLoss, 3)
    yield "stacked views", Case(nf.SupConLoss, 3, labels, lambda loss, z, **k: loss(torch.stack(z, 1), **k))
    for name in ("InfoNCELoss", "SupConLoss", "CLIPLoss"):  # one-sided, with itself, and both ways
        one = getattr(nf, name)
        yield f"{name} weights", Case(one, 1, lambda rows: {"labels": LABELS[rows], "weights": 1.0 + rows})
        yield f"{name} offsets", Case(one, 1, lambda rows: {"labels": LABELS[rows], "offsets": 0.1 * rows})
        yield f"{name} strip", Case(lambda one=one, **o: one(**{"backend": "strip", **o}), 1, labels)
        yield f"{name} views, weights", Case(one, 2, lambda rows: {"labels": LABELS[rows], "weights": 1.0 + rows})
        yield f"{name} bf16", Case(lambda one=one, **o: one(precision="bf16", learnable=True, **o), 2)
    yield (
        "stacked weights and ids",
        Case(
            nf.SupConLoss,
            2,
            lambda rows: {
                "labels": LABELS[rows],
                "weights": torch.cat([1.0 + rows, 9.0 - rows]),
                "query_rows": (ids := torch.cat([rows, UNKNOWN[rows] + 20])),
                "key_rows": ids,
            },
        ),
    )
    sets, soft = torch.eye(5)[LABELS].long(), torch.rand(8, 3, generator=torch.Generator().manual_seed(3))
    soft = soft.where(soft > 0.5, 0)
    sets[:, 0] |= LABELS == 1
    for loss in (nf.SupConLoss, partial(nf.CircleLoss, scale=4.0)):
        name = "SupConLoss" if loss is nf.SupConLoss else "CircleLoss"
        yield f"{name} label sets", Case(loss, 1, lambda rows: {"labels": sets[rows]})
        yield f"{name} soft labels", Case(loss, 1, lambda rows: {"labels": soft[rows].double()})
    yield "positives in one logarithm", Case(lambda **o: nf.SupConLoss(form="in", learnable=True, **o), 2, labels)
    yield "N-pairs, short rows", Case(lambda **o: nf.NPairsLoss(regularization=0.1, **o), 2)
    yield "hard triplets, learned margin", Case(lambda **o: Margin(nf.TripletLoss(mining="hard", **o)), 1, labels)
    yield "triplets, learned margin", Case(lambda **o: Margin(nf.TripletLoss(**o)), 1, labels)
    yield (
        "lifted, queries and keys",
        Case(nf.LiftedStructureLoss, 2, lambda rows: {"pairs": Pairs.from_ids(LABELS[rows], LABELS[rows])}),
    )
    for dtype in (torch.int16, torch.uint8, torch.bool):
        yield f"labels of {dtype}", Case(nf.SupConLoss, 1, lambda rows, t=dtype: {"labels": (LABELS[rows] % 3).to(t)})
    yield "pairs by label", Case(nf.SupConLoss, 1, lambda rows: {"pairs": Pairs.by_label(UNKNOWN[rows])})
    yield (
        "pairs, unknown are negatives",
        Case(nf.SupConLoss, 1, lambda rows: {"pairs": Pairs.by_label(UNKNOWN[rows], unknown="negative")}),
    )
    yield (
        "pairs by ids",
        Case(nf.InfoNCELoss, 2, lambda rows: {"pairs": Pairs.from_ids(LABELS[rows], UNKNOWN[rows].abs())}),
    )
    yield "aligned pairs", Case(nf.InfoNCELoss, 2, lambda rows: {"pairs": Pairs.aligned(len(rows))})
    yield (
        "aligned pairs without oneself",
        Case(nf.InfoNCELoss, 2, lambda rows: {"pairs": Pairs.from_ids(LABELS[rows], LABELS[rows]).excluding_self()}),
    )
    yield (
        "own rows",
        Case(nf.InfoNCELoss, 2, lambda rows: {"labels": LABELS[rows], "query_rows": rows, "key_rows": rows}),
    )


def _rings() -> Iterator[tuple[str, Case]]:
    """Cases whose keys go round."""
    for name, case in _cases():
        if (name.split()[0] in RING or not name[0].isupper()) and name not in NOT_RING:
            make = lambda loss=case.loss, **o: loss(**{**o, **({"gather": "ring"} if "gather" in o else {})})  # noqa: E731
            yield f"{name}, ring", replace(case, loss=make)


RING = ("InfoNCELoss", "NTXentLoss", "SupConLoss", "CLIPLoss", "NPairsLoss")
NOT_RING = (
    "positives in one logarithm", "hard triplets, learned margin", "triplets, learned margin", "lifted, queries and keys"
)  # fmt: skip
CASES = {**dict(_cases()), **dict(_rings())}


SHARDED = (
    "SupConLoss labels",
    "CLIPLoss views, labels",
    "TripletLoss semihard",
    "SupConLoss labels, ring",
    "VICRegLoss",
)
BY_QUERY = [
    name for name in CASES if nf.LOSSES.get(name.split()[0]) and name.endswith(("labels", "labels, ring", "unknown"))
]
BY_QUERY = [name for name in BY_QUERY if nf.LOSSES[name.split()[0]].per_query]


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


class Work(TorchDispatchMode):
    """Counts what a rank multiplies, sends (as the usual rings do) and holds."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.sent = self.largest = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func._schema.name
        flat = [x for x in torch.utils._pytree.tree_leaves((args, found)) if isinstance(x, Tensor)]
        self.largest = max([self.largest, *(float(x.numel()) for x in flat)])
        if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = args[-2:]
            self.products += 2 * left.numel() * right.shape[1]
        elif name.startswith("c10d::"):
            world = dist.get_world_size()
            size = max((x.numel() * x.element_size() for x in flat), default=0)
            passes = {
                "c10d::allreduce_": 2.0,
                "c10d::send": world / (world - 1) if world > 1 else 0.0,
                "c10d::recv_": 0.0,
            }
            self.sent += size * passes.get(name, 1.0) * (world - 1) / world
        return found


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


def main(folder: str, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    first = list(itertools.accumulate(SPLITS[world], initial=0))[rank]
    rows = torch.arange(8)[first : first + SPLITS[world][rank]]
    found: dict[str, Any] = {}
    for name, case in CASES.items():
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
    found["refusals"] = refusals()
    found["work"] = work(rows)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun's
        dist.init_process_group("gloo")
        main(sys.argv[1], dist.get_rank(), dist.get_world_size())
    else:
        rank, world = map(int, sys.argv[1:3])
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
        main(sys.argv[4], rank, world)
