"""One arm made flesh: the user's network with the arm's head, its loss, and who answers at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearfar.compare.arms import Arm
from nearfar.encoders.heads import CosineHead, FeatureNorm
from nearfar.encoders.precision import dtype_of
from nearfar.joint import Joint
from nearfar.joint.capture import Tap
from nearfar.names import unknown


class Learner(nn.Module):
    """A network under one arm.

    Args:
        arm: Which head, which losses, which read-out.
        network: The user's, not changed by anyone else; its last ``nn.Linear`` with ``num_classes`` outputs is the head
            that the arm may replace.
        num_classes: How many classes there are.
        task: The task loss, ``task(outputs, labels)``.
        contrastive: The contrastive loss, ``contrastive(z, labels=y)``.
        weight: Of the contrast, beside 1 for the task.
        features: The layer to contrast, by name; None: what enters the head.
        generator: Of a replaced head's weights.

    Raises:
        ValueError: If the network has no such linear layer, or no layer of that name.
    """

    def __init__(
        self,
        arm: Arm,
        network: nn.Module,
        num_classes: int,
        *,
        task: nn.Module,
        contrastive: nn.Module,
        weight: float = 1.0,
        features: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.rows = 0
        """Rows that went through the network in training mode: two views of a row are two."""
        self.network, self.dtype = network, dtype_of(network)
        network.register_forward_pre_hook(self._count)
        named = _named_layer(network, features)
        norm = _set_head(arm, network, num_classes, generator)
        self.readout = arm.readout
        self.criterion: nn.Module = task
        self._tap: Tap | None = None
        if arm.kind == "contrast" or arm.readout != "head":
            layer = norm if named is None else named
            assert layer is not None
            self.criterion = Joint(
                task if arm.task else _nothing,
                contrastive if arm.kind == "contrast" else _nothing,
                features=layer,
                weights={"task": 1.0, "contrastive": weight},
                normalize=None if named is None else "batchnorm",
                readout=None if arm.readout == "head" else "prototypes",
                num_classes=num_classes,
            )
            if arm.readout != "head":
                self._tap = Tap(layer)  # for the read-out, which is no business of the criterion's

    def _count(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training and inputs:
            self.rows += len(inputs[0])

    def loss(self, inputs: Float[Tensor, "n ..."], labels: Int[Tensor, "n"]) -> Float[Tensor, ""]:
        """Of one batch."""
        return self.criterion(self.network(inputs.to(self.dtype)), labels)

    @torch.no_grad()
    def accuracy(self, inputs: Float[Tensor, "n ..."], labels: Int[Tensor, "n"], chunk: int = 1024) -> float:
        """The part of the rows that is classified right, in evaluation mode; afterwards training goes on."""
        self.eval()
        right = sum(
            int((self._logits(rows).argmax(1) == wanted).sum())
            for rows, wanted in zip(inputs.split(chunk), labels.split(chunk))
        )
        self.train()
        return right / len(labels)

    def _logits(self, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n c"]:
        outputs = self.network(inputs.to(self.dtype))
        if self._tap is None:
            return outputs
        assert isinstance(self.criterion, Joint)
        captured = self._tap.take(outputs)
        assert captured is not None
        return self.criterion.logits(captured.features, outputs if self.readout == "mixed" else None)


def check_network(network: object, inputs: Float[Tensor, "n ..."], class_names: Sequence[str], name: str) -> None:
    """Refuses what is no classifier of these inputs.

    Args:
        network: What the factory returned.
        inputs: Some rows.
        class_names: The names of the classes.
        name: What the network is called.

    Raises:
        TypeError: If the factory does not return a module.
        ValueError: If its outputs are not ``(n, num_classes)``.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"{name} returned a {type(network).__name__}: wanted a torch.nn.Module")
    outputs = outputs_of(network, inputs)
    wanted = (len(inputs), len(class_names))
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        shown = ", ".join(class_names[:5]) + (", …" if len(class_names) > 5 else "")
        raise ValueError(
            f"{name} maps inputs {tuple(inputs.shape)} to {given}: wanted logits {wanted}, one for each of the "
            f"{len(class_names)} classes in the data ({shown})"
        )


@torch.no_grad()
def outputs_of(network: nn.Module, inputs: Float[Tensor, "n ..."]) -> Any:
    """What a network makes of some rows, in evaluation mode."""
    return network.eval()(inputs.to(dtype_of(network)))


def _nothing(*args: Tensor, labels: Tensor | None = None) -> Float[Tensor, ""]:
    """The loss of a term that an arm does without."""
    return args[0].new_zeros(())


def _named_layer(network: nn.Module, name: str | None) -> nn.Module | None:
    layers = dict(network.named_modules())
    if name is not None and name not in layers:
        raise ValueError(unknown("layer", name, [known for known in layers if known]))
    return None if name is None else layers[name]


def _set_head(arm: Arm, network: nn.Module, num_classes: int, generator: torch.Generator | None) -> nn.Module | None:
    """Replaces the last linear layer as the arm wants it; returns the layer that gives the normalised features."""
    if arm.head == "linear":
        return None
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == num_classes]
    if not names or not names[-1]:
        raise ValueError(
            f"the network has no linear layer with {num_classes} outputs inside, which the arms with another head "
            "replace: end it in a torch.nn.Linear, or compare its own loop with nf.Joint"
        )
    linear = network.get_submodule(names[-1])
    assert isinstance(linear, nn.Linear)
    norm = FeatureNorm(linear.in_features)
    head: nn.Module = nn.Sequential(norm, linear)
    if arm.head == "cosine":
        head = CosineHead(linear.in_features, num_classes, generator=generator)
        norm = head.norm
    network.set_submodule(names[-1], head)
    return norm
