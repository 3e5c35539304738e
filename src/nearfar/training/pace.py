"""How fast each parameter learns: what is new, what was trained before, layer by layer; and what does not learn at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from nearfar.encoders.towers import Tower
from nearfar.training.config import Start, TrainConfig


def trained_before(embedder: Any) -> list[nn.Module]:
    """The parts of an embedder whose weights come from an earlier training."""
    return [embedder.get_submodule(name) for name in sorted(getattr(embedder, "pretrained", ()))]


def start_of(embedder: Any) -> Start:
    """What the weights of an embedder are; of several towers the one that wants the lowest rate counts."""
    towers = [part for part in trained_before(embedder) if isinstance(part, Tower)]
    return "scratch" if not towers else "transformer" if any(tower.attends for tower in towers) else "network"


def check_start(config: TrainConfig, start: Start) -> None:
    """Refuses options that speak of weights that were trained before, where there are none.

    Raises:
        ValueError: If one is given.
    """
    asked = {
        "freeze": config.freeze, "freeze_steps": config.freeze_steps is not None, "layer_decay": config.layer_decay is not None,
        "head_factor": config.head_factor not in (None, 1.0),
    }  # fmt: skip
    given = next((name for name, is_given in asked.items() if is_given), None)
    if given is not None and start == "scratch":
        raise ValueError(
            f"{given} is {getattr(config, given)}, and the encoder has no weights that were trained before: start from some "
            "(model=hf:NAME, timm:NAME with pretrained, or the folder of a run), or leave it out"
        )


def paces(embedder: Any, parameters: Iterator[nn.Parameter], config: TrainConfig) -> dict[int, float]:
    """How many times the learning rate each parameter has, by ``id``.

    What was trained before has 1 at its last layer and, with ``layer_decay``, less at each layer below; what is new has
    ``head_factor``.
    """
    factor = 1.0 if config.head_factor is None else config.head_factor
    found = {id(parameter): factor for parameter in parameters}
    for part in trained_before(embedder):
        decay = 1.0 if config.layer_decay is None else config.layer_decay
        found |= {key: decay**above for key, above in layers_above(part).items()}
    return found


def layers_above(network: nn.Module) -> dict[int, int]:
    """How many layers lie above each parameter of a network, by ``id``.

    Layers are the members with weights of ``nn.Sequential`` and ``nn.ModuleList``, in order, the outermost ones: layers of a
    transformer, residual blocks. What comes before the first, such as embeddings of tokens, lies below it; what comes after
    the last belongs to it.

    Example:
        >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> network = nn.Sequential(nn.Linear(3, 2), block(), block())
        >>> [layers_above(network)[id(p)] for p in network.parameters()]
        [2, 2, 1, 1, 0, 0]
    """
    depth: dict[int, int] = {}
    layer = 0

    def walk(module: nn.Module) -> None:
        nonlocal layer
        for parameter in module.parameters(recurse=False):
            depth.setdefault(id(parameter), layer)
        for child in module.children():
            if isinstance(module, nn.Sequential | nn.ModuleList) and not isinstance(
                child, nn.Sequential | nn.ModuleList
            ):
                layer += any(parameter.ndim > 1 for parameter in child.parameters())
                for parameter in child.parameters():
                    depth.setdefault(id(parameter), layer)
            else:
                walk(child)

    walk(network)
    return {key: layer - own for key, own in depth.items()}


class Freeze:
    """What was trained before, kept as it is: its weights, and its running statistics.

    Args:
        embedder: Whose parts.
        method: All that learns, with the embedder.
        config: ``freeze`` and ``freeze_steps``.

    Attributes:
        steps: For how many steps.

    Raises:
        ValueError: If nothing would learn meanwhile, or nothing of what is kept in the end.
    """

    def __init__(self, embedder: Any, method: nn.Module, config: TrainConfig) -> None:
        assert config.steps is not None
        self._parts, self._method = trained_before(embedder), method
        asked = config.steps if config.freeze and config.freeze_steps is None else int(config.freeze_steps or 0)
        self.steps = min(asked, config.steps)
        whole = self.steps == config.steps
        self._on: bool | None = None
        if not self.steps:
            return
        body = {id(parameter) for part in self._parts for parameter in part.parameters()}
        among = embedder if whole else method
        if not any(p.requires_grad and id(p) not in body for p in among.parameters()):
            told = "--freeze keeps the encoder as it is, and nothing of it is new" if whole else (
                "--freeze-steps keeps all that learns as it is"
            )  # fmt: skip
            raise ValueError(f"{told}: pass --dim, for a projection on top that learns, or leave it out")
        if whole:
            for part in self._parts:
                part.requires_grad_(False)

    def before(self, step: int) -> None:
        """Puts parts with running statistics into the mode that the step wants them in."""
        on = step <= self.steps
        if on == self._on or not self.steps:
            return
        self._on = on
        if not on:
            self._method.train()
            return
        for module in (module for part in self._parts for module in part.modules()):
            if next(module.buffers(recurse=False), None) is not None:  # dropout goes on
                module.training = False

    def hold(self, step: int) -> None:
        """Drops the gradients of a step that is not to be made. All ranks have made them: they must agree on which there are."""
        if step <= self.steps:
            for parameter in (parameter for part in self._parts for parameter in part.parameters()):
                parameter.grad = None
