"""What a comparison is told: one frozen dataclass. The string under a field is its ``--help``.

Loads no torch: the command line reads its options from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from nearfar.compare.arms import ARMS, select_arms
from nearfar.names import unknown

FRACTIONS = (0.90, 0.95, 0.99, 1.00)
"""Targets nobody set: parts of the best mean accuracy that the baseline ever has."""

# Apart from the fresh seeds by more than anyone has of those.
SWEEP_SEED = 1_000_000


@dataclass(frozen=True)
class CompareConfig:
    """Trains one network under several arms, and says how much sooner each gets there."""

    data: str = "digits"
    """A data set by name (see: nearfar list data), a folder of images by class, or a CSV or Parquet table."""
    root: str | None = None
    """Where the files of a named data set are, if not in the usual places."""
    label: str | None = None
    """The label's column of a table; by default label, target, class or y."""
    skip_bad: bool = False
    """Leave out images and rows that cannot be read, and count them, instead of stopping at the first."""
    model: str | None = None
    """Your own network, as module:factory; it is called with the shape of one input and the number of classes. By
    default a small convolutional network for images, a perceptron with two hidden layers for tables."""
    features: str | None = None
    """The layer whose output is contrasted, such as encoder.layer4; by default what enters the last linear layer."""
    arms: tuple[str, ...] = ()
    """Which arms to train (see: nearfar list arms); the baseline, task, must be one of them. By default all."""
    rates: tuple[float, ...] = ()
    """Learning rates (Adam) that every arm tries in the sweep. By default 0.001, 0.003, 0.01 and 0.03."""
    budget: int | None = None
    """Trials of an arm in the sweep, the same for all: first every rate, then weights of the contrast where an arm has
    them, then rates beside the best. By default 6, or as many as there are rates, if those are more."""
    sweep_seeds: int | None = None
    """Seeds a trial is averaged over; by default 2, from 10,000 training rows on 1."""
    seeds: int | None = None
    """Fresh seeds to measure each arm with, once its rate is chosen; by default 8, from 10,000 training rows on 5.
    Below 5 there are no intervals."""
    seed: int = 0
    """The first of the fresh seeds, and the seed of the validation split."""
    steps: int | None = None
    """Optimiser steps of a run; by default 200, from 10,000 training rows on 400."""
    eval_every: int | None = None
    """Steps between two evaluations; by default 2, from 10,000 training rows on 10."""
    batch_size: int | None = None
    """Rows of a batch; by default 64, from 10,000 training rows on 256."""
    target: tuple[float, ...] = ()
    """Test accuracies to reach, such as 0.9 0.95; by default 90, 95, 99 and 100% of the baseline's best mean. The
    verdict speaks of the second of the default ones, or of the first given."""
    hold: int = 2
    """Evaluations in a row that must meet a target before it counts."""
    validation: float = 0.2
    """The part of the training rows held out to choose rates by; 5,000 rows at most."""
    temperature: float = 0.1
    """Temperature of the contrastive loss."""
    out: str | None = None
    """The run folder; by default runs/compare-DATA-N."""
    resume: str | None = None
    """Go on with the interrupted comparison in this run folder; runs that are finished are not repeated."""
    quick: bool = False
    """A first look in a fraction of the time: 100 steps, two rates, four arms and 5 seeds, where no other option says
    otherwise. Its figures are coarse."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, mps."""
    workers: int | None = None
    """Runs that are trained side by side, each in a process; by default one a CPU core, up to 8, where a run takes one
    thread. From Python only if asked for: the script must then do its work under if __name__ == "__main__"."""
    threads: int | None = None
    """CPU threads of a run; by default 1 for inputs of at most 256 values, where more only get into each other's way."""

    def __post_init__(self) -> None:
        if self.arms:
            select_arms(self.arms)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: wanted {least} or more")
        if not all(0 < rate < math.inf for rate in self.rates):
            raise ValueError(f"rates are {self.rates}: wanted one or more learning rates above 0")
        rates = len(self.rates or (QUICK_RATES if self.quick else RATES))
        if self.budget is not None and not rates <= self.budget <= rates + 10:
            raise ValueError(
                f"budget is {self.budget} trials for {rates} rates: each rate is one trial, and more than ten others would "
                f"split hairs, so pass budget={rates} to {rates + 10}, or other rates"
            )
        if len(set(self.rates)) < len(self.rates):
            raise ValueError(f"rates are {self.rates}: a rate that is named twice would be a trial lost")
        if not all(0 < target <= 1 for target in self.target):
            raise ValueError(f"target is {self.target}: accuracies are between 0 and 1, so pass 0.9 for 90%")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}: wanted a part of the training rows between 0 and 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: wanted a number above 0, such as 0.1")
        if self.steps is not None and self.eval_every is not None and self.steps < self.hold * self.eval_every:
            raise ValueError(
                f"{self.steps} steps with an evaluation every {self.eval_every} make too few to hold a target for "
                f"{self.hold}: raise steps or lower eval_every"
            )

    @classmethod
    def of(cls, **options: Any) -> CompareConfig:
        """A configuration of these options, after a look at their names.

        Raises:
            TypeError: If there is no such option; the message suggests the nearest.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise TypeError(unknown("option", name, known))
        for name in ("arms", "rates", "target"):
            if name in options:
                options[name] = tuple(options[name])  # from a list, as files have them
        return cls(**options)

    def resolved(self, rows: int, values: int, cores: int = 1) -> CompareConfig:
        """The same with every default that depends on the data filled in.

        Args:
            rows: Training rows.
            values: Numbers in one input.
            cores: How many may be used without being asked.

        Example:
            >>> CompareConfig().resolved(1000, 64).batch_size, CompareConfig(steps=50).resolved(60_000, 784).steps
            (64, 50)
        """
        quick, large = self.quick, rows >= 10_000
        rates = self.rates or (QUICK_RATES if quick else RATES)
        threads = self.threads or (1 if values <= 256 else None)
        return replace(
            self,
            arms=self.arms or (QUICK_ARMS if quick else tuple(ARMS)),
            rates=rates,
            budget=self.budget or max(len(rates), 2 if quick else 6),
            sweep_seeds=self.sweep_seeds or (1 if quick or large else 2),
            seeds=self.seeds or (5 if quick or large else 8),
            steps=self.steps or (100 if quick else 400 if large else 200),
            eval_every=self.eval_every or (10 if large else 2),
            batch_size=min(self.batch_size or (256 if large else 64), rows),
            threads=threads,
            workers=self.workers or (min(cores, 8) if threads == 1 and self.device == "cpu" else 1),
        )


RATES, QUICK_RATES = (1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2)
# The smallest sensible value of each whole number. A batch of one row has no pair in it.
LEAST = {
    "budget": 1, "sweep_seeds": 1, "seeds": 1, "seed": 0, "steps": 1, "eval_every": 1, "batch_size": 2, "hold": 1,
    "threads": 1, "workers": 1,
}  # fmt: skip
QUICK_ARMS = ("task", "control", "joint", "joint-prototypes")
