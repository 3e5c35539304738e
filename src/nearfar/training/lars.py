"""LARS: a learning rate a layer, for very large batches."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from nearfar.shards import whole


class LARS(Optimizer):
    """SGD with momentum whose rate is scaled, layer by layer, by how large the weights are beside their gradient.

    ``g ← ∇w + β·w``; ``λ = η·‖w‖ / ‖g‖``; ``v ← m·v + γ·λ·g``; ``w ← w − v`` (You et al. 2017, arXiv:1708.03888, algorithm 1,
    with the norm of the whole gradient in place of ``‖∇w‖ + β‖w‖``, as in the reference code of SimCLR). Groups marked
    ``plain`` (biases, norms) and layers whose weights or gradients are 0 take ``λ = 1``.

    Args:
        params: Parameters, or groups of them.
        lr: γ.
        momentum: m.
        weight_decay: β.
        trust: η, 0.001 in the paper.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> lars = LARS([w], lr=1.0, momentum=0.0, trust=0.1)
        >>> (w * torch.tensor([[0.0, 2.0]])).sum().backward()
        >>> _ = lars.step()  # λ = 0.1 · 5/2: the step has a tenth of the weights' length
        >>> w.data
        tensor([[3.0000, 3.5000]])
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("trust", trust)):
            if value < 0:
                raise ValueError(f"{name} is {value}: wanted 0 or more")
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "plain": False}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step.

        Args:
            closure: Computes the loss anew, and its gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                g = w.grad.add(w, alpha=group["weight_decay"])
                if not group["plain"]:
                    weight, gradient = whole(w.norm()), whole(g.norm())  # of all ranks' parts
                    scale = group["trust"] * weight / gradient
                    g = g * torch.where((weight > 0) & (gradient > 0), scale, 1.0)
                state = self.state[w]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(w)
                state["velocity"].mul_(group["momentum"]).add_(g, alpha=group["lr"])
                w.sub_(state["velocity"])
        return loss
