"""Heads on an encoder's features: the cosine classifier with its normalisation, and the projection for contrast."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.lengths import unit_rows


class SizedLater(nn.Module):
    """A module with buffers that are empty until the first call shows their size; a state dict brings its own."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is not None and buffer.numel() == 0:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FeatureNorm(SizedLater):
    """BatchNorm without scale and shift whose running statistics are usable from the first step.

    ``(f − mean) / √(var + eps)``, batch statistics while training, running ones otherwise (Ioffe & Szegedy 2015,
    arXiv:1502.03167, algorithms 1 and 2). The running ones move with momentum max(0.1, 1/step): a plain average of
    the first ten batches, then the usual one. With the usual momentum from the start they would still hold 35% of
    their arbitrary initial values after ten steps, just where convergence is being compared.

    No gamma and beta: what follows takes cosines, to which a classifier's own weights can give any scale.

    Args:
        features: Width ``d``; ``None``: found at the first call.
        eps: Added to the variance.

    Shape:
        ``(n, d)`` to ``(n, d)``. One row has no variance: it is normalised by the running statistics.

    Example:
        >>> norm = FeatureNorm(3)
        >>> norm(torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 7.0]])).round(decimals=2)
        tensor([[-1.,  0., -1.],
                [ 1.,  0.,  1.]])
        >>> norm.running_mean
        tensor([1., 1., 6.])
    """

    running_mean: Tensor
    running_var: Tensor
    steps: Tensor

    def __init__(self, features: int | None, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(features or 0))
        self.register_buffer("running_var", torch.ones(features or 0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Normalises each feature over the batch."""
        if self.running_mean.numel() == 0:
            self.running_mean = features.new_zeros(features.shape[1], dtype=torch.float32)
            self.running_var = torch.ones_like(self.running_mean)
        if not self.training or len(features) < 2:
            normalised = (features - self.running_mean) * (self.running_var + self.eps).rsqrt()
            return normalised.to(features.dtype)
        with torch.no_grad():  # on tensors, not on a Python number: nothing waits for the device
            self.steps += 1
            momentum = (1 / self.steps).clamp(min=0.1)
            var, mean = torch.var_mean(features.to(self.running_mean.dtype), 0)
            self.running_mean += momentum * (mean - self.running_mean)
            self.running_var += momentum * (var - self.running_var)
        return F.batch_norm(features, None, None, training=True, eps=self.eps)


class CosineHead(nn.Module):
    """Classifier by cosine: ``scale · cos(f, W_c)``, with ``f`` the normalised features.

    A drop-in for a model's last ``nn.Linear``, and the control that a study of contrast needs: much of what seems to be
    the contrast's gain is this head's. Contrast the same features by ``nf.Joint(..., features=head.norm)``.

    Args:
        in_features: Width ``d`` of the features.
        num_classes: Number of classes.
        scale: The logits' range is [−scale, scale]; fixed, because a learned one starts low and costs steps. 10 lets
            ten classes reach a probability above 0.999.
        normalize: ``"batchnorm"`` (``FeatureNorm``) or ``None``: features as they come.
        generator: Of the initial class weights; they have a norm of about 1.

    Shape:
        ``(n, d)``, or ``(n, d, 1, 1)`` as pooling layers give it, to logits ``(n, num_classes)``.

    Raises:
        ValueError: If ``normalize`` is unknown or the scale is not positive.

    Reference: Gidaris & Komodakis 2018, arXiv:1804.09458, eq. 5 (with a fixed scale).

    Example:
        >>> head = CosineHead(64, 10)
        >>> head(torch.randn(8, 64)).shape
        torch.Size([8, 10])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        scale: float = 10.0,
        normalize: Literal["batchnorm"] | None = "batchnorm",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if normalize not in ("batchnorm", None):
            raise ValueError(f"normalize={normalize!r} is not known: pass 'batchnorm' or None")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is {scale}: wanted a positive number, 10 by default")
        self.scale = scale
        self.norm = FeatureNorm(in_features) if normalize else nn.Identity()
        self.weight = nn.Parameter(torch.randn(num_classes, in_features, generator=generator) / in_features**0.5)

    def forward(self, features: Float[Tensor, "n d ..."]) -> Float[Tensor, "n c"]:
        """The logits of each row."""
        return cosine_logits(self.norm(features.flatten(1)), self.weight, self.scale)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        classes, width = self.weight.shape
        return f"in_features={width}, num_classes={classes}, scale={self.scale}"


class ProjectionHead(nn.Sequential):
    """Two layers between the features and the contrast, thrown away after training.

    ``W₂·relu(W₁·f)`` (Chen et al. 2020, arXiv:2002.05709, section 4.2): the contrast may then forget what the task
    needs, in the projection and not in the features.

    Args:
        in_features: Width ``d`` of the features; ``None``: found at the first call (the parameters are there, without
            a shape, from the start, so an optimiser may be built before).
        out_features: Width of the projection; 128 is SimCLR's and SupCon's.
        hidden: Width in between; by default ``in_features``, or ``out_features`` if that is not known.

    Example:
        >>> ProjectionHead(512)(torch.randn(4, 512)).shape
        torch.Size([4, 128])
    """

    def __init__(self, in_features: int | None, out_features: int = 128, hidden: int | None = None) -> None:
        hidden = hidden or in_features or out_features
        first = nn.LazyLinear(hidden) if in_features is None else nn.Linear(in_features, hidden)
        super().__init__(first, nn.ReLU(), nn.Linear(hidden, out_features))

    def forward(self, input: Float[Tensor, "n d"]) -> Float[Tensor, "n out"]:
        """The projection of each row of features.

        Those of another type are cast to the head's. A head that finds its width at the first call takes their type then,
        float32 or float64.
        """
        first = self[0]
        if isinstance(first, nn.LazyLinear) and input.dtype in (torch.float32, torch.float64):
            self.to(input.dtype)
        return super().forward(input.to(first.weight.dtype))  # pyright: ignore[reportArgumentType, reportCallIssue]


def cosine_logits(
    features: Float[Tensor, "n d"], classes: Float[Tensor, "c d"], scale: float = 10.0
) -> Float[Tensor, "n c"]:
    """``scale · cos(f_i, w_c)``; a zero row has cosine 0 with everything.

    Example:
        >>> cosine_logits(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        tensor([[10.,  0.,  0.]])
    """
    return scale * unit_rows(features) @ unit_rows(classes).T
