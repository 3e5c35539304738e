"""A comparison at work: every arm swept, then measured with fresh seeds, each run from its seed alone."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from nearfar.compare.arms import ARMS, BASELINE, select_arms
from nearfar.compare.config import SWEEP_SEED, CompareConfig
from nearfar.compare.environment import describe_machine
from nearfar.compare.inputs import Rows, Task
from nearfar.compare.learner import Factory, Learner, check_network
from nearfar.compare.progress import Progress
from nearfar.compare.record import Curve, Run, RunFolder
from nearfar.compare.result import Comparison
from nearfar.compare.summary import sweep_runs
from nearfar.compare.sweep import Choice, choose
from nearfar.training.loop import Diverged, Pause, fit, shuffled_batches


class Interrupted(KeyboardInterrupt):
    """Stopped by hand. ``comparison`` holds the table so far, ``folder`` is where to go on from."""

    def __init__(self, comparison: Comparison, folder: Path) -> None:
        super().__init__(f"interrupted: go on with resume={str(folder)!r} (nearfar compare --resume {folder})")
        self.comparison, self.folder = comparison, folder


# Where Adam steps all parameters in one kernel; a fifth of a small network's step on a CPU otherwise.
FUSED = ("cpu", "cuda", "mps")


@dataclass
class Study:
    """Everything that a comparison needs; builds every arm once at the start, so that what cannot work is said first."""

    config: CompareConfig
    """With every field filled in that depends on the data."""
    task: Task
    factory: Factory
    name: str
    """Of the network."""
    contrastive: nn.Module
    loss: nn.Module
    progress: Progress

    def __post_init__(self) -> None:
        self.device = _device(self.config.device)
        train, config = self.task.train, self.config
        with torch.random.fork_rng():
            network = self.factory(self.task.in_shape, self.task.num_classes)
            check_network(network, train.inputs[:2], self.task.num_classes, self.name)
            self.parameters = sum(p.numel() for p in network.parameters())
            batch = Rows(train.inputs[: config.batch_size], train.labels[: config.batch_size]).to(self.device)
            for arm in config.arms:
                self._learner(Run("sweep", arm, config.rates[0], 1.0, SWEEP_SEED)).loss(batch.inputs, batch.labels)

    def describe(self) -> dict[str, Any]:
        """What is compared, on what, where: the part of the result that is known before any run."""
        return {
            "config": asdict(replace(self.config, out=None, resume=None)),
            "data": {
                "name": self.task.name,
                "train": len(self.task.train),
                "validation": len(self.task.validation),
                "test": len(self.task.test),
                "in_shape": list(self.task.in_shape),
                "classes": list(self.task.class_names),
                "left_out": list(self.task.bad),
                "fingerprint": self.task.fingerprint(),
            },
            "model": {"name": self.name, "parameters": self.parameters},
            "losses": {"task": repr(self.loss), "contrastive": repr(self.contrastive)},
            "environment": describe_machine(self.device, self.config.threads),
        }

    def outline(self) -> str:
        """What is about to happen, in a sentence."""
        config, task = self.config, self.task
        runs = len(config.arms) * (config.budget * config.sweep_seeds + config.seeds)
        return (
            f"{task.name}: {len(task.train):,} rows to train on, {len(task.validation):,} to choose rates by, "
            f"{len(task.test):,} to test on, {task.num_classes} classes. {self.name}, {self.parameters:,} parameters. "
            f"{len(config.arms)} arms, each {config.budget} trials and {config.seeds} fresh seeds: {runs} runs of "
            f"{config.steps} steps, batches of {config.batch_size}."
        )

    def run(self, folder: RunFolder) -> Comparison:
        """Sweeps, measures and summarises; writes as it goes, and leaves out what the folder has already.

        Raises:
            Interrupted: If stopped by Ctrl-C.
        """
        threads = torch.get_num_threads()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        try:
            with folder, self.progress:
                self._run(folder)
        except KeyboardInterrupt as error:
            comparison = Comparison.load(folder.path)
            comparison.save()
            raise Interrupted(comparison, folder.path) from error
        finally:
            torch.set_num_threads(threads)
        comparison = Comparison.load(folder.path)
        comparison.save()
        return comparison

    def _run(self, folder: RunFolder) -> None:
        arms, config = select_arms(self.config.arms), self.config
        done = folder.finished()
        self.progress.begin(len(arms) * (config.budget * config.sweep_seeds + config.seeds))

        def curve(run: Run) -> Curve:
            if run not in done:
                self.progress.run(run)
                folder.start(run)
                done[run] = self._train(run, folder)
                folder.end(done[run])
            self.progress.advance()
            return done[run]

        def score(name: str, rate: float, weight: float) -> float:
            return fmean(curve(run).score for run in sweep_runs(config, name, rate, weight))

        choices: dict[str, Choice] = {}
        for name, arm in arms.items():
            choices[name] = choose(arm, config.rates, config.budget, functools.partial(score, name))
            self.progress.chosen(name, choices[name])
        if choices[BASELINE].score == 0:
            raise ValueError(
                f"the baseline diverged at every rate, {', '.join(map(str, config.rates))}: pass lower rates"
            )
        for name, choice in choices.items():
            self._warm_up(Run("sweep", name, choice.rate, choice.weight, SWEEP_SEED))
        for seed in range(config.seed, config.seed + config.seeds):  # arms side by side: the machine drifts for all
            for name, choice in choices.items():
                curve(Run("measure", name, choice.rate, choice.weight, seed))
            Comparison.load(folder.path).save(report=False)  # the table so far, whatever comes

    def _learner(self, run: Run) -> Learner:
        """The network of a run. Its initial weights depend on the seed alone, so that they are the same in all arms."""
        torch.manual_seed(run.seed)
        network = self.factory(self.task.in_shape, self.task.num_classes)
        torch.manual_seed(run.seed)  # and so is what the network draws while training
        return Learner(
            ARMS[run.arm],
            network,
            self.task.num_classes,
            task=copy.deepcopy(self.loss),
            contrastive=copy.deepcopy(self.contrastive),
            weight=run.weight,
            features=self.config.features,
            generator=torch.Generator().manual_seed(run.seed),
        ).to(self.device)

    def _train(self, run: Run, folder: RunFolder) -> Curve:
        """One run from its seed to its last step."""
        watched = (self.task.validation if run.stage == "sweep" else self.task.test).to(self.device)
        curve = Curve()

        def look(step: int, seconds: float, rows: int, accuracy: float) -> None:
            curve.add(step, seconds, rows, accuracy)
            folder.evaluation(step, seconds, rows, accuracy)

        with torch.random.fork_rng():
            learner = self._learner(run)
            try:
                for pause in self._fit(learner, run, self.config.steps):
                    look(pause.step, pause.seconds, learner.rows, learner.accuracy(watched.inputs, watched.labels))
            except Diverged as stop:  # it answers nothing any more, and costs as much a step as it did
                curve.diverged = True
                for step in looks(self.config)[len(curve.steps) :]:
                    look(step, stop.seconds * step / stop.step, learner.rows * step // stop.step, 0.0)
        return curve

    def _fit(self, learner: Learner, run: Run, steps: int | None) -> Iterator[Pause]:
        assert steps is not None
        assert self.config.eval_every is not None
        assert self.config.batch_size is not None
        train = self.task.train.to(self.device)
        order = torch.Generator().manual_seed(run.seed)
        batches = shuffled_batches(len(train), self.config.batch_size, order)
        return fit(
            lambda batch: learner.loss(train.inputs[batch], train.labels[batch]),
            torch.optim.Adam(learner.parameters(), lr=run.rate, fused=self.device.type in FUSED),
            (batch.to(self.device) for batch in batches),
            steps=steps,
            every=self.config.eval_every,
        )

    def _warm_up(self, run: Run) -> None:
        """A few steps for nobody, so that what a process pays once is not on the clock of the arm that comes first."""
        with torch.random.fork_rng(), contextlib.suppress(Diverged):
            list(self._fit(self._learner(run), run, 3))


def _device(name: str) -> torch.device:
    try:
        torch.empty(1, device=name).fill_(0)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        gist = str(error).partition("\n")[0]
        raise ValueError(
            f"device {name!r} cannot be used here ({gist}): pass cpu, or one that this torch sees"
        ) from error
    return torch.device(name)


def looks(config: CompareConfig) -> list[int]:
    """The steps at which a run is evaluated.

    Example:
        >>> looks(CompareConfig(steps=10, eval_every=4))
        [4, 8, 10]
    """
    assert config.steps is not None
    assert config.eval_every is not None
    return [*range(config.eval_every, config.steps, config.eval_every), config.steps]
