"""Methods that learn from labels: inputs of one class belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from nearfar.encoders.heads import CosineHead, cosine_logits
from nearfar.losses.contrastive import ContrastiveLoss
from nearfar.losses.softmax import SupConLoss
from nearfar.losses.triplet import TripletLoss
from nearfar.methods.base import Batch, Method, Setting, Side


class SupCon(Method):
    """Supervised contrastive learning (Khosla et al. 2020, arXiv:2004.11362, eq. 2); two views where any can be drawn."""

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = SupConLoss(**setting.temperature, gather=setting.gather)

    @override
    def sides(self, batch: Batch) -> list[Side]:
        return self.views(batch, 2 if self.draws else 1)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        return {"supcon": self.loss(*outputs, labels=batch.labels)}

    @override
    def chance(self, rows: int) -> float | None:
        return math.log((2 if self.draws else 1) * rows - 1)


class JointMethod(Method):
    """Cross-entropy of a cosine classifier, and SupCon on the batch-normalised features it reads.

    The design that converged soonest in this project's study (docs/compare.md); the classifier is thrown away.
    """

    ids: Tensor

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        self.loss = SupConLoss(**setting.temperature, gather=setting.gather)
        self.weights = {"supcon": setting.config.weight}
        ids = torch.arange(setting.classes) if setting.ids is None else setting.ids
        self.register_buffer("ids", ids, persistent=False)  # the classifier's outputs are in their order

    @override
    def head(self, dim: int) -> nn.Module:
        return _Classifier(dim, self.setting.classes)

    @override
    def sides(self, batch: Batch) -> list[Side]:
        return self.views(batch, 1)

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        ((features, logits),) = outputs
        assert batch.labels is not None
        known = batch.labels >= 0
        wanted = torch.searchsorted(self.ids, batch.labels).clamp(max=len(self.ids) - 1)
        entropy = F.cross_entropy(logits, wanted, reduction="none")
        mean = (entropy * known).sum() / known.sum().clamp(min=1)
        return {"cross_entropy": mean, "supcon": self.loss(features, labels=batch.labels)}


class _Classifier(CosineHead):
    """Features as the classifier sees them, and its logits."""

    def forward(self, features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n c"]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both."""
        seen = self.norm(features)
        return seen, cosine_logits(seen, self.weight, self.scale)


class Siamese(Method):
    """Near, or apart by a margin (Hadsell et al. 2006, eq. 4), between normalised embeddings.

    The pairs of a batch's rows, by label; or the two sides of each row, where it is said how alike they are: a grade between 0
    and 1 weighs both terms, so that an even one asks for half a margin.
    """

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        role = setting.role
        self.columns = [*role["anchor"][:1], *role["positive"][:1]]
        self.judged = bool(role["positive"])
        self.loss = ContrastiveLoss(setting.config.margin, normalize=True, gather=setting.gather and not self.judged)

    @override
    def sides(self, batch: Batch) -> list[Side]:
        if not self.judged:
            return self.views(batch, 1)
        view, kind = self.setting.view, self.columns[0].kind
        sides = [(column.kind, batch.columns[column.name]) for column in self.columns]
        return [
            (of, inputs if view is None or of != kind else view(inputs, which))
            for which, (of, inputs) in enumerate(sides)
        ]

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        if not self.judged:
            return {"contrastive": self.loss(outputs[0], labels=batch.labels)}
        first, second = (torch.cat([side, side]) for side in outputs)
        assert batch.similar is not None
        alike = batch.similar
        label = torch.cat([torch.ones_like(alike), torch.zeros_like(alike)])
        return {"contrastive": self.loss(first, second, label, weights=torch.cat([alike, 1 - alike]))}


class Triplet(Method):
    """Triplets (Schroff et al. 2015, arXiv:1503.03832): of the columns anchor, positive, negative; else semi-hard, by label."""

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__(embedder, dim, setting)
        margin = 0.2 if setting.config.margin is None else setting.config.margin
        role = setting.role
        self.columns = [*role["anchor"][:1], *role["positive"][:1], *role["negative"]]
        self.explicit = bool(role["positive"] and role["negative"])
        if self.explicit:
            self.loss = TripletLoss(margin, distance="sqeuclidean", normalize=True)
        else:
            self.loss = TripletLoss(margin, "semihard", "sqeuclidean", normalize=True, gather=setting.gather)

    @override
    def sides(self, batch: Batch) -> list[Side]:
        if not self.explicit:
            return self.views(batch, 1)
        return [(column.kind, batch.columns[column.name]) for column in self.columns]

    @override
    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        if not self.explicit:
            return {"triplet": self.loss(outputs[0], labels=batch.labels)}
        anchor, positive, *negatives = outputs
        return {"triplet": self.loss(anchor, positive, torch.stack(negatives, 1))}
