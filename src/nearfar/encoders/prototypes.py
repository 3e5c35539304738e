"""Class prototypes: one direction a class, kept while training and read out by cosine."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from nearfar.encoders.heads import SizedLater, cosine_logits
from nearfar.given import as_labels
from nearfar.lengths import unit_rows


class Prototypes(SizedLater):
    """Moving class sums ``M ← decay·M + Σ f/‖f‖`` of the rows of each class, in a buffer.

    Cosines read their direction alone, so sums need no division by counts, and a class that is missing from a batch
    keeps its direction. The width is found at the first update.

    Args:
        num_classes: Number of classes; ``None``: given at the first update.
        decay: What is kept at an update; 0.9 remembers about ten batches, in which features hardly move.
        scale: Of the logits, as in ``CosineHead``.

    Example:
        >>> prototypes = Prototypes(2)
        >>> prototypes.update(torch.tensor([[5.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> prototypes(torch.tensor([[0.1, 0.2]])).argmax(1)
        tensor([1])
    """

    sums: Tensor

    def __init__(self, num_classes: int | None = None, decay: float = 0.9, scale: float = 10.0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}: wanted a number in [0, 1)")
        self.num_classes, self.decay, self.scale = num_classes, decay, scale
        self.register_buffer("sums", torch.empty(0, 0))

    @torch.no_grad()
    def update(
        self,
        features: Float[Tensor, "n d"],
        labels: Int[Tensor, "n"] | Shaped[Tensor, "n c"],
        num_classes: int | None = None,
    ) -> None:
        """Adds a batch; under ``torch.distributed`` every rank adds the batches of all.

        Args:
            features: ``(n, d)``, of any length: they are normalised here.
            labels: Class ids ``(n,)``, negative ones left out; or soft labels ``(n, num_classes)``.
            num_classes: Number of classes, where the constructor was not told.

        Raises:
            ValueError: If the number of classes is not known, or a label is not below it.
        """
        classes = self.num_classes or num_classes
        if classes is None:
            raise ValueError("prototypes need to know how many classes there are: pass num_classes=")
        added = class_sums(features, labels, classes)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(added)
        if self.sums.numel() == 0:
            self.sums = torch.zeros_like(added)
        self.sums.mul_(self.decay).add_(added)

    @torch.no_grad()
    def fit(self, sums: Float[Tensor, "c d"]) -> None:
        """Takes class sums as they are: exact ones, over a whole data set."""
        self.sums = sums

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Logits ``scale · cos(f, M_c)``; ``−2·scale`` for a class that no row was seen of, which no row is nearest to.

        Raises:
            RuntimeError: If there has been no update yet.
        """
        if self.sums.numel() == 0:
            raise RuntimeError("there are no prototypes yet: train a step, or fit them on labelled features")
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would keep two digits of a cosine
            logits = cosine_logits(features.to(self.sums.dtype), self.sums, self.scale)
        return torch.where((self.sums != 0).any(1), logits, -2 * self.scale)


def class_sums(
    features: Float[Tensor, "n d"], labels: Int[Tensor, "n"] | Shaped[Tensor, "n c"], num_classes: int
) -> Float[Tensor, "c d"]:
    """The sum of the normalised rows of each class, in float32 or better; rows with a negative label count nowhere.

    Raises:
        ValueError: If labels and rows differ in number, or soft labels and classes do, or (on the CPU, where looking
            costs nothing) a label is not below ``num_classes``.
    """
    labels = as_labels(labels, features.device)
    if len(labels) != len(features):
        raise ValueError(f"{len(features)} features but {len(labels)} labels were given: pass one label a row")
    rows = unit_rows(features.to(torch.promote_types(features.dtype, torch.float32)))
    if labels.ndim == 2:
        if labels.shape[1] != num_classes:
            raise ValueError(f"soft labels have {labels.shape[1]} columns where there are {num_classes} classes")
        with torch.autocast(rows.device.type, enabled=False):  # sums of many rows: bfloat16 would lose them
            return labels.to(rows.dtype).T @ rows
    look = labels.device.type == "cpu" and len(labels) and not torch.compiler.is_compiling()
    if look and (top := int(labels.max())) >= num_classes:
        raise ValueError(f"there is a label {top} where there are {num_classes} classes: pass num_classes={top + 1}")
    labels = labels.long()
    known = labels >= 0  # rows of an unknown class are added as zeros, so that no shape depends on the values
    return rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels.clamp(min=0), rows * known.unsqueeze(1))


def mixed_logits(outputs: Float[Tensor, "n c"], by_prototype: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """Log-probabilities of a classifier's logits and of the prototypes' logits, added: an equal vote of two experts.

    ``log_softmax(outputs) + log_softmax(by_prototype)``; the classifier is right late, the prototypes early.

    Example:
        >>> mixed_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])).argmax(1)
        tensor([1])
    """
    return F.log_softmax(outputs, 1) + F.log_softmax(by_prototype, 1)
