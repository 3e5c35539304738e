"""How far a training run is: a bar on a terminal, a line now and then elsewhere, nothing where nobody asked."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

SECONDS = 15.0
"""Between two lines where there is no terminal."""


class Progress:
    """Loss, rows a second and time left.

    Args:
        show: Whether to say anything.
        steps: Optimiser steps in all.
        start: Steps made already.
        rows: Of a step, over all ranks.
    """

    def __init__(self, show: bool, steps: int, start: int, rows: int) -> None:
        self._show, self._steps, self._rows = show, steps, rows
        self._bar: Any = None
        self._begun = self._said = time.perf_counter()
        self._start = start
        if show and sys.stderr.isatty():
            from nearfar.data.labelled import require

            rich = require("rich.progress", "the progress of a run (show=True)")
            from rich.console import Console

            self._bar = rich.Progress(
                rich.TextColumn("step"), rich.MofNCompleteColumn(), rich.BarColumn(),
                rich.TextColumn("loss {task.fields[loss]} · {task.fields[rate]} rows/s"), rich.TimeRemainingColumn(),
                console=Console(stderr=True), transient=True, speed_estimate_period=60,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=steps, completed=start, loss="–", rate="–")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, loss: float) -> None:
        """This step was made."""
        if not self._show:
            return
        now = time.perf_counter()
        pace = (step - self._start) / max(now - self._begun, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{loss:.3f}", rate=f"{pace * self._rows:,.0f}")
        elif now - self._said >= SECONDS:
            self._said = now
            left = (self._steps - step) / pace
            self.say(
                f"step {step} of {self._steps} · loss {loss:.3f} · {pace * self._rows:,.0f} rows/s · {duration(left)} left"
            )

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True, markup=False)
        elif self._show:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """In words.

    Example:
        >>> duration(42.0), duration(200.0), duration(7300.0)
        ('42 s', '3 min 20 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
