"""Methods that need no labels: two views of one input belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from nearfar.losses.moments import BarlowTwinsLoss, VICRegLoss
from nearfar.losses.softmax import InfoNCELoss, NTXentLoss
from nearfar.methods.base import Batch, Method, Setting, Side


class _TwoViews(Method):
    name = "loss"
    loss: nn.Module

    @override
    def sides(self, batch: Batch) -> list[Side]:
        return self.views(batch, 2)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return {self.name: self.loss(*outputs)}


class SimCLR(_TwoViews):
    """SimCLR (Chen et al. 2020, arXiv:2002.05709): NT-Xent of two views' projections; rows of one id belong together too."""

    name = "nt_xent"

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = NTXentLoss(**setting.temperature, gather=setting.gather)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return {self.name: self.loss(*outputs, labels=batch.ids)}

    @override
    def chance(self, rows: int) -> float | None:
        return math.log(2 * rows - 1)


class SimCSE(_TwoViews):
    """Unsupervised SimCSE (Gao et al. 2021, arXiv:2104.08821, eq. 4): a text under two dropout masks."""

    name = "info_nce"

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = InfoNCELoss(**setting.temperature, gather=setting.gather)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return {self.name: self.loss(*outputs, labels=batch.ids)}

    @override
    def chance(self, rows: int) -> float | None:
        return math.log(rows)


class Barlow(_TwoViews):
    """Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230): the views' features agree and are uncorrelated."""

    name = "barlow"

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = BarlowTwinsLoss(gather=setting.gather)


class VICReg(_TwoViews):
    """VICReg (Bardes et al. 2022, arXiv:2105.04906): the views agree, features spread and are uncorrelated."""

    name = "vicreg"

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = VICRegLoss(gather=setting.gather)
