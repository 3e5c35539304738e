"""Balancing by gradient norm: terms that pull on the features as hard as their weights say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

# Gradients are taken of 1024 times each term: those of a mean over many rows would underflow in half precision.
_LIFT = 1024.0
_LARGEST = 1e4


class GradientBalance(nn.Module):
    """Scales each contrastive term so that its gradient at the features is as long as the task's.

    ``scale_k = min(‖∂task/∂f‖ / ‖∂term_k/∂f‖, 10⁴)``, both norms averaged over steps: the adaptive weight of
    Esser et al. 2021 (arXiv:2012.09841, eq. 7), at the features rather than at the last layer's weights, because the
    features are what both share. After that the weights alone set the ratio. A term whose gradient is 0 in a batch
    (no positives) leaves its average as it was.

    Args:
        terms: How many contrastive terms there are.
        decay: Of the averages, as 1 − max(1 − decay, 1/step): a plain average at first. 0.9: about ten steps,
            since a single batch's ratio jumps by as much as the batch's luck with positives.
    """

    norms: Tensor
    seen: Tensor

    def __init__(self, terms: int, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("norms", torch.zeros(1 + terms))
        self.register_buffer("seen", torch.zeros(1 + terms, dtype=torch.int64))

    def update(self, values: Mapping[str, Float[Tensor, ""]], features: Float[Tensor, "n ..."] | GradientEdge) -> None:
        """Measures the gradients of the task and of each term, in that order, at the features of this batch.

        Args:
            values: The terms.
            features: The features, or where they lie in the graph.

        Raises:
            RuntimeError: If a term does not depend on the features.
        """
        if isinstance(features, Tensor) and not features.requires_grad:
            raise RuntimeError(
                "features carry no gradient to balance: pass those on the way to the outputs, undetached"
            )
        found = torch.stack([self._norm(name, value, features) for name, value in values.items()]).to(self.norms)
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # one weight on every rank
            torch.distributed.all_reduce(found)
        self.seen += found > 0
        momentum = (1 / self.seen.clamp(min=1)).clamp(min=1 - self.decay) * (found > 0)
        self.norms.lerp_(found, momentum)

    @staticmethod
    def _norm(
        name: str, value: Float[Tensor, ""], features: Float[Tensor, "n ..."] | GradientEdge
    ) -> Float[Tensor, ""]:
        if not value.requires_grad:  # a loss that found nothing to compare
            return value.new_zeros(())
        lift = torch.full_like(value, _LIFT)
        at: Any = [features]  # typed without the edges that it takes
        (gradient,) = torch.autograd.grad(value, at, lift, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise RuntimeError(
                f"the term {name!r} does not depend on these features, so that its gradient there cannot be balanced: "
                "they must lie on the way to the outputs, in a part of the model that is not one torch.compile graph; "
                "otherwise leave out balance="
            )
        return gradient.float().norm() / _LIFT

    def forward(self) -> Float[Tensor, "k"]:
        """The scale of each contrastive term; 1 until its gradient and the task's have been seen."""
        scales = (self.norms[0] / self.norms[1:]).clamp(max=_LARGEST)
        return torch.where((self.norms[1:] > 0) & (self.norms[0] > 0), scales, 1.0)
