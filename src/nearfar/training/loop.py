"""The training loop: steps, a clock that runs only while it trains, and a pause to look every few steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from nearfar.shards import shard_of


@dataclass(frozen=True)
class Pause:
    """Where training stands when the caller gets to look at the model."""

    step: int
    """Optimiser steps so far."""
    seconds: float
    """Time spent training so far; what the caller does in a pause is left out."""
    loss: float
    """Of the last step."""


class Diverged(ArithmeticError):
    """The loss or the weights are no longer finite: nothing can come of this run. Says when: ``step``, ``seconds``."""

    def __init__(self, what: str, step: int, seconds: float) -> None:
        super().__init__(f"{what} at step {step}: lower the learning rate")
        self.step, self.seconds = step, seconds


def shuffled_batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Int64[Tensor, "batch"]]:
    """Row indices of batches of one size for ever, each pass over the rows in an order of its own.

    What is left of a pass is too short for a batch and is dropped; the next order leaves out others.

    Args:
        rows: How many there are.
        batch_size: At most ``rows``.
        generator: Draws the orders.
    """
    if not 0 < batch_size <= rows:
        raise ValueError(f"batch size {batch_size} for {rows} rows: wanted 1 to {rows}")
    while True:
        order = torch.randperm(rows, generator=generator)
        yield from order[: rows - rows % batch_size].split(batch_size)


def fit(
    loss: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    *,
    steps: int,
    every: int | Callable[[int], bool],
    start: int = 0,
    seconds: float = 0.0,
    before: Callable[[int], None] | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
    update: Callable[[], None] | None = None,
) -> Iterator[Pause]:
    """Trains, and yields every few steps and after the last one.

    Args:
        loss: Of a batch, as ``batches`` gives it.
        optimizer: Of the parameters to train.
        batches: Those of the steps to come, at least as many.
        steps: Optimiser steps in all.
        every: Steps between two pauses; or says of a step whether a pause follows it.
        start: Steps made already, by an earlier process.
        seconds: Time that they took.
        before: Called with the number of the step that begins.
        backward: How gradients are made of the loss.
        update: How a step is made of the gradients; by default ``optimizer.step``.

    Yields:
        A ``Pause``. The clock stands until the next one is asked for; an accelerator has then finished its work.

    Raises:
        Diverged: If the loss is not finite, or the loss refuses its inputs because the weights are not.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor(3.0))
        >>> sgd = torch.optim.SGD([weight], lr=0.1)
        >>> [p.step for p in fit(lambda batch: weight**2, sgd, [torch.zeros(1)] * 5, steps=5, every=2)]
        [2, 4, 5]
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    pause = every if callable(every) else lambda step: step % every == 0
    begun = time.perf_counter()
    for step, batch in zip(range(start + 1, steps + 1), batches):
        if before is not None:
            before(step)
        optimizer.zero_grad()
        try:
            value = loss(batch)
        except ValueError as error:  # losses refuse NaN embeddings; if the weights are to blame, say so
            # of sharded weights this rank's part: others may not have come here, and would be waited for
            if all(bool((shard_of(p).abs() < torch.finfo(p.dtype).max ** 0.5).all()) for p in parameters):
                raise  # else what they multiply overflows
            clock = seconds + time.perf_counter() - begun
            raise Diverged("the weights are no longer finite", step, clock) from error
        backward(value)
        (update or optimizer.step)()
        if not pause(step) and step < steps:
            continue
        last = value.item()  # waits for the device too
        seconds += time.perf_counter() - begun
        if not math.isfinite(last):
            raise Diverged(f"the loss is {last}", step, seconds)
        yield Pause(step, seconds, last)
        begun = time.perf_counter()
