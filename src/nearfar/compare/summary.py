"""From finished runs to the result: targets, medians, speed-ups, and who is compared with whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from nearfar.compare.arms import ARMS, BASELINE
from nearfar.compare.config import FRACTIONS, SWEEP_SEED, CompareConfig
from nearfar.compare.record import Curve, Run
from nearfar.compare.result import ArmResult, Comparison, Reach, Target
from nearfar.compare.statistics import Estimate, Times, censored_median, mean_interval, speedup, times_to_target
from nearfar.compare.sweep import Choice, choose
from nearfar.report.format import percent


def sweep_runs(config: CompareConfig, arm: str, rate: float, weight: float) -> list[Run]:
    """The runs of one trial. Their seeds are none of those that an arm is measured with."""
    assert config.sweep_seeds is not None
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
    assert config.budget is not None

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
        final=_within(bands[-1]),
        final_gain=mean_interval(stack.accuracy[:, -1] - base.accuracy[:, -1]) if name != BASELINE else None,
        seconds_per_step=float(np.median(stack.seconds[:, -1])) / steps,
        rows_per_step=float(np.median(stack.rows[:, -1])) / steps,
        curve={
            "steps": stack.steps[0].tolist(),
            "seconds": np.median(stack.seconds, axis=0).tolist(),
            "rows": np.median(stack.rows, axis=0).tolist(),
            "mean": [band.lower for band in bands],
            "low": [_within(band).low if np.isfinite(band.low) else band.lower for band in bands],
            "high": [_within(band).high if np.isfinite(band.high) else band.lower for band in bands],
        },
        reach=reach,
    )


def _within(band: Estimate) -> Estimate:
    """The interval of an accuracy, which is between 0 and 1; an open one stays open."""
    low, high = (end if np.isinf(end) else min(max(end, 0.0), 1.0) for end in (band.low, band.high))
    return replace(band, low=low, high=high)
