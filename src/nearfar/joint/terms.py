"""The terms of a joint objective: their names and their weights."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nearfar.joint.schedules import Schedule, as_schedule

LossLike = Callable[..., Tensor]


class _Function(nn.Module):
    """A function as a module, so that it can stand among losses that have parameters."""

    def __init__(self, function: LossLike) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.function(*args, **kwargs)


def named_losses(losses: LossLike | Sequence[LossLike] | Mapping[str, LossLike]) -> dict[str, nn.Module]:
    """Losses by name: as given, "contrastive" for one alone, by their class for a list."""
    if callable(losses):
        losses = {"contrastive": losses}
    elif isinstance(losses, str) or not isinstance(losses, Iterable):
        raise TypeError(f"the contrastive loss is a {type(losses).__name__}: wanted a loss, a list, or a dict of names")
    elif not isinstance(losses, Mapping):
        named: dict[str, LossLike] = {}
        for loss in losses:
            name = base = re.sub(r"_?loss$", "", getattr(loss, "__name__", type(loss).__name__).lower())
            while name in named:
                name = f"{base}_{len(named) + 1}"
            named[name] = loss
        losses = named
    if not losses:
        raise ValueError("no contrastive loss was given: pass one, a list, or a dict of names")
    for name, loss in losses.items():
        if name in ("task", "total") or not name or "." in name or "/" in name:
            raise ValueError(
                f"a contrastive loss is called {name!r}: choose a name other than task and total, without . and /"
            )
        if not callable(loss) or isinstance(loss, type):
            raise TypeError(
                f"the contrastive loss {name!r} is a {type(loss).__name__}: wanted a loss such as nf.SupConLoss()"
            )
    return {name: loss if isinstance(loss, nn.Module) else _Function(loss) for name, loss in losses.items()}


def read_weights(
    alpha: float | Schedule | None,
    weights: Mapping[str, float | Schedule] | Sequence[float | Schedule] | None,
    terms: list[str],
) -> tuple[Schedule | None, dict[str, Schedule]]:
    """Either the schedule of alpha, or one of each weight, the task's first."""
    if weights is None:
        return as_schedule("alpha", 0.5 if alpha is None else alpha, highest=1.0), {}
    if alpha is not None:
        raise ValueError("alpha and weights were both given: alpha=0.5 is weights={'task': 0.5, ...: 0.5}, so pass one")
    names = ["task", *terms]
    if not isinstance(weights, Mapping):
        if isinstance(weights, str) or not isinstance(weights, Sequence):
            raise TypeError(
                f"weights is a {type(weights).__name__}: wanted a dict of names, or a list, the task's first"
            )
        if len(weights) != len(names):
            raise ValueError(
                f"{len(weights)} weights were given for {len(names)} terms: wanted one each for {', '.join(names)}"
            )
        weights = dict(zip(names, weights))
    for name in weights:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"there is a weight for {name!r}, which is no term: {meant}The terms are {', '.join(names)}"
            )
    return None, {name: as_schedule(f"the weight of {name}", weights.get(name, 1.0)) for name in names}
