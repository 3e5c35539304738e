"""How far a comparison is, on the terminal; nothing at all where nobody asked for it."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from nearfar.compare.arms import ARMS
from nearfar.compare.record import Run
from nearfar.compare.sweep import Choice


class Progress:
    """One bar over all runs, and a line an arm once its rate is chosen. On a terminal, needs rich.

    Args:
        show: Whether to say anything.
    """

    def __init__(self, show: bool) -> None:
        self._bar: Any = None
        if show:
            from nearfar.data.labelled import require

            columns = require("rich.progress", "the progress of a comparison (show=True)")
            self._bar = columns.Progress(
                columns.TextColumn("{task.description}"), columns.BarColumn(), columns.MofNCompleteColumn(),
                columns.TimeElapsedColumn(), columns.TimeRemainingColumn(), transient=True,
                speed_estimate_period=120,
            )  # fmt: skip
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, runs: int, done: int) -> None:
        """So many runs there are, and so many of them done already."""
        if self._bar is not None:
            self._task = self._bar.add_task("starting", total=runs, completed=done)

    def run(self, run: Run) -> None:
        """This run begins."""
        if self._bar is not None:
            if run.stage == "sweep":
                what = f"choosing a rate · {run.arm} · {run.rate:g}"
            else:
                what = f"measuring · {run.arm} · seed {run.seed}"
            self._bar.update(self._task, description=what)

    def advance(self) -> None:
        """A run is finished."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def chosen(self, name: str, choice: Choice) -> None:
        """The sweep of an arm is over."""
        if self._bar is not None:
            weight = f", weight {choice.weight:g}" if ARMS[name].weights else ""
            self._bar.console.print(
                f"{name}: learning rate {choice.rate:g}{weight} "
                f"(mean validation accuracy {100 * choice.score:.1f}%, best of {len(choice.trials)} trials)",
                highlight=False,
            )
