"""Methods on two columns: what stands in one row belongs together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from nearfar.losses.softmax import InfoNCELoss
from nearfar.losses.two_sided import CLIPLoss, SigLIPLoss
from nearfar.methods.base import Batch, Method, Setting, Side
from nearfar.pairs import Pairs


class _Columns(Method):
    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        role = setting.role
        self.columns = [role["anchor"][0], role["positive"][0], *(role["negative"] if self.negatives else [])]

    negatives = False
    """Whether columns of hard negatives take part."""

    @override
    def sides(self, batch: Batch) -> list[Side]:
        view = self.setting.view
        anchor, *others = ((column.kind, batch.columns[column.name]) for column in self.columns)
        first = anchor if view is None else (anchor[0], view(anchor[1], 0))
        return [first, *others]


class PairsMethod(_Columns):
    """InfoNCE of anchors over the positives of the batch and all hard negatives (arXiv:1807.03748; in-batch negatives).

    Rows of one id are never each other's negatives: they are positives.
    """

    negatives = True

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = InfoNCELoss(**setting.temperature, gather=setting.gather)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        anchor, positive, *negatives = outputs
        if not negatives and batch.ids is None:
            return {"info_nce": self.loss(anchor, positive)}
        ids = 3 * batch.rows + 1 if batch.ids is None else batch.ids
        keys = torch.cat([ids, *_negative_ids(batch.rows, len(negatives))])
        pairs = Pairs.from_ids(ids, keys)
        return {"info_nce": self.loss(anchor, torch.cat([positive, *negatives]), pairs=pairs)}

    @override
    def chance(self, rows: int) -> float | None:
        return math.log(rows * (len(self.columns) - 1))


class CLIP(_Columns):
    """CLIP (Radford et al. 2021, arXiv:2103.00020, fig. 3): InfoNCE both ways, the temperature learned."""

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = CLIPLoss(**setting.temperature, gather=setting.gather)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return {"clip": self.loss(*outputs, labels=batch.ids)}

    @override
    def chance(self, rows: int) -> float | None:
        return math.log(rows)


class SigLIP(_Columns):
    """SigLIP (Zhai et al. 2023, arXiv:2303.15343, algorithm 1): every pair of the batch decided by itself."""

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = SigLIPLoss(**setting.temperature, gather=setting.gather)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return {"siglip": self.loss(*outputs, labels=batch.ids)}


def _negative_ids(rows: Int64[Tensor, "b"], count: int) -> list[Int64[Tensor, "b"]]:
    """Ids that no row and no group has: 2 modulo 3."""
    return [3 * (count * rows + k) + 2 for k in range(count)]
