"""What every method is: the sides of a batch that are embedded, and the terms of a loss on their embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from nearfar.data.corpus import Column
from nearfar.encoders.heads import ProjectionHead
from nearfar.methods.config import MethodConfig
from nearfar.methods.table import METHODS

Side = tuple[str, Any]
"""A kind, and what the tower of that kind takes."""
View = Callable[[Any, int], Any]
"""``view(inputs, which)``: one random view of every input; ``which`` numbers the views of a batch."""


@dataclass(frozen=True)
class Batch:
    """Rows on the device, ready for the towers."""

    rows: Int64[Tensor, "b"]
    """Which: positions in the training part."""
    columns: dict[str, Any]
    """Column name to what its tower takes: images still as read, texts as tokens."""
    labels: Int64[Tensor, "b"] | None = None
    groups: Int64[Tensor, "b"] | None = None
    bad: tuple[str, ...] = ()
    """Rows that could not be read and were left out: path or line, and why."""
    similar: Float32[Tensor, "b"] | None = None
    """How alike the two sides of a row are, 0 to 1; None: every row's belong together."""
    same: Mapping[str, Int64[Tensor, "b"]] = field(default_factory=dict)
    """Numbers of values, by column: equal where the values are. Only of columns with values that come more than once."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> Int64[Tensor, "b"] | None:
        """Who is the same thing: an id's rows; a row without one is a thing of its own. None: all rows are different.

        Ids leave room for others: they are 0 or 1 modulo 3.
        """
        if self.groups is None:
            return None
        return torch.where(self.groups < 0, 3 * self.rows + 1, 3 * self.groups)


@dataclass(frozen=True)
class Setting:
    """What a method is built for."""

    name: str
    """Its row of ``METHODS``."""
    columns: tuple[Column, ...]
    config: MethodConfig
    classes: int = 0
    view: View | None = None
    """Of the anchor; None: inputs go in as they are."""
    gather: bool = False
    """Whether there are other ranks, whose rows the loss sees too."""
    ids: Int64[Tensor, "classes"] | None = None
    """The class ids, ascending; None: 0 and on."""

    @property
    def temperature(self) -> dict[str, Any]:
        """Arguments of a loss with a temperature."""
        row, asked = METHODS[self.name], self.config
        start = row.temperature if asked.temperature is None else asked.temperature
        learn = row.learnable if asked.learnable_temperature is None else asked.learnable_temperature
        return {"temperature": start, "learnable": learn}

    @property
    def role(self) -> dict[str, list[Column]]:
        """The columns by their part in a pair."""
        roles: dict[str, list[Column]] = {"anchor": [], "positive": [], "negative": []}
        for column in self.columns:
            roles[column.role].append(column)
        return roles


class Network(nn.Module):
    """What learns by gradients: the embedder, and a head that is thrown away. Across ranks, this is what is wrapped.

    Args:
        embedder: ``embedder(kind, inputs)`` gives ``(b, dim)``.
        head: Of the embeddings.
    """

    def __init__(self, embedder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.embedder, self.head = embedder, head

    def forward(self, sides: Sequence[Side]) -> list[Any]:
        """What the head makes of every side's embeddings."""
        return [self.head(self.embedder(kind, inputs)) for kind, inputs in sides]


class Method(nn.Module):
    """A method: ``sides`` of a batch go through ``network``, ``terms`` are the loss on what comes out.

    The trainer never asks which method it is. ``forward`` does it all in one, for loops of one's own.

    Args:
        embedder: What is trained, and kept.
        dim: Width of its embeddings.
        setting: What it is built for.
    """

    network: Network
    weights: dict[str, float]
    """Of the terms in the loss; 1 where a name is missing."""

    def __init__(self, embedder: nn.Module, dim: int, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.weights = {}
        self.network = Network(embedder, self.head(dim))
        self.autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        """Around what a method runs besides its network: the trainer's precision."""

    @property
    def embedder(self) -> nn.Module:
        """What is kept."""
        return self.network.embedder

    @property
    def width(self) -> int:
        """Of the projection; 0: there is none."""
        asked = self.setting.config.projection
        return METHODS[self.setting.name].projection if asked is None else asked

    def head(self, dim: int) -> nn.Module:
        """What is thrown away after training."""
        return ProjectionHead(dim, self.width) if self.width else nn.Identity()

    def sides(self, batch: Batch) -> list[Side]:
        """What is embedded, with gradients."""
        raise NotImplementedError

    def terms(self, outputs: Sequence[Any], batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of the loss, by name; ``outputs`` has one of the network's a side."""
        raise NotImplementedError

    def total(self, terms: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Their weighted sum."""
        return torch.stack([self.weights.get(name, 1.0) * term for name, term in terms.items()]).sum()

    def forward(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """The terms of a batch."""
        return self.terms(self.network(self.sides(batch)), batch)

    def after_step(self, step: int) -> None:
        """Called once the optimiser has made its step."""

    def chance(self, rows: int) -> float | None:
        """The loss of a batch of so many rows (of all ranks) when all embeddings are the same; None: not known."""
        return None

    @property
    def temperature(self) -> float | None:
        """In force, where there is one."""
        value = getattr(getattr(self, "loss", None), "temperature", None)
        return float(value.detach()) if isinstance(value, Tensor) else value

    # ---- sides that several methods have -----------------------------------------------------------------------------

    @property
    def draws(self) -> bool:
        """Whether two views of an input differ."""
        return self.setting.view is not None or self.setting.columns[0].kind == "text"

    def views(self, batch: Batch, count: int) -> list[Side]:
        """Views of the anchor; a text goes in as often as it is, and dropout tells its views apart."""
        anchor, view = self.setting.columns[0], self.setting.view
        inputs = batch.columns[anchor.name]
        return [(anchor.kind, inputs if view is None else view(inputs, which)) for which in range(count)]


def on(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        return {name: move(part) for name, part in value.items()} if isinstance(value, dict) else value

    names = ("rows", "columns", "labels", "groups", "similar", "same")
    return replace(batch, **{name: move(getattr(batch, name)) for name in names})
