"""MoCo: queries meet the keys of many past batches, which a slow copy of the encoder made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from nearfar.encoders.memory import MemoryBank
from nearfar.encoders.momentum import Average
from nearfar.lengths import unit_rows
from nearfar.losses.softmax import InfoNCELoss
from nearfar.methods.base import Batch, Method, Setting, Side
from nearfar.pairs import Pairs


class MoCo(Method):
    """MoCo (He et al. 2020, arXiv:1911.05722, algorithm 1) with a projection head, as in its second version.

    The queue starts full of random directions, as in the authors' code. Queue and slow encoder are buffers of the
    method: a checkpoint holds them. Under several ranks the queue takes the keys of all. Where rows have ids, keys of the
    same thing are left out of the queue's.
    """

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.slow = Average(self.network, setting.config.momentum, buffers="keep")
        width = self.width or dim
        self.queue = MemoryBank(setting.config.queue, width)
        self.queue.add(unit_rows(torch.randn(setting.config.queue, width)))
        self.queue.gather = setting.gather  # only now: all ranks drew the same, and NCCL sends nothing that is on a CPU
        self.loss = InfoNCELoss(**setting.temperature)

    @override
    def sides(self, batch: Batch) -> list[Side]:
        query, self._other = self.views(batch, 2)
        return [query]

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        with self.autocast():
            (keys,) = self.slow([self._other])
        self._keys = unit_rows(keys.float())
        self._ids = batch.ids
        if self._ids is None:
            return {"info_nce": self.loss(outputs[0], self._keys, self.queue.rows)}
        own = torch.full((len(batch), len(batch)), math.nan, device=self._keys.device).fill_diagonal_(1.0)
        past = torch.where(self._ids[:, None] == self.queue.ids, math.nan, 0.0)  # the same thing's key is left out
        pairs = Pairs.from_matrix(torch.cat([own, past], 1))
        return {"info_nce": self.loss(outputs[0], torch.cat([self._keys, self.queue.rows]), pairs=pairs)}

    @override
    def after_step(self, step: int) -> None:
        self.slow.update(self.network)
        self.queue.add(self._keys, ids=self._ids)

    @override
    def chance(self, rows: int) -> float | None:
        return math.log(1 + self.setting.config.queue)
