"""Views of time series, vectors and texts."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.data.view import View
from nearfar.data.warps import resampling

# Columns of random numbers that one row of tokens takes; longer texts take another such block.
TOKENS = 512


class SeriesView(View):
    """A crop of a series ``(b, c, t)`` stretched to its length, scaled, with noise.

    Args:
        std: Standard deviation of each channel: what noise and scale are parts of.
        least: Shortest part that is kept.
        noise: Noise, in standard deviations.
        scale: Factors are uniform in ``[1 − scale, 1 + scale]``.
    """

    std: Tensor

    def __init__(self, std: Tensor, least: float = 0.5, noise: float = 0.05, scale: float = 0.2) -> None:
        super().__init__()
        self.register_buffer("std", std.view(-1, 1), persistent=False)
        self.least, self.noise, self.scale = least, noise, scale

    def forward(
        self,
        batch: Float[Tensor, "b c t"],
        *,
        generator: torch.Generator | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b c t"]:
        """One view of each series."""
        channels, steps = batch.shape[1:]
        uniform = self.draw(batch, 2 + channels + channels * steps, generator, rows).to(batch.dtype)
        length = self.least + (1 - self.least) * uniform[:, 0]
        part = resampling(uniform[:, 1] * (1 - length), length, steps, steps)
        factor = 1 + self.scale * (2 * uniform[:, 2 : 2 + channels, None] - 1)
        return torch.bmm(batch, part.mT) * factor + self.noise * self.std * normal(uniform[:, 2 + channels :]).view_as(
            batch
        )

    def describe(self) -> str:
        """What is done, in words."""
        return f"a stretched crop of {self.least:.0%} or more; scale ±{self.scale:g}; noise of {self.noise:g} standard deviations"


class VectorView(View):
    """Some features of a vector ``(b, d)`` hidden, the others with noise.

    Args:
        mean: Of each feature: what a hidden one becomes.
        std: Standard deviation of each feature.
        hidden: Probability that a feature is hidden.
        noise: Noise, in standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, hidden: float = 0.2, noise: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("mean", mean.flatten(), persistent=False)
        self.register_buffer("std", std.flatten(), persistent=False)
        self.hidden, self.noise = hidden, noise

    def forward(
        self,
        batch: Float[Tensor, "b d"],
        *,
        generator: torch.Generator | None = None,
        rows: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b d"]:
        """One view of each vector."""
        hide, noise = self.draw(batch, 2 * batch.shape[1], generator, rows).to(batch.dtype).chunk(2, 1)
        return torch.where(
            hide < self.hidden, self.mean.expand_as(batch), batch + self.noise * self.std * normal(noise)
        )

    def describe(self) -> str:
        """What is done, in words."""
        return f"features hidden ({self.hidden:.0%}); noise of {self.noise:g} standard deviations"


class TokenView(View):
    """Some tokens of a text hidden from attention: ``{"ids", "mask"}`` or a tokenizer's ``{"input_ids", "attention_mask"}``.

    The first token, which may stand for the whole, and at least it, is always seen.
    """

    def __init__(self, hidden: float = 0.1) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(
        self,
        batch: dict[str, Tensor],
        *,
        generator: torch.Generator | None = None,
        rows: tuple[int, int] | None = None,
    ) -> dict[str, Tensor]:
        """One view of each text; the ids are left as they are."""
        name = next(name for name in ("mask", "attention_mask") if name in batch)
        mask = batch[name]
        # As many numbers whatever the longest text of this rank is: the others must draw the same.
        blocks = [self.draw(mask, TOKENS, generator, rows) for _ in range(0, mask.shape[1], TOKENS)]
        seen = torch.cat(blocks, 1)[:, : mask.shape[1]] >= self.hidden
        seen[:, 0] = True
        return {**batch, name: mask * seen.to(mask.dtype)}

    def describe(self) -> str:
        """What is done, in words."""
        return f"tokens hidden ({self.hidden:.0%})"


def normal(uniform: Tensor) -> Tensor:
    """Normally distributed numbers of uniform ones."""
    return torch.erfinv((2 * uniform - 1).clamp(-1 + 1e-6, 1 - 1e-6)) * 2**0.5


def corrupted(batch: Tensor, rows: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """SCARF's view: a random share of each row's features is drawn from the feature's values in all rows."""
    count = max(1, round(share * batch.shape[1]))
    chosen = (
        torch.rand(batch.shape, generator=generator, dtype=torch.float32).argsort(1) < count
    )  # as many in every row
    source = torch.randint(len(rows), batch.shape, generator=generator)
    columns = torch.arange(batch.shape[1])
    drawn = rows[source.to(rows.device), columns.to(rows.device)]
    return torch.where(chosen.to(batch.device), drawn, batch)
