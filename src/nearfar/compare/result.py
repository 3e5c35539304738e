"""What a comparison found: from finished runs to numbers, with intervals, and their words."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nearfar.compare.arms import ARMS, BASELINE
from nearfar.compare.config import FRACTIONS, SWEEP_SEED, CompareConfig
from nearfar.compare.names import unknown
from nearfar.compare.record import Curve, Run, RunFolder
from nearfar.compare.statistics import Estimate, Times, censored_median, mean_interval, speedup, times_to_target
from nearfar.compare.sweep import Choice, choose
from nearfar.report.files import write_json, write_text
from nearfar.report.format import percent

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


def sweep_runs(config: CompareConfig, arm: str, rate: float, weight: float) -> list[Run]:
    """The runs of one trial. Their seeds are none of those that an arm is measured with."""
    first = SWEEP_SEED + config.seed
    return [Run("sweep", arm, rate, weight, seed) for seed in range(first, first + config.sweep_seeds)]


def summarize(about: dict[str, Any], runs: dict[Run, Curve], folder: Path | None = None) -> Comparison:
    """From finished runs to the result. Arms that were not measured yet, and seeds that not all arms have, wait.

    Args:
        about: As in ``config.json``.
        runs: The finished runs.
        folder: Where they came from.
    """
    config = CompareConfig.of(**about["config"])
    chosen = {name: _choice(config, name, runs) for name in config.arms}
    curves: dict[str, dict[int, Curve]] = {}
    for name, choice in chosen.items():
        measured = {run.seed: curve for run, curve in runs.items() if run.stage == "measure" and run.arm == name}
        if choice is not None and measured:
            curves[name] = measured
    # the seeds that every measured arm has: speed-ups are paired
    shared = sorted(set.intersection(*map(set, curves.values()))) if BASELINE in curves else []
    stacked = {name: _Stack([curves[name][seed] for seed in shared]) for name in curves} if shared else {}
    targets = _targets(config, stacked)
    times = {name: [stack.times(target, config.hold) for target in targets] for name, stack in stacked.items()}
    rivals = tuple(_best_without_contrast(stacked, times, k) for k in range(len(targets)))
    arms = []
    for name, stack in stacked.items():
        choice = chosen[name]
        assert choice is not None
        reach = tuple(_reach(name, times, k, rivals[k]) for k in range(len(targets)))
        arms.append(_arm(name, choice, stack, stacked[BASELINE], reach))
    contrast = [arm for arm in arms if arm.kind == "contrast"]
    return Comparison(
        about=about,
        complete=len(stacked) == len(config.arms) and len(shared) == config.seeds,
        targets=targets,
        headline=0 if config.target or len(targets) < 2 else 1,
        arms=tuple(arms),
        contrast=max(contrast, key=lambda arm: arm.choice.score).name if contrast else None,
        rivals=rivals,
        folder=folder,
    )


class _Stack:
    """The curves of an arm's seeds, as arrays ``(seeds, evaluations)``."""

    def __init__(self, curves: list[Curve]) -> None:
        self.steps, self.seconds, self.rows, self.accuracy = (
            np.array([getattr(curve, name) for curve in curves], dtype=float)
            for name in ("steps", "seconds", "rows", "accuracy")
        )
        self.diverged = sum(curve.diverged for curve in curves)

    def times(self, target: Target, hold: int) -> tuple[Times, Times, Times]:
        return (
            times_to_target(self.steps, self.accuracy, target.accuracy, hold),
            times_to_target(self.seconds, self.accuracy, target.accuracy, hold),
            times_to_target(self.rows, self.accuracy, target.accuracy, hold),
        )


def _choice(config: CompareConfig, name: str, runs: dict[Run, Curve]) -> Choice | None:
    """What the sweep chose, worked out again from its runs; None if it is not finished."""

    def score(rate: float, weight: float) -> float:
        return fmean(runs[run].score for run in sweep_runs(config, name, rate, weight))

    try:
        return choose(ARMS[name], config.rates, config.budget, score)
    except KeyError:
        return None


def _targets(config: CompareConfig, stacked: dict[str, _Stack]) -> tuple[Target, ...]:
    if config.target:
        return tuple(Target(accuracy, percent(accuracy)) for accuracy in config.target)
    if not stacked:
        return ()
    best = float(stacked[BASELINE].accuracy.mean(0).max())
    return tuple(Target(part * best, f"{part:.0%} of the best") for part in FRACTIONS)


def _best_without_contrast(stacked: dict[str, _Stack], times: dict[str, list[tuple[Times, ...]]], k: int) -> str:
    def soonest(name: str) -> tuple[float, float, float]:
        low, high = censored_median(times[name][k][0])
        return high, low, -float(stacked[name].accuracy.mean())

    return min((name for name in stacked if ARMS[name].kind != "contrast"), key=soonest)


def _reach(name: str, times: dict[str, list[tuple[Times, ...]]], k: int, without: str) -> Reach:
    steps, seconds, rows = times[name][k]
    base = times[BASELINE][k] if name != BASELINE else None
    rival = times[without][k] if ARMS[name].kind == "contrast" else None
    return Reach(
        reached=steps.reached,
        steps=censored_median(steps),
        seconds=censored_median(seconds),
        rows=censored_median(rows),
        gain_steps=speedup(base[0], steps) if base else None,
        gain_seconds=speedup(base[1], seconds) if base else None,
        own_steps=speedup(rival[0], steps) if rival else None,
        own_seconds=speedup(rival[1], seconds) if rival else None,
    )


def _arm(name: str, choice: Choice, stack: _Stack, base: _Stack, reach: tuple[Reach, ...]) -> ArmResult:
    bands = [mean_interval(column) for column in stack.accuracy.T]
    steps = float(stack.steps[0, -1])
    return ArmResult(
        name=name,
        title=ARMS[name].title,
        kind=ARMS[name].kind,
        choice=choice,
        seeds=len(stack.steps),
        diverged=stack.diverged,
        final=bands[-1],
        final_gain=mean_interval(stack.accuracy[:, -1] - base.accuracy[:, -1]) if name != BASELINE else None,
        seconds_per_step=float(np.median(stack.seconds[:, -1])) / steps,
        rows_per_step=float(np.median(stack.rows[:, -1])) / steps,
        curve={
            "steps": stack.steps[0].tolist(),
            "seconds": np.median(stack.seconds, axis=0).tolist(),
            "rows": np.median(stack.rows, axis=0).tolist(),
            "mean": [band.lower for band in bands],
            "low": [max(band.low, 0.0) for band in bands],
            "high": [min(band.high, 1.0) for band in bands],
        },
        reach=reach,
    )


def _finite(value: Any) -> Any:
    """The same data with None for what is infinite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
