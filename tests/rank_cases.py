"""What `ranks.py` runs: a call of every loss, some of whose rows lie on each rank."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import nearfar as nf
from nearfar.pairs import Pairs

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


def padded(rows: Tensor) -> dict[str, Any]:
    """Samples 1 and 4 were filled in, and key 6 is left out."""
    filled, gone = (rows == 1) | (rows == 4), (rows == 1) | (rows == 4) | (rows == 6)
    return {"weights": (~filled).double(), "offsets": (0.1 * rows).masked_fill(gone, -torch.inf)}


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
        yield f"{name} padded", Case(one, 2, padded)
        yield f"{name} strip", Case(lambda one=one, **o: one(**{"backend": "strip", **o}), 1, labels)
        yield f"{name} views, weights", Case(one, 2, lambda rows: {"labels": LABELS[rows], "weights": 1.0 + rows})
        yield f"{name} bf16", Case(lambda one=one, **o: one(precision="bf16", learnable=True, **o), 2)
    for name in ("SigLIPLoss", "ContrastiveLoss", "HardNegativeLoss"):  # as large batches are visited
        one = getattr(nf, name)
        yield f"{name} tiles", Case(lambda one=one, **o: one(**{"backend": "tiled", **o}), 1, labels)
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
    yield (
        "pairs that spare",
        Case(
            nf.CLIPLoss,
            2,
            lambda rows: {
                "pairs": Pairs.sparing(*2 * (torch.stack([LABELS[rows], UNKNOWN[rows]], 1),)).excluding(rows, rows + 1)
            },
        ),
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
