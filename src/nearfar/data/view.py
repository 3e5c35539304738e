"""What a view is: a module that draws all its random numbers first, as a table with a row an item."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class View(nn.Module):
    """A random view of every row of a batch: ``view(batch)``.

    ``generator=`` gives the random numbers; by default torch's own. ``rows=(start, total)`` says that the batch is a
    piece of a larger one, whose numbers are all drawn: the pieces then are the views of the whole.
    """

    def forward(
        self, batch: Any, *, generator: torch.Generator | None = None, rows: tuple[int, int] | None = None
    ) -> Any:
        """One view of each row."""
        raise NotImplementedError

    def describe(self) -> str:
        """What is done, in words."""
        raise NotImplementedError

    @staticmethod
    def draw(
        like: Tensor, columns: int, generator: torch.Generator | None, rows: tuple[int, int] | None
    ) -> Float[Tensor, "b columns"]:
        """Random numbers in [0, 1) for the rows of a batch, on its device; drawn on the generator's."""
        start, total = rows or (0, len(like))
        if not 0 <= start <= start + len(like) <= total:
            raise ValueError(f"rows={rows} for a batch of {len(like)}: wanted (start, total) that it fits into")
        device = generator.device if generator is not None else "cpu"
        table = torch.rand(total, columns, generator=generator, device=device, dtype=torch.float32)
        return table[start : start + len(like)].to(like.device, non_blocking=True)


class Plain(View):
    """No change but the standardising of images."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(
        self, batch: Any, *, generator: torch.Generator | None = None, rows: tuple[int, int] | None = None
    ) -> Any:
        """The batch; images as floats."""
        del generator, rows
        return batch if self.mean is None or self.std is None else (as_floats(batch) - self.mean) / self.std

    def describe(self) -> str:
        """What is done, in words."""
        return "as it is"


class OwnView(View):
    """A module of the user's, such as a kornia container, which takes images in [0, 1] and draws from torch's generator."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, name: str, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(
        self, batch: Tensor, *, generator: torch.Generator | None = None, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """One view of each image. Pieces of a batch (``rows``) each draw their own numbers."""
        images = as_floats(batch)
        if generator is None:
            return (self.module(images) - self.mean) / self.std
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device)) + (rows or (0, 0))[0]
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(seed)
            return (self.module(images) - self.mean) / self.std

    def describe(self) -> str:
        """What is done, in words."""
        return self.name


def as_floats(images: Tensor) -> Float[Tensor, "b c h w"]:
    """Bytes as numbers in [0, 1]; floats as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
