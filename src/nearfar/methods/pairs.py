"""Methods on two columns: what stands in one row belongs together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from nearfar.data.similar import LIKENESS
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

    def belonging(self, batch: Batch) -> Pairs | None:
        """Which keys (positives, then negatives) belong with which anchors; None: row by row, and no others.

        The keys of a row's id do. A row whose sides are not alike has no key of its own: its positive is a negative. What must
        be right or cannot be wrong is left out, as if it were not in the batch: the positive of another row with the same
        anchor, copies of the anchor's own positive, and of the anchor.
        """
        anchor, *keys = (column.name for column in self.columns)
        same = {name: ids for name, ids in batch.same.items() if name in (anchor, *keys)}
        if len(keys) == 1 and batch.ids is None and batch.similar is None and not same:
            return None
        fillers = _negative_ids(batch.rows, len(keys))
        ids = 3 * batch.rows + 1 if batch.ids is None else batch.ids
        alike = torch.ones_like(ids, dtype=torch.bool) if batch.similar is None else batch.similar >= LIKENESS
        query, key = [ids], [torch.cat([torch.where(alike, ids, fillers[0]), *fillers[1:]])]
        none = torch.full_like(ids, -1)
        values = torch.cat([same.get(name, none) for name in keys])
        if anchor in same:
            query += [same[anchor], same[anchor]]
            key += [torch.cat([torch.where(alike, same[anchor], none), *[none] * len(fillers[1:])]), values]
        if keys[0] in same:
            query.append(torch.where(alike, same[keys[0]], none))
            key.append(values)
        if len(query) == 1:
            return Pairs.from_ids(query[0], key[0])
        return Pairs.sparing(torch.stack(query, 1), torch.stack(key, 1))


class PairsMethod(_Columns):
    """InfoNCE of anchors over the positives of the batch and all hard negatives (arXiv:1807.03748; in-batch negatives).

    Rows of one id are never each other's negatives: they are positives. Nor are rows with the same text, which are left out.
    """

    negatives = True

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = InfoNCELoss(**setting.temperature, gather=setting.gather)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        anchor, *keys = outputs
        return {"info_nce": self.loss(anchor, torch.cat(keys), pairs=self.belonging(batch))}

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
        return {"clip": self.loss(*outputs, pairs=self.belonging(batch))}

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
        return {"siglip": self.loss(*outputs, pairs=self.belonging(batch))}


def _negative_ids(rows: Int64[Tensor, "b"], count: int) -> list[Int64[Tensor, "b"]]:
    """Ids that no row and no group has: 2 modulo 3; of each column of keys."""
    return [3 * (count * rows + k) + 2 for k in range(count)]
