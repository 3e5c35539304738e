"""What a comparison found: its numbers with intervals, its words, and the files it is written to."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nearfar.compare.record import RunFolder
from nearfar.compare.statistics import Estimate
from nearfar.compare.sweep import Choice
from nearfar.names import unknown
from nearfar.report.files import write_json, write_text

Median = tuple[float, float]
"""Between these; equal if no censored run hides it, the upper one infinite if it was not reached."""


@dataclass(frozen=True)
class Target:
    """An accuracy to reach."""

    accuracy: float
    name: str


@dataclass(frozen=True)
class Reach:
    """How one arm came to one target."""

    reached: int
    """Seeds that reached and held it."""
    steps: Median
    seconds: Median
    """Of training; evaluation is left out."""
    rows: Median
    """Through the network; two views of a row are two."""
    gain_steps: Estimate | None
    """How many times sooner than the baseline, in steps; None for the baseline itself."""
    gain_seconds: Estimate | None
    own_steps: Estimate | None
    """How many times sooner than the best arm without contrast: what the contrast itself adds. None for such arms."""
    own_seconds: Estimate | None


@dataclass(frozen=True)
class ArmResult:
    """One arm."""

    name: str
    title: str
    kind: str
    choice: Choice
    seeds: int
    diverged: int
    """Seeds whose weights were no longer finite; they count as never reaching any further target."""
    final: Estimate
    """Mean test accuracy after the last step."""
    final_gain: Estimate | None
    """Mean difference from the baseline's, paired by seed."""
    seconds_per_step: float
    rows_per_step: float
    curve: dict[str, list[float]]
    """``steps``, ``seconds``, ``rows``; ``mean``, ``low`` and ``high`` of the test accuracy over seeds."""
    reach: tuple[Reach, ...]
    """One a target."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found. Printing it shows the table and the verdict."""

    about: dict[str, Any]
    """``config``, ``data``, ``model``, ``losses`` and ``environment``, as in ``config.json``."""
    complete: bool
    """Whether every run is finished."""
    targets: tuple[Target, ...]
    headline: int
    """Which target the verdict speaks of; fixed before anything is measured."""
    arms: tuple[ArmResult, ...]
    contrast: str | None
    """The arm with contrast that the verdict speaks of: best in the sweep, so that the test rows did not choose it."""
    rivals: tuple[str, ...]
    """The best arm without contrast for each target, the baseline among them: soonest on the test rows, so that the
    choice can only make it harder to beat."""
    folder: Path | None = None

    def __getitem__(self, name: str) -> ArmResult:
        """A measured arm by its name."""
        arms = {arm.name: arm for arm in self.arms}
        if name not in arms:
            raise KeyError(unknown("measured arm", name, arms))
        return arms[name]

    @property
    def verdict(self) -> tuple[str, ...]:
        """The findings in plain words, the first sentence the gist of all."""
        from nearfar.compare.verdict import verdict

        return verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain data; None stands for an open end."""
        plain = _finite({k: v for k, v in asdict(self).items() if k not in ("about", "folder")})
        return {"format": 1, **self.about, **plain, "verdict": list(self.verdict)}

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Reads a run folder, finished or not.

        Raises:
            ValueError: If it holds no comparison, or a file in it cannot be read.
        """
        from nearfar.compare.summary import summarize

        run_folder = RunFolder.open(folder)
        return summarize(run_folder.config, run_folder.finished(), run_folder.path)

    def save(self, folder: str | Path | None = None, report: bool = True) -> Path:
        """Writes ``result.json`` and ``report.html``, each whole or not at all.

        Args:
            folder: By default the run folder.
            report: Whether to write the page too.

        Returns:
            The folder.
        """
        if folder is None and self.folder is None:
            raise ValueError("there is no run folder: pass save() the folder to write to")
        path = Path(folder or self.folder or ".")
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "result.json", self.to_dict())
        if report:
            from nearfar.report.page import render_page

            write_text(path / "report.html", render_page(self.to_dict()))
        return path

    def __rich__(self) -> Any:
        """What rich prints."""
        from nearfar.compare.table import render

        return render(self)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=110, color_system=None)
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=110, record=True)
        console.print(self)
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _finite(value: Any) -> Any:
    """The same data with None for what is infinite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
