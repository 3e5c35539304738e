"""What a method is told: its part of a training run's configuration. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodConfig:
    """What is contrasted with what, and how."""

    method: str | None = None
    """What is asked of the embeddings (see: nearfar list methods); by default chosen by what the data hold."""
    temperature: float | None = None
    """Temperature of the scores; by default the method's own."""
    learnable_temperature: bool | None = None
    """Whether the temperature is learned; by default as in the method's paper."""
    weight: float = 1.0
    """Weight of the contrast beside the cross-entropy (joint)."""
    projection: int | None = None
    """Width of the head that is thrown away after training; 0: none; by default the method's own."""
    margin: float | None = None
    """Margin of a distance (siamese, triplet); by default 1.0 and 0.2 between normalised embeddings."""
    queue: int = 4096
    """Embeddings of past batches to contrast with (moco). The paper has 65,536, for a million images."""
    momentum: float = 0.99
    """How slowly the key encoder follows (moco). The paper has 0.999, for hundreds of thousands of steps."""
